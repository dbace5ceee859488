"""Where the items of a stream leave the host: a credit window between a generator and its reader.

A stream starts with `messages.STREAM_WINDOW` credits; each item takes one, and the reader grants more as it takes
items. Without a credit the producer stops *before* it makes the next item: a generator is parked and gives its worker
thread back, a coroutine is suspended. So a slow reader costs a window of items, never a queue and never a thread. To
wait for a credit is to wait for the reader: if that is a call of this host in a worker thread, the wait-for graph
knows it.

`acquire`, `send`, `park` and `take_up` belong to the producing thread or coroutine, `grant` to the router thread.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..codec import Encoded
from ..errors import ZmqAgentsError
from ..scheduler.dispatcher import Ticket
from ..wire.messages import STREAM_WINDOW
from .gate import Gate, Wait
from .router import Router

if TYPE_CHECKING:
    import asyncio

__all__ = ["StreamSender"]


class StreamSender:
    """Sends the items of one stream; see the module's docstring. ``go_on`` has a worker thread resume the ticket.

    ``items``: how many were sent. ``variables``: the context in which the generator runs, whichever thread runs it.
    """

    __slots__ = (
        "_credit", "_error", "_future", "_go_on", "_items", "_lock", "_loop", "_router", "_ticket", "_wait", "_waiting",
        "items", "variables",
    )  # fmt: skip

    def __init__(self, ticket: Ticket, router: Router, go_on: Callable[[Ticket], None]) -> None:
        self.variables = Context()
        self._ticket = ticket
        self._router = router
        self._go_on = go_on
        self._items: Iterator[Any] | None = None  # while it is parked
        self._error: ZmqAgentsError | None = None  # why it may not wait
        self._lock = threading.Lock()
        self._credit = STREAM_WINDOW
        self.items = 0
        self._waiting = False
        self._wait: Wait | None = None  # while it is parked, and since
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def send(self, item: Encoded) -> None:
        """Send one item, for which a credit was acquired."""
        number = self.items
        self.items += 1  # before the router thread can send it
        self._router.chunk(self._ticket, number, (item.payload, *item.buffers))

    def acquire(self) -> bool:
        """Take a credit, in a worker thread; False: there is none. Raises what ends the stream: cancel, timeout."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._ticket.context is not None:
            self._ticket.context.check()
        with self._lock:
            if self._credit:
                self._credit -= 1
                return True
        return False

    def park(self, items: Iterator[Any]) -> None:
        """Keep ``items`` until the reader has granted a credit."""
        self._items = items

    @property
    def parked(self) -> bool:
        """Whether `take_up` has something to give."""
        return self._items is not None

    def wait(self) -> None:
        """The thread that has parked the generator has left it: from now on another may `take_up`."""
        gate = _Resumption(self.resume)
        wait = self._wait = Wait(self._ticket, gate, gate.begin())
        with self._lock:
            self._waiting = True
        self._router.wait_credit(wait)

    def resume(self, error: ZmqAgentsError | None) -> None:
        """The wait is over; ``error``: it was refused. Called by the router thread."""
        self._error = error
        self._go_on(self._ticket)

    def take_up(self) -> Iterator[Any]:
        """What was parked."""
        items, self._items = self._items, None
        assert items is not None
        return items

    async def acquire_on_loop(self) -> None:
        """Take a credit, in a coroutine."""
        import asyncio  # it runs there, so it is here

        self._loop = asyncio.get_running_loop()
        while not self._take():
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

    def _take(self) -> bool:
        assert self._loop is not None
        with self._lock:
            if self._credit:
                self._credit -= 1
                return True
            self._future = self._loop.create_future()
            return False


class _Resumption(Gate):
    """The gate of a parked generator: no thread waits at it, so to open it calls a function."""

    __slots__ = ("_resume",)

    def __init__(self, resume: Callable[[ZmqAgentsError | None], None]) -> None:
        super().__init__()
        self._resume = resume

    def open(self, error: ZmqAgentsError | None = None) -> None:
        self._resume(error)


def _wake(future: asyncio.Future[None], error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
