"""`Cluster`: hosts that act as one, from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar, cast, overload

from ... import codec, errors
from ...agents.factories.factory import Factory
from ...agents.options import Isolation, OnBusy, OnTimeout, Persist, Placing, chosen
from ...agents.spec import spec_of
from ...checks import DEFAULT_TIMEOUT_S, check_cluster_name
from ...cluster.naming import AgentName, Reference, agent_name, parse_name
from ...cluster.protocol import AgentRow, EventPage, HostRow, WhereRow
from ...connection.target import Transport, check_transport
from ...wire.messages import Op
from ..deadlines import UNSET, Timeout, time_left
from ..proxy import AgentProxy, checked_name, request_body, value_of
from ..result import AsyncResult
from ..rpc import IfExists, RpcClient, creation, facts, maker_of, rows
from .link import ClusterLink
from .seeds import Seeds, parse_hosts

__all__ = ["Cluster", "ClusterMaker", "Creation", "by_name", "named", "page_of", "virtual"]

T = TypeVar("T")
P = ParamSpec("P")
PAGE = 1000  # agents that are asked for at once


def named(name: object, cls: type | str | None) -> AgentName:
    """The agent that a user means: ``ann`` of the class ``cls``, or ``Account/ann``. Raises ConfigError."""
    if not isinstance(name, str):
        raise errors.ConfigError(f"the name of an agent is a text, not {name!r}")
    if cls is None:
        return parse_name(name)
    short = cls.rpartition(":")[2].rpartition(".")[2] if isinstance(cls, str) else spec_of(cls).short
    return agent_name(short, name.removeprefix(f"{short}/"))


def virtual(
    link: ClusterLink, agent: AgentName, cls: type, timeout: Timeout, client: object, scope: codec.Scope, *,
    awaitable: bool = False,
) -> AgentProxy:  # fmt: skip
    """The proxy of an agent whose class is known here: nobody is asked."""
    spec = spec_of(cls)
    methods = {name: [method.mark, method.signature, method.doc] for name, method in spec.methods.items()}
    return AgentProxy(
        link, str(Reference(link.name, agent)), spec.name, spec.doc, methods, timeout=timeout, server_id=link.server_id,
        awaitable=awaitable, client=client, scope=scope, cls=cls,
    )  # fmt: skip


class Creation:
    """What `create_agent` asks for: the name, the options of the request, and the class if this process has it."""

    def __init__(
        self, cluster: str, cls_or_name: Any, name: object, agent_options: Mapping[str, Any] | None, if_exists: str
    ) -> None:
        if if_exists not in ("error", "get"):
            raise errors.ConfigError(f"if_exists must be 'error' or 'get', not {if_exists!r}")
        maker = maker_of(cls_or_name)
        if isinstance(maker, Factory):
            raise errors.ConfigError("an agent of a cluster is made of a class, so that any host can make it again")
        self.cls = maker if isinstance(maker, type) else None
        agent = named(name, maker)
        self.class_name, self.options = creation(maker, None, agent_options)
        self.options |= {"id": str(Reference(check_cluster_name(cluster), agent)), "if_exists": if_exists}


def by_name(link: ClusterLink, row: dict[str, Any]) -> dict[str, Any]:
    """A row whose agent is named as users name it, Class/key; hosts tell references."""
    return {**row, "agent": str(row.get("agent", "")).removeprefix(f"{link.server_id}/")}


def page_of(value: Any) -> tuple[list[dict[str, Any]], str]:
    """The rows of a page, and where the next one begins, "" at the end."""
    page = facts(value)
    following = page.get("following", "")
    if not isinstance(following, str):
        raise errors.RemoteProtocolError("a host has answered with a page that leads nowhere")
    return rows(page.get("rows")), following


class ClusterMaker:
    """Makes an agent with the options that `Cluster.options` was given. Any thread."""

    def __init__(self, cluster: Cluster, name: str, agent_options: Mapping[str, Any], if_exists: IfExists) -> None:
        self._cluster = cluster
        self._name = name
        self._agent_options = agent_options
        self._if_exists = if_exists

    @overload
    def create_agent(self, cls: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def create_agent(self, cls: str, /, *args: Any, **kwargs: Any) -> Any: ...
    def create_agent(self, cls_or_name: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Make the agent, whose ``__init__`` gets all the arguments; else as `Cluster.create_agent` does."""
        more: dict[str, Any] = {"if_exists": self._if_exists, "agent_options": self._agent_options}
        return self._cluster.make_agent(cls_or_name, args, kwargs, name=self._name, **more)

    def __repr__(self) -> str:
        return f"<ClusterMaker of {self._cluster!r}: name={self._name!r}, {', '.join(self._agent_options)}>"


