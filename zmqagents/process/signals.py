"""The process-wide settings of a host's own process: signals, standard input, `multiprocessing`, the end.

Each function changes the whole process, so only a process that was started to be a host may call them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
from typing import NoReturn


def show_stacks_on_request() -> None:
    """SIGUSR2 writes the stacks of all threads to stderr, also while the GIL is held; and so does a crash."""
    with contextlib.suppress(Exception):  # no stderr
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR2, all_threads=True)


def forget_parents_signals() -> None:
    """A forked child has the parent's handlers, which are about the parent; both kinds have its signal mask."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)) and number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


def close_stdin(life_fd: int) -> None:
    """The terminal's input is for the parent; in a fresh interpreter it was the payload, read by now."""
    if life_fd == 0:  # the parent has no stdin, and the number was free
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the old one may have read ahead


def keep_sockets_to_ourselves() -> None:
    """Processes that agents start with `multiprocessing` must not be forks of this one.

    A fork would hold copies of the listening sockets, and the port would stay taken after our death. A bare
    ``os.fork()`` in an agent does just that. Python has this start method as its default from 3.14 on.
    """
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("forkserver")


def leave(status: int) -> NoReturn:
    """End the process now; what was printed comes out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)
