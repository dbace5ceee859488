"""What a host tells of itself when it is asked: its figures, whether it is well, its latest log lines.

May import what the broker may.
"""
