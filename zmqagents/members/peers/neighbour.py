"""The connection to another member of the cluster, by which calls are passed on to it.

The router thread itself drives it, as it does the `Line` to a process of this host: a hand-off to another thread and
back would cost as much as the way to the other host. Apart from that it is a client's own. Its `Session` says what is
sent and when, when it is time to connect again, and what is asked again after that; a `Transport` carries it.

The other host must have this cluster's server key, whoever has said where it is.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ... import discovery, errors
from ...connection.dialling import dial
from ...connection.host_keys import HostKeys
from ...connection.requests import Call, Credit, Message, Plain, Request
from ...connection.session import BATCH, Session, State
from ...connection.target import Target, target_of
from ...scheduler.effects import Effect
from ...scheduler.records import Alarm
from ...security.keys import KeyStore
from ...wire.addresses import endpoint_of
from ...wire.link import Sink
from ...wire.messages import Flag, Kind
from ...wire.poller import IN, OUT
from ...wire.transport import Event, Transport, TransportError

__all__ = ["Desk", "Neighbour"]

CONNECT_S = 0.005  # the router thread waits no longer for a host whose queue of new connections is full


class _Member(Target):
    """A host that has the server key of this cluster."""

    def resolve(self) -> tuple[str, Sequence[str]]:
        assert self.port is not None
        found = discovery.find_host(self.host, self.port)
        if found is not None:
            return f"ipc://{found.ipc}", ()
        return endpoint_of(self.host, self.port), KeyStore.open().server_keys()

    def keep_keys(self, public_keys: Sequence[str]) -> None:
        """Nothing: the keys of the cluster are this host's own."""


class Desk(Protocol):
    """What a neighbour has of the router thread."""

    poller: Any  # see `wire.poller`
    beside: dict[int, Callable[[int, int], object]]  # by descriptor: what to call when it is ready

    def later(self, step: Callable[[], None]) -> None:
        """Do ``step`` when what is being done is done."""

    def alarm(self, delay_s: float, alarm: Alarm) -> None:
        """Have ``alarm`` ring in ``delay_s``."""


