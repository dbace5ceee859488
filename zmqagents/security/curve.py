"""The options that make a ZeroMQ socket a CURVE server or client.

A *guard* sets the options of the next bind. Every guarded bind has a ZAP domain, by which the `zap.Authenticator`
knows what the endpoint is for; without an authenticator libzmq then refuses every connection.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import zmq

from ..errors import ConfigError

if TYPE_CHECKING:
    from .keys import KeyPair

Socket = zmq.Socket[bytes]

DOMAIN_TCP = b"za.tcp"
DOMAIN_INSECURE = b"za.insecure"


def guard_tcp(socket: Socket, keys: KeyPair) -> None:
    """Make the next bind of ``socket`` a CURVE server with the host's ``keys``, for authorised clients."""
    _guard(socket, DOMAIN_TCP)
    socket.curve_secretkey = keys.secret.encode()
    socket.curve_server = True


def guard_insecure(socket: Socket) -> None:
    """Make the next bind of ``socket`` a plain endpoint: open to all clients if the `Authenticator` was told so, else
    to none. The caller refuses addresses other than loopback.
    """
    _guard(socket, DOMAIN_INSECURE)


def _guard(socket: Socket, domain: bytes) -> None:
    socket.curve_server = False  # what an earlier guard may have set; mechanism NULL again
    socket.zap_domain = domain
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it a missing handler lets every client in


def client_curve(socket: Socket, keys: KeyPair, server_key: str) -> None:
    """Make the next connect of ``socket`` a CURVE client with ``keys`` that accepts only the host that has
    ``server_key`` (public, Z85). A refusal shows on its monitor: HANDSHAKE_FAILED_AUTH for our key,
    HANDSHAKE_FAILED_NO_DETAIL or DISCONNECTED for a wrong ``server_key``. Raises ConfigError for a key that is none.
    """
    try:
        socket.curve_serverkey = server_key.encode()
        socket.curve_publickey = keys.public.encode()
        socket.curve_secretkey = keys.secret.encode()
    except (zmq.ZMQError, ValueError) as exc:
        raise ConfigError("a CURVE key is 40 characters of Z85 text") from exc


def seed_routing_ids() -> None:
    """Make the routing ids of ROUTERs made from now on hard to guess; to be called once, before the first one.

    libzmq counts them up from two calls of libc's ``rand()``, which without a seed gives the same start in every
    process. A peer that claims the id that the next connection will get makes libzmq abort. With a random seed that
    needs luck in 2**32. Where there is no such libc nothing happens.
    """
    import ctypes  # here, for a client has no ROUTER

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).srand(ctypes.c_uint(int.from_bytes(os.urandom(4), "little")))
