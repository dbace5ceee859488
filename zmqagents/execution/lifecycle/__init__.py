"""The life of an agent beside its calls: how it starts and ends (`lives`), and how its state is kept (`states`).

May import what its parent may. Of the parent's modules `runner` uses `lives`, and `states` uses `runner`.
"""
