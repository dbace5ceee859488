"""Interrupting code in a thread: what ``@interruptible`` asks for.

A call that is cancelled can be told so, and nothing more: Python ends no thread. But it can have an exception raised in
one, at the next step of its Python code. That may be anywhere, in the middle of a ``finally`` or with half of a change
made, so it is done only where a class or method is marked. Code in C that does not come back, ``time.sleep`` among it,
is not interrupted before it does.

The exception must hit this call's code and nothing else: not the host's, nor the next call in the same thread. So each
run of such a method is a `Region`, which is closed before the thread goes on; both ends are under a lock.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["CallInterrupted", "Region"]


class CallInterrupted(BaseException):
    """Raised in the code of a call that nobody waits for any more. No ``except Exception`` keeps it from its end."""


class Region:
    """One run of code that may be interrupted, by `interrupt` in any thread, while `run` is in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.get_ident()
        self._is_open = True

    def run(self, code: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``code`` gives; raises CallInterrupted if it was, whatever the code has made of that."""
        try:
            return code(*args, **kwargs)
        finally:
            self._close()

    def interrupt(self) -> None:
        """Have CallInterrupted raised in the code, once."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                _raise_in(self._thread, CallInterrupted)

    def _close(self) -> None:
        while True:  # the exception may come in any of these lines, but only one time
            try:
                with self._lock:
                    self._is_open = False
                    _raise_in(self._thread, None)  # one that was asked for and has not come
                return
            except CallInterrupted:
                pass


def _raise_in(thread: int, exception: type[BaseException] | None) -> None:
    what = ctypes.py_object(exception) if exception is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
