"""Where the code of one call waits until the dispatcher lets it go on.

Each wait of a thread has a serial number, which goes with every event about it: the event that ends a wait may
come twice, or late, and must not end the next wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from ..errors import ZmqAgentsError
from ..scheduler.records import Ticket

__all__ = ["Gate", "Wait", "begin_wait", "thread_gate"]


class Gate:
    """A lock that the router thread opens, once for each wait, possibly with an error for the waiting code."""

    __slots__ = ("_error", "_lock", "awaits", "current", "outside", "pauses", "serial")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._error: ZmqAgentsError | None = None
        self.awaits = 0  # of an event loop that the thread itself runs
        self.outside: Wait | None = None  # the wait that these are, for the dispatcher
        self.serial = 0  # of the thread's latest wait; written by that thread
        # What to do before a wait of the thread and after it: it has something that it must not keep meanwhile.
        self.pauses: tuple[Callable[[], None], Callable[[], None]] | None = None
        self.current = 0  # of the wait that the dispatcher knows of; written by the router thread

    def begin(self) -> int:
        """The serial number of a new wait. Called by the waiting thread."""
        if self.pauses is not None:
            self.pauses[0]()
        self.serial += 1
        return self.serial

    def open(self, error: ZmqAgentsError | None = None) -> None:
        """Called by the router thread."""
        self._error = error
        self._lock.release()

    def wait(self, timeout: float = -1) -> bool:
        """Called by the waiting thread; False after ``timeout`` seconds. Raises the error that it was opened with."""
        if not self._lock.acquire(timeout=timeout):
            return False
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle would keep the caller's frames alive
        if self.pauses is not None:
            self.pauses[1]()
        return True


class Wait(NamedTuple):
    """One wait of the thread that runs the code of ``ticket``."""

    ticket: Ticket
    gate: Gate
    serial: int

    def enter(self) -> None:
        """The dispatcher learns of this wait: from now on only events about it count. Called by the router thread."""
        self.ticket.gate = self.gate
        self.gate.current = self.serial

    @property
    def is_current(self) -> bool:
        """False for a wait that has ended: what is said about it comes late. For the router thread."""
        return self.gate.current == self.serial


_gates = threading.local()


def thread_gate() -> Gate:
    """The gate of the calling thread: a thread waits for one thing at a time."""
    gate: Gate | None = getattr(_gates, "gate", None)
    if gate is None:
        gate = _gates.gate = Gate()
    return gate


def begin_wait(ticket: Ticket) -> Wait:
    """A new wait of the calling thread, which runs the code of ``ticket``."""
    gate = thread_gate()
    return Wait(ticket, gate, gate.begin())
