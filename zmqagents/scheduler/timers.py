"""What is due when: a heap of deadlines, of which most are over long before they come.

A call's deadline is typically minutes away and the call is over in a millisecond. Nothing is searched for when one is
over. Its entry stays in the heap; when the heap has doubled since the last sweep, all such entries are swept out. So
the sweeps cost a constant time for each entry, and no walk over the live ones is needed.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Timers"]

SPARE = 1024  # entries beyond twice those that the last sweep has left, before the next sweep


class Due(Protocol):
    @property
    def settled(self) -> bool: ...


T = TypeVar("T", bound=Due)


class Timers(Generic[T]):
    """Things that will be due, unless they are ``settled`` before.

    ``due`` is the time at which `take_due` is to be called: never too late, but too early if what would have been due
    then is settled; infinity if nothing is due.
    """

    __slots__ = ("_heap", "_order", "_sweep_at", "due")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()  # two of one time come out as they came in
        self._sweep_at = SPARE
        self.due = math.inf

    def __len__(self) -> int:
        """Entries kept, those that are over included."""
        return len(self._heap)

    def __iter__(self) -> Iterator[T]:
        """What will be due, in no order."""
        return (what for _, _, what in self._heap if not what.settled)

    def add(self, due: float, what: T) -> None:
        """``what`` will be due at the time ``due``."""
        heapq.heappush(self._heap, (due, next(self._order), what))
        if due < self.due:
            self.due = due
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if not entry[2].settled]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + SPARE

    def take_due(self, now: float) -> Iterator[T]:
        """What is due at ``now`` and not settled, earliest first. The taker settles each."""
        while self._heap and self._heap[0][0] <= now:
            what = heapq.heappop(self._heap)[2]
            if not what.settled:
                yield what
        self.due = self._heap[0][0] if self._heap else math.inf
