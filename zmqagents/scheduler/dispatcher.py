"""What runs next: events in, effects out, time passed as an argument.

No socket, no thread, no clock, no lock: one thread (the broker's) calls `Dispatcher`, hands over what happened and
carries out the effects that it gets back, in order. An accepted call is a `Ticket`:

    PARKED   an argument is the unfinished result of another call; holds nothing
    QUEUED   in the mailbox of its agent, for its turn
    READY    has its turn, waits for one of the ``capacity`` slots
    RUNNING  in a worker thread (holds a slot) or on the event loop (holds none)
    WAITING  its code waits for other calls; a thread has given its slot back
    DONE     answered, and its code has returned

`Dispatcher` takes the events and passes them on to its parts: `admission` (which calls are accepted), `calls` (their
turns, slots and ends), `waiting` (what calls wait for, and deadlocks) and `fetches` (long polls). Below these lie the
records, the slots, the timers and the wait-for graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import errors
from ..agents.spec import ClassSpec, MethodSpec
from ..codec import MAX_TEXT, SHORT_BYTES
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..wire.messages import Call, Flag, Home, Op, Reply, elsewhere_reply, error_reply, task_id_of
from . import wait_graph
from .admission import Admission, Find, unknown_method
from .calls import Calls, Observer, error_of
from .effects import (
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
)
from .records import TICKS, AgentRecord, Alarm, Idle, ParkedFetch, Peer, State, Ticket, Unfinished
from .seals import Seals
from .shares import Account
from .waiting import EndWaits, Waiting

PASSED_ON = frozenset(("task", "user", "hop", "leg"))  # the options of a plain call that a member has passed on
FORWARDED = frozenset(("task", "user"))  # the same that the host of a child has passed on
_NOT_SHORT = Flag.ATTRIBUTE | Flag.STREAM | Flag.RESENT
# For what a short call takes: an attribute of a class is looked up anew at each use.
_DETACHED, _RUNNING, _DONE = Flag.DETACHED, State.RUNNING, State.DONE

if TYPE_CHECKING:
    from ..tracing.hosts import HostTraces

__all__ = [
    "FORWARDED", "PASSED_ON", "AgentRecord", "Answer", "Begin", "Dispatcher", "Drained", "Effect", "Ended", "GoOn",
    "Interrupt", "Keep", "Lookup", "Peer", "Pending", "Removed", "Report", "Resume", "Start", "State", "Ticket",
    "error_reply",
]  # fmt: skip


class Dispatcher:
    """Decides which calls run next; see the module's docstring. ``find_class`` gives a class by name or raises
    `UnknownClass`; ``shares_results``: the store is shared, so other hosts find the results of this one, and it theirs.
    ``settle``, ``find``: see `Admission`; ``expects``: see `Fetches`; ``end_waits``: see `Waiting`; ``observer`` and
    ``traces``: see `Calls`. ``refusal_of``: what speaks against calls of a user that another member passes on.

    ``agents`` are by agent id. ``tasks`` holds every ticket that is not answered, by task id. ``timers.due`` is the
    time at which `on_tick` is to be called. The events of `Waiting` and `Fetches` can be called here, too.
    """

    def __init__(
        self, config: BrokerConfig, find_class: Callable[..., ClassSpec], *, shares_results: bool,
        settle: Callable[[AgentRecord, Account], None] | None = None, find: Find | None = None,
        end_waits: EndWaits | None = None, expects: Callable[[str], bool] = lambda task_id: False,
        observer: Observer | None = None, traces: HostTraces | None = None,
        refusal_of: Callable[[str], ZmqAgentsError | None] = lambda user: None,
    ) -> None:  # fmt: skip
        self.config = config
        self.calls = calls = Calls(config, shares=shares_results, expects=expects, observer=observer, traces=traces)
        self.traces = traces
        self._refusal_of = refusal_of
        self._short_bytes = min(SHORT_BYTES, config.structured_limit)  # of what is passed by
        self.admission = Admission(config, find_class, calls, settle, find)
        self.waiting = waiting = Waiting(calls, self.admission, end_waits)
        self.agents = calls.agents
        self.tasks = calls.tasks
        self.counters = calls.counters
        self.shares = calls.shares
        self.seals = Seals(config.parent.seal_key if config.parent is not None else None)
        self.timers = calls.timers
        self._shares = shares_results
        self._is_member = config.parent is not None
        self.on_fetch, self.on_found = calls.fetches.on_fetch, calls.fetches.on_found
        self.on_unknown = calls.fetches.on_unknown
        self._early = calls.fetches.early
        self.on_wait, self.on_unwait, self.on_wait_over = waiting.on_wait, waiting.on_unwait, waiting.on_wait_over
        self.on_wait_outside, self.refuse_returns = waiting.on_wait_outside, waiting.refuse_returns
        self.on_await_outside, self.on_unawait_outside = waiting.on_await_outside, waiting.on_unawait_outside
        self.on_go_outside = waiting.on_go_outside
        self.on_dep = waiting.on_dep

    @property
    def running(self) -> int:
        """Slots in use."""
        return self.calls.slots.running

    @property
    def totals(self) -> dict[str, int]:
        """What became of all calls so far: the counters, with the short calls that are counted elsewhere."""
        totals, short = vars(self.counters).copy(), self.calls.meters.short
        return {**totals, "accepted": totals["accepted"] + short, "answered": totals["answered"] + short}

    @property
    def blocked(self) -> int:
        """Threads that stand idle because their call waits."""
        return self.calls.slots.blocked

    @property
    def queued_bytes(self) -> int:
        """Of the arguments of calls that have not started."""
        return self.calls.queued_bytes

    @property
    def draining(self) -> bool:
        """No new calls are taken."""
        return self.calls.drain is not None

    def __repr__(self) -> str:
        queued = sum(record.queued for record in self.agents.values())
        return (
            f"<Dispatcher [Calls: {len(self.tasks)} open, {self.running} running, {self.blocked} waiting, "
            f"{queued} queued, {self.calls.slots.ready} ready | Agents: {len(self.agents)}]>"
        )

    # ------------------------------------------------------------ a call comes in

    def on_call(
        self, peer: Peer, call: Call, now: float, *, parent: Ticket | None = None, wait: bool = False
    ) -> list[Effect]:
        """A call came in. ``parent``: the call of this host whose code made it; ``wait``: and waits for it."""
        effects: list[Effect] = []
        waiting = parent if wait else None
        try:
            ticket = self._accept(peer, call, now, parent, waiting, effects)
        except ZmqAgentsError as exc:
            self._refuse(peer, call, exc, waiting, effects)
            return effects
        if ticket is None:  # it came twice, and is answered once
            _go_on(waiting, effects)
            return effects
        if ticket.parent is None and "chain" in call.options:
            forged = wait_graph.note_chain(
                ticket, call.options["chain"], self.tasks, self.seals, trusted=peer.is_member
            )
            if forged and not peer.local:
                effects.append(Report(peer, "forged chains of calls", f"{forged} has not made {ticket.label}"))
        if self._early and ticket.task_id in self._early:
            self.calls.fetches.meet(ticket, effects)
        if self._shares and call.flags & Flag.DETACHED:
            effects.append(Begin(ticket.task_id))
        if call.deps:
            ticket.far = call.options.get("far")
            self.calls.book(ticket)
            self.waiting.park(ticket, call.deps, effects)
        else:
            self.calls.open(ticket, now, effects)
        if ticket.came_by and ticket.state <= State.QUEUED:
            self.waiting.refuse_if_stuck(ticket, effects, now)
        if waiting is not None:
            self.waiting.begin(waiting, [ticket], False, effects, now)
        return self.waiting.end(effects, now) if self.calls.news or self.calls.drain is not None else effects

    def _accept(
        self, peer: Peer, call: Call, now: float, parent: Ticket | None, waiting: Ticket | None, effects: list[Effect]
    ) -> Ticket | None:
        """A ticket for ``call``, with its turn if that is free; None if it has one already. Raises what refuses it."""
        if waiting is not None:
            refusal = self.waiting.refusal(waiting)
            if refusal is not None:
                raise refusal
        if parent is not None and parent.state is State.DONE:  # a thread that the agent left behind
            parent = None
        task_id = f"{peer.prefix}-{call.call_id}"
        is_told = bool(call.options) and (self._is_member or peer.is_member)
        keeps_id = "task" in call.options and (is_told or _is_own(peer, call.options["task"]))
        if keeps_id:
            task_id = str(call.options["task"])
            leg = call.options.get("leg")
            if type(leg) is int and is_told and peer.is_past(_agent_of(call), leg):
                _turn_away(peer, call, effects)
                return None
        if is_told and "hop" in call.options:
            refusal = self._refusal_of(str(call.options.get("user")))
            if refusal is not None:
                raise refusal
        if task_id in self.tasks:
            self._meet(peer, call, self.tasks[task_id], effects, is_told=is_told or keeps_id)
            return None
        ticket = self.admission.admit(peer, call, task_id, now, parent)
        if self.traces is not None and call.options:
            self.traces.accepted(ticket, call.options)
        if is_told:
            if "given" in call.options:
                ticket.take_given()
            user = call.options.get("user", ticket.account.key)
            if user != ticket.account.key:
                ticket.pay_by(self.shares.account(str(user)))
        record = ticket.agent
        if parent is not None:
            ticket.account = parent.account
        if ticket.op == Op.CREATE:
            self.calls.add_agent(ticket)
        elif not call.deps:
            record.try_to_seat(ticket)
        if parent is not None:
            ticket.parent = parent
            if parent.spawned is None:
                parent.spawned = {}
            parent.spawned[ticket] = None
        return ticket

    def _meet(self, peer: Peer, call: Call, ticket: Ticket, effects: list[Effect], *, is_told: bool) -> None:
        """``call`` is open as ``ticket``. Raises what refuses the copy.

        Only a copy that has reached the agent waits for the answer. Two hosts that have passed the call on to each
        other would wait for ever, so a host whose own copy is still on its way sends another host's copy elsewhere.
        """
        if not is_told or (ticket.peer is peer and ticket.call_id == call.call_id):
            _take_over(ticket, peer)
        elif not ticket.agent.sought:
            if ticket.method is None or not (ticket.method.once or ticket.is_tick):
                _take_over(ticket, peer)
            else:
                self.calls.fetches.join(peer, call.call_id, ticket)
        elif "hop" in call.options:
            peer.turn_away(_agent_of(call))
            _turn_away(peer, call, effects)
        else:
            raise errors.HostBusy.of_host(f"{ticket.task_id} is on its way to {ticket.agent.agent_id}: ask again")

    def _refuse(
        self, peer: Peer, call: Call, exc: ZmqAgentsError, waiting: Ticket | None, effects: list[Effect]
    ) -> None:
        self.counters.refused += 1
        self.calls.meters.refuse(type(exc).__name__)
        if self.traces is not None:
            record = self.agents.get(call.agent)
            self.traces.refused(call.options, "" if record is None else record.spec.name, call.method, exc)
        task_id = task_id_of(peer.prefix, call.call_id)
        reply = error_reply(exc, agent=call.agent, method=call.method, call_id=task_id)
        if isinstance(exc, errors.CallCancelled):
            self.admission.early_cancels.pop(task_id, None)
            if call.flags & Flag.DETACHED:
                effects.append(Keep(task_id, reply))  # a fetch of it must not read that it is unknown
        if self._early:
            self.calls.fetches.answer_early(task_id, reply, effects)
        effects.append(Answer(peer, call.call_id, reply))
        if not peer.local and not (call.method.isidentifier() and call.agent.isprintable()):
            effects.append(Report(peer, "names that are none", str(exc)))
        _go_on(waiting, effects)

    # ------------------------------------------------------------ a call that the router thread runs at once

    # A call that begins and ends before anything else happens is never booked: nothing could look it up.

    def start_short(self, peer: Peer, call: Call, now: float) -> Ticket | None:
        """A running ticket, for the caller to run at once; None: it is a matter for `on_call`, and nothing is changed.

        For what is common: a call from outside, without dependencies, of a quick method of an idle agent,
        while there is a free slot and nothing to refuse. That leaves out of `on_call` all that is about waiting: the
        mailbox, the wait-for graph, the bytes that are queued. The rest, turn and slot and deadline, follow by `enter`
        as soon as something else may happen before its end; otherwise its end is `end_short`.
        """
        call_id, flags, _, agent, name, _, options, _, _ = call  # a tuple is taken apart faster than read by names
        record = self.agents.get(agent)
        if record is None or record.holders or not record.made:  # a call that queues has seen a holder
            return None
        method = record.spec.methods.get(name)
        if method is None or method.concurrent or flags & _NOT_SHORT:
            return None
        if not method.pace.quick and (record.admits is None or not record.admits(method)):
            return None
        if self.calls.slots.running >= self.config.capacity or (flags & _DETACHED and self._shares):
            return None
        task_id = options["task"] if options and "task" in options else f"{peer.prefix}-{call_id}"
        ticket = self._new_ticket(peer, call, task_id, record, method, now)
        if ticket is not None:
            ticket.state = _RUNNING
        return ticket

    def _new_ticket(
        self, peer: Peer, call: Call, task_id: str, record: AgentRecord, method: MethodSpec, now: float
    ) -> Ticket | None:
        """A ticket for a call that is nowhere known and that nothing refuses; None: as `start_short`."""
        if task_id in self.tasks or (self._early and task_id in self._early):
            return None
        try:
            deadline = self.admission.check(peer, call, task_id, now, None)
        except ZmqAgentsError:
            return None
        return Ticket(peer, call, task_id, record, "", method, not method.concurrent, deadline, now)

    def start_passed_on(self, peer: Peer, call: Call, now: float) -> Ticket | None:
        """The same for a call that the host of this child, or another member, has passed on in its caller's name."""
        options = call.options
        task_id, user = options["task"], options["user"]
        if type(task_id) is not str or type(user) is not str or task_id.startswith(TICKS):
            return None  # a tick is looked at by the agent's home
        if "leg" in options:
            leg = options["leg"]
            if type(leg) is not int or peer.is_past(call.agent, leg) or self._refusal_of(user) is not None:
                return None
        ticket = self.start_short(peer, call, now)
        if ticket is not None and user != ticket.account.key:
            ticket.pay_by(self.shares.account(user))
        return ticket

    def may_pass_by(self, call: Call) -> bool:
        """Whether a call may be one for `start_elsewhere`, by what it says itself."""
        _, flags, _, _, _, deps, options, body, _ = call
        if deps or options or flags & _NOT_SHORT or self.traces is not None or (flags & _DETACHED and self._shares):
            return False
        size = sum(map(len, body))
        return size <= self._short_bytes and self.calls.queued_bytes + size <= self.shares.queued_bytes.free

    def start_elsewhere(self, peer: Peer, call: Call, record: AgentRecord, now: float) -> Ticket | None:
        """A ticket for a call that `may_pass_by`, and another host is to run: the caller of this passes it on.

        None: as `start_short`. ``record``: of an idle agent in a child, or it stands for that call alone
        (`AgentRecord.be_elsewhere`). Its end is `on_done`.
        """
        try:
            method = record.spec.methods[call.method]
        except KeyError:
            return None
        if not record.made or (record.holders and not method.concurrent):
            return None
        ticket = self._new_ticket(peer, call, f"{peer.prefix}-{call.call_id}", record, method, now)
        if ticket is not None:
            ticket.state = _RUNNING  # as in `Calls.open`; it takes no thread, so no slot
            record.seat(ticket)
            self.calls.book(ticket)
        return ticket

    def enter(self, ticket: Ticket) -> None:
        """A ticket of `start_short` goes on while other things happen: from now on it is a call like any other."""
        ticket.agent.seat(ticket)
        self.calls.slots.take(ticket)  # free since `start_short`
        self.calls.book(ticket)

    def end_short(self, ticket: Ticket, reply: Reply, now: float) -> None:
        """A ticket of `start_short` has ended and nothing else has happened: its reply is all that is left of it."""
        ticket.settled = True
        ticket.state = _DONE
        record = ticket.agent
        record.calls += 1
        if not reply.code:
            record.meters.at_once[ticket.name](now - ticket.accepted)
        else:
            self.counters.accepted += 1
            self.counters.answered += 1
            self.calls.count(ticket, reply, now)
        if self.traces is not None:  # after the count, whose line in the log has the ids of the trace
            self.traces.ended(ticket, reply)
        ticket.context = None  # as in `Calls.release`

    # ------------------------------------------------------------ a call ends

    def on_done(self, ticket: Ticket, reply: Reply, now: float) -> list[Effect]:
        """The code of ``ticket`` has returned; ``reply`` is what it ended in."""
        effects: list[Effect] = []
        calls = self.calls
        if ticket.state is _DONE:
            return effects
        if ticket.settled:
            calls.lingering -= 1
        else:
            if ticket.ended is not None and reply.code:  # in a child: its code was told to stop, for this reason
                reply = error_of(ticket, ticket.ended)
            calls.settle(ticket, reply, effects, now)
            if ticket.op and ticket.op == Op.CREATE and not reply.code:
                calls.made(ticket.agent, now, effects)
            if calls.news:  # before the slot is freed: those that waited for this go on ahead of new calls
                self.waiting.spread(effects, now)
        calls.release(ticket, effects, now)
        return self.waiting.end(effects, now) if calls.news or calls.drain is not None else effects

    def on_returned(self, ticket: Ticket, now: float) -> list[Effect]:
        """The code of ``ticket`` has returned, and the answer is not to leave before `on_kept`."""
        effects: list[Effect] = []
        self.calls.leave(ticket, effects, now)
        return self.waiting.end(effects, now)

    def on_kept(self, ticket: Ticket, reply: Reply, now: float) -> list[Effect]:
        """The answer that `on_returned` has put off may leave."""
        effects: list[Effect] = []
        if not ticket.settled:
            self.calls.settle(ticket, reply, effects, now)
        return self.waiting.end(effects, now)

    def on_move(self, ticket: Ticket, record: AgentRecord, now: float) -> list[Effect]:
        """The agent of ``ticket``, whose code has not begun, is ``record`` by now."""
        effects: list[Effect] = []
        method = None
        if not ticket.op and not ticket.settled:
            method = record.spec.methods.get(ticket.name)
            if method is None:
                self.calls.refuse(ticket, unknown_method(record, ticket.name), effects, now)
        if not ticket.settled:
            self.calls.move(ticket, record, method, effects, now)
        return self.waiting.end(effects, now)

    def on_go_to_loop(self, ticket: Ticket, now: float) -> list[Effect]:
        """The code of ``ticket`` has left its thread, and the rest of it is a coroutine. It needs no slot any more."""
        effects: list[Effect] = []
        self.calls.go_to_loop(ticket, effects, now)
        return self.waiting.end(effects, now)

    def on_cancel(self, peer: Peer, call_id: int, task_id: str, now: float, *, alone: bool = False) -> list[Effect]:
        """Cancel a call and (unless ``alone``) the calls that it has made: the peer's own by ``call_id``, or any by
        ``task_id``.

        A cancel that arrives before its call is remembered, and that call never runs.
        """
        effects: list[Effect] = []
        ticket = self.tasks.get(task_id) if task_id else peer.calls.get(call_id)
        if ticket is not None:
            self.calls.cancel(ticket, effects, now, alone=alone)
        elif not task_id and call_id in peer.fetches:
            self.calls.fetches.forget(peer.fetches[call_id])
        else:
            self.admission.cancel_early(task_id or task_id_of(peer.prefix, call_id))
        return self.waiting.end(effects, now)

    def on_detach(self, peer: Peer, now: float) -> list[Effect]:
        """The peer is gone for good: its plain calls are cancelled, its detached ones go on; its own agents go.

        Those that are done once go on, too: if it was a host that has passed them on, they come again by another one.
        """
        effects: list[Effect] = []
        peer.leave()
        for fetch in list(peer.fetches.values()):
            self.calls.fetches.forget(fetch)
        plain = [
            ticket for ticket in peer.calls.values()
            if not ticket.flags & Flag.DETACHED and not (ticket.method is not None and ticket.method.once)
        ]  # fmt: skip
        self.calls.end_some(Unfinished(plain, self.calls.cancel), effects, now)
        if peer.agents:
            self.calls.end_some(Unfinished(list(peer.agents), self.calls.let_go), effects, now)
        return self.waiting.end(effects, now)

    def on_revoke(self, peer: Peer, error: ZmqAgentsError, now: float) -> list[Effect]:
        """The user of ``peer`` may not be here any more: ``error`` is what all that it asked for ends in."""
        effects: list[Effect] = []
        self.calls.fetches.refuse(peer, error_reply(error), effects)
        for ticket in [ticket for ticket in self.tasks.values() if ticket.peer.user == peer.user]:
            if not ticket.settled:  # by the end of the call that has made it
                self.counters.cancelled += 1
                self.calls.give_up(ticket, error, effects, now)
        return self.waiting.end(effects, now)

    def on_lost(self, ticket: Ticket, error: ZmqAgentsError, now: float) -> list[Effect]:
        """What ``ticket`` had to say is lost: it ends in ``error``."""
        effects: list[Effect] = []
        self.calls.give_up(ticket, error, effects, now)
        return self.waiting.end(effects, now)

    # ------------------------------------------------------------ time, agents, the end

    def on_tick(self, now: float) -> list[Effect]:
        """Answer what is overdue. To be called at ``timers.due``."""
        effects: list[Effect] = []
        calls = self.calls
        is_over = False
        unfinished: list[Unfinished] = []
        alarms: list[Alarm] = []
        for late in self.timers.take_due(now):
            if isinstance(late, Ticket):
                calls.time_out(late, effects, now)
            elif isinstance(late, ParkedFetch):
                calls.fetches.expire(late, effects, now)
            elif isinstance(late, Unfinished):
                unfinished.append(late)
            elif isinstance(late, Idle):
                calls.look_at_idle(late, effects, now)
            elif isinstance(late, Alarm):
                alarms.append(late)
            else:
                is_over = True
        for alarm in alarms:
            effects += alarm.ring(now)
        if is_over:
            cut = calls.give_up_all(effects, now)
            self.waiting.spread(effects, now)
            if not calls.wait_for_ends(cut, effects, now):
                self.waiting.spread(effects, now)
                calls.end_drain(cut, effects)
            return effects
        for some in unfinished:  # not in the loop above: what is left of them is due at once
            calls.end_some(some, effects, now)
        return self.waiting.end(effects, now)

    def on_drain(self, deadline: float, now: float) -> list[Effect]:
        """Take no new calls; what is accepted may go on until ``deadline``. A later call may only shorten it."""
        self.calls.drain_by(deadline)
        return self.on_tick(now)

    def remove_agent(self, agent_id: str, now: float, *, hooks: bool = True) -> list[Effect]:
        """Delete an agent: calls that run go on to their end, streams and all others get `AgentDeleted`.

        Where its class has ``hooks`` for that, ``record.end`` is the call that runs them then.
        """
        record = self.agents.get(agent_id)
        if record is None:
            raise self.admission.unknown_agent(agent_id)
        effects: list[Effect] = []
        self.calls.forget_agent(record, effects, now, "was deleted", hooks=hooks)
        return self.waiting.end(effects, now)


