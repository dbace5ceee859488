"""The client core: one connection per process and host, for blocking, future and asyncio use alike.

A `Connection` is a handle; the sockets belong to its `_Core`, whose I/O thread owns the DEALER, its monitor
and a wake-up socket. Callers append to the core's outbox and wake the thread only while it sleeps; replies go
straight from the I/O thread to the sink of the request. The thread starts with the first request, ends with
`Connection.close` (or when the last handle is dropped), and is made anew after a fork.

    CONNECTING --handshake--> GREETING (HELLO sent) --WELCOME--> READY
        | refused, no answer      |                                 | connection lost, GOODBYE
        v                         v                                 v
      CLOSED: every outstanding request fails, at once, with what is known: `HostUnreachable` (nothing was
      sent), `AuthenticationError`, or `CallLost` (it was sent: whether it ran is not known).

A closed connection opens again with the next request. libzmq's own reconnecting is in effect off: a message
queued for a host that died must not reach its successor. The monitor tells of a crash within milliseconds; a host
that hangs is noticed by pings.
"""

from __future__ import annotations

import atexit
import contextlib
import heapq
import itertools
import logging
import os
import socket
import struct
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import zmq

from . import codec, endpoints, errors, frames, security
from .agent import current_call
from .codec import Encoded
from .frames import CLIENT_ID_BYTES, MAX_CHAIN, Code, Flag, Kind, Reply
from .link import Link, Refetch, Sink, Waiter, places

__all__ = ["Connection", "Target", "Transport", "connect", "target_of"]

log = logging.getLogger(__name__)

Transport = Literal["ipc", "tcp"]

BATCH = 64
CONNECT_TIMEOUT_S = 5.0
PING_IDLE_S = 10.0
PING_BUSY_S = 5.0
DEAD_S = 15.0
FLUSH_S = 1.0  # how long a connection that is closed goes on trying to send
LATE_S = 0.5  # how long after a deadline the client waits for the host's own, better worded, answer


# ---------------------------------------------------------------- where to connect


@dataclass(frozen=True)
class Target:
    """What a user asked for: ``host:port``, or the socket path of a private host."""

    host: str
    port: int | None
    transport: Transport | None = None
    ipc: str | None = None

    @property
    def address(self) -> str:
        return f"ipc:{self.ipc}" if self.ipc else f"{self.host}:{self.port}"

    def resolve(self) -> tuple[str, str | None]:
        """The ZeroMQ endpoint and the host's CURVE key (None on ipc). Raises HostUnreachable, AuthenticationError."""
        if self.ipc is not None:
            return f"ipc://{self.ipc}", None
        assert self.port is not None
        found = endpoints.find_host(self.host, self.port)
        if found is not None and self.transport != "tcp":
            return f"ipc://{found.ipc}", None
        if self.transport == "ipc":
            raise errors.HostUnreachable(f"no host of yours on this machine listens on {self.address}")
        if found is not None:
            return f"tcp://{self.host}:{self.port}", found.server_key
        key = security.KeyStore.open().server_key_for(self.host, self.port)
        if key is None:
            raise errors.AuthenticationError(
                f"the key of {self.address} is not known: get it with `as_server keys show` there and add it here"
            )
        return f"tcp://{self.host}:{self.port}", key


def target_of(address: str) -> Target:
    """The target that a reference's ``address`` names."""
    if address.startswith("ipc:"):
        return Target("", None, ipc=address[4:])
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise errors.ConfigError(f"{address!r} is not the address of a host")
    return Target(host, int(port))


# ---------------------------------------------------------------- the handle


