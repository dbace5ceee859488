"""Calls that the host's own code makes: agent to agent within one host, without a socket.

`InsideLink` has the same interface as a client's `Connection` (see `link`), but hands its calls straight
to the broker's inbox and gets the replies from the router thread. The semantics are those of a call over
the wire: arguments and results are encoded and decoded, limits and deadlines hold.

What makes it more than a short cut is `InsideServices`: code that waits, in a nested call or for results,
tells the dispatcher what it waits for, gives its slot back meanwhile and goes on when the dispatcher says so
(`Gate`). Code on the event loop cannot block; it gets `BlockingCallError`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .agent import CallContext, current_call
from .codec import Encoded
from .dispatcher import Peer, Ticket
from .errors import BlockingCallError, HostStopping
from .frames import CLIENT_ID_BYTES, Call, Reply, client_prefix, task_id_of, to_time_ms
from .link import Link, Sink, Waiter
from .models import ModelConfigs
from .worker import Gate

__all__ = ["InsideLink", "InsideServices"]

Post = Callable[..., None]


class InsideLink(Link):
    """The link of a host to itself. ``post(event, *args)`` hands an event to the router thread."""

    def __init__(self, server_id: str, address: str, max_bytes: int, post: Post) -> None:
        self.server_id = server_id
        self.address = address
        self.max_bytes = max_bytes
        self.peer = Peer(client_prefix(os.urandom(CLIENT_ID_BYTES)), local=True)
        self._post = post
        self._ids = itertools.count(1)
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        ticket = own_ticket(self.server_id)
        waiter = Waiter()
        call = self._call(agent, method, body, flags, options, timeout, waiter)
        if ticket is None:
            self._post("call", self.peer, call, None, False, None)
            return waiter.wait(None)
        if ticket.on_loop:
            self._sinks.pop(call.call_id, None)
            raise BlockingCallError(f"{agent}.{method} would block the event loop: use `await` (an async_func or AsyncRpcClient)")
        gate = thread_gate()
        self._post("call", self.peer, call, ticket, True, gate)
        gate.wait()
        return waiter.take()

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        call = self._call(agent, method, body, flags, options, timeout, sink)
        self._post("call", self.peer, call, own_ticket(self.server_id), False, None)
        return task_id_of(self.peer.prefix, call.call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None) -> None:
        call_id = self._register(sink)
        self._post("fetch", self.peer, call_id, task_id, 1e9 if timeout is None else timeout)

    def cancel(self, task_id: str) -> None:
        self._post("cancel", self.peer, 0, task_id)

    def deliver(self, call_id: int, reply: Reply | None) -> None:
        """Called by the router thread; None: the time of a fetch is over."""
        sink = self._sinks.pop(call_id, None)
        if sink is not None:
            sink.deliver(reply)

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
        deps = [ref.task_id for ref in body.tasks if ref.server_id == self.server_id]
        frames = (body.payload, *body.buffers)
        return Call(self._register(sink), flags, to_time_ms(timeout), agent, method, deps, options or {}, frames)


def own_ticket(server_id: str) -> Ticket | None:
    """The ticket of this host that the calling code runs, None for code that runs none."""
    context = current_call()
    if context is None or context.host.server_id != server_id:
        return None
    ticket: Ticket | None = context.ticket
    return ticket


_gates = threading.local()


def thread_gate() -> Gate:
    """The gate of the calling thread: a thread waits for one thing at a time."""
    gate: Gate | None = getattr(_gates, "gate", None)
    if gate is None:
        gate = _gates.gate = Gate()
    return gate


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

    def wait_for(self, call: CallContext, results: Sequence[Any], timeout: float | None, any_of: bool) -> None:
        """Give the slot back until all (or ``any_of``) the results are done, or ``timeout`` seconds.

        ``results`` are AsyncResults: ``task_id``, ``server_id``, ``done()``, ``add_done_callback``. Raises
        `DeadlockError` when the wait could never end.
        """
        ticket: Ticket = call.ticket
        if ticket.on_loop and _on_a_loop():
            raise BlockingCallError("result() would block the event loop: `await` the AsyncResult instead")
        inside = all(result.server_id == self.server_id for result in results)
        if inside:
            gate = thread_gate()
            self._post("wait", ticket, [result.task_id for result in results], any_of, gate)
            self._pass(ticket, gate, timeout)
            return
        gate = self._begin_outside(ticket)
        missing = [1 if any_of else len(results)]
        lock = threading.Lock()

        def one_done(_: Any) -> None:
            with lock:
                missing[0] -= 1
                over = missing[0] == 0
            if over:
                self._post("wait_over", ticket)

        for result in results:
            result.add_done_callback(one_done)
        self._pass(ticket, gate, timeout)

    @contextmanager
    def outside(self, call: CallContext) -> Iterator[None]:
        """The slot is given back within this block, and taken again at its end."""
        ticket: Ticket = call.ticket
        if ticket.on_loop:
            if _on_a_loop():
                raise BlockingCallError("this would block the event loop: use `await` instead")
            yield
            return
        gate = self._begin_outside(ticket)
        try:
            yield
        finally:
            self._post("wait_over", ticket)
            gate.wait()

    def _begin_outside(self, ticket: Ticket) -> Gate:
        gate = thread_gate()
        self._post("wait_outside", ticket, gate)
        return gate

    def _pass(self, ticket: Ticket, gate: Gate, timeout: float | None) -> None:
        if timeout is None:
            gate.wait()
        elif not gate.wait(max(0.0, timeout)):
            self._post("wait_over", ticket)  # if it is over already, the gate is open or about to be
            gate.wait()


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
