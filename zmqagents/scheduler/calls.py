"""The open calls: how each gets its turn and its slot, how it is answered, and how it ends.

Two things are shared, and `Calls.release` gives both back: the *turn* of an agent (one call at a time by default, in
the order of arrival) and the *slots*. A call that waits keeps its turn and gives up its slot, so waiting costs no
capacity; when what it waits for is there, it takes a slot again, ahead of new calls. The call that makes an agent has
the agent's turn from the start, so that all others queue behind it. A deleted agent with hooks gets one more call, its
*end*, which runs them when all its other calls have returned.

Answering a call (`Calls.settle`) and the return of its code (`Calls.release`) are two events: a call whose deadline
passes is answered at once, while its thread may go on until it looks at ``current_call().cancelled``. From then on its
code may neither call nor wait.

`Calls` does not know why a call waits. A call that is settled while others wait for it goes into ``news``, and
`waiting` tells them at the end of the event.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .. import errors
from ..agents.spec import MethodSpec
from ..checks import CLUSTER
from ..codec import pack
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..telemetry.meters import ATTRIBUTE, Meters, Outcome
from ..wire.messages import Call, Code, Flag, Frame, Op, Reply, error_reply, read_error
from . import wait_graph
from .effects import Answer, Drained, Effect, Ended, GoOn, Interrupt, Keep, Removed, Resume, Start
from .fetches import Fetches
from .records import (
    END,
    AgentRecord,
    Counters,
    DrainEnd,
    Idle,
    Peer,
    State,
    Ticket,
    Timed,
    Unfinished,
    bytes_of_ids,
    phase,
)
from .shares import Shares
from .slots import Slots
from .timers import Timers

if TYPE_CHECKING:
    from ..tracing.hosts import HostTraces

__all__ = ["Calls", "Observer", "error_of"]


class Observer:
    """Is told what becomes of calls and agents. This one takes no notice."""

    def failed(self, ticket: Ticket, reply: Reply, outcome: Outcome) -> None:
        """A call did not end well."""

    def made(self, record: AgentRecord) -> None:
        """An agent was made."""

    def gone(self, record: AgentRecord) -> None:
        """An agent that was made is deleted, and none of its calls runs."""


_TRUE = Reply(Code.NONE, (pack(True),))
# For what a short call takes: an attribute of a class is looked up anew at each use.
_STREAM, _DETACHED, _RUNNING, _DONE = Flag.STREAM, Flag.DETACHED, State.RUNNING, State.DONE
_WELL_COUNTED = ("", Op.CREATE)  # ops whose good end is counted by its times alone, under the name of the call
ENDS_S = 0.5  # how long agents may take to end beyond the limit of a drain, which cuts off all other calls
ENDED_AT_ONCE = 64  # calls, of all those of a client that is gone or of an agent that was deleted


class Calls:
    """The calls and agents of one host. ``shares``: other hosts can find the results in its store. ``expects``: see
    `Fetches`. ``observer`` is told what becomes of them. ``traces``: None where calls are not traced.

    Each method appends its effects to the list that it is given. ``agents`` are by agent id; ``tasks`` holds every
    ticket that is not answered, by task id.
    """

    def __init__(
        self, config: BrokerConfig, *, shares: bool, expects: Callable[[str], bool], observer: Observer | None = None,
        traces: HostTraces | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self._observer = observer or Observer()
        self.traces = traces
        self.agents: dict[str, AgentRecord] = {}
        self.tasks: dict[str, Ticket] = {}
        self.counters = Counters()
        self.meters = Meters()
        self._made = 0  # agents, so far
        self._ends = itertools.count(1)  # calls of the host's own
        self.host = Peer("host")  # makes the calls that begin and end agents
        self.host.leave()  # and reads no answers
        self.ending = 0  # agents that are deleted, and whose hooks have not run
        self.shares = Shares(config)
        self.slots = Slots(self.shares.slots)
        self.timers: Timers[Timed] = Timers()
        self.fetches = Fetches(
            config, self.tasks, self.timers, self.shares.fetches, self.shares.early, shares=shares, expects=expects
        )
        self.news: deque[tuple[Ticket, Reply]] = deque()  # settled; dependents and waiters are still to be told
        self.queued_bytes = 0  # of the arguments of calls that have not started
        self.starving: set[Ticket] = set()  # streams whose reader has granted no credit
        self.lingering = 0  # settled calls whose code has not returned
        self.drain: DrainEnd | None = None  # no new calls are taken
        self.drained = False  # nothing is open any more
        self._is_member = config.parent is not None

    # ------------------------------------------------------------ the way in

    def open(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """Note a ticket that was accepted and has its arguments: it starts as soon as it has its turn and a slot."""
        self.book(ticket)
        if ticket.seat < 0:
            ticket.agent.queue(ticket)
        elif ticket.on_loop or self.slots.take(ticket):
            ticket.state = State.RUNNING
            ticket.started = now
            if ticket.sealed:  # kept to the end of the call, of which any number may run on the event loop
                self._count(ticket, bytes_of_ids((), ticket.sealed, ()))
            effects.append(Start(ticket))
            return
        self.count_bytes(ticket)

    def add_agent(self, ticket: Ticket) -> None:
        """Note the agent that ``ticket`` makes."""
        record = ticket.agent
        self.agents[record.agent_id] = record
        self._made += 1
        record.number = self._made
        record.account = ticket.account
        record.account.agents += 1
        record.meters.count_agents(1)
        record.seat(ticket)
        if record.options.lifetime == "client" and not (ticket.peer.local or self._is_member):
            record.go_with(ticket.peer)

    def begin_agent(self, record: AgentRecord, body: Sequence[Frame], effects: list[Effect], now: float) -> Ticket:
        """Make an agent that no call asks for by itself; all its calls queue behind that."""
        ticket = _own_call(self.host, next(self._ends), record, Op.CREATE, body, Op.CREATE, None, now)
        self.add_agent(ticket)
        self.open(ticket, now, effects)
        return ticket

    def book(self, ticket: Ticket) -> None:
        """Note a ticket that was accepted."""
        ticket.agent.calls += 1
        ticket.account.calls += 1
        ticket.peer.calls[ticket.call_id] = ticket
        self.tasks[ticket.task_id] = ticket
        self.counters.accepted += 1
        if ticket.deadline is not None:
            self.timers.add(ticket.deadline, ticket)

    def count_bytes(self, ticket: Ticket) -> None:
        """``ticket`` does not start at once: until then its arguments lie here."""
        size = sum(map(len, ticket.body))
        if ticket.deps or ticket.sealed:
            size += bytes_of_ids(ticket.deps or (), ticket.sealed, ticket.far or ())
        self._count(ticket, size)

    def _count(self, ticket: Ticket, size: int) -> None:
        ticket.queued_bytes = size
        ticket.account.queued_bytes += size
        self.queued_bytes += size

    def _uncount_bytes(self, ticket: Ticket) -> None:
        ticket.account.queued_bytes -= ticket.queued_bytes
        self.queued_bytes -= ticket.queued_bytes
        ticket.queued_bytes = 0

    # ------------------------------------------------------------ turns and slots

    def enqueue(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """A parked ``ticket`` has all its arguments: let it run, or queue it for its turn."""
        ticket.read_in_thread()
        if self.traces is not None:
            self.traces.unparked(ticket, now)
        if ticket.turn or ticket.agent.try_to_seat(ticket):  # it has one if it makes the agent
            self.admit(ticket, now, effects)
        else:
            ticket.agent.queue(ticket)

    def let_in(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """A queued ``ticket`` comes back in its own chain: it runs beside the turn."""
        self._leave_queue(ticket, State.QUEUED)
        ticket.agent.seat(ticket, beside=True)
        self.admit(ticket, now, effects)

    def made(self, record: AgentRecord, now: float, effects: list[Effect]) -> None:
        """The agent is there: what needs no turn may run. The turn itself is free when its maker is released."""
        record.made = True
        self._observer.made(record)
        if record.options.idle_s is not None and not self._is_member:
            idle = Idle(record, record.options.idle_s, now)
            self.timers.add(idle.next_look(now), idle)
        for ticket in [ticket for ticket in record.mailbox or () if not ticket.exclusive]:
            self._leave_queue(ticket, State.QUEUED)
            record.seat(ticket)
            self.admit(ticket, now, effects)

    def lend_slot(self, ticket: Ticket, effects: list[Effect], now: float, *, parked: bool = False) -> None:
        """``ticket`` waits: another call may have its slot, and if it is ``parked`` its thread."""
        if ticket.slot:
            self.slots.lend(ticket, parked=parked)
            self._fill_slots(effects, now)

    def go_to_loop(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The rest of ``ticket`` is a coroutine: its thread and its slot are free."""
        ticket.leave_thread()
        effects.append(GoOn(ticket))
        if self.slots.free(ticket) and self.slots.wanted:
            self._fill_slots(effects, now)

    def starve(self, ticket: Ticket) -> errors.HostBusy | None:
        """Note that the stream ``ticket`` has no credit; the error if its user has too many of these."""
        share, starving, account = self.shares.streams, self.starving, ticket.account
        if ticket in starving or ticket.settled:
            return None
        if len(starving) >= share.free and share.refuses(account.streams, len(starving)):
            return errors.HostBusy(share.reason(account.streams, len(starving)))
        starving.add(ticket)
        account.streams += 1
        return None

    def feed(self, ticket: Ticket) -> None:
        """The stream ``ticket`` has credit, or has ended."""
        if ticket in self.starving:
            self.starving.remove(ticket)
            ticket.account.streams -= 1

    def hold(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """``ticket`` was started, and its code cannot begin yet: it keeps its turn, others may have its slot."""
        ticket.state = State.PARKED
        if self.slots.free(ticket) and self.slots.wanted:
            self._fill_slots(effects, now)

    def move(
        self, ticket: Ticket, record: AgentRecord, method: MethodSpec | None, effects: list[Effect], now: float
    ) -> None:
        """``ticket`` is for another agent now, which has the name of the former one; its code has not begun."""
        former = ticket.agent
        if ticket.state < State.RUNNING:
            self._leave_queue(ticket, ticket.state)
        if ticket.seat >= 0:
            former.unseat(ticket)
            if former.removed:
                self._end_if_idle(former, effects, now)
        if self.slots.free(ticket) and self.slots.wanted:
            self._fill_slots(effects, now)
        former.calls -= 1
        record.calls += 1
        ticket.move(record, method)
        self._uncount_bytes(ticket)
        self.count_bytes(ticket)
        self.enqueue(ticket, now, effects)

    def wake(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """What ``ticket`` waited for is there: it goes on as soon as it has a slot again."""
        wait_graph.drop_edges(ticket)
        ticket.state = State.RUNNING
        if ticket.owed:
            self.slots.reclaim(ticket)
            self._fill_slots(effects, now)

    def admit(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """``ticket`` may run as soon as there is a slot."""
        if ticket.on_loop or self.slots.take(ticket):
            self._start(ticket, now, effects)

    def _start(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        ticket.state = State.RUNNING
        ticket.started = now
        self._uncount_bytes(ticket)
        if ticket.sealed:  # see `open`
            self._count(ticket, bytes_of_ids((), ticket.sealed, ()))
        effects.append(Start(ticket))

    def _fill_slots(self, effects: list[Effect], now: float) -> None:
        while (ticket := self.slots.next()) is not None:
            if ticket.state is State.READY:
                self._start(ticket, now, effects)
            else:
                _resume(ticket, effects)

    def _leave_queue(self, ticket: Ticket, state: State) -> None:
        if state is State.QUEUED:
            ticket.agent.unqueue(ticket)
        elif state is State.READY:
            self.slots.withdraw(ticket)
        elif state is State.PARKED:
            wait_graph.drop_deps(ticket)

    def _next_of(self, record: AgentRecord, now: float, effects: list[Effect]) -> None:
        mailbox, limit = record.mailbox, record.options.max_concurrency
        while mailbox is not None and mailbox.count and len(record.holders) < limit:
            ticket = record.next_queued()
            record.seat(ticket)
            self.admit(ticket, now, effects)

    # ------------------------------------------------------------ the two ends: answered, and returned

    def settle(self, ticket: Ticket, reply: Reply, effects: list[Effect], now: float) -> None:
        """Answer every request for the result of ``ticket``. Its code may still be running.

        Calls of this host that wait for it are told at the end of the event: a chain of them may be long.
        """
        ticket.settled = True
        self.counters.answered += 1
        if reply.code or ticket.op not in _WELL_COUNTED:
            self.count(ticket, reply, now)
        else:
            ticket.agent.meters.ended[ticket.name]((ticket.started - ticket.accepted, now - ticket.started))
        if self.traces is not None:
            self.traces.ended(ticket, reply)
        ticket.account.calls -= 1
        ticket.body = ()
        if ticket.queued_bytes:
            self._uncount_bytes(ticket)
        if ticket.flags & _STREAM:
            self.feed(ticket)
        peer = ticket.peer
        peer.calls.pop(ticket.call_id, None)
        del self.tasks[ticket.task_id]
        if ticket.flags & _DETACHED:
            effects.append(Keep(ticket.task_id, reply))
        if not peer.gone:
            effects.append(Answer(peer, ticket.call_id, reply))
        elif ticket.op == END:
            effects.append(Ended(ticket.agent, reply))
        if ticket.fetches:
            self.fetches.answer(ticket, reply, effects)
        if ticket.dependents or ticket.waiters:
            self.news.append((ticket, reply))
        parent = ticket.parent
        if parent is not None and parent.spawned is not None:
            parent.spawned.pop(ticket, None)
        for task_id in ticket.came_by:
            link = self.tasks.get(task_id)
            if link is not None and link.returns is not None:
                link.returns.pop(ticket, None)

    def count(self, ticket: Ticket, reply: Reply, now: float) -> None:
        """Count a call that is no plain one that has ended well."""
        if reply.code == Code.ELSEWHERE:  # it was not executed here, and goes on where it came from
            return
        meters, outcome = ticket.agent.meters, Outcome.OK
        if reply.code:
            outcome = _outcome_of(reply)
            self._observer.failed(ticket, reply, outcome)
        name = ticket.name if ticket.op != "attribute" else ATTRIBUTE
        meter = meters[name]
        if ticket.state >= State.RUNNING:
            meter.note(outcome, ticket.started - ticket.accepted, now - ticket.started)
        else:
            meter.note(outcome, now - ticket.accepted, None)

    def release(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The code of ``ticket`` will not go on: free its turn and its slot, and start the calls that get them."""
        state, record = ticket.state, ticket.agent
        ticket.state = _DONE
        if state < _RUNNING:
            self._leave_queue(ticket, state)
        elif ticket.waits_for or ticket.outside is not None:
            wait_graph.drop_edges(ticket)
        for child in ticket.spawned or ():
            child.parent = ticket.parent
        # What is kept by a stale timer or a caller must not keep more; the context points back here.
        ticket.spawned = ticket.parent = ticket.dep_replies = ticket.returns = ticket.context = ticket.gate = None
        if ticket.seat >= 0:
            had_turn = ticket.turn
            record.unseat(ticket)
            if ticket.op and ticket.op == Op.CREATE and not record.made and not record.removed:
                self.forget_agent(record, effects, now, "could not be made")
            elif record.removed:
                self._end_if_idle(record, effects, now)
            elif had_turn and record.mailbox is not None and record.mailbox.count:
                self._next_of(record, now, effects)
        if self.slots.free(ticket) and self.slots.wanted:
            self._fill_slots(effects, now)

    def leave(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The code of ``ticket`` has returned, and its answer waits for something: turn and slot are free."""
        parent = ticket.parent
        if parent is not None and parent.spawned is not None:
            parent.spawned.pop(ticket, None)
        self.release(ticket, effects, now)

    def drop(self, ticket: Ticket, reply: Reply, effects: list[Effect], now: float) -> None:
        """Answer a call that has not started and never will."""
        self.settle(ticket, reply, effects, now)
        self.release(ticket, effects, now)

    def refuse(self, ticket: Ticket, error: ZmqAgentsError, effects: list[Effect], now: float) -> None:
        """The same with an error of the host's."""
        self.drop(ticket, error_of(ticket, error), effects, now)

    def cancel(self, ticket: Ticket, effects: list[Effect], now: float, *, alone: bool = False) -> None:
        """Cancel ``ticket`` and (unless ``alone``) the calls that it has made."""
        if not ticket.settled:
            self.counters.cancelled += 1
            error = errors.CallCancelled(f"{ticket.label} was cancelled: {_phase(self, ticket, now)}")
            self.give_up(ticket, error, effects, now, alone=alone)

    def time_out(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The deadline of ``ticket`` has passed."""
        spent = now - ticket.accepted
        error = errors.CallTimeout(f"{ticket.label} timed out after {spent:.3g} s: {_phase(self, ticket, now)}")
        self.counters.timed_out += 1
        self.give_up(ticket, error, effects, now)

    def give_up(
        self, root: Ticket, error: ZmqAgentsError, effects: list[Effect], now: float, *, alone: bool = False
    ) -> None:
        """Answer ``root`` and its unfinished children with an error; stop their code where that is possible."""
        left = [root]
        while left:
            ticket = left.pop()
            if ticket.settled:
                continue
            if not alone:
                left += reversed(ticket.spawned or {})
            if ticket is not root:
                reason = f"{ticket.label}: its caller {root.label} has ended ({error})"
                ticket.ended = type(error)(reason)
            else:
                ticket.ended = error
            if self._is_member and ticket.state >= State.RUNNING:  # its host waits for the end of its code
                self._break_off(ticket, effects, now, alone=alone)
                continue
            self.settle(ticket, error_of(ticket, ticket.ended), effects, now)
            if ticket.state < State.RUNNING:
                self.release(ticket, effects, now)
                continue
            if ticket.state is State.DONE:  # only its answer was missing
                continue
            self.lingering += 1
            self._break_off(ticket, effects, now, alone=alone)

    def _break_off(self, ticket: Ticket, effects: list[Effect], now: float, *, alone: bool) -> None:
        """Stop the code of a call that has ended, where that is possible."""
        effects.append(Interrupt(ticket, alone))
        if ticket.state is State.WAITING:
            ticket.wait_error = ticket.ended
            self.wake(ticket, effects, now)

    def look_at_idle(self, idle: Idle, effects: list[Effect], now: float) -> None:
        """Delete an agent that nobody has called for long, or note when to look again."""
        record = idle.record
        if idle.is_over(now) and not any(ticket.agent is record for ticket in self.tasks.values()):  # a parked one
            self.forget_agent(record, effects, now, "was deleted, for it was idle,")
        else:
            self.timers.add(idle.next_look(now), idle)

    def let_go(self, record: AgentRecord, effects: list[Effect], now: float) -> None:
        """The client with which this agent goes has gone."""
        if not record.removed:
            self.forget_agent(record, effects, now, "was deleted with its client")

    def forget_agent(
        self, record: AgentRecord, effects: list[Effect], now: float, why: str, *, hooks: bool = True,
        streams: bool = False,
    ) -> None:  # fmt: skip
        """The agent is no more: its calls that run go on to their end, with ``streams`` also those; others end now."""
        record.removed = True
        if record.client is not None and record.client.agents is not None:
            record.client.agents.pop(record, None)
        is_known = self.agents.get(record.agent_id) is record
        if is_known:
            del self.agents[record.agent_id]
            record.meters.count_agents(-1)
        if hooks and record.spec.end is not None and (record.instance is not None or record.holders):
            self._plan_end(record, now)
        elif is_known:
            record.account.agents -= 1
        seated = [ticket for ticket in (*record.holders, *(record.beside or ())) if ticket.state < State.RUNNING]

        def refuse(ticket: Ticket, effects: list[Effect], now: float) -> None:
            if not ticket.settled:
                gone = errors.AgentDeleted(f"{record.agent_id} {why} before {ticket.name} could start")
                self.refuse(ticket, gone, effects, now)

        self.end_some(Unfinished([*seated, *(record.mailbox or ())], refuse), effects, now)
        for ticket in (*record.holders, *(record.beside or ())):
            if ticket.flags & Flag.STREAM and not streams:  # it may have no end of its own
                gone = errors.AgentDeleted(f"{record.agent_id} {why} in the middle of {ticket.name}")
                self.give_up(ticket, gone, effects, now)
        self._end_if_idle(record, effects, now)

    def _plan_end(self, record: AgentRecord, now: float) -> None:
        """Note the call that will run the hooks of a deleted agent."""
        method = record.spec.end
        assert method is not None
        ticket = _own_call(self.host, next(self._ends), record, method.name, (), END, method, now)
        ticket.pay_by(record.account)
        self.book(ticket)
        self.ending += 1
        record.end_by(ticket)

    def _end_if_idle(self, record: AgentRecord, effects: list[Effect], now: float) -> None:
        """A deleted agent ends when no call runs on it any more: its hooks run, then it is dropped."""
        if record.holders or record.beside or record.dropped:
            return
        end = record.end
        if end is not None and end.state is State.QUEUED:
            if record.instance is not None:
                record.seat(end)
                self.admit(end, now, effects)
                return
            self.drop(end, _TRUE, effects, now)  # it was never made
        if end is not None:
            self.ending -= 1
            record.account.agents -= 1
        record.dropped = True
        if record.made:
            self._observer.gone(record)
        effects.append(Removed(record))

    def end_some(self, calls: Unfinished, effects: list[Effect], now: float) -> None:
        """End `ENDED_AT_ONCE` of these, and note the others for the next turn: there may be ten thousand."""
        for _ in range(min(ENDED_AT_ONCE, len(calls.left))):
            calls.finish(calls.left.popleft(), effects, now)
        if calls.left:
            self.timers.add(now, calls)

    # ------------------------------------------------------------ draining

    def drain_by(self, deadline: float) -> None:
        """Take no new calls; what is accepted may go on until ``deadline``. A later call may only shorten it."""
        cut = None
        if self.drain is not None:
            if self.drain.settled or deadline >= self.drain.deadline:
                return
            self.drain.settled = True
            cut = self.drain.cut
        self.drain = DrainEnd(deadline, cut)
        self.timers.add(deadline, self.drain)

    def give_up_all(self, effects: list[Effect], now: float) -> int:
        """Answer all that is open with `HostStopping`, but for the ends of agents; how many calls that were."""
        left = [ticket for ticket in self.tasks.values() if ticket.op != END]
        self._give_up(left, effects, now)
        return len(left)

    def _give_up(self, tickets: list[Ticket], effects: list[Effect], now: float) -> None:
        for ticket in tickets:
            if not ticket.settled:
                # In a cluster HostStopping says that nothing was executed: such a call goes elsewhere.
                begun = ticket.state >= State.RUNNING and ticket.agent.agent_id.startswith(CLUSTER)
                cut = errors.CallLost if begun else errors.HostStopping
                error = cut(f"the host stopped: {ticket.label} was {_phase(self, ticket, now)}")
                self.give_up(ticket, error, effects, now)

    def end_agents(self, effects: list[Effect], now: float) -> bool:
        """The calls of a drain are over: end the agents that have hooks. True if any is still to end."""
        for record in list(self.agents.values()):
            if record.spec.end is not None:
                self.forget_agent(record, effects, now, "was stopped")
        return self.ending > 0

    def wait_for_ends(self, cut: int, effects: list[Effect], now: float) -> bool:
        """All calls were answered: give agents a moment to end. False if they have had it, or none has a hook."""
        assert self.drain is not None
        if self.drain.cut is None:
            if self.end_agents(effects, now):
                self.drain = DrainEnd(now + ENDS_S, cut)
                self.timers.add(self.drain.deadline, self.drain)
                return True
        else:
            self._give_up([ticket for ticket in self.tasks.values() if ticket.op == END], effects, now)
        return False

    def end_drain(self, cut: int, effects: list[Effect]) -> None:
        """Nothing is open any more: release the threads that wait for a slot. ``cut``: calls answered unfinished."""
        while (waiting := self.slots.next(beyond=True)) is not None:
            _resume(waiting, effects)
        if self.drain is not None:
            self.drain.settled = True
            cut += self.drain.cut or 0
        self.drained = True
        self.fetches.close(effects)
        effects.append(Drained(cut, self.ending))


_OUTCOMES = {
    "CallTimeout": Outcome.TIMEOUT, "CallCancelled": Outcome.CANCELLED, "DeadlockError": Outcome.DEADLOCK,
    "HostBusy": Outcome.REFUSED, "HostStopping": Outcome.LOST, "AgentDeleted": Outcome.LOST, "CallLost": Outcome.LOST,
    "AgentCrashed": Outcome.LOST, "HostLost": Outcome.LOST,
}  # fmt: skip


def _own_call(
    host: Peer, number: int, record: AgentRecord, name: str, body: Sequence[Frame], op: str, method: MethodSpec | None,
    now: float,
) -> Ticket:  # fmt: skip
    call = Call(number, 0, 0, record.agent_id, name, (), {}, body)
    return Ticket(host, call, f"{host.prefix}-{number}", record, op, method, True, None, now)


def _phase(calls: Calls, ticket: Ticket, now: float) -> str:
    return phase(ticket, now, calls.config.capacity, calls.lingering)


def _outcome_of(reply: Reply) -> Outcome:
    if reply.code == Code.BUSY:
        return Outcome.REFUSED
    if reply.code != Code.HOST_ERROR:
        return Outcome.ERROR
    name, _ = read_error(reply)
    return _OUTCOMES.get(name, Outcome.ERROR)


def error_of(ticket: Ticket, exc: ZmqAgentsError) -> Reply:
    """``exc`` as the answer to ``ticket``."""
    return error_reply(exc, agent=ticket.agent.agent_id, method=ticket.name, call_id=ticket.task_id)


def _resume(ticket: Ticket, effects: list[Effect]) -> None:
    effects.append(Resume(ticket, ticket.wait_error))
    ticket.wait_error = None
