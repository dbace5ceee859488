"""TCP endpoints of hosts by name or address: IPv4 where a host has it, IPv6 where it has nothing else.

An IPv6 address may be written with brackets or without. libzmq is told of IPv6 for those endpoints only: asked for a
name that has addresses of both families it would take the IPv6 one, where a host of ``local_mode`` does not listen.
"""

from __future__ import annotations

import ipaddress
import socket

from ..errors import ConfigError


def is_ipv6(endpoint: str) -> bool:
    """Whether an endpoint of `endpoint_of` needs IPv6."""
    return endpoint.startswith("tcp://[")


def endpoint_of(host: str, port: int) -> str:
    """``tcp://host:port``; with the address in brackets for a host that only IPv6 reaches. May ask the resolver."""
    address = ipv6_address_of(host)
    return f"tcp://{host if address is None else f'[{address}]'}:{port}"


def interface_of(host: str, local_mode: bool) -> str:
    """Where the host ``host`` listens: all interfaces or loopback, of IPv6 only if no IPv4 address leads here.

    ConfigError: there is no such name.
    """
    try:
        needs_ipv6 = _find(host) is not None
    except socket.gaierror as exc:
        if exc.errno != socket.EAI_AGAIN:  # with that the resolver is out of order, which is no fault of the settings
            raise ConfigError(
                f"host {host!r} does not resolve: give a name or an address by which clients reach this machine"
            ) from exc
        needs_ipv6 = False
    if needs_ipv6:
        return "[::1]" if local_mode else "[::]"
    return "127.0.0.1" if local_mode else "*"


def ipv6_address_of(host: str) -> str | None:
    """The IPv6 address of a host that has no IPv4 address; None for any other, also for an unknown name."""
    try:
        return _find(host)
    except OSError:
        return None


def _find(host: str) -> str | None:
    """The same, but an unknown name raises `socket.gaierror`. No lookup for ``localhost`` and for addresses."""
    name = host.strip("[]")
    if name == "localhost":
        return None
    try:
        return name if ipaddress.ip_address(name).version == 6 else None
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except UnicodeError as exc:  # a label that is too long, say
        raise socket.gaierror(socket.EAI_NONAME, str(exc)) from exc
    if any(family == socket.AF_INET for family, *_ in found):
        return None
    return next((str(address[0]) for family, *_, address in found if family == socket.AF_INET6), None)
