"""The web process: a page that shows a host, and its figures over HTTP. A client of the host like any other, in a
process of its own.

    app        the routes                            hosts      asked for figures, in the name of users
    guard      what each request passes first        exposition the figures as Prometheus reads them
    access     tokens, cookies, whom they stand for  running    the link, for ``as_server web --url``
    api        /api: what pages show and do          serve      listens
    requests   what such a request brings            gateway    to agents, for programs that speak HTTP
    cluster_pages  the same of a whole cluster       files      the page itself, in ``static``

Needs the extra ``web``. May import ``client``, ``telemetry`` and what stands below these.
"""
