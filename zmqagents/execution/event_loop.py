"""The host's event loop, where ``async def`` methods run: a thread of its own that starts with the first of them.

asyncio is imported by that first use, so that a host without such methods never pays for it (20 ms, 3 MiB). What is to
be run comes with each start, so the loop knows nothing about agents.

Threads: the router thread calls `EventLoop.start`, `cancel` and `close`; worker threads call `await_value`; the loop's
own thread calls ``done``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ..agents.context import RunningCall
from ..scheduler.records import Ticket
from ..wire.messages import Reply

if TYPE_CHECKING:
    import asyncio

__all__ = ["EventLoop"]

Run = Callable[[Ticket, RunningCall], Coroutine[Any, Any, Reply]]
Done = Callable[[Ticket, "Reply | None"], None]


class EventLoop:
    """An event loop in a thread that starts when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # worker threads may need the loop, too
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[tuple[Ticket, Run | None, Done | None]] = deque()  # without functions: cancel it
        self._posted = False
        self._tasks: dict[Ticket, asyncio.Task[Reply]] = {}
        self.closing = False  # what runs is cancelled, and nothing more is to begin
        self._asked = 0.0  # when the loop was asked to note its lag, 0: it has done so
        self._lag_s: float | None = None

    @property
    def tasks(self) -> int:
        """How many calls run on it."""
        return len(self._tasks)

    def lag_s(self) -> float | None:
        """How late the loop was to do what the last `lag_s` has asked of it, or is by now; None if it does not run.

        It is asked anew, so this is as old as the last question. Called by one thread.
        """
        loop, now = self._loop, time.monotonic()
        if loop is None:
            return None
        if self._asked:
            return now - self._asked
        with contextlib.suppress(RuntimeError):  # it has closed
            self._asked = now
            loop.call_soon_threadsafe(self._note_lag)
        return self._lag_s or 0.0

    def _note_lag(self) -> None:
        self._lag_s, self._asked = time.monotonic() - self._asked, 0.0

    def start(self, ticket: Ticket, run: Run, done: Done) -> None:
        """Run the coroutine ``run(ticket, ticket.context)``, then call ``done(ticket, reply)``.

        The reply is None if the task was cancelled before its first step. RuntimeError: no thread can be started.
        """
        self._post((ticket, run, done))

    def cancel(self, ticket: Ticket) -> None:
        """Cancel the task of ``ticket``, if it runs."""
        self._post((ticket, None, None))

    def await_value(self, value: Awaitable[Any]) -> Any:
        """Wait in a worker thread for ``value`` to be awaited on the loop."""
        import asyncio

        async def awaited() -> Any:
            return await value

        # It goes on in a copy of this thread's context, so it knows the call and sees the variables.
        return asyncio.run_coroutine_threadsafe(awaited(), self._ensure()).result()

    def call_soon(self, function: Callable[[], None]) -> bool:
        """Call ``function`` in the loop's thread; False if the loop is closed. Any thread.

        RuntimeError: no thread can be started.
        """
        loop = self._ensure()
        if self.closing:
            return False
        with contextlib.suppress(RuntimeError):  # it has closed since
            loop.call_soon_threadsafe(function)
            return True
        return False

    def stack(self, ticket: Ticket) -> str:
        """Where the coroutine of ``ticket`` is, as a traceback prints it; "" if it is not here."""
        task = self._tasks.get(ticket)
        if task is None:
            return ""
        lines = [line for frame in task.get_stack(limit=8) for line in traceback.format_stack(frame, limit=1)]
        return "".join(lines)

    def close(self, timeout: float) -> bool:
        """Cancel what runs and stop the loop; False if its thread does not end within ``timeout`` seconds."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return True
        try:
            loop.call_soon_threadsafe(self._stop)
        except RuntimeError:  # closed already
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _post(self, entry: tuple[Ticket, Run | None, Done | None]) -> None:
        """Wake the loop once for a batch: its self-pipe costs more than a small coroutine."""
        loop = self._ensure()
        self._inbox.append(entry)
        if not self._posted:
            self._posted = True
            loop.call_soon_threadsafe(self._drain)

    def _ensure(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
        import asyncio

        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._run, args=(loop,), name="zmqagents-loop", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio

        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _stop(self) -> None:
        import asyncio

        loop = self._loop
        assert loop is not None
        self.closing = True
        tasks = asyncio.all_tasks(loop)  # those that coroutines and `await_value` have left there, too
        for task in tasks:
            task.cancel()
        waiting = asyncio.gather(*tasks, return_exceptions=True)
        waiting.add_done_callback(lambda _: loop.stop())

    def _drain(self) -> None:
        loop = self._loop
        assert loop is not None
        self._posted = False  # first: what is appended from here on posts again
        while self._inbox:
            ticket, run, done = self._inbox.popleft()
            if run is not None and done is not None:
                assert ticket.context is not None
                task = Context().run(loop.create_task, run(ticket, ticket.context))
                self._tasks[ticket] = task
                task.add_done_callback(functools.partial(self._finished, ticket, done))
            else:
                running = self._tasks.get(ticket)
                if running is not None:
                    running.cancel()

    def _finished(self, ticket: Ticket, done: Done, task: asyncio.Task[Reply]) -> None:
        """Hand on the reply: here and not in the task, which may be cancelled before its first step."""
        del self._tasks[ticket]
        done(ticket, None if task.cancelled() else task.result())
