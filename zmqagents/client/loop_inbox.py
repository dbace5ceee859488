"""From the thread that carries replies into an event loop, with one wake-up for all that has come since the last turn.

A loop is woken by a byte in a pipe, which costs more than a small call. So futures gather in a `LoopInbox`, and only
the first of them wakes the loop.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


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
        except RuntimeError:  # the loop is closed: nobody awaits in it any more
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
