"""What is due when: a heap of deadlines, of which most are over long before they come.

A call's deadline is typically minutes away and the call is over in a millisecond. Nothing is searched for when
one is over; it stays in the heap until such entries are the greater part, and then all of them are swept out.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Timers"]

SPARE = 1024  # entries that are over and not swept out: at least this many, at most as many as are not


class Due(Protocol):
    @property
    def settled(self) -> bool: ...


T = TypeVar("T", bound=Due)


class Timers(Generic[T]):
    """Things that are ``settled`` or will be due. Tell of each one that is settled before its time by `over`."""

    __slots__ = ("_heap", "_order", "live")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()  # two of one time come out as they came in
        self.live = 0

    def __len__(self) -> int:
        """Entries kept, those that are over included."""
        return len(self._heap)

    def add(self, due: float, what: T) -> None:
        heapq.heappush(self._heap, (due, next(self._order), what))
        self.live += 1
        if len(self._heap) > 2 * self.live + SPARE:
            self._heap = [entry for entry in self._heap if not entry[2].settled]
            heapq.heapify(self._heap)

    def over(self) -> None:
        """One of those that were added is settled."""
        self.live -= 1

    def next_due(self) -> float | None:
        """When `take_due` is to be called at the latest; None if there is nothing."""
        return self._heap[0][0] if self._heap else None

    def take_due(self, now: float) -> Iterator[T]:
        """What is due at ``now`` and not settled, earliest first. Each is to be settled, and told of by `over`."""
        while self._heap and self._heap[0][0] <= now:
            what = heapq.heappop(self._heap)[2]
            if not what.settled:
                yield what
