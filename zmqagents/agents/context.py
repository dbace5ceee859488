"""TODO."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..errors import CallCancelled, CallTimeout


class HostServices(Protocol):
    """What an agent's own code may ask of the host that it lives in.

    ``wait_for``, ``wait_for_item`` and ``outside`` are how a wait gives the worker slot back: for results, for the
    next item of a stream, and for anything that this host cannot see. ``awaiting`` tells of a coroutine's wait.
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
    """The call that the current thread or coroutine is running; see `current_call`.

    ``deadline`` is on ``time.monotonic``'s clock, None: no deadline. The host's router thread sets
    ``cancelled``; the agent's code reads it between two pieces of work.
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
        self.ticket = ticket  # the host's own record of the call
        self.spares = False  # it was cancelled alone: what its coroutine awaits goes on
        self.over = False  # the method has returned: what it left behind runs for nobody
        self.thread = 0  # the ident of the thread that runs it
        self.outlet: Any = None  # where the items of a stream go
        self._cancelled = False
        self._event: threading.Event | None = None  # made by the first wait_cancelled: most calls have none

    @property
    def cancelled(self) -> bool:
        """True once the caller has cancelled the call or its deadline has passed."""
        return self._cancelled or (self.deadline is not None and time.monotonic() >= self.deadline)

    def cancel(self) -> None:
        """Called by the host, from any thread."""
        self._cancelled = True
        event = self._event
        if event is not None:
            event.set()

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Sleep until cancelled or for ``timeout`` seconds; True if cancelled. For loops that pause."""
        rest = self.remaining()
        limit = rest if timeout is None else timeout if rest is None else min(timeout, rest)
        event = self._event
        if event is None:
            event = self._event = threading.Event()
        if not self.cancelled:  # looked at after the event is in place: cancel() sets the flag first
            event.wait(limit)
        return self.cancelled

    def check(self) -> None:
        """Raise `CallCancelled` if cancelled, `CallTimeout` if the deadline has passed."""
        if self._cancelled:
            raise CallCancelled(f"{self.agent}.{self.method} was cancelled")
        if self.cancelled:
            raise CallTimeout(f"{self.agent}.{self.method} has passed its deadline")

    def remaining(self) -> float | None:
        """Seconds until the deadline (0.0 when it has passed), None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


current: contextvars.ContextVar[CallContext | None] = contextvars.ContextVar("zmqagents_call", default=None)


def current_call() -> CallContext | None:
    """The call that this thread or coroutine runs on a host, None outside of one.

    None as well in a task or thread that the method has left behind: the call is over.
    """
    call = current.get()
    return None if call is None or call.over else call
