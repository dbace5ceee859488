"""A client's connection to a host on the same machine: a plain Unix socket that speaks ZMTP (see `zmtp`).

libzmq would do the same in a thread of its own, which has to be woken for each message, and has to wake the caller: two
hand-offs that cost more than all the rest of a short call. For TCP, where there is CURVE, see `dealer`.

The thread that leads the channel owns it. What happens to the connection is in ``events``, to be read after each
`receive` and `look`.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

import zmq

from ..errors import RemoteProtocolError
from . import zmtp
from .messages import Frame
from .stream import UnixStream
from .transport import CLOSE_S, SHORT_MS, Event, Items, poll

__all__ = ["UnixTransport"]

SOON_S = 0.02  # how long a caller reads a long message before it looks at anything else
CONNECT_S = 1.0  # how long a host whose queue of new connections is full is waited for


# ---------------------------------------------------------------- a Unix socket


class UnixTransport(UnixStream):
    """See the module's docstring. ``path`` is that of a host's ipc socket."""

    __slots__ = ("_poller", "_reading", "_ready", "_writing", "events")
    polls_all = False

    def __init__(self, path: str) -> None:
        self.events: list[Event] = []
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), zmtp.Incoming())
        self._ready = False
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(CONNECT_S), 0))
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN)
        self._reading: Items = [(self.fileno(), zmq.POLLIN)]
        self._writing: Items = [(self.fileno(), zmq.POLLIN | zmq.POLLOUT)]
        try:
            self._socket.connect(path)
        except OSError as exc:
            gone = exc.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE)
            self.drained = True
            self._end(Event.REFUSED if gone else Event.CUT)
            return
        self._out += (zmtp.GREETING, zmtp.READY)
        self.flush()

    @property
    def items(self) -> Items:
        return self._writing if self.pending else self._reading

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def look(self, ready: Items) -> None:
        if self.pending:
            self.flush()

    def receive(self) -> list[Frame] | None:
        if self.is_clean and self._ready:
            message = self.read_message()
            if message is not None or self.is_clean:
                return message
        while True:
            message = self._next()
            if message is not None or not self.read():
                return message

    def receive_soon(self) -> list[Frame] | None:
        if not (self.is_clean and self._ready):
            message = self._next()
            if message is not None:
                return message
        if not self.pending and self._poller.poll(SHORT_MS):
            if self.is_clean and self._ready:
                message = self.read_message()
                if message is not None:
                    return message
            else:
                self.read()
            return self._receive_on() if self._in.amid_large else self._next()
        return None

    def _receive_on(self) -> list[Frame] | None:
        """The message of which a long frame has begun, if the rest of it comes without a pause, and soon."""
        until = 0.0
        while True:
            if self.read():
                message = self._next()
                if message is not None or not self._in.amid_large:
                    return message
                continue
            if self.drained:
                return None
            now = time.monotonic()
            until = until or now + SOON_S
            if now >= until or not self._poller.poll(SHORT_MS):
                return None

    def _next(self) -> list[Frame] | None:
        try:
            message = self.take()
        except RemoteProtocolError:
            self.drained = True
            self._end(Event.CUT if self._ready else Event.FOREIGN)
            return None
        if message is None:
            incoming = self._in
            if incoming.ready and not self._ready:
                self._ready = True
                self.events.append(Event.READY)
            if incoming.refusal is not None:
                self._end(Event.KEY_REFUSED)
        return message

    def end(self) -> None:
        self._end(Event.CUT)

    def _end(self, event: Event) -> None:
        if not self.ended:
            super().end()
            self.events.append(event)

    def close(self) -> None:
        end = time.monotonic() + CLOSE_S
        while self.pending and time.monotonic() < end:
            poll([(self.fileno(), zmq.POLLOUT)], 20)
            self.flush()
        self.ended = self.drained = True
        self._socket.close()

    def abandon(self) -> None:
        self._socket.close()
