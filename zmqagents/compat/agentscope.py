"""AgentScope 0.1.6's distributed mode over this package's transport: its names, and its behaviour where that differs.

    from zmqagents.compat.agentscope import RpcMeta, RpcAgentServerLauncher, RpcClient, async_func

``docs/agentscope.rst`` says how a program comes over, and what is different on purpose.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import tempfile
import warnings
from abc import ABCMeta
from collections.abc import Callable, Mapping
from typing import Any

from .. import errors
from ..agents.base import new_agent_id
from ..agents.context import own_call
from ..agents.marks import async_func, host_only, sync_func
from ..agents.options import AgentOptions
from ..client import rpc
from ..client.proxy import AgentProxy
from ..client.result import AsyncResult as Result
from ..codec import register_type
from ..server import launcher
from ..server.private_host import private_host
from .pools import AsyncResultPool, get_pool
from .retrying import RetryBase, RetryExponential, RetryFixedTimes

__all__ = [
    "AgentCallError", "AgentCreationError", "AgentServerError", "AgentServerNotAliveError", "AsyncResult",
    "AsyncResultPool", "DistConf", "RetryBase", "RetryExponential", "RetryFixedTimes", "RpcAgentServerLauncher",
    "RpcClient", "RpcMeta", "RpcObject", "async_func", "get_model_config", "get_pool", "sync_func",
]  # fmt: skip

_OID = "_oid"  # keyword of a constructor: the id that the agent has on its host
_WHERE = ("host", "port")
_WITHOUT_MEANING = (
    "max_pool_size", "max_expire_time", "max_timeout_seconds", "local_mode", "retry_strategy", "lazy_launch",
)  # fmt: skip
LAUNCH_TIMEOUT_S = 120.0  # importing AgentScope 0.1.6 takes several seconds on an idle machine
_warned = False
_messages: set[type] = set()  # classes of messages that can be sent


# ---------------------------------------------------------------- errors


class AgentServerError(Exception):
    """An error of an agent server, at ``host`` and ``port``."""

    def __init__(self, host: str, port: int | None, message: str | None = None) -> None:
        super().__init__(host, port, message)
        self.host = host
        self.port = port
        self.message = message

    def __str__(self) -> str:
        text = f"{type(self).__name__}[{self.host}:{self.port}]"
        return text if self.message is None else f"{text}: {self.message}"


class AgentServerNotAliveError(AgentServerError):
    """Nothing answers there."""


class AgentCreationError(AgentServerError):
    """An agent could not be made."""


class AgentCallError(AgentServerError):
    """A call of an agent has failed."""


# ---------------------------------------------------------------- where


class DistConf(dict[str, Any]):
    """Where an agent is to be made, for ``to_dist``."""

    def __init__(self, host: str = "localhost", port: int | None = None, **without_meaning: Any) -> None:
        _warn_of(without_meaning)
        super().__init__(host=host, port=port)


def _warn_of(given: Mapping[str, Any]) -> None:
    """Say once that some of 0.1.6's settings are not needed. ConfigError: it did not have them either."""
    global _warned
    unknown = given.keys() - {*_WHERE, *_WITHOUT_MEANING}
    if unknown:
        raise errors.ConfigError(f"to_dist does not know {', '.join(sorted(unknown))}")
    idle = [name for name in _WITHOUT_MEANING if name in given]
    if idle and not _warned:
        _warned = True
        text = f"{', '.join(idle)}: accepted for AgentScope 0.1.6's sake, without effect (nothing is polled)"
        warnings.warn(text, DeprecationWarning, stacklevel=4)


def _packages_of(*classes: Any) -> tuple[str, ...]:
    """The packages whose messages such agents send: AgentScope's own, and that of each class."""
    found = {cls.__module__.partition(".")[0] for cls in classes if isinstance(cls, type)}
    return tuple(sorted((found | {"agentscope"}) - {"__main__", "builtins"}))


def _know_messages() -> None:
    """Let AgentScope's messages be sent as they are, once it is imported: its agents put more into them than their
    fields allow, and nothing has checked that.
    """
    known = getattr(sys.modules.get("agentscope.message"), "Msg", None)
    if known is not None and hasattr(known, "model_construct") and known not in _messages:
        _messages.add(known)
        register_type(known, to_data=lambda message: dict(vars(message)), from_data=lambda data: _made(known, data))


def _made(message: Any, data: dict[str, Any]) -> Any:
    return message.model_construct(**data)


# ---------------------------------------------------------------- classes and objects


