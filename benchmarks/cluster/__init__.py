"""What a cluster does, with hosts, a Redis and clients of its own: ``python -m benchmarks.cluster``.

    python -m benchmarks.cluster [--quick] [--only calls,kill] [--transport curve|ipc] [--json FILE] [--table FILE]
                                 [--charts DIR] [--load FILE]

Each case (see `cases`) starts a Redis and hosts as processes, has clients call them, disturbs them, and gives figures;
`bounds` says what each of them must be. Over ``curve`` (the default) hosts and clients speak TCP with CURVE to each
other, as on several machines: each has a directory of its own for what it would find on one machine. Over ``ipc`` they
take Unix sockets. Clients that keep a rate are open loop: times count from when a call was due.

All of it shares one machine: what is charged to a host also has the clients, the other hosts and Redis beside it.

    __main__   the command                  world      a Redis, hosts, and what they take of a core
    bounds     what a figure must be        load       calls at a rate, the program and its records
    cases      one function for each case   crowd      200 clients, each a process
    calls      blocking calls, by each way  simulated  100 hosts in one process, and one real one
    agents     the classes that are hosted  pictures   charts
"""
