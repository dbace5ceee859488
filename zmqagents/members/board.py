"""Which waits of a child's code go on, for its host to see at the very moment: a board in memory that both can read.

A child tells by a message that a wait has begun, and by another one that it is over. Until that comes the host would
take a wait that has timed out for one that goes on, and might refuse a call because of it; where code in C keeps the
child's interpreter lock that may be a second. So each wait that is told has a place on the child's board, where its
number stands as long as it goes on. The host looks there before it calls anything a deadlock.

The board is a file in memory (memfd) of the child. The host opens it by way of /proc, reads one number, closes it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import sys
import threading

from ..wire.messages import Place

__all__ = ["Board", "goes_on"]

PLACES = 8192  # waits at the same time; what is beyond that is believed to go on until its end is told
NUMBER_BYTES = 8


class Board:
    """The board of this process. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1  # until the first wait
        self._numbers: memoryview | None = None
        self._free: list[int] = []
        self._count = 0

    def begin(self) -> Place | None:
        """A place for a wait that begins; None: there is none."""
        with self._lock:
            if self._numbers is None:
                self._open()
            if self._numbers is None or not self._free:
                return None
            index = self._free.pop()
            self._count += 1
            self._numbers[index] = self._count
            return Place(self._fd, index, self._count)

    def end(self, place: Place) -> None:
        """The wait is over."""
        with self._lock:
            if self._numbers is not None:
                self._numbers[place.slot] = 0  # one store: a reader sees the one number or the other
                self._free.append(place.slot)

    def close(self) -> None:
        """No wait goes on any more."""
        with self._lock:
            if self._numbers is not None:
                os.close(self._fd)
                self._numbers, self._free = None, []

    def _open(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # an old libc, no descriptor left
            self._fd = os.memfd_create("zmqagents-waits")
            os.ftruncate(self._fd, PLACES * NUMBER_BYTES)
            self._numbers = memoryview(mmap.mmap(self._fd, PLACES * NUMBER_BYTES)).cast("Q")
            self._free = list(reversed(range(PLACES)))


def goes_on(pid: int, place: Place) -> bool:
    """Whether a wait of the process ``pid`` goes on; True if that cannot be seen."""
    try:
        fd = os.open(f"/proc/{pid}/fd/{place.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return True
        data = os.pread(fd, NUMBER_BYTES, place.slot * NUMBER_BYTES)
    except (OSError, OverflowError):
        return True
    finally:
        os.close(fd)
    return len(data) != NUMBER_BYTES or int.from_bytes(data, byteorder=sys.byteorder) == place.number
