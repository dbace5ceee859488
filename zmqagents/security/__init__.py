"""Which clients may connect: the key store, CURVE, ZAP, and files that only their owner reads.

May import errors. Beside wire it is the one package that knows zmq.
"""
