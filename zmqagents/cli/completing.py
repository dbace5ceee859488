"""What Tab completes beside verbs and options: agents, methods, classes, tasks and hosts, as they are now.

A completion asks the host that the line means, for at most a second, and offers nothing where that does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from .where import open_client

if TYPE_CHECKING:
    from ..client.rpc import RpcClient

__all__ = ["agents", "classes", "hosts", "methods", "ports", "tasks"]

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

PATIENCE_S = 1.0


def _of_host(found: Callable[[RpcClient, click.Context], Iterable[str]]) -> Complete:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        where: dict[str, Any] = {name: ctx.params.get(name) for name in ("host", "port", "server_id")}
        try:
            with open_client(where["host"] or "localhost", where["port"], where["server_id"]) as client:
                from ..client.deadlines import deadline

                with deadline(PATIENCE_S):
                    return sorted(name for name in set(found(client, ctx)) if name.startswith(incomplete))
        except Exception:  # a line that is not finished; the shell shows nothing then
            return []

    return complete


def _methods(client: RpcClient, ctx: click.Context) -> Iterable[str]:
    proxy = client.get_agent(ctx.params["agent"])
    return [name for name in dir(proxy) if not name.startswith("_")]


agents = _of_host(lambda client, _: [row["agent_id"] for row in client.get_agent_list()])
classes = _of_host(lambda client, _: [name.rpartition(":")[2] for name in client.get_server_info()["classes"]])
methods = _of_host(_methods)
tasks = _of_host(lambda client, _: [row["task_id"] for row in client.get_call_list()])


def _records() -> Iterator[Any]:
    from .. import discovery

    yield from discovery.list_hosts()


def hosts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The ids of this user's hosts on this machine."""
    return sorted(record.server_id for record in _records() if record.server_id.startswith(incomplete))


def ports(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The ports of those that have one."""
    found = [str(record.port) for record in _records() if record.port is not None]
    return sorted(port for port in found if port.startswith(incomplete))
