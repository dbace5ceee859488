"""What agents' code asks of its host: model configurations, a client, and above all to wait.

Code that waits, for results, for the next item of a stream or for something that the host cannot see, tells the
dispatcher what it waits for, gives its worker slot back meanwhile, and goes on when the dispatcher opens its `Gate`.
So waiting costs no capacity, and a wait that could never end is refused with `DeadlockError`. Code on the event loop
holds no slot and cannot block; it gets `BlockingCallError`, and reports what it awaits by `LocalServices.awaiting`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..agents.context import RunningCall
from ..errors import BlockingCallError, ZmqAgentsError
from ..models.configs import ModelConfigs
from ..scheduler.dispatcher import Ticket
from ..scheduler.seals import Seals
from ..wire.messages import MAX_CHAIN
from .event_loop import EventLoop
from .gate import Wait, begin_wait, thread_gate
from .lifecycle.reminding import check_reminds, made_reminder
from .lifecycle.saving import StateSaver, check_saves
from .router import Router

__all__ = ["LocalServices"]


class LocalServices:
    """What agents may ask of their host (`HostServices`). Any thread of the host may use it."""

    def __init__(
        self, server_id: str, models: ModelConfigs, router: Router, client: Callable[[], Any], seals: Seals,
        loop: EventLoop, saver: StateSaver | None = None,
    ) -> None:  # fmt: skip
        self.server_id = server_id
        self._models = models
        self._router = router
        self._client = client
        self._seals = seals
        self._loop = loop
        self._saver = saver

    def model_config(self, name: str) -> dict[str, Any]:
        return self._models.get(name)

    def model(self, name: str) -> Any:
        return self._models.model(name)

    def client(self) -> Any:
        """An `RpcClient` on this host."""
        return self._client()

    def chain_of(self, call: RunningCall, *further: str) -> list[str]:
        return self._seals.seal([*call.chain, call.call_id, *further][-MAX_CHAIN:])

    def show_progress(self, call: RunningCall) -> None:
        """Have the callers of ``call`` told how far it has come."""
        self._router.progress(call.ticket)

    def save(self, call: RunningCall) -> Awaitable[None]:
        """Save the state of the agent; see `CallContext.save`. Without a keeper nothing is to be done."""
        ticket: Ticket = call.ticket
        check_saves(ticket.agent)
        if self._saver is not None and ticket.agent.instance is not None:
            later = self._saver.save(ticket.agent)
            if later is not None and _on_a_loop():
                return later
            if later is not None:
                with self.outside(call):
                    self._loop.await_value(later)
        return _Done()

    def remind(
        self, call: RunningCall, name: str, method: str, args: Sequence[Any], after: float | None, every: float | None
    ) -> None:
        """Set or cancel a reminder; see `CallContext.remind`."""
        ticket: Ticket = call.ticket
        check_reminds(ticket, over=call.over)
        reminder = made_reminder(ticket, name, method, args, after, every)
        assert self._saver is not None  # a host with agents of a cluster has one
        self._saver.keeper.remind(reminder, ticket)
        call.note_reminder()

    def fence_of(self, call: RunningCall) -> int:
        """The epoch of the agent's activation; see `CallContext.fence`."""
        ticket: Ticket = call.ticket
        return ticket.agent.epoch

    def wait_for(self, call: RunningCall, results: Sequence[Any], timeout: float | None, any_of: bool) -> bool:
        """Give the slot back until all (or ``any_of``) the results are done, or for ``timeout`` seconds.

        ``results`` have ``task_id``, ``server_id``, ``add_done_callback``, or are plain futures. False, at once, if the
        calling thread is not the call's own (one that the agent started): it holds no slot, and just waits. Raises
        `DeadlockError` when the wait could never end.
        """
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "result()"):
            return False
        wait = begin_wait(ticket)
        if all(self._is_own(result) for result in results):
            self._router.wait(wait, [result.task_id for result in results], any_of)
        else:
            far = [
                result.task_id for result in results if getattr(result, "server_id", self.server_id) != self.server_id
            ]
            self._router.wait_outside(wait, [] if any_of else far)
            self._end_when_done(wait, results, any_of)
        self._pass(wait, timeout)
        return True

    def wait_for_item(self, call: RunningCall, stream: Any, timeout: float | None) -> bool:
        """The same for the next item of a stream: ``task_id``, ``server_id``, ``watch()``, ``ready()``."""
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "reading a stream"):
            return False
        wait = begin_wait(ticket)
        stream.watch(lambda: self._router.wait_over(wait))
        if self._is_own(stream):
            self._router.wait_item(wait, stream)
        else:
            self._router.wait_outside(wait)
        if stream.ready():  # it came between the look and the wait
            self._router.wait_over(wait)
        try:
            self._pass(wait, timeout)
        finally:
            stream.watch(None)
        return True

    def _is_own(self, result: Any) -> bool:
        """Made on this host's inside link. One asked for over a socket may be unknown to the dispatcher yet."""
        return getattr(result, "inside", False) is True and result.server_id == self.server_id

    @contextmanager
    def outside(self, call: RunningCall) -> Iterator[None]:
        """The slot is given back within this block, and taken again at its end."""
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "this call"):
            yield
            return
        wait = begin_wait(ticket)
        self._router.go_outside(wait)
        try:
            yield
        finally:
            self._router.wait_over(wait)
            wait.gate.wait()

    def awaiting(
        self, call: RunningCall, result: Any, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> Callable[[], None]:
        """A coroutine of this host begins to await ``result`` (``task_id``, ``server_id``, ``ready()``).

        The callable that it gives says that the wait is over; ``ready`` is True when it has ended before the router
        thread hears of it. ``fail`` is called, by the router thread, if the wait could never end.
        """
        ticket: Ticket = call.ticket
        if not ticket.on_loop:
            return self._await_in_thread(call)
        router, task_id = self._router, result.task_id
        begin, end = (
            (router.await_result, router.unawait)
            if self._is_own(result)
            else (router.await_outside, router.unawait_outside)
        )

        def over() -> None:
            end(ticket, task_id)

        if hasattr(result, "watch"):  # a stream: its wait is over when an item comes, not when it is read
            result.watch(over)
        begin(ticket, task_id, fail, lambda: ready() or result.ready())
        return over

    def _await_in_thread(self, call: RunningCall) -> Callable[[], None]:
        """A plain method runs an event loop of its own, and that awaits: the slot is given back while anything does."""
        if call.thread != threading.get_ident():
            return _nothing
        gate = thread_gate()
        if gate.outside is None:
            gate.outside = begin_wait(call.ticket)
            self._router.go_outside(gate.outside)
        wait = gate.outside
        gate.awaits += 1

        def over() -> None:
            gate.awaits -= 1
            if not gate.awaits:
                gate.outside = None
                self._router.wait_over(wait)
                gate.wait()  # for a slot: a moment's halt of that loop, which is the price of running one in a worker

        return over

    def check_blocking(self, what: str) -> None:
        """Raise BlockingCallError on an event loop."""
        if _on_a_loop():
            raise BlockingCallError(f"{what} would block the event loop: `await` it instead")

    def _end_when_done(self, wait: Wait, results: Sequence[Any], any_of: bool) -> None:
        missing = 1 if any_of else len(results)
        lock = threading.Lock()

        def one_done(_: Any) -> None:
            nonlocal missing
            with lock:
                missing -= 1
                last = missing == 0
            if last:
                self._router.wait_over(wait)

        for result in results:
            result.add_done_callback(one_done)

    def _pass(self, wait: Wait, timeout: float | None) -> None:
        gate = wait.gate
        if timeout is None:
            gate.wait()
        elif not gate.wait(max(0.0, timeout)):
            self._router.wait_over(wait)  # if it is over already, the gate is open or about to be
            gate.wait()


class _Done:
    """Awaited, it gives None at once."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


def gives_slot_back(ticket: Ticket, what: str) -> bool:
    """True in the thread that runs ``ticket``; BlockingCallError on an event loop; False in any other thread."""
    if _on_a_loop():
        raise BlockingCallError(f"{what} would block the event loop: `await` it instead")
    context = ticket.context
    return context is not None and not ticket.on_loop and context.thread == threading.get_ident()


def _nothing() -> None:
    pass


def _on_a_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # if it was never imported, no loop runs
    return asyncio is not None and asyncio._get_running_loop() is not None
