"""Listen, and serve until a signal ends it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import uvicorn

from .. import errors
from .app import build
from .watcher import Watcher

__all__ = ["serve"]

STOP_S = 2  # how long requests may go on after the signal


def serve(watcher: Watcher, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve at an address of this machine until SIGINT or SIGTERM; ``ready`` gets the port. Raises AddressInUse,
    LaunchError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise errors.AddressInUse(f"port {port} is in use: choose another port (0: any free one)") from exc
        raise errors.LaunchError(f"cannot listen at {host}, port {port}: {exc.strerror}") from exc
    config = uvicorn.Config(
        build(watcher), log_config=None, access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=STOP_S, log_level="warning",
    )  # fmt: skip
    with sock:
        ready(sock.getsockname()[1])
        uvicorn.Server(config).run(sockets=[sock])
    watcher.close()
