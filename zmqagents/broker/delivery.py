"""The way out: what clients are sent, as fast as they read it.

Nobody else writes to the two doors. No send waits, so each ends in one of three ways:

    sent          also where the connection is no more: `Delivery.gone` is told, and may queue other messages
    no room       the client does not read: what is for it waits in its *outbox*, and is tried again when the Unix door
                  says that there is room, or every `RETRY_S`
    too much      more than ``max_unread_bytes`` wait there: `Delivery.drop` is told

libzmq counts messages, not bytes. So of large ones it gets `IN_FLIGHT_BYTES` for each client at a time; that they were
written is seen by its letting go of their memory.

Replies are collected in ``unsent`` and sent together (`push_all`): a peer is then written to once for several messages,
not for each. While short methods run, a reply waits `PUSH_S` at most.

All of this belongs to the router thread.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from ..scheduler.records import Peer
from ..security.keys import Role
from ..wire import messages
from ..wire.messages import Code, Frame, Hello, Kind, Reply
from ..wire.transport import ZERO_COPY_BYTES, SendFrame
from ..wire.unix_listener import UnixPeer, Where
from .session import ReplyCache

__all__ = ["Delivery", "Session"]

log = logging.getLogger(__name__)

RETRY_S = 0.02  # how often a peer that did not read is tried again
BUSY_MS = 100  # when a client is to try again that came at a limit of the host
PUSH_AT = 32  # replies that may wait for others, and how long, while short methods run
PUSH_S = 0.0002
# libzmq's high-water mark counts messages. So those above LARGE_BYTES are counted here in bytes until they are written.
LARGE_BYTES = 32_768
IN_FLIGHT_BYTES = 25_165_824  # that libzmq may hold of them for one client before it gets another one

# As plain numbers: what pyzmq does with members of its enums takes longer than the call itself.
_NOBLOCK = int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_RESULT, _ERROR = int(Kind.RESULT), int(Kind.ERROR)


class Session:
    """One client: a routing id that said HELLO. It outlives its connection by ``resume_s``."""

    __slots__ = (
        "client_id", "in_flight", "in_flight_bytes", "last_seen", "lost", "outbox", "peer", "replies", "resume", "role",
        "routing_id", "seated", "token", "unread_bytes", "user",
    )  # fmt: skip

    def __init__(self, hello: Hello, user: str, role: Role, max_bytes: int) -> None:
        self.client_id = hello.client_id
        self.resume: Any = hello.options.get("resume")
        self.user = user
        self.role = role
        self.peer = Peer(messages.client_prefix(hello.client_id), key=self, user=user)
        self.replies = ReplyCache(max_bytes)
        self.unread_bytes = 0  # in the outbox
        self.outbox: deque[list[Frame]] | None = None  # what it did not read in time
        self.seated = False  # it has a connection
        self.lost = False  # its connection is gone; it may come back by another

    def take_seat(self, routing_id: Where, now: float) -> None:
        """From now on it is reached by that connection."""
        self.routing_id = routing_id
        self.token = int.from_bytes(os.urandom(8), "big") >> 1 | 1
        self.last_seen = now
        self.seated = True
        self.lost = False
        self.outbox = (
            None  # what it held is in the reply cache; but for items of streams, which end when a connection does
        )
        self.unread_bytes = 0
        self.in_flight: deque[tuple[zmq.MessageTracker, int]] = deque()  # large messages that libzmq may still hold
        self.in_flight_bytes = 0


class Delivery:
    """See the module's docstring. ``gone`` and ``drop`` are set by who knows what becomes of a session."""

    def __init__(self, max_unread_bytes: int) -> None:
        self.unsent: list[tuple[Session, list[Frame]]] = []  # messages of this turn
        self.router_used = True  # since somebody last asked it for its events
        self.push_by = 0.0  # when they are to be sent at the latest
        self.stalled: set[Session] = set()  # those with an outbox
        self.gone: Callable[[Where], None] = lambda routing_id: None
        self.drop: Callable[[Session], None] = lambda session: None
        self._max_unread_bytes = max_unread_bytes
        self._next_retry = 0.0
        self._send_frame: SendFrame

    def attach(self, send_frame: SendFrame) -> None:
        """Send by this from now on: the ROUTER's own ``send``."""
        self._send_frame = send_frame

    def send(self, routing_id: Where, message: list[Any]) -> bool:
        """Send now. False if the peer has no room; one that is gone counts as sent."""
        if not isinstance(routing_id, bytes):
            return routing_id.hand_over(message)
        send = self._send_frame
        self.router_used = True
        try:
            send(routing_id, _SEND_MORE, True)  # only this one can fail: it finds the peer and its queue
            if len(message) > 1:
                for frame in message[:-1]:
                    send(frame, _SEND_MORE, len(frame) < ZERO_COPY_BYTES)
            frame = message[-1]
            send(frame, _NOBLOCK, len(frame) < ZERO_COPY_BYTES)
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != errno.EHOSTUNREACH:
                raise
            self.gone(routing_id)
        return True

    def push_reply(self, session: Session, call_id: int, reply: Reply) -> None:
        """Send the answer to a call soon."""
        code, body = reply
        kind = _ERROR if code else _RESULT
        time_ms = BUSY_MS if code == Code.BUSY else 0
        message = messages.answer_frames(kind, call_id, session.token, body, code=code, time_ms=time_ms)
        self.unsent.append((session, message))

    def push_some(self, now: float) -> None:
        """Send what has waited long enough for others, before more code runs."""
        if len(self.unsent) >= PUSH_AT or now >= self.push_by:
            self.push_all()
            self.push_by = now + PUSH_S

    def push_all(self) -> None:
        """Send all that is ``unsent``, and what comes of that."""
        while self.unsent:  # sending finds out who is gone, which may end calls that others wait for
            unsent, self.unsent = self.unsent, []
            if len(unsent) == 1:
                session, message = unsent[0]
                where = session.routing_id
                if type(where) is UnixPeer and not (where.pending or where.ended or session.outbox):  # most often
                    where.send(message)
                    continue
            queued: dict[UnixPeer, None] = {}
            for session, message in unsent:
                where = session.routing_id
                few = len(message) == 1 and len(message[0]) < LARGE_BYTES and session.outbox is None
                if few and type(where) is UnixPeer and not where.pending:
                    if not where.ended:
                        where.queue(message)
                        queued[where] = None
                elif not few or session.lost or not self.send(where, message):
                    self._push_now(session, message)
            for peer in queued:
                if not peer.pending:  # else the door tells when there is room; not if it is written here
                    peer.flush()

    def retry(self, now: float) -> None:
        """Try those again that did not read, every `RETRY_S`."""
        if now >= self._next_retry:
            self._next_retry = now + RETRY_S
            for session in list(self.stalled):
                self._flush(session)

    def go_on(self, session: Session) -> None:
        """It reads again: send it what was left unread."""
        if session.outbox is not None:
            self._flush(session)

    def leave(self, session: Session) -> None:
        """It has no connection any more."""
        self.stalled.discard(session)
        session.outbox = None

    def finish(self, session: Session, goodbye: list[Frame]) -> None:
        """The last words: as much of its outbox as libzmq takes, for there is no later, and ``goodbye``."""
        where = session.routing_id
        if not isinstance(where, bytes):
            for message in (*(session.outbox or ()), goodbye):
                where.queue(message)
            where.flush()
            return
        self._flush(session, at_end=True)
        self.send(session.routing_id, goodbye)

    def _push_now(self, session: Session, message: list[Frame]) -> None:
        if session.lost or (session.outbox is None and self._send_counted(session, message)):
            return
        if not session.seated:  # sending has shown that it is gone
            return
        if session.outbox is None:
            session.outbox = deque()
            if isinstance(session.routing_id, bytes):  # the Unix door tells when there is room
                self.stalled.add(session)
        session.outbox.append(message)
        session.unread_bytes += sum(map(len, message))
        if session.unread_bytes > self._max_unread_bytes:
            log.warning(
                "dropping client %s: it has not read %d bytes of replies", session.peer.prefix, session.unread_bytes
            )
            self.drop(session)

    def _send_counted(self, session: Session, message: list[Frame]) -> bool:
        """As `send`, but of large messages libzmq gets only so many bytes at a time."""
        size = len(message[0]) if len(message) == 1 else sum(map(len, message))
        if size < LARGE_BYTES or not isinstance(session.routing_id, bytes):
            return self.send(session.routing_id, message)
        in_flight = session.in_flight
        while in_flight and in_flight[0][0].done:
            session.in_flight_bytes -= in_flight.popleft()[1]
        if session.in_flight_bytes >= IN_FLIGHT_BYTES:
            return False
        # Frames are written in order: once the last one is let go, all are.
        last = zmq.Frame(message[-1], track=True, copy=False, copy_threshold=0)
        if not self.send(session.routing_id, [*message[:-1], last]):
            return False
        in_flight.append((last.tracker, size))
        session.in_flight_bytes += size
        return True

    def _flush(self, session: Session, *, at_end: bool = False) -> None:
        """Send what was left unread; ``at_end``: as much as libzmq takes."""
        outbox = session.outbox
        while outbox:
            sent = self.send(session.routing_id, outbox[0]) if at_end else self._send_counted(session, outbox[0])
            if not sent or not session.seated:
                return
            session.unread_bytes -= sum(map(len, outbox.popleft()))
        session.outbox = None
        session.unread_bytes = 0
        self.stalled.discard(session)
