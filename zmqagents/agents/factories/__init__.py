"""Functions that make agents, beside the classes that do: what they are called, and how a name gives one.

May import what its parent may. `named` uses `factory` and its parent's `loader`.
"""
