"""The life line: a pipe from parent to child that ends the child within 2 s when the parent has died.

A thread of the child reads the pipe. A word on it asks the host to stop in order, within its own grace. When the pipe
ends, the thread asks the host to stop and, `ORPHAN_LIMIT_S` later, ends the process. If agent code in C keeps the GIL,
that thread cannot run: then a signal of the Linux kernel ends the process, a second after the word or the end. A child
that somebody has stopped (SIGSTOP) can do none of this: so the kernel lets it go on when the parent has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from .alarms import alarm_when_readable, alarm_within
from .signals import end_processes

EXIT_ORPHANED = 75  # EX_TEMPFAIL of sysexits.h
ORPHAN_GRACE_S = 0.25

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

ORPHAN_LIMIT_S = 1.8  # an orphan is gone within 2 s, whatever its agents do


class LifeLine:
    """Ends this process when its parent is gone, by whatever death: then the pipe has no writer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._request_stop: Callable[[float | None], object] | None = None
        self._is_told = False  # to stop in order
        self.is_cut = False
        os.set_inheritable(fd, False)  # it came through an exec

    def stop_by(self, request_stop: Callable[[float | None], object]) -> None:
        """``request_stop`` stops in order what this process does, within so many seconds; None: its own grace."""
        self._request_stop = request_stop
        if self._is_told:
            request_stop(None)

    def watch(self) -> None:
        # For agents in C code that keep the interpreter lock. The end of the pipe counts as readable.
        # SIGHUP has 1 s; what was started by nohup must not end by it, and has 10 s if nothing else ends it.
        number = alarm_within(1) or alarm_within(10)
        if number is not None:
            alarm_when_readable(self._fd, number)
        # It comes when the thread ends that has started this process, which may be long before: then it does nothing.
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
        threading.Thread(target=self._watch, name="zmqagents-life", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(self._fd, 64):
                self._is_told = True
                if self._request_stop is not None:
                    self._request_stop(None)
        self.is_cut = True
        # Nothing here may block, so there is no logging: what is behind stderr may be gone or full.
        if self._request_stop is not None:
            self._request_stop(ORPHAN_GRACE_S)
            time.sleep(0.05)  # the kernel's signal comes at the same moment as the end of the pipe
            signal.alarm(2)  # instead of its 1 s: this thread runs, so the end can be an orderly one
            time.sleep(ORPHAN_LIMIT_S)
        end_processes()
        os._exit(EXIT_ORPHANED)
