"""The broker: one thread that owns the two doors, the timers and the `Dispatcher`.

    clients ══► doors ──► frames ──► Dispatcher ──► effects ──► worker pool / doors / store
                            ▲                                        │
                            └── inbox (deque) + wake-up descriptor ◄─┘   workers, loop lane, inside calls

Every other thread talks to the router thread by `post`: it appends an event to the inbox and writes the
wake-up descriptor only while the poller sleeps, so a busy broker pays nothing for it. The router thread reads
at most `BATCH` messages, then at most `BATCH` events, then looks at the timers, so neither can starve the
others. Requests that may block for long (loading a class, say) get a thread of their own.

The fast lane: methods that are known to be short are run by the router thread itself, between two messages, and
their bodies decoded there. Which thread that is may change in the middle of such a run, see `leader`; so whatever the
loop needs is in this object, and nothing is half done when an agent's code begins.

Doors: `routerdoor` is a ROUTER on TCP, `unixdoor` a Unix socket that speaks its protocol. The broker alone reads from
them, and `outbound` alone writes; whose messages these are, and who is gone, is known to `sessions`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, NamedTuple

from .. import codec, discovery, errors
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..execution.classes import ClassTable
from ..execution.file_roots import hold_apart
from ..execution.gate import Gate, Wait
from ..execution.local_link import InsideLink
from ..execution.runner import NOTHING, AgentHost
from ..execution.services import InsideServices
from ..execution.threads import WorkerPool
from ..models.configs import ModelConfigs
from ..scheduler.dispatcher import (
    AgentRecord,
    Answer,
    Begin,
    Dispatcher,
    Drained,
    Effect,
    Interrupt,
    Keep,
    Lookup,
    Peer,
    Pending,
    Removed,
    Resume,
    Start,
    Ticket,
    error_reply,
)  # fmt: skip
from ..scheduler.records import ParkedFetch
from ..security import zap
from ..security.keys import KeyStore
from ..store import FutureStore, SharedStore, StoreLimits, open_store
from ..store.base import State as ResultState
from ..store.write_behind import Archive, Question, reply_for
from ..version import __version__
from ..wire import messages
from ..wire.link import Sink
from ..wire.messages import Call, Kind, Reply
from ..wire.poller import IN, new_poller
from ..wire.router_listener import RouterListener
from ..wire.transport import ZERO_COPY_BYTES, Listener
from ..wire.transport import Peer as Connection
from ..wire.unix_listener import UnixListener
from .clients import Clients
from .events import Events
from .leader import Leader, Relieved
from .management import ANSWERED_APART, RUN_AS_CALLS, Management
from .session import Session

__all__ = ["Bound", "Broker"]

log = logging.getLogger(__name__)

BATCH = 64
MAX_READY = 64  # descriptors looked at in one turn
FEW = 8  # messages read while the fast lane has calls: it empties soon, and who finds it empty costs half as much
POLL_LIMIT_S = 1.0
TURN_S = 0.001  # so long the fast lane may go on before messages, events and timers are looked at again
FAST_LANE_BYTES = 65_536  # arguments beyond this take too long to decode for the router thread
CLOSE_LINGER_S = 0.5
FETCH_PATIENCE_S = 0.3  # a task that is unknown to a shared store may just not have got there
DEP_PATIENCE_S = 1.0  # that of an argument is even likely to be on its way

_RESULT = int(Kind.RESULT)
MESSAGE_ROOM_BYTES = 1024  # beyond max_message_bytes: header and names; clients allow themselves as much
MAX_FAR_HOSTS = 64  # asked for results at the same time: each takes a connection and a thread


class Bound(NamedTuple):
    """Where the broker listens. ``port`` is None for a private host."""

    server_id: str
    host: str
    port: int | None
    ipc: str
    server_key: str | None


class Broker:
    """A host's front end and conductor. Make it, `bind` it, then `run` it in a thread of its own.

    ``unpickler`` and ``pickler`` are set on private hosts only. ``bind_reference`` makes proxies for references
    that arrive in arguments; ``fetch_far`` asks another host for a result;
    ``own_client`` gives an agent's code a client on its own host.
    """

    def __init__(
        self, config: BrokerConfig, classes: ClassTable, models: ModelConfigs, *,
        bind_reference: Callable[[Any], Any], own_client: Callable[[], Any],
        fetch_far: Callable[[codec.TaskRef, Sink], None],
        pickler: Callable[[Any], bytes] | None = None, unpickler: Callable[[bytes], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.config = config
        self.classes = classes
        self.models = models
        self.bound: Bound | None = None
        self.crash: BaseException | None = None  # what ended the router thread, if it was no stop
        self.finished = threading.Event()  # set when `run` has returned
        self._clock = clock
        self._started = time.time()
        self._unpickler = unpickler
        self._fetch_far = fetch_far
        self._epoch = os.urandom(8).hex()
        self._open_store()
        self._dispatcher = Dispatcher(config, classes.spec)
        self._leader = Leader(self._route)
        router = Events(self.post, self._leader.leads)
        services = InsideServices(config.server_id, models, router, own_client)
        self._host = AgentHost(config, classes, services, bind_reference, unpickler=unpickler, pickler=pickler)
        self._pool = WorkerPool(self._host, self._post_done, config.capacity, router)
        self._management = Management(
            self._dispatcher, self._host, self._pool, self._store, self._archive, models, unpickler=unpickler,
            carry_out=self._carry_out, post=self.post, where=self._where, clock=clock,
        )  # fmt: skip
        self._quick: deque[Ticket] = deque()  # started, and to be run by the router thread
        self._short: Ticket | None = None  # runs in the router thread, and the dispatcher does not know of it
        self.link = InsideLink(config.server_id, "", config.max_message_bytes, router)
        self._inbox: deque[tuple[Callable[..., list[Effect]], tuple[Any, ...]]] = deque()
        self._message_limit = config.max_message_bytes + MESSAGE_ROOM_BYTES
        self._asleep = False  # whoever posts must wake the router thread
        self._ended = False  # that thread will read no more
        self._late = threading.Lock()  # held by who reads the inbox then
        # Not a bare descriptor: a late write to a closed number could hit somebody else's file.
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._clients = Clients(config, self._dispatcher, self._carry_out, clock)
        self._out = self._clients.delivery
        self._begin_empty()
        self._events = self._handlers()
        self._actions = self._actors()

    def _open_store(self) -> None:
        config = self.config
        limits = StoreLimits(config.max_pool_size, config.max_pool_bytes, config.max_expire_time)
        self._store: FutureStore = open_store(
            config.pool_type,
            limits,
            url=config.redis_url,
            namespace=config.redis_namespace,
            owner=f"{config.server_id}/{self._epoch}",
        )
        self._archive: Archive | None = None
        if isinstance(self._store, SharedStore):
            self._archive = Archive(self._store, config, lambda full: self.post("store_full", full))

    def _begin_empty(self) -> None:
        """No clients, nothing to send, nothing due."""
        self._router: RouterListener | None = None  # a private host has none
        self._waits_for_host: dict[int, Wait] = {}  # by the ids of inside calls to the host itself
        self._stop = False
        self._far_asked: Counter[str] = Counter()  # addresses of other hosts, and how many results we wait for there

    def _handlers(self) -> dict[str, Callable[..., list[Effect]]]:
        """What is done at each event of another thread, by its name."""
        return {
            "call": self._on_inside_call, "fetch": self._on_inside_fetch, "cancel": self._on_inside_cancel,
            "wait": self._on_wait, "wait_outside": self._on_wait_outside, "wait_over": self._on_wait_over,
            "go_outside": self._on_go_outside,
            "wait_credit": self._on_wait_credit, "wait_item": self._on_wait_item, "await_credit": self._on_await_credit,
            "done": self._on_done, "chunk": self._on_chunk, "credit": self._on_credit, "await": self._on_await,
            "await_outside": self._on_await_outside, "unawait_outside": self._on_unawait_outside,
            "far_dep": self._on_far_dep, "unwait": self._on_unwait, "managed": self._on_managed, "stop": self._on_stop,
            "beat": self._on_beat, "dep": self._on_dep, "found": self._on_found, "far": self._on_far,
            "store_full": self._on_store_full,
        }  # fmt: skip

    def _actors(self) -> dict[type, Callable[[Any], None]]:
        """How each effect of the dispatcher is carried out, by its type."""
        return {
            Start: self._start, Answer: self._answer, Pending: self._pending,
            Begin: self._begin, Keep: self._keep, Lookup: self._look_up, Resume: self._resume,
            Interrupt: lambda effect: self._pool.interrupt(effect.ticket, alone=effect.alone), Removed: self._removed,
            Drained: self._drained,
        }  # fmt: skip

    # ------------------------------------------------------------ life: bind, run, stop

    def bind(self) -> Bound:
        """Bind the sockets and publish the connection file. Raises AddressInUse, ConfigError.

        Called by the thread that will `run`, or handed over to it before anything is polled.
        """
        try:
            return self._bind(self.config)
        except BaseException:
            self._close_doors()
            raise

    def _bind(self, config: BrokerConfig) -> Bound:
        keys = None if config.private else KeyStore.open()
        if keys is not None:
            hold_apart(config.file_roots, keys.path)
        self._auth = zap.Authenticator(keys, insecure=bool(config.insecure))
        path = discovery.ipc_path(config.server_id)
        self._ipc_lock = discovery.IpcLock(path)
        self._ipc_lock.acquire()
        try:
            self._open_unix(path)
        except OSError as exc:  # no free descriptor, say
            raise errors.LaunchError(f"cannot listen at {path}: {exc}") from exc
        port: int | None = None
        server_key: str | None = None
        if keys is not None:
            pair = None if config.insecure else keys.server_keypair()
            self._router = RouterListener(
                config, self._auth, self._poller, self._message_limit, self._clock,
                receive=self._receive, on_room=self._clients.on_room, call_roll=self._clients.call_roll,
            )  # fmt: skip
            port = self._router.open(pair)
            server_key = None if pair is None else pair.public
        self.bound = Bound(config.server_id, config.host, port, path, server_key)
        self.link.address = f"ipc:{path}" if port is None else f"{config.host}:{port}"
        self._record = discovery.ConnectionFile(
            config.server_id, config.host, port, os.getpid(), path, server_key, __version__, self._started
        )
        discovery.publish(self._record)
        self._clients.open(self._auth.role_of, codec.pack(self._welcome(self.bound)))
        return self.bound

    def _open_unix(self, path: str) -> None:
        self._poller = new_poller()
        self._poller.register(self._wake_r.fileno(), IN)
        self._unix = UnixListener(
            self._auth.admit, self._poller, self._message_limit, self._clock,
            receive=self._receive, complain=self._clients.complain, on_room=self._clients.on_room,
        )  # fmt: skip
        self._unix.open(path)

    def _welcome(self, bound: Bound) -> dict[str, Any]:
        config = self.config
        return {
            "server_id": bound.server_id, "host": bound.host, "port": bound.port, "epoch": self._epoch,
            "address": self.link.address, "max_message_bytes": config.max_message_bytes,
            "max_timeout_s": config.max_timeout_seconds, "pickle": self._unpickler is not None,
            "version": __version__, "max_calls": config.max_calls_per_client,
            "max_open_bytes": max(config.max_message_bytes, config.max_unread_bytes),
        }  # fmt: skip

    def run(self) -> None:
        """Route until stopped, then close everything. Called once, in the router thread.

        It returns when that is done or, where an agent's code has kept this thread and another one took its place,
        when it is not needed any more: `finished` tells the end, and ``crash`` what went wrong.
        """
        try:
            if self._archive is not None:
                self._archive.start()
        except RuntimeError as exc:  # no more threads
            self.crash = exc
            self._end()
        else:
            self._leader.run()

    def _route(self) -> None:
        try:
            self._loop()
        except Relieved:
            raise
        except BaseException as exc:
            log.exception("the router thread of %s failed", self.config.server_id)
            self.crash = exc
        self._end()

    def _end(self) -> None:
        try:
            self._close()
        except BaseException as exc:
            log.exception("%s could not be closed", self.config.server_id)
            self.crash = self.crash or exc
        finally:
            self.finished.set()

    def abandon(self) -> None:
        """Let go of everything after a `bind` that failed; instead of `run`."""
        self._store.close()
        self._wake_w.close()
        self._wake_r.close()
        self.finished.set()

    def request_stop(self, grace_s: float | None = None) -> None:
        """Drain and end, within ``grace_s`` seconds (None: the configured grace). Any thread; idempotent."""
        self.post("stop", self.config.grace_s if grace_s is None else grace_s)

    @property
    def draining(self) -> bool:
        """Whether it has been told to end. Any thread."""
        return self._dispatcher.draining

    def post(self, event: str, *args: Any) -> None:
        """Hand an event to the router thread. Any thread.

        The end of a wait counts at once where the router thread itself brings it: between an item of a stream and the
        word that its reader waits no longer, the wait-for graph would show a cycle that is none. It is posted as well,
        for the wait itself may still be in the inbox; the second word is nothing.
        """
        if self._leader.leads() and event in _AT_ONCE:
            self._carry_out(self._events[event](*args))
        self._inbox.append((self._events[event], args))
        if self._asleep:
            self._asleep = False
            self._wake()

    def _post_done(self, ticket: Ticket, reply: Reply) -> None:
        self._inbox.append((self._on_done, (ticket, reply)))
        if self._asleep:
            self._asleep = False
            self._wake()

    def _wake(self) -> None:
        if self._ended:
            self._read_late()
            return
        # EAGAIN: the pair is full of wake-ups already. EBADF: the broker has closed.
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def _read_late(self) -> None:
        """Handle the events that come after the end, in the threads that post them: whoever waits must be told.

        Code that was cut off may come back only now, and begin a wait that would have no end. One thread at a time: it
        looks again after the lock is free, so one that finds it taken may leave its event there.
        """
        self._asleep = True
        while self._inbox and self._late.acquire(blocking=False):
            try:
                self._read_inbox()
            finally:
                self._late.release()

    # ------------------------------------------------------------ the loop

    def _loop(self) -> None:
        """Read messages, then events, run what is short, look at the timers, send; sleep when nothing is left."""
        unix, router, out = self._unix, self._router, self._out
        if self._short is not None:  # it has kept the former router thread
            self._dispatcher.enter(self._short)
            self._short = None
        for _ in range(0, len(self._inbox), BATCH):  # what was asked for before anybody could connect
            self._read_inbox()
        while not self._stop:
            if router is not None and router.ready:
                now = self._clock()
                router.read(FEW if self._quick else BATCH, now, now + TURN_S)
            if unix.ready:
                now = self._clock()
                unix.read(FEW if self._quick else BATCH, now, now + TURN_S)
            if self._inbox:
                self._read_inbox()
            if self._quick:
                self._run_quick(self._clock() + TURN_S)
            now = self._clock()
            due = None
            try:
                due = self._look_at_clock(now)
            except Exception:  # a bug of ours: the host goes on
                log.exception("what was due could not be done")
            if out.unsent:
                out.push_all()
            if unix.ended or (router is not None and router.ended):
                self._see_off()
            if router is not None and router.used:
                router.ask()
            wait_s = 0.0
            if not (
                unix.ready or self._inbox or self._quick or out.unsent or self._stop
                or (router is not None and router.ready)
            ):  # fmt: skip
                self._asleep = True
                # Posted between the last look and the flag: nobody will wake us for that.
                wait_s = 0.0 if self._inbox else self._poll_s(now, due)
            self._look_at_doors(wait_s)

    def _look_at_doors(self, wait_s: float) -> None:
        """See what the listeners have, or wait for it."""
        ready = self._poller.poll(wait_s, MAX_READY)
        self._asleep = False
        for fd, events in ready:
            if self._unix.on_ready(fd, events) or (self._router is not None and self._router.on_ready(fd, events)):
                continue
            self._empty_pipe()

    def _see_off(self) -> None:
        """Look after the connections that have ended."""
        listeners: tuple[Listener | None, ...] = (self._unix, self._router)
        for listener in listeners:
            while listener is not None and listener.ended:
                peer = listener.ended.popleft()
                listener.forget(peer)
                self._clients.gone(peer)

    def _poll_s(self, now: float, due: float | None) -> float:
        """How long nothing is to be done, unless somebody says something; ``due``: when `Dispatcher.on_tick` is."""
        wait = min(POLL_LIMIT_S, self._clients.due - now, self._unix.due - now)
        if due is not None and due - now < wait:
            wait = due - now
        if self._router is not None and self._router.due - now < wait:
            wait = self._router.due - now
        return max(0.0, wait)

    def _empty_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_r.recv(4096)

    def _receive(self, peer: Connection, parts: Sequence[messages.Frame] | None, size: int, now: float) -> float:
        """Handle one message, and run what is on the fast lane then; the time when that is done. Raises `Relieved`."""
        short = None
        if parts is not None and len(parts) == 1 and size < ZERO_COPY_BYTES and size <= self._message_limit:
            short = messages.parse_short_call(parts[0])  # type: ignore[arg-type]
        try:
            session: Session | None = peer.session
            if short is None or session is None or session.token != short[0]:
                self._on_message(peer, parts, size, now)
            elif (ended := self._run_short(session, short[1], now)) == 0.0:
                self._take_call(session, short[1], now)
            else:
                return ended
        except Exception:  # a bug of ours, met by one message: the host goes on, its sender is told
            log.exception("a message could not be handled")
            self._answer_broken(peer, parts)
        now = self._clock()
        return self._run_quick(now + TURN_S) if self._quick else now

    def _read_inbox(self) -> None:
        """Handle the events of other threads, `BATCH` of them at most."""
        inbox = self._inbox
        for _ in range(BATCH):
            if not inbox:
                return
            handler, args = inbox.popleft()
            try:
                self._carry_out(handler(*args))
            except Exception:  # a bug of ours: the host goes on
                log.exception("an event could not be handled")

    def _run_quick(self, end: float) -> float:
        """Run what is on the fast lane, but begin nothing after ``end``; the time. Raises `Relieved`."""
        leader, lane, clock = self._leader, self._quick, self._clock
        now = clock()
        while lane and now < end:
            self._out.push_some(now)
            ticket = lane.popleft()
            if not leader.can_watch():
                self._pool.start(ticket)
                continue
            if ticket.settled:  # cancelled before it could begin
                reply = NOTHING
            else:
                reply, now = self._run_here(ticket, now)
            try:
                self._carry_out(self._dispatcher.on_done(ticket, reply, now))
            except Exception:  # a bug of ours: the host goes on
                log.exception("the end of %s could not be handled", ticket.task_id)
        return now

    def _run_short(self, session: Session, call: Call, now: float) -> float:
        """Run and answer a call that has come in one frame, if nothing about it is unusual: the time when it has ended.

        0.0: nothing was done, and it is a matter for `_take_call`. Most calls of a busy host are such, and the general
        way costs them several times as much as their own code: see `Dispatcher.start_short` for what they need not
        have. Raises `Relieved`.
        """
        if self._quick or not self.config.fast_lane:
            return 0.0
        ticket = self._dispatcher.start_short(session.caller, call, now)
        if ticket is None or not self._leader.can_watch():
            return 0.0
        replies = session.replies
        session.last_seen = now
        if call.needed > replies.needed:
            replies.acknowledge(call.needed)
        out = self._out
        if out.unsent:
            out.push_some(now)
        self._short = ticket
        reply, now = self._run_here(ticket, now)
        self._short = None
        self._dispatcher.end_short(ticket)
        if call.flags & messages.Flag.DETACHED:
            self._keep(Keep(ticket.task_id, reply))
        if reply.code:
            self._answer(Answer(session.caller, call.call_id, reply))
            return now
        replies.note(call.call_id, reply)
        out.unsent.append((session, messages.answer_frames(_RESULT, call.call_id, session.token, reply.body)))
        return now

    def _run_here(self, ticket: Ticket, now: float) -> tuple[Reply, float]:
        """Run an agent's code in the router thread, which it may not be any more when that comes back: `Relieved`.

        The second value is the time.
        """
        pace = ticket.pace
        assert pace is not None
        self._leader.begin()
        reply = Context().run(self._host.run, ticket, self._pool.prepare(ticket))
        if not self._leader.end():
            pace.disappoint()
            self._post_done(ticket, reply)
            raise Relieved
        ended = self._clock()
        pace.note(ended - now)
        return reply, ended

    def _look_at_clock(self, now: float) -> float | None:
        """Do what is due; when the next timer of the dispatcher is, None: there is none."""
        router = self._router
        if router is not None and now >= router.next_look:
            router.look(now)
        due = self._dispatcher.next_deadline()
        if due is not None and due <= now:
            self._carry_out(self._dispatcher.on_tick(now))
            due = self._dispatcher.next_deadline()
        if now >= self._clients.due:
            self._clients.look(now)
        if now >= self._unix.due:
            self._unix.look(now)
        return due

    def _carry_out(self, effects: list[Effect]) -> None:
        actions = self._actions
        for effect in effects:
            try:
                actions[type(effect)](effect)
            except BaseException:  # a bug of ours, or a done-callback that raised SystemExit: the others are owed
                log.exception("%s could not be carried out", type(effect).__name__)

    # ------------------------------------------------------------ messages of clients

    def _on_message(self, peer: Connection, parts: Sequence[messages.Frame] | None, size: int, now: float) -> None:
        try:
            if not parts:
                raise errors.RemoteProtocolError("empty message" if parts is not None else "too many frames")
            head = messages.parse_header(parts[0])
            session: Session | None = peer.session
            if head.kind == Kind.HELLO:
                hello = messages.parse_client(parts, head)
                assert isinstance(hello, messages.Hello)
                self._clients.hello(peer, hello, now)
                return
            if session is None or session.token != head.token:
                peer.send([messages.header(Kind.NEED_HELLO, head.call_id)])
                return
            session.last_seen = now
            if size > self._message_limit:
                self._refuse_size(session, head.call_id, size)
                return
            message = messages.parse_client(parts, head)
        except errors.RemoteProtocolError as exc:
            self._clients.complain(peer, exc)
            return
        if type(message) is Call:
            self._take_call(session, message, now)
        elif isinstance(message, messages.Fetch):
            if self._is_stream(session.caller, message.call_id, message.task_id):
                return
            timeout = message.time_ms / 1000
            effects = self._dispatcher.on_fetch(session.caller, message.call_id, message.task_id, timeout, now)
            self._carry_out(effects)
        elif isinstance(message, messages.Cancel):
            if not self._management.may_cancel(session.caller, session.role, message.task_id):
                return  # there is nobody to tell: a CANCEL has no answer
            self._carry_out(
                self._dispatcher.on_cancel(session.caller, message.call_id, message.task_id, now, alone=message.alone)
            )
        elif isinstance(message, messages.Credit):
            self._on_credit(session.caller, message.call_id, message.items)
        elif isinstance(message, messages.Ack):
            session.replies.acknowledge(message.needed)
            session.replies.forget(message.beyond)
        elif isinstance(message, messages.Ping):
            peer.send([messages.header(Kind.PONG, message.nonce, session.token)])
        elif isinstance(message, messages.Bye):
            self._clients.bye(session)

    def _take_call(self, session: Session, call: Call, now: float) -> None:
        session.last_seen = now
        if call.needed > session.replies.needed:
            session.replies.acknowledge(call.needed)
        if call.flags & messages.Flag.RESENT and self._clients.came_before(session, call.call_id):
            return
        if call.agent == "" and call.method not in RUN_AS_CALLS:
            self._manage(session, call)
        else:
            self._carry_out(self._dispatcher.on_call(session.caller, call, now))

    def _refuse_size(self, session: Session, call_id: int, size: int) -> None:
        limit = self.config.max_message_bytes
        text = f"a message of {size:,} bytes, limit {limit:,} (max_message_bytes)"
        self._answer(Answer(session.caller, call_id, error_reply(errors.MessageTooLarge(text, size, limit))))

    def _answer_broken(self, peer: Connection, parts: Sequence[messages.Frame] | None) -> None:
        session: Session | None = peer.session
        if session is None or not parts:
            return
        call_id = messages.parse_header(parts[0]).call_id
        session.caller.calls.pop(call_id, None)
        self._answer(
            Answer(session.caller, call_id, error_reply(errors.RemoteProtocolError("the host failed on this message")))
        )

    # ------------------------------------------------------------ effects

    def _start(self, effect: Start) -> None:
        ticket = effect.ticket
        pace = ticket.pace
        if pace is not None and pace.quick and self._may_be_quick(ticket):
            self._quick.append(ticket)
        else:
            self._pool.start(ticket)

    def _may_be_quick(self, ticket: Ticket) -> bool:
        """Whether this call of a quick method may take the fast lane; its arguments may still be slow to come by."""
        body = ticket.body
        return self.config.fast_lane and not ticket.dep_replies and len(body) == 1 and len(body[0]) <= FAST_LANE_BYTES

    def _answer(self, effect: Answer) -> None:
        peer, call_id, reply = effect
        if peer.local:
            self.link.deliver(call_id, reply)
            return
        if peer.gone:
            return
        session: Session = peer.key
        self._out.unsent.append((session, session.answer(call_id, reply)))

    def _pending(self, effect: Pending) -> None:
        if effect.peer.local:
            self.link.deliver(effect.call_id, None)
        elif not effect.peer.gone:
            session: Session = effect.peer.key
            self._out.unsent.append((session, [messages.header(Kind.PENDING, effect.call_id, session.token)]))

    def _begin(self, effect: Begin) -> None:
        if self._archive is not None:
            self._archive.begin(effect.task_id)

    def _keep(self, effect: Keep) -> None:
        if self._archive is not None:
            self._archive.keep(effect.task_id, effect.reply)
            return
        try:
            self._store.put(effect.task_id, messages.reply_to_bytes(effect.reply))
        except ZmqAgentsError as exc:  # its caller has the result all the same
            log.warning("the result of %s is not kept: %s", effect.task_id, exc)

    def _look_up(self, effect: Lookup) -> None:
        if self._archive is not None:
            self._archive.look_up(self._question(effect))
        elif effect.ticket is not None and effect.task_id in (effect.ticket.far or ()):
            self._fetch_dep(effect.ticket, effect.task_id)
        else:
            reply = self._stored(effect.task_id)
            if effect.ticket is not None:
                now = self._clock()
                self._carry_out(self._dispatcher.on_dep(effect.ticket, effect.task_id, reply, now))
            else:
                self._answer(Answer(effect.peer, effect.call_id, reply))

    def _question(self, effect: Lookup) -> Question:
        """For a shared store, which may know the tasks of other hosts as well."""
        ticket, task_id, fetch = effect.ticket, effect.task_id, effect.fetch
        if ticket is None:
            patience_s = min(effect.timeout_s, FETCH_PATIENCE_S)
            until = time.monotonic() + effect.timeout_s
            return Question(
                task_id,
                lambda _, reply: self.post("found", fetch, reply),
                is_over=lambda: fetch is None or fetch.settled,
                until=until,
                patience_s=patience_s,
            )
        far = ticket.far is not None and task_id in ticket.far

        def answer(state: ResultState | None, reply: Reply | None) -> None:
            if far and state in (None, ResultState.UNKNOWN):  # its own host may not share the store
                self.post("far", ticket, task_id)
            else:
                self.post("dep", ticket, task_id, reply)

        assert self._archive is not None
        shared = ticket.far is None or task_id not in ticket.far or self._archive.shares_with(ticket.far[task_id][0])
        patience_s = DEP_PATIENCE_S if shared else 0.0
        return Question(task_id, answer, is_over=lambda: ticket.settled, until=None, patience_s=patience_s)

    def _fetch_dep(self, ticket: Ticket, task_id: str) -> None:
        """Ask the host of an argument for it."""
        self._ask_far(ticket, codec.TaskRef(task_id, *(ticket.far or {})[task_id]))

    def _ask_far(self, ticket: Ticket, ref: codec.TaskRef) -> None:
        """Have an argument of ``ticket`` brought by the host that has it. The address was chosen by the caller."""
        asked = self._far_asked
        sink = _FarResult(ticket, ref, self.post)
        asked[ref.address] += 1
        if len(asked) > MAX_FAR_HOSTS:
            sink.fail(errors.HostBusy(f"{self.config.server_id} waits for results of {MAX_FAR_HOSTS} other hosts"))
            return
        try:
            self._fetch_far(ref, sink)
        except ZmqAgentsError as exc:  # an address that is none
            sink.fail(exc)

    def _stored(self, task_id: str) -> Reply:
        try:
            return reply_for(self._store.get(task_id), task_id, self.config)
        except ZmqAgentsError as exc:
            return error_reply(exc, call_id=task_id)

    def _resume(self, effect: Resume) -> None:
        gate: Gate | None = effect.ticket.gate
        if gate is not None and not effect.ticket.on_loop:
            gate.open(effect.error)

    def _removed(self, effect: Removed) -> None:
        record: AgentRecord = effect.agent
        if not record.holders:
            record.instance = None

    def _drained(self, effect: Drained) -> None:
        if effect.cut:
            log.warning("%s: %d calls were cut off by the stop", self.config.server_id, effect.cut)
        self._stop = True

    # ------------------------------------------------------------ events of other threads

    def _on_done(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        return self._dispatcher.on_done(ticket, reply, self._clock())

    def _on_inside_call(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> list[Effect]:
        """``wait``: the code of ``parent`` waits for the outcome."""
        now = self._clock()
        if wait is not None:
            wait.enter()
        if call.agent or call.method in RUN_AS_CALLS:
            return self._dispatcher.on_call(peer, call, now, parent=parent, wait=wait is not None)
        if parent is None or wait is None:
            self._manage(None, call)
            return []
        if call.method not in ANSWERED_APART:
            self._manage(None, call)
            return self._dispatcher.on_wait(parent, [], now)
        task_id = messages.task_id_of(peer.prefix, call.call_id)
        effects = self._dispatcher.on_wait_outside(parent, now, task_ids=[task_id])
        refusal = _refusal(parent, effects)
        if refusal is not None:
            return [Answer(peer, call.call_id, error_reply(refusal)), *effects]
        self._waits_for_host[call.call_id] = wait
        self._manage(None, call)
        return effects

    def _is_stream(self, peer: Peer, call_id: int, task_id: str) -> bool:
        ticket = self._dispatcher.tasks.get(task_id)
        if ticket is None or not ticket.flags & messages.Flag.STREAM:
            return False
        error = errors.UnknownTask(f"{task_id} is a stream, which only its caller can read")
        self._answer(Answer(peer, call_id, error_reply(error, call_id=task_id)))
        return True

    def _on_inside_fetch(self, peer: Peer, call_id: int, task_id: str, timeout: float) -> list[Effect]:
        if self._is_stream(peer, call_id, task_id):
            return []
        return self._dispatcher.on_fetch(peer, call_id, task_id, timeout, self._clock())

    def _on_inside_cancel(self, peer: Peer, call_id: int, task_id: str, alone: bool) -> list[Effect]:
        return self._dispatcher.on_cancel(peer, call_id, task_id, self._clock(), alone=alone)

    def _on_wait(self, wait: Wait, task_ids: Sequence[str], any_of: bool) -> list[Effect]:
        wait.enter()
        return self._dispatcher.on_wait(wait.ticket, task_ids, self._clock(), any_of=any_of)

    def _on_wait_outside(self, wait: Wait, task_ids: Sequence[str] = ()) -> list[Effect]:
        wait.enter()
        return self._dispatcher.on_wait_outside(wait.ticket, self._clock(), task_ids=task_ids)

    def _on_go_outside(self, wait: Wait) -> list[Effect]:
        """The same from a thread that does not look at its gate now: it blocks on the outside thing itself.

        Its refusal would be heard only when that is over. So where the wait would close a cycle it is the call that
        came back that is refused; and where there may be no more stand-ins, it keeps its slot.
        """
        now = self._clock()
        effects = self._on_wait_outside(wait)
        refusal = _refusal(wait.ticket, effects)
        if isinstance(refusal, errors.DeadlockError):
            refused = self._dispatcher.refuse_returns(wait.ticket, refusal, now)
            return [*refused, *self._on_wait_outside(wait)]
        return [Resume(wait.ticket)] if isinstance(refusal, errors.HostBusy) else effects

    def _on_wait_credit(self, wait: Wait) -> list[Effect]:
        """A generator waits for its reader to take items.

        That is an edge to a reader in a worker thread, which does one thing at a time. A coroutine may wait in one task
        and read in another, so nothing can be said of it.
        """
        ticket = wait.ticket
        reader = ticket.parent
        if not ticket.peer.local:
            self._clients.starve(ticket)
        if reader is None or reader.settled or reader.on_loop:
            return self._on_wait_outside(wait)
        if ticket.context is not None and ticket.context.sender.has_credit:  # granted meanwhile
            return self._on_wait(wait, [], False)
        return self._on_wait(wait, [reader.task_id], False)

    def _on_await_credit(
        self, ticket: Ticket, fail: Callable[[ZmqAgentsError], None], over: Callable[[], bool]
    ) -> list[Effect]:
        reader, context = ticket.parent, ticket.context
        if not ticket.peer.local:
            self._clients.starve(ticket)
        if reader is None or reader.settled or reader.on_loop or context is None or context.sender.has_credit:
            return []
        return self._on_await(ticket, reader.task_id, fail, over)

    def _on_wait_item(self, wait: Wait, stream: Any) -> list[Effect]:
        """The reader of a stream of this host waits for its next item."""
        return self._on_wait(wait, [] if stream.ready() else [stream.task_id], False)

    def _on_wait_over(self, wait: Wait) -> list[Effect]:
        return self._dispatcher.on_wait_over(wait.ticket, self._clock()) if wait.is_current else []

    def _on_await(
        self, ticket: Ticket, task_id: str, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> list[Effect]:
        """A coroutine awaits a result, or an item: it holds no slot, but it may close a cycle."""
        if ready():
            return []
        return _tell(fail, ticket, self._dispatcher.on_wait(ticket, [task_id], self._clock()))

    def _on_unwait(self, ticket: Ticket, task_id: str) -> list[Effect]:
        return self._dispatcher.on_unwait(ticket, [task_id])

    def _on_await_outside(
        self, ticket: Ticket, task_id: str, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> list[Effect]:
        """The same for a call of another host."""
        if ready():
            return []
        return _tell(fail, ticket, self._dispatcher.on_await_outside(ticket, task_id, self._clock()))

    def _on_unawait_outside(self, ticket: Ticket, task_id: str) -> list[Effect]:
        return self._dispatcher.on_unawait_outside(ticket, task_id)

    def _on_chunk(self, ticket: Ticket, number: int, body: tuple[messages.Frame, ...]) -> list[Effect]:
        """An item of a stream: straight on to its reader."""
        if ticket.settled or ticket.peer.gone:
            return []
        if ticket.peer.local:
            self.link.chunk(ticket.call_id, body)
        else:
            session: Session = ticket.peer.key
            number &= messages.MAX_TIME_MS
            message = messages.answer_frames(Kind.CHUNK, ticket.call_id, session.token, body, time_ms=number)
            self._out.unsent.append((session, message))
        return []

    def _on_credit(self, peer: Peer, call_id: int, items: int) -> list[Effect]:
        ticket = peer.calls.get(call_id)
        if ticket is None or ticket.context is None or ticket.context.sender is None:
            return []
        ticket.context.sender.grant(items)
        self._clients.feed(ticket)
        if ticket.on_loop and ticket.parent is not None:
            return self._dispatcher.on_unwait(ticket, [ticket.parent.task_id])
        return []

    def _on_dep(self, ticket: Ticket, task_id: str, reply: Reply) -> list[Effect]:
        return self._dispatcher.on_dep(ticket, task_id, reply, self._clock())

    def _on_far_dep(self, ticket: Ticket, ref: codec.TaskRef, reply: Reply) -> list[Effect]:
        self._far_asked[ref.address] -= 1
        if self._far_asked[ref.address] <= 0:
            del self._far_asked[ref.address]
        return self._dispatcher.on_dep(ticket, ref.task_id, reply, self._clock())

    def _on_far(self, ticket: Ticket, task_id: str) -> list[Effect]:
        if not ticket.settled:
            self._fetch_dep(ticket, task_id)
        return []

    def _on_found(self, fetch: ParkedFetch, reply: Reply | None) -> list[Effect]:
        return self._dispatcher.on_found(fetch, reply)

    def _on_store_full(self, reason: str) -> list[Effect]:
        self._dispatcher.store_full = reason
        return []

    def _on_managed(self, peer: Peer, call_id: int, reply: Reply) -> list[Effect]:
        answer = Answer(peer, call_id, reply)
        wait = self._waits_for_host.pop(call_id, None) if peer.local else None
        return [answer] if wait is None else [answer, *self._on_wait_over(wait)]

    @staticmethod
    def _on_beat(alive: threading.Event) -> list[Effect]:
        """Somebody wants to know whether the router thread still goes round."""
        alive.set()
        return []

    def _on_stop(self, grace_s: float) -> list[Effect]:
        now = self._clock()
        if not self._dispatcher.draining:
            log.info("%s: stopping, %r", self.config.server_id, self._dispatcher)
        return self._dispatcher.on_drain(now + grace_s, now)

    # ------------------------------------------------------------ management requests

    def _manage(self, session: Session | None, call: Call) -> None:
        """Answer a request to the host itself. ``session`` None: made by the host's own code."""
        if session is None:
            peer, reply = self.link.peer, self._management.handle(self.link.peer, call, "admin")
        else:
            peer, reply = session.caller, self._management.handle(session.caller, call, session.role)
        if reply is not None:
            self._carry_out(self._on_managed(peer, call.call_id, reply))

    def _where(self) -> dict[str, Any]:
        return {"port": self.bound.port if self.bound else None, **self._clients.where()}

    # ------------------------------------------------------------ the end

    def _close(self) -> None:
        """Say goodbye, stop the threads, let go of everything. A thread stuck in user code is left behind."""
        steps = [self._cut_short, self._say_goodbye, self._leave_the_inbox, self._end_threads, self.link.stop]
        if self._archive is not None:
            steps.append(self._archive.close)
        steps += [self._store.close, self._close_doors, self._wake_w.close, self._wake_r.close]
        with contextlib.ExitStack() as stack:  # each of them is done, whatever becomes of those before it
            for step in reversed(steps):
                stack.callback(step)

    def _cut_short(self) -> None:
        if not self._stop:  # the router thread has failed: whoever waits is told all the same
            now = self._clock()
            self._carry_out(self._dispatcher.on_drain(now, now))
        self._out.push_all()

    def _leave_the_inbox(self) -> None:
        self._ended = self._asleep = True
        self._read_late()

    def _say_goodbye(self) -> None:
        self._clients.close([messages.header(Kind.GOODBYE), codec.pack({"message": "the host has stopped"})])

    def _end_threads(self) -> None:
        self._leader.close(timeout=0.0)  # what keeps the pool keeps these
        clean = self._pool.close(timeout=1.0)
        if not self._leader.close(timeout=0.1) or not clean:
            log.warning("%s: some agents' threads did not end", self.config.server_id)

    def _close_doors(self) -> None:
        record = getattr(self, "_record", None)
        if record is not None:
            discovery.withdraw(record)
        unix = getattr(self, "_unix", None)
        if unix is not None:
            unix.close(CLOSE_LINGER_S)
        if self._router is not None:
            self._router.close()
        poller = getattr(self, "_poller", None)
        if poller is not None:
            poller.close()
        lock = getattr(self, "_ipc_lock", None)
        if lock is not None:
            lock.release()


