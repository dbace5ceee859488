"""The life of an agent beside its calls: how it starts and ends (`lives`), how its state is saved (`saving`, `states`).

May import what its parent may. Of the parent's modules `runner` uses `lives`, `services` uses `saving`, and `states`
uses `runner`.
"""
