"""Many agents and many results at once: a pool of replicas, and a bar that shows how far results are.

May import what `client` may, and the other modules of `client`.
"""
