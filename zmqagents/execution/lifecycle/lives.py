"""The life of an agent: its hooks, from the one that starts it to the one that ends it.

An agent whose hooks are async has one task on the host's event loop, a `HookTask`, in which all of them run, so that
what one enters another can leave: a cancel scope, a session, a connection of some library for asyncio. The task is made
when it is first needed and ends with the agent. Hooks that are not async run in the worker thread of the call that
makes or ends the agent.

It is as if the host ran this for each agent, with the method calls in between:

    async with agent:
        agent.on_start()
        ...
        agent.on_stop()

So ``__aexit__`` is not called where ``__aenter__`` has failed, nor ``on_stop`` where ``on_start`` has, and an error of
``on_start`` or ``on_stop`` reaches ``__aexit__``. If the task is cancelled in between, by a task group that the agent
has entered or because the event loop ends, ``on_stop`` (if it is async) and ``__aexit__`` run then.

Threads: worker threads call `Lives.start` and `Lives.end`, the router thread `Lives.interrupt`; the event loop runs the
rest.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ...agents.context import HostServices, RunningCall, running_call
from ...agents.hooks import Hooks
from ...errors import CallCancelled, CallTimeout
from ...scheduler.records import AgentRecord, Ticket
from ..event_loop import EventLoop

if TYPE_CHECKING:
    import asyncio

__all__ = ["Lives"]

log = logging.getLogger(__name__)

Wait = Callable[["Future[Any]"], Any]


class Job:
    """A coroutine that is to run in a `HookTask`, which ``make`` gives; ``call`` is what `current_call` gives in it."""

    __slots__ = ("call", "cancelled", "done", "late", "limit_s", "make")

    def __init__(self, make: Callable[[], Awaitable[Any]], call: RunningCall, limit_s: float | None = None) -> None:
        self.make = make
        self.call = call
        self.limit_s = limit_s  # it is cancelled then; None: it has no limit of its own
        self.cancelled = False
        self.late = False
        self.done: Future[Any] = Future()

    def give_up(self, *, late: bool = False) -> bool:
        """Note that it is to be cancelled; False if that is known."""
        first = not self.cancelled
        self.cancelled = True
        self.late = self.late or late
        return first

    def fail(self, exc: BaseException) -> None:
        """It has ended in ``exc``, or never began."""
        if self.late and isinstance(exc, _cancelled()):
            exc = CallTimeout(f"{self.call.agent}.{self.call.method} did not end within {self.limit_s:.3g} s")
        self.done.set_exception(exc)


class HookTask:
    """Runs coroutines one after the other, all in one task of the event loop.

    ``left`` is awaited in that task when it is cancelled while nothing runs; the task ends then.
    """

    def __init__(self, loop: EventLoop, left: Callable[[BaseException], Awaitable[None]]) -> None:
        self._loop = loop
        self._left = left
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._over = False
        self._current: Job | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None

    def run(self, job: Job) -> Future[Any]:
        """Have ``job`` run; what it gives. Any thread."""
        with self._lock:
            if not self._over and self._loop.call_soon(self._begin):
                self._jobs.append(job)  # before the loop looks: it takes the lock
                return job.done
        job.fail(_ended(job))
        return job.done

    def cancel(self, job: Job) -> None:
        """Cancel ``job``, whether it runs yet or not. Any thread."""
        self._loop.call_soon(functools.partial(self._cancel, job))

    def close(self) -> None:
        """End the task, once it has run what there is. Any thread."""
        with self._lock:
            self._over = True
        self._loop.call_soon(self._begin)

    def abandon(self) -> None:
        """End the task now. Any thread."""
        with self._lock:
            self._over = True
        self._loop.call_soon(self._abandon)

    # ------------------------------------------------------------ on the event loop

    def _abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        import asyncio

        with self._lock:
            idle = self._over and not self._jobs
        if self._task is None and not idle:
            self._task = Context().run(asyncio.get_running_loop().create_task, self._work())
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _cancel(self, job: Job, *, late: bool = False) -> None:
        if not job.done.done() and job.give_up(late=late) and job is self._current and self._task is not None:
            self._task.cancel()

    async def _work(self) -> None:
        try:
            while not (self._loop.closing or (self._over and not self._jobs)):
                if self._jobs:
                    await self._run(self._jobs.popleft())
                elif (exc := await self._wait()) is not None:
                    await self._left(exc)
                    return
            if self._loop.closing:
                await self._left(_cancelled()())
        finally:
            with self._lock:
                self._over = True
            for job in self._jobs:
                job.fail(_ended(job))

    async def _wait(self) -> BaseException | None:
        """Wait for a job; what has cancelled the wait instead."""
        import asyncio

        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        except _cancelled() as exc:
            return exc
        finally:
            self._wake = None
        return None

    async def _run(self, job: Job) -> None:
        if job.cancelled:
            job.fail(_cancelled()())
            return
        import asyncio

        running_call.set(job.call)
        late = functools.partial(self._cancel, job, late=True)
        timer = None if job.limit_s is None else asyncio.get_running_loop().call_later(job.limit_s, late)
        self._current = job
        try:
            value = await job.make()
        except BaseException as exc:  # an agent may raise anything
            self._current = None
            job.fail(exc)
        else:
            self._current = None
            job.done.set_result(value)
        finally:
            running_call.set(None)
            if timer is not None:
                timer.cancel()
            self._uncancel()

    def _uncancel(self) -> None:
        """The cancellation of one job is no business of the next; Python 3.11 counts them."""
        task: Any = self._task
        while hasattr(task, "uncancel") and task.cancelling():
            task.uncancel()


class Life:
    """The hooks of one agent: which of them have been called, and what is owed for that at its end.

    ``limit_s``: how long the hooks at its end may take on the event loop.
    """

    def __init__(self, agent_id: str, instance: Any, hooks: Hooks, loop: EventLoop, limit_s: float) -> None:
        self._agent_id = agent_id
        self._instance = instance
        self._hooks = hooks
        self._owed: list[Callable[[BaseException | None], Any]] = []  # at its end, the last one first
        self._loop = loop
        self._limit_s = limit_s
        self._hook_task: HookTask | None = None  # while hooks were and are to run on the event loop
        self._job: Job | None = None  # that `interrupt` cancels

    # ------------------------------------------------------------ in a worker thread

    def start(self, call: RunningCall, wait: Wait) -> None:
        """Call the hooks at its beginning. If one fails, leave what was entered, and raise what Python would."""
        try:
            if self._hooks.context:
                call.check()
                self._await(self._enter, call, wait)
            if self._hooks.on_start:
                call.check()
                value = self._instance.on_start()
                if inspect.isawaitable(value):
                    self._await(functools.partial(_awaited, value), call, wait)
            self._note_start()
        except BaseException as exc:
            self._leave(call, exc, Future.result, strict=True)  # no slot is given back: the call may be over
            raise

    def end(self, call: RunningCall, wait: Wait) -> None:
        """Call the hooks at its end; raises what they raise."""
        self._leave(call, None, wait, strict=False)

    def _leave(self, call: RunningCall, exc: BaseException | None, wait: Wait, *, strict: bool) -> None:
        own = exc
        try:
            if self._hooks.on_stop and not self._hooks.stops_on_loop and self._stop in self._owed:
                self._owed.remove(self._stop)
                try:
                    value = self._instance.on_stop()
                    if inspect.isawaitable(value):
                        self._await(functools.partial(_awaited, value), call, wait, self._limit_s)
                except BaseException as raised:  # it reaches __aexit__
                    exc = raised
            if self._owed:
                self._await(functools.partial(self.leave, exc, strict and exc is own), call, wait, self._limit_s)
            elif exc is not None and not (strict and exc is own):
                raise exc
        finally:
            self._close_task()

    def _await(
        self, make: Callable[[], Awaitable[Any]], call: RunningCall, wait: Wait, limit_s: float | None = None
    ) -> None:
        self._job = Job(make, call, limit_s)
        wait(self._task_of_hooks().run(self._job))

    def _task_of_hooks(self) -> HookTask:
        if self._hook_task is None:
            self._hook_task = HookTask(self._loop, self._cancelled)
        return self._hook_task

    def _close_task(self) -> None:
        if self._hook_task is not None:
            self._hook_task.close()

    def abandon(self) -> None:
        """Its hooks will not be called any more, but for those that run when its task is cancelled."""
        if self._hook_task is not None:
            self._hook_task.abandon()

    def interrupt(self) -> None:
        """Cancel the hook that runs on the event loop. Called by the router thread."""
        job = self._job
        if job is not None and self._hook_task is not None:
            self._hook_task.cancel(job)

    # ------------------------------------------------------------ on the event loop

    async def start_on_loop(self, call: RunningCall) -> None:
        """The same as `start` in another task of the loop, where all hooks are async."""
        try:
            call.check()
            await self._run(Job(self._begin, call))
        except BaseException as exc:
            try:
                if self._owed:
                    await self._run(Job(functools.partial(self.leave, exc, True), call, self._limit_s))
            finally:
                self._close_task()
            raise

    async def end_on_loop(self, call: RunningCall) -> None:
        """The same as `end` in another task of the loop, where all hooks are async."""
        try:
            if self._owed:  # else it has ended by itself
                await self._run(Job(functools.partial(self.leave, None, False), call, self._limit_s))
        finally:
            self._close_task()

    async def _run(self, job: Job) -> None:
        """Run ``job`` to its end, whatever becomes of the task that waits for it."""
        import asyncio

        task = self._task_of_hooks()
        ended = asyncio.wrap_future(task.run(job))
        try:
            await asyncio.shield(ended)
        except asyncio.CancelledError:
            task.cancel(job)
            await asyncio.wait([ended])
            if not ended.cancelled():
                ended.exception()  # looked at: asyncio logs what nobody looks at
            raise

    async def _begin(self) -> None:
        if self._hooks.context:
            await self._enter()
        if self._hooks.on_start:
            await self._instance.on_start()
        self._note_start()

    async def _enter(self) -> None:
        await type(self._instance).__aenter__(self._instance)
        self._owed.append(self._exit)

    def _note_start(self) -> None:
        if self._hooks.on_stop:
            self._owed.append(self._stop)

    def _exit(self, exc: BaseException | None) -> Any:
        return type(self._instance).__aexit__(
            self._instance, type(exc) if exc is not None else None, exc, exc.__traceback__ if exc is not None else None
        )

    def _stop(self, _: BaseException | None) -> Any:
        return self._instance.on_stop()

    async def leave(self, exc: BaseException | None, strict: bool) -> None:
        """Call what is owed; raises what comes of that and of ``exc``, as a ``with`` statement does.

        ``strict``: ``exc`` has its own way to the caller, and only what replaces it is raised.
        """
        own = exc
        while self._owed:
            owed = self._owed.pop()
            try:
                value = owed(exc)
                if inspect.isawaitable(value):
                    value = await value
                if value and owed == self._exit:
                    exc = None
            except BaseException as raised:
                if raised is not exc and raised.__context__ is None:
                    raised.__context__ = exc
                exc = raised
        if exc is not None and not (strict and exc is own):
            raise exc

    async def _cancelled(self, exc: BaseException) -> None:
        """The task was cancelled while the agent lived, by what it has entered or by the end of the event loop."""
        if not self._hooks.stops_on_loop and self._stop in self._owed:
            self._owed.remove(self._stop)  # it belongs in a worker thread
        try:
            await self.leave(exc, True)
        except BaseException as raised:
            log.warning("%s has ended by itself: %s: %s", self._agent_id, type(raised).__name__, raised)


class Lives:
    """The lives of the agents of one host. ``limit_s``: how long the hooks at the end of an agent may take."""

    def __init__(self, loop: EventLoop, services: HostServices, limit_s: float) -> None:
        self._loop = loop
        self._services = services
        self._limit_s = limit_s
        self._of: dict[AgentRecord, Life] = {}
        self._busy: dict[Ticket, Life] = {}  # of calls that make or end an agent in a worker thread

    def start(self, ticket: Ticket, instance: Any, *, context: bool = True) -> None:
        """Start an agent that has been made: raises what its hooks raise. Called in a worker thread.

        Without ``context`` it is not entered, although its class could be.
        """
        call = _call_of(ticket)
        hooks = ticket.agent.spec.hooks
        life = self._busy[ticket] = self._life(ticket, instance, hooks if context else hooks._replace(context=False))
        try:
            life.start(call, functools.partial(self._wait, call))
        finally:
            del self._busy[ticket]
        self._of[ticket.agent] = life

    async def start_on_loop(self, ticket: Ticket, instance: Any) -> None:
        """The same on the event loop, where all its hooks are async."""
        life = self._life(ticket, instance, ticket.agent.spec.hooks)
        await life.start_on_loop(_call_of(ticket))
        self._of[ticket.agent] = life

    def end(self, ticket: Ticket) -> Any:
        """End an agent: raises what its hooks raise. Called in a worker thread, or gives a coroutine for the loop."""
        call = _call_of(ticket)
        call.end_by(self._limit_s)
        life = self._of.pop(ticket.agent, None)
        if life is None:  # nothing is to be called
            return None
        if ticket.on_loop:
            return life.end_on_loop(call)
        self._busy[ticket] = life
        try:
            life.end(call, functools.partial(self._wait, call))
        finally:
            del self._busy[ticket]
        return None

    def drop(self, record: AgentRecord) -> None:
        """Forget a deleted agent, also one whose end was cancelled. Called in a worker thread."""
        life = self._of.pop(record, None)
        if life is not None:
            life.abandon()

    def interrupt(self, ticket: Ticket) -> None:
        """Cancel the hook that ``ticket`` waits for in a worker thread. Called by the router thread."""
        life = self._busy.get(ticket)
        if life is not None:
            life.interrupt()

    def _life(self, ticket: Ticket, instance: Any, hooks: Hooks) -> Life:
        return Life(ticket.agent.agent_id, instance, hooks, self._loop, self._limit_s)

    def _wait(self, call: RunningCall, done: Future[Any]) -> Any:
        with self._services.outside(call):
            return done.result()


def _call_of(ticket: Ticket) -> RunningCall:
    assert ticket.context is not None  # it runs
    return ticket.context


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _ended(job: Job) -> CallCancelled:
    return CallCancelled(f"{job.call.agent}.{job.call.method}: the task of its hooks has ended")


def _cancelled() -> type[BaseException]:
    import asyncio

    return asyncio.CancelledError
