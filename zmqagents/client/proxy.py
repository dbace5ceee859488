"""What callers hold: `AgentProxy`, which looks like the agent, and `RpcClient`, which stands for its host.

Both stand on a `Link` and send nothing by themselves but calls. Arguments are encoded in the caller's
thread, so a value that cannot travel fails there (`SerializationError`); a result is decoded in the thread that
first reads it. A proxy and a result are references: they pickle, they go as arguments to any agent on any
host, and arrive as a proxy, or as the finished value.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import inspect
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from .. import codec, errors
from ..agents.context import _current, current_call
from ..agents.marks import AgentOptions
from ..agents.spec import class_name_of
from ..codec import AgentRef, TaskRef, pickling
from ..config import DEFAULT_TIMEOUT_S, check_host
from ..connection.connection import Connection, connect, trust
from ..connection.target import Target, Transport, target_of
from ..wire.link import Link, Sink, rebuild_error
from ..wire.messages import MAX_DEPS, MAX_TEXT, Flag, Op, Reply
from .download import Incoming, Progress
from .result import AsyncResult, Stream, decode_reply

__all__ = ["AgentProxy", "RpcClient", "bind_reference", "deadline"]

FAR_PATIENCE_S = 1.0
FAR_RETRY_S = 0.02
MAX_TIMEOUT_S = 4_000_000.0  # 46 days, what a header can say; also what float("inf") means

# ---------------------------------------------------------------- links

_Outcome = TypeVar("_Outcome", AsyncResult, Stream)

_inside: dict[str, Link] = {}  # hosts that live in this process, by server id


def adopt(link: Link) -> None:
    """From now on calls of this process to that host take no socket."""
    _inside[link.server_id] = link


def disown(link: Link) -> None:
    """The reverse of `adopt`."""
    if _inside.get(link.server_id) is link:
        del _inside[link.server_id]


def link_for(server_id: str, address: str) -> Link:
    """The way from this process to the host of a reference."""
    return _inside.get(server_id) or connect(target_of(address))


def bind_reference(ref: AgentRef | TaskRef, came_by: Link | None = None, *, awaitable: bool = False) -> Any:
    """A live proxy or result for a reference from the wire.

    ``came_by``: the link that brought it. If it leads to the reference's own host it is the one to use: the address
    may be one that only others can reach.
    """
    codec.check_reference(ref)  # it may come from elsewhere than from the codec, which has done so
    link = came_by if came_by is not None and came_by.server_id == ref.server_id else None
    link = link or link_for(ref.server_id, ref.address)
    if isinstance(ref, AgentRef):
        methods = {name: [*text.partition(" ")[::2], ""] for name, text in ref.methods.items()}
        return AgentProxy(link, ref.agent_id, ref.class_name, "", methods, server_id=ref.server_id, awaitable=awaitable)
    return AsyncResult.attach(link, ref.task_id, bind_awaited if awaitable else bind_reference)


def bind_own(ref: AgentRef | TaskRef) -> Any:
    """The same for a reference out of a pickle, made in a program that trusts the private host it leads to."""
    trust(ref.address)
    return bind_reference(ref)


def bind_awaited(ref: AgentRef | TaskRef, came_by: Link | None = None) -> Any:
    """The same for what is read through `AsyncRpcClient`: its proxies must not block either."""
    return bind_reference(ref, came_by, awaitable=True)


def fetch_far(ref: TaskRef, sink: Sink) -> None:
    """Ask the host that has, or is about to have, the result of ``ref`` for it."""
    codec.check_reference(ref)
    _FarFetch(link_for(ref.server_id, ref.address), ref.task_id, sink).send()


class _FarFetch:
    """A fetch that may overtake the call it asks for: that one comes over another connection, its caller's own.

    So `UnknownTask` is believed only after `FAR_PATIENCE_S`.
    """

    def __init__(self, link: Link, task_id: str, sink: Sink) -> None:
        self._link = link
        self._task_id = task_id
        self._sink = sink
        self._believe_at = time.monotonic() + FAR_PATIENCE_S

    def send(self) -> None:
        try:
            self._link.fetch(self._task_id, self)
        except errors.ZmqAgentsError as exc:  # the link is being closed
            self._sink.fail(exc)

    def deliver(self, reply: Reply | None) -> None:
        early = time.monotonic() < self._believe_at
        if reply is not None and reply.code and early and isinstance(rebuild_error(reply), errors.UnknownTask):
            again = threading.Timer(FAR_RETRY_S, self.send)
            again.daemon = True
            again.start()
        else:
            self._sink.deliver(reply)

    def fail(self, error: Exception) -> None:
        self._sink.fail(error)

    def chunk(self, item: Reply) -> None:
        """Never comes: a FETCH gets one answer."""


# ---------------------------------------------------------------- deadlines

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("zmqagents_deadline", default=None)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Every call made in this block must end within ``seconds`` of its start; of two nested ones the narrower holds."""
    end = time.monotonic() + _checked_timeout(seconds)
    outer = _deadline.get()
    token = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


