"""TCP connections on which a message does not end, and which are therefore cut.

libzmq holds a message until its last frame has come, and has a limit for a frame only. So a client that was let in
could fill the host's memory with one message. The kernel knows how many bytes libzmq has read from each connection
(`TCP_INFO` less `FIONREAD`, Linux), and the router thread when a message of it was whole. What was read since belongs
to one message, if no whole one waits to be read; once it is longer than a message may be, it will be refused anyway.

To ask about a connection takes some 5 us, so they are asked only while the process grows.

All of this belongs to the router thread. The descriptors are libzmq's, which may close them at any time, so a
connection is told from a later one with the same descriptor by the kernel's cookie.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import socket
import struct
import sys
import termios
from collections.abc import Callable
from itertools import islice

import zmq

__all__ = ["Connection", "Unfinished"]

log = logging.getLogger(__name__)

ROOM_BYTES = 1_048_576  # for what libzmq and CURVE put around frames, and the next message's beginning
EVERY_S = 0.2  # how often memory is looked at
SOON_S = 0.02  # how often connections are, while one has a long message on the way
GROWN_BYTES = 16_777_216  # of the process, until connections are asked
AT_ONCE = 64  # of many connections, so many are asked in one go: 0.5 ms
TURNS_S = 1.0  # enough for a busy listener to take a message of each connection
LONG_BYTES = 1_048_576
_IS_KNOWN = sys.platform == "linux" and hasattr(socket, "TCP_INFO")
_INFO_BYTES, _RECEIVED_AT = 136, 128  # struct tcp_info, up to tcpi_bytes_received
_SO_COOKIE = 57
_EVENT = struct.Struct("=Hi")


class Connection:
    """One connection. ``base``: how many bytes had been read from it after its last message was whole.

    ``heard`` tells when that was.
    """

    __slots__ = ("base", "cookie", "fd", "heard", "long_since", "looked")

    def __init__(self, fd: int, cookie: bytes) -> None:
        self.fd = fd
        self.cookie = cookie
        self.base = 0
        self.looked = 0.0
        self.long_since = math.inf  # when its message was first found to be too long
        self.heard: Callable[[], float] | None = None  # None: no message was whole yet


class Unfinished:
    """The connections of one listener. No message may be longer than ``limit`` bytes.

    ``resident`` tells the memory of this process in bytes.
    """

    def __init__(self, limit: int, resident: Callable[[], int]) -> None:
        self.due = math.inf
        self.limit = limit
        self._memory = resident
        self._connections: dict[int, Connection] = {}
        self._resident = 0  # bytes, when the connections were asked last
        self._left = 0  # of them, still to be asked
        self._is_long = False  # one has a long message on the way

    def __repr__(self) -> str:
        return f"<Unfinished [connections: {len(self._connections)}]>"

    def note(self, event: bytes) -> None:
        """Take the first frame of what the monitor of the listener says."""
        kind, fd = _EVENT.unpack(event)
        if kind != zmq.EVENT_ACCEPTED:
            self._connections.pop(fd, None)
        elif _IS_KNOWN and (cookie := _ask(fd, socket.SOL_SOCKET, _SO_COOKIE, 8)) is not None:
            self._connections[fd] = Connection(fd, cookie)
            self.due = min(self.due, 0.0)

    def find(self, fd: int) -> Connection | None:
        """The connection with this descriptor."""
        return self._connections.get(fd)

    def look(self, now: float, is_quiet: Callable[[], bool]) -> None:
        """Cut the connections on which a message is too long. ``is_quiet``: no message waits to be read.

        They are asked only when the memory of the process has grown, which costs less to find out.
        """
        if not self._left:
            resident = self._memory()
            if not self._is_long and resident < self._resident + GROWN_BYTES:
                self._resident = min(self._resident, resident)
                self.due = now + EVERY_S if self._connections else math.inf
                return
            self._resident, self._left, self._is_long = resident, len(self._connections), False
        for fd in list(islice(self._connections, min(self._left, AT_ONCE))):
            self._left -= 1
            connection = self._connections[fd] = self._connections.pop(fd)  # the last again
            self._look_at(connection, now, is_quiet)
        self._left = min(self._left, len(self._connections))
        self.due = now + (SOON_S if self._left or self._is_long else EVERY_S) if self._connections else math.inf

    def _look_at(self, connection: Connection, now: float, is_quiet: Callable[[], bool]) -> None:
        count = _read_from(connection.fd)
        if count is None:
            del self._connections[connection.fd]
            return
        if connection.heard is not None and connection.heard() >= connection.looked:
            connection.base = count
        connection.looked = now
        unfinished = count - connection.base
        self._is_long = self._is_long or unfinished > LONG_BYTES
        if unfinished <= self.limit + ROOM_BYTES:
            connection.long_since = math.inf
            return
        connection.long_since = min(connection.long_since, now)
        # A listener that is never quiet takes a message of each connection in turn.
        if is_quiet() or now - connection.long_since > TURNS_S:
            self._cut(connection, unfinished)

    def _cut(self, connection: Connection, unfinished: int) -> None:
        """Shut the connection down; libzmq sees its end, and lets go of the message."""
        del self._connections[connection.fd]
        try:
            with socket.socket(fileno=os.dup(connection.fd)) as sock:
                if sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8) != connection.cookie:
                    return
                peer = sock.getpeername()[0]
                sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return
        log.warning("a connection from %s is cut: a message of more than %s bytes on it", peer, f"{unfinished:,}")


def _read_from(fd: int) -> int | None:
    """How many bytes were ever read from the socket ``fd``; None if it is no such socket any more."""
    info = _ask(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    if info is None or len(info) < _INFO_BYTES:
        return None
    unread = bytearray(4)
    try:
        fcntl.ioctl(fd, termios.FIONREAD, unread)
    except OSError:
        return None
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) - int.from_bytes(unread, sys.byteorder)


def _ask(fd: int, level: int, option: int, size: int) -> bytes | None:
    """A socket option of a descriptor that may have been closed."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return None
    try:
        return sock.getsockopt(level, option, size)
    except OSError:
        return None
    finally:
        sock.detach()
