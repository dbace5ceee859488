"""What users write: agent classes, the decorators on their methods, and what a call knows of itself.

An *agent* is an ordinary Python object that a host keeps and whose public methods it runs for
callers elsewhere. Any class will do: one that derives from `AgentBase`, or one under ``@agent``.
The public methods are those whose name has no leading underscore, and ``__call__``; a name with a
leading underscore is never reachable from outside.

How a method reaches the caller follows from how it is written:

==============================  =========================================================
plain method                    blocking call, gives the value (``returns == "value"``)
``@async_func``, ``async def``  gives an `AsyncResult` at once (``"future"``)
generator, sync or async        gives an iterator (``"stream"``)
==============================  =========================================================

`AgentBase` marks ``reply`` and ``__call__`` as ``@async_func``. An ``async def`` method runs on the
host's event loop and holds no worker thread; every other runs in a worker thread. One call at a
time runs on an agent, unless its class says ``max_concurrency=n``; a ``@concurrent`` method runs
beside that turn.

Each call (making an agent and reading an attribute are calls, too) runs in a `contextvars.Context` of its
own, which is empty when it begins, as that of a new thread is. What it sets, such as the digits of
`decimal.getcontext`, no other call sees, and it sees nothing that other calls or the host's program have
set. A generator has one context for all its steps; a coroutine that a plain method gives goes on in a
copy of the method's.

This module does no I/O and imports nothing above `errors`. What an agent may ask of its host goes
through `HostServices`, which the host sets; `AgentBase.to_dist` goes through `distributor`, which
the package's ``__init__`` sets.
"""

from __future__ import annotations

import contextvars
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, overload

from ..errors import CallCancelled, CallTimeout, ConfigError, UnknownMethod, type_name_of
from .timing import Pace

__all__ = [
    "AgentBase",
    "AgentOptions",
    "CallContext",
    "ClassSpec",
    "HostServices",
    "MethodSpec",
    "agent",
    "async_func",
    "class_name_of",
    "concurrent",
    "current_call",
    "is_agent_class",
    "spec_of",
    "stream_func",
    "sync_func",
]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

Returns = Literal["value", "future", "stream"]
OnBusy = Literal["enqueue", "reject"]

# ---------------------------------------------------------------- decorators on methods


def async_func(function: F) -> F:
    """The caller gets an `AsyncResult` at once instead of waiting for the value."""
    function.__zmqagents_returns__ = "future"  # type: ignore[attr-defined]
    return function


def sync_func(function: F) -> F:
    """The caller waits for the value, also where `AgentBase` or ``async def`` would say otherwise."""
    function.__zmqagents_returns__ = "value"  # type: ignore[attr-defined]
    return function


def stream_func(function: F) -> F:
    """The method returns an iterator whose items are sent one by one (a generator needs no mark)."""
    function.__zmqagents_returns__ = "stream"  # type: ignore[attr-defined]
    return function


def concurrent(function: F) -> F:
    """Run the method beside the agent's turn: for progress and getters. It must be thread-safe."""
    function.__zmqagents_concurrent__ = True  # type: ignore[attr-defined]
    return function


def idempotent(function: F) -> F:
    """Running the method twice does no harm: after a crash of the host the client sends the call to its successor."""
    function.__zmqagents_idempotent__ = True  # type: ignore[attr-defined]
    return function


def _host_only(function: F) -> F:
    """Public to the agent's own code, but not reachable by callers."""
    function.__zmqagents_host_only__ = True  # type: ignore[attr-defined]
    return function


