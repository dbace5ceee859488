"""The decorators: on methods, how their result reaches the caller; on classes, how the host treats their agents.

A decorator sets an attribute ``__zmqagents_...__`` and returns what it was given, so a marked method is still called
directly as before. `spec` reads the attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, overload

from ..errors import ConfigError
from .options import OPTION_NAMES, AgentOptions, Isolation, Lifetime, OnBusy, OnTimeout, Persist, Placing

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
M = TypeVar("M")  # a function, also one under another mark, or a class

Returns = Literal["value", "future", "stream"]


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


def once(function: F) -> F:
    """Mark a method of an agent of a cluster: what it does to the agent's state is done once, whatever is sent again.

    Returns ``function`` itself. Its outcome, value or exception, is kept in one step with the state, until the caller
    has it, or for 30 s beyond the call's deadline; a call that is sent again gets it. So clients and hosts send it
    again when a host has died. At most 64 KiB; effects elsewhere may happen twice. It needs ``persist="call"`` and
    calls with a time limit, and goes with neither ``max_concurrency`` above 1 nor ``reentrant``; generators and
    ``@concurrent`` cannot have it.
    """
    function.__zmqagents_once__ = True  # type: ignore[attr-defined]
    return function


def interruptible(marked: M) -> M:
    """Mark a method, or a class for all its methods: its code may be broken off when no caller waits for it any more.

    A call that is cancelled or has passed its deadline is told so (`current_call`). Code that never looks keeps its
    thread, and its agent's turn, until it returns. With this mark an exception is raised in it, at the next step of its
    Python code; ``finally`` blocks run, ``except Exception`` does not catch it.

    It may come at any step: between two that belong together, in a ``finally`` block, in a library that the code has
    called. Code in C is interrupted only when it returns, so ``time.sleep(1e6)`` is not. Only plain methods: an
    ``async def`` is cancelled anyway, and a generator ends at its next item.
    """
    marked.__zmqagents_interruptible__ = True  # type: ignore[attr-defined]
    return marked


def host_only(function: F) -> F:
    """Mark a method: code on the host may call it; to callers elsewhere the agent has no such method.

    Returns ``function`` itself. Callers elsewhere get `UnknownMethod`.
    """
    function.__zmqagents_host_only__ = True  # type: ignore[attr-defined]
    return function


@overload
def agent(cls: C) -> C: ...
@overload
def agent(
    *, max_concurrency: int = 1, reentrant: bool = False, on_busy: OnBusy = "enqueue",
    isolation: Isolation | None = None, memory_mb: int | None = None, env: Mapping[str, str] | None = None,
    max_restarts: int = 5, on_timeout: OnTimeout = "cancel", persist: Persist | None = "auto",
    lifetime: Lifetime = "host", idle_s: float | None = None, placement: Placing = "load",
    labels: Mapping[str, str] | None = None, expose: bool = False,
) -> Callable[[C], C]: ...  # fmt: skip
def agent(cls: Any = None, *, expose: bool = False, **options: Any) -> Any:
    """Make any class an agent class: ``@agent``, or with the options of `AgentOptions` ``@agent(max_concurrency=4)``.

    Returns the class itself. ``max_concurrency``: how many calls of one agent may run at the same time, each in a
    thread of its own (1: one after the other, in the order of arrival). ``reentrant``: a chain of calls that comes back
    to the agent runs, where it would be a `DeadlockError`. ``on_busy="reject"``: a call that would have to queue fails
    with `HostBusy`.

    ``isolation="process"``: each agent has a process of its own, a child of the host's; ``"pool"``: it shares one of a
    few; ``"thread"``: it lives in the host itself; None: as the host is set, which is "thread" unless said otherwise.
    Children need a host on Linux. ``memory_mb``: a child of its own that takes more MiB is ended; ``env``: environment
    variables of that child on top of the host's; ``on_timeout="kill"``: it is killed when a call does not end at its
    deadline. ``max_restarts``: how often in 60 s a child is started again after a crash.

    ``persist="call"``: the agent's state is saved after each turn, ``"idle"``: when the agent leaves its host, None:
    never. Without it a subclass of `AgentBase` that has ``save_state`` is saved after each turn, any other never.

    ``lifetime="client"``: the agent is deleted when the client that has made it goes: when the last client of its
    process is closed, or the process has ended. ``idle_s``: it is deleted when nobody has called it for so many seconds
    (up to a quarter more). Its hooks run as for `RpcClient.delete_agent`.

    In a cluster an agent that nobody has called for ``idle_s`` (an hour unless said otherwise) is saved and given back,
    and its next call has it again. ``labels={"gpu": "yes"}``: it lives on members that were started with these.
    ``placement="local"``: the member that is asked for it takes it, if it can; else, and with ``"load"``, the less
    loaded of two. An agent of one host has no use for these two.

    ``expose``: ``as_server web`` shows agents of this class to programs that speak HTTP, with all public methods.

    ConfigError: an option is wrong, or what is decorated is not a class. Subclasses need a mark of their own.
    """
    try:
        chosen = AgentOptions(**options).checked()
    except TypeError:
        unknown = ", ".join(sorted(options.keys() - set(OPTION_NAMES)))
        raise ConfigError(f"@agent has no option {unknown}; it has: {', '.join((*OPTION_NAMES, 'expose'))}") from None
    if not isinstance(expose, bool):
        raise ConfigError(f"expose must be True or False, not {expose!r}")

    def mark(target: C) -> C:
        if not isinstance(target, type):
            raise ConfigError(f"@agent goes on a class, not on {target!r}")
        target.__zmqagents_options__ = chosen  # type: ignore[attr-defined]
        target.__zmqagents_exposed__ = expose  # type: ignore[attr-defined]  # read off this class alone, see spec_of
        target.__zmqagents_marked__ = target  # type: ignore[attr-defined]  # not inherited: see is_agent_class
        return target

    return mark if cls is None else mark(cls)
