"""Calls that the host's own code makes: agent to agent within one host, without a socket.

`InsideLink` has the same interface as a client's `Connection` (see `link`), but hands its calls straight
to the broker's inbox and gets the replies from the router thread. The semantics are those of a call over
the wire: arguments and results are encoded and decoded, limits and deadlines hold.

What makes it more than a short cut is `InsideServices`: code that waits, in a nested call or for results,
tells the dispatcher what it waits for, gives its slot back meanwhile and goes on when the dispatcher says so
(`Gate`). Code on the event loop cannot block; it gets `BlockingCallError`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..agents.context import CallContext
from ..errors import BlockingCallError, ZmqAgentsError
from ..models.configs import ModelConfigs
from ..scheduler.dispatcher import Ticket
from .gate import Gate, thread_gate

__all__ = ["InsideServices"]

Post = Callable[..., None]


class InsideServices:
    """What agents may ask of their host (`HostServices`). Any thread of the host may use it."""

    def __init__(self, server_id: str, models: ModelConfigs, post: Post, client: Callable[[], Any]) -> None:
        self.server_id = server_id
        self._models = models
        self._post = post
        self._client = client

    def model_config(self, name: str) -> dict[str, Any]:
        return self._models.get(name)

    def model(self, name: str) -> Any:
        return self._models.model(name)

    def client(self) -> Any:
        """An `RpcClient` on this host."""
        return self._client()

    def wait_for(self, call: CallContext, results: Sequence[Any], timeout: float | None, any_of: bool) -> bool:
        """Give the slot back until all (or ``any_of``) the results are done, or for ``timeout`` seconds.

        ``results`` are AsyncResults: ``task_id``, ``server_id``, ``add_done_callback``. False, at once, if the
        calling thread is not the call's own (one that the agent started): it holds no slot, and just waits. Raises
        `DeadlockError` when the wait could never end.
        """
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "result()"):
            return False
        gate = thread_gate()
        over = (ticket, gate, gate.begin())
        if all(self._is_own(result) for result in results):
            self._post("wait", *over, [result.task_id for result in results], any_of)
        else:
            far = [
                result.task_id for result in results if getattr(result, "server_id", self.server_id) != self.server_id
            ]
            self._post("wait_outside", *over, [] if any_of else far)
            self._end_when_done(over, results, any_of)
        self._pass(over, timeout)
        return True

    def wait_for_item(self, call: CallContext, stream: Any, timeout: float | None) -> bool:
        """The same for the next item of a stream: ``task_id``, ``server_id``, ``on_item``, ``ready()``."""
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "reading a stream"):
            return False
        gate = thread_gate()
        over = (ticket, gate, gate.begin())
        stream.on_item = lambda: self._post("wait_over", *over)
        if self._is_own(stream):
            self._post("wait_item", *over, stream)
        else:
            self._post("wait_outside", *over)
        if stream.ready():  # it came between the look and the wait
            self._post("wait_over", *over)
        try:
            self._pass(over, timeout)
        finally:
            stream.on_item = None
        return True

    def _is_own(self, result: Any) -> bool:
        """Made on this host's inside link. One asked for over a socket may be unknown to the dispatcher yet."""
        return getattr(result, "inside", False) is True and result.server_id == self.server_id

    @contextmanager
    def outside(self, call: CallContext) -> Iterator[None]:
        """The slot is given back within this block, and taken again at its end."""
        ticket: Ticket = call.ticket
        if not gives_slot_back(ticket, "this call"):
            yield
            return
        gate = thread_gate()
        over = (ticket, gate, gate.begin())
        self._post("go_outside", *over)
        try:
            yield
        finally:
            self._post("wait_over", *over)
            gate.wait()

    def awaiting(
        self, call: CallContext, result: Any, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> Callable[[], None]:
        """A coroutine of this host begins to await ``result`` (``task_id``, ``server_id``, ``ready()``).

        The callable that it gives says that the wait is over; ``ready`` is True when it has ended before the router
        thread hears of it. ``fail`` is called, by the router thread, if the wait could never end.
        """
        ticket: Ticket = call.ticket
        if not ticket.on_loop:
            return self._await_in_thread(call)
        inside = self._is_own(result)

        def over() -> None:
            self._post("unwait" if inside else "unawait_outside", ticket, result.task_id)

        if hasattr(type(result), "on_item"):  # a stream: its wait is over when an item comes, not when it is read
            result.on_item = over
        begin = "await" if inside else "await_outside"
        self._post(begin, ticket, result.task_id, fail, lambda: ready() or result.ready())
        return over

    def _await_in_thread(self, call: CallContext) -> Callable[[], None]:
        """A plain method runs an event loop of its own, and that awaits: the slot is given back while anything does."""
        if call.thread != threading.get_ident():
            return _nothing
        gate = thread_gate()
        waits = gate.awaits
        gate.awaits += 1
        if not waits:
            gate.outside = (call.ticket, gate, gate.begin())
            self._post("go_outside", *gate.outside)

        def over() -> None:
            gate.awaits -= 1
            if not gate.awaits:
                self._post("wait_over", *gate.outside)
                gate.wait()  # for a slot: a moment's halt of that loop, which is the price of running one in a worker

        return over

    def check_blocking(self, what: str) -> None:
        """Raise BlockingCallError on an event loop."""
        if _on_a_loop():
            raise BlockingCallError(f"{what} would block the event loop: `await` it instead")

    def _end_when_done(self, over: Wait, results: Sequence[Any], any_of: bool) -> None:
        missing = 1 if any_of else len(results)
        lock = threading.Lock()

        def one_done(_: Any) -> None:
            nonlocal missing
            with lock:
                missing -= 1
                last = missing == 0
            if last:
                self._post("wait_over", *over)

        for result in results:
            result.add_done_callback(one_done)

    def _pass(self, over: Wait, timeout: float | None) -> None:
        gate = over[1]
        if timeout is None:
            gate.wait()
        elif not gate.wait(max(0.0, timeout)):
            self._post("wait_over", *over)  # if it is over already, the gate is open or about to be
            gate.wait()


Wait = tuple[Ticket, Gate, int]


def gives_slot_back(ticket: Ticket, what: str) -> bool:
    """True in the thread that runs ``ticket``; BlockingCallError on an event loop; False in any other thread."""
    if _on_a_loop():
        raise BlockingCallError(f"{what} would block the event loop: `await` it instead")
    context = ticket.context
    return context is not None and not ticket.on_loop and context.thread == threading.get_ident()


def _nothing() -> None:
    pass


def _on_a_loop() -> bool:
    asyncio = sys.modules.get("asyncio")  # not imported where nobody uses it
    return asyncio is not None and asyncio._get_running_loop() is not None
