"""Calls that the host's own code makes: agent to agent within one host, without a socket.

`LocalLink` has the interface of a client's `Connection` (see `wire.link`), but hands its calls to the router thread and
gets the replies from there. The semantics are those of a call over the wire: arguments and results are encoded and
decoded, limits and deadlines hold. Code that waits for such a call gives its worker slot back meanwhile; see `services`
for waits of other kinds.

Threads: any thread of the host calls the methods of `Link`; the router thread calls `deliver`, `chunk` and `stop`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from typing import Any

from ..agents.context import own_call
from ..codec import Encoded
from ..errors import BlockingCallError, HostStopping
from ..scheduler.dispatcher import Peer, Ticket
from ..wire.link import Link, Refetch, Sink, Waiter, places
from ..wire.messages import (
    CLIENT_ID_BYTES,
    Call,
    Frame,
    Reply,
    client_prefix,
    task_id_of,
    to_time_ms,
)
from .gate import begin_wait
from .router import Router
from .services import gives_slot_back


class LocalLink(Link):
    """The link of a host to itself: requests go straight to the router thread, and its replies come back from there."""

    inside = True

    def __init__(self, server_id: str, max_bytes: int, max_structured_bytes: int, router: Router) -> None:
        self.server_id = server_id
        self.address = ""  # until `listens_at`
        self.max_bytes = max_bytes
        self.max_structured_bytes = max_structured_bytes
        self.peer = Peer(client_prefix(os.urandom(CLIENT_ID_BYTES)), local=True)
        self._router = router
        self._ids = itertools.count(1)
        self._sinks: dict[int, Sink] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def listens_at(self, address: str) -> None:
        """Note the address of the host, which is not known before its listeners are open."""
        self.address = address

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        self.check_may_block(f"{agent}.{method}()")
        here = own_call()
        if here is not None:
            here.host.check_blocking(f"{agent}.{method}()")
        ticket = own_ticket(self.server_id)
        waits = ticket is not None and gives_slot_back(ticket, f"{agent}.{method}()")
        waiter = Waiter()
        call = self._call(agent, method, body, flags, options, timeout, waiter)
        if not waits:
            self._router.call(self.peer, call, ticket, None)
            context = own_call()
            if ticket is None and context is not None:  # code of another host of this process
                with context.host.outside(context):
                    return waiter.wait(None)
            return waiter.wait(None)
        assert ticket is not None
        wait = begin_wait(ticket)
        self._router.call(self.peer, call, ticket, wait)
        wait.gate.wait()
        return waiter.take()

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        call = self._call(agent, method, body, flags, options, timeout, sink)
        self._router.call(self.peer, call, own_ticket(self.server_id), None)
        return task_id_of(self.peer.prefix, call.call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None, at_home: bool = False) -> None:
        fetch = Refetch(self._fetch, task_id, sink, timeout)
        self._fetch(task_id, fetch, timeout)

    def _fetch(self, task_id: str, sink: Sink, timeout: float | None) -> None:
        self._router.fetch(self.peer, self._register(sink), task_id, 1e9 if timeout is None else timeout)

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        self._router.cancel(self.peer, task_id, alone)

    def check_may_block(self, what: str) -> None:
        if self._router.leads():
            raise BlockingCallError(f"{what} in a done-callback would stop the host: start a thread, or submit")

    def credit(self, task_id: str, items: int) -> None:
        self._router.credit(self.peer, int(task_id.rpartition("-")[2]), items)

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
        context = own_call()
        if context is not None and context.host.server_id != self.server_id:
            options = {**(options or {}), "chain": context.host.chain_of(context)}
        deps, far = places(body, self.server_id)
        if far:
            options = {**(options or {}), "far": far}
        frames = (body.payload, *body.buffers)
        return Call(self._register(sink), flags, to_time_ms(timeout), agent, method, deps, options or {}, frames)


def own_ticket(server_id: str) -> Ticket | None:
    """The ticket of this host that the calling code runs, None for code that runs none."""
    context = own_call()
    if context is None or context.host.server_id != server_id:
        return None
    ticket: Ticket | None = context.ticket
    return ticket
