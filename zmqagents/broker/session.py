"""One client of the host: what is kept of it while it is connected, and for a while after its connection broke.

A `Session` outlives a connection by ``resume_s`` seconds, in which the client may come back over another one. What
makes its calls run at most once meanwhile is the `ReplyCache`: call ids are made by the client and never used twice;
every reply is noted there when it is sent, and forgotten when the client says that it needs the reply no more (see
`messages`). When a CALL comes again after a broken connection, the host therefore knows whether it was answered (the
cache has a note), is still open (the `Caller` has it), or has never come.

All of this belongs to the router thread.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..connection.tasks import is_program
from ..scheduler.records import Peer as Caller
from ..scheduler.shares import Account
from ..security.roles import CALLERS, Role
from ..wire import messages
from ..wire.messages import Code, Frame, Hello, Kind, Reply
from ..wire.transport import Peer
from .stream_log import Body, StreamLog

__all__ = ["ReplyCache", "Session"]

STEP_BYTES = 16 << 20
NOTE_BYTES = 256  # counted for a reply beside its length
MAX_NOTES = 65_536  # replies remembered of one client; a client that acknowledges leaves a hundred
NO_TOKEN = -1
BUSY_MS = 100  # when a client is to try again whose call was refused at a limit of the host
_RESULT, _ERROR = int(Kind.RESULT), int(Kind.ERROR)
_BUSY, _REFUSED = int(Code.BUSY), int(Code.REFUSED)


class Session:
    """One client that has said HELLO.

    ``caller`` is the client as the scheduler knows it, ``peer`` the connection by which it is reached, or was reached
    last. ``door``: the user of a connection that was opened for another one; "": it is the client's own. ``asked``:
    the role that the client has asked for, None: that of its user. ``call_token`` is the token of a client that may
    call agents, and else one that no message has, so that what it sends takes the way on which it is judged.
    ``complain`` is told of answers that refuse a reference of the client's. ``outbox`` holds the messages for
    which the connection had no room; None while nothing waits.
    """

    __slots__ = (
        "_complain", "asked", "call_token", "caller", "door", "hints", "last_seen", "lost", "outbox", "peer", "pid",
        "replies", "resume", "role", "seated", "token", "unread_bytes", "user",
    )  # fmt: skip

    def __init__(
        self, hello: Hello, account: Account, role: Role, max_bytes: int,
        may_grow: Callable[[Account], bool] | None = None, complain: Callable[[Session, Reply], None] | None = None,
        *, door: str = "", asked: Role | None = None,
    ) -> None:  # fmt: skip
        self.resume: Any = hello.options.get("resume")
        self.hints = hello.options.get("hints") is True  # it wants to know where agents of the cluster are
        self.user = account.key
        self.caller = Caller(messages.client_prefix(hello.client_id), key=self, user=account.key, account=account)
        program = hello.options.get("program")
        if isinstance(program, str) and is_program(program):
            self.caller.show(program)
        self.door = door
        self.asked = asked
        self.token = 0
        self.take_role(role)
        self.replies = ReplyCache(max_bytes, None if may_grow is None else functools.partial(may_grow, account))
        self._complain = complain
        self.unread_bytes = 0  # in the outbox
        self.outbox: deque[list[Frame]] | None = None
        self.seated = False  # it has a connection
        self.lost = False  # its connection is gone; it may come back by another
        self.pid = 0  # of its process; 0: not known, or the connection is another's, which forwards it
        self.peer: Peer
        self.last_seen: float

    def take_role(self, role: Role) -> None:
        """What the client may do, from now on."""
        self.role: Role = role
        self.call_token = self.token if role in CALLERS else NO_TOKEN
        self.caller.trust(role == "admin", role in ("admin", "member"))

    def take_seat(self, peer: Peer, now: float, pid: object = None) -> None:
        """From now on the client, which says that it is the process ``pid``, is reached by ``peer``."""
        self.peer = peer
        self.pid = peer.pid if peer.pid == pid else 0
        self.token = int.from_bytes(os.urandom(8), "big") >> 1 | 1
        self.take_role(self.role)
        self.last_seen = now
        self.seated = True
        self.lost = False
        self.drop_outbox()  # the reply cache has what was in it
        peer.seat(self)

    def leave_seat(self) -> None:
        """The client has no connection any more."""
        self.drop_outbox()
        if self.seated:
            self.seated = False
            self.peer.seat(None)

    def lose(self, now: float) -> None:
        """The client's connection has broken at ``now``."""
        self.lost = True
        self.last_seen = now
        self.leave_seat()

    def clear(self) -> None:
        """The client is gone for good: drop its replies, which may be large."""
        self.leave_seat()
        self.replies.clear()

    def answer(self, call_id: int, reply: Reply) -> list[Frame]:
        """The message that answers a call; it is noted in the reply cache."""
        code, body = reply
        items = self._items_of(call_id) if self.replies.streams else 0
        if not code:
            self.replies.note(call_id, reply)
            return messages.answer_frames(_RESULT, call_id, self.token, body, time_ms=items)
        if code == _BUSY:  # nothing was executed
            return messages.answer_frames(_ERROR, call_id, self.token, body, code=code, time_ms=BUSY_MS)
        if code == _REFUSED and self._complain is not None:
            self._complain(self, reply)
        self.replies.note(call_id, reply)
        return messages.answer_frames(_ERROR, call_id, self.token, body, code=code, time_ms=items)

    def _items_of(self, call_id: int) -> int:
        log = self.replies.streams.get(call_id)
        return 0 if log is None else log.sent

    def keep(self, message: list[Frame]) -> int:
        """Put ``message`` into the outbox; how many bytes that holds now."""
        if self.outbox is None:
            self.outbox = deque()
        self.outbox.append(message)
        size = sum(map(len, message))
        self.unread_bytes += size
        self.caller.account.leave_unread(size)
        return self.unread_bytes

    def send_kept(self) -> None:
        """Send the outbox as far as there is room."""
        outbox = self.outbox
        while outbox:
            if not self.peer.send(outbox[0]):
                return
            size = sum(map(len, outbox.popleft()))
            self.unread_bytes -= size
            self.caller.account.leave_unread(-size)
        self.drop_outbox()

    def drop_outbox(self) -> None:
        """Forget what waits for room."""
        self.outbox = None
        if self.unread_bytes:
            self.caller.account.leave_unread(-self.unread_bytes)
            self.unread_bytes = 0


