"""Alarms that the kernel or libc set for this process when a descriptor can be read: no interpreter is needed for them.

Two ways, both of Linux:

* By a signal: the kernel sends one when the descriptor can be read (``F_SETSIG`` of fcntl(2)), and its handler is
  libc's own ``alarm``, which takes the number of the signal for seconds. So the time is one of `SIGHUP` (1 s),
  `SIGUSR1` (10 s) and a real-time signal (34 to 64 s), of those that nobody handles and nobody has asked to ignore:
  ``nohup`` does that with SIGHUP. Nothing is read.
* By a thread of libc: aio_read(3) reads a byte, and then a new thread of libc calls ``alarm`` with any number. That
  costs a thread of C while it waits, so it is for where no signal is left that is soon enough.

`exit_after` is a timer of the same kind, timer_create(2): a new thread of libc calls ``_exit``.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
import time
from typing import Any

from .signals import signal_when_readable

__all__ = ["alarm_after_read", "alarm_when_readable", "alarm_within", "exit_after"]

_ALARMS = (
    [signal.SIGHUP, signal.SIGUSR1, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1)]
    if sys.platform.startswith("linux")
    else []
)


def alarm_within(limit_s: float) -> int | None:
    """The greatest number of an unused signal that is not above ``limit_s``; None: there is none."""
    return max((n for n in _ALARMS if n <= limit_s and signal.getsignal(n) is signal.SIG_DFL), default=None)


def alarm_when_readable(fd: int, number: int) -> None:
    """Have the kernel end this process ``number`` seconds after ``fd`` can be read, if no other alarm is set till then.

    ``number`` is that of a signal which nothing else uses here: the kernel sends it, and its handler is libc's alarm.
    Called in the main thread. Does nothing where the system is not Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    _let_alarms_through(number)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(number, ctypes.cast(libc.alarm, ctypes.c_void_p))
    signal_when_readable(fd, number)


def alarm_after_read(fd: int, seconds: int) -> None:
    """Read a byte of ``fd``, and end this process ``seconds`` later, if no other alarm is set till then.

    ``fd`` must stay open until the process ends: its end counts as read. Called in the main thread. Does nothing where
    the system is not Linux, or its libc has no aio_read(3).
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    _let_alarms_through()
    with contextlib.suppress(AttributeError, OSError):
        aio_read = _of_libc("aio_read")
        request = _Request(fildes=fd, buffer=ctypes.addressof(_byte), count=1)
        request.event.value, request.event.notify = seconds, _SIGEV_THREAD
        request.event.function = _address(libc.alarm)
        if aio_read(ctypes.byref(request)) == 0:
            _requests.append(request)


def exit_after(seconds: float, status: int) -> None:
    """Have libc end this process with this exit status ``seconds`` from now, by a thread that needs no interpreter.

    Any thread. Does nothing where the system is not Linux, or its libc has no timer_create(2).
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(AttributeError, OSError):
        event = _Event(value=status, notify=_SIGEV_THREAD, function=_address(_of_libc("_exit")))
        timer, when = ctypes.c_void_p(), _Times(left_s=int(seconds), left_ns=int(seconds % 1 * 1e9))
        if _of_libc("timer_create")(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0:
            _of_libc("timer_settime")(timer, 0, ctypes.byref(when), None)


def _of_libc(name: str) -> Any:
    """A function that is in a library of its own before glibc 2.34. AttributeError, OSError: there is none."""
    libc = ctypes.CDLL(None)
    return getattr(libc if hasattr(libc, name) else ctypes.CDLL("librt.so.1"), name)


def _address(function: Any) -> int | None:
    return ctypes.cast(function, ctypes.c_void_p).value


def _let_alarms_through(*numbers: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM, *numbers})


_SIGEV_THREAD = 2  # of bits/sigevent-consts.h


class _Event(ctypes.Structure):
    """``struct sigevent`` of Linux, 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p), ("signal", ctypes.c_int), ("notify", ctypes.c_int), ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p), ("padding", ctypes.c_char * (64 - 8 - 3 * ctypes.sizeof(ctypes.c_void_p))),
    )  # fmt: skip


class _Times(ctypes.Structure):
    """``struct itimerspec``: a timer that fires once."""

    _fields_ = (
        ("every_s", ctypes.c_long), ("every_ns", ctypes.c_long), ("left_s", ctypes.c_long), ("left_ns", ctypes.c_long),
    )  # fmt: skip


class _Request(ctypes.Structure):
    """``struct aiocb`` as glibc and musl have it; what follows the event is their own, and zero at first."""

    _fields_ = (
        ("fildes", ctypes.c_int), ("operation", ctypes.c_int), ("priority", ctypes.c_int), ("buffer", ctypes.c_void_p),
        ("count", ctypes.c_size_t), ("event", _Event), ("own", ctypes.c_char * 256),
    )  # fmt: skip


_byte = ctypes.create_string_buffer(1)
_requests: list[_Request] = []  # libc has their addresses
