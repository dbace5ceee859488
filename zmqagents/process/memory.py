"""What a process keeps of the memory that it has freed, and what a host gives back to the system after a flood.

The allocator of libc gives large blocks back at once, and takes them again for the next large value, page by page:
`keep_freed_blocks` has it keep them. Small ones it keeps for good: after a client that did not read has been dropped,
hundreds of MiB stayed with the process (measured: 375 MiB, of which 31 were in use). `Trimmer` has them returned.
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

__all__ = ["Trimmer", "keep_freed_blocks", "resident_bytes"]

GROWN_BYTES = 64 << 20  # since the start; below that nothing is done
WORTH_BYTES = 16 << 20  # a trim that gives back less makes the next one wait longer
LONGEST_S = 600.0
KEPT_BYTES = 31 << 20  # just below the most that glibc can be told


@functools.cache
def keep_freed_blocks() -> None:
    """Have the allocator keep blocks of up to 31 MiB, once in a process; to be called when large values are about.

    glibc takes every block of 128 KiB and more from the system, and frees it there. The system then maps and clears
    each page when it is first written to, which takes a multiple of the time that it takes to fill it: with 256 of them
    a copy of 1 MiB took 2,000 µs in place of 40. But it learns: from when a larger block is freed, it takes only those
    from the system that are larger still, and keeps twice as much at the end of its heap. So one is made and freed. It
    is never written to, and takes no memory.
    """
    with contextlib.suppress(MemoryError):
        bytes(KEPT_BYTES)


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


def resident_bytes() -> int:
    """Memory of this process that is in RAM, 0 where that cannot be told."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
