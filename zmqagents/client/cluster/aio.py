"""`AsyncCluster`: `Cluster` for asyncio, the same names with ``await``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from ... import errors
from ...agents.options import Isolation, OnBusy, OnTimeout, Persist, Placing, chosen
from ...checks import DEFAULT_TIMEOUT_S
from ...cluster.naming import Reference
from ...cluster.protocol import AgentRow, EventPage, HostRow, WhereRow
from ...connection.target import Transport
from ...wire.messages import Op
from ..aio import awaited_result
from ..deadlines import UNSET, Timeout, time_left
from ..proxy import bind_awaited, checked_name, request_body
from ..result import AsyncResult
from ..rpc import IfExists, facts, rows
from .handle import PAGE, Cluster, Creation, by_name, named, page_of, virtual

__all__ = ["AsyncCluster", "AsyncClusterMaker"]


class AsyncClusterMaker:
    """Makes an agent with the options that `AsyncCluster.options` was given."""

    def __init__(self, cluster: AsyncCluster, name: str, agent_options: Mapping[str, Any], if_exists: IfExists) -> None:
        self._cluster = cluster
        self._name = name
        self._agent_options = agent_options
        self._if_exists = if_exists

    async def create_agent(self, cls_or_name: type | str, /, *args: Any, **kwargs: Any) -> Any:
        """Make the agent, whose ``__init__`` gets all the arguments."""
        more: dict[str, Any] = {"if_exists": self._if_exists, "agent_options": self._agent_options}
        return await self._cluster.make_agent(cls_or_name, args, kwargs, name=self._name, **more)


class AsyncCluster:
    """Hosts that act as one, from an asyncio program: the requests of `Cluster`, to be awaited. Parameters as there.

    For the thread of the event loop, which no method blocks. All methods of its proxies are awaited.
    """

    def __init__(
        self, hosts: str | Iterable[str], *, name: str = "", relay: bool = False, transport: Transport | None = None,
        timeout: Timeout = UNSET, types: Iterable[str] = (), plain_types: bool = False,
    ) -> None:  # fmt: skip
        self._cluster = Cluster(
            hosts, name=name, relay=relay, transport=transport, timeout=timeout, types=types, plain_types=plain_types
        )
        self._link = self._cluster.link
        self._client = self._cluster.client
        self._timeout = timeout

    async def get_name(self) -> str:
        """The cluster's name; connects to a host if it is not known yet."""
        if not self._link.name:
            await asyncio.to_thread(self._link.settle, time_left(self._timeout))
        return self._link.name

    async def get_agent(self, name: str, cls: type | str | None = None) -> Any:
        """The proxy of an agent, which always exists; see `Cluster.get_agent`."""
        agent = named(name, cls)
        cluster = await self.get_name()
        if isinstance(cls, type):
            scope = self._client.scope
            return virtual(self._link, agent, cls, self._timeout, self, scope, awaitable=True)
        told = await self._manage(Op.DESCRIBE, options={"id": str(Reference(cluster, agent))})
        return self._client.proxy_from(told, awaitable=True)

    async def create_agent(
        self, cls_or_name: Any, /, *args: Any, name: str, if_exists: IfExists = "error",
        agent_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make the agent ``name`` of a class, on some host; see `Cluster.create_agent`."""
        more: dict[str, Any] = {"if_exists": if_exists, "agent_options": agent_options}
        return await self.make_agent(cls_or_name, args, kwargs, name=name, **more)

    def options(
        self, *, name: str, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, isolation: Isolation | None = None, memory_mb: int | None = None,
        env: Mapping[str, str] | None = None, max_restarts: int | None = None, on_timeout: OnTimeout | None = None,
        persist: Persist | None = "auto", idle_s: float | None = None, placement: Placing | None = None,
        labels: Mapping[str, str] | None = None, if_exists: IfExists = "error",
    ) -> AsyncClusterMaker:  # fmt: skip
        """What `create_agent` takes beside the constructor's arguments, said apart; see `Cluster.options`."""
        given = chosen(
            max_concurrency=max_concurrency, reentrant=reentrant, on_busy=on_busy, isolation=isolation,
            memory_mb=memory_mb, env=env, max_restarts=max_restarts, on_timeout=on_timeout, persist=persist,
            idle_s=idle_s, placement=placement, labels=labels,
        )  # fmt: skip
        return AsyncClusterMaker(self, name, given, if_exists)

    async def make_agent(
        self, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str,
        if_exists: str = "error", agent_options: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """The same as `create_agent`, with the constructor's arguments apart."""
        made = Creation(await self.get_name(), cls_or_name, name, agent_options, if_exists)
        body = request_body(self._link, made.class_name.rpartition(":")[2], args, kwargs)
        told = await self._send(Op.CREATE, body, made.options, time_left(self._timeout))
        return self._client.proxy_from(told, awaitable=True, cls=made.cls)

    async def delete_agent(self, name: str, cls: type | str | None = None) -> bool:
        """Delete an agent with its state; True, also if there was none."""
        options = {"id": await self._reference(name, cls)}
        return bool(await self._manage(Op.DELETE, options=options, timeout=DEFAULT_TIMEOUT_S))

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult[Any]:
        """The result of the call ``task_id``, to be awaited. Returns at once."""
        return awaited_result(self._client, task_id, timeout)

    async def where(self, name: str, cls: type | str | None = None) -> WhereRow:
        """Where an agent is; see `Cluster.where`."""
        options = {"id": await self._reference(name, cls)}
        return cast(WhereRow, by_name(self._link, facts(await self._manage(Op.WHERE, options=options))))

    async def hosts(self) -> list[HostRow]:
        """The hosts of the cluster; see `Cluster.hosts`."""
        return cast("list[HostRow]", rows(await self._manage(Op.HOSTS)))

    async def agents(self, prefix: str = "") -> AsyncIterator[AgentRow]:
        """The agents whose names begin with ``prefix``: ``async for row in cluster.agents():``."""
        after = ""
        while True:
            asked = {"cluster": True, "prefix": prefix, "after": after, "most": PAGE}
            found, after = page_of(await self._manage(Op.LIST, options=asked))
            for row in found:
                yield cast(AgentRow, by_name(self._link, row))
            if not after:
                return

    async def events(self, after: str = "", most: int = PAGE) -> EventPage:
        """What has happened to hosts and agents behind ``after``; see `Cluster.events`."""
        found, following = page_of(await self._manage(Op.EVENTS, options={"after": after, "most": most}))
        return cast(EventPage, {"rows": found, "following": following})

    async def move(self, name: str, to: str = "", cls: type | str | None = None) -> WhereRow:
        """Move an agent to another host; see `Cluster.move`."""
        options = {"id": await self._reference(name, cls), "to": to}
        told = facts(await self._manage(Op.MOVE, options=options, timeout=DEFAULT_TIMEOUT_S))
        return cast(WhereRow, by_name(self._link, told))

    async def close(self) -> None:
        """Give up the connections; calls that are open fail with HostLost."""
        await asyncio.to_thread(self._cluster.close)  # it joins the threads of the connections

    async def __aenter__(self) -> AsyncCluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncCluster {self._link.address}>"

    async def _reference(self, name: str, cls: type | str | None) -> str:
        return checked_name(str(Reference(await self.get_name(), named(name, cls))), errors.UnknownAgent)

    async def _manage(self, op: str, *, options: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        await self.get_name()
        left = time_left(self._link.management_timeout_s if timeout is None else timeout)
        return await self._send(op, request_body(self._link, op, (), {}), options, left)

    async def _send(self, op: str, body: Any, options: dict[str, Any] | None, timeout: float | None) -> Any:
        return await AsyncResult(
            self._link, op, bind_awaited, body, method=op, options=options, timeout=timeout, scope=self._client.scope
        )
