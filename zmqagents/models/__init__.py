"""Model configurations: what agents read to reach a language model. Secrets never leave the host.

May import errors.
"""
