"""A ZeroMQ message-broker agent host: plain Python classes, called from anywhere as if they were local.

    from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

The names below load their modules on first use, so that a client never loads a broker, a store or a launcher.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from . import agent as _agent
from . import errors as _errors
from .agent import AgentBase as AgentBase
from .agent import agent as agent
from .agent import async_func as async_func
from .agent import concurrent as concurrent
from .agent import current_call as current_call
from .agent import idempotent as idempotent
from .agent import stream_func as stream_func
from .agent import sync_func as sync_func
from .errors import *  # noqa: F403  # the error tree is part of the public names

_LAZY = {
    "AgentProxy": "proxy",
    "AsyncResult": "result",
    "BrokerConfig": "config",
    "AsyncRpcClient": "aio",
    "Msg": "msg",
    "RpcAgentServerLauncher": "launcher",
    "RpcClient": "proxy",
    "deadline": "proxy",
    "load_agents_from_dir": "loader",
    "load_custom_class_from_file": "loader",
    "Stream": "result",
    "as_completed": "result",
    "register_type": "codec",
    "wait": "result",
}

__all__ = [
    *_errors.__all__,
    *_LAZY,
    "AgentBase",
    "__version__",
    "agent",
    "async_func",
    "concurrent",
    "idempotent",
    "current_call",
    "stream_func",
    "sync_func",
]  # fmt: skip

if TYPE_CHECKING:
    from .aio import AsyncRpcClient as AsyncRpcClient
    from .codec import register_type as register_type
    from .config import BrokerConfig as BrokerConfig
    from .launcher import RpcAgentServerLauncher as RpcAgentServerLauncher
    from .loader import load_agents_from_dir as load_agents_from_dir
    from .loader import load_custom_class_from_file as load_custom_class_from_file
    from .msg import Msg as Msg
    from .proxy import AgentProxy as AgentProxy
    from .proxy import RpcClient as RpcClient
    from .proxy import deadline as deadline
    from .result import AsyncResult as AsyncResult
    from .result import Stream as Stream
    from .result import as_completed as as_completed
    from .result import wait as wait


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _distribute(*args: Any) -> Any:
    """``AgentBase.to_dist`` lives at the bottom; what it needs lives near the top. The two meet here."""
    from .launcher import distribute

    return distribute(*args)


_agent.distributor = _distribute
