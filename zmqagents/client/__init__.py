"""What callers hold: `RpcClient`, proxies, results, streams; for threads and for asyncio.

May import cluster, connection, wire, codec, agents, discovery, tracing, checks and errors. It loads no host.
"""