# ---------------------------------------------------------------- class options


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How the host treats the agents of a class."""

    max_concurrency: int = 1  # calls of one agent that may run at the same moment
    reentrant: bool = False  # a call chain that comes back to this agent is let in, where it would be stuck otherwise
    on_busy: OnBusy = "enqueue"  # "reject": a call that would have to queue is HostBusy

    def __post_init__(self) -> None:
        if type(self.max_concurrency) is not int or self.max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be a whole number of at least 1, not {self.max_concurrency!r}")
        if not isinstance(self.reentrant, bool):
            raise ConfigError(f"reentrant must be True or False, not {self.reentrant!r}")
        if self.on_busy not in ("enqueue", "reject"):
            raise ConfigError(f"on_busy must be 'enqueue' or 'reject', not {self.on_busy!r}")


@overload
def agent(cls: C) -> C: ...
@overload
def agent(*, max_concurrency: int = 1, reentrant: bool = False, on_busy: OnBusy = "enqueue") -> Callable[[C], C]: ...
def agent(cls: Any = None, **options: Any) -> Any:
    """Make any class an agent class: ``@agent``, or ``@agent(max_concurrency=4)``."""
    chosen = AgentOptions(**options)

    def mark(target: C) -> C:
        if not isinstance(target, type):
            raise ConfigError(f"@agent goes on a class, not on {target!r}")
        target.__zmqagents_options__ = chosen  # type: ignore[attr-defined]
        target.__zmqagents_marked__ = target  # type: ignore[attr-defined]  # not inherited: see is_agent_class
        return target

    return mark if cls is None else mark(cls)


def is_agent_class(value: object) -> bool:
    """True for a subclass of `AgentBase` (not itself) and for a class under ``@agent`` (not its subclasses)."""
    if not isinstance(value, type) or value is AgentBase:
        return False
    return issubclass(value, AgentBase) or vars(value).get("__zmqagents_marked__") is value


# ---------------------------------------------------------------- what a class offers


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One public method, as host and caller need to know it."""

    name: str
    returns: Returns
    on_loop: bool  # async def or async generator: runs on the host's event loop, without a worker
    concurrent: bool
    signature: str  # "(self, question: str, *, k: int = 3) -> str", "" when Python cannot tell
    doc: str
    idempotent: bool = False
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)  # of its runs in this process

    @property
    def mark(self) -> str:
        """How a caller is to call it: ``returns``, with a ``!`` behind it if it may be sent twice."""
        return f"{self.returns}!" if self.idempotent else self.returns


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """One agent class: ``name`` is ``module:Qualified.Name``; ``methods`` by method name."""

    name: str
    short: str
    doc: str
    options: AgentOptions
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)  # of making an agent


class_name_of = type_name_of  # under which a host knows a class, too


_specs: weakref.WeakKeyDictionary[type, ClassSpec] = weakref.WeakKeyDictionary()


def spec_of(cls: type) -> ClassSpec:
    """What ``cls`` offers; computed once per class. Never calls anything of the class."""
    spec = _specs.get(cls)
    if spec is None:
        options = getattr(cls, "__zmqagents_options__", None) or AgentOptions()
        found = ((name, _method_spec(cls, name)) for name in dir(cls))
        methods = {name: method for name, method in found if method is not None}
        spec = ClassSpec(class_name_of(cls), cls.__name__, inspect.getdoc(cls) or "", options, methods)
        _specs[cls] = spec
    return spec


def _method_spec(cls: type, name: str) -> MethodSpec | None:
    if name.startswith("_") and name != "__call__":
        return None
    member = inspect.getattr_static(cls, name)
    function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
    if not callable(function) or isinstance(function, type) or (name == "__call__" and not inspect.isroutine(function)):
        return None
    if getattr(function, "__zmqagents_host_only__", False):
        return None
    if name == "__call__" and function is AgentBase.__call__:
        function = inspect.getattr_static(cls, "reply")  # __call__ passes on to reply, so it is alike
        function = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
    return _spec_from(cls, name, function)