class RpcMeta(ABCMeta):
    """The metaclass of classes whose objects ``to_dist`` makes on a host. Such agents are reentrant.

    A method that overrides an `async_func` is one.
    """

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        namespace["to_dist"] = host_only(_to_dist)
        namespace.setdefault("__zmqagents_options__", AgentOptions(reentrant=True))
        for key, value in namespace.items():
            inherited = next((vars(each)[key] for base in bases for each in base.__mro__ if key in vars(each)), None)
            is_async = callable(value) and getattr(inherited, "__zmqagents_returns__", None) == "future"
            if is_async and getattr(value, "__zmqagents_returns__", None) is None:
                async_func(value)
        _know_messages()
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        cls.__zmqagents_marked__ = cls
        return cls

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        oid = kwargs.pop(_OID, None)
        where = kwargs.pop("to_dist", None)
        if where is not None and where is not False:
            return RpcObject(cls, oid or new_agent_id(cls.__name__), **({} if where is True else where),
                             configs={"args": args, "kwargs": kwargs})  # fmt: skip
        made = super().__call__(*args, **kwargs)
        vars(made).update(_init_settings={"args": args, "kwargs": kwargs, "class_name": cls.__name__},
                          _oid=oid or new_agent_id(cls.__name__))  # fmt: skip
        return made


def _to_dist(self: Any, host: str = "localhost", port: int | None = None, **without_meaning: Any) -> Any:
    """Make the object again on a host, from the arguments that it was made with; what is left here stands for it.

    Without a port the host is a private one of this process. The other keywords of 0.1.6 have no effect.
    """
    made, oid = vars(self)["_init_settings"], vars(self)["_oid"]
    return RpcObject(type(self), oid, host, port, configs=made, **without_meaning)


class RpcObject:
    """An object on a host: its public methods and attributes are those of the object.

    ``connect_existing``: it is there already. An error of its creation is raised when it is used first.
    """

    def __init__(
        self, cls: Any, oid: str, host: str = "localhost", port: int | None = None, connect_existing: bool = False, *,
        configs: Mapping[str, Any] | None = None, proxy: AgentProxy | None = None, **without_meaning: Any,
    ) -> None:  # fmt: skip
        _warn_of(without_meaning)
        self.host = host
        self.port = port
        self._cls = cls
        self._id = oid
        self._proxy = proxy
        self._failed: Exception | None = None
        if proxy is None and not connect_existing:
            self._create(configs or {})

    @functools.cached_property
    def client(self) -> RpcClient:
        """A client of its host."""
        if self.port is not None:
            return RpcClient(self.host, self.port, types=_packages_of(self._cls))
        call = own_call()
        if call is not None and call.host is not None:  # it has come to a host as an argument
            return RpcClient(link=call.host.client().link, types=_packages_of(self._cls))
        private = private_host()
        private.learn(self._cls)
        return RpcClient(link=private.link, types=_packages_of(self._cls))

    def _create(self, configs: Mapping[str, Any]) -> None:
        kwargs = {**configs.get("kwargs", {}), _OID: self._id}
        try:
            self._proxy = self.client.make_agent(self._cls, configs.get("args", ()), kwargs, agent_id=self._id)
        except errors.HostUnreachable as exc:
            self.client.close()
            self._failed = AgentServerNotAliveError(self.host, self.port, str(exc))
            self._failed.__cause__ = exc
        except Exception as exc:  # whatever the constructor raises
            self._failed = AgentCreationError(self.host, self.port, str(exc))
            self._failed.__cause__ = exc
        if self.port is None:
            self._check_created()

    def _check_created(self) -> None:
        """Raise what its creation has ended in."""
        if self._failed is not None:
            raise self._failed

    @property
    def _oid(self) -> str:
        """Its id on the host. Another one makes this object stand for another agent."""
        return self._id

    @_oid.setter
    def _oid(self, oid: str) -> None:
        self._id, self._proxy = oid, None

    def _remote(self) -> AgentProxy:
        self._check_created()
        if self._proxy is None:
            proxy: AgentProxy = self.client.get_agent(self._id)
            self._proxy = proxy
        return self._proxy

    def stop(self) -> None:
        """Nothing is to be done: a private host ends with its process."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self._remote(), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        found = self._guarded(getattr, self._remote(), name)
        if self._remote().__zmqagents_method__(name) is None:
            return found
        return lambda *args, **kwargs: self._call(found, args, kwargs)

    def _call(self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self._guarded(method, *args, **kwargs)
        return AsyncResult(self.host, self.port, result=value) if isinstance(value, Result) else value

    def _guarded(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return _with_own_errors(self.host, self.port, function, *args, **kwargs)

    def __deepcopy__(self, memo: Any) -> RpcObject:
        return RpcObject(self._cls, self._id, self.host, self.port, proxy=self._remote())

    def __reduce__(self) -> tuple[Any, ...]:
        return _object_of, (self._as_data(),)

    def _as_data(self) -> list[Any]:
        return [self.host, self.port, self._remote()]

    def __repr__(self) -> str:
        return f"<RpcObject {self._cls.__name__} {self._id!r} at {self.host}:{self.port}>"


def _object_of(data: list[Any]) -> RpcObject:
    host, port, proxy = data
    return RpcObject(type(proxy), proxy.__zmqagents_places__()[0], host, port, proxy=proxy)


def _with_own_errors(host: str, port: int | None, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call ``function``, whose errors are raised as those of 0.1.6."""
    try:
        return function(*args, **kwargs)
    except errors.HostUnreachable as exc:
        raise AgentServerNotAliveError(host, port, str(exc)) from exc
    except AttributeError:
        raise
    except Exception as exc:
        raise AgentCallError(host, port, f"{type(exc).__name__}: {exc}") from exc


