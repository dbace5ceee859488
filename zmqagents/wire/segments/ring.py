"""Which bytes of a segment its writer may write to, and how many segments a host gives: no memory, no socket, no clock.

The writer of a ring places each frame behind the one before, and begins anew at the start where that has become free.
The reader takes frames in the order in which they were placed, since references to them come in order over the socket.
So it need only say how many it has taken in all.
"""

from __future__ import annotations

from collections import Counter, deque

__all__ = ["COUNT_MASK", "Grants", "Ring"]

COUNT_MASK = 0xFFFFFFFF  # counts of frames go round
ALIGN_BYTES = 64  # a line of the caches: no two frames are in one


class Ring:
    """The ``capacity`` bytes that one side writes to and the other reads; belongs to the writer."""

    __slots__ = ("_spans", "_taken", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._spans: deque[tuple[int, int]] = deque()  # placed and not taken: start and end, in the order of placing
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Ring of {self.capacity:,} bytes [{len(self._spans)} frames]>"

    def place(self, size: int, taken: int) -> int | None:
        """Where ``size`` bytes may be written, None where there is no room; the reader has taken ``taken`` frames.

        A reader that says it has taken more than there were, or fewer than before, gets no further frames.
        """
        spans = self._spans
        fresh = (taken - self._taken) & COUNT_MASK
        if fresh > len(spans):
            return None
        if fresh:
            self._taken = taken
            for _ in range(fresh):
                spans.popleft()
        # At the start as often as may be: those bytes are in the caches, and are memory already.
        start = self._behind(size) if spans else 0 if size <= self.capacity else None
        if start is not None:
            spans.append((start, start + -(-size // ALIGN_BYTES) * ALIGN_BYTES))
        return start

    def _behind(self, size: int) -> int | None:
        """Where there is room beside what was placed and not taken."""
        (first, _), (last, end) = self._spans[0], self._spans[-1]
        if last < first:  # begun anew
            return end if end + size <= first else None
        if end + size <= self.capacity:
            return end
        return 0 if size <= first else None


class Grants:
    """How many segments a host has given, and to whom: ``most`` in all, and to one user three quarters of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._given: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._given.total()

    def take(self, user: str) -> bool:
        """Give one to ``user``; False if there are too many."""
        if len(self) >= self._most or 4 * (self._given[user] + 1) > 3 * self._most:
            return False
        self._given[user] += 1
        return True

    def give_back(self, user: str) -> None:
        """One that ``user`` had is no more."""
        self._given[user] -= 1
        if not self._given[user]:
            del self._given[user]
