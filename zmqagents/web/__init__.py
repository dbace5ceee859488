"""The web process: what others read of a host over HTTP. A client of the host like any other, in a process of its own.

    app        the routes: /metrics, /livez, /readyz
    exposition the figures of a host as Prometheus reads them
    watcher    asks the host, and remembers when it last answered
    serve      listens

Needs the extra ``web``. May import ``client``, ``telemetry`` and what stands below these.
"""
