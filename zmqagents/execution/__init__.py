"""Where the code of agents runs: threads, the event loop, and what that code may ask of its host.

May import scheduler, wire, codec, agents, models and errors.
"""
