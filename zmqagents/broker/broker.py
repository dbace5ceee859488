"""The broker: the router thread, which carries every message and every event of a host.

    clients ══► listeners ──► messages ──► Dispatcher ──► effects ──► worker pool / clients / results
                                  ▲                                        │
                                  └── inbox (deque) + wake-up socket ◄─────┘   other threads of the host

One thread at a time owns the listeners, the timers and the `Dispatcher`. All other threads talk to it by `Broker.post`:
that appends a handler with its arguments to the inbox, and writes to the wake-up socket only while the poller sleeps,
so a busy broker pays nothing for it. The router thread reads at most `BATCH` messages, then at most `BATCH` events,
then looks at what is due, so that none can keep the others waiting.

What is not in the way of every call has a module of its own:

    listening    opens and closes the listeners          events      what the threads of agents' code tell the broker
    clients      sessions: connected, and lost          management  requests to the host itself
    delivery     sends to clients                        results     where results are kept and looked up
    leader       which thread is the router thread       fast_lane   short methods that the router thread runs itself

Agent code may keep the router thread; then another thread becomes the router thread in the middle of a run, see
`leader`. So whatever the loop needs is in fields, and nothing is half done when agent code begins.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import queue
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from .. import codec, errors
from ..agents.context import own_call
from ..agents.state import Keeper
from ..config import BrokerConfig
from ..execution.classes import ClassTable
from ..execution.event_loop import EventLoop
from ..execution.gate import Gate, Wait
from ..execution.lifecycle.saving import StateSaver
from ..execution.lifecycle.states import agent_host
from ..execution.local_link import LocalLink
from ..execution.services import LocalServices
from ..execution.threads import WorkerPool
from ..members.members import Members
from ..models.configs import ModelConfigs
from ..process.crashes import Crashes
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import (
    Answer,
    Begin,
    Drained,
    Effect,
    Ended,
    GoOn,
    Interrupt,
    Keep,
    Lookup,
    Pending,
    Removed,
    Report,
    Resume,
    Start,
)  # fmt: skip
from ..scheduler.records import END, Peer, Ticket
from ..store import SharedStore, StoreLimits, open_store
from ..tracing import switch
from ..wire import messages
from ..wire.link import Sink
from ..wire.messages import Call, Kind, Reply
from ..wire.transport import DELAY_S, ZERO_COPY_BYTES, Listener
from ..wire.transport import Peer as Connection
from .clients import Clients
from .events import Events
from .fast_lane import FastLane
from .leader import Leader, Relieved
from .listening import Bound, Listening
from .management import RUN_AS_CALLS, Management
from .results import FarResults, LocalResults, Results, SharedResults
from .session import Session
from .watching.call_log import CallLog

if TYPE_CHECKING:
    from ..members.nursery import Hatch
    from ..members.upward import ParentConnection
    from ..tracing.hosts import HostTraces

__all__ = ["Broker"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
BATCH = 64
MAX_READY = 64  # descriptors looked at in one turn
FEW = 8  # messages read while the fast lane has calls: a message that finds it empty costs half as much
POLL_LIMIT_S = 1.0
MAX_FAILURES, FAILURES_WINDOW_S = 10, 60.0  # of the router loop, before the host ends
MEMBERS_END_S = 0.7  # how long processes of agents may take to end in order
_RESENT, _STREAM = messages.Flag.RESENT, messages.Flag.STREAM
TURN_S = 0.001  # how long messages, events and timers may wait for the fast lane


class Broker:
    """A host's front end. Make it, `bind` it, then `run` it in a thread of its own.

    ``unpickler`` and ``pickler`` are set on private hosts only. ``bind_reference`` makes proxies for references
    that arrive in arguments; ``fetch_far`` asks another host for a result;
    ``own_client`` gives an agent's code a client on its own host; ``keeper`` takes the states of its agents.
    ``hatch`` starts processes for agents; ``parent`` is the way to the host that has started this one for that purpose.
    """

    def __init__(
        self, config: BrokerConfig, classes: ClassTable, models: ModelConfigs, *,
        bind_reference: Callable[..., Any], own_client: Callable[[], Any],
        fetch_far: Callable[[codec.TaskRef, Sink], None], pickler: Callable[[Any], bytes] | None = None,
        unpickler: Callable[[bytes], Any] | None = None, keeper: Keeper | None = None, hatch: Hatch | None = None,
        clock: Callable[[], float] = time.monotonic, parent: ParentConnection | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.crash: BaseException | None = None  # the error that ended the router thread
        self.finished = threading.Event()  # set when `run` has returned
        self.told: queue.SimpleQueue[float | None] = queue.SimpleQueue()  # the grace of each stop; None at the end
        self._clock = clock
        self._open_inbox()
        self._leader = leader = Leader(self._route)
        epoch = os.urandom(8).hex()
        store, traces = _store_of(config, epoch), _traces_of(config, lambda: self.link.address, clock)
        call_log = CallLog(clock, traces)
        self._dispatcher = dispatcher = Dispatcher(
            config, classes.spec, shares_results=isinstance(store, SharedStore), traces=traces,
            observer=None if config.parent is not None else call_log,  # the host that has started it logs
            settle=lambda *made: self._members.settle(*made), find=lambda *call: self._members.find(*call),
            end_waits=lambda stuck: self._members.end_waits(stuck), expects=lambda task: self._clients.expects(task),
            refusal_of=lambda user: self._clients.refusal_of(user),
        )  # fmt: skip
        far = FarResults(config.server_id, dispatcher, self.post, fetch_far, clock)
        self._results = _results_of(store, config, dispatcher, far, clock, self.post)
        self._clients = Clients(config, dispatcher, self._carry_out, clock)
        self._out = self._clients.delivery
        self._events = Events(
            dispatcher, self._clients, self.post, self._carry_out, clock, leads=leader.leads,
            take_call=self._take_inside_call, pass_on=self._pass_on, inside=lambda *item: self.link.chunk(*item),
        )  # fmt: skip
        self.link = LocalLink(config.server_id, config.max_message_bytes, config.structured_limit, self._events)
        loop, saver = EventLoop(), None if keeper is None else StateSaver(keeper)
        known = config.server_id, models, self._events, own_client, dispatcher.seals, loop, saver
        services = LocalServices(*known) if parent is None else _services_of_child(parent, *known)
        told = {"unpickler": unpickler, "pickler": pickler, "traces": traces}
        host = agent_host(saver, config, classes, services, bind_reference, loop, **told)
        self._pool = WorkerPool(host, loop, self._hand_in, config.capacity, self._events)
        self._members = Members(
            dispatcher, services, hatch, post=self.post, carry_out=self._carry_out, pass_on=self._pass_on, clock=clock,
            starve=self._events.on_await_credit, host=host, pool=self._pool, keeper=keeper, tell=self._clients.hint,
            begin=lambda ticket: self._lane.start(ticket),
        )  # fmt: skip
        welcome = {"epoch": epoch, "pickle": unpickler is not None}
        self._listening = Listening(config, self._clients, self._wake_r, clock, self._receive, welcome)
        self._management = Management(
            dispatcher, host, self._pool, self._results, models, self._clients, self._listening, self._members, keeper,
            call_log.errors, self._on_stop, self.told.put, unpickler=unpickler, carry_out=self._carry_out,
            post=self.post, clock=clock,
        )  # fmt: skip
        self._lane = FastLane(
            dispatcher, leader, host, self._pool, self._out, carry_out=self._carry_out, keep=self._results.keep,
            answer=self._answer, hand_in=self._hand_in, clock=clock,
        )  # fmt: skip
        self._actions = self._actors()
        _brokers.add(self)

    def _open_inbox(self) -> None:
        self._inbox: deque[tuple[Callable[..., list[Effect]], tuple[Any, ...]]] = deque()
        self._stop = self._asleep = False  # asleep: a thread that posts must wake the router thread
        self._is_copy = False  # this process is a fork of the host's, made by an agent's code
        self._late: threading.Lock | None = None  # the router thread reads no more; held by the thread that does
        self._wake_r, self._wake_w = _wake_pair()

    def _actors(self) -> dict[type, Callable[[Any], None]]:
        """How each effect of the dispatcher is carried out, by its type."""
        pool = self._pool
        return {
            Start: self._start, GoOn: lambda effect: self._pool.go_on_loop(effect.ticket),
            Answer: self._answer, Pending: self._pending,
            Begin: self._results.begin, Keep: self._results.keep, Resume: _resume,
            Lookup: lambda effect: self._carry_out(self._results.look_up(effect)),
            Interrupt: lambda effect: (effect.ticket.agent.home or pool).interrupt(effect.ticket, alone=effect.alone),
            Ended: lambda effect: self._carry_out(self._management.on_ended(effect)),
            Removed: lambda effect: (effect.agent.home or pool).retire([effect.agent]), Drained: self._drained,
            Report: self._clients.report,
        }  # fmt: skip

    # ------------------------------------------------------------ life: bind, run, stop

    @property
    def bound(self) -> Bound | None:
        """Where it listens; None before `bind`."""
        return self._listening.bound

    def bind(self) -> Bound:
        """Open the listeners and publish the connection file. Raises AddressInUse, ConfigError, LaunchError.

        Called by the thread that will `run`, or handed over to it before anything is polled.
        """
        try:
            bound = self._listening.open()
            self.link.listens_at(bound.address)
            self._members.open(self._listening.poller, bound)
        except BaseException:
            self._listening.close()
            raise
        return bound

    def run(self) -> None:
        """Route until stopped, then close everything. Called once, in the router thread.

        It returns when that is done or, where an agent's code has kept this thread and another one took its place,
        when it is not needed any more: `finished` tells the end, and ``crash`` what went wrong.
        """
        try:
            self._results.start()
        except RuntimeError as exc:  # no more threads
            self.crash = exc
            self._end()
        else:
            self._leader.run()

    def _route(self) -> None:
        failures = Crashes(MAX_FAILURES, FAILURES_WINDOW_S)
        while not self._stop and self.crash is None:
            try:
                self._loop()
            except Relieved:
                raise
            except BaseException as exc:
                log.exception("the router thread of %s failed", self.config.server_id)
                # A bug of this package, met by what one peer has done: the others are served on. One that comes again
                # at once is in every turn of the loop, and only a new process helps.
                if not isinstance(exc, Exception) or failures.pause(self._clock()) is None:
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
            self.told.put(None)

    def abandon(self) -> None:
        """Close everything after a `bind` that failed; instead of `run`."""
        self._results.close()
        self._wake_w.close()
        self._wake_r.close()
        self.finished.set()

    def request_stop(self, grace_s: float | None = None) -> None:
        """Drain and end, within ``grace_s`` seconds (None: the configured grace). Any thread; idempotent."""
        grace_s = self.config.grace_s if grace_s is None else grace_s
        self.told.put(grace_s)
        self.post(self._on_stop, grace_s)

    def _on_stop(self, grace_s: float) -> list[Effect]:
        now = self._clock()
        end = now + grace_s
        if not self._dispatcher.draining:
            log.info("%s: stopping, %r", self.config.server_id, self._dispatcher)
        drains = self._members.drain(end, lambda: self.post(lambda: self._dispatcher.on_drain(end, self._clock())))
        return [] if drains else self._dispatcher.on_drain(end, now)

    @property
    def draining(self) -> bool:
        """Whether it has been told to end. Any thread."""
        return self._dispatcher.draining

    def beat(self, alive: threading.Event) -> None:
        """Set ``alive`` in the router thread: it still handles events. Any thread."""
        self.post(_set, alive)

    def settle_counts(self) -> None:
        """Put the times of calls that have ended into the histograms, a few times a second. Any thread."""
        self._dispatcher.calls.meters.settle()

    def renew_files(self) -> None:
        """Have the files that others find the host by made again, if they are gone. Any thread."""
        self.post(self._listening.renew)

    # ------------------------------------------------------------ the inbox

    def post(self, handler: Callable[P, list[Effect]], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Have the router thread call ``handler`` and carry out the effects that it returns. Any thread.

        If agent code calls this in the router thread, it gives up the leadership of the router loop first.
        """
        self._leader.leads()
        self._inbox.append((functools.partial(handler, **kwargs) if kwargs else handler, args))
        if self._asleep:
            self._asleep = False
            self._wake()

    def _hand_in(self, ticket: Ticket, reply: Reply) -> None:
        """The code of a call has returned. Any thread."""
        self._inbox.append((self._on_done, (ticket, reply)))
        if self._asleep:
            if self._is_copy:  # an agent's code has forked, and this is its end in the child
                os._exit(0)
            self._asleep = False
            self._wake()

    def _on_done(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        if ticket.flags & _STREAM:
            return self._events.on_stream_done(ticket, reply)
        home = ticket.agent.home
        if home is not None:
            return home.returned(ticket, reply)
        return self._dispatcher.on_done(ticket, reply, self._clock())

    def _wake(self) -> None:
        if self._is_copy:
            self._asleep = True
            raise errors.HostLost(f"this process is a fork of the host {self.config.server_id}, which it cannot ask")
        if self._late is not None:
            self._read_late(self._late)
            return
        # EAGAIN: the pair is full of wake-ups already. EBADF: the broker has closed.
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def _read_late(self, late: threading.Lock) -> None:
        """Handle the events that come after the end, in the threads that post them: their waits must still be answered.

        Code that was cut off may come back only now, and begin a wait that would have no end. One thread at a time: it
        looks again after the lock is free, so one that finds it taken may leave its event there.
        """
        self._asleep = True
        while self._inbox and late.acquire(blocking=False):
            try:
                self._read_inbox()
            finally:
                late.release()

    # ------------------------------------------------------------ the loop

    def _loop(self) -> None:
        """Read messages, then events, run what is short, look at the timers, send; sleep when nothing is left."""
        listening, out, lane = self._listening, self._out, self._lane
        unix, router, poll = listening.unix, listening.router, listening.poller.poll
        on_unix, clock = unix.on_ready, self._clock
        timers, clients, beside = self._dispatcher.timers, self._clients, self._members.beside
        beside[self._wake_r.fileno()] = self._empty_pipe
        if router is not None:
            beside.update(dict.fromkeys(router.fds, router.on_ready))
        lane.register_short()
        for _ in range(0, len(self._inbox), BATCH):  # what was posted before a client could connect
            self._read_inbox()
        now = looked = clock()
        while not self._stop:
            if router is not None and router.ready:
                router.read(FEW if lane.queue else BATCH, now, now + TURN_S)
                now = clock()
            if unix.ready:
                unix.read(FEW if lane.queue else BATCH, now, now + TURN_S)
            if self._inbox:
                self._read_inbox()
            if lane.queue:
                lane.run(clock() + TURN_S)
            now = clock()
            if (
                now >= timers.due
                or now >= clients.due
                or now >= unix.due
                or (router is not None and now >= router.next_look)
            ):
                try:
                    self._look_at_clock(now)
                except Exception:  # a bug of this package: the host goes on
                    log.exception("a timer that was due could not be handled")
            if out.unsent:
                out.push_all()
            if unix.ended or (router is not None and router.ended):
                self._see_off()
            if router is not None and router.used:
                router.ask()
            wait_s = 0.0
            if not (
                unix.ready or self._inbox or lane.queue or out.unsent or self._stop
                or (router is not None and router.ready)
            ):  # fmt: skip
                self._asleep = True
                # An event posted between the last look and the flag wakes no poller.
                wait_s = 0.0 if self._inbox else self._poll_s(now)
            ready = poll(wait_s, MAX_READY)
            self._asleep = False
            for fd, events in ready:
                beside.get(fd, on_unix)(fd, events)
            now = clock()
            if router is not None and now - looked - wait_s >= DELAY_S:
                router.note_delay(looked, now)
            looked = now

    def _see_off(self) -> None:
        """Look after the connections that have ended."""
        listeners: tuple[Listener | None, ...] = (self._listening.unix, self._listening.router)
        for listener in listeners:
            while listener is not None and listener.ended:
                peer = listener.ended.popleft()
                listener.forget(peer)
                self._clients.gone(peer)

    def _poll_s(self, now: float) -> float:
        """How long nothing is to be done, unless a message or an event comes.

        With a client at the ROUTER `DELAY_S` at most: a pause of the host that ends before the wait does is not noted.
        """
        router = self._listening.router
        due = min(self._clients.due, self._listening.unix.due, self._dispatcher.timers.due)
        wait = min(POLL_LIMIT_S if router is None or not router.peers else DELAY_S, due - now)
        if router is not None and router.due - now < wait:
            wait = router.due - now
        return max(0.0, wait)

    def _empty_pipe(self, fd: int, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_r.recv(4096)

    def _receive(self, peer: Connection, parts: Sequence[messages.Frame] | None, size: int, now: float) -> float:
        """Handle one message, and run what is on the fast lane then; the time when that is done. Raises `Relieved`."""
        short, lane = None, self._lane
        try:
            if parts and len(parts[0]) < ZERO_COPY_BYTES and size <= self._listening.limit:
                short = messages.parse_short_call(parts)
            session: Session | None = peer.session
            if short is None or session is None or session.call_token != short[0]:
                self._on_message(peer, parts, size, now)
            else:
                _, call, is_plain = short
                if lane.is_open and not lane.queue:
                    ended = lane.run_short(session, call, now) if is_plain else lane.run_passed_on(session, call, now)
                    if ended:
                        return ended
                self._take_call(session, call, now)
        except Exception:  # a bug of this package, met by one message: the host goes on, its sender is told
            log.exception("a message could not be handled")
            self._clients.refuse_broken(peer, parts)
        now = self._clock()
        return lane.run(now + TURN_S) if lane.queue else now

    def _read_inbox(self) -> None:
        """Handle the events of other threads, `BATCH` of them at most.

        What is overdue comes first: after a pause of the whole host an event must not start what ended meanwhile.
        """
        inbox = self._inbox
        if self._dispatcher.timers.due <= (now := self._clock()):
            inbox.appendleft((self._dispatcher.on_tick, (now,)))
        for _ in range(BATCH):
            if not inbox:
                return
            handler, args = inbox.popleft()
            try:
                self._carry_out(handler(*args))
            except Exception:  # a bug of this package: the host goes on
                log.exception("an event could not be handled")

    def _look_at_clock(self, now: float) -> None:
        """Do what is due."""
        router, unix = self._listening.router, self._listening.unix
        if router is not None and now >= router.next_look:
            router.look(now)
        if now >= self._dispatcher.timers.due:
            self._carry_out(self._dispatcher.on_tick(now))
        if now >= self._clients.due:
            self._clients.look(now)
        if now >= unix.due:
            unix.look(now)

    def _carry_out(self, effects: list[Effect]) -> None:
        actions = self._actions
        for effect in effects:
            try:
                actions[type(effect)](effect)
            except BaseException:  # a bug here, or a done-callback that raised SystemExit: the others are owed
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
            if size > self._listening.limit:
                self._clients.refuse_size(session, head.call_id, size)
                return
            message = messages.parse_client(parts, head)
        except errors.RemoteProtocolError as exc:
            self._clients.complain(peer, exc)
            return
        if session.call_token != head.token and (no := self._management.refusal(session.caller, session.role, message)):
            self._carry_out(no)
        elif type(message) is Call:
            caller = self._members.caller_of(session.caller, message) if message.options else None
            self._take_call(session, message, now, caller)
        elif isinstance(message, messages.Fetch):
            fetched = message.call_id, message.task_id, message.time_ms / 1000
            self._carry_out(self._events.on_fetch(session.caller, *fetched))
        elif isinstance(message, messages.Cancel):
            if not self._management.may_cancel(session.caller, session.role, message.task_id):
                return  # without an error: a CANCEL has no answer
            cancelled = message.call_id, message.task_id, now
            self._carry_out(self._dispatcher.on_cancel(session.caller, *cancelled, alone=message.alone))
        elif isinstance(message, messages.Credit):
            self._carry_out(self._events.on_credit(session.caller, message.call_id, message.items))
        elif isinstance(message, messages.Ack):
            session.replies.acknowledge(message.needed)
            session.replies.forget(message.beyond)
        elif isinstance(message, messages.Ping):
            peer.send([messages.header(Kind.PONG, message.nonce, session.token)])
        elif isinstance(message, messages.Waits):
            self._carry_out(self._members.on_waits(session.caller, message))
        elif isinstance(message, messages.Bye):
            self._clients.bye(session)

    def _take_call(self, session: Session, call: Call, now: float, caller: Ticket | None = None) -> None:
        """Handle a call of a client; ``caller``: the call of an agent on a member whose code has made it."""
        session.last_seen = now
        if call.needed > session.replies.needed:
            session.replies.acknowledge(call.needed)
        if call.flags & _RESENT and self._clients.came_before(session, call):
            return
        if not call.agent and call.method not in RUN_AS_CALLS:
            self._carry_out(self._management.answer(session.caller, call, session.role, caller))
        elif caller is not None:
            self._carry_out(self._members.on_call(session.caller, call, caller, now))
        elif not (call.agent and self._members.reach_out and self._members.pass_by(session.caller, call, now)):
            self._carry_out(self._dispatcher.on_call(session.caller, call, now))

    def _take_inside_call(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> list[Effect]:
        """Accept a call of the host's own code; ``wait``: the code of ``parent`` waits for the outcome."""
        if wait is not None:
            wait.enter()
        if call.agent or call.method in RUN_AS_CALLS:
            return self._dispatcher.on_call(peer, call, self._clock(), parent=parent, wait=wait is not None)
        return self._management.answer_inside(peer, call, parent, wait)

    # ------------------------------------------------------------ effects

    def _start(self, effect: Start) -> None:
        ticket, pace = effect.ticket, effect.ticket.pace
        if pace is not None and pace.quick and self._lane.may_take(ticket):
            self._lane.queue.append(ticket)
        else:
            (ticket.agent.home or self._pool).start(ticket)

    def _answer(self, effect: Answer) -> None:
        peer, call_id, reply = effect
        if peer.local:
            (peer.key or self.link).deliver(call_id, reply)
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

    def _pass_on(self, ticket: Ticket, number: int, body: tuple[messages.Frame, ...]) -> list[Effect]:
        """Send an item of a stream to its reader."""
        if ticket.settled or ticket.peer.gone:
            return self._management.tell_of_end(ticket, number, body) if ticket.op == END else []
        if not number and self._dispatcher.traces is not None:
            self._dispatcher.traces.first_item(ticket)
        reader = ticket.parent
        if reader is not None and reader.waits_for and ticket in reader.waits_for and reader.agent.away:
            self._dispatcher.on_unwait(reader, [ticket.task_id])  # its wait is over with this item
        if ticket.peer.local:
            self.link.chunk(ticket.call_id, body)
        else:
            session: Session = ticket.peer.key
            number &= messages.MAX_TIME_MS
            if ticket.flags & _STREAM and number < messages.REMINDER:
                session.replies.note_item(ticket.call_id, number, body)
            message = messages.answer_frames(Kind.CHUNK, ticket.call_id, session.token, body, time_ms=number)
            self._out.unsent.append((session, message))
        return []

    def _drained(self, effect: Drained) -> None:
        if effect.cut:
            log.warning("%s: %d calls were cut off by the stop", self.config.server_id, effect.cut)
        if effect.unended:
            log.warning("%s: the stop has cut off the hooks of %d agents", self.config.server_id, effect.unended)
        self._stop = True

    # ------------------------------------------------------------ the end

    def _close(self) -> None:
        """Send GOODBYE to all clients, stop the threads, close everything. A thread stuck in user code is left."""
        steps = [
            self._cut_short, self._say_goodbye, self._leave_the_inbox, self._end_threads, self.link.stop,
            self._results.close, self._listening.close, self._wake_w.close, self._wake_r.close,
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:  # each of them is done, whatever becomes of those before it
            for step in reversed(steps):
                stack.callback(step)

    def _cut_short(self) -> None:
        if not self._stop:  # the router thread has failed: open calls are answered all the same
            for _ in range(2):  # the second one ends the moment that agents have to end
                now = self._clock()
                self._carry_out(self._dispatcher.on_drain(now, now))
        self._out.push_all()

    def _leave_the_inbox(self) -> None:
        self._listening.stop_renewing()  # other threads may read the inbox from now on, and `renew` is not for them
        self._late = threading.Lock()
        self._asleep = True
        self._read_late(self._late)

    def _say_goodbye(self) -> None:
        said = {"message": "the host has stopped", **self._listening.keys_told()}
        self._clients.close([messages.header(Kind.GOODBYE), codec.pack(said)])

    def _end_threads(self) -> None:
        self._leader.close(timeout=0.0)  # what keeps the pool keeps these
        self._members.begin_end(MEMBERS_END_S)
        self._pool.retire(self._dispatcher.agents.values())
        clean = self._pool.close(timeout=1.0)
        if not self._members.close():
            log.warning("%s: some agents' processes did not end", self.config.server_id)
        if not self._leader.close(timeout=0.1) or not clean:
            log.warning("%s: some agents' threads did not end", self.config.server_id)

    def note_fork(self) -> None:
        """In a forked child: if that was an agent's code, the child ends with it, and asks the host for nothing."""
        self._is_copy = self._asleep = own_call() is not None
        self._events.note_fork()


def _wake_pair() -> tuple[socket.socket, socket.socket]:
    """No bare descriptors: a late write to a closed number could hit a file that is opened since."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


def _resume(effect: Resume) -> None:
    gate: Gate | None = effect.ticket.gate
    if gate is not None and not effect.ticket.on_loop:
        gate.open(effect.error)


def _results_of(
    store: Any, config: BrokerConfig, dispatcher: Dispatcher, far: FarResults, clock: Callable[[], float], post: Any
) -> Results:
    if isinstance(store, SharedStore):
        return SharedResults(store, config, dispatcher, far, clock, post)
    return LocalResults(store, config, dispatcher, far, clock)


def _store_of(config: BrokerConfig, epoch: str) -> Any:
    limits = StoreLimits(config.max_pool_size, config.max_pool_bytes, config.max_expire_time)
    owner = f"{config.server_id}/{epoch}"
    return open_store(config.pool_type, limits, url=config.redis_url, namespace=config.redis_namespace, owner=owner)


def _traces_of(config: BrokerConfig, address: Callable[[], str], clock: Callable[[], float]) -> HostTraces | None:
    is_member = config.parent is not None
    return switch.host_traces(config.server_id, address, clock, messages.read_error, is_member=is_member)


def _services_of_child(parent: ParentConnection, *known: Any) -> LocalServices:
    from ..members.upward import ParentServices  # here: most hosts are no child

    return ParentServices(parent, *known)


_brokers: weakref.WeakSet[Broker] = weakref.WeakSet()


def _note_fork() -> None:
    for broker in list(_brokers):
        broker.note_fork()


os.register_at_fork(after_in_child=_note_fork)


def _set(alive: threading.Event) -> list[Effect]:
    alive.set()
    return []
