"""What callers hold: `AgentProxy`, which looks like the agent, `AsyncResult`, and `RpcClient`.

All three stand on a `Link` and send nothing by themselves but calls. Arguments are encoded in the caller's
thread, so a value that cannot travel fails there (`SerializationError`); a result is decoded in the thread that
first reads it. A proxy and a result are references: they pickle, they go as arguments to any agent on any
host, and arrive as a proxy, or as the finished value.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import contextlib
import contextvars
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from . import codec, errors, trusted
from .agent import class_name_of, current_call
from .client import Connection, Target, Transport, connect, rebuild_error, target_of
from .codec import AgentRef, TaskRef
from .config import DEFAULT_TIMEOUT_S
from .frames import Flag, Op, Reply
from .link import Link

__all__ = ["AgentProxy", "AsyncResult", "RpcClient", "bind_reference", "deadline"]

_MANAGEMENT_TIMEOUT_S = 5.0

# ---------------------------------------------------------------- links

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


def bind_reference(ref: AgentRef | TaskRef) -> Any:
    """A live proxy or result for a reference from the wire. Sends nothing."""
    link = link_for(ref.server_id, ref.address)
    if isinstance(ref, AgentRef):
        methods = {name: [returns, "", ""] for name, returns in ref.methods.items()}
        return AgentProxy(link, ref.agent_id, ref.class_name, "", methods, described=False, server_id=ref.server_id)
    return AsyncResult.attach(link, ref.task_id)


# ---------------------------------------------------------------- deadlines

_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("zmqagents_deadline", default=None)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Every call made in this block must end within ``seconds`` from its start; the narrower of two nested ones holds."""
    end = time.monotonic() + seconds
    outer = _deadline.get()
    token = _deadline.set(end if outer is None else min(end, outer))
    try:
        yield
    finally:
        _deadline.reset(token)


class _Unset:
    def __repr__(self) -> str:
        return "default"


_UNSET = _Unset()
Timeout = float | None | _Unset


def _time_left(timeout: Timeout) -> float | None:
    """Seconds for one call: its own timeout, the block's deadline, the calling agent's rest; the least of them."""
    left = DEFAULT_TIMEOUT_S if isinstance(timeout, _Unset) else timeout
    limits = [] if left is None else [left]
    end = _deadline.get()
    if end is not None:
        limits.append(end - time.monotonic())
    call = current_call()
    if call is not None:
        rest = call.remaining()
        if rest is not None:
            limits.append(rest)
    if not limits:
        return None
    least = min(limits)
    if least <= 0:
        raise errors.CallTimeout("the deadline had passed before the call was made")
    return least


# ---------------------------------------------------------------- results


