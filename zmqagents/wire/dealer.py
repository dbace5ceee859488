"""A client's TCP connection: a DEALER of libzmq, with CURVE.

libzmq does the handshake, the encryption and all reading and writing, in a thread of its own. It says what happens to
the connection through a *monitor* socket, which is polled beside the DEALER; `DealerTransport.look` turns what it says
into an `Event`. libzmq's own reconnecting is in effect off: after an event that ends the connection, the client makes a
new transport, so that a token of the old connection is never used on a new one.

All DEALERs of a process share one context. A forked child must neither use nor close it (`forget_context`).
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from typing import TYPE_CHECKING, Any

import zmq
import zmq.backend

from ..security import curve
from .addresses import is_ipv6
from .messages import Frame
from .transport import CLOSE_S, SHORT_MS, Event, Items
from .zmtp import LARGE_BYTES

if TYPE_CHECKING:
    from ..security.keys import KeyPair

_NOBLOCK = int(zmq.NOBLOCK)  # plain numbers: "|" of two flags costs 1.5 us each time
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
# The convenience layer above these checks arguments, which takes as long as the work itself.
_send: Any = zmq.backend.Socket.send
_recv: Any = zmq.backend.Socket.recv
_get: Any = zmq.backend.Socket.get
_EVENTS_NOW, _READABLE = int(zmq.EVENTS), int(zmq.POLLIN)


class DealerTransport:
    """See the module's docstring and `transport.Transport`."""

    pending = False  # libzmq has queues of its own
    is_clean = False
    polls_all = True

    def __init__(self, endpoint: str, keys: KeyPair | None, server_key: str | None) -> None:
        self.events: list[Event] = []
        self._dealer: zmq.Socket[bytes] = _process_context().socket(zmq.DEALER)
        # Closing with linger 0 while half of a multi-part message is written makes libzmq 4.3.5 abort the process.
        # What lingers reaches no successor: there is no reconnecting, and the token would be wrong.
        self._dealer.linger = int(CLOSE_S * 1000)
        self._dealer.setsockopt(zmq.RCVTIMEO, SHORT_MS)
        self._dealer.setsockopt(zmq.IPV6, int(is_ipv6(endpoint)))
        for option, value in _DEALER_OPTIONS:
            self._dealer.setsockopt(option, value)
        if server_key is not None and keys is not None:
            curve.client_curve(self._dealer, keys, server_key)
        self._monitor = self._dealer.get_monitor_socket(sum(_EVENTS))
        # The monitor is polled as a bare descriptor, which takes two system calls less than to poll a socket of libzmq.
        # It tells only what has come since the socket was last read to its end.
        self._monitor_fd = int(self._monitor.getsockopt(zmq.FD))
        self.items: Items = [(self._dealer, zmq.POLLIN), (self._monitor_fd, zmq.POLLIN)]
        self.fds = int(self._dealer.getsockopt(zmq.FD)), self._monitor_fd
        try:
            self._dealer.connect(endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        self._read_monitor()

    @property
    def unseen(self) -> bool:
        return bool(_get(self._dealer, _EVENTS_NOW) & _READABLE)

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def look(self, ready: Items) -> None:
        if any(where == self._monitor_fd for where, _ in ready):
            self._read_monitor()

    def _read_monitor(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                parts = self._monitor.recv_multipart(zmq.NOBLOCK)
                self.events.append(_EVENTS[_MONITOR_EVENT.unpack_from(parts[0])[0]])

    def send(self, parts: list[Frame]) -> bool:
        if len(parts) == 1 and len(parts[0]) < LARGE_BYTES:  # most often
            _send(self._dealer, parts[0], _NOBLOCK)
        elif sum(map(len, parts)) < LARGE_BYTES:
            for part in parts[:-1]:
                _send(self._dealer, part, _MORE)
            _send(self._dealer, parts[-1], _NOBLOCK)
        else:
            self._dealer.send_multipart(parts, _NOBLOCK, copy=False)
        return True

    queue = send  # libzmq's own thread writes

    def flush(self) -> None:
        """Do nothing: libzmq's own thread writes."""

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

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Close the socket; libzmq's own thread writes what was sent, for `CLOSE_S`, and nobody waits for it."""
        self._dealer.disable_monitor()  # before its socket is closed, or the close hangs
        self._monitor.close(linger=0)
        self._dealer.close()

    def abandon(self) -> None:
        """Do nothing: libzmq knows that it is in another process."""


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
