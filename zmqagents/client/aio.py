"""`AsyncRpcClient`: `RpcClient` for asyncio, the same names with ``await``.

There is no second client core: requests go through the same connection, and results enter the event loop in
batches (`result`). Nothing here blocks the loop. Methods of the proxies made here are all awaited, also those that
give a plain value; streams are read with ``async for``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from .. import errors
from ..agents.options import Isolation, Lifetime, OnBusy, OnTimeout, Persist, chosen
from ..checks import DEFAULT_TIMEOUT_S
from ..connection.target import Transport
from ..tracing import switch
from ..wire.link import Link
from ..wire.messages import Op
from .deadlines import UNSET, Timeout, Unset, time_left
from .download import Incoming, Progress
from .proxy import AgentProxy, bind_awaited, checked_name, request_body
from .result import AsyncResult
from .rpc import (
    IfExists,
    RpcClient,
    check_if_exists,
    creation,
    facts,
    if_exists_of,
    maker_of,
    next_page,
    rows,
    split_names,
)

__all__ = ["AsyncRpcClient", "awaited_result"]


T = TypeVar("T")


async def _to_its_end(function: Callable[..., T], *args: Any) -> T:
    """Run it in a thread, which has ended when this returns, also when this is cancelled."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def awaited_result(client: RpcClient, task_id: str, timeout: float | None) -> AsyncResult[Any]:
    """What `RpcClient.get_result` gives, to be awaited."""
    checked_name(task_id, errors.UnknownTask)
    return AsyncResult(
        client.link, task_id, bind_awaited, None, task_id=task_id, timeout=timeout, client=client, scope=client.scope,
        span=switch.fetch(task_id, client.address),
    )  # fmt: skip


class AsyncAgentMaker:
    """Makes agents with the options that `AsyncRpcClient.options` was given."""

    def __init__(
        self, client: AsyncRpcClient, agent_id: str | None, agent_options: Mapping[str, Any], timeout: Timeout,
        if_exists: IfExists = "error",
    ) -> None:  # fmt: skip
        self._client = client
        self._if_exists = if_exists
        self._agent_id = agent_id
        self._agent_options = agent_options
        self._timeout = timeout

    async def create_agent(self, cls_or_name: type | str, /, *args: Any, **kwargs: Any) -> Any:
        """Make an agent of ``cls_or_name``, whose ``__init__`` gets all the arguments."""
        return await self._client.make_or_get(
            self._if_exists, cls_or_name, args, kwargs, agent_id=self._agent_id, agent_options=self._agent_options,
            timeout=self._timeout,
        )  # fmt: skip


