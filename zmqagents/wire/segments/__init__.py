"""Memory that a host and a client of the same machine have in common, for long frames between them.

`ring` knows which bytes of it are free, and who may have such memory; `memory` is the memory itself.

May import messages of wire, and errors.
"""