def _spec_from(cls: type, name: str, function: Any) -> MethodSpec:
    on_loop = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    returns: Returns | None = getattr(function, "__zmqagents_returns__", None)
    if returns is None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            returns = "stream"
        elif on_loop or (name in ("reply", "__call__") and issubclass(cls, AgentBase)):
            returns = "future"
        else:
            returns = "value"
    try:
        signature = str(inspect.signature(function))
    except (TypeError, ValueError):  # builtins without a text signature
        signature = ""
    return MethodSpec(
        name, returns, on_loop, bool(getattr(function, "__zmqagents_concurrent__", False)), signature,
        inspect.getdoc(function) or "", bool(getattr(function, "__zmqagents_idempotent__", False)),
    )  # fmt: skip


# ---------------------------------------------------------------- what a running call knows


class HostServices(Protocol):
    """What an agent's own code may ask of the host that it lives in.

    ``wait_for``, ``wait_for_item`` and ``outside`` are how a wait gives the worker slot back: for results, for the
    next item of a stream, and for anything that this host cannot see. ``awaiting`` tells of a coroutine's wait.
    """

    server_id: str

    def model_config(self, name: str) -> dict[str, Any]: ...
    def model(self, name: str) -> Any: ...
    def client(self) -> Any: ...
    def wait_for(self, call: CallContext, results: Sequence[Any], timeout: float | None, any_of: bool) -> bool: ...
    def wait_for_item(self, call: CallContext, stream: Any, timeout: float | None) -> bool: ...
    def check_blocking(self, what: str) -> None: ...
    def awaiting(
        self, call: CallContext, result: Any, fail: Callable[[Any], None], ready: Callable[[], bool]
    ) -> Callable[[], None]: ...
    def outside(self, call: CallContext) -> AbstractContextManager[None]: ...


class CallContext:
    """The call that the current thread or coroutine is running; see `current_call`.

    ``deadline`` is on ``time.monotonic``'s clock, None: no deadline. The host's router thread sets
    ``cancelled``; the agent's code reads it between two pieces of work.
    """

    __slots__ = (
        "_cancelled", "_event", "agent", "call_id", "chain", "deadline", "host", "method", "outlet", "over",
        "spares", "thread", "ticket",
    )  # fmt: skip

    def __init__(
        self, host: HostServices, call_id: str, agent: str, method: str,
        deadline: float | None = None, chain: tuple[str, ...] = (), ticket: Any = None,
    ) -> None:  # fmt: skip
        self.host = host
        self.call_id = call_id
        self.agent = agent
        self.method = method
        self.deadline = deadline
        self.chain = chain
        self.ticket = ticket  # the host's own record of the call
        self.spares = False  # it was cancelled alone: what its coroutine awaits goes on
        self.over = False  # the method has returned: what it left behind runs for nobody
        self.thread = 0  # the ident of the thread that runs it
        self.outlet: Any = None  # where the items of a stream go
        self._cancelled = False
        self._event: threading.Event | None = None  # made by the first wait_cancelled: most calls have none

    @property
    def cancelled(self) -> bool:
        """True once the caller has cancelled the call or its deadline has passed."""
        return self._cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def cancel(self) -> None:
        """Called by the host, from any thread."""
        self._cancelled = True
        event = self._event
        if event is not None:
            event.set()

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Sleep until cancelled or for ``timeout`` seconds; True if cancelled. For loops that pause."""
        rest = self.remaining()
        limit = rest if timeout is None else timeout if rest is None else min(timeout, rest)
        event = self._event
        if event is None:
            event = self._event = threading.Event()
        if not self.cancelled:  # looked at after the event is in place: cancel() sets the flag first
            event.wait(limit)
        return self.cancelled

    def check(self) -> None:
        """Raise `CallCancelled` if cancelled, `CallTimeout` if the deadline has passed."""
        if self._cancelled:
            raise CallCancelled(f"{self.agent}.{self.method} was cancelled")
        if self.cancelled:
            raise CallTimeout(f"{self.agent}.{self.method} has passed its deadline")

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("zmqagents_call", default=None)


def current_call() -> CallContext | None:
    """The call that this thread or coroutine runs on a host, None outside of one.

    None as well in a task or thread that the method has left behind: the call is over.
    """
    call = _current.get()
    return None if call is None or call.over else call


# ---------------------------------------------------------------- AgentBase

# (agent, where) -> proxy; set by the package's __init__, because making a proxy is layers above.
distributor: Callable[..., Any] | None = None


def new_agent_id(class_name: str) -> str:
    """A short id, unique across hosts for practical purposes: ``reader-7f3k2a9c``."""
    return f"{class_name.lower()}-{os.urandom(4).hex()}"


class _AgentMeta(type):
    """Notes the arguments that an agent is made with, so that ``to_dist`` can make it elsewhere."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        where = kwargs.pop("to_dist", None)
        if where is None or where is False:
            self = super().__call__(*args, **kwargs)
            self.__dict__["_zmqagents_made_with"] = (args, kwargs)
            return self
        if where is not True and not isinstance(where, Mapping):
            raise ConfigError(f"to_dist takes True or a dict like {{'host': ..., 'port': ...}}, not {where!r}")
        return _distribute(cls, args, kwargs, None, {} if where is True else dict(where))


