"""The connection of a host to a member, which the router thread itself drives.

It is the client's own: its `Session` says what is sent and what a message means, its `UnixTransport` carries it. But no
thread stands between: a hand-off to one and back would cost as much as the whole way to another process and back.

A member on this machine is reached as long as its process lives, so a line that is cut is not made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..connection.requests import Credit, Message, Plain, Request
from ..connection.session import Session
from ..errors import HostStopping
from ..wire.link import Sink
from ..wire.messages import Kind, Reply
from ..wire.poller import IN, OUT
from ..wire.transport import Event
from ..wire.unix import UnixTransport

__all__ = ["Ignored", "Line"]

AT_ONCE = 64  # messages read before others have their turn


class Line:
    """See the module's docstring. ``ready`` is called when it can be used, ``cut`` when it cannot any more.

    What ``beside`` has for its descriptor is called when ``poller`` tells of that. What is open when it is cut stays so
    until `close`: its owner can say why.
    """

    def __init__(
        self, path: str, poller: Any, beside: dict[int, Callable[[int, int], object]], *,
        ready: Callable[[], None], cut: Callable[[], None], later: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        self._session = session = _Session(f"ipc:{path}")
        self._poller = poller
        self._beside = beside
        self._ready = ready
        self._cut = cut
        self._later = later
        self._wire: UnixTransport | None = None
        self._mask = IN
        self._pinged = 0.0  # when the ping was sent that is not answered yet; 0.0: there is none
        self._opened = time.monotonic()
        session.connect(time.monotonic())
        session.dial(f"ipc://{path}")
        wire = self._wire = UnixTransport(path)
        self.fd = wire.fileno()
        poller.register(self.fd, IN)
        beside[self.fd] = self.on_ready
        self._look_at_events()

    def __repr__(self) -> str:
        state = "cut" if self._wire is None else "ready" if self._session.token else "opening"
        return f"<Line [{state}, {len(self._session.book)} requests]>"

    @property
    def is_cut(self) -> bool:
        """Whether nothing can be sent or received any more."""
        return self._wire is None

    @property
    def was_ready(self) -> bool:
        """Whether the member has ever answered."""
        return bool(self._session.token)

    # ------------------------------------------------------------ sending

    def ask(self, message: Message, sink: Sink) -> int:
        """Send ``message`` now; its answer goes to ``sink``. The id of the request."""
        call_id = self._session.book.add(Request(message, sink, None))
        self._send()
        return call_id

    def ask_at_once(self, message: Message, sink: Sink) -> int:
        """The same for a short call, by a shorter way where nothing else has to be sent before it.

        Raises what `Session.begin_short` raises; by the longer way the sink is told instead.
        """
        session, wire = self._session, self._wire
        if wire is not None and session.token and not wire.pending:
            parts = session.begin_short(request := Request(message, sink, None))
            if parts is not None:
                wire.send(parts)
                if wire.pending or wire.events or self._mask != IN:
                    self._after_sending(wire)
                return request.call_id
        return self.ask(message, sink)

    def tell(self, message: Message) -> None:
        """Send ``message``, which has no answer."""
        self._session.book.add(Request(message, None, None))
        self._send()

    def cancel(self, call_id: int, flags: int) -> None:
        """Tell the member that no caller waits for the call any more; its answer comes all the same."""
        self.tell(Plain(Kind.CANCEL, call_id, flags=flags))

    def grant(self, call_id: int, items: int) -> None:
        """Allow the stream ``call_id`` to send ``items`` more."""
        self.tell(Credit(call_id, items))

    def _send(self) -> None:
        session, wire = self._session, self._wire
        if wire is None or not session.token:
            return
        book = session.book
        while (message := session.next_message()) is not None:
            wire.send(message)
            if not (book.outbox or book.unsent):
                break
        if wire.pending or wire.events or self._mask != IN:
            self._after_sending(wire)

    def _after_sending(self, wire: UnixTransport) -> None:
        mask = IN | OUT if wire.pending else IN
        if mask != self._mask and not wire.ended:
            self._mask = mask
            self._poller.modify(self.fd, mask)
        if wire.events:
            self._later(self._look_at_events)

    # ------------------------------------------------------------ receiving

    def on_ready(self, fd: int = 0, events: int = 0) -> None:
        """Read what has come, and write what waits for room."""
        wire, session = self._wire, self._session
        if wire is None:
            return
        if wire.pending:
            wire.flush()
            self._after_sending(wire)
        now = time.monotonic()
        for _ in range(AT_ONCE):
            parts = wire.receive()
            if parts is None:
                break
            had = session.token
            session.received(parts, now)
            if session.token and not had:
                self._ready()
                self._send()
            if wire.is_clean and not wire.events:
                return
        else:
            self._later(self.on_ready)
        if wire.events:
            self._look_at_events()

    def _look_at_events(self) -> None:
        wire = self._wire
        if wire is None:
            return
        for event in wire.take_events():
            if event is Event.READY:
                message = self._session.on_event(event, time.monotonic())
                if message is not None:
                    wire.send(message)
            else:
                while (parts := wire.receive()) is not None:  # what the member sent before it went
                    self._session.received(parts, time.monotonic())
                self._abandon()
                self._cut()
                return

    # ------------------------------------------------------------ now and then

    def look(self) -> float:
        """Tell the member which replies it need not keep, and ask for a sign of life.

        For how many seconds it has given none.
        """
        wire, session, now = self._wire, self._session, time.monotonic()
        if wire is None:
            return 0.0
        if not session.token:
            return now - self._opened
        message = session.acknowledge()
        if message is not None:
            wire.send(message)
        if session.book.postponed and session.book.take_ready(now):  # the member was too busy for them
            self._send()
        if not self._pinged:
            self._pinged = now
            self.ask(Plain(Kind.PING), _Pong(self))
        self._after_sending(wire)
        return now - self._pinged if self._pinged else 0.0

    def answered(self) -> None:
        """A ping has been answered."""
        self._pinged = 0.0

    def close(self, error: Exception) -> None:
        """Close it; what is open fails with ``error``."""
        self._abandon()
        self._session.close(error)

    def _abandon(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._poller.unregister(self.fd)
            del self._beside[self.fd]
            wire.abandon()


class _Session(Session):
    """A session that leaves open what is open when the member says that it stops: its connection ends next."""

    def end(self, error: Exception) -> None:
        if not isinstance(error, HostStopping):
            super().end(error)


class Ignored:
    """A `Sink` for an answer that nothing depends on; when the line is cut its owner knows that anyway."""

    def deliver(self, reply: Reply | None) -> None:
        """It is done."""

    def fail(self, error: Exception) -> None:
        """The line was cut."""

    def chunk(self, item: Reply) -> None:
        """Never comes: what is asked is no stream."""


class _Pong(Ignored):
    """Takes the answer to a ping."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def deliver(self, reply: Reply | None) -> None:
        self._line.answered()
