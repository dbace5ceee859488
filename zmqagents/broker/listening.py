"""Where a host listens: it opens the listeners, publishes their addresses, and closes both at the end.

    Unix socket    every host; for clients of this machine, known by their uid
    TCP            hosts that are not private; a ROUTER of libzmq with CURVE, see `router_listener`

A host is found by its connection file, which is published when the listeners are open and withdrawn before they close.
The lock on the Unix socket's path keeps two hosts with one server id apart.

Cleaners of temporary directories remove what is old, and people remove what they do not know. Without its lock file a
host could be started a second time, and a program that looks for hosts would take the living one for dead. So
`Presence` looks after the files every few seconds, which also keeps them young: what is gone is made again.

Opening may fail at any step; `Listening.close` closes what was opened so far.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import codec, discovery, errors
from ..config import BrokerConfig
from ..execution.file_roots import hold_apart
from ..scheduler.effects import Effect
from ..security.zap import Authenticator
from ..version import __version__
from ..wire.clock import clock_name
from ..wire.messages import MINOR
from ..wire.poller import IN, new_poller
from ..wire.transport import Listener, Receive
from ..wire.unix_listener import UnixListener
from .clients import Clients

if TYPE_CHECKING:
    from ..security.keys import KeyStore
    from ..wire.router_listener import RouterListener

__all__ = ["Bound", "Listening"]

log = logging.getLogger(__name__)

CLOSE_LINGER_S = 0.5
WELCOME_S = 1.0  # how long a WELCOME stays as it is, although the host may have got another server key
MESSAGE_ROOM_BYTES = 1024  # beyond max_message_bytes: header and names; clients allow themselves as much


class Bound(NamedTuple):
    """Where the broker listens. ``port`` is None for a private host."""

    server_id: str
    host: str
    port: int | None
    ipc: str
    server_key: str | None

    @property
    def address(self) -> str:
        """The address that other hosts use."""
        return f"ipc:{self.ipc}" if self.port is None else f"{self.host}:{self.port}"


class Presence:
    """The files of one host. Used by its router thread."""

    def __init__(self, record: discovery.ConnectionFile, lock: discovery.IpcLock, listener: UnixListener) -> None:
        self._record = record
        self._lock = lock
        self._listener = listener
        self._trouble = ""  # said last

    def renew(self) -> None:
        """Make again what is gone, and say so; never raises."""
        try:
            made = self._renewed()
            trouble = "" if made is not None else f"another host has taken the lock {self._lock.lock_path}"
        except (OSError, errors.ZmqAgentsError) as exc:
            made, trouble = [], str(exc)
        if made:
            log.warning("%s: gone, and made again: %s", self._record.server_id, ", ".join(made))
        if trouble and trouble != self._trouble:
            log.error("%s cannot be found any more by clients on this machine: %s", self._record.server_id, trouble)
        self._trouble = trouble

    def _renewed(self) -> list[str] | None:
        """The paths of what was made again; None: they are another host's now."""
        lock, path, made = self._lock, self._record.ipc, []
        if not lock.is_in_place:
            if not lock.renew():
                return None
            made.append(lock.lock_path)
        if not self._listener.is_at(path):
            self._listener.open_again(path, lock.clear_path)
            made.append(path)
        if not discovery.is_published(self._record):
            made.append(str(discovery.publish(self._record)))
        for kept in (lock.lock_path, path, str(self._record.path), os.path.dirname(path)):
            os.utime(kept)
        return made


