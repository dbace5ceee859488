"""How the frames of a client's connection travel: two kinds of socket, used alike by the `Channel` that owns it.

`UnixCarrier` speaks ZMTP (see `zmtp`) on a plain Unix socket, for hosts on the same machine. libzmq would do the same
in a thread of its own, which has to be woken for each message, and has to wake the caller: two hand-offs that cost more
than all the rest of a short call. `ZmqCarrier` is a DEALER: for TCP, where there is CURVE.

Both belong to the thread that leads the channel. What happens to the connection stands in ``events``, to be looked at
after each `receive` and `look`.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import select
import socket
import struct
import threading
import time
from typing import Any, Protocol

import zmq
import zmq.backend

from ..errors import RemoteProtocolError
from ..security import curve
from ..security.keys import KeyPair
from . import zmtp
from .messages import Frame
from .stream import UnixWire
from .zmtp import LARGE_BYTES

__all__ = ["Carrier", "Event", "UnixCarrier", "ZmqCarrier", "end_context", "poll"]

SHORT_MS = 1  # how long `receive_soon` waits
CLOSE_S = 1.0  # how long what was sent may take to be written when the connection is closed
CONNECT_S = 1.0  # how long a host whose queue of new connections is full is waited for


class Event(enum.Enum):
    """What happens to a connection."""

    READY = "the handshake is over: messages may be sent"
    REFUSED = "nothing listens there"
    CUT = "the connection has ended"
    KEY_REFUSED = "it refused this client's key"
    BROKEN_OFF = "the handshake failed: its key is another one, or it is no host"
    FOREIGN = "the handshake failed: it does not speak this protocol"


Items = list[tuple[Any, int]]  # what `zmq.zmq_poll` takes, and gives


class Carrier(Protocol):
    """One connection, or an attempt at one."""

    events: list[Event]
    pending: bool  # something sent waits until there is room

    @property
    def items(self) -> Items:
        """What to poll; whatever is ready is for `look`, and then for `receive`."""

    def look(self, ready: Items) -> None:
        """Note the events in what a poll has given."""

    def send(self, parts: list[Frame]) -> None:
        """Send a message now, as far as there is room. Never waits, never fails: a lost connection is an event."""

    def queue(self, parts: list[Frame]) -> None:
        """The same at the next `flush`."""

    def flush(self) -> None:
        """Write what is queued, as far as there is room."""

    def receive(self) -> list[Frame] | None:
        """The next message; None if there is none. Large frames are not copied."""

    def receive_soon(self) -> list[Frame] | None:
        """The same, but wait `SHORT_MS` for it, unless something is still to be written."""

    def close(self) -> None:
        """Let go of it; what was sent is written if the other side takes it within `CLOSE_S`."""

    def abandon(self) -> None:
        """The same in a forked child, where the connection is the parent's."""


def poll(items: Items, timeout_ms: int) -> Items:
    """Wait until one of ``items`` is ready, ``timeout_ms`` at most (-1: for ever)."""
    ready: Items = zmq.zmq_poll(items, timeout_ms)
    return ready


# ---------------------------------------------------------------- a Unix socket


class UnixCarrier(UnixWire):
    """See the module's docstring. ``path`` is that of a host's ipc socket."""

    __slots__ = ("_poller", "_reading", "_ready", "_writing", "events")

    def __init__(self, path: str) -> None:
        self.events: list[Event] = []
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), zmtp.Incoming())
        self._ready = False
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(CONNECT_S), 0))
        self._poller = select.poll()
        self._poller.register(self._socket, select.POLLIN)
        self._reading: Items = [(self._socket.fileno(), zmq.POLLIN)]
        self._writing: Items = [(self._socket.fileno(), zmq.POLLIN | zmq.POLLOUT)]
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

    def look(self, ready: Items) -> None:
        if self.pending:
            self.flush()

    def receive(self) -> list[Frame] | None:
        while True:
            message = self._next()
            if message is not None or not self.read():
                return message

    def receive_soon(self) -> list[Frame] | None:
        if self._in.started or not self._ready:
            message = self._next()
            if message is not None:
                return message
        if not self.pending and self._poller.poll(SHORT_MS):
            if not self._in.started and self._ready:
                short = self.read_short()
                if short is not None:
                    return [short]
            else:
                self.read()
            return self._next()  # once: the rest of a long message is waited for elsewhere
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
            poll([(self._socket.fileno(), zmq.POLLOUT)], 20)
            self.flush()
        self.ended = self.drained = True
        self._socket.close()

    def abandon(self) -> None:
        self._socket.close()


# ---------------------------------------------------------------- a DEALER

_NOBLOCK = int(zmq.NOBLOCK)  # plain numbers: "|" of two flags costs 1.5 us each time
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
# The convenience layer above these checks arguments, which takes as long as the work itself.
_send: Any = zmq.backend.Socket.send
_recv: Any = zmq.backend.Socket.recv