_AT_ONCE = frozenset({"wait_over", "unwait"})


class _FarResult:
    """The sink for an argument that another host has: brings it to the parked call."""

    def __init__(self, ticket: Ticket, ref: codec.TaskRef, post: Callable[..., None]) -> None:
        self._ticket = ticket
        self._ref = ref
        self._post = post

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None:  # None: a fetch without a time limit has none that could be over
            self._post("far_dep", self._ticket, self._ref, reply)

    def fail(self, error: Exception) -> None:
        known = error if isinstance(error, ZmqAgentsError) else errors.HostLost(str(error))
        self._post("far_dep", self._ticket, self._ref, error_reply(known, call_id=self._ref.task_id))

    def chunk(self, item: Reply) -> None:
        """Never comes: a result is no stream."""


def _refusal(ticket: Ticket, effects: list[Effect]) -> ZmqAgentsError | None:
    """Why the wait that ``ticket`` has just begun is none, if ``effects`` say so."""
    return next((e.error for e in effects if isinstance(e, Resume) and e.ticket is ticket), None)


def _tell(fail: Callable[[ZmqAgentsError], None], ticket: Ticket, effects: list[Effect]) -> list[Effect]:
    """The same, told to a coroutine, which does not look at a gate."""
    refusal = _refusal(ticket, effects)
    if refusal is not None:
        fail(refusal)
    return effects
