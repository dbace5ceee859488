"""`RpcClient`: a host, from outside. Each method is one request to the host itself, which blocks for its answer.

A class that the host does not know is sent along where the host takes pickles, a private host of this program; then
the request is made again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from .. import codec, discovery, errors
from ..agents.factories.factory import Factory, Maker, as_maker, maker_name
from ..agents.options import OPTION_NAMES, AgentOptions, Isolation, Lifetime, OnBusy, OnTimeout, Persist, chosen
from ..agents.origin import loaded_class, origin_of
from ..agents.spec import own_names
from ..checks import DEFAULT_TIMEOUT_S, check_host, check_packages
from ..connection.connection import Connection, connect
from ..connection.target import Target, Transport, check_transport
from ..tracing import switch
from ..wire.link import Link
from ..wire.messages import Op
from .deadlines import UNSET, Timeout, Unset, deadline, time_left
from .download import Incoming, Progress
from .proxy import AgentProxy, bind_reference, checked_name, request_body, value_of
from .result import AsyncResult
from .stream import Stream

if TYPE_CHECKING:
    from .many.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")
IfExists = Literal["error", "get"]


def creation(
    cls_or_name: Maker | str, agent_id: Any = None, agent_options: Any = None, either: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Class name and options of a create request.

    ``either``: keywords that are given to the constructor, too, as only the host knows whether that takes them.
    """
    name = cls_or_name if isinstance(cls_or_name, str) else maker_name(cls_or_name)
    options: dict[str, Any] = {"class": checked_name(name, errors.UnknownClass)}
    if isinstance(cls_or_name, type):  # the host may know it by another name: see `agents.origin`
        options["origin"] = origin_of(cls_or_name)
    if agent_id is None and agent_options is None and not either:
        return name, options
    refusals = dict.fromkeys(either, "")  # what the host is to say if it has to take them itself
    for key, value, read in (("agent_id", agent_id, _id_option), ("agent_options", agent_options, _agent_options)):
        try:
            options |= read(value) if value is not None else {}
        except errors.ConfigError as exc:
            if key not in refusals:
                raise
            refusals[key] = str(exc)
    return name, {**options, "either": refusals} if refusals else options


def _id_option(agent_id: Any) -> dict[str, Any]:
    try:
        return {"id": checked_name(agent_id, errors.UnknownAgent)}
    except (errors.UnknownAgent, errors.ConfigError) as exc:
        raise errors.ConfigError(f"agent_id: {exc}") from None


def _agent_options(given: Any) -> dict[str, Any]:
    try:
        return _options_once(**given)
    except TypeError:  # ``env`` and ``labels`` have no hash; or it is none of these
        return _read_options(given)


def _read_options(given: Any) -> dict[str, Any]:
    try:
        checked = AgentOptions(**given)
    except TypeError:
        # The names alone: a value may be a secret.
        if not isinstance(given, Mapping):
            got, near = f"of the type {type(given).__name__}", ""
        else:
            unknown = [name for name in given if name not in OPTION_NAMES]
            got = ", ".join(map(repr, given))
            near = errors.did_you_mean(str(unknown[0]), OPTION_NAMES) if unknown else ""
        raise errors.ConfigError(f"agent_options are {', '.join(OPTION_NAMES)}, not {got}{near}") from None
    return {key: getattr(checked, key) for key in given}


@functools.lru_cache(maxsize=256, typed=True)  # each agent that is made asks; typed: True is no number of calls
def _options_once(**given: Any) -> dict[str, Any]:
    return _read_options(given)


def maker_of(cls_or_name: Any) -> Maker | str:
    """What `create_agent` was given, as a host knows it. ConfigError for what makes no agent."""
    return cls_or_name if isinstance(cls_or_name, str) else as_maker(cls_or_name)


def split_names(cls_or_name: Maker | str, kwargs: dict[str, Any], **ours: Any) -> dict[str, Any]:
    """``ours`` as `RpcClient.make_agent` takes them; those that the constructor has as parameters go into ``kwargs``.

    By the name of a class nothing is known of its constructor: then they are both, and the host decides.
    """
    given = {name: value for name, value in ours.items() if value is not None}
    if given:
        own = _own_names(cls_or_name, frozenset(given))
        if not own:  # most
            return given
        kwargs |= {name: given[name] for name in own & given.keys()}
        if isinstance(cls_or_name, str):
            return {**given, "either": tuple(given)}
        given = {name: value for name, value in given.items() if name not in own}
    return given


