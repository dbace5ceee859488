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
`AgentBase.to_dist` goes through `distributor`, which the package's ``__init__`` sets, because making a proxy is
layers above.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, UnknownMethod
from .context import HostServices, own_call
from .marks import AgentOptions, OnBusy, host_only

__all__ = ["AgentBase"]


# (class, args, kwargs, agent id, where) -> proxy. Set by the package's __init__.
distributor: Callable[..., Any] | None = None


def new_agent_id(class_name: str) -> str:
    """A short id, unique across hosts for practical purposes: ``reader-7f3k2a9c``."""
    return f"{class_name.lower()}-{os.urandom(4).hex()}"


class _AgentMeta(type):
    """Keeps the arguments that an agent is made with, so that ``to_dist`` can make it again on a host."""

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
    """A base for agents: subclasses write ``reply`` and any other public methods.

    Class keywords set the options: ``class Counter(AgentBase, max_concurrency=4, reentrant=True)``. The keyword
    ``to_dist`` of the constructor makes the agent on a host and returns its proxy: True means the private host of
    this process, a dict is like the arguments of `to_dist`.
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
        """The id under which the host knows this agent. An agent that is on no host gets an id at the first look."""
        made: str | None = self.__dict__.get("_zmqagents_id")
        if made is None:
            made = self.__dict__["_zmqagents_id"] = new_agent_id(type(self).__name__)
        return made

    def reply(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one message; subclasses write this method. Callers elsewhere get an `AsyncResult`."""
        raise UnknownMethod(f"{type(self).__name__} has no reply method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same as `reply`."""
        return self.reply(*args, **kwargs)

    @host_only
    def to_dist(self, host: str | None = None, port: int | None = None, **where: Any) -> Any:
        """Make the agent again on a host, from the arguments that it was made with; returns its proxy.

        ``host`` and ``port`` name a running host, ``where`` takes ``transport`` and ``timeout`` (seconds). Without
        host and port the agent goes to the one private host of this process. State that was changed since
        ``__init__`` stays behind. HostUnreachable: no host answers there; UnknownClass: the host lacks the class;
        ConfigError: an argument of ``to_dist`` is wrong.
        """
        args, kwargs = self.__dict__["_zmqagents_made_with"]
        given = {"host": host, "port": port, **where}
        where = {key: value for key, value in given.items() if value is not None}
        return _distribute(type(self), args, kwargs, self.agent_id, where)

    @host_only
    def model_config(self, name: str) -> dict[str, Any]:
        """The model configuration ``name`` of the host. For agent code only; ConfigError: there is no such one."""
        return self._host().model_config(name)

    @host_only
    def model(self, name: str) -> Any:
        """A client for the model configuration ``name``. For agent code only; ConfigError: there is no such one."""
        return self._host().model(name)

    def _host(self) -> HostServices:
        call = own_call()
        host: HostServices | None = call.host if call is not None else self.__dict__.get("_zmqagents_host")
        if host is None:
            raise ConfigError(f"{type(self).__name__} is not on a host, and model configurations are kept by hosts")
        return host