class Listening:
    """The listeners of one host, and the poller that tells of all descriptors of the router thread.

    ``unix`` and ``poller`` are there after `open`. ``router`` is the listener on TCP; a private host has none.
    ``receive`` gets each message. ``welcome`` is what a WELCOME says beside addresses and limits. Other threads write
    to the other end of ``wake`` in order to wake the router thread. ``limit``: bytes of the largest message.
    """

    unix: UnixListener
    poller: Any  # `select.epoll`, or what `new_poller` gives instead

    def __init__(
        self, config: BrokerConfig, clients: Clients, wake: socket.socket, clock: Callable[[], float], receive: Receive,
        welcome: dict[str, Any],
    ) -> None:  # fmt: skip
        self.router: RouterListener | None = None
        self.bound: Bound | None = None
        self._config = config
        self._clients = clients
        self._wake = wake
        self._clock = clock
        self._receive = receive
        self._welcome = welcome
        self.limit = config.max_message_bytes + MESSAGE_ROOM_BYTES
        self._started = time.time()
        self._presence: Presence | None = None
        self._auth: Authenticator | None = None
        self._keys: KeyStore | None = None
        self._packed = b""  # the WELCOME, as of `_packed_at`
        self._packed_at = -math.inf
        self._closing = contextlib.ExitStack()

    def __repr__(self) -> str:
        return f"<Listening [{self.bound.address if self.bound is not None else 'closed'}]>"

    def open(self) -> Bound:
        """Open the listeners and publish the connection file.

        Raises AddressInUse, ConfigError, LaunchError.
        """
        config = self._config
        if not config.private:
            from ..security.keys import KeyStore  # here: a private host has no keys

            self._keys = KeyStore.open()
        keys = self._keys
        if keys is not None:
            hold_apart(config.file_roots, keys.path)
        auth = self._auth = Authenticator(keys, insecure=bool(config.insecure))
        path = discovery.ipc_path(config.server_id)
        lock = discovery.IpcLock(
            path, wait_s=discovery.LOCK_WAIT_S if config.parent is None else discovery.CHILD_LOCK_WAIT_S
        )
        lock.acquire()
        self._closing.callback(lock.release)
        try:
            self._open_unix(path, auth)
        except OSError as exc:  # no free descriptor, say
            raise errors.LaunchError(f"cannot listen at {path}: {exc}") from exc
        port: int | None = None
        server_key: str | None = None
        if keys is not None:
            port, server_key = self._open_router(keys, auth)
        bound = self.bound = Bound(config.server_id, config.host, port, path, server_key)
        record = discovery.ConnectionFile(
            config.server_id, config.host, port, os.getpid(), path, server_key, __version__, self._started,
            config.grace_s,
        )  # fmt: skip
        if config.parent is None:  # else its parent knows it, and it is nobody else's
            self._closing.callback(discovery.withdraw, record)
            discovery.publish(record)
            self._presence = Presence(record, lock, self.unix)
        self._clients.open(auth.role_of, self._packed_welcome)
        return bound

    def keys_told(self) -> dict[str, Any]:
        """By which keys clients may know this host from now on, and its successor, for WELCOME and GOODBYE."""
        proved = self.bound.server_key if self.bound is not None else None
        if proved is None or self._keys is None:
            return {}
        try:
            return {"server_keys": list(dict.fromkeys((proved, *self._keys.server_keys())))}
        except errors.ConfigError as exc:  # a file that was damaged meanwhile
            log.error("clients are not told of another server key: %s", exc)
            return {}

    def _packed_welcome(self) -> bytes:
        now = self._clock()
        if now - self._packed_at >= WELCOME_S and self.bound is not None:
            self._packed, self._packed_at = codec.pack(self._welcome_of(self.bound)), now
        return self._packed

    def _welcome_of(self, bound: Bound) -> dict[str, Any]:
        config = self._config
        return {
            "server_id": bound.server_id, "host": bound.host, "port": bound.port, "address": bound.address,
            "version": __version__, "minor": MINOR, "clock": clock_name(),
            "max_message_bytes": config.max_message_bytes,
            "max_structured_bytes": config.structured_limit, "max_timeout_s": config.max_timeout_seconds,
            "max_calls": config.max_calls_per_client,
            "max_open_bytes": max(config.max_message_bytes, config.max_unread_bytes), **self._welcome,
            **self.keys_told(), **({"cluster": config.cluster} if config.cluster else {}),
        }  # fmt: skip

    def _open_unix(self, path: str, auth: Authenticator) -> None:
        self.poller = new_poller()
        self._closing.callback(self.poller.close)
        self.poller.register(self._wake.fileno(), IN)
        self.unix = UnixListener(
            auth.admit, self.poller, self.limit, self._clock,
            receive=self._receive, complain=self._clients.complain, on_room=self._clients.on_room,
            refuse=self._clients.refuse_for_memory,
        )  # fmt: skip
        self._closing.callback(self.unix.close, CLOSE_LINGER_S)
        self.unix.open(path)

    def _open_router(self, keys: KeyStore, auth: Authenticator) -> tuple[int, str | None]:
        from ..wire.router_listener import RouterListener  # here: a private host has none

        pair = None if self._config.insecure else keys.server_keypair()
        self.router = RouterListener(
            self._config, auth, self.poller, self.limit, self._clock,
            receive=self._receive, on_room=self._clients.on_room, call_roll=self._clients.call_roll,
        )  # fmt: skip
        self._closing.callback(self.router.close)
        return self.router.open(pair), None if pair is None else pair.public

    def figures(self) -> dict[str, Any]:
        """What came in and went out by each door, and who was not let in, for `metrics`."""
        doors: dict[str, Listener] = {"unix": self.unix}
        if self.router is not None:
            doors["tcp"] = self.router
        return {
            "auth_failures": 0 if self._auth is None else self._auth.refused,
            "doors": {
                name: {"received_bytes": door.received_bytes, "sent_bytes": door.sent_bytes}
                for name, door in doors.items()
            },
        }  # fmt: skip

    def renew(self) -> list[Effect]:
        """Make the files again that others find the host by, if they are gone. An event of the router thread."""
        if self._presence is not None:
            self._presence.renew()
        return []

    def stop_renewing(self) -> None:
        """The end has begun: files that are gone from now on stay away. To be called while the inbox is still ours."""
        self._presence = None

    def close(self) -> None:
        """Withdraw the connection file, write what was sent, and close everything that was opened."""
        self._closing.close()
