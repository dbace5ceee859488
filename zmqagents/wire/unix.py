"""A client's connection to a host on the same machine: a plain Unix socket that speaks ZMTP (see `zmtp`).

libzmq would do the same in a thread of its own, which has to be woken for each message, and has to wake the caller: two
hand-offs that cost more than all the rest of a short call. For TCP, where there is CURVE, see `dealer`.

After `LARGE_BEFORE` long frames it asks the host for shared memory, if the host has some to give (see `zmtp`).

The thread that leads the channel owns it. What happens to the connection is in ``events``, to be read after each
`receive` and `look`.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence

import zmq

from ..errors import RemoteProtocolError
from . import zmtp
from .messages import Frame
from .segments import memory
from .stream import UnixStream
from .transport import CLOSE_S, SHORT_MS, Event, Items, poll

__all__ = ["UnixTransport"]

SOON_S = 0.02  # how long a caller reads a long message before it looks at anything else
LARGE_BEFORE = 3  # long frames, either way, before shared memory is asked for
DESCRIPTORS = 4  # at most that one read takes in
CONNECT_S = 1.0


# ---------------------------------------------------------------- a Unix socket


class UnixTransport(UnixStream):
    """See the module's docstring. ``path`` is that of a host's ipc socket.

    ``connect_s``: how long a host whose queue of new connections is full is waited for.
    """

    __slots__ = ("_awaits", "_given", "_large", "_poller", "_quick", "_reading", "_ready", "_writing", "events")
    polls_all = False
    unseen = False

    def __init__(self, path: str, connect_s: float = CONNECT_S) -> None:
        self.events: list[Event] = []
        self._large = 0  # long frames that went over the socket
        self._awaits = False  # a descriptor of shared memory may come
        self._given: int | None = None  # it has come
        self._quick = False  # ready, and nothing to be read but messages
        super().__init__(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), zmtp.Incoming())
        self._ready = False
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *divmod(int(connect_s * 1e6), 1_000_000))
        )
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

    @property
    def fds(self) -> Sequence[int]:
        return (self.fileno(),)

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def look(self, ready: Items) -> None:
        if self.pending:
            self.flush()

    def receive(self) -> list[Frame] | None:
        if self.is_clean and self._quick:
            message = self.read_message()
            if message is not None or self.is_clean:
                return message
        while True:
            message = self._next()
            if message is not None or not self.read():
                return message

    def receive_soon(self) -> list[Frame] | None:
        if not (self.is_clean and self._quick):
            message = self._next()
            if message is not None:
                return message
        if not self.pending and self._poller.poll(SHORT_MS):
            if self.is_clean and self._quick:
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
            if self._in.news:
                self._on_news()
        except RemoteProtocolError:
            self.drained = True
            self._end(Event.CUT if self._ready else Event.FOREIGN)
            return None
        if message is None:
            incoming = self._in
            if incoming.ready and not self._ready:
                self._ready = self._quick = True
                self._counts_large = incoming.offers and memory.is_offered()
                self.events.append(Event.READY)
            if incoming.refusal is not None:
                self._end(Event.KEY_REFUSED)
        return message

    # ------------------------------------------------------------ shared memory

    def _on_large(self) -> None:
        self._large += 1
        if self._large >= LARGE_BEFORE:
            self._counts_large = self._quick = False
            self._awaits = True
            self._recv_into = self._recv_with_descriptors
            self._out.append(zmtp.SEGMENT)  # goes with what is sent next

    def _recv_with_descriptors(self, space: memoryview, size: int, flags: int) -> int:
        """The same as the socket's ``recv_into``, while a descriptor may come."""
        count, found, _, _ = self._socket.recvmsg_into([space], socket.CMSG_SPACE(4 * DESCRIPTORS), flags | _CLOEXEC)
        for level, kind, data in found:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._keep_first(array.array("i", data[: len(data) // 4 * 4]))
        return count

    def _keep_first(self, descriptors: Iterable[int]) -> None:
        for descriptor in descriptors:
            if self._given is None:
                self._given = descriptor
            else:
                os.close(descriptor)

    def _on_news(self) -> None:
        """The host has given shared memory, or has said that there is none."""
        self._in.news = zmtp.NO_NEWS
        if not self._awaits:
            return
        self._await_no_more()
        self._quick = True
        given, self._given = self._given, None
        if given is None:
            return
        try:
            self._use(segment := memory.take_over(given))
        except OSError:  # no memory, or no descriptor left
            return
        finally:
            os.close(given)
        self._put = segment.put
        self._out.append(zmtp.MAPPED)
        if not self.pending:
            self.flush()

    def _await_no_more(self) -> None:
        self._awaits = False
        self._recv_into = self._socket.recv_into

    def _release(self) -> None:
        """Close everything that this process has of the connection."""
        self._await_no_more()
        self._socket.close()
        self._drop_segment()
        given, self._given = self._given, None
        if given is not None:
            os.close(given)

    # ------------------------------------------------------------ the end

    def end(self) -> None:
        self._end(Event.CUT)

    def _end(self, event: Event) -> None:
        if not self.ended:
            super().end()
            self.events.append(event)

    def close(self, wait_s: float = CLOSE_S) -> None:
        end = time.monotonic() + wait_s
        while self.pending and time.monotonic() < end:
            poll([(self.fileno(), zmq.POLLOUT)], 20)
            self.flush()
        self.ended = self.drained = True
        self._release()

    def abandon(self) -> None:
        self._release()


_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
