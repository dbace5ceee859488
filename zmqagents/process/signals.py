"""The process-wide settings of a host's own process: signals, standard input, `multiprocessing`, the end.

Each function changes the whole process, so only a process that was started to be a host may call them.

A handler that stops a host is about that host. A process that an agent's code forks has a copy of it, which would
ask the copy of a host to stop and keep the process alive; so `handled` gives such a process back the handlers that
the signals had before. A signal that comes amid the fork waits until then.

From Python 3.13 on, a fork that another thread than the main thread made runs no handler that is written in Python,
unless the signal interrupts a system call: the interpreter tells the main thread, which the fork does not have. There
the signals do what they do by default, which is to end the process: Ctrl-C raises no KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn


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


_before: dict[int, Any] = {}  # the handlers of the signals that `handled` handles now, from before
_forking = threading.local()  # of each thread that forks: its signal mask, and whether it is the main thread
KILLS_S, LOOK_S = 0.3, 0.01  # how long processes are killed at most; from one look for them to the next
_F_SETSIG = 10  # of Linux; `fcntl` does not name it before Python 3.13
_TELLS_MAIN_THREAD_ONLY = sys.version_info >= (3, 13)  # of a signal, see above


@contextlib.contextmanager
def handled(on_signal: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Meanwhile ``on_signal`` handles these signals in this process, not in its forks. Main thread only."""
    for number in numbers:
        handler = signal.signal(number, on_signal)
        _before[number] = signal.SIG_DFL if handler is None else handler  # None: set by C code
    try:
        yield
    finally:
        _give_back()


def _give_back() -> None:
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()


def _before_fork() -> None:
    if _before:
        _forking.is_main = threading.get_ident() == threading.main_thread().ident
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _before)


def _after_fork_in_parent() -> None:
    mask = vars(_forking).pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    if _TELLS_MAIN_THREAD_ONLY and not vars(_forking).get("is_main", True):
        for number, handler in _before.items():
            _before[number] = signal.SIG_DFL if callable(handler) else handler
    _give_back()  # the thread that forked is the main thread here
    _after_fork_in_parent()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def signal_when_readable(fd: int, number: int) -> None:
    """Have the kernel send this process the signal ``number`` as soon as ``fd`` can be read. Linux only."""
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, _F_SETSIG, number)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def ignore_stops() -> None:
    """SIGTERM and SIGINT do nothing from now on: the process is about to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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


def end_processes() -> None:
    """Kill the processes that this one has started by `multiprocessing`: their parent is about to end.

    A pool starts others in the place of those that have ended, until it is told to end. One that is just being started
    is not among the `active_children` yet, so these are looked at again.
    """
    with contextlib.suppress(Exception):  # an agent's thread may start or end some at the same time
        looks = 3 if _end_pools() else 1
        end = time.monotonic() + KILLS_S
        while looks and time.monotonic() < end:
            children = multiprocessing.active_children()
            for child in children:
                child.kill()
            looks -= not children
            if looks:
                time.sleep(LOOK_S)


def _end_pools() -> bool:
    """Tell all pools of processes to end, which need not come to an end; whether there are any."""
    pools = sys.modules.get("multiprocessing.pool")
    if pools is None:
        return False
    gc.unfreeze()  # else those that are frozen are not found
    found = [each for each in gc.get_objects() if issubclass(type(each), pools.Pool)]
    for pool in found:
        threading.Thread(target=pool.terminate, name="zmqagents-pool-end", daemon=True).start()
    return bool(found)


def leave(status: int) -> NoReturn:
    """End the process now; what was printed comes out."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    end_processes()
    os._exit(status)
