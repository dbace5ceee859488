"""What users write: the base class of agents, the decorators on their methods, and the files that hold them.

May import codec and errors.
"""
