"""The router thread: it reads messages, asks the scheduler what to do, and carries that out.

May import everything but client, server and cli.
"""
