"""The client's way to a host: one connection per process and host, for blocking, future and asyncio use alike.

A `Connection` is a handle; the sockets and the thread that owns them belong to its `Channel`, which starts with the
first request, ends with `Connection.close` (or when the last handle is dropped), and is made anew after a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .. import codec, errors
from ..agents.context import RunningCall, own_call, read_running_call
from ..checks import MAX_STRUCTURED_BYTES, check_threads
from ..codec import Encoded
from ..wire import messages
from ..wire.link import Link, Refetch, Sink, Waiter
from ..wire.messages import Flag, Home, Kind, Reply
from .channel import LATE_S, Channel, after_fork, close_all, is_over
from .requests import Call, CallOfMany, Credit, Fetch, Plain
from .target import Target

__all__ = ["Connection", "Follower", "connect", "take_place", "trust"]


# ---------------------------------------------------------------- the handle


_connections: weakref.WeakValueDictionary[tuple[object, ...], Connection] = weakref.WeakValueDictionary()
_connections_lock = threading.Lock()


_own_hosts: set[str] = set()


def trust(address: str) -> None:
    """The private host at ``address`` was started by this program: pickles may go there, and come from there."""
    _own_hosts.add(address)


def take_place(connection: Connection) -> None:
    """Make ``connection`` the one of this process to its address."""
    with _connections_lock:
        _connections[connection.address, None, None, None] = connection


def connect(target: Target) -> Connection:
    """The one connection of this process to ``target``. Opens nothing yet."""
    with _connections_lock:
        key = (target.address, target.transport, target.seed, target.acts_for)
        found = _connections.get(key)
        if found is None or (found.target.referred and not target.referred):  # what the user names is not refused
            found = _connections[key] = Connection(target)
        return found


class Follower(Protocol):
    """Wants to know where agents of a cluster are."""

    def hinted(self, home: Home) -> None:
        """An agent is there, as its host has said. On the thread that carries the replies; must not block or raise."""


class Connection(Link):
    """A handle on a host; any thread may use it. See the module's docstring."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.address = target.address
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._finalizer: weakref.finalize[[], Connection] | None = None
        # One for each RpcClient that holds it; the last one to close closes it.
        self._holds: deque[None] = deque()
        self._call = Call if target.seed is None else CallOfMany
        self._followers: weakref.WeakSet[Follower] = weakref.WeakSet()

    @property
    def channel(self) -> Channel | None:
        """The channel of this connection, None before the first request and after `close`: for a look at its state."""
        return self._channel

    # Known once connected; until then what any host allows.

    @property
    def server_id(self) -> str:  # type: ignore[override]
        return str(self._known().get("server_id", ""))

    @property
    def cluster(self) -> str:
        """The cluster of which the host is a member; "": of none, or it is not known yet."""
        name = self._known().get("cluster", "")
        return name if isinstance(name, str) else ""

    @property
    def max_bytes(self) -> int:  # type: ignore[override]
        channel = self._channel
        return channel.session.max_bytes if channel is not None else 1 << 40

    @property
    def max_structured_bytes(self) -> int:  # type: ignore[override]
        channel = self._channel
        return channel.session.max_structured_bytes if channel is not None else MAX_STRUCTURED_BYTES

    @property
    def takes_pickles(self) -> bool:  # type: ignore[override]
        """True for a private host of this program: it is not enough that a host says so."""
        return self.address in _own_hosts and bool(self._known().get("pickle", False))

    @property
    def management_timeout_s(self) -> float:  # type: ignore[override]
        return float(self._known().get("max_timeout_s", Link.management_timeout_s))

    def _known(self) -> dict[str, Any]:
        channel = self._channel
        return channel.session.welcome if channel is not None else {}

    @property
    def is_settled(self) -> bool:
        channel = self._channel
        return channel is not None and not channel.closing and bool(channel.session.welcome)

    def settle(self, timeout: float | None = 5.0) -> None:
        """Connect if need be, until the host has said WELCOME. Raises what stands in the way."""
        channel = self.open_channel()
        if not channel.session.welcome:
            waiter = Waiter()
            channel.request(Plain(Kind.PING), waiter, timeout)
            waiter.wait(None if timeout is None else timeout + LATE_S)

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        call = read_running_call()
        if call is not None and call.over:
            call = None
        if call is not None:
            call.host.check_blocking(f"{agent or 'the host'}.{method}()")
        channel = self._channel
        if channel is None or channel.closing:
            channel = self.open_channel()
        if not channel.resting and channel.io_thread == threading.get_ident():
            self.check_may_block(f"{agent or 'the host'}.{method}()")
        kind = self._call  # `self._call(…)` would look for a method of that name first, at each call
        message = kind(agent, method, body, flags, options, timeout, call)
        try:
            if call is None:
                return channel.ask(message)
            with self.waiting(call):
                return channel.ask(message)
        except errors.CallTimeout:
            what = f"{agent or 'the host'}.{method}"
            raise errors.CallTimeout(f"{what}: no answer from {self.address} within {timeout:.3g} s") from None

    def waiting(self, call: RunningCall) -> AbstractContextManager[None]:
        """The code of ``call`` waits within this block: a worker of some host gives its slot back meanwhile."""
        return call.host.outside(call)

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        channel = self._channel
        if channel is None or channel.closing:
            channel = self.open_channel()
        kind = self._call  # as in `call`
        message = kind(agent, method, body, flags, options, timeout, own_call())
        call_id = channel.request(message, sink, timeout)
        return messages.task_id_of(channel.session.prefix, call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None, at_home: bool = False) -> None:
        ask = functools.partial(self._fetch, at_home)
        ask(task_id, Refetch(ask, task_id, sink, timeout), timeout)

    def _fetch(self, at_home: bool, task_id: str, sink: Sink, timeout: float | None) -> None:
        time_ms = messages.MAX_TIME_MS if timeout is None else messages.to_time_ms(timeout)
        # However short the host is to wait, its answer may be large, and the connection new.
        limit_s = None if timeout is None else max(timeout, self.management_timeout_s)
        self.open_channel().request(Fetch(task_id, time_ms, at_home=at_home), sink, limit_s)

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        meta, flags = codec.pack(task_id), Flag.ALONE if alone else 0
        self.open_channel().request(Plain(Kind.CANCEL, 0, meta, flags=flags), None, None)

    def abandon(self, task_id: str) -> None:
        channel = self._channel
        if channel is not None and not channel.closing:  # otherwise it has ended with its connection
            channel.request(Plain(Kind.CANCEL, 0, codec.pack(task_id)), None, None)

    def credit(self, task_id: str, items: int) -> None:
        call_id = int(task_id.rpartition("-")[2])
        channel = self._channel
        if channel is not None and not channel.closing:  # of a connection that is gone there is nothing to grant
            channel.request(Credit(call_id, items), None, None)

    def check_may_block(self, what: str) -> None:
        channel = self._channel
        me = threading.get_ident()
        if channel is not None and channel.io_thread == me:
            raise errors.BlockingCallError(
                f"{what} in a done-callback would wait for itself: start a thread, or submit"
            )
        if channel is not None and channel.leading_caller == me:
            raise errors.BlockingCallError(f"{what} in a signal handler or finalizer, while its thread is in a call")

    def follow(self, follower: Follower) -> None:
        """Tell ``follower``, as long as it lives, where agents of the host's cluster are."""
        self._followers.add(follower)

    def _hints(self) -> Callable[[Home], None]:
        """What passes hints on to those that follow. It does not keep the connection."""
        followers = self._followers

        def pass_on(home: Home) -> None:
            for follower in list(followers):
                follower.hinted(home)

        return pass_on

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
            channel, self._channel = self._channel, None
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer.detach()  # it would keep the channel
        if channel is not None:
            channel.close()
            channel.join()

    def renew_lock(self) -> None:
        """In a forked child: a thread that is not here may hold it."""
        self._lock = threading.Lock()

    def open_channel(self) -> Channel:
        """The channel, made now if there is none."""
        channel = self._channel
        if channel is not None and not channel.closing:  # a fork closes the child's copies, see _after_fork
            return channel
        with self._lock:
            channel = self._channel
            if channel is None or channel.closing:
                if is_over():  # a thread that is started now never runs, and a caller that waits for it hangs
                    raise errors.HostUnreachable(f"{self.address}: this program is ending and opens no connection")
                check_threads()
                try:
                    channel = self._channel = Channel(self.target, self._hints())
                except RuntimeError as exc:  # no thread: at exit, from Python 3.12 on, or no more of them
                    raise errors.HostUnreachable(f"{self.address}: cannot start a thread: {exc}") from exc
                self._finalizer = weakref.finalize(self, channel.close)
            return channel


# ---------------------------------------------------------------- the process


def _after_fork() -> None:
    """In the child: the parent's connections are not here."""
    global _connections_lock
    _connections_lock = threading.Lock()
    for connection in list(_connections.values()):
        connection.renew_lock()
    after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where there is no fork
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(close_all)
