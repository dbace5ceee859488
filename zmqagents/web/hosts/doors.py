"""Connections to the host, one for each user and role in whose name something is asked: `Doors`.

The host takes the name from this process (see `security.roles`) and does for the connection what it does for that user:
looks its role up, counts what it asks for against its shares, names it in its log, and ends the connection with its
key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ...client.aio import AsyncRpcClient
from ...client.rpc import RpcClient
from ...security.roles import ActsFor
from ...wire.link import Link
from ..access import Principal

__all__ = ["Doors"]

IDLE_S = 300.0
MAX_DOORS = 64


class Doors:
    """``connect`` opens a client in the name of a user, None: as this process itself. Any thread."""

    def __init__(
        self, connect: Callable[[ActsFor | None], RpcClient], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[ActsFor | None, tuple[RpcClient, float]] = {}

    def __repr__(self) -> str:
        return f"<Doors [{len(self._open)} open]>"

    def client(self, principal: Principal) -> RpcClient:
        """The client for a user; it stays open while it is asked for within `IDLE_S`."""
        acts_for = _acts_for(principal)
        now = self._clock()
        with self._lock:
            found = self._open.pop(acts_for, None)
            client = self._connect(acts_for) if found is None else found[0]
            self._open[acts_for] = client, now
            idle = self._take_idle(now)
        for each in idle:
            each.close()
        return client

    def aio(self, principal: Principal) -> AsyncRpcClient:
        """The same connection for the event loop; not to be closed, for others use it as well."""
        return AsyncRpcClient(link=self.client(principal).link)

    def drop(self, principal: Principal, link: Link) -> None:
        """The connection ``link`` has failed: the next request makes a new one, perhaps to another process of the host.

        Another one, which was opened meanwhile, is left alone.
        """
        acts_for = _acts_for(principal)
        with self._lock:
            client, _ = self._open.get(acts_for, (None, 0.0))
            if client is None or client.link is not link:
                return
            del self._open[acts_for]
        client.close()

    def close(self) -> None:
        """Close all."""
        with self._lock:
            clients = [client for client, _ in self._open.values()]
            self._open.clear()
        for client in clients:
            client.close()

    def _take_idle(self, now: float) -> list[RpcClient]:
        """Take out what is used no more; the oldest comes first in the dict."""
        taken = []
        for acts_for, (client, used) in list(self._open.items()):
            if now - used <= IDLE_S and len(self._open) <= MAX_DOORS:
                break
            taken.append(client)
            del self._open[acts_for]
        return taken


def _acts_for(principal: Principal) -> ActsFor | None:
    """The user of this process with all its rights needs nothing: it is the one that connects."""
    if not principal.user and principal.role == "admin":
        return None
    return principal.user, principal.role
