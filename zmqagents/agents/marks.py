"""The decorators: on methods, how their result reaches the caller; on classes, how the host treats their agents.

A decorator sets an attribute ``__zmqagents_...__`` and returns what it was given, so a marked method is still called
directly as before. `spec` reads the attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from ..errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)

Returns = Literal["value", "future", "stream"]
OnBusy = Literal["enqueue", "reject"]


def method(function: F) -> F:
    """Tell type checkers what callers of an ``async def`` method or a generator get: a result, or a stream.

    Returns ``function`` itself; on the host nothing changes. See ``docs/typing.rst``.
    """
    return function


def async_func(function: F) -> F:
    """Mark a method: its callers get an `AsyncResult` at once instead of waiting for the value.

    Returns ``function`` itself. The host runs the method in a worker thread as before (an ``async def`` method on its
    event loop); the mark changes only what callers elsewhere get.
    """
    function.__zmqagents_returns__ = "future"  # type: ignore[attr-defined]
    return function


def sync_func(function: F) -> F:
    """Mark a method: its callers wait for the value, also if it is ``async def`` or `AgentBase`'s ``reply``.

    Returns ``function`` itself.
    """
    function.__zmqagents_returns__ = "value"  # type: ignore[attr-defined]
    return function


def stream_func(function: F) -> F:
    """Mark a method: it returns an iterable whose items are sent one by one. A generator function needs no mark.

    Returns ``function`` itself. Callers elsewhere get a `Stream`. The method and its iterator run in one worker
    thread (an async one on the event loop), which stops before the next item while the reader is a window behind.
    """
    function.__zmqagents_returns__ = "stream"  # type: ignore[attr-defined]
    return function


def concurrent(function: F) -> F:
    """Mark a method: it runs beside the agent's current calls, and does not queue for the agent's turn.

    Returns ``function`` itself. For progress reports and getters. The method runs in a worker thread of its own while
    other methods of the same object run, so it must be thread-safe.
    """
    function.__zmqagents_concurrent__ = True  # type: ignore[attr-defined]
    return function


def idempotent(function: F) -> F:
    """Mark a method: running it twice does no harm, so the client repeats the call if its host has crashed.

    Returns ``function`` itself. A call of any other method fails with `HostLost` in that case.
    """
    function.__zmqagents_idempotent__ = True  # type: ignore[attr-defined]
    return function


def host_only(function: F) -> F:
    """Mark a method: code on the host may call it; to callers elsewhere the agent has no such method.

    Returns ``function`` itself. Callers elsewhere get `UnknownMethod`.
    """
    function.__zmqagents_host_only__ = True  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How the host treats the agents of a class. ConfigError for a value that is not allowed."""

    max_concurrency: int = 1  # how many calls of one agent may run at the same time
    reentrant: bool = False  # True: a call chain that comes back to this agent runs; False: it is a DeadlockError
    on_busy: OnBusy = "enqueue"  # "reject": a call that would have to queue fails with HostBusy

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
    """Make any class an agent class: ``@agent``, or with the options of `AgentOptions` ``@agent(max_concurrency=4)``.

    Returns the class itself. ``max_concurrency``: how many calls of one agent may run at the same time, each in a
    thread of its own (1: one after the other, in the order of arrival). ``reentrant``: a chain of calls that comes back
    to the agent runs, where it would be a `DeadlockError`. ``on_busy="reject"``: a call that would have to queue fails
    with `HostBusy`. ConfigError: an option is wrong, or what is decorated is not a class. Subclasses need a mark of
    their own.
    """
    chosen = AgentOptions(**options)

    def mark(target: C) -> C:
        if not isinstance(target, type):
            raise ConfigError(f"@agent goes on a class, not on {target!r}")
        target.__zmqagents_options__ = chosen  # type: ignore[attr-defined]
        target.__zmqagents_marked__ = target  # type: ignore[attr-defined]  # not inherited: see is_agent_class
        return target

    return mark if cls is None else mark(cls)