def check_if_exists(if_exists: object, agent_id: str | None) -> None:
    """Raise ConfigError for what `RpcClient.options` does not take."""
    if if_exists not in ("error", "get"):
        raise errors.ConfigError(f"if_exists must be 'error' or 'get', not {if_exists!r}")
    if if_exists == "get" and agent_id is None:
        raise errors.ConfigError("if_exists='get' needs an agent_id: it says which agent is meant")


def if_exists_of(cls_or_name: Maker | str, kwargs: dict[str, Any], given: IfExists | None) -> IfExists:
    """``if_exists`` as `RpcClient.create_agent` got it; a class whose constructor has such a parameter gets it."""
    if given is not None and "if_exists" in _own_names(cls_or_name, frozenset()):
        kwargs["if_exists"] = given
        return "error"
    return given or "error"


def _own_names(maker: Maker | str, unknown: frozenset[str]) -> frozenset[str]:
    if isinstance(maker, type):
        return own_names(maker)
    return maker.spec.own_names if isinstance(maker, Factory) else unknown


class AgentMaker:
    """Makes agents with the options that `RpcClient.options` was given. Any thread."""

    def __init__(
        self, client: RpcClient, agent_id: str | None, agent_options: Mapping[str, Any], timeout: Timeout,
        if_exists: IfExists = "error",
    ) -> None:  # fmt: skip
        self._client = client
        self._if_exists = if_exists
        self._agent_id = agent_id
        self._agent_options = agent_options
        self._timeout = timeout

    @overload
    def create_agent(self, cls: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def create_agent(self, name: str, /, *args: Any, **kwargs: Any) -> Any: ...
    def create_agent(self, cls_or_name: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Make an agent of ``cls_or_name``, whose ``__init__`` gets all the arguments; else as `RpcClient` does."""
        return self._client.make_or_get(
            self._if_exists, cls_or_name, args, kwargs, agent_id=self._agent_id, agent_options=self._agent_options,
            timeout=self._timeout,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<AgentMaker of {self._client!r}: agent_id={self._agent_id!r}, {', '.join(self._agent_options)}>"


def _found(host: str) -> tuple[str, int]:
    """The host that is meant where no port is given: that of the environment, or the only one here.

    A host that the program has named itself is kept: what is written wins over the environment, as in the shell.
    """
    check_host(host)
    words = {name: os.environ.get(f"AS_SERVER_{name}", "") for name in ("HOST", "PORT", "SERVER_ID")}
    if host == "localhost":  # the default
        host = words["HOST"] or host
    if not words["PORT"] or words["SERVER_ID"]:
        return discovery.only_host(host, words["SERVER_ID"])
    if not words["PORT"].isdecimal():
        raise errors.ConfigError(f"AS_SERVER_PORT must be a whole number from 1 to 65535, not {words['PORT']!r}")
    return host, int(words["PORT"])


class RpcClient:
    """A host, from outside: make, find and delete agents, ask how it is, stop it. Any thread may use it.

    Without ``port`` the host is found as the shell finds it: by ``AS_SERVER_HOST`` (where ``host`` is left out) and
    ``AS_SERVER_PORT`` or ``AS_SERVER_SERVER_ID``, or else it is the one host of this user that runs on this machine.

    All clients of one process to one host share a connection, which opens with the first request and closes with
    the last client: a client counts until it is closed, or dropped together with its proxies and their results. On
    the same machine it takes the host's Unix socket by itself; ``transport="tcp"`` forces TCP, ``"tcp-insecure"`` TCP
    without keys and encryption, to a host that was started with ``insecure``.
    ``timeout`` is the default deadline in seconds of the calls of proxies made here (300 s; None: none at all).
    ``types``: packages whose classes arrive as themselves in results, as `trust_types` takes them; ``plain_types``:
    objects of classes that are not known here arrive in their plain form instead of failing.

    Each request blocks its thread: CallTimeout when the host does not answer in time, HostUnreachable when nothing
    listens, AuthenticationError for a refused key, PermissionRefused where the user's role does not suffice.
    ConfigError for parameters that no host can have.
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, *,
        transport: Transport | None = None, timeout: Timeout = UNSET, link: Link | None = None,
        types: Iterable[str] = (), plain_types: bool = False,
    ) -> None:  # fmt: skip
        if link is None:
            if port is None:
                host, port = _found(host)
            check_host(host)
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise errors.ConfigError(f"port must be a whole number from 1 to 65535, not {port!r}")
            check_transport(transport)
            link = connect(Target(host, port, transport))
        self._link = link
        self._timeout = timeout
        self._scope = codec.Scope(trusted=check_packages(types), plain=plain_types)
        self._open = False
        self._use()

    @property
    def link(self) -> Link:
        """The connection that carries the requests; for code of this package and its tools."""
        return self._link

    @property
    def scope(self) -> codec.Scope:
        """Which classes the values may have that come in here; for code of this package."""
        return self._scope

    @property
    def address(self) -> str:
        """``host:port``, or ``ipc:/path`` of a private host."""
        return self._link.address

    # ------------------------------------------------------------ agents

    @overload
    def create_agent(
        self, cls: Callable[..., T], /, *args: Any, agent_id: str,
        agent_options: Mapping[str, Any] | None = None, if_exists: IfExists = "error", **kwargs: Any,
    ) -> T: ...  # fmt: skip
    @overload
    def create_agent(
        self, cls: Callable[..., T], /, *args: Any, agent_options: Mapping[str, Any], **kwargs: Any
    ) -> T: ...
    @overload
    def create_agent(self, cls: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def create_agent(
        self, name: str, /, *args: Any, agent_id: str | None = None,
        agent_options: Mapping[str, Any] | None = None, if_exists: IfExists = "error", **kwargs: Any,
    ) -> Any: ...  # fmt: skip
    def create_agent(  # type: ignore[misc]  # a constructor may have a parameter agent_id, too
        self, cls_or_name: Any, /, *args: Any, agent_id: str | None = None,
        agent_options: Mapping[str, Any] | None = None, if_exists: IfExists | None = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Make an agent on the host; returns its proxy when its ``__init__`` and its hooks have ended.

        ``cls_or_name``: a class, or a function (also ``async``) that gives any object, or the name of one that the
        host knows; a private host gets what it does not know. The remaining arguments go to its ``__init__`` or to
        the function. ``agent_id``: None lets the host choose one. ``agent_options`` override those of the class for
        this agent: any that `agent` takes; ``env`` needs the role admin. ``if_exists="get"``: an agent of this
        ``agent_id`` that is there already is taken instead, as in `options`. A class whose ``__init__`` has a parameter
        of one of these three names gets it; `options` keeps both apart.
        Raises UnknownClass (its text lists the classes that the host knows), AgentExists for an ``agent_id`` that is
        taken, ConfigError for wrong options, SerializationError for arguments that cannot be sent, and what
        ``__init__`` or a hook raises.
        """
        if agent_id is None and agent_options is None and if_exists is None:  # most agents: nothing to be told apart
            return self.make_agent(cls_or_name, args, kwargs)
        maker = maker_of(cls_or_name)
        if_exists = if_exists_of(maker, kwargs, if_exists)
        given = split_names(maker, kwargs, agent_id=agent_id, agent_options=agent_options)
        return self.make_or_get(if_exists, maker, args, kwargs, **given)

    def make_or_get(
        self, if_exists: IfExists, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
        agent_id: str | None = None, **given: Any,
    ) -> Any:  # fmt: skip
        """`make_agent`, but with ``if_exists="get"`` the agent of this id is taken if there is one."""
        check_if_exists(if_exists, agent_id)
        while True:
            try:
                return self.make_agent(cls_or_name, args, kwargs, agent_id=agent_id, **given)
            except errors.AgentExists:
                if if_exists == "error" or agent_id is None:
                    raise
            with contextlib.suppress(errors.UnknownAgent):  # deleted meanwhile: it is made after all
                return self.get_agent(agent_id)

    def make_agent(
        self, cls_or_name: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *,
        agent_id: str | None = None, agent_options: Mapping[str, Any] | None = None, either: Collection[str] = (),
        timeout: Timeout = UNSET,
    ) -> AgentProxy:  # fmt: skip
        """The same as `create_agent`, with the constructor's arguments apart from those of the host.

        ``either``: keywords that are both, so that the host decides by the constructor's parameters. ``timeout``: for
        making it, and the default deadline of its calls, in seconds; default that of this client.
        """
        timeout = self._timeout if isinstance(timeout, Unset) else timeout
        maker = maker_of(cls_or_name)
        name, options = creation(maker, agent_id, agent_options, either)
        cls = maker if isinstance(maker, type) else None
        try:
            return self._create(name, args, kwargs, options, cls, timeout)
        except errors.UnknownClass:
            if isinstance(maker, str) or not self._link.takes_pickles:
                raise
        self._manage(Op.REGISTER, maker)
        return self._create(name, args, kwargs, options, cls, timeout)

    def options(
        self, *, agent_id: str | None = None, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, isolation: Isolation | None = None, memory_mb: int | None = None,
        env: Mapping[str, str] | None = None, max_restarts: int | None = None, on_timeout: OnTimeout | None = None,
        persist: Persist | None = "auto", lifetime: Lifetime | None = None, idle_s: float | None = None,
        timeout: Timeout = UNSET, if_exists: IfExists = "error",
    ) -> AgentMaker:  # fmt: skip
        """What `create_agent` takes beside the constructor's arguments, said apart: all of those are the class's own.

        ``client.options(agent_id="r1", max_concurrency=4).create_agent(Reader, "corpus")``. ``timeout``: for making the
        agent, and the default deadline of its calls, in seconds (None: none at all); default that of the client.
        ``if_exists="get"``: an agent of this ``agent_id`` that is there already is taken instead, whatever arguments it
        was made with; of several clients that do so at once, one makes it. ``lifetime="client"``: the agent goes with
        this process, ``idle_s=600``: when nobody has called it for ten minutes; see `agent`.
        """
        check_if_exists(if_exists, agent_id)
        given = chosen(
            max_concurrency=max_concurrency, reentrant=reentrant, on_busy=on_busy, isolation=isolation,
            memory_mb=memory_mb, env=env, max_restarts=max_restarts, on_timeout=on_timeout, persist=persist,
            lifetime=lifetime, idle_s=idle_s,
        )  # fmt: skip
        return AgentMaker(self, agent_id, given, timeout, if_exists)

    def pool(self, cls_or_name: Any, count: int, /, *args: Any, **kwargs: Any) -> Pool[Any]:
        """Make ``count`` agents that are used as one: each call goes to the one with the fewest open calls.

        ``with client.pool(Reader, 4) as readers: values = list(readers.load.map(paths))``. The remaining arguments go
        to the ``__init__`` of each. Raises what `create_agent` raises; then none of them is left.
        """
        from .many.pool import Pool  # here: few programs have pools

        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise errors.ConfigError(f"a pool has at least one agent, not {count!r}")
        with contextlib.ExitStack() as made:
            agents = [made.enter_context(self.make_agent(cls_or_name, args, kwargs)) for _ in range(count)]
            made.pop_all()
        return Pool(agents)

    @overload
    def get_agent(self, agent_id: str) -> Any: ...
    @overload
    def get_agent(self, agent_id: str, cls: type[T]) -> T: ...
    def get_agent(self, agent_id: str, cls: type | None = None) -> Any:
        """The proxy of the agent with this id. UnknownAgent: the host has none of that id.

        ``cls``: the class of the agent, for a type checker and for the classes that its annotations name. The proxy
        finds it by itself if this process has loaded it under the name that the host knows.
        """
        checked_name(agent_id, errors.UnknownAgent)
        return self.proxy_from(self._manage(Op.DESCRIBE, options={"id": agent_id}), cls=cls)

    def delete_agent(self, agent_id: str) -> bool:
        """Delete an agent; returns True. Its running call ends, its queued calls fail with AgentDeleted.

        If its class has hooks for its end (``on_stop``, ``__aexit__``), they run when its running call has ended; this
        returns then, and raises what they raise. UnknownAgent: the host has none of that id. To delete an agent of
        another user needs the role admin.
        """
        checked_name(agent_id, errors.UnknownAgent)
        return bool(self._manage(Op.DELETE, options={"id": agent_id}, timeout=DEFAULT_TIMEOUT_S))

    def delete_all_agent(self) -> bool:
        """Delete every agent of the host; returns True when their hooks have run. Needs the role admin.

        An error of a hook is a line in the host's log.
        """
        return bool(self._manage(Op.DELETE_ALL, timeout=DEFAULT_TIMEOUT_S))

    def get_agent_list(self) -> list[dict[str, Any]]:
        """The host's agents, one dict for each: agent_id, class, type, calls, running, queued, age_s, child."""
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = facts(self._manage(Op.LIST, options={"after": after}))
            found += rows(page.get("agents"))
            after = next_page(page, after)
        return found

    def get_agent_memory(self, agent_id: str) -> Any:
        """What the agent remembers: its ``memory.get_memory()``, ``state.context`` or ``memory``.

        It is read in a worker thread, beside the agent's current call. UnknownAgent: the host has none of that id.
        """
        checked_name(agent_id, errors.UnknownAgent)
        return self._manage(Op.MEMORY, options={"id": agent_id}, timeout=DEFAULT_TIMEOUT_S)

    # ------------------------------------------------------------ the host

    def is_alive(self) -> bool:
        """True if the host answers within its management timeout. A refused key raises AuthenticationError."""
        try:
            self._manage(Op.INFO)
        except errors.AuthenticationError:
            raise
        except (ConnectionError, TimeoutError):
            return False
        return True

    def stop(self, grace_s: float | None = None) -> bool:
        """Ask the host to drain and end; returns True when the host has agreed. Needs the role admin.

        ``grace_s``: for how many seconds its calls may go on (None: as long as the host's setting says).
        """
        return bool(self._manage(Op.STOP, options={} if grace_s is None else {"grace_s": grace_s}))

    def get_server_info(self) -> dict[str, Any]:
        """The state of the host as one dict: server_id, pid, port, capacity, counts, store, settings."""
        return facts(self._manage(Op.INFO))

    def get_metrics(self) -> dict[str, Any]:
        """All figures of the host, as plain numbers; `zmqagents.telemetry.metrics.samples` gives them their names."""
        return facts(self._manage(Op.METRICS))

    def get_health(self, timeout: float = 1.0) -> dict[str, Any]:
        """Whether the host is ready, by a call that does nothing but take the way of all calls through it.

        A dict: server_id, ready, and reasons, a list of texts. Raises CallTimeout where dispatch or the store is stuck,
        HostStopping while the host drains.
        """
        return facts(self._manage(Op.HEALTH, timeout=timeout))

    def get_log(self, after: int = 0, agent: str | None = None) -> dict[str, Any]:
        """A page of the latest log lines of the host, of one agent or of all. Needs the role admin or view.

        A dict: lines (each a dict), next (the ``after`` of the next page), more (there are further ones now), left_out
        (how many behind ``after`` are kept no more). ``after`` below 0: the last ``-after`` lines. Raises ConfigError
        for a host that was not started by ``as_server``.
        """
        options = {"after": after} | ({} if agent is None else {"agent": agent})
        return facts(self._manage(Op.LOGS, options=options))

    def get_call_list(self) -> list[dict[str, Any]]:
        """The calls that are not answered yet, as dicts: task_id, agent, method, state, age_s, waits_for, note ...

        ``child``: the pid of the process that runs it, None: the host itself. ``progress``: done, total and text, as
        `CallContext.progress` was given them last; None: nothing was told. ``trace_id``: None if not traced.
        """
        return rows(self._manage(Op.CALLS))

    def cancel(self, task_id: str) -> bool:
        """Cancel the call ``task_id`` and the calls that it has made; False if the host has no such open call.

        To cancel the call of another user needs the role admin.
        """
        return bool(self._manage(Op.CANCEL, options={"id": checked_name(task_id, errors.UnknownTask)}))

    def get_result_list(self, most: int = 1000) -> list[dict[str, Any]]:
        """The unfinished calls whose results will be kept, and the ``most`` latest results: one dict for each.

        A dict has task_id, state, age_s (seconds since the call, or since its end) and bytes. In a shared store they
        are those of all hosts. Needs the role admin or view.
        """
        return rows(self._manage(Op.RESULTS, options={"most": most}))

    def dump(self) -> list[dict[str, Any]]:
        """The open calls, one dict for each, with the stack of their code. Needs the role admin or view."""
        return rows(self._manage(Op.DUMP))

    def get_child_list(self) -> list[dict[str, Any]]:
        """The processes that run agents of the host, as dicts: pid, state, memory_mb, silent_s, calls, crashes, agents.

        ``silent_s``: for how many seconds it has not answered the host, although it lives: code in C may keep its
        interpreter lock.
        """
        return rows(self._manage(Op.CHILDREN))

    def restart_child(self, agent_id: str) -> bool:
        """End the process of an agent and start it again, also if it was given up; returns True. Needs the role admin.

        Calls that run there end in AgentCrashed. UnknownAgent: the host has none of that id; ConfigError: the agent
        runs in threads of the host.
        """
        return bool(self._manage(Op.RESTART, options={"id": checked_name(agent_id, errors.UnknownAgent)}))

    def set_model_configs(self, configs: Mapping[str, Any] | list[Mapping[str, Any]]) -> bool:
        """Give the host one model configuration or a list of them; returns True. Needs the role admin.

        All are checked before any is taken: ConfigError leaves the host as it was.
        """
        given = dict(configs) if isinstance(configs, Mapping) else [dict(config) for config in configs]
        return bool(self._manage(Op.MODELS, given))

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult[Any]:
        """The result of the call ``task_id``, which any client may have made. Returns at once.

        The host waits up to ``timeout`` seconds (None: no limit) for the call. Reading the result raises what the call
        raised; CallTimeout: the call was not finished, or the host did not answer; UnknownTask: the host never had the
        call; ResultExpired: it has dropped the result; StoreUnavailable: Redis does not answer.
        """
        checked_name(task_id, errors.UnknownTask)
        return AsyncResult(
            self._link, task_id, bind_reference, None, task_id=task_id, timeout=timeout, client=self, scope=self._scope,
            span=switch.fetch(task_id, self._link.address),
        )  # fmt: skip

    def download_file(
        self, remote_path: str | os.PathLike[str], local_path: str | os.PathLike[str],
        progress: Progress | None = None, *, timeout: Timeout = UNSET,
    ) -> int:  # fmt: skip
        """Copy a file of the host to ``local_path``, which appears when it is whole; returns its size in bytes.

        The host serves only what lies below its ``--file-root`` directories; ``remote_path`` is absolute, or relative
        to one of them. Raises PermissionRefused or UnknownFile, and OSError for ``local_path``. ``progress(bytes there,
        bytes in all)`` is called in this thread, with each chunk; what it raises ends the download. ``timeout``: for
        the whole file, default that of this client.
        """
        with Incoming(local_path, progress) as file, self.open_download(remote_path, timeout) as stream:
            for item in stream:
                file.take(item)
                file.report()
            return file.finish()

    def open_download(self, remote_path: str | os.PathLike[str], timeout: Timeout) -> Stream[Any]:
        """The stream of a file of the host: first its size in bytes, then its bytes. Errors as in `download_file`."""
        link, path = self._link, os.fspath(remote_path)
        left = time_left(self._timeout if isinstance(timeout, Unset) else timeout)
        body = request_body(link, Op.DOWNLOAD, (path,), {})
        return Stream(link, Op.DOWNLOAD, bind_reference, body, agent="", method=Op.DOWNLOAD, timeout=left, client=self)

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Give up the connection; the last client of this process to the host closes it. Idempotent.

        A request after it opens the connection anew.
        """
        link = self._link
        if not self._open or not isinstance(link, Connection):
            return
        self._open = False
        self._finalizer.detach()
        if link.let_go():
            link.close()

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RpcClient {self._link.address}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the host, and its agents if it answers."""
        import html  # here: only notebooks need it

        shown = f"<b>{html.escape(repr(self))}</b>"
        try:
            with deadline(1.0):
                rows = self.get_agent_list()
        except errors.ZmqAgentsError as exc:
            return f"{shown}<br>{html.escape(str(exc))}"
        names = ("agent_id", "type", "calls", "running", "queued")
        head = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(row[n]))}</td>" for n in names) + "</tr>" for row in rows
        )
        return f"{shown}<table><tr>{head}</tr>{body}</table>"

    def _use(self) -> None:
        if isinstance(self._link, Connection):
            self._link.take_up()
            self._open = True
            self._finalizer = weakref.finalize(self, self._link.let_go)  # dropped without close: no user any more

    # ------------------------------------------------------------ requests

    def _create(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], cls: type | None,
        timeout: Timeout,
    ) -> AgentProxy:  # fmt: skip
        link = self._link
        if not link.is_settled:
            link.settle(time_left(timeout))  # whether it takes pickles decides how to encode
        short = name.rpartition(":")[2]
        if link.takes_pickles:  # a class that it does not know by its name is sent
            options.pop("origin", None)
        if switch.active is None:  # the same without a context manager
            return _create_by(self, short, args, kwargs, options, cls, timeout)
        with switch.request(Op.CREATE, link.address, options) as told:
            return _create_by(self, short, args, kwargs, told, cls, timeout)

    def proxy_from(
        self, description: Any, *, awaitable: bool = False, cls: type | None = None, timeout: Timeout = UNSET
    ) -> AgentProxy:
        """The proxy for ``description``, with which a host answers `create_agent` and `get_agent`.

        ``cls``: the agent's class; None: the one that the host calls so, if this process has loaded it.
        ``timeout``: the default deadline of its calls; default that of this client.
        """
        if isinstance(description, bytes):
            description = codec.unpack(description, max_bytes=1 << 24)
        match description:
            case [str(agent_id), str(class_name), str(doc), bytes(packed)]:
                methods = _methods(packed)
            case _:
                raise errors.RemoteProtocolError(f"{self._link.address}: this describes no agent")
        return AgentProxy(
            self._link,
            agent_id,
            class_name,
            doc,
            methods,
            timeout=self._timeout if isinstance(timeout, Unset) else timeout,
            awaitable=awaitable,
            client=self,
            scope=self._scope,
            cls=cls or loaded_class(class_name),
        )

    def _manage(self, op: str, *args: Any, options: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        link = self._link
        body = request_body(link, op, args, {})
        left = time_left(link.management_timeout_s if timeout is None else timeout)
        with switch.request(op, link.address, options) as options:
            return value_of(link, link.call("", op, body, options=options, timeout=left), self._scope)


def _create_by(
    client: RpcClient, label: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any] | None,
    cls: type | None, timeout: Timeout,
) -> AgentProxy:  # fmt: skip
    link = client.link
    body = request_body(link, label, args, kwargs)
    reply = link.call("", Op.CREATE, body, options=options, timeout=time_left(timeout))
    return client.proxy_from(value_of(link, reply, client.scope), cls=cls, timeout=timeout)