class AsyncResult:
    """What a call gives before its value is there. Reading an attribute or an item waits.

    ``_ready``: the value was read. From then on the value is sent in its place, with what was changed in it.
    """

    def __init__(self, host: str, port: int | None, *, result: Result[Any]) -> None:
        self._host = host
        self._port = port
        self._result = result
        self._ready = False
        self._data: Any = None

    def result(self) -> Any:
        """The value; waits for it. AgentCallError: the call has failed."""
        if not self._ready:
            self._data = _with_own_errors(self._host, self._port, self._result.result)
            self._ready = True
        return self._data

    def update_value(self) -> None:
        """Wait for the value."""
        self.result()

    _fetch_result = update_value

    @property
    def _task_id(self) -> str:
        return self._result.task_id

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_data" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.result(), name)

    def __getitem__(self, item: Any) -> Any:
        return self.result()[item]

    def __reduce__(self) -> Any:
        if self._ready:
            return _same, (self._data,)
        return _result_of, ([self._host, self._port, self._result],)

    def __deepcopy__(self, memo: Any) -> Any:
        if self._ready:
            return copy.deepcopy(self._data, memo)
        return AsyncResult(self._host, self._port, result=self._result)

    def _as_data(self) -> list[Any]:
        return [self._host, self._port, self._data if self._ready else self._result]

    def __repr__(self) -> str:
        return f"<AsyncResult {self._task_id} {'read' if self._ready else 'not read yet'}>"


def _same(value: Any) -> Any:
    return value


def _result_of(data: list[Any]) -> Any:
    """What arrives for a result: its value where that was read, or is there by now."""
    host, port, value = data
    return AsyncResult(host, port, result=value) if isinstance(value, Result) else value


register_type(RpcObject, to_data=RpcObject._as_data, from_data=_object_of)
register_type(AsyncResult, to_data=AsyncResult._as_data, from_data=_result_of)


# ---------------------------------------------------------------- hosts


class RpcAgentServerLauncher(launcher.RpcAgentServerLauncher):
    """The launcher, for 0.1.6's arguments: ``port=-1`` is any free port, and AgentScope's messages are known."""

    def __init__(self, host: str = "localhost", port: int | None = None, *args: Any, **more: Any) -> None:
        more.setdefault("launch_timeout_s", LAUNCH_TIMEOUT_S)
        more.setdefault("types", _packages_of(*more.get("custom_agent_classes") or ()))
        super().__init__(host, None if port is not None and port < 0 else port, *args, **more)


class RpcClient(rpc.RpcClient):
    """A host, from outside, with what 0.1.6's clients gave."""

    def get_server_info(self) -> dict[str, Any]:
        """The state of the host: besides all else its ``id``, ``cpu`` (seconds), ``mem`` (MiB) and ``size``.

        ``size`` is how many results it keeps.
        """
        info = super().get_server_info()
        store = info.get("store") or {}
        return {**info, "id": info["server_id"], "cpu": info["cpu_s"], "mem": info["memory_mb"],
                "size": store.get("entries", 0)}  # fmt: skip

    def get_agent_memory(self, agent_id: str) -> Any:
        """What the agent remembers, each of its messages as a dict."""
        memory = super().get_agent_memory(agent_id)
        if not isinstance(memory, list):
            return memory
        return [item.to_dict() if hasattr(item, "to_dict") else item for item in memory]

    def download_file(  # type: ignore[override]
        self, path: str | os.PathLike[str], local_path: str | os.PathLike[str] | None = None, **more: Any
    ) -> Any:
        """Copy a file of the host, which must lie below its file roots; the path here.

        Without ``local_path`` that is a new file in the directory for temporary ones.
        """
        if local_path is not None:
            super().download_file(path, local_path, **more)
            return os.fspath(local_path)
        directory = tempfile.mkdtemp(prefix="zmqagents-")
        local_path = os.path.join(directory, os.path.basename(os.fspath(path)))
        try:
            super().download_file(path, local_path, **more)
        except BaseException:
            os.rmdir(directory)
            raise
        return local_path


def get_model_config(name: str) -> dict[str, Any]:
    """The model configuration ``name`` of the host whose agent runs. ConfigError: no agent runs, or there is none."""
    call = own_call()
    if call is None or call.host is None:
        raise errors.ConfigError("model configurations are kept by hosts, and no agent of one runs here")
    return call.host.model_config(name)