class Neighbour:
    """See the module's docstring. A sink hears of what has come at once, in the router thread."""

    def __init__(self, address: str, desk: Desk) -> None:
        self.address = address
        self.is_open = True  # it can be used
        target = target_of(address)
        self._target = _Member(target.host, target.port)
        self._host_keys = HostKeys(self._target.keep_keys)
        self._session = Session(target.address, learn=self._host_keys.learn)
        self._desk = desk
        self._wire: Transport | None = None
        self._fds: Sequence[int] = ()
        self._mask = IN
        self._is_to_send = False  # `_send` will be called
        self._alarm = Alarm(self._ring)
        self._rings = math.inf  # when the alarm will ring

    def __repr__(self) -> str:
        return f"<Neighbour at {self.address} [{self._session.state.value}, {len(self._session.book)} requests]>"

    # ------------------------------------------------------------ sending

    def ask(self, call: Call, sink: Sink) -> int:
        """Pass a call on, or ask for something; the number that it has on this connection."""
        return self._add(call, sink)

    def cancel(self, call_id: int, *, alone: bool) -> None:
        """No caller waits for the call any more; its answer comes all the same."""
        self._add(Plain(Kind.CANCEL, call_id, flags=Flag.ALONE if alone else 0), None)

    def grant(self, call_id: int, items: int) -> None:
        """Allow the stream to send ``items`` more."""
        self._add(Credit(call_id, items), None)

    def _add(self, message: Message, sink: Sink | None) -> int:
        call_id = self._session.book.add(Request(message, sink, None))
        if not self._is_to_send:
            self._is_to_send = True
            self._desk.later(self._send)
        return call_id

    def _send(self) -> None:
        """Send what can be sent; connect if it is time for that."""
        self._is_to_send = False
        session, wire = self._session, self._wire
        if not self.is_open:
            session.fail_all(errors.HostLost(f"the connection to {self.address} is closed"))
            return
        if wire is None or not session.token:
            session.book.take_in()
            if wire is None and time.monotonic() >= session.next_try:
                self._connect()
        else:
            while (message := session.next_message()) is not None:
                wire.queue(message)
            wire.flush()
        self._settle()

    def _settle(self) -> None:
        """See to it that this is called again when there is something to do."""
        session, wire = self._session, self._wire
        if wire is not None and not session.linked:
            self._disconnect()
        elif wire is not None:
            mask = IN | OUT if wire.pending else IN
            if mask != self._mask:
                self._mask = mask
                for fd in self._fds:
                    self._desk.poller.modify(fd, mask)
            if wire.events or wire.unseen:
                self._desk.later(self._read)
        due = session.next_due()
        if due < self._rings:
            self._alarm.stop()
            self._alarm, self._rings = Alarm(self._ring), due
            self._desk.alarm(max(0.0, due - time.monotonic()), self._alarm)

    # ------------------------------------------------------------ receiving

    def _on_poll(self, fd: int, events: int) -> None:
        if self._wire is not None:
            self._wire.look([(fd, events)])
            self._read()

    def _read(self) -> None:
        """Take what has come."""
        wire, session = self._wire, self._session
        if wire is None:
            return
        now = time.monotonic()
        for _ in range(BATCH):
            parts = wire.receive()
            if parts is None:
                break
            session.received(parts, now)
            # To look once more costs an exception where libzmq has nothing.
            if not session.linked or wire.is_clean or (wire.polls_all and not wire.unseen):
                break
        else:
            self._desk.later(self._read)
        if wire.events and session.linked:
            self._look_at_events(wire)
        if session.book.outbox or session.book.unsent:
            self._send()
        else:
            self._settle()

    def _look_at_events(self, wire: Transport) -> None:
        session = self._session
        for event in wire.take_events():
            if event in (Event.CUT, Event.REFUSED):  # what the host sent before it went, a GOODBYE say
                while session.linked and (parts := wire.receive()) is not None:
                    session.received(parts, time.monotonic())
            if session.linked:
                message = session.on_event(event, time.monotonic())
                if message is not None:
                    wire.send(message)

    # ------------------------------------------------------------ time

    def _ring(self, _: float) -> list[Effect]:
        self._rings = math.inf
        session, wire, now = self._session, self._wire, time.monotonic()
        if not self.is_open:
            return []
        if session.next_due() <= now:
            message = session.look(now)
            if message is not None and wire is not None and session.linked:
                wire.send(message)
        if session.book.unsent or session.state is State.LOST:  # to be sent again, or to connect for
            self._send()
        else:
            self._settle()
        return []

    # ------------------------------------------------------------ the connection

    def _connect(self) -> None:
        wire = self._wire = dial(self._session, self._target, self._host_keys, CONNECT_S)
        if wire is not None:
            self._fds, self._mask = wire.fds, IN
            for fd in self._fds:
                self._desk.poller.register(fd, IN)
                self._desk.beside[fd] = self._on_poll

    def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            for fd in self._fds:
                self._desk.poller.unregister(fd)
                del self._desk.beside[fd]
            wire.close(wait_s=0.0)

    def hear_out(self) -> None:
        """Take all that has come, before what is open is given up: a host that has ended has answered and said so."""
        wire, session = self._wire, self._session
        if wire is not None:
            while session.linked and (parts := wire.receive()) is not None:
                session.received(parts, time.monotonic())

    def close(self, error: Exception) -> None:
        """Close it; what is open fails with ``error``."""
        self.is_open = False
        self._alarm.stop()
        message = self._session.bye()
        if self._wire is not None and message is not None:
            with contextlib.suppress(TransportError):
                self._wire.send(message)
        self._disconnect()
        self._session.close(error)
