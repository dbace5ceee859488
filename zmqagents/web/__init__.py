"""The web process: a page that shows a host, and its figures over HTTP. A client of the host like any other, in a
process of its own.

    app        the routes                            watcher    asks the host for figures, and when it last answered
    guard      what each request passes first        live       the live stream of all open pages
    access     tokens, cookies, whom they stand for  series     the points of the charts
    doors      connections in the name of users      exposition the figures as Prometheus reads them
    api        /api: what pages show and do          running    the link, for ``as_server web --url``
    files      the page itself, in ``static``        serve      listens

Needs the extra ``web``. May import ``client``, ``telemetry`` and what stands below these.
"""
