"""Which host is meant: that of an id, that at an address, or the one that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from .. import errors
from ..checks import check_host
from ..config import DEFAULT_TIMEOUT_S

if TYPE_CHECKING:
    from ..client.rpc import RpcClient
    from ..discovery import ConnectionFile
    from ..security.roles import ActsFor

__all__ = ["locate", "open_client"]


def locate(host: str, port: int | None, server_id: str | None) -> ConnectionFile | None:
    """The live host of this user on this machine that is meant, None if there is none such.

    Raises UsageError when several could be meant. Private hosts, which belong to a program, are meant only by id.
    """
    from .. import discovery
    from ..security import private

    if server_id:
        found = [r for r in discovery.list_hosts() if r.server_id == server_id and (not port or r.port == port)]
        return found[0] if found else None
    if port:
        return discovery.find_host(host, port)
    check_host(host)
    found = discovery.hosts_at(host)
    if len(found) > 1:
        names = ", ".join(f"{r.server_id} at {r.host}:{r.port}" for r in found)
        raise click.UsageError(f"{len(found)} hosts are running: {names}; say which with --port or --server-id")
    if not found and not private.is_this_machine(host):
        raise click.UsageError(f"a host on {host} needs its --port")
    return found[0] if found else None


def open_client(
    host: str, port: int | None, server_id: str | None, *, timeout: float | None = DEFAULT_TIMEOUT_S,
    types: Sequence[str] = (), plain_types: bool = True, acts_for: ActsFor | None = None,
) -> RpcClient:  # fmt: skip
    """A client of the host that is meant; HostUnreachable if no address is known. Connects with its first request.

    ``acts_for``: see `connection.target.Target`.
    """
    from ..client.rpc import RpcClient
    from ..connection.connection import connect
    from ..connection.target import Target

    given: dict[str, Any] = {"timeout": timeout, "types": types, "plain_types": plain_types}
    if port and not server_id:
        return RpcClient(link=connect(Target(host, port, acts_for=acts_for)), **given)
    found = locate(host, port, server_id)
    if found is None:
        which = f"no host {server_id!r} of yours" if server_id else "no host of yours"
        raise errors.HostUnreachable(f"{which} is running on this machine; as_server start runs one")
    if found.port is None:
        return RpcClient(link=connect(Target("", None, ipc=found.ipc, acts_for=acts_for)), **given)
    return RpcClient(link=connect(Target(found.host, found.port, acts_for=acts_for)), **given)