class _Unset:
    def __repr__(self) -> str:
        return "default"


UNSET = _Unset()
Timeout = float | None | _Unset


def _checked_timeout(seconds: object) -> float:
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or seconds != seconds:
        raise errors.ConfigError(f"a timeout is a number of seconds, or None for none at all, not {seconds!r}")
    return min(float(seconds), MAX_TIMEOUT_S)


def time_left(timeout: Timeout) -> float | None:
    """Seconds for one call: its own timeout, the block's deadline, the calling agent's rest; the least of them."""
    left = DEFAULT_TIMEOUT_S if isinstance(timeout, _Unset) else timeout
    limits = [] if left is None else [_checked_timeout(left)]
    end = _deadline.get()
    if end is not None:
        limits.append(end - time.monotonic())
    call = current_call()
    if call is not None:
        call.check()  # who is cancelled starts nothing new
        rest = call.remaining()
        if rest is not None:
            limits.append(rest)
    if not limits:
        return None
    least = min(limits)
    if least <= 0:
        raise errors.CallTimeout("the deadline had passed before the call was made")
    return least


def _value_of(link: Link, reply: Reply) -> Any:
    if reply.code:
        raise rebuild_error(reply)
    return decode_reply(link, reply, bind_reference)


def request_body(link: Link, label: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> codec.Encoded:
    """The arguments of a call, encoded here and now; ``label`` names the call in errors."""
    pickler = pickling.dumps if link.takes_pickles else None
    body = codec.encode_call(args, kwargs, what=f"{label}: ", max_bytes=link.max_bytes, pickler=pickler)
    check_results(label, body)
    return body


def check_results(label: str, body: codec.Encoded) -> None:
    """Raise MessageTooLarge for too many results among the arguments."""
    if len(body.tasks) > MAX_DEPS:
        text = f"{label}: {len(body.tasks)} results among the arguments, limit {MAX_DEPS}"
        raise errors.MessageTooLarge(text, len(body.tasks), MAX_DEPS)


def checked_name(name: str, error: type[errors.CallError]) -> str:
    """``name`` if it can be in a message; otherwise nobody has it, and nothing needs to be sent."""
    if not isinstance(name, str):
        raise errors.ConfigError(f"a name is a text, not {name!r}")
    if not name:
        raise error("no name is empty")
    if len(name) > MAX_TEXT:
        raise error(f"no name is longer than {MAX_TEXT} characters: {name[:40]!r}...")
    if not name.isprintable():  # lone surrogates among them
        raise error(f"no name is like {name[:40]!r}")
    return name


def creation(
    cls_or_name: type | str, agent_id: str | None, agent_options: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Class name and options of a create request."""
    name = class_name_of(cls_or_name) if isinstance(cls_or_name, type) else cls_or_name
    if not isinstance(name, str):
        raise errors.ConfigError(f"create_agent takes a class or its name, not {cls_or_name!r}")
    try:
        chosen = {key: getattr(AgentOptions(**(agent_options or {})), key) for key in agent_options or ()}
    except TypeError:
        known = ", ".join(AgentOptions.__slots__)
        raise errors.ConfigError(f"agent_options are {known}, not {agent_options!r}") from None
    options = {"class": checked_name(name, errors.UnknownClass), **chosen}
    if agent_id is None:
        return name, options
    try:
        return name, {**options, "id": checked_name(agent_id, errors.UnknownAgent)}
    except (errors.UnknownAgent, errors.ConfigError) as exc:
        raise errors.ConfigError(f"agent_id: {exc}") from None


# ---------------------------------------------------------------- proxies


def _check_agent_id(agent_id: object) -> None:
    """A call to "" is a request to the host itself: only `RpcClient` makes those, whatever reference was passed in."""
    if not codec.is_name(agent_id):
        raise errors.UnknownAgent(f"no agent is called {agent_id!r:.60}")


class AgentProxy:
    """An agent on a host, from anywhere: its methods are called as if they were local.

    A method gives its value, an `AsyncResult` or an iterator, as the class says. Any other public name is an
    attribute of the agent, read at each access; setting one raises. Names of the class are known without asking
    the host: ``dir()``, ``help()`` and signatures work offline. Control goes through `RpcClient`, so that no
    name of the agent's is shadowed.
    """

    def __init__(
        self, link: Link, agent_id: str, class_name: str, doc: str, methods: Mapping[str, list[str]], *,
        timeout: Timeout = UNSET, server_id: str | None = None, awaitable: bool = False,
        client: RpcClient | None = None,
    ) -> None:  # fmt: skip
        _check_agent_id(agent_id)
        own = self.__dict__
        own["_za_link"] = link
        own["_za_id"] = agent_id
        own["_za_class"] = class_name
        own["_za_methods"] = methods
        own["_za_timeout"] = timeout
        own["_za_awaitable"] = awaitable  # made by AsyncRpcClient: every method is awaited
        own["_za_server"] = server_id
        own["_za_client"] = client  # that made it: while it is there, no other client closes the connection
        own["__doc__"] = doc

    @property
    def agent_id(self) -> str:
        """The agent's id on its host."""
        return str(self._za_id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            owner = self.__dict__.get("_za_id")  # not {self!r}: a proxy that is only half made has no repr either
            raise AttributeError(f"{name!r} is private: agent {owner!r} does not offer it")
        checked_name(name, errors.UnknownMethod)
        methods = self._za_methods
        if name in methods:
            method = self._za_method(name)
            self.__dict__[name] = method  # the next access finds it without coming here
            return method
        return self._za_read(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "__call__" not in self._za_methods:
            raise TypeError(f"{self._za_class} is not callable: {self!r}")
        return self._za_method("__call__")(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name!r}: {self!r} is a proxy; give the agent a method that sets it")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name!r}: {self!r} is a proxy")

    def __dir__(self) -> list[str]:
        return sorted({"agent_id", *(name for name in self._za_methods)})

    def __repr__(self) -> str:
        return f"<AgentProxy {self._za_class} {self._za_id!r} at {self._za_link.address}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AgentProxy):
            return NotImplemented
        mine, theirs = self._za_home(), other._za_home()
        if not (mine and theirs):  # one has never reached its host
            mine, theirs = self._za_link.address, other._za_link.address
        return (self._za_id, mine) == (other._za_id, theirs)

    def __hash__(self) -> int:
        return hash(self._za_id)

    def __copy__(self) -> AgentProxy:
        return self

    def __deepcopy__(self, memo: Any) -> AgentProxy:
        return self

    def __zmqagents_ref__(self) -> AgentRef:
        link = self._za_link
        if not self._za_home():
            link.settle()
        methods = {name: f"{spec[0]} {spec[1]}" for name, spec in self._za_methods.items()}  # mark, signature
        return AgentRef(self._za_home(), link.address, self._za_id, self._za_class, methods)

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self.__zmqagents_ref__()
        return (bind_own if self._za_link.takes_pickles else bind_reference), (ref,)

    def _za_home(self) -> str:
        return self._za_server or str(self._za_link.server_id)

    def _za_returns(self, name: str) -> str | None:
        """What a method gives its caller: "value", "future" or "stream"; None if there is none of that name."""
        spec = self._za_methods.get(name)
        return None if spec is None else _read_mark(spec[0])[0]

    def _za_method(self, name: str) -> Any:
        made = AwaitedMethod if self._za_awaitable else RemoteMethod
        return made(
            self._za_link, self._za_id, name, self._za_methods[name], self._za_timeout,
            home=self._za_server or "", client=self._za_client,
        )  # fmt: skip

    def _za_read(self, name: str) -> Any:
        link, body = self._za_link, codec.encode_call((), {})
        left = time_left(self._za_timeout)
        if self._za_awaitable:
            result = _AttributeResult(link, f"{self._za_id}.{name}", bind_awaited)
            flags = Flag.ATTRIBUTE | Flag.DETACHED
            result.task_id = link.submit(self._za_id, name, body, result, flags=flags, timeout=left)
            return holding(self._za_client, result)
        return _value_of(link, link.call(self._za_id, name, body, flags=Flag.ATTRIBUTE, timeout=left))


class RemoteMethod:
    """One method of a proxy. ``timeout=`` is the call's deadline, unless the method itself has such a parameter."""

    _bind: Any = staticmethod(bind_reference)

    def __init__(
        self, link: Link, agent_id: str, name: str, spec: list[str], timeout: Timeout, *, home: str = "",
        client: RpcClient | None = None,
    ) -> None:  # fmt: skip
        _check_agent_id(agent_id)
        self._home = home
        self._client = client
        self._link = link
        self._agent_id = agent_id
        mark, self._signature, self.__doc__ = spec
        self._returns, is_idempotent = _read_mark(mark)
        self._flags = Flag.IDEMPOTENT if is_idempotent else 0
        self._timeout = timeout
        self._label = f"{agent_id}.{name}"
        self._what = f"{self._label}: "
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        body, left = self._prepare(args, kwargs)
        if self._returns == "value":
            link = self._link
            return _value_of(link, link.call(self._agent_id, self.__name__, body, flags=self._flags, timeout=left))
        return self._submit(body, left)

    def aio(self, *args: Any, **kwargs: Any) -> Any:
        """Call it without blocking, whatever it returns: something to await, or to read with ``async for``."""
        return self._submit(*self._prepare(args, kwargs))

    def with_timeout(self, seconds: float | None) -> RemoteMethod:
        """The same method with another deadline: for methods that have a parameter ``timeout`` of their own."""
        spec = [self._returns + "!" * bool(self._flags), self._signature, self.__doc__ or ""]
        return type(self)(
            self._link, self._agent_id, self.__name__, spec, seconds, home=self._home, client=self._client
        )

    def _prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[codec.Encoded, float | None]:
        timeout = self._timeout
        if "timeout" in kwargs and not self._takes_timeout():
            timeout = kwargs.pop("timeout")
        if timeout is UNSET and _deadline.get() is None and _current.get() is None:
            left: float | None = DEFAULT_TIMEOUT_S  # what `time_left` says then
        else:
            left = time_left(timeout)
        link = self._link
        plain = None if kwargs else codec.encode_plain_call(args, link.max_bytes)
        if plain is not None:
            return plain, left
        pickler = pickling.dumps if link.takes_pickles else None
        body = codec.encode_call(args, kwargs, what=self._what, max_bytes=link.max_bytes, pickler=pickler)
        if body.tasks:
            check_results(self._label, body)
        return body, left

    def _submit(self, body: codec.Encoded, left: float | None) -> Any:
        link, agent_id, name = self._link, self._agent_id, self.__name__
        if self._returns == "stream":
            stream = Stream(link, self._label, self._bind)
            stream.task_id = link.submit(agent_id, name, body, stream.inlet, flags=Flag.STREAM, timeout=left)
            return holding(self._client, stream)
        result = AsyncResult(link, self._label, self._bind, self._home)
        flags = Flag.DETACHED | self._flags
        result.task_id = link.submit(agent_id, name, body, result, flags=flags, timeout=left)
        return holding(self._client, result)

    def _takes_timeout(self) -> bool:
        return "timeout" in self._signature and "timeout" in self.__signature__.parameters

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature_from(self._signature)

    def __repr__(self) -> str:
        return f"<RemoteMethod {self._label}{self._signature}>"


class AwaitedMethod(RemoteMethod):
    """One method of a proxy of `AsyncRpcClient`: it never blocks, and its result is awaited."""

    _bind = staticmethod(bind_awaited)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.aio(*args, **kwargs)


def holding(client: RpcClient | None, outcome: _Outcome) -> _Outcome:
    """``outcome`` keeps the client that asked for it, and may be all that is left of ``Reader().to_dist(...)(x)``."""
    if client is not None:
        outcome.__dict__["_client"] = client
    return outcome


class _AttributeResult(AsyncResult):
    """The value of an attribute, to be awaited. Called, it was meant as a method, and there is none of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise errors.UnknownMethod(f"{self._label} is no public method")


def _read_mark(mark: str) -> tuple[str, bool]:
    """What a method returns, and whether it is idempotent: `agent.MethodSpec.mark` taken apart."""
    return mark.rstrip("!"), mark.endswith("!")


def _signature_from(text: str) -> inspect.Signature:
    """The signature that ``text`` says, without ``self``; annotations and defaults stay text."""
    try:
        statement = ast.parse(f"def f{text}: ...").body[0]
    except (SyntaxError, ValueError):  # a default whose repr is no Python (ValueError: has a NUL), or no signature
        statement = ast.parse("def f(self, *args, **kwargs): ...").body[0]
    assert isinstance(statement, ast.FunctionDef)
    given = statement.args
    kinds = inspect.Parameter
    positional: list[tuple[ast.arg, Any]] = [(arg, kinds.POSITIONAL_ONLY) for arg in given.posonlyargs]
    positional += [(arg, kinds.POSITIONAL_OR_KEYWORD) for arg in given.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    found = [_parameter(arg, kind, value) for (arg, kind), value in zip(positional, defaults, strict=True)]
    found += [_parameter(given.vararg, kinds.VAR_POSITIONAL)] if given.vararg else []
    keywords = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [_parameter(arg, kinds.KEYWORD_ONLY, value) for arg, value in keywords]
    found += [_parameter(given.kwarg, kinds.VAR_KEYWORD)] if given.kwarg else []
    return inspect.Signature(found[1:] if found and found[0].name in ("self", "cls") else found)


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    note = arg.annotation  # a text already where the module has `from __future__ import annotations`
    annotation = empty if note is None else str(note.value) if isinstance(note, ast.Constant) else ast.unparse(note)
    return inspect.Parameter(arg.arg, kind, default=ast.unparse(default) if default else empty, annotation=annotation)


# ---------------------------------------------------------------- the client


class RpcClient:
    """A host, from outside: make, find and delete agents, ask how it is, stop it. Any thread may use it.

    All clients of one process to one host share a connection, which opens with the first request and closes with
    the last client: a client counts until it is closed, or dropped together with its proxies and their results. On
    the same machine it takes the host's Unix socket by itself; ``transport="tcp"`` forces TCP, ``"tcp-insecure"`` TCP
    without keys and encryption, to a host that was started with ``insecure``.
    ``timeout`` is the default deadline in seconds of the calls of proxies made here (300 s; None: none at all).
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, *,
        transport: Transport | None = None, timeout: Timeout = UNSET, link: Link | None = None,
    ) -> None:  # fmt: skip
        if link is None:
            check_host(host)
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise errors.ConfigError(f"port must be a whole number from 1 to 65535, not {port!r}")
            if transport not in (None, "ipc", "tcp", "tcp-insecure"):
                raise errors.ConfigError(f"transport must be 'ipc', 'tcp', 'tcp-insecure' or None, not {transport!r}")
            link = connect(Target(host, port, transport))
        self._link = link
        self._timeout = timeout
        self._open = False
        self._use()

    @property
    def link(self) -> Link:
        """What carries the requests."""
        return self._link

    @property
    def address(self) -> str:
        """``host:port``, or ``ipc:/path`` of a private host."""
        return self._link.address

    # ------------------------------------------------------------ agents

    def create_agent(
        self, cls_or_name: type | str, *args: Any, agent_id: str | None = None,
        agent_options: Mapping[str, Any] | None = None, **kwargs: Any,
    ) -> AgentProxy:  # fmt: skip
        """Make an agent on the host; its proxy.

        ``cls_or_name``: a class, or the name of one that the host knows (`UnknownClass` lists those). The
        remaining arguments go to its ``__init__``. A given ``agent_id`` that is taken is `AgentExists`.
        ``agent_options`` override those of the class for this agent: ``max_concurrency``, ``reentrant``, ``on_busy``.
        """
        name, options = creation(cls_or_name, agent_id, agent_options)
        try:
            return self._create(name, args, kwargs, options)
        except errors.UnknownClass:
            if not isinstance(cls_or_name, type) or not self._link.takes_pickles:
                raise
        self._manage(Op.REGISTER, cls_or_name)
        return self._create(name, args, kwargs, options)

    def get_agent(self, agent_id: str) -> AgentProxy:
        """The proxy of an agent that is there; UnknownAgent if it is not."""
        checked_name(agent_id, errors.UnknownAgent)
        return self.proxy_from(self._manage(Op.DESCRIBE, options={"id": agent_id}))

    def delete_agent(self, agent_id: str) -> bool:
        """Delete an agent: its running call ends, its queued ones get `AgentDeleted`. UnknownAgent if there is none."""
        checked_name(agent_id, errors.UnknownAgent)
        return bool(self._manage(Op.DELETE, options={"id": agent_id}))

    def delete_all_agent(self) -> bool:
        """Delete every agent of the host."""
        return bool(self._manage(Op.DELETE_ALL))

    def get_agent_list(self) -> list[dict[str, Any]]:
        """The agents: agent_id, class, type, calls, running, queued, age_s."""
        return list(self._manage(Op.LIST))

    def get_agent_memory(self, agent_id: str) -> Any:
        """What the agent remembers: its ``memory.get_memory()``, ``state.context`` or ``memory``."""
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
        """Ask the host to drain and end; returns when it has agreed. ``grace_s``: how long calls may go on."""
        return bool(self._manage(Op.STOP, options={} if grace_s is None else {"grace_s": grace_s}))

    def get_server_info(self) -> dict[str, Any]:
        """How the host is: server_id, pid, port, capacity, counts, store, settings."""
        return dict(self._manage(Op.INFO))

    def get_call_list(self) -> list[dict[str, Any]]:
        """The calls that are not answered yet: task_id, agent, method, state, age_s, waits_for."""
        return list(self._manage(Op.CALLS))

    def cancel(self, task_id: str) -> bool:
        """Cancel a call and those that it has made; False if it is not open. Somebody else's needs the role admin."""
        return bool(self._manage(Op.CANCEL, options={"id": checked_name(task_id, errors.UnknownTask)}))

    def get_result_list(self, most: int = 1000) -> list[dict[str, Any]]:
        """The host's unfinished calls whose results will be kept, and the ``most`` latest results that are: task_id,
        state, age_s (since the call, or since its finish), bytes. In a shared store those of all hosts."""
        return list(self._manage(Op.RESULTS, options={"most": most}))

    def dump(self) -> list[dict[str, Any]]:
        """The open calls with the stack of their code and what they wait for: to see what is stuck."""
        return list(self._manage(Op.DUMP))

    def set_model_configs(self, configs: Mapping[str, Any] | list[Mapping[str, Any]]) -> bool:
        """Give the host model configurations; all are checked before any is taken."""
        given = dict(configs) if isinstance(configs, Mapping) else [dict(config) for config in configs]
        return bool(self._manage(Op.MODELS, given))

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult:
        """The result of any call, made by whomever; the host waits up to ``timeout`` seconds for it.

        It ends in CallTimeout also when the host itself does not answer by then, or within its management timeout.
        """
        checked_name(task_id, errors.UnknownTask)
        return holding(self, AsyncResult.attach(self._link, task_id, bind_reference, timeout))

    def download_file(
        self, remote_path: str | os.PathLike[str], local_path: str | os.PathLike[str],
        progress: Progress | None = None, *, timeout: Timeout = UNSET,
    ) -> int:  # fmt: skip
        """Copy a file of the host to ``local_path``, which appears when it is whole; its size in bytes.

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

    def open_download(self, remote_path: str | os.PathLike[str], timeout: Timeout) -> Stream:
        """The stream of a file: its size, then its bytes."""
        link, path = self._link, os.fspath(remote_path)
        stream = Stream(link, Op.DOWNLOAD, bind_reference)
        left = time_left(self._timeout if isinstance(timeout, _Unset) else timeout)
        body = request_body(link, Op.DOWNLOAD, (path,), {})
        stream.task_id = link.submit("", Op.DOWNLOAD, body, stream.inlet, flags=Flag.STREAM, timeout=left)
        return holding(self, stream)

    # ------------------------------------------------------------ life

    def close(self) -> None:
        """Let go of the connection; the last client of this process to the host closes it. Idempotent."""
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

    def _use(self) -> None:
        if isinstance(self._link, Connection):
            self._link.take_up()
            self._open = True
            self._finalizer = weakref.finalize(self, self._link.let_go)  # dropped without close: no user any more

    # ------------------------------------------------------------ requests

    def _create(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> AgentProxy:
        link = self._link
        link.settle(time_left(self._timeout))  # whether it takes pickles decides how to encode
        short = name.rpartition(":")[2]
        body = request_body(link, short, args, kwargs)
        reply = link.call("", Op.CREATE, body, options=options, timeout=time_left(self._timeout))
        return self.proxy_from(_value_of(link, reply))

    def proxy_from(self, description: Any, *, awaitable: bool = False) -> AgentProxy:
        """The proxy for a host's description of an agent."""
        if isinstance(description, bytes):
            description = codec.unpack(description, max_bytes=1 << 24)
        agent_id, class_name, doc, packed = description
        methods = _methods(packed)
        return AgentProxy(
            self._link, agent_id, class_name, doc, methods, timeout=self._timeout, awaitable=awaitable, client=self
        )

    def _manage(self, op: str, *args: Any, options: dict[str, Any] | None = None, timeout: float | None = None) -> Any:
        link = self._link
        body = request_body(link, op, args, {})
        left = time_left(link.management_timeout_s if timeout is None else timeout)
        return _value_of(link, link.call("", op, body, options=options, timeout=left))


_known_methods: dict[bytes, dict[str, list[str]]] = {}


def _methods(packed: bytes) -> dict[str, list[str]]:
    """The methods of a class as the host describes them; the same bytes come with every agent of the class."""
    known = _known_methods.get(packed)
    if known is None:
        if len(_known_methods) >= 1024:
            _known_methods.clear()
        known = _known_methods[packed] = codec.unpack(packed, max_bytes=1 << 24)
    return known
