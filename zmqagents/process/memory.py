"""What a host gives back to the system after a flood.

The allocator of libc keeps what was freed: after a client that did not read has been dropped, hundreds of MiB stayed
with the process for good (measured: 375 MiB, of which 31 were in use). `Trimmer` has it returned.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import sys
import time
from collections.abc import Callable

__all__ = ["Resident", "Trimmer", "resident_bytes"]

GROWN_BYTES = 64 << 20  # since the start; below that nothing is done
WORTH_BYTES = 16 << 20  # a trim that gives back less makes the next one wait longer
LONGEST_S = 600.0
KEPT_S = 0.5  # how old a look at the memory may be
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Trimmer:
    """Asks the allocator to return free memory where this process has grown.

    ``trim`` does that, None if the allocator cannot; ``resident`` tells the memory of the process in bytes.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, resident: Callable[[], int] | None = None,
        trim: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._resident = resident or resident_bytes
        self._trim = trim or _allocators_trim()
        self._first = self._resident()
        self._next = -math.inf
        self._pause_s = 0.0

    def look(self) -> None:
        """To be called now and then. The call to the allocator lets the interpreter lock go."""
        now = self._clock()
        if self._trim is None or now < self._next:
            return
        before = self._resident()
        if before < self._first + GROWN_BYTES:
            return
        self._trim()
        given_back = before - self._resident()
        self._pause_s = 0.0 if given_back >= WORTH_BYTES else min(LONGEST_S, 2 * self._pause_s + 10.0)
        self._next = now + self._pause_s


def _allocators_trim() -> Callable[[], object] | None:
    """`malloc_trim` of glibc; None elsewhere."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(AttributeError, OSError):  # another libc
            return functools.partial(ctypes.CDLL(None).malloc_trim, 0)
    return None


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of this or another process that is in RAM, 0 where that cannot be told."""
    try:
        fd = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)  # `open` makes three system calls more
        try:
            return int(os.read(fd, 256).split()[1]) * _PAGE_BYTES
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return 0


class Resident:
    """The memory of this process, as of `KEPT_S` ago at most.

    A thread that looks gives up the interpreter lock three times, and waits 5 ms or more for it each time beside agents
    that compute.
    """

    def __init__(self, clock: Callable[[], float], resident: Callable[[], int] = resident_bytes) -> None:
        self._clock = clock
        self._resident = resident
        self._bytes, self._until = 0, -math.inf

    def __repr__(self) -> str:
        return f"<Resident [{self._bytes} bytes]>"

    def bytes(self) -> int:
        """How much of it is in RAM, 0 where that cannot be told."""
        if self._clock() >= self._until:
            self._bytes = self._resident()
            self._until = self._clock() + KEPT_S
        return self._bytes