class ZmqCarrier:
    """See the module's docstring. libzmq's own reconnecting is in effect off: the channel makes a new carrier."""

    pending = False  # libzmq has queues of its own

    def __init__(self, endpoint: str, keys: KeyPair | None, server_key: str | None) -> None:
        self.events: list[Event] = []
        self._dealer: zmq.Socket[bytes] = _process_context().socket(zmq.DEALER)
        # Closing with linger 0 while half of a multi-part message is written makes libzmq 4.3.5 abort the process.
        # What lingers reaches no successor: there is no reconnecting, and the token would be wrong.
        self._dealer.linger = int(CLOSE_S * 1000)
        self._dealer.setsockopt(zmq.RCVTIMEO, SHORT_MS)
        for option, value in _DEALER_OPTIONS:
            self._dealer.setsockopt(option, value)
        if server_key is not None and keys is not None:
            curve.client_curve(self._dealer, keys, server_key)
        self._monitor = self._dealer.get_monitor_socket(sum(_EVENTS))
        self.items: Items = [(self._dealer, zmq.POLLIN), (self._monitor, zmq.POLLIN)]
        try:
            self._dealer.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise

    def look(self, ready: Items) -> None:
        if not any(where is self._monitor for where, _ in ready):
            return
        with contextlib.suppress(zmq.Again):
            while True:
                parts = self._monitor.recv_multipart(zmq.NOBLOCK)
                self.events.append(_EVENTS[_MONITOR_EVENT.unpack_from(parts[0])[0]])

    def send(self, parts: list[Frame]) -> None:
        if sum(map(len, parts)) < LARGE_BYTES:
            for part in parts[:-1]:
                _send(self._dealer, part, _MORE)
            _send(self._dealer, parts[-1], _NOBLOCK)
        else:
            self._dealer.send_multipart(parts, _NOBLOCK, copy=False)

    def queue(self, parts: list[Frame]) -> None:
        self.send(parts)

    def flush(self) -> None:
        """libzmq's own thread does."""

    def receive(self) -> list[Frame] | None:
        return self._receive(_NOBLOCK)

    def receive_soon(self) -> list[Frame] | None:
        return self._receive(0)

    def _receive(self, flags: int) -> list[Frame] | None:
        try:
            frame = _recv(self._dealer, flags, False)
        except zmq.Again:
            return None
        parts: list[Frame] = [frame.bytes if len(frame) < LARGE_BYTES else frame.buffer]
        while frame.more:
            frame = _recv(self._dealer, _NOBLOCK, False)
            parts.append(frame.bytes if len(frame) < LARGE_BYTES else frame.buffer)
        return parts

    def close(self) -> None:
        self._dealer.disable_monitor()  # before its socket is closed, or the close hangs
        self._monitor.close(linger=0)
        self._dealer.close()

    def abandon(self) -> None:
        """libzmq knows that it is in another process."""


_MONITOR_EVENT = struct.Struct("=hi")  # event, value: zmq_socket_monitor(3)
_EVENTS = {
    int(zmq.EVENT_HANDSHAKE_SUCCEEDED): Event.READY,
    int(zmq.EVENT_HANDSHAKE_FAILED_AUTH): Event.KEY_REFUSED,
    int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): Event.BROKEN_OFF,
    int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): Event.FOREIGN,
    int(zmq.EVENT_DISCONNECTED): Event.CUT,
    int(zmq.EVENT_CLOSED): Event.REFUSED,
}
_DEALER_OPTIONS = (
    # Ten minutes, so in effect never: a lost connection is closed here. Not -1, with which libzmq 4.3.5 ends the pipe
    # in the middle of whatever is being received, drops what had arrived and may abort (fq.cpp, "!_more").
    (zmq.RECONNECT_IVL, 600_000),
    (zmq.SNDHWM, 0),
    (zmq.RCVHWM, 0),
    (zmq.HANDSHAKE_IVL, 30_000),  # more than the channel waits: a frozen host is unreachable, not one with a wrong key
    (zmq.CONNECT_TIMEOUT, 3000),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 30),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)

_context: tuple[int, zmq.Context[Any]] | None = None
_context_lock = threading.Lock()


def _process_context() -> zmq.Context[Any]:
    """The ZeroMQ context of all connections of this process; a new one after a fork."""
    global _context
    with _context_lock:
        if _context is None or _context[0] != os.getpid():
            _context = (os.getpid(), zmq.Context())
        return _context[1]


def end_context() -> None:
    """Wait until the last messages of closed sockets are written, which only their linger bounds.

    (A thread of our own could bound it once more, but Python 3.12 starts none at exit.)
    """
    if _context is not None and _context[0] == os.getpid():
        _context[1].term()


def forget_context() -> None:
    """In a forked child: the lock may be held by a thread that is not here."""
    global _context_lock
    _context_lock = threading.Lock()
