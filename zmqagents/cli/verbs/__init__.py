"""The verbs of ``as_server``, a module for each kind. Each is loaded when it is called.

May import what ``cli`` may.
"""
