"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from ..errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

Returns = Literal["value", "future", "stream"]
OnBusy = Literal["enqueue", "reject"]


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


def host_only(function: F) -> F:
    """Public to the agent's own code, but not reachable by callers."""
    function.__zmqagents_host_only__ = True  # type: ignore[attr-defined]
    return function


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
