"""The client's way to a host: one connection per process and host, for blocking, future and asyncio use alike.

A `Connection` is a handle; the sockets and the thread that owns them belong to its `Channel`, which starts with the
first request, ends with `Connection.close` (or when the last handle is dropped), and is made anew after a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from typing import Any

from .. import codec, errors
from ..agents.context import own_call, running_call
from ..codec import Encoded
from ..wire import messages
from ..wire.link import Link, Refetch, Sink, Waiter
from ..wire.messages import Flag, Kind, Reply
from . import channel
from .channel import LATE_S, Channel
from .requests import Call, Plain
from .target import Target

__all__ = ["Connection", "connect", "trust"]


# ---------------------------------------------------------------- the handle


_connections: weakref.WeakValueDictionary[tuple[str, str | None], Connection] = weakref.WeakValueDictionary()
_connections_lock = threading.Lock()


_own_hosts: set[str] = set()


def trust(address: str) -> None:
    """The private host at ``address`` was started by this program: pickles may go there, and come from there."""
    _own_hosts.add(address)


def connect(target: Target) -> Connection:
    """The one connection of this process to ``target``. Opens nothing yet."""
    with _connections_lock:
        key = (target.address, target.transport)
        found = _connections.get(key)
        if found is None:
            found = _connections[key] = Connection(target)
        return found


class Connection(Link):
    """A handle on a host; any thread may use it. See the module's docstring."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.address = target.address
        self._lock = threading.Lock()
        self._core: Channel | None = None
        self._finalizer: weakref.finalize[[], Connection] | None = None
        # One for each RpcClient that holds it; the last one to close closes it.
        self._holds: deque[None] = deque()

    # Known once connected; until then what any host allows.

    @property
    def server_id(self) -> str:  # type: ignore[override]
        return str(self._known().get("server_id", ""))

    @property
    def max_bytes(self) -> int:  # type: ignore[override]
        core = self._core
        return core.limit if core is not None else 1 << 40

    @property
    def takes_pickles(self) -> bool:  # type: ignore[override]
        """True for a private host of this program: it is not enough that a host says so."""
        return self.address in _own_hosts and bool(self._known().get("pickle", False))

    @property
    def management_timeout_s(self) -> float:  # type: ignore[override]
        return float(self._known().get("max_timeout_s", Link.management_timeout_s))

    def _known(self) -> dict[str, Any]:
        core = self._core
        return core.welcome if core is not None else {}

    def settle(self, timeout: float | None = 5.0) -> None:
        """Connect if need be, until the host has said WELCOME. Raises what stands in the way."""
        core = self._open_core()
        if not core.welcome:
            waiter = Waiter()
            core.request(Plain(Kind.PING), waiter, timeout)
            waiter.wait(None if timeout is None else timeout + LATE_S)

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        call = running_call.get()
        if call is not None and call.over:
            call = None
        if call is not None:
            call.host.check_blocking(f"{agent or 'the host'}.{method}()")
        core = self._core
        if core is None or core.closing:
            core = self._open_core()
        if not core.resting and core.is_own_thread():
            self.check_may_block(f"{agent or 'the host'}.{method}()")
        message = Call(agent, method, body, flags, options, timeout, call)
        try:
            if call is None:
                return core.ask(message)
            with call.host.outside(call):  # a worker of some host: it gives its slot back meanwhile
                return core.ask(message)
        except errors.CallTimeout:
            what = f"{agent or 'the host'}.{method}"
            raise errors.CallTimeout(f"{what}: no answer from {self.address} within {timeout:.3g} s") from None

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        core = self._core
        if core is None or core.closing:
            core = self._open_core()
        call_id = core.request(Call(agent, method, body, flags, options, timeout, own_call()), sink, timeout)
        return messages.task_id_of(core.prefix, call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None) -> None:
        self._fetch(task_id, Refetch(self._fetch, task_id, sink, timeout), timeout)

    def _fetch(self, task_id: str, sink: Sink, timeout: float | None) -> None:
        time_ms = messages.MAX_TIME_MS if timeout is None else messages.to_time_ms(timeout)
        # However short the host is to wait, its answer may be large, and the connection new.
        limit_s = None if timeout is None else max(timeout, self.management_timeout_s)
        self._open_core().request(Plain(Kind.FETCH, None, codec.pack(task_id), time_ms=time_ms), sink, limit_s)

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        meta, flags = codec.pack(task_id), Flag.ALONE if alone else 0
        self._open_core().request(Plain(Kind.CANCEL, 0, meta, flags=flags), None, None)

    def abandon(self, task_id: str) -> None:
        core = self._core
        if core is not None and not core.closing:  # otherwise it has ended with its connection
            core.request(Plain(Kind.CANCEL, 0, codec.pack(task_id)), None, None)

    def credit(self, task_id: str, items: int) -> None:
        call_id = int(task_id.rpartition("-")[2])
        core = self._core
        if core is not None and not core.closing:  # of a connection that is gone there is nothing to grant
            core.request(Plain(Kind.CREDIT, call_id, time_ms=items), None, None)

    def check_may_block(self, what: str) -> None:
        core = self._core
        if core is not None and core.is_own_thread():
            raise errors.BlockingCallError(
                f"{what} in a done-callback would wait for itself: start a thread, or submit"
            )
        if core is not None and core.is_led_by_caller():
            raise errors.BlockingCallError(f"{what} in a signal handler or finalizer, amid a call of the same thread")

    def take_up(self) -> None:
        """One more `RpcClient` uses it."""
        self._holds.append(None)

    def let_go(self) -> bool:
        """One fewer; True if that was the last. Takes no lock: the garbage collector may call it in any thread."""
        with contextlib.suppress(IndexError):
            self._holds.pop()
        return not self._holds

    def close(self) -> None:
        """Close the sockets and wait for the I/O thread; what is outstanding fails. Used again, it opens anew."""
        with self._lock:
            core, self._core = self._core, None
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()  # it would keep the channel
        if core is not None:
            core.close()
            core.join()

    def _open_core(self) -> Channel:
        core = self._core
        if core is not None and not core.closing:  # a fork closes the child's copies, see _after_fork
            return core
        with self._lock:
            core = self._core
            if core is None or core.closing:
                core = self._core = Channel(self.target.resolve, self.target.address)
                self._finalizer = weakref.finalize(self, core.close)
            return core


# ---------------------------------------------------------------- the process


def _after_fork() -> None:
    """In the child: the parent's connections are not here."""
    global _connections_lock
    _connections_lock = threading.Lock()
    for connection in list(_connections.values()):
        connection._lock = threading.Lock()
    channel.after_fork()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(channel.close_all)
