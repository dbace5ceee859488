"""Calls that the host's own code makes: agent to agent within one host, without a socket.

`InsideLink` has the same interface as a client's `Connection` (see `link`), but hands its calls straight
to the broker's inbox and gets the replies from the router thread. The semantics are those of a call over
the wire: arguments and results are encoded and decoded, limits and deadlines hold.

What makes it more than a short cut is `InsideServices`: code that waits, in a nested call or for results,
tells the dispatcher what it waits for, gives its slot back meanwhile and goes on when the dispatcher says so
(`Gate`). Code on the event loop cannot block; it gets `BlockingCallError`.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..agents.context import CallContext, current_call
from ..codec import Encoded
from ..errors import BlockingCallError, HostStopping, ZmqAgentsError
from ..models.configs import ModelConfigs
from ..scheduler.dispatcher import Peer, Ticket
from ..wire.link import Link, Refetch, Sink, Waiter, places
from ..wire.messages import (
    CLIENT_ID_BYTES,
    MAX_CHAIN,
    Call,
    Frame,
    Reply,
    client_prefix,
    task_id_of,
    to_time_ms,
)
from .gate import Gate, thread_gate

__all__ = ["InsideLink", "InsideServices"]

Post = Callable[..., None]


class InsideLink(Link):
    """The link of a host to itself. ``post(event, *args)`` hands an event to the router thread.

    ``steers()`` is true in the router thread, outside of an agent's code (see `Helm.steers`).
    """

    inside = True

    def __init__(self, server_id: str, address: str, max_bytes: int, post: Post, steers: Callable[[], bool]) -> None:
        self.server_id = server_id
        self.address = address
        self.max_bytes = max_bytes
        self.peer = Peer(client_prefix(os.urandom(CLIENT_ID_BYTES)), local=True)
        self._post = post
        self._ids = itertools.count(1)
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self._stopped = False
        self._steers = steers

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        self.check_may_block(f"{agent}.{method}()")
        here = current_call()
        if here is not None:
            here.host.check_blocking(f"{agent}.{method}()")
        ticket = own_ticket(self.server_id)
        waits = ticket is not None and _gives_slot_back(ticket, f"{agent}.{method}()")
        waiter = Waiter()
        call = self._call(agent, method, body, flags, options, timeout, waiter)
        if not waits:
            self._post("call", self.peer, call, ticket, None, 0)
            context = current_call()
            if ticket is None and context is not None:  # code of another host of this process
                with context.host.outside(context):
                    return waiter.wait(None)
            return waiter.wait(None)
        gate = thread_gate()
        self._post("call", self.peer, call, ticket, gate, gate.begin())
        gate.wait()
        return waiter.take()

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        call = self._call(agent, method, body, flags, options, timeout, sink)
        self._post("call", self.peer, call, own_ticket(self.server_id), None, 0)
        return task_id_of(self.peer.prefix, call.call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None) -> None:
        fetch = Refetch(self._fetch, task_id, sink, timeout)
        self._fetch(task_id, fetch, timeout)

    def _fetch(self, task_id: str, sink: Sink, timeout: float | None) -> None:
        self._post("fetch", self.peer, self._register(sink), task_id, 1e9 if timeout is None else timeout)

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        self._post("cancel", self.peer, 0, task_id, alone)

    def check_may_block(self, what: str) -> None:
        if self._steers():
            raise BlockingCallError(f"{what} in a done-callback would stop the host: start a thread, or submit")

    def credit(self, task_id: str, items: int) -> None:
        self._post("credit", self.peer, int(task_id.rpartition("-")[2]), items)

    def deliver(self, call_id: int, reply: Reply | None) -> None:
        """Called by the router thread; None: the time of a fetch is over."""
        sink = self._sinks.pop(call_id, None)
        if sink is not None:
            sink.deliver(reply)

    def chunk(self, call_id: int, body: Sequence[Frame]) -> None:
        """One item of a stream; called by the router thread."""
        sink = self._sinks.get(call_id)
        if sink is not None:
            sink.chunk(Reply(0, body))

    def stop(self) -> None:
        """Fail whatever still waits; called by the router thread as its last act."""
        with self._lock:
            self._stopped = True
            sinks = list(self._sinks.values())
            self._sinks.clear()
        for sink in sinks:
            sink.fail(HostStopping("the host has stopped"))

    def _register(self, sink: Sink) -> int:
        call_id = next(self._ids)
        with self._lock:
            if self._stopped:
                raise HostStopping("the host has stopped")
            self._sinks[call_id] = sink
        return call_id

    def _call(
        self, agent: str, method: str, body: Encoded, flags: int, options: dict[str, Any] | None,
        timeout: float | None, sink: Sink,
    ) -> Call:  # fmt: skip
        context = current_call()
        if context is not None and context.host.server_id != self.server_id:
            options = {**(options or {}), "chain": [*context.chain, context.call_id][-MAX_CHAIN:]}
        deps, far = places(body, self.server_id)
        if far:
            options = {**(options or {}), "far": far}
        frames = (body.payload, *body.buffers)
        return Call(self._register(sink), flags, to_time_ms(timeout), agent, method, deps, options or {}, frames)


def own_ticket(server_id: str) -> Ticket | None:
    """The ticket of this host that the calling code runs, None for code that runs none."""
    context = current_call()
    if context is None or context.host.server_id != server_id:
        return None
    ticket: Ticket | None = context.ticket
    return ticket


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
        if not _gives_slot_back(ticket, "result()"):
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
        if not _gives_slot_back(ticket, "reading a stream"):
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
        if not _gives_slot_back(ticket, "this call"):
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


def _gives_slot_back(ticket: Ticket, what: str) -> bool:
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
