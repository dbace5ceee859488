"""The version of this package, in a module of its own: `setup.cfg`, hosts and clients read it, and it loads nothing."""

__version__ = "0.1.0"