class ReplyCache:
    """The replies that one client may still need.

    ``max_bytes`` bounds them, each counted with `NOTE_BYTES`. Where ``may_grow`` is given, it is asked for each further
    `STEP_BYTES` of them, for all clients together have a bound, too. Beyond these the oldest replies are dropped, but
    their ids are remembered: those calls do not run again. ``needed`` is the lowest call id whose reply the client
    still needs. Items of streams that the client has not taken are kept as well; a stream whose items do not fit
    cannot be resumed.
    """

    __slots__ = (
        "_floor", "_forgotten", "_kept", "_max_bytes", "_may_grow", "_most_bytes", "_notes", "bytes", "needed",
        "streams",
    )  # fmt: skip

    def __init__(self, max_bytes: int, may_grow: Callable[[], bool] | None = None) -> None:
        self._most_bytes = max_bytes
        self._may_grow = may_grow
        self._max_bytes = max_bytes if may_grow is None else min(max_bytes, STEP_BYTES)
        self._notes: dict[int, Reply | None] = {}  # by call id, in the order of the answers; None: dropped
        # Call ids in the order of the answers, from when replies were dropped; some need not be among the notes.
        self._kept: deque[int] | None = None
        self.streams: dict[int, StreamLog] = {}  # by call id, until their replies are acknowledged
        self._floor = 0
        self._forgotten = 0  # the highest that `forget` has had
        self.bytes = 0
        self.needed = 1

    def __len__(self) -> int:
        return len(self._notes)

    def note(self, call_id: int, reply: Reply) -> None:
        """Keep ``reply``, the answer to the call."""
        if call_id < self.needed:
            return
        notes = self._notes
        if len(notes) >= MAX_NOTES:
            self._raise_floor()
        former = notes.get(call_id)
        if former is not None:
            self.bytes -= _size(former)
        notes[call_id] = reply
        if self._kept is not None:
            self._kept.append(call_id)
            if len(self._kept) > 2 * len(notes) + 64:  # mostly acknowledged ones
                self._kept = self._in_order()
        body = reply.body
        self.bytes += NOTE_BYTES + len(body[0]) if len(body) == 1 else _size(reply)
        if self.bytes > self._max_bytes:
            self._bound()

    def note_item(self, call_id: int, number: int, body: Sequence[Frame]) -> None:
        """Keep an item of the stream ``call_id``."""
        log = self.streams.get(call_id)
        if log is None:
            log = self.streams[call_id] = StreamLog()
        self.bytes -= log.bytes
        log.note(number, body)
        if self.bytes + log.bytes > self._max_bytes and not self._has_room(self.bytes + log.bytes):
            log.drop()
        self.bytes += log.bytes

    def grant(self, call_id: int, items: int) -> None:
        """The client has taken ``items`` of a stream."""
        log = self.streams.get(call_id)
        if log is not None:
            self.bytes -= log.bytes
            log.grant(items)
            self.bytes += log.bytes

    def resume_stream(self, call_id: int, needed: int, granted: int) -> tuple[int, list[tuple[int, Body]]] | None:
        """See `StreamLog.resume`."""
        log = self.streams.setdefault(call_id, StreamLog())
        self.bytes -= log.bytes
        found = log.resume(needed, granted)
        self.bytes += log.bytes
        return found

    def shrink(self, max_bytes: int) -> None:
        """Drop what is kept beyond ``max_bytes``: replies first, then the items of streams."""
        self._drop_beyond(max_bytes)
        for log in self.streams.values():
            if self.bytes <= max_bytes:
                return
            self.bytes -= log.bytes
            log.drop()

    def find(self, call_id: int) -> Reply | None:
        """The reply of an answered call; None if it was dropped, KeyError if there was none."""
        try:
            return self._notes[call_id]  # first: it may have been answered after the floor rose above it
        except KeyError:
            if call_id <= self._floor:
                return None
            raise

    def may_come(self, call_id: int) -> bool:
        """Whether the client may be about to make this call: it is not answered, and was not refused for good."""
        return self.needed <= call_id > self._forgotten and call_id not in self._notes

    def acknowledge(self, needed: int) -> None:
        """Forget the replies below ``needed``. Takes one look-up for each of them, however far the number leaps."""
        notes, low = self._notes, self.needed
        if needed <= low:
            return
        self.needed = needed
        if needed == low + 1 and not self.streams:  # most often
            reply = notes.pop(low, None)
            if reply is not None:
                body = reply.body
                self.bytes -= NOTE_BYTES + len(body[0]) if len(body) == 1 else _size(reply)
            return
        ids = range(low, needed) if needed - low <= len(notes) else [each for each in notes if each < needed]
        for call_id in ids:
            reply = notes.pop(call_id, None)
            if reply is not None:
                self.bytes -= _size(reply)
        if self.streams:
            self._forget_streams([call_id for call_id in self.streams if call_id < needed])

    def forget(self, call_ids: Iterable[int]) -> None:
        """Forget the replies to ``call_ids``, which the client has, though it still needs one below them."""
        for call_id in call_ids:
            if call_id > self._forgotten:
                self._forgotten = call_id
            reply = self._notes.pop(call_id, None)
            if reply is not None:
                self.bytes -= _size(reply)
            if self.streams:
                self._forget_streams([call_id])

    def clear(self) -> None:
        """Drop everything; it may be large, so it is not left to the garbage collection."""
        self._notes.clear()
        self._kept = None
        self.streams.clear()
        self.bytes = 0

    def _bound(self) -> None:
        """Grow, or drop so much that the next question is not the next reply's."""
        if not self._has_room(self.bytes):
            self._drop_beyond(self._max_bytes - self._max_bytes // 4 if self._may_grow is not None else self._max_bytes)

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` bytes in all may be kept."""
        while size > self._max_bytes < self._most_bytes and self._may_grow is not None and self._may_grow():
            self._max_bytes = min(self._max_bytes + STEP_BYTES, self._most_bytes)
        return size <= self._max_bytes

    def _forget_streams(self, call_ids: Iterable[int]) -> None:
        for call_id in call_ids:
            log = self.streams.pop(call_id, None)
            if log is not None:
                self.bytes -= log.bytes

    def _drop_beyond(self, max_bytes: int) -> None:
        if self.bytes <= max_bytes:
            return
        notes, kept = self._notes, self._kept
        if kept is None:
            kept = self._kept = self._in_order()
        while kept and self.bytes > max_bytes:
            reply = notes.get(call_id := kept.popleft())
            if reply is not None:
                notes[call_id] = None
                self.bytes -= _size(reply)

    def _in_order(self) -> deque[int]:
        """The ids of the replies that are kept, the oldest first."""
        return deque(call_id for call_id, reply in self._notes.items() if reply is not None)

    def _raise_floor(self) -> None:
        """Drop the older half of the notes, for the client acknowledges nothing; those calls count as answered."""
        ids = sorted(self._notes)[: MAX_NOTES // 2]
        self._floor = ids[-1]
        self.forget(ids)


def _size(reply: Reply) -> int:
    body = reply.body
    return NOTE_BYTES + (len(body[0]) if len(body) == 1 else sum(map(len, body)))
