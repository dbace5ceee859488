"""Listen, and serve until a signal ends it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable

import uvicorn

from .. import errors
from .app import Parts, build
from .gateway.gateway import Gateway
from .running import Running, published

__all__ = ["serve"]

BACKLOG = 2048  # connections that wait to be accepted
STOP_S = 1  # how long requests may go on after the signal, the streams of open pages above all


def serve(
    parts: Parts, host: str, port: int, ready: Callable[[Running], None], *, parent: int | None = None,
    gateway: Gateway | None = None,
) -> None:  # fmt: skip
    """Serve at an address of this machine until SIGINT or SIGTERM; ``ready`` is told where. Raises AddressInUse,
    LaunchError. ``parent``: a descriptor whose end of file ends it as well.
    """
    sock = _listening(host, port)
    bound = sock.getsockname()[1]
    config = uvicorn.Config(
        build(parts, bound, gateway), log_config=None, access_log=False, lifespan="on", server_header=False,
        timeout_graceful_shutdown=STOP_S, log_level="warning",
    )  # fmt: skip
    url = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
    links = parts.access.links
    running = Running(os.getpid(), url, parts.watcher.name, links["admin"], links["view"])
    server = uvicorn.Server(config)
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, server), name="zmqagents-parent", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more, after the end
    try:
        with sock, published(running):
            ready(running)
            server.run(sockets=[sock])
    finally:
        parts.watcher.close()
        parts.doors.close()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. asyncio sends small answers at once (TCP_NODELAY) where a socket names its protocol: those
    of `socket.create_server` do not, and each answer would wait 40 ms for the acknowledgement of its head.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        return sock
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise errors.AddressInUse(f"port {port} is in use: choose another port (0: any free one)") from exc
        raise errors.LaunchError(f"cannot listen at {host}, port {port}: {exc.strerror}") from exc


def _end_with(parent: int, server: uvicorn.Server) -> None:
    while os.read(parent, 64):
        pass
    server.should_exit = True
