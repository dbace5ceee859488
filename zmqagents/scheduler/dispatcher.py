"""Who runs next: the pure heart of the host. Events in, effects out, time passed as an argument.

No socket, no thread, no clock, no lock: one thread (the broker's) calls `Dispatcher`, hands over what
happened and carries out the effects it gets back, in order. An accepted call is a `Ticket`:

    PARKED   an argument is the unfinished result of another call; holds nothing
    QUEUED   in the mailbox of its agent, for its turn
    READY    has its turn, waits for one of the ``capacity`` slots
    RUNNING  in a worker thread (holds a slot) or on the event loop (holds none)
    WAITING  its code waits for other calls; a thread has given its slot back
    DONE     answered, and its code has returned

Two things are shared and both are given back in `_release`: the *turn* of an agent (one call at a time
by default, arrival order) and the *slots*. A call that waits keeps its turn and gives up its slot, so
waiting costs no capacity; when what it waits for is there, it takes a slot again, ahead of new calls.
The call that makes an agent has the agent's turn from the start, so that all others queue behind it.

*Answering* a call (`_settle`) and its code *returning* (`_release`) are two events: a call whose deadline
passes is answered at once, while its thread may go on until it looks at ``current_call().cancelled``.
From then on it may neither call nor wait.

Deadlock (`waits`). A wait that could never end is refused with `DeadlockError`, so nothing is ever stuck.
It is looked for whenever a call begins to wait, and when a call that somebody may wait for begins to queue.
Where the class is ``reentrant``, a call that comes back in its own chain is let in beside the turn instead,
at that moment and not before: two calls of such an agent never run at the same time.

What this module decides with lies below it: `tickets` (the records and the effects), `admission` (what is
accepted at all), `slots`, `timers` and `waits`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from .. import errors
from ..agents.spec import ClassSpec
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..wire.messages import Call, Flag, Op, Reply, error_reply, task_id_of
from . import admission, wait_graph
from .admission import Admission
from .effects import Answer, Begin, Drained, Effect, Interrupt, Keep, Lookup, Pending, Removed, Resume, Start
from .records import AgentRecord, Counters, ParkedFetch, Peer, State, Ticket, phase
from .slots import Slots
from .timers import Timers

_NOT_SHORT = Flag.ATTRIBUTE | Flag.STREAM | Flag.RESENT
STORE_PATIENCE_S = 3.0  # the store thread answers before, even if the store itself does not

__all__ = [
    "AgentRecord", "Answer", "Begin", "Dispatcher", "Drained", "Effect", "Interrupt", "Keep", "Lookup", "Peer",
    "Pending", "Removed", "Resume", "Start", "State", "Ticket", "error_reply",
]  # fmt: skip


class Dispatcher:
    """See the module's docstring. ``find_class`` gives a class by name or raises `UnknownClass`.

    ``tasks`` holds every ticket that is not answered, by task id.
    """

    def __init__(self, config: BrokerConfig, find_class: Callable[[str], ClassSpec]) -> None:
        self.config = config
        self.agents: dict[str, AgentRecord] = {}
        self.tasks: dict[str, Ticket] = {}
        self.counters = Counters()
        self._door = Admission(config, find_class, self.agents, self.tasks)
        self._slots = Slots(config.capacity)
        self._news: deque[tuple[Ticket, Reply]] = deque()  # settled; dependents and waiters are still to be told
        self._timers: Timers[Ticket | ParkedFetch] = Timers()
        self.queued_bytes = 0  # of the arguments of calls that have not started
        self._shares = config.pool_type == "redis"  # results are found from other hosts, and theirs from here
        self.store_full = ""  # why no call is taken that would leave a result in the store; "": they are
        self._lingering = 0  # settled calls whose code has not returned
        self._drain_deadline: float | None = None
        self._drained = False

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._slots.running

    @property
    def blocked(self) -> int:
        """Threads that stand idle because their call waits."""
        return self._slots.blocked

    def __repr__(self) -> str:
        queued = sum(record.queued for record in self.agents.values())
        return (
            f"<Dispatcher [Calls: {len(self.tasks)} open, {self.running} running, {self.blocked} waiting, "
            f"{queued} queued, {self._slots.ready} ready | Agents: {len(self.agents)}]>"
        )

    # ------------------------------------------------------------ events: calls

    def on_call(
        self, peer: Peer, call: Call, now: float, *, parent: Ticket | None = None, wait: bool = False
    ) -> list[Effect]:
        """A call came in. ``parent``: the call of this host whose code made it; ``wait``: and waits for it."""
        effects: list[Effect] = []
        waiting = parent if wait else None
        try:
            ticket = self._accept(peer, call, now, parent, waiting)
        except ZmqAgentsError as exc:
            self._refuse(peer, call, exc, waiting, effects)
            return effects
        if ticket is None:  # it came twice, and is answered once
            self._go_on(waiting, effects)
            return effects
        if self._shares and call.flags & Flag.DETACHED:
            effects.append(Begin(ticket.task_id))
        if call.deps:
            ticket.far = call.options.get("far")
            self._park(ticket, call.deps, effects)
        if ticket.deps is None:
            self._enqueue(ticket, now, effects)
        if ticket.came_by and ticket.state <= State.QUEUED:
            self._refuse_if_stuck(ticket, effects, now)
        if waiting is not None:
            self._wait(waiting, [ticket], False, effects, now)
        return self._end(effects, now)

    # A call that begins and ends before anything else happens needs no place in the books: nobody could look it up.

    def start_short(self, peer: Peer, call: Call, now: float) -> Ticket | None:
        """A running ticket, for the caller to run at once; None: it is a matter for `on_call`, and nothing is changed.

        For what is common: a call from outside, without dependencies and options, of a quick method of an idle agent,
        while there is a free slot and nothing to refuse. That leaves out of `on_call` all that is about waiting: the
        mailbox, the wait-for graph, the bytes that are queued. The rest, turn and slot and deadline, follow by `enter`
        as soon as something else may happen before its end; otherwise its end is `end_short`.
        """
        record = self.agents.get(call.agent)
        if record is None or record.holders or not record.made:  # whoever queues has seen a holder
            return None
        method = record.spec.methods.get(call.method)
        if method is None or not method.pace.quick or method.concurrent or call.flags & _NOT_SHORT:
            return None
        config = self.config
        if (
            self._slots.running >= config.capacity
            or len(self.tasks) >= config.max_calls
            or len(peer.calls) >= config.max_calls_per_client
            or self._drain_deadline is not None
            or (call.flags & Flag.DETACHED and (self._shares or self.store_full))
        ):
            return None
        task_id = f"{peer.prefix}-{call.call_id}"
        if task_id in self.tasks or task_id in self._door.early_cancels:
            return None
        deadline = now + call.time_ms / 1000 if call.time_ms else None
        ticket = Ticket(peer, call, task_id, record, "", method, True, deadline, now)
        ticket.state = State.RUNNING
        return ticket

    def enter(self, ticket: Ticket) -> None:
        """A ticket of `start_short` goes on while other things happen: from now on it is a call like any other."""
        ticket.agent.seat(ticket)
        self._slots.take(ticket)  # free since `start_short`
        self._book(ticket)

    def end_short(self, ticket: Ticket) -> None:
        """A ticket of `start_short` has ended and nothing else has happened: its reply is all that is left of it."""
        ticket.settled = True
        ticket.state = State.DONE
        ticket.context = None  # as in `_release`
        ticket.agent.calls += 1
        self.counters.accepted += 1
        self.counters.answered += 1

    def on_done(self, ticket: Ticket, reply: Reply, now: float) -> list[Effect]:
        """The code of ``ticket`` has returned; ``reply`` is what it ended in."""
        effects: list[Effect] = []
        if ticket.state is State.DONE:
            return effects
        if ticket.settled:
            self._lingering -= 1
        else:
            self._settle(ticket, reply, effects)
            if ticket.op == Op.CREATE and not reply.code:
                self._made(ticket.agent, now, effects)
            if self._news:  # before the slot is freed: who waited for this goes on ahead of new calls
                self._spread(effects, now)
        self._release(ticket, effects, now)
        return self._end(effects, now)

    def on_cancel(self, peer: Peer, call_id: int, task_id: str, now: float, *, alone: bool = False) -> list[Effect]:
        """Cancel a call and (unless ``alone``) the calls that it has made: the peer's own by ``call_id``, or any by
        ``task_id``.

        A cancel that arrives before its call is remembered, and that call never runs.
        """
        effects: list[Effect] = []
        ticket = self.tasks.get(task_id) if task_id else peer.calls.get(call_id)
        if ticket is not None:
            self._cancel(ticket, effects, now, alone=alone)
        elif not task_id and call_id in peer.fetches:
            self._forget_fetch(peer.fetches[call_id])
        else:
            self._door.cancel_early(task_id or task_id_of(peer.prefix, call_id))
        return self._end(effects, now)

    def on_detach(self, peer: Peer, now: float) -> list[Effect]:
        """The peer is gone for good: its plain calls are cancelled, its detached ones go on."""
        effects: list[Effect] = []
        peer.gone = True
        for fetch in list(peer.fetches.values()):
            self._forget_fetch(fetch)
        for ticket in list(peer.calls.values()):
            if not ticket.flags & Flag.DETACHED:
                self._cancel(ticket, effects, now)
        return self._end(effects, now)

    def on_revoke(self, peer: Peer, error: ZmqAgentsError, now: float) -> list[Effect]:
        """The user of ``peer`` may not be here any more: ``error`` is what all that it asked for ends in."""
        effects: list[Effect] = []
        for fetch in list(peer.fetches.values()):
            self._forget_fetch(fetch)
            effects.append(Answer(peer, fetch.call_id, error_reply(error)))
        for ticket in [ticket for ticket in self.tasks.values() if ticket.peer.user == peer.user]:
            if not ticket.settled:  # by the end of the call that has made it
                self.counters.cancelled += 1
                self._give_up(ticket, error, effects, now)
        return self._end(effects, now)

    # ------------------------------------------------------------ events: waiting

    def on_wait(self, ticket: Ticket, task_ids: Iterable[str], now: float, *, any_of: bool = False) -> list[Effect]:
        """The code of ``ticket`` waits for calls of this host: all of them, or ``any_of`` them.

        A thread waits once at a time. A coroutine may have several waits, which all count as needed.
        """
        effects: list[Effect] = []
        refusal = self._no_wait(ticket)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        found = [self.tasks.get(task_id) for task_id in dict.fromkeys(task_ids)]
        targets = [target for target in found if target is not None]
        if not targets or (any_of and (ticket.on_loop or len(targets) < len(found))):
            self._go_on(ticket, effects)  # what it waits for is there already
            return effects
        self._wait(ticket, targets, any_of, effects, now)
        return self._end(effects, now)

    def on_unwait(self, ticket: Ticket, task_ids: Iterable[str]) -> list[Effect]:
        """A coroutine has given up one wait, for exactly these calls."""
        for task_id in dict.fromkeys(task_ids):
            target = self.tasks.get(task_id)
            if target is not None:
                wait_graph.drop_edge(ticket, target)
        self._run_again(ticket)
        return []

    def on_await_outside(self, ticket: Ticket, task_id: str, now: float) -> list[Effect]:
        """A coroutine awaits the call ``task_id`` of another host, beside whatever else it awaits."""
        effects: list[Effect] = []
        refusal = self._no_wait(ticket)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        before = ticket.outside
        ticket.state = State.WAITING
        ticket.outside = (before or frozenset()) | {task_id}
        cycle = self._closes_cycle(ticket, None, now, effects) if ticket.returns else None
        if cycle is not None:
            ticket.outside = before
            self._run_again(ticket)
            effects.append(Resume(ticket, wait_graph.deadlock_error(cycle)))
        return self._end(effects, now)

    def on_unawait_outside(self, ticket: Ticket, task_id: str) -> list[Effect]:
        """That wait is over."""
        if ticket.on_loop and ticket.outside is not None:
            ticket.outside = (ticket.outside - {task_id}) or None
            self._run_again(ticket)
        return []

    @staticmethod
    def _run_again(ticket: Ticket) -> None:
        """A coroutine that awaits nothing more is running."""
        if ticket.state is State.WAITING and not ticket.waits_for and not ticket.outside:
            ticket.state = State.RUNNING

    def on_wait_outside(self, ticket: Ticket, now: float, *, task_ids: Iterable[str] = ()) -> list[Effect]:
        """The code of ``ticket`` waits for something that this host cannot see.

        ``task_ids``: the calls of other hosts that it waits for, where they are known; a call that comes back
        from one of them and needs this one is a deadlock. Not known: any call that came back in its chain.
        """
        effects: list[Effect] = []
        refusal = self._no_wait(ticket)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        if ticket.on_loop:  # it has no slot to give, and may await other things meanwhile
            return effects
        ticket.state = State.WAITING
        ticket.outside = frozenset(task_ids)
        cycle = self._closes_cycle(ticket, None, now, effects) if ticket.returns else None
        if cycle is None:
            self._give_slot_back(ticket, effects, now)
        else:
            ticket.state, ticket.outside = State.RUNNING, None
            effects.append(Resume(ticket, wait_graph.deadlock_error(cycle)))
        return self._end(effects, now)

    def on_wait_over(self, ticket: Ticket, now: float) -> list[Effect]:
        """The wait of ``ticket`` ended from its own side (it timed out, or what is outside is there)."""
        effects: list[Effect] = []
        if ticket.state is State.WAITING and not ticket.on_loop:
            self._wake(ticket, effects, now)
        return self._end(effects, now)

    # ------------------------------------------------------------ events: results

    def on_fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float, now: float) -> list[Effect]:
        """A client asks for the result of ``task_id`` and would wait ``timeout_s`` for it."""
        refusal: ZmqAgentsError | None = None
        if self._drained:
            refusal = errors.HostStopping("the host has stopped")
        elif len(peer.fetches) >= self.config.max_calls_per_client and not peer.local:
            refusal = errors.HostBusy(f"this client has {len(peer.fetches)} fetches open (max_calls_per_client)")
        if refusal is not None:
            return [Answer(peer, call_id, error_reply(refusal, call_id=task_id))]
        ticket = self.tasks.get(task_id)
        if ticket is None and not self._shares:
            return [Lookup(peer, call_id, task_id)]
        if ticket is not None and timeout_s <= 0:
            return [Pending(peer, call_id)]
        if call_id in peer.fetches:
            self._forget_fetch(peer.fetches[call_id])
        fetch = ParkedFetch(peer, call_id, ticket)
        peer.fetches[call_id] = fetch
        patience_s = min(timeout_s, self.config.max_timeout_seconds)
        if ticket is None:
            patience_s *= 1 - call_id % 64 / 256  # thousands that came together are not renewed together
            self._timers.add(now + patience_s + STORE_PATIENCE_S, fetch)
            return [Lookup(peer, call_id, task_id, None, fetch, patience_s)]
        if ticket.fetches is None:
            ticket.fetches = {}
        ticket.fetches[fetch] = None
        self._timers.add(now + patience_s, fetch)
        return []

    def on_found(self, fetch: ParkedFetch, reply: Reply | None) -> list[Effect]:
        """The shared store's answer to a fetch; None: the call is not finished."""
        if fetch.settled:
            return []
        self._forget_fetch(fetch)
        if reply is None:
            return [Pending(fetch.peer, fetch.call_id)]
        return [Answer(fetch.peer, fetch.call_id, reply)]

    def on_dep(self, ticket: Ticket, task_id: str, reply: Reply, now: float) -> list[Effect]:
        """The store's answer for an argument of a parked call."""
        effects: list[Effect] = []
        self._dep_done(ticket, task_id, reply, effects, now)
        return self._end(effects, now)

    # ------------------------------------------------------------ events: time, agents, the end

    def next_deadline(self) -> float | None:
        """When `on_tick` is due at the latest."""
        due = self._timers.next_due()
        if self._drain_deadline is not None and not self._drained:
            return self._drain_deadline if due is None else min(due, self._drain_deadline)
        return due

    def on_tick(self, now: float) -> list[Effect]:
        """Answer what is overdue."""
        effects: list[Effect] = []
        for late in self._timers.take_due(now):
            if isinstance(late, Ticket):
                self._time_out(late, effects, now)
            else:
                self._forget_fetch(late)
                effects.append(Pending(late.peer, late.call_id))
        if self._drain_deadline is not None and now >= self._drain_deadline and not self._drained:
            return self._cut_short(effects, now)
        return self._end(effects, now)

    def on_drain(self, deadline: float, now: float) -> list[Effect]:
        """Take no new calls; what is accepted may go on until ``deadline``. A later call may only shorten it."""
        if self._drain_deadline is None or deadline < self._drain_deadline:
            self._drain_deadline = deadline
        return self.on_tick(now)

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    def remove_agent(self, agent_id: str, now: float) -> list[Effect]:
        """Delete an agent: calls that run go on to their end, streams and all others get `AgentDeleted`."""
        record = self.agents.get(agent_id)
        if record is None:
            raise self._door.unknown_agent(agent_id)
        effects: list[Effect] = []
        self._forget_agent(record, effects, now, "was deleted")
        return self._end(effects, now)

    def _end(self, effects: list[Effect], now: float) -> list[Effect]:
        """The end of every event: tell those who waited for what was settled; look whether the drain is over."""
        if self._news:
            self._spread(effects, now)
        if self._drain_deadline is not None:
            if self._drained:
                return []
            if not self.tasks and not self._lingering:
                self._drained = True
                effects.append(Drained(0))
        return effects

    # ------------------------------------------------------------ accepting

    def _accept(
        self, peer: Peer, call: Call, now: float, parent: Ticket | None, waiting: Ticket | None
    ) -> Ticket | None:
        """A ticket for ``call``, None if there is one already; raises what refuses it."""
        if waiting is not None:
            refusal = self._no_wait(waiting)
            if refusal is not None:
                raise refusal
        if parent is not None and parent.state is State.DONE:  # a thread that the agent left behind
            parent = None
        task_id = f"{peer.prefix}-{call.call_id}"
        if task_id in self.tasks:
            self._take_over(self.tasks[task_id], peer)
            return None
        deadline = now + call.time_ms / 1000 if call.time_ms else None
        if parent is not None and parent.deadline is not None and (deadline is None or parent.deadline < deadline):
            deadline = parent.deadline
        if self._drain_deadline is not None and parent is None:
            raise errors.HostStopping("the host is stopping and takes no new calls")
        if self.store_full and call.flags & Flag.DETACHED:
            raise errors.StoreFull(self.store_full)
        size = sum(map(len, call.body))
        self._door.check(peer, call, task_id, deadline, now, parent, size)
        record, op, method = self._door.target(call, now)
        exclusive = not method.concurrent if method is not None else op == Op.CREATE
        if op != Op.CREATE and not record.has_room():
            self._door.check_busy(record, call, exclusive, parent)
        if self.queued_bytes + size > self.config.max_queued_bytes and not self._has_place(record, op, exclusive, call):
            self._door.check_bytes(peer, size, self.queued_bytes)
        ticket = Ticket(peer, call, task_id, record, op, method, exclusive, deadline, now)
        ticket.queued_bytes = size
        self.queued_bytes += size
        if parent is not None:
            ticket.parent = parent
            if parent.spawned is None:
                parent.spawned = {}
            parent.spawned[ticket] = None
        elif "chain" in call.options:
            wait_graph.note_chain(ticket, call.options["chain"], self.tasks)
        if op == Op.CREATE:
            self.agents[record.agent_id] = record
            record.owner = peer.user
            record.seat(ticket)
        self._book(ticket)
        return ticket

    def _book(self, ticket: Ticket) -> None:
        ticket.agent.calls += 1
        ticket.peer.calls[ticket.call_id] = ticket
        self.tasks[ticket.task_id] = ticket
        self.counters.accepted += 1
        if ticket.deadline is not None:
            self._timers.add(ticket.deadline, ticket)

    def _has_place(self, record: AgentRecord, op: str, exclusive: bool, call: Call) -> bool:
        """Whether a call that takes a slot can have it at once."""
        has_turn = op == Op.CREATE or record.has_room() or (record.made and not exclusive)
        return has_turn and self._slots.running < self.config.capacity and not call.deps

    def _unqueue(self, ticket: Ticket) -> None:
        self.queued_bytes -= ticket.queued_bytes
        ticket.queued_bytes = 0

    def _refuse(
        self, peer: Peer, call: Call, exc: ZmqAgentsError, waiting: Ticket | None, effects: list[Effect]
    ) -> None:
        self.counters.refused += 1
        task_id = task_id_of(peer.prefix, call.call_id)
        reply = error_reply(exc, agent=call.agent, method=call.method, call_id=task_id)
        if isinstance(exc, errors.CallCancelled) and call.flags & Flag.DETACHED:
            effects.append(Keep(task_id, reply))  # whoever asks for it must not read that it is unknown
        effects.append(Answer(peer, call.call_id, reply))
        self._go_on(waiting, effects)

    @staticmethod
    def _go_on(waiting: Ticket | None, effects: list[Effect]) -> None:
        """The wait of ``waiting`` is over before it began."""
        if waiting is not None and not waiting.on_loop:
            effects.append(Resume(waiting))

    def _take_over(self, ticket: Ticket, peer: Peer) -> None:
        """A call that is open came again: ignored, but answered to a peer that has come back under its old name."""
        if ticket.peer is peer:
            return
        if not ticket.peer.gone or ticket.peer.user != peer.user:
            raise errors.RemoteProtocolError(f"{ticket.task_id} is in use by another connection")
        ticket.peer.calls.pop(ticket.call_id, None)
        ticket.peer = peer
        peer.calls[ticket.call_id] = ticket

    # ------------------------------------------------------------ parked: arguments that are not there yet

    def _park(self, ticket: Ticket, deps: Sequence[str], effects: list[Effect]) -> None:
        for task_id in wait_graph.add_deps(ticket, deps, self.tasks):
            effects.append(Lookup(ticket.peer, ticket.call_id, task_id, ticket))

    def _dep_done(self, ticket: Ticket, task_id: str, reply: Reply, effects: list[Effect], now: float) -> None:
        if ticket.settled or ticket.dep_replies is None or not ticket.deps or task_id not in ticket.deps:
            return
        del ticket.deps[task_id]
        ticket.dep_replies[task_id] = reply
        if reply.code:  # an argument that failed fails the call, with the argument's own error
            self._drop(ticket, reply, effects, now)
            return
        if ticket.deps:
            return
        ticket.deps = None
        record = ticket.agent
        if record.removed:
            gone = errors.AgentDeleted(f"{record.agent_id} was deleted before {ticket.name} could start")
            self._drop(ticket, self._error(ticket, gone), effects, now)
            return
        self._enqueue(ticket, now, effects)
        if ticket.state is State.QUEUED:
            self._check_unparked(ticket, effects, now)

    def _check_unparked(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """A parked call has begun to queue: what would have refused a new one refuses it now."""
        record = ticket.agent
        if record.queued > self.config.max_mailbox:
            refusal = self._door.full_mailbox(record)
        elif record.options.on_busy == "reject" and ticket.exclusive and not wait_graph.reenters(ticket):
            refusal = admission.busy(record)
        else:
            if ticket.waiters or ticket.dependents or ticket.came_by:
                self._refuse_if_stuck(ticket, effects, now)
            return
        self._drop(ticket, self._error(ticket, refusal), effects, now)

    def _drop(self, ticket: Ticket, reply: Reply, effects: list[Effect], now: float) -> None:
        """Answer a call that has not started and never will."""
        self._settle(ticket, reply, effects)
        self._release(ticket, effects, now)

    # ------------------------------------------------------------ turns and slots

    def _enqueue(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """``ticket`` has all its arguments: let it run, or queue it for its turn."""
        record = ticket.agent
        if ticket.turn:  # it makes the agent
            self._admit(ticket, now, effects)
        elif record.has_room() or (record.made and not ticket.exclusive):
            record.seat(ticket)
            self._admit(ticket, now, effects)
        else:
            record.queue(ticket)

    def _admit(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """``ticket`` may run as soon as there is a slot."""
        if ticket.on_loop or self._slots.take(ticket):
            self._start(ticket, now, effects)

    def _start(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        ticket.state = State.RUNNING
        ticket.started = now
        self._unqueue(ticket)
        effects.append(Start(ticket))

    def _release(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The code of ``ticket`` will not go on: free its turn and its slot, start who is next."""
        state, record = ticket.state, ticket.agent
        ticket.state = State.DONE
        if state < State.RUNNING:
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
            if ticket.op == Op.CREATE and not record.made and not record.removed:
                self._forget_agent(record, effects, now, "could not be made")
            elif record.removed:
                self._removed_if_idle(record, effects)
            elif had_turn and record.mailbox:
                self._next_of(record, now, effects)
        if self._slots.free(ticket):
            self._fill_slots(effects, now)

    def _leave_queue(self, ticket: Ticket, state: State) -> None:
        if state is State.QUEUED and ticket.agent.mailbox is not None:
            ticket.agent.mailbox.pop(ticket, None)
        elif state is State.READY:
            self._slots.withdraw(ticket)
        elif state is State.PARKED:
            wait_graph.drop_deps(ticket)

    def _next_of(self, record: AgentRecord, now: float, effects: list[Effect]) -> None:
        mailbox, limit = record.mailbox, record.options.max_concurrency
        while mailbox and len(record.holders) < limit:
            ticket, _ = mailbox.popitem(last=False)
            record.seat(ticket)
            self._admit(ticket, now, effects)

    def _made(self, record: AgentRecord, now: float, effects: list[Effect]) -> None:
        """The agent is there: what needs no turn may run. The turn itself is free when its maker is released."""
        record.made = True
        for ticket in [ticket for ticket in record.mailbox or () if not ticket.exclusive]:
            self._leave_queue(ticket, State.QUEUED)
            record.seat(ticket)
            self._admit(ticket, now, effects)

    def _fill_slots(self, effects: list[Effect], now: float) -> None:
        while (ticket := self._slots.next()) is not None:
            if ticket.state is State.READY:
                self._start(ticket, now, effects)
            else:
                self._resume(ticket, effects)

    def _resume(self, ticket: Ticket, effects: list[Effect]) -> None:
        effects.append(Resume(ticket, ticket.wait_error))
        ticket.wait_error = None

    # ------------------------------------------------------------ waiting

    def _no_wait(self, ticket: Ticket) -> ZmqAgentsError | None:
        """Why ``ticket`` may not wait now, None if it may."""
        if ticket.ended is not None:
            return type(ticket.ended)(str(ticket.ended))
        if self._drained:
            return errors.HostStopping("the host has stopped")
        if ticket.state is State.DONE:
            return errors.LocalProtocolError(f"{ticket.label} has returned and cannot wait any more")
        config = self.config
        if ticket.slot and self.blocked >= config.max_threads - config.capacity:
            return errors.HostBusy(
                f"{self.blocked} calls of this host wait for others: max_threads={config.max_threads} allows no more "
                f"beside the {config.capacity} that may run (capacity)"
            )
        return None

    def _wait(self, ticket: Ticket, targets: list[Ticket], any_of: bool, effects: list[Effect], now: float) -> None:
        ticket.wait_any = any_of
        cycle = self._closes_cycle(ticket, targets, now, effects)
        if cycle is not None:
            error = wait_graph.deadlock_error(cycle)
            for target in targets:  # its own calls among them are over: nobody will ever take their results
                own = ticket.spawned is not None and target in ticket.spawned
                if own and target.state < State.RUNNING and wait_graph.stuck_with(ticket, [target]):
                    self._drop(target, self._error(target, error), effects, now)
            effects.append(Resume(ticket, error))
            return
        wait_graph.add_edges(ticket, targets)
        ticket.state = State.WAITING
        self._give_slot_back(ticket, effects, now)

    def _give_slot_back(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        if ticket.slot:
            self._slots.lend(ticket)
            self._fill_slots(effects, now)

    def _wake(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """What ``ticket`` waited for is there: it goes on as soon as it has a slot again."""
        wait_graph.drop_edges(ticket)
        ticket.state = State.RUNNING
        if ticket.owed:
            self._slots.reclaim(ticket)
            self._fill_slots(effects, now)

    def _closes_cycle(
        self, ticket: Ticket, targets: list[Ticket] | None, now: float, effects: list[Effect]
    ) -> list[Ticket] | None:
        """The cycle that ``ticket`` closes by waiting for ``targets``, after all that may re-enter has been let in."""
        while stuck := wait_graph.stuck_with(ticket, targets):
            inner = next((node for node in stuck if isinstance(node, Ticket) and wait_graph.reenters(node)), None)
            if inner is None:
                self.counters.deadlocks += 1
                return wait_graph.closing_cycle(ticket, stuck, targets)
            self._leave_queue(inner, State.QUEUED)
            inner.agent.seat(inner, beside=True)
            self._admit(inner, now, effects)
        return None

    def refuse_returns(self, ticket: Ticket, error: ZmqAgentsError, now: float) -> list[Effect]:
        """End the calls that came back in the chain of ``ticket`` and have not started: they wait for it."""
        effects: list[Effect] = []
        for back in list(ticket.returns or ()):
            if not back.settled and back.state < State.RUNNING:
                self._drop(back, self._error(back, error), effects, now)
        return self._end(effects, now)

    def _refuse_if_stuck(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """End a call that has begun to park or queue if that closes a cycle through those who wait for it."""
        cycle = self._closes_cycle(ticket, None, now, effects)
        if cycle is not None:
            error = wait_graph.deadlock_error(cycle)
            self._drop(ticket, self._error(ticket, error), effects, now)

    # ------------------------------------------------------------ answering

    def _error(self, ticket: Ticket, exc: ZmqAgentsError) -> Reply:
        return error_reply(exc, agent=ticket.agent.agent_id, method=ticket.name, call_id=ticket.task_id)

    def _settle(self, ticket: Ticket, reply: Reply, effects: list[Effect]) -> None:
        """Answer everyone who asked for ``ticket``. Its code may still be running.

        Calls of this host that wait for it are told later, in `_spread`: a chain of them may be long.
        """
        ticket.settled = True
        self.counters.answered += 1
        if ticket.deadline is not None:
            self._timers.over()
        ticket.body = ()
        self._unqueue(ticket)
        peer = ticket.peer
        peer.calls.pop(ticket.call_id, None)
        del self.tasks[ticket.task_id]
        if ticket.flags & Flag.DETACHED:
            effects.append(Keep(ticket.task_id, reply))
        if not peer.gone:
            effects.append(Answer(peer, ticket.call_id, reply))
        if ticket.fetches:
            for fetch in list(ticket.fetches):
                self._forget_fetch(fetch)
                effects.append(Answer(fetch.peer, fetch.call_id, reply))
        if ticket.dependents or ticket.waiters:
            self._news.append((ticket, reply))
        parent = ticket.parent
        if parent is not None and parent.spawned is not None:
            parent.spawned.pop(ticket, None)
        for task_id in ticket.came_by:
            link = self.tasks.get(task_id)
            if link is not None and link.returns is not None:
                link.returns.pop(ticket, None)

    def _spread(self, effects: list[Effect], now: float) -> None:
        """Tell the calls that wait for what was settled; that may settle others."""
        while self._news:
            ticket, reply = self._news.popleft()
            dependents, ticket.dependents = ticket.dependents, None
            waiters, ticket.waiters = ticket.waiters, None
            for dependent in dependents or ():
                self._dep_done(dependent, ticket.task_id, reply, effects, now)
            for waiter in waiters or ():
                wanted = waiter.waits_for
                if wanted is not None and ticket in wanted:
                    del wanted[ticket]
                    if waiter.on_loop:
                        self._run_again(waiter)
                    elif waiter.wait_any or not wanted:
                        self._wake(waiter, effects, now)

    def _cancel(self, ticket: Ticket, effects: list[Effect], now: float, *, alone: bool = False) -> None:
        """Cancel ``ticket`` and (unless ``alone``) the calls that it has made."""
        if not ticket.settled:
            self.counters.cancelled += 1
            error = errors.CallCancelled(f"{ticket.label} was cancelled: {phase(ticket, now, self.config.capacity)}")
            self._give_up(ticket, error, effects, now, alone=alone)

    def _time_out(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        spent = now - ticket.accepted
        where = phase(ticket, now, self.config.capacity)
        error = errors.CallTimeout(f"{ticket.label} timed out after {spent:.3g} s: {where}")
        self.counters.timed_out += 1
        self._give_up(ticket, error, effects, now)

    def _give_up(
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
            self._settle(ticket, self._error(ticket, ticket.ended), effects)
            if ticket.state < State.RUNNING:
                self._release(ticket, effects, now)
                continue
            self._lingering += 1
            effects.append(Interrupt(ticket, alone))
            if ticket.state is State.WAITING:
                ticket.wait_error = ticket.ended
                self._wake(ticket, effects, now)

    def _forget_agent(self, record: AgentRecord, effects: list[Effect], now: float, why: str) -> None:
        record.removed = True
        if self.agents.get(record.agent_id) is record:
            del self.agents[record.agent_id]
        seated = [ticket for ticket in (*record.holders, *(record.beside or ())) if ticket.state < State.RUNNING]
        for ticket in [*seated, *(record.mailbox or ())]:
            if not ticket.settled:
                gone = errors.AgentDeleted(f"{record.agent_id} {why} before {ticket.name} could start")
                self._drop(ticket, self._error(ticket, gone), effects, now)
        for ticket in (*record.holders, *(record.beside or ())):
            if ticket.flags & Flag.STREAM:  # it may have no end of its own
                gone = errors.AgentDeleted(f"{record.agent_id} {why} in the middle of {ticket.name}")
                self._give_up(ticket, gone, effects, now)
        self._removed_if_idle(record, effects)

    @staticmethod
    def _removed_if_idle(record: AgentRecord, effects: list[Effect]) -> None:
        if not record.holders and not record.beside and not record.dropped:
            record.dropped = True
            effects.append(Removed(record))

    # ------------------------------------------------------------ timers and draining

    def _forget_fetch(self, fetch: ParkedFetch) -> None:
        fetch.settled = True
        self._timers.over()
        del fetch.peer.fetches[fetch.call_id]
        if fetch.ticket is not None and fetch.ticket.fetches is not None:
            del fetch.ticket.fetches[fetch]

    def _cut_short(self, effects: list[Effect], now: float) -> list[Effect]:
        """The grace is over: answer all that is left, and let go of every thread that waits."""
        left = list(self.tasks.values())
        for ticket in left:
            if not ticket.settled:
                where = phase(ticket, now, self.config.capacity)
                error = errors.HostStopping(f"the host stopped: {ticket.label} was {where}")
                self._give_up(ticket, error, effects, now)
        self._spread(effects, now)
        while (waiting := self._slots.next(beyond=True)) is not None:
            self._resume(waiting, effects)
        self._drained = True
        effects.append(Drained(len(left)))
        return effects
