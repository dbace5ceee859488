"""The operating system's part: children, signals, the line that ends a host with its parent, descriptors.

May import codec, config and errors.
"""
