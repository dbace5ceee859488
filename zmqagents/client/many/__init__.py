"""Many agents and many results at once: a pool of replicas, a bar that shows how far results are, lists in pages.

May import what `client` may, and the other modules of `client`.
"""