class Cluster:
    """Hosts that act as one, from outside. Any thread may use it.

    ``hosts``: some of them, ``"a:12010, b:12010"`` or a list of such texts; a name may have several addresses. One that
    can be reached is enough, and others are tried when it goes. ``name``: the cluster's, which otherwise the first host
    that is reached tells. ``relay``: for programs that reach only these addresses; all calls go through them then,
    instead of straight to the host that has the agent. ``transport``, ``timeout``, ``types`` and ``plain_types`` are
    those of `RpcClient`.

    A reference to an agent of a cluster names the cluster, and is used through the `Cluster` of that name that is open
    in the program; without one, using it raises UnknownCluster. Errors of requests are those of calls.
    """

    def __init__(
        self, hosts: str | Iterable[str], *, name: str = "", relay: bool = False, transport: Transport | None = None,
        timeout: Timeout = UNSET, types: Iterable[str] = (), plain_types: bool = False,
    ) -> None:  # fmt: skip
        check_transport(transport)
        if name:
            check_cluster_name(name)
        self._link = ClusterLink(Seeds(parse_hosts(hosts)), name=name, transport=transport, relay=relay)
        self._client = RpcClient(link=self._link, timeout=timeout, types=types, plain_types=plain_types)
        self._timeout = timeout

    @property
    def name(self) -> str:
        """The cluster's name; connects to a host if it is not known yet."""
        self._link.settle(time_left(self._timeout))
        return self._link.name

    @property
    def link(self) -> ClusterLink:
        """What carries the requests; for code of this package and its tools."""
        return self._link

    @property
    def client(self) -> RpcClient:
        """What makes proxies of descriptions; for code of this package."""
        return self._client

    # ------------------------------------------------------------ agents

    @overload
    def get_agent(self, name: str, cls: type[T]) -> T: ...
    @overload
    def get_agent(self, name: str, cls: str | None = None) -> Any: ...
    def get_agent(self, name: str, cls: Any = None) -> Any:
        """The proxy of an agent, which always exists: its first call makes it, on some host, without arguments.

        ``get_agent("ann", cls=Account)`` is the agent ``Account/ann``. With a class no host is asked; with its name, or
        with the whole name of the agent alone, a host tells the methods. Raises ConfigError for what is no name.
        """
        agent = named(name, cls)
        cluster = self._known_name()
        if isinstance(cls, type):
            return virtual(self._link, agent, cls, self._timeout, self, self._client.scope)
        told = self._manage(Op.DESCRIBE, options={"id": str(Reference(cluster, agent))})
        return self._client.proxy_from(told)

    @overload
    def create_agent(
        self, cls: Callable[..., T], /, *args: Any, name: str, if_exists: IfExists = "error",
        agent_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> T: ...  # fmt: skip
    @overload
    def create_agent(
        self, cls: str, /, *args: Any, name: str, if_exists: IfExists = "error",
        agent_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> Any: ...  # fmt: skip
    def create_agent(
        self, cls_or_name: Any, /, *args: Any, name: str, if_exists: IfExists = "error",
        agent_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make the agent ``name`` of a class, on some host; its proxy, when its ``__init__`` has ended.

        The arguments are kept, at most 64 KiB of them, so that any host can make the agent again. ``if_exists="get"``:
        one that is there is taken instead, whatever it was made with. Raises AgentExists, UnknownClass, NoHost,
        ConfigError, SerializationError, and what ``__init__`` raises.
        """
        return self.make_agent(cls_or_name, args, kwargs, name=name, if_exists=if_exists, agent_options=agent_options)

    def options(
        self, *, name: str, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, isolation: Isolation | None = None, memory_mb: int | None = None,
        env: Mapping[str, str] | None = None, max_restarts: int | None = None, on_timeout: OnTimeout | None = None,
        persist: Persist | None = "auto", idle_s: float | None = None, placement: Placing | None = None,
        labels: Mapping[str, str] | None = None, if_exists: IfExists = "error",
    ) -> ClusterMaker:  # fmt: skip
        """What `create_agent` takes beside the constructor's arguments, said apart: all of those are the class's own.

        ``cluster.options(name="2026", labels={"gpu": "yes"}).create_agent(Report, 2026)``. The options are kept with
        the agent, so that any host makes it again alike. ``idle_s``: it is saved and given back when nobody has called
        it for so many seconds (an hour unless said otherwise); for the others see `agent`.
        """
        given = chosen(
            max_concurrency=max_concurrency, reentrant=reentrant, on_busy=on_busy, isolation=isolation,
            memory_mb=memory_mb, env=env, max_restarts=max_restarts, on_timeout=on_timeout, persist=persist,
            idle_s=idle_s, placement=placement, labels=labels,
        )  # fmt: skip
        return ClusterMaker(self, name, given, if_exists)

    def make_agent(
        self, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str,
        if_exists: str = "error", agent_options: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """The same as `create_agent`, with the constructor's arguments apart."""
        made = Creation(self._known_name(), cls_or_name, name, agent_options, if_exists)
        body = request_body(self._link, made.class_name.rpartition(":")[2], args, kwargs)
        reply = self._link.call("", Op.CREATE, body, options=made.options, timeout=time_left(self._timeout))
        return self._client.proxy_from(value_of(self._link, reply, self._client.scope), cls=made.cls)

    def delete_agent(self, name: str, cls: type | str | None = None) -> bool:
        """Delete an agent with its state, wherever it is; True, also if there was none. Names as in `get_agent`."""
        options = {"id": self._reference(name, cls)}
        return bool(self._manage(Op.DELETE, options=options, timeout=DEFAULT_TIMEOUT_S))

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult[Any]:
        """The result of the call ``task_id``, which any client may have made. See `RpcClient.get_result`."""
        return self._client.get_result(task_id, timeout)

    # ------------------------------------------------------------ the cluster

    def where(self, name: str, cls: type | str | None = None) -> WhereRow:
        """Where an agent is: agent, server_id, address, incarnation ("" if nobody has it now), epoch and revision."""
        told = facts(self._manage(Op.WHERE, options={"id": self._reference(name, cls)}))
        return cast(WhereRow, by_name(self._link, told))

    def hosts(self) -> list[HostRow]:
        """The hosts of the cluster, one dict for each: server_id, address, state, agents, running, capacity, ..."""
        return cast("list[HostRow]", rows(self._manage(Op.HOSTS)))

    def agents(self, prefix: str = "") -> Iterator[AgentRow]:
        """The agents whose names begin with ``prefix``, as dicts: agent, server_id, address, epoch."""
        after = ""
        while True:
            asked = {"cluster": True, "prefix": prefix, "after": after, "most": PAGE}
            found, after = page_of(self._manage(Op.LIST, options=asked))
            for row in found:
                yield cast(AgentRow, by_name(self._link, row))
            if not after:
                return

    def events(self, after: str = "", most: int = PAGE) -> EventPage:
        """What has happened to hosts and agents behind ``after``: a dict of ``rows`` and ``following``."""
        found, following = page_of(self._manage(Op.EVENTS, options={"after": after, "most": most}))
        return cast(EventPage, {"rows": found, "following": following})

    def move(self, name: str, to: str = "", cls: type | str | None = None) -> WhereRow:
        """Move an agent to the host ``to``, a server id or an address, or to any other one; where it is then.

        Its calls wait meanwhile. Needs the role admin. Raises NoHost if that host cannot have it.
        """
        options = {"id": self._reference(name, cls), "to": to}
        told = facts(self._manage(Op.MOVE, options=options, timeout=DEFAULT_TIMEOUT_S))
        return cast(WhereRow, by_name(self._link, told))

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Give up the connections; calls that are open fail with HostLost. Idempotent."""
        self._link.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Cluster {self._link.address}>"

    def _known_name(self) -> str:
        return self._link.name or self.name

    def _reference(self, name: str, cls: type | str | None) -> str:
        return checked_name(str(Reference(self._known_name(), named(name, cls))), errors.UnknownAgent)

    def _manage(self, op: str, *, options: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        link = self._link
        link.settle(time_left(self._timeout))  # also if its name was given: that may be another cluster's
        left = time_left(link.management_timeout_s if timeout is None else timeout)
        reply = link.call("", op, request_body(link, op, (), {}), options=options, timeout=left)
        return value_of(link, reply, self._client.scope)
