"""Where the items of a stream leave the host: a credit window between a generator and its reader.

A stream starts with `messages.STREAM_WINDOW` credits; each item takes one, and the reader grants more as it takes
items. Without a credit the producer stops *before* it makes the next item: a worker thread gives its slot back
meanwhile, a coroutine is suspended. So a slow reader costs a window of items, never a queue. To wait for a
credit is to wait for the reader: if that is a call of this host in a worker thread, the wait-for graph
knows it.

`acquire` and `send` belong to the producing thread or coroutine, `grant` to the router thread.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from ..codec import Encoded
from ..scheduler.dispatcher import Ticket
from ..wire.messages import STREAM_WINDOW
from .gate import Wait, begin_wait
from .router import Router

if TYPE_CHECKING:
    import asyncio

__all__ = ["StreamSender"]


class StreamSender:
    """Sends the items of one stream; see the module's docstring."""

    __slots__ = ("_credit", "_future", "_lock", "_loop", "_router", "_sent", "_ticket", "_wait", "_waiting")

    def __init__(self, ticket: Ticket, router: Router) -> None:
        self._ticket = ticket
        self._router = router
        self._lock = threading.Lock()
        self._credit = STREAM_WINDOW
        self._sent = 0
        self._waiting = False
        self._wait: Wait | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def send(self, item: Encoded) -> None:
        """Send one item, for which a credit was acquired."""
        self._router.chunk(self._ticket, self._sent, (item.payload, *item.buffers))
        self._sent += 1

    def acquire(self) -> None:
        """Take a credit, in a worker thread; waits for one. Raises what ends the stream: cancel, timeout."""
        with self._lock:
            taken = self._credit > 0
            if taken:
                self._credit -= 1
        if not taken:
            self._wait_for_credit()
        if self._ticket.context is not None:
            self._ticket.context.check()

    def _wait_for_credit(self) -> None:
        while True:
            wait = self._wait = begin_wait(self._ticket)
            if self._take():
                return
            self._router.wait_credit(wait)
            if self._credit:  # granted between the look and the wait: end it from this side
                self._router.wait_over(wait)
            wait.gate.wait()

    async def acquire_on_loop(self) -> None:
        """Take a credit, in a coroutine."""
        import asyncio  # it runs there, so it is here

        self._loop = asyncio.get_running_loop()
        while not self._take(register=True):
            future = self._future
            assert future is not None
            self._router.await_credit(self._ticket, functools.partial(self._fail, future), future.done)
            await future

    def _fail(self, future: asyncio.Future[None], error: Exception) -> None:
        """The reader waits for what this stream stands in the way of. Called by the router thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(_wake, future, error)

    def grant(self, items: int) -> None:
        """``items`` more may be sent, though no more than a window at a time, whatever the peer says."""
        with self._lock:
            self._credit = min(self._credit + items, STREAM_WINDOW)
            waiting, self._waiting = self._waiting, False
            future, self._future = self._future, None
        if future is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(_wake, future)
        if waiting and self._wait is not None:
            self._router.wait_over(self._wait)

    @property
    def has_credit(self) -> bool:
        return self._credit > 0

    def _take(self, *, register: bool = False) -> bool:
        with self._lock:
            if self._credit:
                self._credit -= 1
                return True
            if register and self._loop is not None:
                self._future = self._loop.create_future()
            else:
                self._waiting = True
            return False


def _wake(future: asyncio.Future[None], error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