_known_methods: dict[bytes, dict[str, list[str]]] = {}


def _methods(packed: bytes) -> dict[str, list[str]]:
    """The methods of a class as the host describes them; the same bytes come with every agent of the class."""
    known = _known_methods.get(packed)
    if known is None:
        if len(_known_methods) >= 1024:
            _known_methods.clear()
        found = codec.unpack(packed, max_bytes=1 << 24)
        if not isinstance(found, dict) or not all(map(_is_method, found.items())):
            raise errors.RemoteProtocolError("these describe no methods")
        known = _known_methods[packed] = found
    return known


def _is_method(item: tuple[Any, Any]) -> bool:
    match item:
        case (str(), [str(), str(), str()]):
            return True
    return False


def facts(value: Any) -> dict[str, Any]:
    """A host's answer that should be a map."""
    if not isinstance(value, dict):
        raise errors.RemoteProtocolError("the host has answered with what is no map")
    return value


def next_page(page: dict[str, Any], after: int) -> int | None:
    """Where the page after ``page`` begins, None: it is the last."""
    following = page.get("next")
    if following is not None and not (type(following) is int and following > after):
        raise errors.RemoteProtocolError("the host has answered with a page that leads nowhere")
    return following


def rows(value: Any) -> list[dict[str, Any]]:
    """A host's answer that should be a list of maps."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise errors.RemoteProtocolError("the host has answered with what is no list of maps")
    return value
