"""The authenticator: which connections a host accepts, and the role that each user has.

For TCP libzmq asks it at each handshake, by the ZeroMQ Authentication Protocol (RFC 27) on an inproc socket; for the
Unix socket the listener calls `Authenticator.admit` with the peer's user number. A user id is ``key:<name>:<public
key>``, ``uid:<number>`` or ``insecure``. The role is looked up for each request, so that revoking a key works at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils import z85

from ..errors import ConfigError
from .curve import Socket
from .roles import Role

if TYPE_CHECKING:
    from .keys import KeyStore

log = logging.getLogger(__name__)


ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by RFC 27
INSECURE_USER = "insecure"


REQUESTS_PER_TURN = 64  # a flood of handshakes must leave the router thread time for its messages
REFUSAL_WINDOW_S = 60.0
REFUSAL_LINES = 20  # a minute; beyond that refusals are only counted


class Authenticator:
    """Decides which clients may connect: asked by libzmq, or by `admit`. All methods belong to the router thread.

    ``bind`` it before the ROUTER is bound, poll ``socket`` for reading beside the ROUTER, and call ``handle`` when
    it is readable. One to a context; close it after the ROUTER.

    ``keys`` None: no CURVE client is accepted. ``uids`` are the Unix users that `admit` lets in, default the own one,
    which is admin; others may call. ``insecure`` gives every client of an endpoint under `guard_insecure` the role
    call.
    """

    def __init__(self, keys: KeyStore | None, *, uids: Collection[int] | None = None, insecure: bool = False) -> None:
        self.accepted = 0
        self.refused = 0
        self._keys = keys
        self._uids = frozenset({os.geteuid()} if uids is None else uids)
        self._insecure = insecure
        self._refusals = RefusalLog()
        self._socket: Socket | None = None

    @property
    def socket(self) -> Socket:
        """The REP socket to poll. Raises ConfigError before `bind`."""
        if self._socket is None:
            raise ConfigError("the authenticator is not bound")
        return self._socket

    def bind(self, ctx: zmq.Context[Any]) -> None:
        """Become the handler of ``ctx``. Raises ConfigError if that has one already."""
        rep: Socket = ctx.socket(zmq.REP)
        rep.linger = 0
        try:
            rep.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as exc:
            rep.close()
            raise ConfigError("this ZeroMQ context has an authenticator: give each host a context of its own") from exc
        self._socket = rep

    def close(self) -> None:
        """Stop answering: from now on guarded sockets of this context let no client in. Idempotent."""
        if self._socket is not None:
            with contextlib.suppress(zmq.ZMQError):
                self._socket.unbind(ZAP_ENDPOINT)  # at once; close() alone leaves that to another thread
            self._socket.close(linger=0)
            self._socket = None

    def handle(self) -> int:
        """Answer the requests that wait, 64 at most, and return their number. Never blocks, never raises."""
        rep = self._socket
        count = 0
        while rep is not None and count < REQUESTS_PER_TURN:
            try:
                request = rep.recv_multipart(zmq.NOBLOCK)
                rep.send_multipart(self._reply(request), zmq.NOBLOCK)
            except zmq.Again:
                break
            except zmq.ZMQError as exc:  # the context is being terminated
                log.debug("authenticator: %s", exc)
                break
            count += 1
        return count

    def admit(self, uid: int | None) -> str | None:
        """The user id of a client on the Unix socket; None if ``uid`` may not connect."""
        if uid in self._uids:
            self.accepted += 1
            return f"uid:{uid}"
        self.refused += 1
        self._refusals.add(f"user {uid} on ipc", time.monotonic())
        return None

    def role_of(self, user_id: str) -> Role | None:
        """What a user (see `user_of`) may do now; None if it is unknown or was revoked since it connected."""
        kind, _, rest = user_id.partition(":")
        if kind == "uid" and rest.isdecimal() and int(rest) in self._uids:
            return "admin" if int(rest) == os.geteuid() else "call"
        if kind == "key" and self._keys is not None:
            name, _, public = rest.partition(":")
            peer = self._keys.authorized().get(public)
            return peer.role if peer is not None and peer.name == name else None
        return "call" if kind == INSECURE_USER and self._insecure else None

    def _reply(self, request: list[bytes]) -> list[bytes]:
        """RFC 27: version, request id, status code, status text, user id, metadata."""
        user, why = None, "the handler failed"
        try:
            user, why = self._decide(request)
            if user is None:
                self._refusals.add(why, time.monotonic())
        except Exception:  # whatever it is: a peer must neither get in by it nor stop the router
            user = None
            log.exception("authenticator: peer refused")
        request_id = request[1] if len(request) > 1 else b""
        if user is None:
            self.refused += 1
            return [b"1.0", request_id, b"400", b"refused", b"", b""]
        self.accepted += 1
        return [b"1.0", request_id, b"200", b"OK", user.encode(), b""]

    def _decide(self, request: list[bytes]) -> tuple[str | None, str]:
        """The user id; or None and a text that names the refused peer, the same for each of its attempts."""
        if len(request) < 6 or request[0] != b"1.0":
            return None, "a malformed request"
        domain, address, mechanism = request[2], request[3].decode("utf-8", "replace"), request[5]
        credentials = request[6:]
        match (domain, mechanism, credentials):
            case (b"za.tcp", b"CURVE", [key]) if len(key) == 32:
                public = z85.encode(key).decode()
                peer = self._keys.authorized().get(public) if self._keys is not None else None
                return (f"key:{peer.name}:{public}", "") if peer else (None, f"{address} with the unknown key {public}")
            case (b"za.insecure", b"NULL", []) if self._insecure:
                return INSECURE_USER, ""
        return None, f"{address} with mechanism {mechanism[:20]!r} in domain {domain[:20]!r}"


class RefusalLog:
    """One warning a minute for each refused peer, at most 20 a minute in all, the rest as one count.

    A refused peer may come again as often as the network lets it and with a new key each time, so both
    the lines and the memory are bounded.
    """

    def __init__(self) -> None:
        self._window_start = 0.0
        self._named: set[str] = set()
        self._unnamed = 0

    def add(self, peer: str, now: float) -> None:
        """Count a refusal of ``peer`` at ``now`` (seconds of any clock that only grows), and log it if it is to be."""
        if now - self._window_start >= REFUSAL_WINDOW_S:
            if self._unnamed:
                log.warning("%d further attempts were refused in the last minutes", self._unnamed)
            self._window_start, self._unnamed = now, 0
            self._named.clear()
        if peer in self._named or len(self._named) >= REFUSAL_LINES:
            self._unnamed += 1
            return
        self._named.add(peer)
        log.warning("connection refused: %s", peer)


def name_of(user_id: str) -> str:
    """A user id as people read it, without the key: ``key:bob``."""
    return ":".join(user_id.split(":", 2)[:2])


def user_of(frame: zmq.Frame) -> str | None:
    """The user id that the `Authenticator` gave the connection on which ``frame`` (received with ``copy=False``)
    came, None if there is none. Only to be believed on a socket whose every bind was guarded: elsewhere the peer
    itself chooses it.
    """
    try:
        return str(frame.get("User-Id")) or None
    except (zmq.ZMQError, KeyError, UnicodeDecodeError):
        return None
