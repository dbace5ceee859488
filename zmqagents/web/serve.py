"""Listen, and serve until a signal ends it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

import uvicorn

from .. import errors
from .app import Parts, build
from .gateway.gateway import Gateway
from .running import Running, published

__all__ = ["Place", "serve"]

BACKLOG = 2048  # connections that wait to be accepted
OWN = ("127.0.0.1", "localhost", "::1")
ANY = ("0.0.0.0", "::")
NAME = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
STOP_S = 1  # how long requests may go on after the signal, the streams of open pages above all


class Place(NamedTuple):
    """Where to listen, and for whom. ``names``: of this service, beside those of this machine.

    A place is open if others than this machine may come; then they do so by TLS, which this process has, or a proxy in
    front of it.
    """

    host: str
    port: int
    names: tuple[str, ...] = ()
    certificate: str | None = None
    key: str | None = None
    behind_proxy: bool = False

    @property
    def is_open(self) -> bool:
        """Whether others than this machine may come."""
        return self.behind_proxy or self.host not in OWN

    @property
    def mistake(self) -> str:
        """What is wrong with it, "" for nothing."""
        if self.is_open and not (self.behind_proxy or self.certificate):
            return (
                f"--listen {self.host}: others than this machine are served by TLS alone: give --certificate and "
                "--certificate-key, or --behind-proxy if a proxy has the TLS"
            )
        if (self.certificate is None) != (self.key is None):
            return "--certificate and --certificate-key go together"
        if self.names and not self.is_open:
            return f"--host-name is for others than this machine, and {self.host} is this machine alone"
        if self.is_open and not self.own_names:
            return "--host-name: say under which name others ask for the page"
        odd = next((name for name in self.names if not NAME.fullmatch(name)), None)
        return f"--host-name {odd!r}: a name alone, such as agents.example" if odd is not None else ""

    @property
    def own_names(self) -> tuple[str, ...]:
        """Under which others may ask for it: those that were given, and the address if that is one."""
        address = f"[{self.host}]" if ":" in self.host else self.host
        given = tuple(name.lower() for name in self.names)
        return given if self.host in (*OWN, *ANY) else (*given, address.lower())

    def url(self, bound: int) -> str:
        """The address of the page, at the port ``bound``."""
        if self.behind_proxy:
            return f"https://{self.own_names[0]}"
        name = self.own_names[0] if self.own_names else f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{name}:{bound}"


def serve(
    parts: Parts, place: Place, ready: Callable[[Running], None], *, parent: int | None = None,
    gateway: Gateway | None = None,
) -> None:  # fmt: skip
    """Serve at ``place`` until SIGINT or SIGTERM; ``ready`` is told where. Raises AddressInUse, LaunchError.

    ``parent``: a descriptor whose end of file ends it as well.
    """
    with contextlib.closing(parts.house):
        _serve(parts, place, ready, parent, gateway)


def _serve(
    parts: Parts, place: Place, ready: Callable[[Running], None], parent: int | None, gateway: Gateway | None
) -> None:
    sock = _listening(place.host, place.port)
    bound = sock.getsockname()[1]
    config = uvicorn.Config(
        build(parts, bound, gateway, names=place.own_names, is_open=place.is_open),
        ssl_certfile=place.certificate, ssl_keyfile=place.key, log_config=None, access_log=False, lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=STOP_S, log_level="warning",
    )  # fmt: skip
    try:
        config.load()
    except OSError as exc:  # of ssl as well
        sock.close()
        raise errors.LaunchError(f"--certificate {place.certificate}, --certificate-key {place.key}: {exc}") from exc
    links = parts.access.links
    running = Running(os.getpid(), place.url(bound), parts.house.name, links["admin"], links["view"], bound)
    server = uvicorn.Server(config)
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent, server), name="zmqagents-parent", daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it once more, after the end
    with sock, published(running):
        ready(running)
        server.run(sockets=[sock])


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
