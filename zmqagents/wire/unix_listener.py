"""The host's door for clients on its own machine: a Unix socket, at which it speaks ZMTP as a ROUTER does.

Whoever comes in by it may be a DEALER of libzmq, or a `UnixTransport`. libzmq's ROUTER would do the same, with a
thread of its own between the socket and the router thread; waking that one for each call and each reply takes longer
than all the rest of a short call does. TCP, with CURVE, stays with libzmq.

Who may come in is settled before a byte is read: the kernel says which user is at the other end. A connection that has
not shaken hands within `HANDSHAKE_S` is closed.

All of this belongs to the router thread. It polls the descriptors and passes on what is said of each by `on_ready`;
then it takes messages from the connections in ``ready``, and looks after those that have ``ended``.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import select
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import RemoteProtocolError
from . import zmtp
from .messages import Frame
from .poller import IN, OUT
from .stream import SENDING, SHORT_READ_BYTES, UnixStream

__all__ = ["UnixListener", "UnixPeer", "Where"]

log = logging.getLogger(__name__)

BACKLOG = 512
ACCEPTS = 64  # new connections in one turn
HANDSHAKE_S = 5.0
PAUSE_S = 0.1  # without a free descriptor nobody can come in; so long until the next attempt
COMPLAINT_S = 60.0  # and so long until the next line about it
READ_BYTES = 1_048_576  # of a long message in one turn
QUEUE_PIECES = 64  # short messages that may wait for room here; who has more to send keeps it
_REFUSAL = zmtp.GREETING + zmtp.refused(b"400")  # the status that libzmq's ZAP has for it


class UnixPeer(UnixStream):
    """A connection to the door. ``user``: whom it was taken for."""

    __slots__ = (
        "_door", "_name", "_told", "count", "deadline", "fd", "is_dry", "is_listed", "readable", "size", "user",
    )  # fmt: skip

    def __init__(self, door: UnixListener, sock: socket.socket, user: str, name: str, deadline: float) -> None:
        super().__init__(sock, zmtp.Incoming(door.spares, door.max_message_bytes))
        self.fd = sock.fileno()
        self.user = user
        self.deadline = deadline  # of the handshake
        self.readable = False
        self.is_listed = False  # among those that are ready
        self.is_dry = False  # nothing is left beside the message just received
        self.size = self.count = 0  # bytes and frames of that: of too many, only the first frame is there
        self._door = door
        self._name = name
        self._told = False  # the door knows that it has ended

    def __str__(self) -> str:
        return self._name

    @property
    def has_shaken_hands(self) -> bool:
        return self._in.ready

    def greet(self) -> None:
        """Begin the handshake."""
        self._out += (zmtp.GREETING, zmtp.READY_ROUTER)
        self.flush()

    def receive(self) -> list[Frame] | None:
        """The next message, None if there is none now."""
        incoming = self._in
        try:
            if self.readable and incoming.ready and not incoming.started:
                self.readable = False
                short = self.read_short()
                if short is not None:
                    self.is_dry = True
                    self.size, self.count = len(short), 1
                    return [short]
                self.readable = incoming.waiting >= SHORT_READ_BYTES  # then there is more
            self.is_dry = False
            message = self.take() if incoming.started else None
            read = 0
            while message is None and self.readable and read < READ_BYTES:
                self.readable = False
                count = self.read()
                if not count:
                    break
                message = self.take()
                read += count
                self.readable = self.readable or incoming.amid_large  # there may be more of it by now
        except RemoteProtocolError as exc:
            self._door.complain(self, exc)
        except Exception:  # a bug of ours, or no memory: the host goes on without this connection
            log.exception("the connection %s could not be read", self)
        else:
            incoming.rest()
            self.size, self.count = incoming.size, incoming.count
            return message
        self.cut()
        return None

    def hand_over(self, message: list[Frame]) -> bool:
        """Send ``message`` as far as there is room; False if too much of what was sent before is not written yet."""
        if self.pending:
            if len(self._out) >= QUEUE_PIECES or sum(map(len, message)) >= zmtp.LARGE_BYTES:
                return False
            self.queue(message)
        elif not self.ended:
            self.send(message)
        return True

    def flush(self) -> None:
        was_pending = self.pending
        super().flush()
        if self.pending is not was_pending:
            self._door.watch(self)

    def cut(self) -> None:
        """End the connection from this side."""
        self.drained = True
        self.end()

    def end(self) -> None:
        """It has broken. What came before that is still read; then the door is told."""
        super().end()
        if not self.drained:
            self.readable = True
            self._door.list(self)
        elif not self._told:
            self._told = True
            self._door.ended.append(self)

    def close(self) -> None:
        """Let go of the socket, and of half a message: others may still keep this object in mind."""
        self._socket.close()
        self._in.drop()


class UnixListener:
    """See the module's docstring.

    ``admit`` gives the user id for a uid, None: refused. ``complain`` hears of those who do not speak ZMTP. ``due``:
    when there is something to do for `look`.
    """

    def __init__(
        self, admit: Callable[[int | None], str | None], complain: Callable[[UnixPeer, Exception], None],
        poller: Any, max_message_bytes: int, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.complain = complain
        self.roomy: Callable[[UnixPeer], None] = lambda peer: None  # told who may have room again
        self.max_message_bytes = max_message_bytes
        self.ready: deque[UnixPeer] = deque()
        self.ended: list[UnixPeer] = []
        self.spares = zmtp.Spares()
        self.due = math.inf
        self._admit = admit
        self._poller = poller
        self._clock = clock
        self._peers: dict[int, UnixPeer] = {}  # by descriptor
        self._strangers: deque[UnixPeer] = deque()  # who had not shaken hands when somebody last looked, oldest first
        self._paused_until = math.inf
        self._next_complaint = -math.inf  # that nobody can come in
        self._names = itertools.count(1)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._fd = self._listener.fileno()
        _doors.add(self)

    def open(self, path: str) -> None:
        """Listen at ``path``, for its owner alone. The path's `IpcLock` must be held. Raises OSError."""
        self._listener.setblocking(False)
        old_mask = os.umask(0o177)
        try:
            self._listener.bind(path)
        finally:
            os.umask(old_mask)
        self._listener.listen(BACKLOG)
        self._poller.register(self._fd, IN)

    def on_ready(self, fd: int, events: int) -> bool:
        """What the poller has said of ``fd``; False if that is none of the door's."""
        peer = self._peers.get(fd)
        if peer is None:
            if fd == self._fd:
                self._accept()
            return fd == self._fd
        if events & ~OUT:
            peer.readable = True
            if not peer.is_listed:
                self.list(peer)
        if events & OUT and peer.pending:
            peer.flush()
            self.roomy(peer)
        return True

    def list(self, peer: UnixPeer) -> None:
        """``peer`` may have messages."""
        if not peer.is_listed:
            peer.is_listed = True
            self.ready.append(peer)

    def watch(self, peer: UnixPeer) -> None:
        """Poll ``peer`` for room from now on, or not any more."""
        self._poller.modify(peer.fd, IN | OUT if peer.pending else IN)

    def forget(self, peer: UnixPeer) -> None:
        """Close a connection that has ended."""
        if self._peers.pop(peer.fd, None) is not None:
            self._poller.unregister(peer.fd)
        peer.close()

    def look(self, now: float) -> None:
        """Do what is ``due``."""
        if self._paused_until <= now:
            self._paused_until = math.inf
            self._poller.register(self._fd, IN)
        strangers = self._strangers
        while strangers and (strangers[0].has_shaken_hands or strangers[0].ended or strangers[0].deadline <= now):
            stranger = strangers.popleft()
            if not stranger.has_shaken_hands:
                stranger.cut()
        self.due = min(self._paused_until, strangers[0].deadline if strangers else math.inf)

    def close(self, linger_s: float) -> None:
        """Let nobody in any more, write what was sent, for ``linger_s`` seconds at most, and close everything."""
        self._listener.close()
        end = self._clock() + linger_s
        while (left := end - self._clock()) > 0:
            pending = [peer for peer in self._peers.values() if peer.pending]
            if not pending:
                break
            waiting = select.poll()
            for peer in pending:
                waiting.register(peer.fd, OUT)
            waiting.poll(left * 1000)
            for peer in pending:
                peer.flush()
        for peer in list(self._peers.values()):
            self.forget(peer)
        for stranger in self._strangers:  # who was refused is not among them
            stranger.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno not in _PASSING:  # no free descriptor, most likely
                    now = self._clock()
                    if now >= self._next_complaint:
                        self._next_complaint = now + COMPLAINT_S
                        log.warning("nobody can come in: %s", exc)
                    self._poller.unregister(self._fd)
                    self._paused_until = now + PAUSE_S
                    self.due = min(self.due, self._paused_until)
                    return
                continue
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        uid = _uid_of(sock)
        user = self._admit(uid)
        deadline = self._clock() + HANDSHAKE_S
        try:
            peer = UnixPeer(self, sock, user or "", f"ipc/{next(self._names)} of uid {uid}", deadline)
            if user is None:  # closed later: else it might notice that before it reads why
                sock.send(_REFUSAL, SENDING)
            else:
                self._poller.register(peer.fd, IN)
                self._peers[peer.fd] = peer
                peer.greet()
        except OSError as exc:
            log.debug("a client has gone, or cannot be served: %s", exc)
            sock.close()
            return
        self._strangers.append(peer)
        self.due = min(self.due, deadline)

    def _forget_all(self) -> None:
        """In a forked child: the sockets are the parent's, and no copy of one shall keep it open."""
        for thing in (*self._peers.values(), *self._strangers, self._listener, self._poller):
            with contextlib.suppress(OSError):  # somebody else has closed the number; each object must know
                thing.close()


_doors: weakref.WeakSet[UnixListener] = weakref.WeakSet()


def _forget_all() -> None:
    for door in list(_doors):
        door._forget_all()


os.register_at_fork(after_in_child=_forget_all)

_PASSING = (errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM)  # troubles of that one connection


def _uid_of(sock: socket.socket) -> int | None:
    """The user at the other end, as the kernel knows it: unix(7), on macOS and the BSDs unix(4)."""
    try:
        if hasattr(socket, "SO_PEERCRED"):
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:
            _, uid = struct.unpack_from("=Ii", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
    except (OSError, struct.error):
        return None
    return int(uid)


_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


Where = bytes | UnixPeer  # where a client is reached: a routing id of the ROUTER, or a connection at the Unix door
