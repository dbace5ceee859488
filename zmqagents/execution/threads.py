"""Where calls run: worker threads, and one event loop for ``async def`` methods.

The dispatcher decides what starts, and never starts more than ``capacity`` calls that hold a slot, so the pool only has
to have a thread for each. It keeps one
`queue.SimpleQueue` (the cheapest hand-off there is: 6.7 us a round trip measured) and adds a thread when
there are more started calls than threads: ``capacity`` of them, and a stand-in for each call that waits.
A stand-in ends when it would be idle beside ``capacity`` others. A stream whose reader takes nothing leaves its thread,
and any thread goes on with it. Deleted agents are dropped here as well, since a ``__del__`` is an agent's code: it may
take long, or never come back.

Threads: `start`, `interrupt` and `close` are called by the router thread, ``done(ticket, reply)`` by worker threads and
by the loop's thread (by the router thread where no other could be started).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextvars import Context

from ..agents.context import RunningCall
from ..errors import HostBusy
from ..scheduler.records import AgentRecord, Ticket
from ..wire.messages import Flag, Reply, error_reply
from .event_loop import EventLoop
from .router import Router
from .runner import PARKED, AgentHost
from .stream_sender import StreamSender

__all__ = ["WorkerPool"]

Done = Callable[[Ticket, Reply], None]


class _Retired:
    """A job for a worker: the objects of deleted agents are to be dropped."""

    __slots__ = ("_drop", "records")

    context = None  # no call runs; a worker looks at this field of each job anyway

    def __init__(self, records: list[AgentRecord], drop: Callable[[AgentRecord], None]) -> None:
        self.records = records
        self._drop = drop

    def drop(self) -> None:
        """Drop them, one after the other. `WorkerPool.retire` has handed over every reference that the host had."""
        for record in self.records:
            self._drop(record)


class WorkerPool:
    """``capacity`` worker threads and stand-ins; see the module's docstring. ``loop`` runs the coroutines."""

    def __init__(self, host: AgentHost, loop: EventLoop, done: Done, capacity: int, router: Router) -> None:
        self.loop = loop
        self._host = host
        self._done = done
        self._router = router
        self._capacity = capacity
        self._jobs: queue.SimpleQueue[Ticket | _Retired | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for a job; may be stale for a moment, which costs a thread at most
        self._busy = 0  # started tickets that have not returned
        self._closed = False
        _pools.add(self)

    @property
    def size(self) -> int:
        """Worker threads alive."""
        return len(self._threads)

    def prepare(self, ticket: Ticket) -> RunningCall:
        """What is known of ``ticket`` where its code runs."""
        chain = ticket.chain if ticket.parent is not None or ticket.came_by else ()
        sender = StreamSender(ticket, self._router, self._go_on) if ticket.flags & Flag.STREAM else None
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
                self.loop.start(ticket, self._host.run_on_loop, self._done_on_loop)
                return
            self._take_thread()
        except RuntimeError as exc:
            self._refuse(ticket, "was not started", exc)
            return
        self._jobs.put(ticket)

    def _refuse(self, ticket: Ticket, what: str, exc: RuntimeError) -> None:
        """There are no more threads: a limit of the process, the container or the user."""
        busy = HostBusy(f"{ticket.label} {what}, for the host cannot start a thread: {exc}")
        self._done(ticket, error_reply(busy, call_id=ticket.task_id))

    def _take_thread(self) -> None:
        with self._lock:
            if self._busy >= len(self._threads):
                self._add_thread()
            self._busy += 1

    def _go_on(self, ticket: Ticket) -> None:
        """Resume a parked stream. Called by the router thread."""
        if self._closed:  # the generator ends with the process
            return
        try:
            self._take_thread()
        except RuntimeError as exc:
            self._refuse(ticket, "cannot go on", exc)
            return
        self._jobs.put(ticket)

    def go_on_loop(self, ticket: Ticket) -> None:
        """Run the rest of a call whose code has left its thread for the event loop. Called by the router thread."""
        try:
            self.loop.start(ticket, self._host.run_rest, self._done_on_loop)
        except RuntimeError as exc:
            self._refuse(ticket, "cannot go on", exc)

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """Drop the objects of these agents in a worker, once no call runs on them."""
        gone = [record for record in records if record.instance is not None and not record.holders]
        job = _Retired(gone, self._host.drop)
        if not job.records:
            return
        with self._lock, contextlib.suppress(RuntimeError):  # no more threads: the next free one drops them
            self._busy += 1
            if self._busy > len(self._threads):
                self._add_thread()
        self._jobs.put(job)

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """Tell the code of a running ticket that no caller waits for it; ``alone``: the calls that it made go on."""
        if ticket.context is not None:
            ticket.context.cancel(alone=alone)
            self._host.interrupt(ticket)
        if ticket.on_loop:
            self.loop.cancel(ticket)

    def close(self, timeout: float) -> bool:
        """Stop the loop, and every thread that comes back within ``timeout`` seconds; True if all did."""
        self._closed = True
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._jobs.put(None)
        end = time.monotonic() + timeout
        clean = self.loop.close(timeout)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return clean and not any(thread.is_alive() for thread in threads)

    def stack_on_loop(self, ticket: Ticket) -> str:
        """Where the coroutine of ``ticket`` is; may be a moment old. For `dump`."""
        return self.loop.stack(ticket)

    def renew_lock(self) -> None:
        """In a forked child: a thread that is not here may hold it."""
        self._lock = threading.Lock()

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
                if type(ticket) is not _Retired:
                    break
                ticket.drop()
                with self._lock:
                    self._busy -= 1
                continue
            context = ticket.context
            sender: StreamSender | None = context.sender
            began = time.perf_counter()
            is_late = context.deadline is not None and time.monotonic() >= context.deadline
            if is_late and not (sender is not None and sender.parked):  # the host was frozen: its caller was told
                reply = self._host.too_late(ticket)
            elif sender is None:
                reply = Context().run(self._host.run, ticket, context)
            else:
                reply = sender.variables.run(self._host.resume if sender.parked else self._host.run, ticket, context)
            pace = ticket.pace
            if pace is not None and not is_late:
                if ticket.gate is not None or ticket.spawned:
                    pace.disappoint()
                else:
                    pace.note(time.perf_counter() - began)
            with self._lock:
                self._busy -= 1
                surplus = len(self._threads) > max(self._capacity, self._busy + 1)
                if surplus:
                    self._threads.discard(threading.current_thread())
            if reply is not PARKED:
                self._done(ticket, reply)
            elif sender is not None and sender.parked:
                sender.wait()
            else:
                self._router.go_to_loop(ticket)
            del ticket, reply, context, sender  # a result must not outlive its use while this thread is idle
            if surplus:
                return
        with self._lock:
            self._threads.discard(threading.current_thread())


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _renew_locks() -> None:
    for pool in list(_pools):
        pool.renew_lock()


os.register_at_fork(after_in_child=_renew_locks)
