"""The host's door for clients elsewhere: a ROUTER bound to TCP, with CURVE.

Beside the ROUTER it has the ZAP socket at which libzmq asks who may come in, and the ROUTER's monitor, which tells that
some connection has ended, though not whose.

All of this belongs to the router thread. It polls ``fds``. A descriptor of libzmq tells only what has happened since
its socket was last used: so the ROUTER is asked for its events (`is_readable`) after the last reply was sent, and the
two others are read until they have nothing more whenever theirs says something.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import Any, NamedTuple

import zmq
import zmq.backend

from .. import errors
from ..config import BrokerConfig
from ..security import curve, zap
from ..security.keys import KeyPair
from . import messages
from .messages import Frame, Kind
from .transport import ZERO_COPY_BYTES, SendFrame

__all__ = ["Arrival", "RouterListener"]

LINGER_MS = 500
HANDSHAKE_MS = 5000

# Without the layer of pyzmq that turns numbers into members of enums and back.
_recv: Any = zmq.backend.Socket.recv
# As plain numbers: what pyzmq does with members of its enums takes longer than the call itself.
_NOBLOCK = int(zmq.NOBLOCK)
_HELLO = bytes([Kind.HELLO])  # the fourth byte of its header


class Arrival(NamedTuple):
    """A message. ``parts`` None: too many frames; the first alone: too many bytes. ``size`` is that of all."""

    routing_id: bytes
    parts: Sequence[Frame] | None
    size: int


class RouterListener:
    """See the module's docstring. ``auth`` decides who comes in."""

    def __init__(self, config: BrokerConfig, auth: zap.Authenticator, message_limit: int) -> None:
        self.hello_from = ""  # the user of the HELLO received last
        self._config = config
        self._auth = auth
        self._message_limit = message_limit
        self._monitor: zmq.Socket[bytes] | None = None
        curve.seed_routing_ids()
        self._context: zmq.Context[Any] = zmq.Context()
        try:
            auth.bind(self._context)
            self._router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        except BaseException:
            auth.close()
            self._context.term()
            raise
        self._readable = [(self._router, int(zmq.POLLIN))]
        # Without the layer for draft sockets above it: 0.5 us a frame instead of 1.1.
        self.send_frame: SendFrame = super(zmq.Socket, self._router).send

    def open(self, keys: KeyPair | None) -> int:
        """Listen, and give the port. ``keys`` None: insecure. Raises AddressInUse, LaunchError."""
        config, router = self._config, self._router
        self._set_options()
        self._monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        if keys is None:
            curve.guard_insecure(router)
        else:
            curve.guard_tcp(router, keys)
        interface = "127.0.0.1" if config.local_mode else "*"
        try:
            router.bind(f"tcp://{interface}:{config.port or '*'}")
        except zmq.ZMQError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise errors.AddressInUse(
                    f"port {config.port} is in use: stop what listens there, or choose another port (0: any free one)"
                ) from exc
            raise errors.LaunchError(f"cannot listen on port {config.port}: {exc}") from exc
        sockets = (router, self._auth.socket, self._monitor)
        self.fds: list[int] = [socket.getsockopt(zmq.FD) for socket in sockets]  # type: ignore[misc]
        endpoint: bytes = router.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
        return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def _set_options(self) -> None:
        router = self._router
        router.linger = 0
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 0)
        router.setsockopt(zmq.SNDHWM, min(1000, self._config.max_calls_per_client + 64))  # beyond it: outbox
        router.setsockopt(zmq.RCVHWM, 1000)
        router.setsockopt(zmq.MAXMSGSIZE, self._message_limit)
        router.setsockopt(zmq.BACKLOG, 512)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.TCP_KEEPALIVE, 1)
        router.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        router.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
        router.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        router.setsockopt(zmq.IPV6, 0)

    def is_readable(self) -> bool:
        """Whether there is a message."""
        return bool(zmq.zmq_poll(self._readable, 0))

    def receive(self) -> Arrival | None:
        """The next message, None if there is none."""
        try:
            routing_id = _recv(self._router, _NOBLOCK)
        except zmq.Again:
            return None
        frame = _recv(self._router, _NOBLOCK, False)
        if not frame.more and len(frame) < ZERO_COPY_BYTES:
            message = frame.bytes
            return Arrival(routing_id, (message,), len(message))
        return Arrival(routing_id, *self._read_frames(frame))

    def _read_frames(self, frame: zmq.Frame) -> tuple[Sequence[Frame] | None, int]:
        """The frames after the routing id, of which ``frame`` is the first, and their bytes in all.

        Large ones stay where ZeroMQ has put them.

        A message that is too much is read to its end but not kept: None for too many frames, the header alone for too
        many bytes. (libzmq holds a message until it is whole, and has no limit for that: see tests/faults.)
        """
        parts: list[Frame] = []
        size = 0
        limit = self._message_limit
        while True:
            length = len(frame)
            size += length
            if len(parts) == 1 and parts[0][3:4] == _HELLO:
                self.hello_from = zap.user_of(frame) or ""
            if size > limit:
                del parts[1:]
            elif len(parts) <= messages.MAX_FRAMES:
                parts.append(frame.bytes if length < ZERO_COPY_BYTES else frame.buffer)
            if not frame.more:
                break
            frame = _recv(self._router, _NOBLOCK, False)
        return parts if len(parts) <= messages.MAX_FRAMES else None, size

    def let_in(self) -> int:
        """Answer those who ask to come in; how many that were, so that one who may have left some calls again."""
        return self._auth.handle()

    def someone_left(self) -> bool:
        """True if some connection has ended since the last time."""
        assert self._monitor is not None
        left = False
        with contextlib.suppress(zmq.Again):
            while True:
                self._monitor.recv_multipart(zmq.NOBLOCK)
                left = True
        return left

    def close(self) -> None:
        """Write what was sent, for `LINGER_MS` at most, and close everything."""
        if self._monitor is not None:
            self._router.disable_monitor()  # before its socket is closed, or the close hangs
            self._monitor.close(linger=0)
        self._router.close(linger=LINGER_MS)
        self._auth.close()
        self._context.term()  # bounded by the linger
