"""Long payloads of one user are read, and their results made, one after the other.

To read or make a payload takes the interpreter lock, in whichever thread: two threads that read are no faster than
one. But each thread that wants the lock lets all others wait for it 0.2 ms longer (`BrokerConfig.switch_interval_s`),
and the router thread asks for it several times for each call. 28 threads of one user that read sets of 20,000
integers made the calls of another user wait for 0.5 s. So each user has one `Turn`. Which of its calls has it next
is left open.

Code of an agent's classes may run while a value is made. If it waits for a call, the turn is given back meanwhile (see
`gate`). It may also wait for what the host does not see: so a thread that keeps the turn for too long loses it.

No thread waits for its turn once its call is cancelled or late. The event loop and the router thread, which all users
share, never wait for one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ..scheduler.shares import Turn
from .gate import thread_gate

__all__ = ["turn_of"]


@contextlib.contextmanager
def turn_of(turn: Turn, is_over: Callable[[], bool]) -> Iterator[None]:
    """During the block the calling thread has the turn, or ``is_over()``. Within such a block it has it already."""
    gate = thread_gate()
    if gate.pauses is not None:
        yield
        return

    def take() -> None:
        turn.take(is_over)

    take()
    gate.pauses = turn.leave, take
    try:
        yield
    finally:
        gate.pauses = None
        turn.leave()
