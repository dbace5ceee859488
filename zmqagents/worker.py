"""Where calls run: worker threads, and one event loop for ``async def`` methods.

The pool is a mechanism without opinions: the dispatcher decides what starts and never starts more than
``capacity`` calls that hold a slot, so the pool only has to have a thread for each. It keeps one
`queue.SimpleQueue` (the cheapest hand-off there is: 6.7 us a round trip measured) and adds a thread when
there are more started calls than threads: ``capacity`` of them, and a stand-in for each call that waits.
A stand-in ends when it would be idle beside ``capacity`` others.

Threads: `start`, `interrupt` and `close` are called by the router thread, ``done(ticket, reply)`` by worker threads and
by the loop's thread (by the router thread where no other could be started).
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from .agent import CallContext, _current, current_call
from .dispatcher import Ticket, error_reply
from .errors import HostBusy
from .frames import Flag, Reply
from .host import AgentHost
from .outlet import Outlet

__all__ = ["WorkerPool"]

Done = Callable[[Ticket, Reply], None]


class WorkerPool:
    """``capacity`` worker threads, stand-ins and the loop lane; see the module's docstring."""

    def __init__(self, host: AgentHost, done: Done, capacity: int, post: Callable[..., None]) -> None:
        self._host = host
        self._done = done
        self._post = post
        self._capacity = capacity
        self._jobs: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for a job; may be stale for a moment, which costs a thread at most
        self._busy = 0  # started tickets that have not returned
        self._lane = LoopLane(host, done)
        self._closed = False
        host.await_value = self._lane.await_value

    @property
    def size(self) -> int:
        """Worker threads alive."""
        return len(self._threads)

    def prepare(self, ticket: Ticket) -> CallContext:
        """What the code of ``ticket`` will know of itself."""
        chain = ticket.chain if ticket.parent is not None or ticket.came_by else ()
        context = ticket.context = CallContext(
            self._host.services, ticket.task_id, ticket.agent.agent_id, ticket.name, ticket.deadline, chain, ticket
        )
        return context

    def start(self, ticket: Ticket) -> None:
        """Run ``ticket``; ``done`` is called when its code has returned, or at once if there is no thread to be had."""
        context = self.prepare(ticket)
        if ticket.flags & Flag.STREAM:
            context.outlet = Outlet(ticket, self._post)
        try:
            if ticket.on_loop:
                self._lane.start(ticket)
                return
            with self._lock:
                if self._busy >= len(self._threads):
                    self._add_thread()
                self._busy += 1
        except RuntimeError as exc:  # no more threads: a limit of the process, the container or the user
            busy = HostBusy(f"{ticket.label} was not started, for the host cannot start a thread: {exc}")
            self._done(ticket, error_reply(busy, call_id=ticket.task_id))
            return
        self._jobs.put(ticket)

    def interrupt(self, ticket: Ticket) -> None:
        """Tell the code of a running ticket that nobody waits for it any more."""
        if ticket.context is not None:
            ticket.context.cancel()
        if ticket.on_loop:
            self._lane.cancel(ticket)

    def close(self, timeout: float) -> bool:
        """Stop every thread that comes back within ``timeout`` seconds; True if all did."""
        self._closed = True
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        end = time.monotonic() + timeout
        clean = self._lane.close(timeout)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return clean and not any(thread.is_alive() for thread in threads)

    def stack_on_loop(self, ticket: Ticket) -> str:
        """Where the coroutine of ``ticket`` is; may be a moment old. For `dump`."""
        return self._lane.stack(ticket)

    def _add_thread(self) -> None:
        name = f"zmqagents-worker-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        thread.start()
        self._threads.add(thread)

    def _work(self) -> None:
        while True:
            ticket = self._jobs.get()
            if ticket is None or ticket.context is None:
                break
            began = time.perf_counter()
            reply = self._host.run(ticket, ticket.context)
            self._note(ticket, time.perf_counter() - began)
            with self._lock:
                self._busy -= 1
                surplus = len(self._threads) > max(self._capacity, self._busy + 1)
                if surplus:
                    self._threads.discard(threading.current_thread())
            self._done(ticket, reply)
            del ticket, reply  # a result must not outlive its use while this thread is idle
            if surplus:
                return
        with self._lock:
            self._threads.discard(threading.current_thread())

    @staticmethod
    def _note(ticket: Ticket, seconds: float) -> None:
        pace = ticket.pace
        if pace is None:
            return
        if ticket.gate is not None or ticket.spawned:
            pace.disappoint()
        else:
            pace.note(seconds)


class LoopLane:
    """The host's event loop, in a thread of its own that starts with the first coroutine."""

    def __init__(self, host: AgentHost, done: Done) -> None:
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

        loop, context = self._ensure(), current_call()

        async def awaited() -> Any:
            _current.set(context)  # the coroutine runs on behalf of the same call
            return await value

        return asyncio.run_coroutine_threadsafe(awaited(), loop).result()

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
                task = asyncio.get_running_loop().create_task(self._host.run_on_loop(ticket, ticket.context))
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
