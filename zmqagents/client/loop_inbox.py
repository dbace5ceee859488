"""From the thread that carries replies into an event loop, with one wake-up for all that has come since the last turn.

A loop is woken by a byte in a pipe, which costs more than a small call. So futures gather in a `LoopInbox`, and only
the first of them wakes the loop.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class Taskable:
    """What can be awaited, and can be made a task as well: `asyncio.create_task` takes nothing but coroutines.

    ``send``, ``throw`` and ``close`` make it look like one. A coroutine is used up by the one task that runs it; of
    this there may be several, so each has an ``__await__`` of its own.
    """

    _steps: dict[asyncio.Task[Any], Generator[Any, None, Any]] | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        raise NotImplementedError

    def send(self, value: Any) -> Any:
        """For asyncio: the next step of the current task, which was made of this."""
        return self._step(lambda steps: steps.send(value))

    def throw(self, *error: Any) -> Any:
        """For asyncio: raise ``error`` in the current task, which was made of this."""
        return self._step(lambda steps: steps.throw(*error), begun=True)

    def close(self) -> None:
        """For asyncio: a task that was never begun holds nothing."""

    def _step(self, go: Callable[[Generator[Any, None, Any]], Any], *, begun: bool = False) -> Any:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        known = self._steps = self._steps or {}
        try:
            if task not in known:
                known[task] = self.__await__()
                if begun:  # cancelled before its first step: what it awaits has to hear of it
                    known[task].send(None)
            return go(known[task])
        except BaseException:
            del known[task]
            raise


class LoopInbox:
    """Futures of one event loop that are to be woken; filled by any thread, emptied by the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._items: deque[tuple[asyncio.Future[None], Exception | None]] = deque()
        self._posted = False

    def post(self, future: asyncio.Future[None], error: Exception | None) -> None:
        self._items.append((future, error))
        if self._posted:
            return
        self._posted = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop is closed: no coroutine awaits in it any more
            self._items.clear()
            self._posted = False

    def _drain(self) -> None:
        self._posted = False  # first: what is appended from here on posts again
        while self._items:
            future, error = self._items.popleft()
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)


_inboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopInbox] = weakref.WeakKeyDictionary()
_inboxes_lock = threading.Lock()


def renew_lock() -> None:
    """In a forked child: a thread that is not here may hold it."""
    global _inboxes_lock
    _inboxes_lock = threading.Lock()


def inbox_of(loop: asyncio.AbstractEventLoop) -> LoopInbox:
    with _inboxes_lock:
        found = _inboxes.get(loop)
        if found is None:
            found = _inboxes[loop] = LoopInbox(loop)
        return found
