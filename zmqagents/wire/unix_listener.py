"""The host's listener for clients on its own machine: a Unix socket, at which it speaks ZMTP as a ROUTER does.

A client may be a DEALER of libzmq or a `UnixTransport`. A ROUTER of libzmq would do the same, but with a thread of its
own between the socket and the router thread; to wake that thread for each call and each reply takes longer than all the
rest of a short call. TCP, with CURVE, stays with libzmq (`router_listener`).

Authentication comes before a byte is read: the kernel says which user is at the other end. A connection that has not
finished its handshake within `HANDSHAKE_S` is closed.

All of this belongs to the router thread. It polls the descriptors and passes what the poller says to `on_ready`. Then
`read` takes messages from the peers in ``ready``, one of each in turn, so that no client can keep the others waiting.
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
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import RemoteProtocolError
from . import zmtp
from .messages import MAX_FRAMES, Frame
from .poller import IN, OUT
from .segments import memory
from .segments.ring import Grants
from .stream import SENDING, UnixStream
from .transport import Peer, Receive

__all__ = ["UnixListener", "UnixPeer"]

log = logging.getLogger(__name__)

BACKLOG = 512
ACCEPTS = 64  # new connections in one turn
HANDSHAKE_S = 5.0
PAUSE_S = 0.1  # how long nothing is accepted after the process had no free descriptor
COMPLAINT_S = 60.0  # how often that is logged
READ_BYTES = 1_048_576  # of a long message in one turn
SEGMENTS = 16  # of shared memory that the clients of a host may have, `memory.SEGMENT_BYTES` each
QUEUE_PIECES = 64  # short messages that may wait here for room; the sender keeps the others
_REFUSAL = zmtp.GREETING + zmtp.refused(b"400")  # the status that libzmq's ZAP has for a refused client


class UnixPeer(UnixStream):
    """One client's connection; see `transport.Peer`.

    ``size`` and ``count`` are the bytes and frames of the message received last. If they are too many, only its first
    frame was kept.
    """

    __slots__ = (
        "_has_asked", "_listener", "_name", "_owes", "_told", "count", "deadline", "fd", "is_dry", "is_listed",
        "lacks_memory", "pid", "readable", "received_bytes", "session", "size", "user",
    )  # fmt: skip

    def __init__(
        self, listener: UnixListener, sock: socket.socket, user: str, pid: int, name: str, deadline: float
    ) -> None:
        super().__init__(sock, zmtp.Incoming(listener.spares, listener.max_message_bytes))
        self.fd = sock.fileno()
        self.user = user
        self.pid = pid
        self.session: Any = None
        self.deadline = deadline  # of the handshake
        self.readable = False
        self.is_listed = False  # among those that are ready
        self.is_dry = False  # nothing is left beside the message just received
        self.lacks_memory = False  # there was no memory for the message just received: only its first frame was kept
        self.size = self.count = 0
        self.received_bytes = 0  # of messages
        self._listener = listener
        self._name = name
        self._told = False  # the listener knows that the connection has ended
        self._has_asked = self._owes = False  # for shared memory; it waits for the answer

    def __str__(self) -> str:
        return self._name

    @property
    def sent_bytes(self) -> int:
        """Bytes that the system has taken, and those of frames that were put into shared memory."""
        return self.written + (0 if self._segment is None else self._segment.put_bytes)

    @property
    def has_shaken_hands(self) -> bool:
        """Whether the handshake is over."""
        return self._in.ready

    def seat(self, session: Any) -> None:
        self.session = session

    def greet(self) -> None:
        """Begin the handshake."""
        self._out += (zmtp.GREETING, zmtp.READY_WITH_SEGMENTS if memory.is_offered() else zmtp.READY_ROUTER)
        self.flush()

    def receive(self) -> list[Frame] | None:
        """The next message, None if there is none now."""
        incoming = self._in
        try:
            if self.is_clean and self.readable and incoming.ready:
                self.readable = False
                message = self.read_message()
                if message is not None:
                    self.is_dry = True
                    self.count = count = len(message)
                    self.size = size = len(message[0]) if count == 1 else sum(map(len, message))
                    self.received_bytes += size
                    return message
                self.readable = not self.is_clean  # then there may be more
            self.is_dry = False
            message = None if self.is_clean else self.take()
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
            self._listener.complain(self, exc)
        except Exception:  # a bug of the package, or no memory: the host goes on without this connection
            log.exception("the connection %s could not be read", self)
        else:
            incoming.rest()
            if incoming.news:
                self._on_news()
            self.size, self.count = incoming.size, incoming.count
            if message is not None:
                self.received_bytes += self.size
            if incoming.lacks_memory:
                self.lacks_memory = message is not None
            return message
        self.cut()
        return None

    def _on_news(self) -> None:
        """The client asks for shared memory, or has mapped it."""
        news, self._in.news = self._in.news, zmtp.NO_NEWS
        if b"SEGMENT" in news and not self._has_asked:
            self._has_asked = self._owes = True
            self._answer_asked()
        if b"MAPPED" in news and self._segment is not None:
            self._put = self._segment.put

    def _answer_asked(self) -> None:
        """Give the client shared memory, or say that there is none, once nothing else is to be written.

        A descriptor goes with the first byte of what is written with it.
        """
        if self._out or self.ended:
            return
        self._owes = False
        data, fd = zmtp.NO_SEGMENT, -1
        grants = self._listener.grants
        if grants.take(self.user):
            try:
                segment, fd = memory.make()
            except OSError:
                grants.give_back(self.user)
            else:
                self._use(segment)
                data = zmtp.SEGMENT
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))] if fd >= 0 else []
        try:
            count = self._socket.sendmsg([data], rights, SENDING)
        except OSError:  # no room just now, or too many descriptors on their way, or the client has gone
            self._drop_segment()
            data, count = zmtp.NO_SEGMENT, 0
        finally:
            if fd >= 0:
                os.close(fd)
        if count < len(data):
            self._out.append(data[count:])
            self.flush()

    def _drop_segment(self) -> None:
        if self._segment is not None:
            self._listener.grants.give_back(self.user)
        super()._drop_segment()

    def may_queue(self, parts: list[Frame]) -> bool:
        return len(self._out) < QUEUE_PIECES and sum(map(len, parts)) < zmtp.LARGE_BYTES

    def flush(self) -> None:
        was_pending = self.pending
        super().flush()
        if self.pending is not was_pending:
            self._listener.watch(self)
        if self._owes:
            self._answer_asked()

    def probe(self, message: list[Frame]) -> None:
        """Do nothing: the poller tells when a connection has ended."""

    def send_last(self, messages: Sequence[list[Frame]]) -> None:
        for message in messages:
            self._out += zmtp.enclosed(message)
        self.flush()

    def cut(self) -> None:
        """End the connection from this side."""
        self.drained = True
        self.end()

    def end(self) -> None:
        """Note that the connection has broken. What came before that is still read; then the listener is told."""
        super().end()
        if not self.drained:
            self.readable = True
            self._listener.list(self)
        elif not self._told:
            self._told = True
            self._listener.ended.append(self)

    def close(self) -> None:
        """Close the socket, and drop half a message: others may still hold this object."""
        self._socket.close()
        self._in.drop()
        self._drop_segment()


class UnixListener:
    """The listener at a Unix socket; see the module's docstring and `transport.Listener`.

    ``admit`` gives the user for a uid, None if that one is refused. ``receive``, ``complain`` and ``on_room`` are
    called as `transport.Listener` says. ``refuse`` gets the first frame of a message for which there is no memory.
    """

    def __init__(
        self, admit: Callable[[int | None], str | None], poller: Any, max_message_bytes: int,
        clock: Callable[[], float], *,
        receive: Receive, complain: Callable[[Peer, Exception], None], on_room: Callable[[Peer], None],
        refuse: Callable[[Peer, list[Frame]], None],
    ) -> None:  # fmt: skip
        self.max_message_bytes = max_message_bytes
        self.ready: deque[UnixPeer] = deque()  # peers that may have messages, in the order of their turns
        self.ended: deque[UnixPeer] = deque()
        self.spares = zmtp.Spares()
        self.grants = Grants(SEGMENTS)
        self.due = math.inf
        self._received_before = self._sent_before = 0  # bytes of peers that are gone
        self.complain = complain
        self._receive = receive
        self._refuse = refuse
        self._on_room = on_room
        self._admit = admit
        self._poller = poller
        self._clock = clock
        self._peers: dict[int, UnixPeer] = {}  # by descriptor
        self._strangers: deque[UnixPeer] = deque()  # had not shaken hands when `look` last saw them, oldest first
        self._paused_until = math.inf
        self._next_complaint = -math.inf  # when a failed accept may be logged again
        self._names = itertools.count(1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._fd = self._socket.fileno()
        self._place: os.stat_result | None = None  # of the path that it is bound to
        _listeners.add(self)

    def __repr__(self) -> str:
        return f"<UnixListener [connections: {len(self._peers)}, strangers: {len(self._strangers)}]>"

    def fileno(self) -> int:
        """The descriptor of the socket that listens; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def peers(self) -> Sequence[UnixPeer]:
        """All connections, those in their handshake included."""
        return list(self._peers.values())

    @property
    def received_bytes(self) -> int:
        """Bytes of messages of clients."""
        return self._received_before + sum(peer.received_bytes for peer in self._peers.values())

    @property
    def sent_bytes(self) -> int:
        """Bytes written to clients."""
        return self._sent_before + sum(peer.sent_bytes for peer in self._peers.values())

    def open(self, path: str) -> None:
        """Listen at ``path``, for its owner alone. The path's `IpcLock` must be held. Raises OSError."""
        self._bind(self._socket, path)
        self._poller.register(self._fd, IN)

    def _bind(self, sock: socket.socket, path: str) -> None:
        sock.setblocking(False)
        old_mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(old_mask)
        sock.listen(BACKLOG)
        self._place = os.lstat(path)

    def is_at(self, path: str) -> bool:
        """Whether ``path`` still leads here, and not to another socket or nowhere."""
        try:
            return self._place is not None and os.path.samestat(self._place, os.lstat(path))
        except FileNotFoundError:
            return False

    def open_again(self, path: str, clear: Callable[[], None]) -> None:
        """Listen at ``path``, which ``clear`` clears, with a new socket; connections go on. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            clear()
            self._bind(sock, path)
        except BaseException:
            sock.close()
            raise
        if self._paused_until == math.inf:
            self._poller.unregister(self._fd)
        self._paused_until = math.inf
        self._socket.close()
        self._socket, self._fd = sock, sock.fileno()
        self._poller.register(self._fd, IN)

    def on_ready(self, fd: int, events: int) -> bool:
        """Note what the poller has said of ``fd``; False if that is no descriptor of this listener."""
        peer = self._peers.get(fd)
        if peer is None:
            if fd == self._fd:
                self._accept()
            return fd == self._fd
        if events & ~OUT:
            peer.readable = True
            if not peer.is_listed:  # as `list`
                peer.is_listed = True
                self.ready.append(peer)
        if events & OUT and peer.pending:
            peer.flush()
            self._on_room(peer)
        return True

    def read(self, limit: int, now: float, end: float) -> None:
        """Hand over one message of each client that has some, in turn: ``limit`` in all, and none after ``end``."""
        ready, receive = self.ready, self._receive
        while ready and limit:
            peer = ready[0]
            parts = peer.receive()
            if parts is None or peer.is_dry:
                peer.is_listed = False
                ready.popleft()
                if parts is None:  # it may have been read from for a while all the same
                    if self._clock() >= end:
                        return
                    continue
            elif len(ready) > 1:
                ready.rotate(-1)
            limit -= 1
            if peer.lacks_memory:
                peer.lacks_memory = False
                self._refuse(peer, parts)
                continue
            now = receive(peer, parts if peer.count <= MAX_FRAMES else None, peer.size, now)
            if now >= end:
                return

    def list(self, peer: UnixPeer) -> None:
        """Give ``peer``, which may have messages, its turn in `read`."""
        if not peer.is_listed:
            peer.is_listed = True
            self.ready.append(peer)

    def watch(self, peer: UnixPeer) -> None:
        """Poll ``peer`` for room while something is pending."""
        self._poller.modify(peer.fd, IN | OUT if peer.pending else IN)

    def forget(self, peer: UnixPeer) -> None:
        """Close a connection that has ended."""
        if self._peers.pop(peer.fd, None) is not None:
            self._poller.unregister(peer.fd)
            self._sent_before += peer.sent_bytes
            self._received_before += peer.received_bytes
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
        """Accept no more, write what was sent, for ``linger_s`` seconds at most, and close everything."""
        self._socket.close()
        end = self._clock() + linger_s
        while (left := end - self._clock()) > 0:
            pending = [peer for peer in self.peers if peer.pending]
            if not pending:
                break
            waiting = select.poll()
            for peer in pending:
                waiting.register(peer.fd, OUT)
            waiting.poll(left * 1000)
            for peer in pending:
                peer.flush()
        for peer in self.peers:
            self.forget(peer)
        for stranger in self._strangers:  # refused ones are not among the peers
            stranger.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno not in _PASSING:  # no free descriptor, most likely
                    now = self._clock()
                    if now >= self._next_complaint:
                        self._next_complaint = now + COMPLAINT_S
                        log.warning("cannot accept connections: %s", exc)
                    self._poller.unregister(self._fd)
                    self._paused_until = now + PAUSE_S
                    self.due = min(self.due, self._paused_until)
                    return
                continue
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        uid, pid = _owner_of(sock)
        user = self._admit(uid)
        deadline = self._clock() + HANDSHAKE_S
        try:
            peer = UnixPeer(self, sock, user or "", pid, f"ipc/{next(self._names)} of uid {uid}", deadline)
            if user is None:  # closed later: else the client might see the end before it reads the reason
                sock.send(_REFUSAL, SENDING)
            else:
                self._poller.register(peer.fd, IN)
                self._peers[peer.fd] = peer
                peer.greet()
        except OSError as exc:
            log.debug("a connection has ended, or cannot be served: %s", exc)
            sock.close()
            return
        self._strangers.append(peer)
        self.due = min(self.due, deadline)

    def forget_all(self) -> None:
        """Close the copies of the parent's sockets in a forked child: else they would stay open when it closes them."""
        for thing in (*self._peers.values(), *self._strangers, self._socket, self._poller):
            with contextlib.suppress(OSError):  # the descriptor is closed already; each object must know
                thing.close()


_listeners: weakref.WeakSet[UnixListener] = weakref.WeakSet()


def _forget_all() -> None:
    for listener in list(_listeners):
        listener.forget_all()


os.register_at_fork(after_in_child=_forget_all)

_PASSING = (errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM)  # trouble of that one connection alone


def _owner_of(sock: socket.socket) -> tuple[int | None, int]:
    """User and process at the other end, as the kernel knows them: unix(7), on macOS and the BSDs unix(4).

    None: the user is not known; 0: the process is not.
    """
    pid = 0
    try:
        if hasattr(socket, "SO_PEERCRED"):
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        else:
            _, uid = struct.unpack_from("=Ii", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
    except (OSError, struct.error):
        return None, 0
    return int(uid), pid


_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1