_connections: weakref.WeakValueDictionary[tuple[str, str | None], Connection] = weakref.WeakValueDictionary()
_connections_lock = threading.Lock()


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
        self._core: _Core | None = None
        self._finalizer: weakref.finalize[[], Connection] | None = None
        # One for each RpcClient that holds it; the last one to close closes it.
        self._holds: deque[None] = deque()

    # Known once connected; until then what any host allows.

    @property
    def server_id(self) -> str:  # type: ignore[override]
        return str(self._known().get("server_id", ""))

    @property
    def max_bytes(self) -> int:  # type: ignore[override]
        return int(self._known().get("max_message_bytes", 1 << 40))

    @property
    def takes_pickles(self) -> bool:  # type: ignore[override]
        """True for a private host of this program."""
        return bool(self._known().get("pickle", False))

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
            core.request(lambda call_id, token, _: [frames.header(Kind.PING, call_id, token)], waiter, timeout)
            self._block(waiter, timeout, "the host")

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        call = current_call()
        if call is not None:
            call.host.check_blocking(f"{agent or 'the host'}.{method}()")
        core = self._open_core()
        self.check_may_block(f"{agent or 'the host'}.{method}()")
        waiter = Waiter()
        call_id = core.request(_Call(agent, method, body, flags, options, timeout), waiter, timeout)
        try:
            return self._block(waiter, timeout, f"{agent or 'the host'}.{method}")
        except errors.CallTimeout:
            core.forget(call_id)
            raise

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        core = self._open_core()
        call_id = core.request(_Call(agent, method, body, flags, options, timeout), sink, timeout)
        return frames.task_id_of(core.prefix, call_id)

    def fetch(self, task_id: str, sink: Sink, *, timeout: float | None = None) -> None:
        self._fetch(task_id, Refetch(self._fetch, task_id, sink, timeout), timeout)

    def _fetch(self, task_id: str, sink: Sink, timeout: float | None) -> None:
        self._open_core().request(_Fetch(task_id, timeout), sink, None)

    def cancel(self, task_id: str, *, alone: bool = False) -> None:
        meta, flags = codec.pack(task_id), Flag.ALONE if alone else 0
        self._open_core().request(
            lambda _, token, __: [frames.header(Kind.CANCEL, 0, token, flags=flags), meta], None, None
        )

    def credit(self, task_id: str, items: int) -> None:
        call_id = int(task_id.rpartition("-")[2])
        core = self._core
        if core is not None and not core.closing:  # of a connection that is gone there is nothing to grant
            core.request(lambda _, token, __: [frames.header(Kind.CREDIT, call_id, token, time_ms=items)], None, None)

    def check_may_block(self, what: str) -> None:
        core = self._core
        if core is not None and core.is_own_thread():
            raise errors.BlockingCallError(
                f"{what} in a done-callback would wait for itself: start a thread, or submit"
            )

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
        if core is not None:
            core.close()
            core.join()

    def _open_core(self) -> _Core:
        core = self._core
        if core is not None and not core.closing:  # a fork closes the child's copies, see _after_fork
            return core
        with self._lock:
            core = self._core
            if core is None or core.closing:
                core = self._core = _Core(self.target)
                self._finalizer = weakref.finalize(self, core.close)
            return core

    def _block(self, waiter: Waiter, timeout: float | None, what: str) -> Reply:
        limit = None if timeout is None else timeout + LATE_S
        call = current_call()
        try:
            if call is None:
                return waiter.wait(limit)
            with call.host.outside(call):  # a worker of some host: it gives its slot back meanwhile
                return waiter.wait(limit)
        except errors.CallTimeout:
            raise errors.CallTimeout(f"{what}: no answer from {self.address} within {timeout:.3g} s") from None


class _Call:
    """A CALL that is made into frames when it is sent: the time left is right then, not when it was queued."""

    __slots__ = ("agent", "body", "deadline", "flags", "method", "options")

    def __init__(
        self, agent: str, method: str, body: Encoded, flags: int, options: dict[str, Any] | None, timeout: float | None
    ) -> None:
        self.agent = agent
        self.method = method
        self.body = body
        self.flags = flags
        call = current_call()
        if call is not None:  # so that a chain of calls which comes back to its first host is seen there
            options = {**(options or {}), "chain": [*call.chain, call.call_id][-MAX_CHAIN:]}
        self.options = options
        self.deadline = None if timeout is None else time.monotonic() + timeout

    def __call__(self, call_id: int, token: int, server_id: str) -> list[frames.Frame]:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        body, options = self.body, self.options
        deps, far = places(body, server_id)
        if far:
            options = {**(options or {}), "far": far}
        return frames.call_frames(
            call_id, token, self.agent, self.method, (body.payload, *body.buffers), flags=self.flags, timeout_s=left,
            deps=deps, options=options,
        )  # fmt: skip


