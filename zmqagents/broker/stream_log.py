"""The items of a stream that were sent and that its reader has not taken: what a broken connection may have lost.

A reader grants credit for the items that it has taken, so there are never more of them here than the window of the
stream. When the client is back, it says which item it needs next and how much credit it has granted in all; from there
the stream goes on, nothing lost and nothing twice. All of this belongs to the router thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..wire.messages import MAX_TIME_MS, STREAM_WINDOW, Frame

__all__ = ["StreamLog"]

Body = Sequence[Frame]
HALF = (MAX_TIME_MS + 1) // 2  # numbers are counted round; what is further away than this lies behind


class StreamLog:
    """The log of one stream. ``sent``: the items so far, counted round; ``first``: the number of the first one.

    ``lost``: the items were dropped because they were too large; the stream cannot go on over another connection.
    """

    __slots__ = ("_first", "_granted", "_items", "bytes", "lost", "sent")

    def __init__(self, first: int = 0) -> None:
        self.bytes = 0
        self.lost = False
        self.sent = first
        self._first = first
        self._granted = 0  # items for which the reader has granted credit, beyond the first window
        self._items: deque[tuple[int, Body]] = deque()

    def __len__(self) -> int:
        return len(self._items)

    def note(self, number: int, body: Body) -> None:
        """Keep an item that is sent now."""
        self.sent = (number + 1) & MAX_TIME_MS
        if not self.lost:
            self._items.append((number, body))
            self.bytes += _size(body)

    def grant(self, items: int) -> None:
        """The reader has taken ``items`` more."""
        self._granted = (self._granted + items) & MAX_TIME_MS
        self._drop_before(self._first + self._granted)

    def resume(self, needed: int, granted: int) -> tuple[int, list[tuple[int, Body]]] | None:
        """The reader is back: it needs the item ``needed`` next, and has granted ``granted`` in all.

        Returns the credit that has not arrived, and the items to be sent again, with their numbers; None if any of
        these were dropped.
        """
        if self.lost and needed != self.sent:
            self.sent = needed  # so that the reader takes the error that follows as the end
            return None
        credit = (granted - self._granted) & MAX_TIME_MS
        credit = credit if credit <= STREAM_WINDOW else 0
        self._granted = (self._granted + credit) & MAX_TIME_MS
        self._drop_before(needed)
        return credit, list(self._items)

    def drop(self) -> None:
        """Drop the items: if the connection breaks now, the stream is lost."""
        self.lost = True
        self._items.clear()
        self.bytes = 0

    def _drop_before(self, number: int) -> None:
        items = self._items
        while items and 0 < (number - items[0][0]) & MAX_TIME_MS < HALF:
            self.bytes -= _size(items.popleft()[1])


def _size(body: Body) -> int:
    return sum(map(len, body))
