"""The private host: the one that a bare ``agent.to_dist()`` starts, and that only this process can reach.

It starts with the first agent that needs it, takes pickled classes from its own parent alone, and ends with the
process. A fork of the process starts a private host of its own. All functions may be called from any thread.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

from .. import errors
from ..agents.base import AgentBase
from ..client.proxy import AgentProxy, request_body, value_of
from ..client.rpc import RpcClient
from ..config import DEFAULT_TIMEOUT_S
from ..connection.connection import connect, trust
from ..connection.target import Target
from ..wire.messages import Op
from .launcher import RpcAgentServerLauncher

T = TypeVar("T")


class _PrivateHost:
    """The one host of this process that only it can reach, and what is sent to it."""

    def __init__(self) -> None:
        self.launcher = RpcAgentServerLauncher(private=True)
        self.launcher.launch()
        self.link = connect(Target("", None, ipc=self.launcher.ipc))
        trust(self.link.address)
        self.link.settle()  # so that it is known to take pickles
        self._known: weakref.WeakSet[type] = weakref.WeakSet()

    def learn(self, cls: type) -> None:
        """Send a class that the host has not yet. A notebook's cell that runs again makes a new one of its name."""
        if cls not in self._known:
            body = request_body(self.link, Op.REGISTER, (cls,), {})
            reply = self.link.call("", Op.REGISTER, body, timeout=DEFAULT_TIMEOUT_S)  # its module may be slow to import
            value_of(self.link, reply)
            self._known.add(cls)

    def end(self) -> None:
        self.link.close()  # proxies hold clients of their own
        self.launcher.shutdown()


_private: _PrivateHost | None = None
_private_lock = threading.Lock()


def _let_go_after_fork() -> None:
    global _private, _private_lock
    _private_lock = threading.Lock()
    _private = None


os.register_at_fork(after_in_child=_let_go_after_fork)


def private_host() -> _PrivateHost:
    """Starts now if it has not, and ends with the process."""
    global _private
    with _private_lock:
        if _private is not None and not _private.launcher.is_running:
            _private.end()  # it has died: its agents are gone, the next ones get a new host
            _private = None
        if _private is None:
            _private = _PrivateHost()
        return _private


def stop_private_host() -> None:
    """End the private host of this process, if there is one; the next bare ``to_dist()`` starts another."""
    global _private
    with _private_lock:
        private, _private = _private, None
        if private is not None:
            private.end()


def to_dist(obj: T, host: str | None = None, port: int | None = None, **where: Any) -> T:
    """Make an agent of any object; returns its proxy, which is typed as the object.

    The agent is a copy of ``obj`` as it is now, on the private host of this process; with ``host`` and ``port`` only an
    `AgentBase` can go, because only that keeps the arguments to be made again from. ``timeout`` (seconds) is the
    default deadline of the calls. SerializationError: something in the object cannot be sent. ConfigError: the object
    has no methods, or cannot go to that host.
    """
    if isinstance(obj, AgentBase):
        return obj.to_dist(host, port, **where)
    cls: type = type(obj)
    if isinstance(obj, type) or cls.__module__ == "builtins":
        raise errors.ConfigError(f"to_dist takes an object of a class of yours, not {obj!r:.60}")
    if host is not None or port is not None:
        raise errors.ConfigError(
            f"only an AgentBase can go to another host by to_dist, and this is a {cls.__name__}: start that host with "
            f"the class and say RpcClient(host, port).create_agent({cls.__name__}, ...)"
        )
    held = _holding(cls)
    proxy: Any = distribute(held, (obj.__reduce_ex__(2)[2:3],), {}, None, where)
    return proxy  # type: ignore[no-any-return]


@functools.cache
def _holding(cls: type) -> type:
    """A class like ``cls`` whose objects are made from the state of one of its objects."""

    def __init__(self: Any, state: tuple[Any, ...]) -> None:
        given: Any = state[0] if state else None
        if hasattr(cls, "__setstate__"):
            self.__setstate__(given)
            return
        fields, slots = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
        for part in (fields, slots):
            for name, value in (part or {}).items():
                object.__setattr__(self, name, value)

    name = cls.__qualname__.rpartition(".")[2]
    return type(name, (cls,), {"__init__": __init__, "__module__": cls.__module__, "__qualname__": f"<held>.{name}"})


def distribute(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], agent_id: str | None, where: Mapping[str, Any]
) -> AgentProxy:
    """What ``to_dist`` does: make the agent on the host that ``where`` names, or on the private one.

    ``where`` is only read: host, port, transport, timeout (the default deadline in seconds of the proxy's calls).
    """
    unknown = sorted(set(where) - {"host", "port", "transport", "timeout"})
    if unknown:
        raise errors.ConfigError(f"to_dist does not know {', '.join(unknown)}; it takes host, port, transport, timeout")
    timeout = where.get("timeout", DEFAULT_TIMEOUT_S)
    if where.get("port") is not None:
        host = where.get("host") or "localhost"
        client = RpcClient(host, where["port"], transport=where.get("transport"), timeout=timeout)
    else:
        given = [name for name in ("host", "transport") if where.get(name) is not None]
        if given:
            raise errors.ConfigError(f"to_dist with a {given[0]} needs a port, too")
        private = private_host()
        private.learn(cls)
        client = RpcClient(link=private.link, timeout=timeout)
    return client.make_agent(cls, args, kwargs, agent_id=agent_id)