class _Fetch:
    __slots__ = ("meta", "timeout")

    def __init__(self, task_id: str, timeout: float | None) -> None:
        self.meta = codec.pack(task_id)
        self.timeout = timeout

    def __call__(self, call_id: int, token: int, server_id: str) -> list[frames.Frame]:
        time_ms = frames.MAX_TIME_MS if self.timeout is None else frames.to_time_ms(self.timeout)
        return [frames.header(Kind.FETCH, call_id, token, time_ms=time_ms), self.meta]


# ---------------------------------------------------------------- the core: one I/O thread and its sockets


_context: tuple[int, zmq.Context[Any]] | None = None
_context_lock = threading.Lock()
_cores: weakref.WeakSet[_Core] = weakref.WeakSet()


def _process_context() -> zmq.Context[Any]:
    """The ZeroMQ context of all connections of this process; a new one after a fork."""
    global _context
    with _context_lock:
        if _context is None or _context[0] != os.getpid():
            _context = (os.getpid(), zmq.Context())
        return _context[1]


class _Request:
    __slots__ = ("call_id", "deadline", "make", "sent", "sink")

    def __init__(self, call_id: int, make: Any, sink: Sink | None, deadline: float | None) -> None:
        self.call_id = call_id
        self.make = make
        self.sink = sink
        self.deadline = deadline
        self.sent = False


