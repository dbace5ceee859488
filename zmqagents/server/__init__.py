"""A host's life, from outside (launcher, supervisor, stop) and inside (the process that serves).

May import everything but cli.
"""
