"""The host's listener for clients elsewhere: a ROUTER of libzmq bound to TCP, with CURVE.

Beside the ROUTER there are two more sockets: the ZAP socket, at which libzmq asks whether a client may connect, and the
ROUTER's monitor, which tells that some connection has ended, but not which one. Only sending tells that, so the host
sends something to every client then (``call_roll``).

libzmq counts messages, not bytes. So it gets large messages only up to `IN_FLIGHT_BYTES` for each client at a time;
that they were written shows when libzmq lets go of their memory. libzmq does not say either when a client has room
again: a client without room is tried again every `RETRY_S`.

All of this belongs to the router thread, which polls ``fds``. A descriptor of libzmq tells only what has happened since
its socket was last used. So the ROUTER is asked for its events (`ask`) after it was used, and the two others are read
until they have nothing more whenever their descriptors are ready.
"""

from __future__ import annotations

import contextlib
import errno
import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.backend

from .. import errors
from ..config import BrokerConfig
from ..process.memory import resident_bytes
from ..security import curve, zap
from ..security.keys import KeyPair
from ..security.unfinished import Connection, Unfinished
from . import addresses, messages
from .messages import Frame
from .poller import IN
from .transport import ZERO_COPY_BYTES, Peer, Receive

__all__ = ["RouterListener", "RouterPeer"]

LINGER_MS = 500
HANDSHAKE_MS = 5000
MAX_ASKED = 64  # messages in one turn at most, after the ROUTER has said that there are some
SINGLE_TURNS = 4  # in which one message was read and another one was there, before more are looked for in one turn
LATE_S = 0.5  # how long libzmq's thread may take after a pause to read what has waited, on a busy machine
RETRY_S = 0.02  # how often a client that had no room is tried again
ZAP_EVERY_S = 0.02  # how often handshakes are looked at while there is no pause in the traffic
ROLL_CALL_EVERY_S = 0.1  # how often every client is probed after a connection has ended
ROLL_CALLS = 2  # how many times: libzmq's monitor may tell of the end before the ROUTER itself knows
COUNTED_BYTES = 32_768  # messages from that size on count as in flight until they are written
IN_FLIGHT_BYTES = 25_165_824  # that libzmq may hold of them for one client before it gets another one

# Without the layers of pyzmq that turn numbers into members of enums and back: 0.5 us a frame instead of 1.1.
_recv: Any = zmq.backend.Socket.recv
# Plain numbers: what pyzmq does with members of its enums takes longer than the call itself.
_NOBLOCK = int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_ACCEPTED = int(zmq.EVENT_ACCEPTED).to_bytes(2, sys.byteorder)  # what begins an event of the monitor

SendFrame = Callable[[Any, int, bool], Any]  # frame, flags, whether to copy it; raises zmq.Again, zmq.ZMQError


