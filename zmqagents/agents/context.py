"""What running code knows of its call: `current_call`, and the host as agents see it.

Each call (making an agent and reading an attribute are calls, too) runs in a `contextvars.Context` of its own, which
is empty when it begins, as that of a new thread is. What a call sets, such as the digits of `decimal.getcontext`, no
other call sees, and it sees nothing that other calls or the host's program have set. A generator has one context for
all its steps; a coroutine that a plain method returns goes on in a copy of the method's context. The host puts the
`CallContext` into the variable `running_call` there.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..errors import CallCancelled, CallTimeout


class HostServices(Protocol):
    """What agent code may ask of its host, from the thread or coroutine that runs a call.

    ``wait_for``, ``wait_for_item`` and ``outside`` wait without keeping the worker slot: for results, for the next
    item of a stream, and for whatever the host cannot see. ``awaiting`` reports what a coroutine waits for.
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
    """The call that the current thread or coroutine runs; `current_call` returns it.

    ``agent``, ``method`` and ``call_id`` name it. ``chain`` holds the ids of the calls that led to it, the outermost
    first. ``deadline`` is in seconds on the clock of `time.monotonic`; None: the call has none. The host sets
    ``cancelled`` from its router thread; agent code reads it between two pieces of work. Any thread may read.
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
        self.ticket = ticket  # the host's own record of the call: not for agents
        self.spares = False  # it alone was cancelled: calls that its coroutine awaits go on
        self.over = False  # the method has returned; a task or thread that it left behind is no part of the call
        self.thread = 0  # the ident of the thread that runs it
        self.outlet: Any = None  # where the items of a stream go
        self._cancelled = False
        self._event: threading.Event | None = None  # made by the first wait_cancelled: most calls have none

    @property
    def cancelled(self) -> bool:
        """True once the caller has cancelled the call or its deadline has passed."""
        return self._cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def cancel(self) -> None:
        """Set ``cancelled`` and wake `wait_cancelled`. For the host, from any thread."""
        self._cancelled = True
        event = self._event
        if event is not None:
            event.set()

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Sleep until the call is cancelled, its deadline has passed or ``timeout`` seconds are over.

        Returns `cancelled`. For loops that pause; None: no time-out.
        """
        rest = self.remaining()
        limit = rest if timeout is None else timeout if rest is None else min(timeout, rest)
        event = self._event
        if event is None:
            event = self._event = threading.Event()
        if not self.cancelled:  # looked at after the event is in place: cancel() sets the flag first
            event.wait(limit)
        return self.cancelled

    def check(self) -> None:
        """Raise `CallCancelled` if the caller has cancelled the call, `CallTimeout` if its deadline has passed."""
        if self._cancelled:
            raise CallCancelled(f"{self.agent}.{self.method} was cancelled")
        if self.cancelled:
            raise CallTimeout(f"{self.agent}.{self.method} has passed its deadline")

    def remaining(self) -> float | None:
        """Seconds until the deadline: 0.0 once it has passed, None if the call has none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


# Set by the host. Public, so that the path of a call reads it without a function of ours in between.
running_call: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("zmqagents_call", default=None)


def current_call() -> CallContext | None:
    """The call that this thread or coroutine runs on a host; None outside of a host.

    None as well in a task or thread that a method has left behind: its call is over.
    """
    call = running_call.get()
    return None if call is None or call.over else call
