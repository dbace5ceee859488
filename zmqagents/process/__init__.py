"""The operating system's part: children, signals, the line that ends a host with its parent, descriptors, forks, the
timer of a stop, memory.

May import codec, config and errors.
"""