class RouterPeer:
    """One client's connection, known by its routing id; see `transport.Peer`."""

    __slots__ = (
        "_in_flight", "_in_flight_bytes", "_listener", "ended", "heard", "pending", "pid", "routing_id",
        "session", "user",
    )  # fmt: skip

    def __init__(self, listener: RouterListener, routing_id: bytes, user: str) -> None:
        self.routing_id = routing_id
        self.user = user
        self.session: Any = None
        self.pending = self.ended = False
        self.pid = 0
        self.heard = 0.0  # when its last message came
        self._listener = listener
        self._in_flight: deque[tuple[zmq.MessageTracker, int]] = deque()  # large messages that libzmq may still hold
        self._in_flight_bytes = 0

    def __str__(self) -> str:
        return self.routing_id.hex()

    def __repr__(self) -> str:
        return f"<RouterPeer {self} [{self._in_flight_bytes} bytes in flight]>"

    def seat(self, session: Any) -> None:
        self.session = session
        self._listener.remember(self)

    def send(self, message: list[Frame]) -> bool:
        size = len(message[0]) if len(message) == 1 else sum(map(len, message))
        taken = self._listener.send(self, message) if size < COUNTED_BYTES else self._send_counted(message, size)
        if taken:
            self._listener.sent_bytes += size
        else:
            self.pending = True
            self._listener.try_again(self)
        return taken

    queue = send  # libzmq's own thread writes

    def flush(self) -> None:
        """Do nothing: libzmq's own thread writes."""

    def probe(self, message: list[Frame]) -> None:
        self.send(message)

    def send_last(self, messages: Sequence[list[Frame]]) -> None:
        with contextlib.suppress(zmq.ZMQError):
            for message in messages:
                if not self._listener.send(self, message):
                    return

    def end(self) -> None:
        """Note that the connection is no more."""
        if not self.ended:
            self.ended = True
            self._listener.ended.append(self)

    def has_waited(self) -> None:
        """Note that there may be room again."""
        self.pending = False

    def _send_counted(self, message: list[Frame], size: int) -> bool:
        in_flight = self._in_flight
        while in_flight and in_flight[0][0].done:
            self._in_flight_bytes -= in_flight.popleft()[1]
        if self._in_flight_bytes >= IN_FLIGHT_BYTES:
            return False
        # Frames are written in order: once libzmq lets go of the last one, all are written.
        last = zmq.Frame(message[-1], track=True, copy=False, copy_threshold=0)
        if not self._listener.send(self, [*message[:-1], last]):
            return False
        in_flight.append((last.tracker, size))
        self._in_flight_bytes += size
        return True


