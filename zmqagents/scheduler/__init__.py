"""What runs next. Pure: no thread, no socket, no clock of its own; every method takes the time.

May import agents, codec, wire.messages, config and errors.
"""
