"""What people write: the base class, the marks of methods, the files that hold agent classes.

May import `errors`. Everything else stands above it.
"""
