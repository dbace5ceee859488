"""JSON schemas of the methods of agents, made from their signatures, for programs that speak JSON.

    hints      the schema of one annotation
    texts      what an annotation says of which there is only the text
    methods    the schemas of a method

May import what its parent may. `methods` uses both others and its parent's `spec`.
"""
