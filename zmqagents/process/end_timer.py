"""The end of a host that was told to stop, whatever its agents do: by timers that need no interpreter.

A stop ends in order at its grace and some tenths of a second. Where it does not, for C code of an agent's keeps the
interpreter lock, say, no thread of Python can do anything about it. Two timers of the kernel can:

* Once a stop has begun, `EndTimer.arm` has the kernel send SIGALRM, whose action ends the process, `FORCED_AFTER_S`
  after the grace. Just before, the stack of each thread goes to stderr, written by a thread of `faulthandler`.
* If the lock was held before, Python does not even hear of SIGTERM. But its handler in C writes the signal's number to
  a pipe (`signal.set_wakeup_fd`), and `alarms` have the kernel answer that with an alarm at the latest time that is not
  beyond grace and 2 s. A Python that does hear of SIGTERM sets the exact time instead.

A host that has ended leaves an interpreter to end, and that runs code of agents once more: exit handlers, and the
``__del__`` of what their modules hold. `end_interpreter_within` bounds that, also when no thread of Python runs any
more, and the exit status stays that of the host.

`EndTimer.beat` sets a limit in normal running, for hosts that want one: it must come again in time.

Linux only, but for the first and the last; elsewhere a held lock is ended by the process that has launched the host.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import time
from collections.abc import Callable, Iterator

from ..config import END_WAIT_S
from .alarms import alarm_after_read, alarm_when_readable, alarm_within, exit_after

__all__ = ["FORCED", "EndTimer", "end_interpreter_within"]

FORCED_AFTER_S = END_WAIT_S - 0.2  # after the grace
STACKS_BEFORE_S = 0.2
FORCED = -int(signal.SIGALRM)  # the exit status of a process that was ended so, as `subprocess` gives it


class EndTimer:
    """The limits of one host process; used by its main thread. ``acts`` False: it is somebody's program, left alone."""

    def __init__(
        self, acts: bool, hang_limit_s: float | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._acts = acts
        self._hang_limit_s = hang_limit_s
        self._ends_at = math.inf  # on the monotonic clock

    @contextlib.contextmanager
    def watching_signals(self, grace_s: float) -> Iterator[None]:
        """Meanwhile SIGTERM and SIGINT, which have their handlers, end the process also if these cannot run.

        Not where agents' files have set handlers for other signals: those would do so as well.
        """
        limit_s = grace_s + END_WAIT_S
        alarm = alarm_within(limit_s)
        if not self._acts or _others_handled():
            yield
            return
        heard_r, heard_w = os.pipe()  # they stay open: the process ends soon after the block
        os.set_blocking(heard_w, False)
        before = signal.set_wakeup_fd(heard_w, warn_on_full_buffer=False)
        _pipes.update((heard_r, heard_w))
        if alarm is not None:
            alarm_when_readable(heard_r, alarm)
        else:
            alarm_after_read(heard_r, int(limit_s))
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)

    def arm(self, grace_s: float) -> None:
        """A stop has begun: the process ends `FORCED_AFTER_S` after its grace. A later call may only shorten it."""
        if not self._acts:
            return
        left_s = max(0.01, self.plan(grace_s))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, left_s)  # also in place of the alarm that a signal has set
        # The first process of a container is spared by the kernel: no signal of its own ends it.
        _set_stacks(max(0.01, left_s - STACKS_BEFORE_S), leave=os.getpid() == 1)

    def plan(self, grace_s: float) -> float:
        """How many seconds are left until the forced end, now that a stop with this grace has begun."""
        now = self._clock()
        self._ends_at = min(self._ends_at, now + grace_s + FORCED_AFTER_S)
        return self._ends_at - now

    def beat(self) -> None:
        """All is well. Where there is a limit for normal running, the next call must come within it."""
        if self._acts and self._hang_limit_s is not None and self._ends_at == math.inf:
            _set_stacks(self._hang_limit_s, leave=True)

    def ended(self) -> None:
        """The host has ended in order. SIGALRM still bounds what the process does now: agents' exit handlers, say."""
        if self._acts:
            faulthandler.cancel_dump_traceback_later()


def end_interpreter_within(seconds: float, status: int) -> None:
    """The interpreter is about to end: if it has not by then, the process does, with its stacks on stderr. Any thread.

    In any case before the forced end of `EndTimer.arm`. Linux only; elsewhere it has the time that it takes.
    """
    forced_s, _ = signal.getitimer(signal.ITIMER_REAL)  # 0.0: there is none
    if forced_s:
        seconds = min(seconds, max(0.1, forced_s - 0.1))
    exit_after(seconds, status)
    _set_stacks(max(0.01, seconds - STACKS_BEFORE_S), leave=False)


def _set_stacks(after_s: float, *, leave: bool) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # no stderr
        faulthandler.dump_traceback_later(after_s, exit=leave)


def _others_handled() -> bool:
    """Whether Python code handles signals beside those of a stop."""
    handled = {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
    return bool(handled - {signal.SIGTERM, signal.SIGINT})


_pipes: set[int] = set()


def _forget() -> None:
    """In a forked child: a signal to it is not one to the host, whose pipe it must not write to."""
    if _pipes:
        signal.set_wakeup_fd(-1)
        for fd in _pipes:
            with contextlib.suppress(OSError):
                os.close(fd)
        _pipes.clear()


os.register_at_fork(after_in_child=_forget)
