"""What callers hold: `RpcClient`, proxies, results, streams; for threads and for asyncio.

May import connection, wire, codec, agents, errors and config. It loads no host.
"""
