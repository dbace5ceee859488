"""Which member runs a new agent. Pure: loads in, a choice out."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["least_loaded"]


def least_loaded(loads: Sequence[float], most: int) -> int | None:
    """The index of the member that a new agent goes to; None: to a new one.

    ``loads``: how many agents each has. As long as there are fewer than ``most``, an idle one or a new one is taken.
    """
    if not loads:
        return None
    best = min(range(len(loads)), key=loads.__getitem__)
    return None if loads[best] and len(loads) < most else best
