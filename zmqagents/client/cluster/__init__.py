"""What a client has of a cluster: `Cluster`, `AsyncCluster`, and the link by which their proxies reach its hosts.

    seeds     the hosts that the user has named, and which of them is asked now
    ways      which host the calls to an agent go to
    retries   the thread that sends again what has found no host
    link      all of it as one `Link`: calls go on while hosts come and go
    handle    Cluster    aio    AsyncCluster
    upgrading the records of a cluster, for ``as_server upgrade``

May import what `client` may.
"""
