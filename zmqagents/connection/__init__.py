"""A client's way to a host: one connection for each process and host, shared by all threads.

May import wire, security, codec, agents, discovery, tracing, checks and errors.
"""
