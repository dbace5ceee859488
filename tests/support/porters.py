"""The door of a host at a Unix socket without the host: the test's thread is its router thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from scale import MIB
from zmqagents.security.zap import Authenticator
from zmqagents.wire.messages import Frame
from zmqagents.wire.poller import new_poller
from zmqagents.wire.transport import Peer
from zmqagents.wire.unix_listener import UnixListener, UnixPeer

LIMIT = 20 * MIB


class Porter:
    """A door, and a router thread's turns around it, in the test's thread. ``now`` is its clock."""

    def __init__(self, path: str, uids: set[int] | None = None, max_bytes: int = LIMIT) -> None:
        self.path = path
        self.now = 1000.0
        self.poller = new_poller()
        self.received: list[tuple[UnixPeer, list[Frame]]] = []
        self.gone: list[UnixPeer] = []
        self.complaints: list[str] = []
        self.on_message: Callable[[UnixPeer, list[Frame]], object] = lambda peer, parts: None
        self.on_room: Callable[[Peer], None] = lambda peer: None
        self.clock: Callable[[], float] = lambda: self.now
        self.door = UnixListener(
            Authenticator(None, uids=uids).admit, self.poller, max_bytes, lambda: self.clock(),
            receive=self._receive, complain=lambda peer, exc: self.complaints.append(str(exc)),
            on_room=lambda peer: self.on_room(peer), refuse=lambda peer, parts: None,
        )  # fmt: skip
        self.door.open(path)

    def turn(self, timeout_s: float = 0.01) -> int:
        """Poll once and do what comes of it; how many descriptors were ready."""
        door = self.door
        ready = self.poller.poll(0 if door.ready else timeout_s, 64)
        for fd, events in ready:
            assert door.on_ready(fd, events), f"{fd} is not the door's"
        door.read(64, self.now, math.inf)
        if self.now >= door.due:
            door.look(self.now)
        while door.ended:
            peer = door.ended.popleft()
            door.forget(peer)
            self.gone.append(peer)
        return len(ready)

    def _receive(self, peer: Peer, parts: Sequence[Frame] | None, size: int, now: float) -> float:
        assert isinstance(peer, UnixPeer)
        self.received.append((peer, list(parts or ())))  # None: too many frames
        self.on_message(peer, list(parts or ()))
        return now

    def until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < end, "it does not happen"
            self.turn()

    def settle(self) -> None:
        """Until two polls in a row have nothing."""
        idle, end = 0, time.monotonic() + 20
        while idle < 2:
            assert time.monotonic() < end, "it does not settle"
            idle = idle + 1 if not self.turn() and not self.door.ready else 0

    @property
    def peers(self) -> list[UnixPeer]:
        return list(self.door.peers)

    @property
    def messages(self) -> list[list[bytes]]:
        return [[bytes(frame) for frame in parts] for _, parts in self.received]

    def close(self, linger_s: float = 0.0) -> None:
        self.door.close(linger_s)
        self.poller.close()
