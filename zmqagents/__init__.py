"""A ZeroMQ message-broker agent host: plain Python classes, called from anywhere as if they were local.

    from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

The names below load their modules on first use, so that a client never loads a broker, a store or a launcher.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import errors as _errors
from .agents.base import AgentBase as AgentBase
from .agents.base import distribute_with
from .agents.context import CallContext as CallContext
from .agents.context import current_call as current_call
from .agents.marks import agent as agent
from .agents.marks import interruptible as interruptible
from .errors import *  # noqa: F403  # the error tree is part of the public names
from .version import __version__ as __version__

_LAZY = {
    "AgentProxy": "client.proxy",
    "AsyncResult": "client.result",
    "BrokerConfig": "config",
    "AsyncCluster": "client.cluster.aio",
    "AsyncRpcClient": "client.aio",
    "Cluster": "client.cluster.handle",
    "Msg": "agents.msg",
    "RemoteMethod": "client.proxy",
    "RpcAgentServerLauncher": "server.launcher",
    "Pool": "client.many.pool",
    "RpcClient": "client.rpc",
    "deadline": "client.deadlines",
    "load_agents_from_dir": "agents.loader",
    "load_custom_class_from_file": "agents.loader",
    "Stream": "client.stream",
    "as_completed": "client.waiting",
    "progress": "client.many.bar",
    "register_type": "codec",
    "register_types": "codec",
    "to_dist": "server.private_host",
    "trust_types": "codec",
    "wait": "client.waiting",
}

__all__ = [
    *_errors.__all__,
    *_LAZY,
    "AgentBase",
    "CallContext",
    "__version__",
    "agent",
    "async_func",
    "concurrent",
    "idempotent",
    "interruptible",
    "current_call",
    "method",
    "once",
    "stream_func",
    "sync_func",
]  # fmt: skip

if TYPE_CHECKING:
    from .agents.loader import load_agents_from_dir as load_agents_from_dir
    from .agents.loader import load_custom_class_from_file as load_custom_class_from_file
    from .agents.msg import Msg as Msg
    from .client.aio import AsyncRpcClient as AsyncRpcClient
    from .client.cluster.aio import AsyncCluster as AsyncCluster
    from .client.cluster.handle import Cluster as Cluster
    from .client.deadlines import deadline as deadline
    from .client.many.bar import progress as progress
    from .client.many.pool import Pool as Pool
    from .client.method_types import async_func as async_func
    from .client.method_types import concurrent as concurrent
    from .client.method_types import idempotent as idempotent
    from .client.method_types import method as method
    from .client.method_types import once as once
    from .client.method_types import stream_func as stream_func
    from .client.method_types import sync_func as sync_func
    from .client.proxy import AgentProxy as AgentProxy
    from .client.proxy import RemoteMethod as RemoteMethod
    from .client.result import AsyncResult as AsyncResult
    from .client.rpc import RpcClient as RpcClient
    from .client.stream import Stream as Stream
    from .client.waiting import as_completed as as_completed
    from .client.waiting import wait as wait
    from .codec import register_type as register_type
    from .codec import register_types as register_types
    from .codec import trust_types as trust_types
    from .config import BrokerConfig as BrokerConfig
    from .server.launcher import RpcAgentServerLauncher as RpcAgentServerLauncher
    from .server.private_host import to_dist as to_dist
else:
    from .agents.marks import async_func, concurrent, idempotent, method, once, stream_func, sync_func


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class _Moved(ModuleType):
    """The module that pickles of proxies and results name which an earlier version has made."""

    def __getattr__(self, name: str) -> Any:
        if name not in ("bind_awaited", "bind_own", "bind_reference"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from .client import proxy

        return getattr(proxy, name)


sys.modules[f"{__name__}.proxy"] = _Moved(f"{__name__}.proxy")


def _distribute(*args: Any) -> Any:
    """Make an agent on a host, for ``AgentBase.to_dist``: `agents` may not import what that takes, this module may."""
    from .server.private_host import distribute

    return distribute(*args)


distribute_with(_distribute)
