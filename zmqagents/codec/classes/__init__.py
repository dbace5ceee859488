"""Classes of the program's own: which ones a receiver knows, by which names, and what becomes of the others.

May import packages, shapes, standard, builtin, exceptions, pickling, forms and errors.
"""
