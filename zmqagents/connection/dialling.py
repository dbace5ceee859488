"""An attempt to connect, for what drives a `Session`: a thread of its own (`Channel`), or a host's router thread."""

from __future__ import annotations

import time

from .. import errors
from ..wire.dealer import DealerTransport
from ..wire.transport import Transport, TransportError
from ..wire.unix import CONNECT_S, UnixTransport
from .host_keys import HostKeys
from .session import Session
from .target import Target

__all__ = ["dial"]


def dial(session: Session, target: Target, host_keys: HostKeys, connect_s: float = CONNECT_S) -> Transport | None:
    """Begin to connect to where ``target`` is now; None if that has failed, which ``session`` knows then.

    ``connect_s``: see `UnixTransport`.
    """
    session.connect(time.monotonic())
    try:
        endpoint, known = target.resolve()
        session.dial(endpoint)
        keys, server_key = target.keys() if known else None, host_keys.choose(known)
        path = endpoint.removeprefix("ipc://")
        return UnixTransport(path, connect_s) if path != endpoint else DealerTransport(endpoint, keys, server_key)
    except errors.ZmqAgentsError as exc:
        session.no_way(exc, time.monotonic())
    except (OSError, ValueError, TransportError) as exc:  # an impossible address, or no descriptor left
        session.lost(str(exc), errors.HostUnreachable, time.monotonic())
    return None
