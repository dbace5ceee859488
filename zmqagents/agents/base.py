"""`AgentBase`, the base class for agents that want one.

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

This module does no I/O. What an agent asks of its host goes through `HostServices`, which the host sets;
`AgentBase.to_dist` calls the function that the package's ``__init__`` gives to `distribute_with`, because making a
proxy is layers above.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigError, UnknownMethod
from .context import HostServices, own_call
from .marks import host_only
from .options import AgentOptions, Isolation, Lifetime, OnBusy, OnTimeout, Persist, Placing, chosen

__all__ = ["AgentBase", "made_with"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


S = TypeVar("S", bound="AgentBase")
_distributor: Callable[..., Any] | None = None


def distribute_with(distributor: Callable[..., Any]) -> None:
    """Set the function behind ``to_dist``: (class, args, kwargs, agent id, where) -> proxy."""
    global _distributor
    _distributor = distributor


def new_agent_id(class_name: str) -> str:
    """A short id, unique across hosts for practical purposes: ``reader-7f31c2a90b5de864``."""
    return f"{class_name.lower()}-{os.urandom(8).hex()}"


def _distribute(cls: type, args: Any, kwargs: Any, agent_id: str | None, where: dict[str, Any]) -> Any:
    if _distributor is None:
        raise ConfigError("import zmqagents before using to_dist")
    return _distributor(cls, args, kwargs, agent_id, where)


_PYDANTIC = "__pydantic_validator__"  # what a pydantic model has: its __init__ replaces the __dict__ of the instance
_made_with: dict[int, Arguments] = {}  # of pydantic models, by id
_NO_ARGUMENTS: Arguments = (), {}


def made_with(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """What an agent keeps of the arguments that it was made with: no objects of its own where there are none."""
    return (args, kwargs) if args or kwargs else _NO_ARGUMENTS


class _OnInstances:
    """A method that the class itself lacks: pydantic takes an attribute ``model_config`` of a class for settings."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.__zmqagents_host_only__ = True
        self.__doc__ = function.__doc__

    def __call__(self, instance: Any, *args: Any) -> Any:
        return self._function(instance, *args)

    def __get__(self, instance: Any, owner: type) -> Any:
        return None if instance is None else MethodType(self._function, instance)


