"""Forks that end with their host.

An agent's code may call ``os.fork()`` and have the child run for good: a server of its own, a loop without an end. Such
a child outlives a host that is stopped or killed, and keeps its memory, unless the kernel ends it. The kernel does so
here: each fork opens one end of a pipe whose other end the host alone holds, and asks for SIGKILL when that is closed.
The death signal of ``prctl`` would be sent too early: when the *thread* ends that has forked.

A child that runs another program (``subprocess``) is left alone, for ``exec`` closes the descriptor. A child that
closes all descriptors, as daemons do, is left alone too. Linux only; elsewhere such a child is the agent's matter.

Processes of `multiprocessing` that are no forks (``spawn``, ``forkserver``) run another program, too. A pool of them
would wait for ever for work of a host that has ended, so the host kills these at its end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator

from .signals import end_processes, signal_when_readable

__all__ = ["ended_with_us"]

_lines: list[tuple[int, int]] = []  # pipes of this process: the end for its forks, and its own, -1 in a fork


@contextlib.contextmanager
def ended_with_us() -> Iterator[None]:
    """Forks that this process makes meanwhile end when it leaves this, or when it ends itself.

    The process is about to end then. Forks that it makes later, as a pool does in the place of others, end with it, and
    processes of `multiprocessing` are killed.
    """
    if not sys.platform.startswith("linux"):
        yield
        end_processes()
        return
    line = os.pipe()
    _lines.append(line)
    try:
        yield
    finally:
        if line in _lines:  # not in a fork
            _lines[_lines.index(line)] = os.pipe()
            for fd in line:
                os.close(fd)
            end_processes()


def _bind() -> None:
    """In a fork: the kernel is to end it with the process that it is a fork of."""
    for place, (theirs, ours) in enumerate(_lines):
        _lines[place] = (theirs, -1)
        with contextlib.suppress(OSError):
            if ours >= 0:
                os.close(ours)
            # Opened anew, for the signal goes to one owner of an open file, and forks share those that they inherit.
            fd = os.open(f"/proc/self/fd/{theirs}", os.O_RDONLY | os.O_NONBLOCK)
            signal_when_readable(fd, signal.SIGKILL)
            if select.select([fd], [], [], 0)[0]:  # it has ended already
                os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(after_in_child=_bind)
