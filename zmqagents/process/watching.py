"""Wait until a descriptor can be read, and find whether a process has ended."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

__all__ = ["has_ended", "readable"]


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie. False where the system cannot tell."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return False
    try:
        return readable([fd], 0)
    finally:
        os.close(fd)


def readable(fds: Sequence[int | None], timeout_s: float | None) -> bool:
    """True as soon as one of ``fds`` can be read, False after ``timeout_s`` seconds. Not select: it ends at 1,024."""
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000))