class RouterListener:
    """The listener on TCP; see the module's docstring and `transport.Listener`.

    ``auth`` decides which clients may connect. ``call_roll`` is called when some connection has ended: it is to
    `Peer.probe` every peer that has a session.
    """

    def __init__(
        self, config: BrokerConfig, auth: zap.Authenticator, poller: Any, message_limit: int,
        clock: Callable[[], float], *,
        receive: Receive, on_room: Callable[[Peer], None], call_roll: Callable[[], None],
    ) -> None:  # fmt: skip
        self.fds: list[int] = []  # of the ROUTER, of the ZAP socket, of the monitor
        self.ready = 0  # how many messages to look for in this turn
        self.used = True  # the ROUTER was used since `ask`
        self.due = math.inf
        self.next_look = 0.0  # when `look` is to be called while the host is awake anyway
        self.ended: deque[RouterPeer] = deque()
        self.peers: dict[bytes, RouterPeer] = {}  # those with a session, by routing id
        self.received_bytes = self.sent_bytes = 0  # of messages read, and of those that libzmq was given
        self._poller = poller
        self._clock = clock
        self._receive = receive
        self._on_room = on_room
        self._call_roll = call_roll
        self._config = config
        self._auth = auth
        self._unfinished = Unfinished(message_limit, resident_bytes)
        self._stalled: dict[RouterPeer, None] = {}  # those that had no room
        self._next_retry = self._next_roll_call = 0.0
        self._late_s = self._late_until = 0.0  # see `note_delay`
        self._full_turns = 0  # see `ask`
        self._roll_calls_due = 0
        self._monitor: zmq.Socket[bytes] | None = None
        curve.seed_routing_ids()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            auth.bind(context)
            self._router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        except BaseException:
            auth.close()
            context.term()
            raise
        self._readable = [(self._router, int(zmq.POLLIN))]
        self._send_frame: SendFrame = super(zmq.Socket, self._router).send

    def open(self, keys: KeyPair | None) -> int:
        """Listen, and give the port. ``keys`` None: insecure. Raises AddressInUse, ConfigError, LaunchError."""
        config, router = self._config, self._router
        interface = addresses.interface_of(config.host, config.local_mode)
        self._set_options()
        router.setsockopt(zmq.IPV6, int(interface.startswith("[")))
        self._monitor = router.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        if keys is None:
            curve.guard_insecure(router)
        else:
            curve.guard_tcp(router, keys)
        try:
            router.bind(f"tcp://{interface}:{config.port or '*'}")
        except zmq.ZMQError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise errors.AddressInUse(
                    f"port {config.port} is in use: stop what listens there, or choose another port (0: any free one)"
                ) from exc
            raise errors.LaunchError(f"cannot listen on port {config.port}: {exc}") from exc
        beside = (self._auth.socket, self._monitor)
        self._beside = [(socket, int(zmq.POLLIN)) for socket in beside]
        self.fds = [int(socket.getsockopt(zmq.FD)) for socket in (router, *beside)]
        for fd in self.fds:
            self._poller.register(fd, IN)
        endpoint: bytes = router.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def _set_options(self) -> None:
        router = self._router
        router.linger = 0
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 0)
        router.setsockopt(zmq.SNDHWM, min(1000, self._config.max_calls_per_client + 64))  # beyond it: outbox
        router.setsockopt(zmq.RCVHWM, 1000)
        router.setsockopt(zmq.MAXMSGSIZE, self._unfinished.limit)
        router.setsockopt(zmq.BACKLOG, 512)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.TCP_KEEPALIVE, 1)
        router.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        router.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        router.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)

    # ------------------------------------------------------------ reading

    def note_delay(self, looked: float, now: float) -> None:
        """The router thread ``looked`` longer ago than it meant to: what there is to read may have waited since then.

        The host was frozen, say. So that no call runs after its caller was told that it is over, those that are read
        next, also by libzmq's thread, are LATE if so long a wait would have used up their time. Nobody can tell one
        that was sent since: its caller is asked to send it again. A deadline that its caller gave as a time needs no
        such help. After a long wait a short one changes nothing while what has waited so long may still come.
        """
        late_s = now - looked
        if late_s > self._late_s or now >= self._late_until:
            self._late_s, self._late_until = late_s, now + LATE_S

    def on_ready(self, fd: int, events: int) -> bool:
        """Note what the poller has said of ``fd``; False if that is no descriptor of this listener."""
        if fd == self.fds[0]:
            self.ready = self.ready or 1  # where callers wait there is one, and to look for more costs an exception
            return True
        if fd not in self.fds:
            return False
        self.due = self.next_look = 0.0
        return True

    def ask(self) -> None:
        """Find out whether messages have come; to be called when the ROUTER was ``used``, and before the next poll.

        The ROUTER does not say how many. To look for one more than there are costs an exception, which takes longer
        than a turn; so more than one are looked for only after there was another one in several turns.
        """
        self.used = False
        if not zmq.zmq_poll(self._readable, 0):
            self._full_turns = 0
            return
        self._full_turns = turns = self._full_turns + 1
        self.ready = 1 if turns <= SINGLE_TURNS else min(1 << turns - SINGLE_TURNS, MAX_ASKED)

    def read(self, limit: int, now: float, end: float) -> None:
        """Hand over the messages that are ``ready``, ``limit`` of them at most, and none after ``end``."""
        limit, self.ready, self.used = min(limit, self.ready), 0, True
        late_s = self._late_s if now < self._late_until else 0.0
        for _ in range(limit):
            try:
                routing_id = _recv(self._router, _NOBLOCK)
            except zmq.Again:
                self._full_turns = 0
                return
            frame = _recv(self._router, _NOBLOCK, False)
            parts: Sequence[Frame] | None
            if not frame.more and len(frame) < ZERO_COPY_BYTES:
                message = frame.bytes
                parts, size = (message,), len(message)
            else:
                parts, size = self._read_frames(frame)
            if late_s and parts:
                parts = (messages.doubted(bytes(parts[0]), late_s, now), *parts[1:])
            peer = self.peers.get(routing_id) or self._stranger(routing_id, frame)
            peer.heard = now
            self.received_bytes += size
            now = self._receive(peer, parts, size, now)
            if now >= end:
                return

    def _stranger(self, routing_id: bytes, frame: zmq.Frame) -> RouterPeer:
        """The peer of a message whose sender has no session."""
        connection: Connection | None = None
        peer = RouterPeer(self, routing_id, zap.user_of(frame) or "")
        with contextlib.suppress(zmq.ZMQError):
            connection = self._unfinished.find(int(frame.get(zmq.SRCFD)))
        if connection is not None:
            connection.heard = lambda: peer.heard
        return peer

    def _read_frames(self, frame: zmq.Frame) -> tuple[Sequence[Frame] | None, int]:
        """The frames after the routing id, of which ``frame`` is the first, and their bytes.

        Large ones stay where ZeroMQ has put them.

        A message that is too much is read to its end but not kept: None for too many frames, the header alone for too
        many bytes. libzmq holds a message until it is whole; `Unfinished` sees to one that does not end.
        """
        parts: list[Frame] = []
        size, limit = 0, self._unfinished.limit  # of any message
        while True:
            length = len(frame)
            size += length
            if size > limit:
                del parts[1:]
            elif len(parts) <= messages.MAX_FRAMES:
                parts.append(frame.bytes if length < ZERO_COPY_BYTES else frame.buffer)
            if not frame.more:
                break
            frame = _recv(self._router, _NOBLOCK, False)
        return parts if len(parts) <= messages.MAX_FRAMES else None, size

    # ------------------------------------------------------------ peers

    def remember(self, peer: RouterPeer) -> None:
        """Keep ``peer`` as the same object while it has a session. Others are not kept: their end could not be seen."""
        if peer.session is not None:
            self.peers[peer.routing_id] = peer
        elif self.peers.get(peer.routing_id) is peer:
            del self.peers[peer.routing_id]

    def send(self, peer: RouterPeer, message: Sequence[Any]) -> bool:
        """Give ``message`` to libzmq; False if it has no room for more of this peer. Raises zmq.ZMQError."""
        send = self._send_frame
        self.used = True
        try:
            send(peer.routing_id, _SEND_MORE, True)  # only this one can fail: it finds the peer and its queue
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
            peer.end()
        return True

    def try_again(self, peer: RouterPeer) -> None:
        """Tell in `RETRY_S` that ``peer`` may have room again."""
        if not self._stalled:
            self._next_retry = self._clock() + RETRY_S
            self.due = min(self.due, self._next_retry)
            self.next_look = min(self.next_look, self._next_retry)
        self._stalled[peer] = None

    def forget(self, peer: RouterPeer) -> None:
        """Do nothing: libzmq has closed the connection."""

    # ------------------------------------------------------------ what is due

    def look(self, now: float) -> None:
        """Answer clients that connect, look for connections that have ended, and try clients again that had no room."""
        self.due, self.next_look = math.inf, now + ZAP_EVERY_S
        for socket, _ in zmq.zmq_poll(self._beside, 0):
            if socket is self._monitor:
                if self._has_someone_left():
                    self._roll_calls_due = ROLL_CALLS
            elif self._auth.handle():
                self.due = 0.0  # until it has nothing more
        if self._roll_calls_due:
            if now >= self._next_roll_call:
                self._next_roll_call = now + ROLL_CALL_EVERY_S
                self._roll_calls_due -= 1
                self._call_roll()
            if self._roll_calls_due:
                self.due = min(self.due, self._next_roll_call)
        if self._stalled:
            if now >= self._next_retry:
                self._retry(now)
            if self._stalled:
                self.due = min(self.due, self._next_retry)
        if now >= self._unfinished.due:
            self._unfinished.look(now, lambda: not zmq.zmq_poll(self._readable, 0))
        self.due = min(self.due, self._unfinished.due)
        self.next_look = min(self.next_look, self.due)

    def _retry(self, now: float) -> None:
        stalled, self._stalled = self._stalled, {}
        for peer in stalled:
            peer.has_waited()
            self._on_room(peer)
        self._next_retry = now + RETRY_S

    def _has_someone_left(self) -> bool:
        assert self._monitor is not None
        left = False
        with contextlib.suppress(zmq.Again):
            while True:
                event = self._monitor.recv_multipart(zmq.NOBLOCK)[0]
                self._unfinished.note(event)
                left = left or not event.startswith(_ACCEPTED)
        return left

    def close(self) -> None:
        """Write what was sent, for `LINGER_MS` at most, and close everything."""
        if self._monitor is not None:
            self._router.disable_monitor()  # before its socket is closed, or the close hangs
            self._monitor.close(linger=0)
        self._router.close(linger=LINGER_MS)
        self._auth.close()
        self._router.context.term()  # bounded by the linger