class AsyncResult(concurrent.futures.Future):  # type: ignore[type-arg]
    """The result of a call that runs meanwhile: a `concurrent.futures.Future` that can also be awaited.

    ``task_id`` finds it again from any process (`RpcClient.get_result`). As an argument it goes as a reference,
    and the method that gets it sees the value. Reading an attribute or an item of it waits for the value.
    ``result`` and ``exception`` may be called again and again, from any thread.
    """

    def __init__(self, link: Link, label: str = "") -> None:
        super().__init__()
        self._link = link
        self._label = label
        self._decode_lock = threading.Lock()
        self._decoded = False
        self.task_id = ""

    @classmethod
    def attach(cls, link: Link, task_id: str, timeout: float | None = None) -> AsyncResult:
        """The result of a call that somebody else made."""
        result = cls(link, task_id)
        result.task_id = task_id
        link.fetch(task_id, result, timeout=timeout)
        return result

    @property
    def server_id(self) -> str:
        return self._link.server_id

    # The link's thread calls these two.

    def deliver(self, reply: Reply | None) -> None:
        if reply is None:
            self.fail(errors.CallTimeout(f"{self.task_id} was not finished in time"))
        elif reply.code:
            self.fail(rebuild_error(reply))
        else:
            with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled meanwhile
                self.set_result(reply)

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            self.set_exception(error)

    # The Future protocol.

    def result(self, timeout: float | None = None) -> Any:
        """The value, waiting at most ``timeout`` seconds for it (CallTimeout); raises what the call raised."""
        self._wait(timeout)
        try:
            value = super().result(0)
        except concurrent.futures.TimeoutError:
            raise errors.CallTimeout(f"{self!r} was not finished within {timeout:.3g} s") from None
        return self._decode(value)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, None if nothing; waits like `result`."""
        self._wait(timeout)
        try:
            return super().exception(0)
        except concurrent.futures.TimeoutError:
            raise errors.CallTimeout(f"{self!r} was not finished within {timeout:.3g} s") from None

    def cancel(self) -> bool:
        """Cancel the call: one that waits never runs, one that runs is told. False if it is finished."""
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()  # so that concurrent.futures.wait sees it
        with contextlib.suppress(errors.ZmqAgentsError):
            self._link.cancel(self.task_id)
        return True

    def _wait(self, timeout: float | None) -> None:
        if self.done():
            return
        call = current_call()
        if call is not None:
            call.host.wait_for(call, [self], timeout, False)  # gives the worker slot back meanwhile
            return
        with contextlib.suppress(concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            super().exception(timeout)

    def _decode(self, value: Any) -> Any:
        if self._decoded:
            return value
        with self._decode_lock:
            if not self._decoded:
                self._result = _decode(self._link, value)
                self._decoded = True
            return self._result

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    # It reads like its value.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"AsyncResult has no attribute {name!r}")
        return getattr(self.result(), name)

    def __getitem__(self, key: Any) -> Any:
        return self.result()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.result())

    def __len__(self) -> int:
        return len(self.result())

    def __contains__(self, item: object) -> bool:
        return item in self.result()

    def __bool__(self) -> bool:
        return True  # `if result:` asks whether there is one, and must not wait

    def __repr__(self) -> str:
        return f"<AsyncResult {self._label} {self.task_id} {self._state.lower()}>"

    # It travels as a reference.

    def __zmqagents_ref__(self) -> TaskRef:
        _settle_link(self._link)
        return TaskRef(self.task_id, self._link.server_id, self._link.address)

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self.__zmqagents_ref__()
        return _attach, (ref.task_id, ref.server_id, ref.address)


def _attach(task_id: str, server_id: str, address: str) -> AsyncResult:
    return AsyncResult.attach(link_for(server_id, address), task_id)


def _settle_link(link: Link) -> None:
    """A reference names its host, so the host must have said its name."""
    if not link.server_id and isinstance(link, Connection):
        link.ensure_ready(_time_left(_MANAGEMENT_TIMEOUT_S))


def _decode(link: Link, reply: Reply) -> Any:
    payload, *buffers = reply.body
    unpickler = trusted.loads if isinstance(link, Connection) and link.takes_pickles else None
    return codec.decode(payload, buffers, resolve=_resolve_in_result, unpickler=unpickler)


def _resolve_in_result(ref: AgentRef | TaskRef) -> Any:
    return bind_reference(ref)


def _value_of(link: Link, reply: Reply) -> Any:
    if reply.code:
        raise rebuild_error(reply)
    return _decode(link, reply)


def _pickler(link: Link) -> Callable[[Any], bytes] | None:
    return trusted.dumps if isinstance(link, Connection) and link.takes_pickles else None


# ---------------------------------------------------------------- proxies


class AgentProxy:
    """An agent on a host, from anywhere: its methods are called as if they were local.

    A method gives its value, an `AsyncResult` or an iterator, as the class says. Any other public name is an
    attribute of the agent, read at each access; setting one raises. Names of the class are known without asking
    the host: ``dir()``, ``help()`` and signatures work offline. Control goes through `RpcClient`, so that no
    name of the agent's is shadowed.
    """

    def __init__(
        self, link: Link, agent_id: str, class_name: str, doc: str, methods: Mapping[str, list[str]], *,
        timeout: Timeout = _UNSET, described: bool = True, server_id: str | None = None,
    ) -> None:  # fmt: skip
        own = self.__dict__
        own["_za_link"] = link
        own["_za_id"] = agent_id
        own["_za_class"] = class_name
        own["_za_methods"] = methods
        own["_za_timeout"] = timeout
        own["_za_described"] = described
        own["_za_server"] = server_id
        own["__doc__"] = doc

    @property
    def agent_id(self) -> str:
        """The agent's id on its host."""
        return str(self._za_id)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private: {self!r} does not offer it")
        methods = self._za_methods
        if name in methods:
            method = RemoteMethod(self._za_link, self._za_id, name, methods[name], self._za_timeout)
            self.__dict__[name] = method  # the next access finds it without coming here
            return method
        return self._za_read(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "__call__" not in self._za_methods:
            raise TypeError(f"{self._za_class} is not callable: {self!r}")
        return RemoteMethod(self._za_link, self._za_id, "__call__", self._za_methods["__call__"], self._za_timeout)(
            *args, **kwargs
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"cannot set {name!r}: {self!r} is a proxy; give the agent a method that sets it")

    __delattr__ = None  # type: ignore[assignment]

    def __dir__(self) -> list[str]:
        return sorted({"agent_id", *(name for name in self._za_methods)})

    def __repr__(self) -> str:
        return f"<AgentProxy {self._za_class} {self._za_id!r} at {self._za_link.address}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AgentProxy):
            return NotImplemented
        return (self._za_id, self._za_link.address) == (other._za_id, other._za_link.address)

    def __hash__(self) -> int:
        return hash((self._za_id, self._za_link.address))

    def __copy__(self) -> AgentProxy:
        return self

    def __deepcopy__(self, memo: Any) -> AgentProxy:
        return self

    def __zmqagents_ref__(self) -> AgentRef:
        link = self._za_link
        _settle_link(link)
        methods = {name: spec[0] for name, spec in self._za_methods.items()}
        return AgentRef(self._za_server or link.server_id, link.address, self._za_id, self._za_class, methods)

    def __reduce__(self) -> tuple[Any, ...]:
        ref = self.__zmqagents_ref__()
        return bind_reference, (ref,)

    def _za_read(self, name: str) -> Any:
        link = self._za_link
        reply = link.call(
            self._za_id, name, codec.encode_call((), {}), flags=Flag.ATTRIBUTE, timeout=_time_left(self._za_timeout)
        )
        return _value_of(link, reply)


class RemoteMethod:
    """One method of a proxy. ``timeout=`` is the call's deadline, unless the method itself has such a parameter."""

    def __init__(self, link: Link, agent_id: str, name: str, spec: list[str], timeout: Timeout) -> None:
        self._link = link
        self._agent_id = agent_id
        self._returns, self._signature, self.__doc__ = spec
        self._timeout = timeout
        self._label = f"{agent_id}.{name}"
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        timeout: Timeout = self._timeout
        if "timeout" in kwargs and not self._has_timeout():
            timeout = kwargs.pop("timeout")
        return self._send(args, kwargs, timeout)

    def with_timeout(self, seconds: float | None) -> RemoteMethod:
        """The same method with another deadline: for methods that have a parameter ``timeout`` of their own."""
        spec = [self._returns, self._signature, self.__doc__ or ""]
        return RemoteMethod(self._link, self._agent_id, self.__name__, spec, seconds)

    def _send(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: Timeout) -> Any:
        link = self._link
        left = _time_left(timeout)
        body = codec.encode_call(
            args, kwargs, what=f"{self._label}: ", max_bytes=link.max_bytes, pickler=_pickler(link)
        )
        if self._returns == "value":
            reply = link.call(self._agent_id, self.__name__, body, timeout=left)
            if reply.code:
                raise rebuild_error(reply)
            return _decode(link, reply)
        result = AsyncResult(link, self._label)
        result.task_id = link.submit(self._agent_id, self.__name__, body, result, flags=Flag.DETACHED, timeout=left)
        return result

    def _has_timeout(self) -> bool:
        return "timeout" in self._signature or "**" in self._signature

    @property
    def __signature__(self) -> inspect.Signature:
        return _signature_from(self._signature)

    def __repr__(self) -> str:
        return f"<RemoteMethod {self._label}{self._signature}>"


def _signature_from(text: str) -> inspect.Signature:
    """The signature that ``text`` says, without ``self``; annotations and defaults stay text."""
    try:
        function = ast.parse(f"def f{text}: ...").body[0]
        assert isinstance(function, ast.FunctionDef)
    except (SyntaxError, AssertionError):  # a default whose repr is no Python, or no signature at all
        function = ast.parse("def f(self, *args, **kwargs): ...").body[0]  # type: ignore[assignment]
    given = function.args  # type: ignore[union-attr]
    kinds = inspect.Parameter
    positional = [(arg, kinds.POSITIONAL_ONLY) for arg in given.posonlyargs]
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
    annotation = ast.unparse(arg.annotation) if arg.annotation else empty
    return inspect.Parameter(arg.arg, kind, default=ast.unparse(default) if default else empty, annotation=annotation)


# ---------------------------------------------------------------- the client


class RpcClient:
    """A host, from outside: make, find and delete agents, ask how it is, stop it. Any thread may use it.

    All clients of one process to one host share a connection, which opens with the first request and closes with
    the last client. On the same machine it takes the host's Unix socket by itself; ``transport="tcp"`` forces TCP.
    ``timeout`` is the default deadline in seconds of the calls of proxies made here (300 s; None: none at all).
    """

    def __init__(
        self, host: str = "localhost", port: int | None = None, *,
        transport: Transport | None = None, timeout: Timeout = _UNSET, link: Link | None = None,
    ) -> None:  # fmt: skip
        if link is None:
            if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
                raise errors.ConfigError(f"port must be a whole number from 1 to 65535, not {port!r}")
            if transport not in (None, "ipc", "tcp"):
                raise errors.ConfigError(f"transport must be 'ipc', 'tcp' or None, not {transport!r}")
            link = connect(Target(host, port, transport))
        self._link = link
        self._timeout = timeout
        self._open = False
        self._use()

    @property
    def address(self) -> str:
        """``host:port``, or ``ipc:/path`` of a private host."""
        return self._link.address

    # ------------------------------------------------------------ agents

    def create_agent(self, cls_or_name: type | str, *args: Any, agent_id: str | None = None, **kwargs: Any) -> AgentProxy:
        """Make an agent on the host; its proxy.

        ``cls_or_name``: a class, or the name of one that the host knows (`UnknownClass` lists those). The
        remaining arguments go to its ``__init__``. A given ``agent_id`` that is taken is `AgentExists`.
        """
        name = class_name_of(cls_or_name) if isinstance(cls_or_name, type) else cls_or_name
        if not isinstance(name, str):
            raise errors.ConfigError(f"create_agent takes a class or its name, not {cls_or_name!r}")
        options: dict[str, Any] = {"class": name}
        if agent_id is not None:
            options["id"] = agent_id
        try:
            return self._create(name, args, kwargs, options)
        except errors.UnknownClass:
            if not isinstance(cls_or_name, type) or not self._takes_pickles():
                raise
        self._manage(Op.REGISTER, cls_or_name)
        return self._create(name, args, kwargs, options)

    def get_agent(self, agent_id: str) -> AgentProxy:
        """The proxy of an agent that is there; UnknownAgent if it is not."""
        return self._proxy(self._manage(Op.DESCRIBE, options={"id": agent_id}))

    def delete_agent(self, agent_id: str) -> bool:
        """Delete an agent: its running call ends, its queued ones get `AgentDeleted`. UnknownAgent if there is none."""
        return bool(self._manage(Op.DELETE, options={"id": agent_id}))

    def delete_all_agent(self) -> bool:
        """Delete every agent of the host."""
        return bool(self._manage(Op.DELETE_ALL))

    def get_agent_list(self) -> list[dict[str, Any]]:
        """The agents: agent_id, class, type, calls, running, queued, age_s."""
        return list(self._manage(Op.LIST))

    def get_agent_memory(self, agent_id: str) -> Any:
        """What the agent remembers: its ``memory.get_memory()``, ``state.context`` or ``memory``."""
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

    def set_model_configs(self, configs: Mapping[str, Any] | list[Mapping[str, Any]]) -> bool:
        """Give the host model configurations; all are checked before any is taken."""
        given = dict(configs) if isinstance(configs, Mapping) else [dict(config) for config in configs]
        return bool(self._manage(Op.MODELS, given))

    def get_result(self, task_id: str, timeout: float | None = None) -> AsyncResult:
        """The result of any call, made by whomever; the host waits up to ``timeout`` seconds for it."""
        return AsyncResult.attach(self._link, task_id, timeout)

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

    def _takes_pickles(self) -> bool:
        return isinstance(self._link, Connection) and self._link.takes_pickles

    def _create(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> AgentProxy:
        link = self._link
        if isinstance(link, Connection):
            link.ensure_ready(_time_left(self._timeout))  # whether it takes pickles decides how to encode
        short = name.rpartition(":")[2]
        body = codec.encode_call(args, kwargs, what=f"{short}: ", max_bytes=link.max_bytes, pickler=_pickler(link))
        reply = link.call("", Op.CREATE, body, options=options, timeout=_time_left(self._timeout))
        return self._proxy(_value_of(link, reply))

    def _proxy(self, description: Any) -> AgentProxy:
        if isinstance(description, bytes):
            description = codec.unpack(description, max_bytes=1 << 24)
        agent_id, class_name, doc, packed = description
        return AgentProxy(self._link, agent_id, class_name, doc, _methods(packed), timeout=self._timeout)

    def _manage(
        self, op: str, *args: Any, options: dict[str, Any] | None = None, timeout: float = _MANAGEMENT_TIMEOUT_S
    ) -> Any:
        link = self._link
        body = codec.encode_call(args, {}, what=f"{op}: ", max_bytes=link.max_bytes, pickler=_pickler(link))
        return _value_of(link, link.call("", op, body, options=options, timeout=_time_left(timeout)))


_known_methods: dict[bytes, dict[str, list[str]]] = {}


def _methods(packed: bytes) -> dict[str, list[str]]:
    """The methods of a class as the host describes them; the same bytes come with every agent of the class."""
    known = _known_methods.get(packed)
    if known is None:
        if len(_known_methods) >= 1024:
            _known_methods.clear()
        known = _known_methods[packed] = codec.unpack(packed, max_bytes=1 << 24)
    return known


