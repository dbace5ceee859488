"""The life line: a pipe from parent to child that ends the child within 2 s when the parent has died.

A thread of the child reads the pipe. When the pipe ends, the thread asks the host to stop and, `ORPHAN_LIMIT_S` later,
ends the process. If agent code in C keeps the GIL, that thread cannot run: then a signal of the Linux kernel ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

EXIT_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h
ORPHAN_GRACE_S = 0.25

ORPHAN_LIMIT_S = 1.8  # an orphan is gone within 2 s, whatever its agents do


class LifeLine:
    """Ends this process when its parent is gone, by whatever death: then the pipe has no writer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._request_stop: Callable[[float], object] | None = None
        self.is_cut = False
        os.set_inheritable(fd, False)  # it came through an exec

    def stop_by(self, request_stop: Callable[[float], object]) -> None:
        """``request_stop`` stops in order what this process does, within the seconds that it is given."""
        self._request_stop = request_stop

    def watch(self) -> None:
        self._set_alarm()
        threading.Thread(target=self._watch, name="zmqagents-life", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._fd, 64):
                pass
        self.is_cut = True
        # Nothing here may block, so there is no logging: what is behind stderr may be gone or full.
        if self._request_stop is not None:
            self._request_stop(ORPHAN_GRACE_S)
            time.sleep(0.05)  # the kernel's signal comes at the same moment as the end of the pipe
            signal.alarm(2)  # instead of its 1 s: this thread runs, so the end can be an orderly one
            time.sleep(ORPHAN_LIMIT_S)
        os._exit(EXIT_ORPHANED)

    def _set_alarm(self) -> None:
        """Let the kernel end the process where Python cannot: an agent in C code that keeps the GIL lets no thread run.

        At the end of the pipe the kernel sends SIGHUP, number 1. The handler is libc's own alarm(), which takes the
        number for seconds; SIGALRM, with the action that a process is born with, ends it 1 s later.
        """
        if not sys.platform.startswith("linux"):
            return
        libc = ctypes.CDLL(None)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, signal.SIGHUP})
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGHUP, ctypes.cast(libc.alarm, ctypes.c_void_p))
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._fd, _F_SETSIG, signal.SIGHUP)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_ASYNC)


_F_SETSIG = 10  # of Linux; `fcntl` does not name it before Python 3.13