class AgentBase:
    """A base for agents: subclasses write ``reply`` and any other public methods.

    Class keywords set the options: ``class Counter(AgentBase, max_concurrency=4, reentrant=True)``; see `agent` for
    what they mean, ConfigError for a value that is not allowed. The keyword ``to_dist`` of the constructor makes the
    agent on a host and returns its `AgentProxy`: True means the private host of this process, a dict is like the
    arguments of the method `to_dist`, which says what is raised.

    ``name`` is a text for people, by default the name of the class; it need not be unique.

    On a host, ``__init__`` and the methods run in worker threads, ``async def`` methods on the host's event loop.
    """

    def __init_subclass__(
        cls, *, max_concurrency: int | None = None, reentrant: bool | None = None,
        on_busy: OnBusy | None = None, isolation: Isolation | None = None, memory_mb: int | None = None,
        env: Mapping[str, str] | None = None, max_restarts: int | None = None, on_timeout: OnTimeout | None = None,
        persist: Persist | None = "auto", lifetime: Lifetime | None = None, idle_s: float | None = None,
        placement: Placing | None = None, labels: Mapping[str, str] | None = None, expose: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init_subclass__(**kwargs)
        cls.__zmqagents_exposed__ = expose  # type: ignore[attr-defined]
        given = chosen(
            max_concurrency=max_concurrency, reentrant=reentrant, on_busy=on_busy, isolation=isolation,
            memory_mb=memory_mb, env=env, max_restarts=max_restarts, on_timeout=on_timeout, persist=persist,
            lifetime=lifetime, idle_s=idle_s, placement=placement, labels=labels,
        )  # fmt: skip
        if given:
            base: AgentOptions = getattr(cls, "__zmqagents_options__", None) or AgentOptions()
            cls.__zmqagents_options__ = base.but(given).checked()  # type: ignore[attr-defined]

    if not TYPE_CHECKING:  # to a checker, a call of the class is one of its constructor

        def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
            """Keeps the arguments, so that `to_dist` can make the agent again on a host.

            No metaclass does this: it would stand against those of ABC, Protocol and pydantic.
            """
            if "to_dist" in kwargs:
                where = kwargs.pop("to_dist")
                if where is not True and not isinstance(where, Mapping):
                    raise ConfigError(
                        f"to_dist takes True or a dict like {{'host': ..., 'port': ...}}, not {where!r}: "
                        "leave it out for an agent of this process"
                    )
                return _distribute(cls, args, kwargs, None, {} if where is True else dict(where))
            make: Any = super().__new__
            self = make(cls) if make is object.__new__ else make(cls, *args, **kwargs)
            self.__dict__["_zmqagents_made_with"] = made_with(args, kwargs)
            if hasattr(cls, _PYDANTIC):
                _made_with[id(self)] = made_with(args, kwargs)
                weakref.finalize(self, _made_with.pop, id(self), None)
            return self

    def __init__(self, name: str | None = None, **fields: Any) -> None:
        own_name = name if name is not None else type(self).__name__
        if hasattr(type(self), _PYDANTIC):  # it takes its fields, and refuses other attributes
            super().__init__(**fields if name is None else {**fields, "name": name})
            self.__dict__.setdefault("name", own_name)
            return
        for field in fields:
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {field!r}")
        self.name = own_name

    @property
    def agent_id(self) -> str:
        """The id under which the host knows this agent, such as ``reader-7f31c2a90b5de864``. Any thread.

        An agent that is on no host gets an id when this is read first, and keeps it when `to_dist` makes it on a host.
        A subclass may set an ``agent_id`` of its own; the host still goes by the id that it knows.
        """
        own: str | None = self.__dict__.get("_zmqagents_own_id")
        return own if own is not None else self._id_on_host()

    @agent_id.setter
    def agent_id(self, value: Any) -> None:
        self.__dict__["_zmqagents_own_id"] = value

    def _id_on_host(self) -> str:
        made: str | None = self.__dict__.get("_zmqagents_id")
        if made is None:
            made = self.__dict__["_zmqagents_id"] = new_agent_id(type(self).__name__)
        return made

    if TYPE_CHECKING:  # subclasses give them parameters of their own, and may decorate them
        reply: Any
        __call__: Any

        def __enter__(self: S) -> S: ...  # of a proxy: the agent is deleted at the end of the block
        def __exit__(self, *exc: object) -> None: ...

    else:

        def reply(self, *args: Any, **kwargs: Any) -> Any:
            """Answer one message; subclasses write this method. Callers elsewhere get an `AsyncResult`.

            Takes and returns whatever can be sent. UnknownMethod: the subclass has not written it.
            """
            raise UnknownMethod(f"{type(self).__name__} has no reply method")

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """The same as `reply`: it is called with the same arguments, and its value returned."""
            return self.reply(*args, **kwargs)

    @host_only
    def to_dist(self: S, host: str | None = None, port: int | None = None, **where: Any) -> S:
        """Make the agent again on a host, from the arguments that it was made with; returns its proxy.

        The proxy is typed as the agent, so that a type checker knows its methods, but is no instance of the class.
        ``host`` and ``port`` name a running host, ``where`` takes ``transport`` and ``timeout`` (seconds). Without
        host and port the agent goes to the one private host of this process. State that was changed since
        ``__init__`` stays behind. HostUnreachable: no host answers there; UnknownClass: the host lacks the class;
        ConfigError: an argument of ``to_dist`` is wrong.
        """
        args, kwargs = self.__dict__.get("_zmqagents_made_with") or _made_with[id(self)]
        given = {"host": host, "port": port, **where}
        where = {key: value for key, value in given.items() if value is not None}
        proxy: S = _distribute(type(self), args, kwargs, self._id_on_host(), where)
        return proxy

    @_OnInstances
    def model_config(self, name: str) -> dict[str, Any]:
        """The model configuration ``name`` of the host, as a new dict.

        For code that runs on a host, in any of its threads. ConfigError: the host has no configuration of that name, or
        the agent is on no host.
        """
        return self._host().model_config(name)

    @host_only
    def model(self, name: str) -> Any:
        """A client for the model configuration ``name``: what ``model_type`` names, made once for the host.

        For code that runs on a host, in any of its threads. ConfigError: as in `model_config`, or the configuration
        names no kind of client that there is; MissingExtra: the library for it is not installed.
        """
        return self._host().model(name)

    def _host(self) -> HostServices:
        call = own_call()
        host: HostServices | None = call.host if call is not None else self.__dict__.get("_zmqagents_host")
        if host is None:
            raise ConfigError(f"{type(self).__name__} is not on a host, and model configurations are kept by hosts")
        return host