def _go_on(waiting: Ticket | None, effects: list[Effect]) -> None:
    """The wait of ``waiting`` is over before it began."""
    if waiting is not None and not waiting.on_loop:
        effects.append(Resume(waiting))


def _is_own(peer: Peer, task_id: object) -> bool:
    """Whether a client may say that its call has this task id."""
    return bool(peer.program) and isinstance(task_id, str) and len(task_id) <= MAX_TEXT and peer.has_named(task_id)


def _agent_of(call: Call) -> str:
    """Which agent of a cluster a call is about, also one that makes it or deletes it."""
    return call.agent or str(call.options.get("id"))


def _turn_away(peer: Peer, call: Call, effects: list[Effect]) -> None:
    """A member has passed on a call that is not to be executed here."""
    effects.append(Answer(peer, call.call_id, elsewhere_reply(Home(call.agent, "", 0))))


def _take_over(ticket: Ticket, peer: Peer) -> None:
    """A call that is open came again: ignored, but answered to a peer that has come back under its old name."""
    if ticket.peer is peer:
        return
    if not ticket.peer.gone or ticket.peer.user != peer.user:
        raise errors.RemoteProtocolError(f"{ticket.task_id} is in use by another connection")
    ticket.peer.calls.pop(ticket.call_id, None)
    ticket.peer = peer
    peer.calls[ticket.call_id] = ticket