def _distribute(cls: type, args: Any, kwargs: Any, agent_id: str | None, where: dict[str, Any]) -> Any:
    if distributor is None:
        raise ConfigError("import zmqagents before using to_dist")
    return distributor(cls, args, kwargs, agent_id, where)


class AgentBase(metaclass=_AgentMeta):
    """A convenient base for agents; write ``reply`` and any other public methods.

    Class keywords set the options: ``class Counter(AgentBase, max_concurrency=4, reentrant=True)``.
    """

    def __init_subclass__(
        cls, *, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init_subclass__(**kwargs)
        given = {"max_concurrency": max_concurrency, "reentrant": reentrant, "on_busy": on_busy}
        given = {key: value for key, value in given.items() if value is not None}
        if given:
            base: AgentOptions = getattr(cls, "__zmqagents_options__", None) or AgentOptions()
            merged = {key: getattr(base, key) for key in AgentOptions.__slots__} | given
            cls.__zmqagents_options__ = AgentOptions(**merged)  # type: ignore[attr-defined]

    def __init__(self, name: str | None = None) -> None:
        self.name = name if name is not None else type(self).__name__

    @property
    def agent_id(self) -> str:
        """The id under which the host knows this agent; made on first use elsewhere."""
        made: str | None = self.__dict__.get("_zmqagents_id")
        if made is None:
            made = self.__dict__["_zmqagents_id"] = new_agent_id(type(self).__name__)
        return made

    def reply(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one message; subclasses write it. Callers get an `AsyncResult`."""
        raise UnknownMethod(f"{type(self).__name__} has no reply method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same as `reply`."""
        return self.reply(*args, **kwargs)

    @_host_only
    def to_dist(self, host: str | None = None, port: int | None = None, **where: Any) -> Any:
        """Make this agent anew on a host, from the arguments it was made with, and give its proxy.

        ``host`` and ``port`` name a running host; without them the agent goes to the one private
        host of this process. State that was changed since ``__init__`` stays behind.
        """
        args, kwargs = self.__dict__["_zmqagents_made_with"]
        given = {"host": host, "port": port, **where}
        where = {key: value for key, value in given.items() if value is not None}
        return _distribute(type(self), args, kwargs, self.agent_id, where)

    @_host_only
    def model_config(self, name: str) -> dict[str, Any]:
        """The model configuration ``name`` that the host was given. For the agent's own code only."""
        return self._host().model_config(name)

    @_host_only
    def model(self, name: str) -> Any:
        """A ready client for the model configuration ``name``. For the agent's own code only."""
        return self._host().model(name)

    def _host(self) -> HostServices:
        call = current_call()
        host: HostServices | None = call.host if call is not None else self.__dict__.get("_zmqagents_host")
        if host is None:
            raise ConfigError(f"{type(self).__name__} is not on a host: model configs are kept by hosts")
        return host
