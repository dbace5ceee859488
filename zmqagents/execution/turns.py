"""Long payloads of one user are read, and their results made, one after the other.

To read or make a payload takes the interpreter lock, in whichever thread: two threads that read are no faster than
one. But each thread that wants the lock lets all others wait for it 0.2 ms longer (`BrokerConfig.switch_interval_s`),
and the router thread asks for it several times for each call. 28 threads of one user that read sets of 20,000
integers made the calls of another user wait for 0.5 s. So each user has one turn. Which of its calls has the turn
next is left open.

Code of an agent's classes may run while a value is made, and wait for whatever it likes: so a thread that has waited
for `MAX_WAIT_S` reads without a turn.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["turn_of"]

MAX_WAIT_S = 10.0  # the longest payload takes 1 s


@contextlib.contextmanager
def turn_of(reading: threading.Lock) -> Iterator[None]:
    """During the block the calling thread has the turn of the user whose lock it is, or has waited too long for it."""
    mine = reading.acquire(timeout=MAX_WAIT_S)
    try:
        yield
    finally:
        if mine:
            reading.release()
