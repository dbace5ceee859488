"""What a host tells of itself: counters, the names of its metrics, and its log lines.

    meters     calls by class and method: outcomes, and histograms of their times
    metrics    the names of all metrics, and the figures of a host under these names
    rates      what has happened between two looks at the figures
    lines      log records as text or JSON, and the limit on how many of one kind are written
    ring       the latest log lines of a host
    settings   how a host logs
    program    a host as a program: where its log lines go, and what agents print

Counting is plain numbers in the thread that has something to count. Nothing here opens a socket or asks a host.

May import nothing of the package but ``version``, and no other package than the standard library.
"""
