"""Where calls run: worker threads, and one event loop for ``async def`` methods.

The dispatcher decides what starts, and never starts more than ``capacity`` calls that hold a slot, so the pool only has
to have a thread for each. It keeps one
`queue.SimpleQueue` (the cheapest hand-off there is: 6.7 us a round trip measured) and adds a thread when
there are more started calls than threads: ``capacity`` of them, and a stand-in for each call that waits.
A stand-in ends when it would be idle beside ``capacity`` others.

Threads: `start`, `interrupt` and `close` are called by the router thread, ``done(ticket, reply)`` by worker threads and
by the loop's thread (by the router thread where no other could be started).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextvars import Context

from ..agents.context import RunningCall
from ..errors import HostBusy
from ..scheduler.dispatcher import Ticket, error_reply
from ..wire.messages import Flag, Reply
from .event_loop import EventLoop
from .router import Router
from .runner import AgentHost
from .stream_sender import StreamSender

__all__ = ["WorkerPool"]

Done = Callable[[Ticket, Reply], None]


class WorkerPool:
    """``capacity`` worker threads and stand-ins; see the module's docstring. ``loop`` runs the coroutines."""

    def __init__(self, host: AgentHost, loop: EventLoop, done: Done, capacity: int, router: Router) -> None:
        self._host = host
        self._loop = loop
        self._done = done
        self._router = router
        self._capacity = capacity
        self._jobs: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for a job; may be stale for a moment, which costs a thread at most
        self._busy = 0  # started tickets that have not returned
        self._closed = False

    @property
    def size(self) -> int:
        """Worker threads alive."""
        return len(self._threads)

    def prepare(self, ticket: Ticket) -> RunningCall:
        """What is known of ``ticket`` where its code runs."""
        chain = ticket.chain if ticket.parent is not None or ticket.came_by else ()
        sender = StreamSender(ticket, self._router) if ticket.flags & Flag.STREAM else None
        call = RunningCall(
            self._host.services, ticket.task_id, ticket.agent.agent_id, ticket.name, ticket.deadline, chain, ticket,
            sender,
        )  # fmt: skip
        ticket.begin(call)
        return call

    def start(self, ticket: Ticket) -> None:
        """Run ``ticket``; ``done`` is called when its code has returned, or at once if there is no thread to be had."""
        self.prepare(ticket)
        try:
            if ticket.on_loop:
                self._loop.start(ticket, self._host.run_on_loop, self._done_on_loop)
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

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """Tell the code of a running ticket that no caller waits for it; ``alone``: the calls that it made go on."""
        if ticket.context is not None:
            ticket.context.cancel(alone=alone)
        if ticket.on_loop:
            self._loop.cancel(ticket)

    def close(self, timeout: float) -> bool:
        """Stop the loop, and every thread that comes back within ``timeout`` seconds; True if all did."""
        self._closed = True
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        end = time.monotonic() + timeout
        clean = self._loop.close(timeout)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return clean and not any(thread.is_alive() for thread in threads)

    def stack_on_loop(self, ticket: Ticket) -> str:
        """Where the coroutine of ``ticket`` is; may be a moment old. For `dump`."""
        return self._loop.stack(ticket)

    def _done_on_loop(self, ticket: Ticket, reply: Reply | None) -> None:
        self._done(ticket, self._host.cancelled(ticket) if reply is None else reply)

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
            reply = Context().run(self._host.run, ticket, ticket.context)
            pace = ticket.pace
            if pace is not None:
                if ticket.gate is not None or ticket.spawned:
                    pace.disappoint()
                else:
                    pace.note(time.perf_counter() - began)
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
