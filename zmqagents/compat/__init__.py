"""Other systems' names over this one's transport, for programs that were written for those.

May import whatever is below: client, server, agents, codec and errors.
"""