class AsyncRpcClient:
    """A host, from an asyncio program: the requests of `RpcClient`, to be awaited. Parameters as there.

    For the thread of the event loop, which no method blocks. A request raises CallTimeout when the host does not answer
    in time, HostUnreachable when nothing listens, AuthenticationError for a refused key, PermissionRefused where the
    user's role does not suffice. ConfigError for parameters that no host can have.
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, *, transport: Transport | None = None,
        timeout: Timeout = UNSET, link: Link | None = None, types: Iterable[str] = (), plain_types: bool = False,
    ) -> None:  # fmt: skip
        self._client = RpcClient(
            host, port, transport=transport, timeout=timeout, link=link, types=types, plain_types=plain_types
        )
        self._link = self._client.link
        self._timeout = timeout

    @property
    def address(self) -> str:
        """``host:port``, or ``ipc:/path`` of a private host."""
        return self._client.address

    async def create_agent(
        self, cls_or_name: type | Callable[..., Any] | str, /, *args: Any, agent_id: str | None = None,
        agent_options: Mapping[str, Any] | None = None, if_exists: IfExists | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make an agent on the host; returns its proxy, all of whose methods are awaited.

        Arguments and errors as in `RpcClient.create_agent`. ``docs/typing.rst`` says how it gets a type.
        """
        maker = maker_of(cls_or_name)
        if_exists = if_exists_of(maker, kwargs, if_exists)
        given = split_names(maker, kwargs, agent_id=agent_id, agent_options=agent_options)
        return await self.make_or_get(if_exists, maker, args, kwargs, **given)

    async def make_or_get(
        self, if_exists: IfExists, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
        agent_id: str | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """`make_agent`, but with ``if_exists="get"`` the agent of this id is taken if there is one."""
        check_if_exists(if_exists, agent_id)
        while True:
            try:
                return await self.make_agent(cls_or_name, args, kwargs, agent_id=agent_id, **given)
            except errors.AgentExists:
                if if_exists == "error" or agent_id is None:
                    raise
            with contextlib.suppress(errors.UnknownAgent):  # deleted meanwhile: it is made after all
                return await self.get_agent(agent_id)

    async def make_agent(
        self, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
        agent_id: str | None = None, agent_options: Mapping[str, Any] | None = None, either: Collection[str] = (),
        timeout: Timeout = UNSET,
    ) -> AgentProxy:  # fmt: skip
        """The same as `create_agent`, with the constructor's arguments apart; see `RpcClient.make_agent`."""
        timeout = self._timeout if isinstance(timeout, Unset) else timeout
        await self._settle()
        maker = maker_of(cls_or_name)
        name, options = creation(maker, agent_id, agent_options, either)
        cls = maker if isinstance(maker, type) else None
        try:
            return self._proxy(await self._create(name, args, kwargs, options, timeout), cls, timeout)
        except errors.UnknownClass:
            if isinstance(maker, str) or not self._link.takes_pickles:
                raise
        await self._manage(Op.REGISTER, maker)
        return self._proxy(await self._create(name, args, kwargs, options, timeout), cls, timeout)

    def options(
        self, *, agent_id: str | None = None, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, isolation: Isolation | None = None, memory_mb: int | None = None,
        env: Mapping[str, str] | None = None, max_restarts: int | None = None, on_timeout: OnTimeout | None = None,
        persist: Persist | None = "auto", lifetime: Lifetime | None = None, idle_s: float | None = None,
        timeout: Timeout = UNSET, if_exists: IfExists = "error",
    ) -> AsyncAgentMaker:  # fmt: skip
        """What `create_agent` takes beside the constructor's arguments, said apart; see `RpcClient.options`."""
        check_if_exists(if_exists, agent_id)
        given = chosen(
            max_concurrency=max_concurrency, reentrant=reentrant, on_busy=on_busy, isolation=isolation,
            memory_mb=memory_mb, env=env, max_restarts=max_restarts, on_timeout=on_timeout, persist=persist,
            lifetime=lifetime, idle_s=idle_s,
        )  # fmt: skip
        return AsyncAgentMaker(self, agent_id, given, timeout, if_exists)

    async def get_agent(self, agent_id: str, cls: type | None = None) -> Any:
        """The proxy of the agent with this id. UnknownAgent: the host has none of that id.

        ``cls``: the class of the agent, for the classes that its annotations name.
        """
        checked_name(agent_id, errors.UnknownAgent)
        return self._proxy(await self._manage(Op.DESCRIBE, options={"id": agent_id}), cls)

    async def delete_agent(self, agent_id: str) -> bool:
        """Delete an agent; returns True. See `RpcClient.delete_agent`. UnknownAgent: the host has none of that id."""
        checked_name(agent_id, errors.UnknownAgent)
        return bool(await self._manage(Op.DELETE, options={"id": agent_id}, timeout=DEFAULT_TIMEOUT_S))

    async def delete_all_agent(self) -> bool:
        """Delete every agent of the host; returns True. Needs the role admin."""
        return bool(await self._manage(Op.DELETE_ALL, timeout=DEFAULT_TIMEOUT_S))

    async def get_agent_list(self) -> list[dict[str, Any]]:
        """The host's agents, one dict for each: agent_id, class, type, calls, running, queued, age_s, child."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = facts(await self._manage(Op.LIST, options={"after": after}))
            found += rows(page.get("agents"))
            after = next_page(page, after)
        return found

    async def get_agent_memory(self, agent_id: str) -> Any:
        """What the agent remembers; see `RpcClient.get_agent_memory`. UnknownAgent: the host has none of that id."""
        checked_name(agent_id, errors.UnknownAgent)
        return await self._manage(Op.MEMORY, options={"id": agent_id}, timeout=DEFAULT_TIMEOUT_S)

    async def is_alive(self) -> bool:
        """True if the host answers within its management timeout. A refused key raises AuthenticationError."""
        try:
            await self._manage(Op.INFO)
        except errors.AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            return False
        return True

    async def stop(self, grace_s: float | None = None) -> bool:
        """Ask the host to drain and end; returns True when the host has agreed. Needs the role admin.

        ``grace_s``: for how many seconds its calls may go on (None: as long as the host's setting says).
        """
        return bool(await self._manage(Op.STOP, options={} if grace_s is None else {"grace_s": grace_s}))

    async def get_server_info(self) -> dict[str, Any]:
        """The state of the host as one dict: server_id, pid, port, capacity, counts, store, settings."""
        return facts(await self._manage(Op.INFO))

    async def get_metrics(self) -> dict[str, Any]:
        """All figures of the host, as plain numbers; `zmqagents.telemetry.metrics.samples` gives them their names."""
        return facts(await self._manage(Op.METRICS))

    async def get_health(self, timeout: float = 1.0) -> dict[str, Any]:
        """Whether the host is ready, by a call that does nothing but take the way of all calls through it.

        A dict: server_id, ready, and reasons, a list of texts. Raises CallTimeout where dispatch or the store is stuck,
        HostStopping while the host drains.
        """
        return facts(await self._manage(Op.HEALTH, timeout=timeout))

    async def get_log(self, after: int = 0, agent: str | None = None) -> dict[str, Any]:
        """A page of the latest log lines of the host, of one agent or of all. Needs the role admin or view.

        A dict: lines (each a dict), next (the ``after`` of the next page), more (there are further ones now), left_out
        (how many behind ``after`` are kept no more). ``after`` below 0: the last ``-after`` lines. Raises ConfigError
        for a host that was not started by ``as_server``.
        """
        options = {"after": after} | ({} if agent is None else {"agent": agent})
        return facts(await self._manage(Op.LOGS, options=options))

    async def get_call_list(self) -> list[dict[str, Any]]:
        """The calls that are not answered yet, as dicts: task_id, agent, method, state, age_s, waits_for, note ...

        ``child``: the pid of the process that runs it, None: the host itself. ``progress``: done, total and text, as
        `CallContext.progress` was given them last; None: nothing was told. ``trace_id``: None if not traced.
        """
        return rows(await self._manage(Op.CALLS))

    async def cancel(self, task_id: str) -> bool:
        """Cancel the call ``task_id`` and the calls that it has made; False if the host has no such open call."""
        return bool(await self._manage(Op.CANCEL, options={"id": checked_name(task_id, errors.UnknownTask)}))

    async def get_result_list(self, most: int = 1000) -> list[dict[str, Any]]:
        """The unfinished calls and the ``most`` latest results, one dict for each; see `RpcClient.get_result_list`."""
        return rows(await self._manage(Op.RESULTS, options={"most": most}))

    async def get_child_list(self) -> list[dict[str, Any]]:
        """The processes that run agents of the host; see `RpcClient.get_child_list`."""
        return rows(await self._manage(Op.CHILDREN))

    async def restart_child(self, agent_id: str) -> bool:
        """End the process of an agent and start it again; see `RpcClient.restart_child`."""
        return bool(await self._manage(Op.RESTART, options={"id": checked_name(agent_id, errors.UnknownAgent)}))

    async def dump(self) -> list[dict[str, Any]]:
        """The open calls, one dict for each, with the stack of their code. Needs the role admin or view."""
        return rows(await self._manage(Op.DUMP))

    async def set_model_configs(self, configs: Mapping[str, Any] | list[Mapping[str, Any]]) -> bool:
        """Give the host model configurations; returns True. See `RpcClient.set_model_configs`."""
        given = dict(configs) if isinstance(configs, Mapping) else [dict(config) for config in configs]
        return bool(await self._manage(Op.MODELS, given))

    async def download_file(
        self, remote_path: str | os.PathLike[str], local_path: str | os.PathLike[str],
        progress: Progress | None = None, *, timeout: Timeout = UNSET,
    ) -> int:  # fmt: skip
        """Copy a file of the host; returns its size in bytes. See `RpcClient.download_file`.

        ``progress`` is called in the event loop's thread; the local file is written in other threads.
        """
        with Incoming(local_path, progress) as file, self._client.open_download(remote_path, timeout) as stream:
            async for item in stream:
                await _to_its_end(file.take, item)
                file.report()
            return await _to_its_end(file.finish)

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult[Any]:
        """The result of the call ``task_id``, to be awaited. Returns at once; see `RpcClient.get_result`."""
        return awaited_result(self._client, task_id, timeout)

    async def close(self) -> None:
        """Give up the connection; the last client of this process to the host closes it."""
        await asyncio.to_thread(self._client.close)  # it joins the I/O thread

    async def __aenter__(self) -> AsyncRpcClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncRpcClient {self.address}>"

    async def _settle(self) -> None:
        """Connect, in a thread: whether the host takes pickles decides how arguments are encoded."""
        if not self._link.server_id:
            await asyncio.to_thread(self._link.settle, time_left(self._timeout))

    async def _create(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], timeout: Timeout
    ) -> Any:
        if self._link.takes_pickles:  # a class that it does not know by its name is sent
            options.pop("origin", None)
        body = request_body(self._link, name.rpartition(":")[2], args, kwargs)
        return await self._send(Op.CREATE, body, options, time_left(timeout))

    async def _manage(
        self, op: str, *args: Any, options: dict[str, Any] | None = None, timeout: float | None = None
    ) -> Any:
        left = time_left(self._link.management_timeout_s if timeout is None else timeout)
        return await self._send(op, request_body(self._link, op, args, {}), options, left)

    async def _send(self, op: str, body: Any, options: dict[str, Any] | None, timeout: float | None) -> Any:
        scope = self._client.scope
        with switch.request(op, self._link.address, options) as options:
            return await AsyncResult(
                self._link, op, bind_awaited, body, method=op, options=options, timeout=timeout, scope=scope
            )

    def _proxy(self, description: Any, cls: type | None = None, timeout: Timeout = UNSET) -> AgentProxy:
        return self._client.proxy_from(description, awaitable=True, cls=cls, timeout=timeout)
