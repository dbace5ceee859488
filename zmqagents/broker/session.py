"""The replies that a client may still need: what makes a call run at most once over a connection that breaks.

Call ids are the client's own and never used twice. Every reply is noted here when it is sent and forgotten when the
client says that it needs it no more (see `frames`). So of a CALL that is sent again after a broken connection it is
known whether it was answered; whether it is still open, its `Peer` knows; and if neither, it has never come.

``max_bytes`` bounds the replies of one client. Beyond it the oldest go, but not the fact that they were given:
their calls do not run again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from ..wire.messages import Reply

__all__ = ["ReplyCache"]

NOTE_BYTES = 256  # counted for a reply beside its length
MAX_NOTES = 65_536  # replies remembered of one client; one that acknowledges leaves a hundred


class ReplyCache:
    """The reply cache of one client. Owned by the router thread."""

    __slots__ = ("_floor", "_kept", "_max_bytes", "_notes", "bytes", "needed")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._notes: dict[int, Reply | None] = {}  # by call id, in order of the answers; None: dropped for its size
        self._kept: deque[int] = deque()  # call ids in the order of the answers; some need not be among the notes
        self._floor = 0
        self.bytes = 0
        self.needed = 1  # the client needs no reply below this id

    def __len__(self) -> int:
        return len(self._notes)

    def note(self, call_id: int, reply: Reply) -> None:
        """``reply`` is the answer to the call."""
        if call_id < self.needed:
            return
        notes, kept = self._notes, self._kept
        if len(notes) >= MAX_NOTES:
            self._raise_floor()
        former = notes.get(call_id)
        if former is not None:
            self.bytes -= _size(former)
        notes[call_id] = reply
        kept.append(call_id)
        if len(kept) > 2 * len(notes) + 64:  # mostly acknowledged ones
            self._kept = deque(each for each, note in notes.items() if note is not None)
        body = reply.body
        self.bytes += NOTE_BYTES + len(body[0]) if len(body) == 1 else _size(reply)
        if self.bytes > self._max_bytes:
            self._drop_oldest()

    def find(self, call_id: int) -> Reply | None:
        """The reply of an answered call; None if it was dropped, KeyError if there was none."""
        try:
            return self._notes[call_id]  # first: it may have been answered after the floor rose above it
        except KeyError:
            if call_id <= self._floor:
                return None
            raise

    def acknowledge(self, needed: int) -> None:
        """The client needs no reply below ``needed``. Costs one look for each of them, however far the leap."""
        notes, low = self._notes, self.needed
        if needed <= low:
            return
        self.needed = needed
        ids = range(low, needed) if needed - low <= len(notes) else [each for each in notes if each < needed]
        for call_id in ids:
            reply = notes.pop(call_id, None)
            if reply is not None:
                self.bytes -= _size(reply)

    def forget(self, call_ids: Iterable[int]) -> None:
        """The client has these replies, though it still needs one below them."""
        for call_id in call_ids:
            reply = self._notes.pop(call_id, None)
            if reply is not None:
                self.bytes -= _size(reply)

    def clear(self) -> None:
        """The client is gone. What it held may be large, and is not to wait for a garbage collection."""
        self._notes.clear()
        self._kept.clear()
        self.bytes = 0

    def _drop_oldest(self) -> None:
        notes, kept = self._notes, self._kept
        while kept and self.bytes > self._max_bytes:
            reply = notes.get(call_id := kept.popleft())
            if reply is not None:
                notes[call_id] = None
                self.bytes -= _size(reply)

    def _raise_floor(self) -> None:
        """A client that acknowledges nothing: the older half goes, and counts as answered and dropped."""
        ids = sorted(self._notes)[: MAX_NOTES // 2]
        self._floor = ids[-1]
        self.forget(ids)


def _size(reply: Reply) -> int:
    body = reply.body
    return NOTE_BYTES + (len(body[0]) if len(body) == 1 else sum(map(len, body)))
