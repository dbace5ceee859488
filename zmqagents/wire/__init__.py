"""Bytes at both ends: the messages of ZA/1, ZMTP, and the transports that carry them.

May import process, security, codec, agents, config and errors. Beside security it is the one package that knows zmq.
"""