class _Core:
    """See the module's docstring. `request`, `forget` and `close` may be called from any thread."""

    def __init__(self, target: Target) -> None:
        self.pid = os.getpid()
        self.target = target
        self.prefix_bytes = os.urandom(CLIENT_ID_BYTES)
        self.prefix = frames.client_prefix(self.prefix_bytes)
        self.welcome: dict[str, Any] = {}
        self.closing = False
        self._ids = itertools.count(1)
        self._outbox: deque[_Request] = deque()  # filled by any thread
        self._unsent: deque[_Request] = deque()  # the I/O thread's own
        self._pending: dict[int, _Request] = {}  # sent or to be sent, and not answered
        self._timers: list[tuple[float, int]] = []
        self._asleep = False
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._poller = zmq.Poller()
        self._token = 0
        self._server_id = ""
        self._connect_by = 0.0
        self._last_heard = self._last_ping = 0.0
        self._thread = threading.Thread(target=self._run, name=f"zmqagents-io-{target.address[-24:]}", daemon=True)
        _cores.add(self)
        self._thread.start()

    # ------------------------------------------------------------ other threads

    def request(self, make: Any, sink: Sink | None, timeout: float | None) -> int:
        """Send what ``make(call_id, token, server_id)`` gives; the reply goes to ``sink`` (None: there is none)."""
        call_id = next(self._ids)
        deadline = None if timeout is None else time.monotonic() + timeout + LATE_S
        request = _Request(call_id, make, sink, deadline)
        if sink is not None:
            self._pending[call_id] = request
        self._outbox.append(request)
        if self.closing:  # it may have missed the last look at the outbox
            self._fail_all(errors.HostLost(f"the connection to {self.target.address} is closed"))
        self._wake()
        return call_id

    def forget(self, call_id: int) -> None:
        """Nobody waits for this call any more: cancel it on the host."""
        if self._pending.pop(call_id, None) is not None:
            self.request(lambda _, token, __: [frames.header(Kind.CANCEL, call_id, token)], None, None)

    def is_alive(self) -> bool:
        """Whether its sockets may still be open."""
        return self._thread.is_alive()

    def is_own_thread(self) -> bool:
        """True in the I/O thread, which runs the done-callbacks."""
        return self._thread is threading.current_thread()

    def close(self) -> None:
        """End the I/O thread; does not wait for it."""
        self.closing = True
        if self.pid == os.getpid():
            self._wake()

    def join(self) -> None:
        """Wait for the I/O thread, unless this is it."""
        if not self.is_own_thread():
            self._thread.join(5.0)

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(OSError):  # full of wake-ups already, or closed
                self._wake_w.send(b"\0")

    # ------------------------------------------------------------ the I/O thread

    def _run(self) -> None:
        error: Exception = errors.HostLost(f"the connection to {self.target.address} was closed")
        try:
            self._poller.register(self._wake_r.fileno(), zmq.POLLIN)
            while not self.closing:
                self._turn()
        except zmq.ContextTerminated:
            pass
        except BaseException as exc:  # a bug: nobody may be left waiting
            log.exception("the connection to %s failed", self.target.address)
            error = errors.HostLost(f"the connection to {self.target.address} failed: {exc!r}")
        finally:
            self.closing = True
            self._flush()
            self._say_bye()
            self._disconnect()
            self._fail_all(error)
            self._wake_w.close()
            self._wake_r.close()

    def _turn(self) -> None:
        busy = self._send_some()
        busy = self._receive_some() or busy
        now = time.monotonic()
        self._look_at_clock(now)
        if busy:
            return
        self._asleep = True
        if self._outbox or self.closing:
            self._asleep = False
            return
        events = self._poller.poll(self._poll_ms(now))
        self._asleep = False
        with contextlib.suppress(BlockingIOError):
            self._wake_r.recv(4096)
        if self._monitor is not None and any(where is self._monitor for where, _ in events):
            self._read_monitor()

    def _poll_ms(self, now: float) -> int | None:
        due = [self._timers[0][0]] if self._timers else []
        if self._dealer is not None:
            due.append(self._connect_by if not self._token else self._ping_due())
        return max(0, int((min(due) - now) * 1000) + 1) if due else None

    def _take_in(self) -> None:
        """Move what other threads have asked for to this one's own queue; their deadlines count from now on."""
        for _ in range(BATCH):
            if not self._outbox:
                return
            request = self._outbox.popleft()
            if request.deadline is not None and request.sink is not None:
                self._add_timer(request.deadline, request.call_id)
            self._unsent.append(request)

    def _send_some(self) -> bool:
        self._take_in()
        if not self._unsent:
            return False
        if self._dealer is None:
            self._connect()
            return self._dealer is None
        if not self._token:
            return False
        while self._unsent:
            request = self._unsent.popleft()
            if request.sink is None or request.call_id in self._pending:  # else it timed out or was cancelled
                self._send_one(request)
        return True

    def _send_one(self, request: _Request) -> None:
        dealer = self._dealer
        assert dealer is not None
        try:
            parts = request.make(request.call_id, self._token, self._server_id)
        except Exception as exc:  # what cannot be made into a message concerns its own caller only
            self._pending.pop(request.call_id, None)
            if request.sink is not None:
                request.sink.fail(exc)
            return
        size = sum(map(len, parts))
        limit = int(self.welcome.get("max_message_bytes", 1 << 40))
        if size > limit + 1024:
            self._pending.pop(request.call_id, None)
            if request.sink is not None:
                text = f"a message of {size:,} bytes, limit {limit:,} (max_message_bytes of the host)"
                request.sink.fail(errors.MessageTooLarge(text, size, limit))
            return
        request.sent = True
        dealer.send_multipart(parts, zmq.NOBLOCK, copy=size < 65_536)

    def _receive_some(self) -> bool:
        dealer = self._dealer
        if dealer is None:
            return False
        for count in range(BATCH):
            try:
                parts = dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count > 0
            self._last_heard = time.monotonic()
            try:
                self._on_message(parts)
            except errors.RemoteProtocolError as exc:
                log.warning("%s sent what is no message: %s", self.target.address, exc)
            except BaseException:  # a done-callback may raise anything, SystemExit too
                log.exception("a callback on a result from %s failed", self.target.address)
            if self._dealer is not dealer:
                return True
        return True

    def _on_message(self, parts: list[bytes]) -> None:
        head = frames.parse_header(parts[0])
        kind = head.kind
        if kind == Kind.RESULT or kind == Kind.ERROR:
            request = self._pending.pop(head.call_id, None)
            if request is not None and request.sink is not None:
                request.sink.deliver(Reply(head.code if kind == Kind.ERROR else Code.NONE, parts[1:]))
        elif kind == Kind.CHUNK:
            request = self._pending.get(head.call_id)
            if request is not None and request.sink is not None:
                request.sink.chunk(Reply(Code.NONE, parts[1:]))
        elif kind == Kind.PONG or kind == Kind.PENDING:
            request = self._pending.pop(head.call_id, None)
            if request is not None and request.sink is not None:
                request.sink.deliver(None if kind == Kind.PENDING else Reply(Code.NONE, ()))
        elif kind == Kind.WELCOME:
            welcome = codec.unpack(parts[1], max_bytes=frames.MAX_META_BYTES) if len(parts) > 1 else None
            if not isinstance(welcome, dict):
                raise errors.RemoteProtocolError("WELCOME without its map")
            self.welcome = welcome
            self._server_id = str(welcome.get("server_id", ""))
            self._token = head.token
        elif kind == Kind.GOODBYE:
            self._lost("it has stopped", errors.HostStopping)
        elif kind == Kind.NEED_HELLO:
            self._lost("it does not know this connection any more", errors.CallLost)
        else:
            raise errors.RemoteProtocolError(f"unknown kind {kind}")

    def _look_at_clock(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, call_id = heapq.heappop(self._timers)
            request = self._pending.pop(call_id, None)
            if request is not None and request.sink is not None:
                request.sink.fail(errors.CallTimeout(f"{self.target.address} did not answer in time"))
        if self._dealer is None:
            return
        if not self._token:
            if now >= self._connect_by:
                self._lost(f"no answer within {CONNECT_TIMEOUT_S:g} s", errors.HostUnreachable)
        elif now >= self._last_heard + DEAD_S and self._last_ping > self._last_heard:
            self._lost(f"silent for {DEAD_S:g} s", errors.CallLost)
        elif now >= self._ping_due():
            self._last_ping = now
            self._dealer.send(frames.header(Kind.PING, 0, self._token), zmq.NOBLOCK)

    def _ping_due(self) -> float:
        """When to ask for a sign of life, or to give the host up."""
        if self._last_ping > self._last_heard:
            return self._last_heard + DEAD_S
        return max(self._last_heard, self._last_ping) + (PING_BUSY_S if self._pending else PING_IDLE_S)

    def _add_timer(self, due: float, call_id: int) -> None:
        heapq.heappush(self._timers, (due, call_id))
        if len(self._timers) > 2 * len(self._pending) + 1024:  # mostly calls that were answered long before
            self._timers = [entry for entry in self._timers if entry[1] in self._pending]
            heapq.heapify(self._timers)

    # ------------------------------------------------------------ connecting and losing

    def _connect(self) -> None:
        try:
            endpoint, server_key = self.target.resolve()
            keys = security.KeyStore.open().client_keypair() if server_key is not None else None
        except errors.ZmqAgentsError as exc:
            self._fail_all(exc)
            return
        dealer: zmq.Socket[bytes] = _process_context().socket(zmq.DEALER)
        # Closing with linger 0 while half of a multi-part message is written makes libzmq 4.3.5 abort the process.
        # What lingers reaches no successor: there is no reconnecting, and the token would be wrong.
        dealer.linger = 1000
        for option, value in _DEALER_OPTIONS:
            dealer.setsockopt(option, value)
        if server_key is not None and keys is not None:
            security.client_curve(dealer, keys, server_key)
        self._dealer = dealer
        self._monitor = dealer.get_monitor_socket(_EVENTS)
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._token = 0
        self._connect_by = time.monotonic() + CONNECT_TIMEOUT_S
        dealer.connect(endpoint)

    def _read_monitor(self) -> None:
        while self._monitor is not None:
            try:
                parts = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_monitor(_MONITOR_EVENT.unpack_from(parts[0])[0])

    def _on_monitor(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._greet()
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self._lost("it refused this client's key", errors.AuthenticationError)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._lost("the handshake failed: its key is another one, or it is no host", errors.AuthenticationError)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._lost("the handshake failed: it does not speak this protocol", errors.AuthenticationError)
        elif event in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
            self._receive_all()
            if self._dealer is not None:
                if self._token:
                    self._lost("the connection was lost", errors.CallLost)
                else:
                    self._lost("nothing listens there", errors.HostUnreachable)

    def _receive_all(self) -> None:
        """What the host sent before it went, a GOODBYE say, is still worth reading."""
        while self._receive_some():
            pass

    def _greet(self) -> None:
        assert self._dealer is not None
        self._last_heard = self._last_ping = time.monotonic()
        hello = codec.pack({"client": self.prefix_bytes, "versions": [frames.VERSION]})
        self._dealer.send_multipart([frames.header(Kind.HELLO), hello], zmq.NOBLOCK)

    def _lost(self, why: str, kind: type[Exception]) -> None:
        """The connection is no more: fail what is outstanding. The next request connects anew."""
        self._disconnect()
        self._fail_all(kind(f"{self.target.address}: {why}"))

    def _flush(self) -> None:
        """Send what was asked for before the end: a program may make its calls and exit."""
        end = time.monotonic() + FLUSH_S
        with contextlib.suppress(zmq.ZMQError, errors.ZmqAgentsError):
            while (self._outbox or self._unsent) and time.monotonic() < end:
                self._send_some()
                if self._outbox or self._unsent:  # not connected yet
                    self._poller.poll(20)
                    self._receive_some()
                    self._read_monitor()

    def _say_bye(self) -> None:
        if self._dealer is not None and self._token:
            with contextlib.suppress(zmq.ZMQError):
                self._dealer.send(frames.header(Kind.BYE, 0, self._token), zmq.NOBLOCK)

    def _disconnect(self) -> None:
        dealer, monitor = self._dealer, self._monitor
        self._dealer = self._monitor = None
        self._token = 0
        if dealer is None or monitor is None:
            return
        self._poller.unregister(dealer)
        self._poller.unregister(monitor)
        dealer.disable_monitor()  # before its socket is closed, or the close hangs
        monitor.close(linger=0)
        dealer.close()

    def _fail_all(self, error: Exception) -> None:
        """Fail every request that is outstanding; those never sent say so."""
        self._outbox.clear()
        self._unsent.clear()
        while self._pending:
            try:
                _, request = self._pending.popitem()
            except KeyError:  # another thread took the last one
                break
            if request.sink is not None:
                lost = isinstance(error, errors.CallLost) and not request.sent
                request.sink.fail(errors.HostUnreachable(*error.args) if lost else _copy(error))


def _copy(error: Exception) -> Exception:
    """One exception object for each waiter: raising adds a traceback to it."""
    return type(error)(*error.args)


_MONITOR_EVENT = struct.Struct("=hi")  # event, value: zmq_socket_monitor(3)
_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)
_DEALER_OPTIONS = (
    # Ten minutes, so in effect never: a lost connection is closed here. Not -1, with which libzmq 4.3.5 ends the pipe
    # in the middle of whatever is being received, drops what had arrived and may abort (fq.cpp, "!_more").
    (zmq.RECONNECT_IVL, 600_000),
    (zmq.SNDHWM, 0),
    (zmq.RCVHWM, 0),
    (zmq.HANDSHAKE_IVL, 30_000),  # more than CONNECT_TIMEOUT_S: a frozen host is unreachable, not one with a wrong key
    (zmq.CONNECT_TIMEOUT, 3000),
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 30),
    (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)


def _after_fork() -> None:
    """In the child: the parent's sockets and threads are not here. Whoever waits on a copy is told."""
    global _context_lock, _connections_lock
    _context_lock = threading.Lock()
    _connections_lock = threading.Lock()
    for connection in list(_connections.values()):
        connection._lock = threading.Lock()
    for core in list(_cores):
        core.closing = True
        core._asleep = False
        pending = list(core._pending.values())
        core._pending.clear()
        for request in pending:
            if request.sink is not None:
                with contextlib.suppress(RuntimeError):  # its lock is free: the parent's thread had just answered
                    request.sink.fail(errors.HostLost("this process was forked while the call was out"))


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _close_all() -> None:
    """At exit: nobody is left waiting, what was sent is written, and ZeroMQ's own clean-up finds no open socket."""
    cores = [core for core in list(_cores) if core.pid == os.getpid()]
    for core in cores:
        core.close()
    for core in cores:
        core.join()
    ended = not any(core.is_alive() for core in cores)
    if ended and _context is not None and _context[0] == os.getpid():
        # A socket's last messages are written by ZeroMQ's own thread, for which only the context waits; their linger
        # bounds it. (A thread of our own could bound it once more, but Python 3.12 starts none at exit.)
        _context[1].term()
