"""When a process that has crashed is started again: the rule, without a process and a clock."""

from __future__ import annotations

import random
from collections import deque

__all__ = ["Crashes"]

FIRST_S = 0.1  # the first pause; each further crash within the window doubles it
LONGEST_S = 10.0
JITTER = 0.2  # processes that fell together do not rise together


class Crashes:
    """When to start again, decided from the moments of the crashes alone. Times in seconds of one monotonic clock."""

    def __init__(self, limit: int, window_s: float) -> None:
        self.limit = limit
        self.window_s = window_s
        self._moments: deque[float] = deque()

    def __len__(self) -> int:
        """Those within the window."""
        return len(self._moments)

    def pause(self, now: float) -> float | None:
        """A crash happened: the seconds to wait before the next start; None: there have been too many."""
        moments = self._moments
        moments.append(now)
        if self.too_many(now):
            return None
        seconds: float = min(LONGEST_S, FIRST_S * 2 ** (len(moments) - 1))
        return seconds * random.uniform(1 - JITTER, 1 + JITTER)

    def too_many(self, now: float) -> bool:
        """Whether there have been more than ``limit`` within the window."""
        moments = self._moments
        while moments and moments[0] <= now - self.window_s:
            moments.popleft()
        return len(moments) > self.limit

    def clear(self) -> None:
        """Begin anew: somebody has decided that it is to be started again."""
        self._moments.clear()
