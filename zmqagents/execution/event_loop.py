"""The host's event loop, where ``async def`` methods run: a thread of its own that starts with the first of them.

asyncio is imported here alone, so that a host without such methods never pays for it (20 ms, 3 MiB).

Threads: `LoopLane.start`, `cancel` and `close` are called by the router thread, `await_value` by worker threads;
``done(ticket, reply)`` is called in the loop's thread.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from ..scheduler.records import Ticket
from ..wire.messages import Reply
from .runner import AgentHost

__all__ = ["LoopLane"]


class LoopLane:
    """The host's event loop, in a thread of its own that starts with the first coroutine."""

    def __init__(self, host: AgentHost, done: Callable[[Ticket, Reply], None]) -> None:
        self._host = host
        self._done = done
        self._lock = threading.Lock()  # workers may want the loop, too
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._inbox: deque[tuple[str, Ticket]] = deque()
        self._posted = False
        self._tasks: dict[Ticket, asyncio.Task[Reply]] = {}

    def start(self, ticket: Ticket) -> None:
        self._post("start", ticket)

    def cancel(self, ticket: Ticket) -> None:
        self._post("cancel", ticket)

    def await_value(self, value: Awaitable[Any]) -> Any:
        """Wait in a worker thread for ``value`` to be awaited on the loop."""

        async def awaited() -> Any:
            return await value

        # It goes on in a copy of this thread's context, so it knows the call and sees the variables.
        return asyncio.run_coroutine_threadsafe(awaited(), self._ensure()).result()

    def stack(self, ticket: Ticket) -> str:
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

    def _post(self, what: str, ticket: Ticket) -> None:
        """One wake-up of the loop for a batch: its self-pipe costs more than a small coroutine."""
        loop = self._ensure()
        self._inbox.append((what, ticket))
        if not self._posted:
            self._posted = True
            loop.call_soon_threadsafe(self._drain)

    def _ensure(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None:
            return self._loop
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
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _stop(self) -> None:
        loop = self._loop
        assert loop is not None
        tasks = asyncio.all_tasks(loop)  # those that coroutines and `await_value` have left there, too
        for task in tasks:
            task.cancel()
        waiting = asyncio.gather(*tasks, return_exceptions=True)
        waiting.add_done_callback(lambda _: loop.stop())

    def _drain(self) -> None:
        self._posted = False  # first: what is appended from here on posts again
        while self._inbox:
            what, ticket = self._inbox.popleft()
            if what == "start":
                assert ticket.context is not None
                loop = asyncio.get_running_loop()
                task = Context().run(loop.create_task, self._host.run_on_loop(ticket, ticket.context))
                self._tasks[ticket] = task
                task.add_done_callback(functools.partial(self._finished, ticket))
            else:
                running = self._tasks.get(ticket)
                if running is not None:
                    running.cancel()

    def _finished(self, ticket: Ticket, task: asyncio.Task[Reply]) -> None:
        """A task may be cancelled before its first step, so the reply is made here and not in it."""
        del self._tasks[ticket]
        self._done(ticket, self._host.failure(ticket, asyncio.CancelledError()) if task.cancelled() else task.result())
