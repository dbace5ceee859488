"""Who runs next: the pure heart of the host. Events in, effects out, time passed as an argument.

No socket, no thread, no clock, no lock: one thread (the broker's) calls `Dispatcher`, hands over what
happened and carries out the effects it gets back, in order. An accepted call is a `Ticket`:

    PARKED   an argument is the unfinished result of another call; holds nothing
    QUEUED   in the mailbox of its agent, for its turn
    READY    has its turn, waits for one of the ``capacity`` slots
    RUNNING  in a worker thread (holds a slot) or on the event loop (holds none)
    WAITING  its code waits for other calls and has given its slot back
    DONE     answered, and its code has returned

Two things are shared and both are given back in `_release`: the *turn* of an agent (one call at a time
by default, arrival order) and the *slots*. A call that waits keeps its turn and gives up its slot, so
waiting costs no capacity; when what it waits for is there, it takes a slot again, ahead of new calls.

*Answering* a call (`_settle`) and its code *returning* (`_release`) are two events: a call whose deadline
passes is answered at once, while its thread may go on until it looks at ``current_call().cancelled``.

Deadlock. The wait-for graph has an edge from a WAITING call to what it waits for, from a PARKED call
to its arguments, and from a QUEUED call to the calls that hold its agent's turn. READY and RUNNING calls
move by themselves. A wait that would close a cycle is refused with `DeadlockError`, so the graph never
has one; a turn shared by ``max_concurrency=n`` calls blocks only when all n are blocked.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Union

from . import errors
from .agent import AgentOptions, CallContext, ClassSpec, MethodSpec, new_agent_id
from .codec import pack
from .config import BrokerConfig
from .errors import ZmqAgentsError
from .frames import Call, Code, Flag, Op, Reply, task_id_of

__all__ = [
    "AgentRecord", "Answer", "Dispatcher", "Drained", "Effect", "Interrupt", "Keep", "Lookup", "Peer", "Pending",
    "Removed", "Resume", "Start", "State", "Ticket", "error_reply",
]  # fmt: skip


class State(IntEnum):
    PARKED = 0
    QUEUED = 1
    READY = 2
    RUNNING = 3
    WAITING = 4
    DONE = 5


def error_reply(exc: ZmqAgentsError, *, agent: str = "", method: str = "", call_id: str = "") -> Reply:
    """The host's own refusal as a reply; it arrives as exactly this class."""
    data = errors.describe(exc, agent=agent, method=method, call_id=call_id)
    del data["traceback"]  # the host's own frames help no caller
    return Reply(Code.HOST_ERROR, (pack(data),))


class Peer:
    """Whoever sent calls: a client's session, or the host itself (``local``)."""

    __slots__ = ("calls", "gone", "key", "local", "prefix")

    def __init__(self, prefix: str, *, key: Any = None, local: bool = False) -> None:
        self.prefix = prefix  # first half of its task ids
        self.key = key  # the broker's handle
        self.local = local
        self.calls: dict[int, Ticket] = {}  # accepted and not yet answered
        self.gone = False


class AgentRecord:
    """One agent: its class, its mailbox and who holds its turn. ``instance`` belongs to the host."""

    __slots__ = (
        "agent_id", "calls", "created", "holders", "instance", "mailbox", "options", "queued", "removed", "spec",
        "taken",
    )  # fmt: skip

    def __init__(self, agent_id: str, spec: ClassSpec, options: AgentOptions, now: float) -> None:
        self.agent_id = agent_id
        self.spec = spec
        self.options = options
        self.created = now
        self.instance: Any = None
        self.holders: list[Ticket] = []
        self.mailbox: deque[Ticket] | None = None  # made when first needed: most agents never queue
        self.queued = 0  # live tickets in the mailbox, which may also hold settled ones
        self.taken = 0  # live tickets that ever left the mailbox; tells how many are ahead of one
        self.calls = 0
        self.removed = False


class Ticket:
    """One accepted call."""

    __slots__ = (
        "accepted", "agent", "answered", "body", "call_id", "chain", "context", "dep_replies", "dependents", "deps",
        "deadline", "fetches", "flags", "gate", "method", "name", "on_loop", "op", "options", "parent", "peer", "place",
        "settled", "slot", "spawned", "started", "state", "task_id", "turn", "wait_any", "wait_error",
        "waiters", "waits_for",
    )  # fmt: skip

    def __init__(
        self, peer: Peer, call: Call, task_id: str, agent: AgentRecord, op: str, method: MethodSpec | None,
        deadline: float | None, now: float, parent: Ticket | None,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.call_id = call.call_id
        self.flags = call.flags
        self.name = call.method
        self.options = call.options
        self.body = call.body
        self.task_id = task_id
        self.agent = agent
        self.op = op  # "" for a method call, else what the host is to do
        self.method = method
        self.on_loop = method is not None and method.on_loop
        self.deadline = deadline
        self.accepted = now
        self.parent = parent
        self.state = State.PARKED
        self.started = 0.0
        self.place = 0
        self.turn = False  # holds the agent's turn
        self.slot = False  # holds one of the capacity slots
        self.settled = False  # answered
        self.context: CallContext | None = None  # set by the host when it starts
        self.gate: Any = None  # the worker's own lock, opened by Resume
        self.deps: set[str] | None = None  # results still missing among the arguments
        self.dep_replies: dict[str, Reply] | None = None
        self.dependents: list[Ticket] | None = None  # parked calls that take this one's result
        self.waiters: list[Ticket] | None = None  # WAITING calls that wait for this one
        self.waits_for: list[Ticket] | None = None
        self.wait_any = False
        self.wait_error: ZmqAgentsError | None = None  # told to the code when it goes on
        self.fetches: list[ParkedFetch] | None = None
        self.spawned: list[Ticket] | None = None  # calls made while running this one; for cancel
        self.chain: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """``agent.method``, as errors name it."""
        return f"{self.agent.agent_id}.{self.name}"


class ParkedFetch:
    """A FETCH that waits in the broker for a call to end."""

    __slots__ = ("call_id", "done", "peer")

    def __init__(self, peer: Peer, call_id: int) -> None:
        self.peer = peer
        self.call_id = call_id
        self.done = False


# ---------------------------------------------------------------- effects


class Start(NamedTuple):
    """Run the ticket: on the event loop if ``ticket.on_loop``, else in a worker thread."""

    ticket: Ticket


class Answer(NamedTuple):
    """Send ``reply`` to the peer's call ``call_id``."""

    peer: Peer
    call_id: int
    reply: Reply


class Pending(NamedTuple):
    """Tell the peer that its FETCH found the call still unfinished."""

    peer: Peer
    call_id: int


class Keep(NamedTuple):
    """Put ``reply`` into the store."""

    task_id: str
    reply: Reply


class Lookup(NamedTuple):
    """Ask the store for ``task_id``; the answer goes to the peer, or to ``on_dep`` if ``ticket`` is set."""

    peer: Peer
    call_id: int
    task_id: str
    ticket: Ticket | None = None


class Resume(NamedTuple):
    """Let the waiting code of ``ticket`` go on; with ``error`` its wait has failed."""

    ticket: Ticket
    error: ZmqAgentsError | None = None


class Interrupt(NamedTuple):
    """Set ``current_call().cancelled`` of the running ticket; cancel its task if it is on the loop."""

    ticket: Ticket


class Removed(NamedTuple):
    """The agent is deleted: drop the object."""

    agent: AgentRecord


class Drained(NamedTuple):
    """Nothing is left to do after `Dispatcher.on_drain`; ``cut`` calls were answered unfinished."""

    cut: int


Effect = Union[Start, Answer, Pending, Keep, Lookup, Resume, Interrupt, Removed, Drained]


@dataclass
class Counters:
    """Totals since the start."""

    accepted: int = 0
    answered: int = 0
    refused: int = 0
    timed_out: int = 0
    cancelled: int = 0
    deadlocks: int = 0


@dataclass
class Dispatcher:
    """See the module's docstring. ``find_class`` gives a class by name or raises `UnknownClass`."""

    config: BrokerConfig
    find_class: Callable[[str], ClassSpec]
    agents: dict[str, AgentRecord] = field(default_factory=dict)
    tasks: dict[str, Ticket] = field(default_factory=dict)  # every ticket that is not settled
    counters: Counters = field(default_factory=Counters)
    running: int = 0  # slots in use
    blocked: int = 0  # threads whose call is WAITING
    _ready: deque[Ticket] = field(default_factory=deque)
    _resuming: deque[Ticket] = field(default_factory=deque)
    _timers: list[tuple[float, int, Ticket | ParkedFetch]] = field(default_factory=list)
    _live_timers: int = 0
    _order: Any = field(default_factory=itertools.count)
    _open: set[Ticket] = field(default_factory=set)  # settled, but the code has not returned
    _drain_deadline: float | None = None
    _drained: bool = False

    def __repr__(self) -> str:
        queued = sum(record.queued for record in self.agents.values())
        return (
            f"<Dispatcher [Calls: {len(self.tasks)} open, {self.running} running, {self.blocked} waiting, "
            f"{queued} queued, {len(self._ready)} ready | Agents: {len(self.agents)}]>"
        )

    # ------------------------------------------------------------ events: calls

    def on_call(
        self, peer: Peer, call: Call, now: float, *, parent: Ticket | None = None, wait: bool = False
    ) -> list[Effect]:
        """A call came in. ``parent``: the call of this host whose code made it; ``wait``: and waits for it."""
        effects: list[Effect] = []
        try:
            ticket = self._accept(peer, call, now, parent)
        except ZmqAgentsError as exc:
            self.counters.refused += 1
            reply = error_reply(
                exc, agent=call.agent, method=call.method, call_id=task_id_of(peer.prefix, call.call_id)
            )
            effects.append(Answer(peer, call.call_id, reply))
            if wait and parent is not None:
                effects.append(Resume(parent))
            return effects
        if call.deps:
            self._park(ticket, call.deps, effects)
        if not ticket.deps and not ticket.settled:
            self._enqueue(ticket, now, effects)
        if wait and parent is not None:
            self._wait(parent, [ticket], False, effects, now)
        return effects

    def on_done(self, ticket: Ticket, reply: Reply, now: float) -> list[Effect]:
        """The code of ``ticket`` has returned; ``reply`` is what it ended in."""
        effects: list[Effect] = []
        if ticket.op == Op.CREATE and reply.code:
            self._forget_agent(ticket.agent, effects, now, "could not be made")
        if not ticket.settled:
            self._settle(ticket, reply, effects, now)
        self._release(ticket, effects, now)
        return self._check_drained(effects)

    def on_cancel(self, peer: Peer, call_id: int, task_id: str, now: float) -> list[Effect]:
        """Cancel a call: the peer's own by ``call_id``, or any by ``task_id``. Unknown ones are nothing."""
        effects: list[Effect] = []
        ticket = self.tasks.get(task_id) if task_id else peer.calls.get(call_id)
        if ticket is not None:
            self._cancel(ticket, effects, now)
        return self._check_drained(effects)

    def on_detach(self, peer: Peer, now: float) -> list[Effect]:
        """The peer is gone: its queued plain calls are dropped, detached and running ones go on."""
        effects: list[Effect] = []
        peer.gone = True
        for ticket in list(peer.calls.values()):
            if not ticket.flags & Flag.DETACHED:
                self._cancel(ticket, effects, now)
        return self._check_drained(effects)

    # ------------------------------------------------------------ events: waiting

    def on_wait(self, ticket: Ticket, task_ids: Iterable[str], now: float, *, any_of: bool = False) -> list[Effect]:
        """The code of ``ticket`` waits for calls of this host: all of them, or ``any_of`` them."""
        effects: list[Effect] = []
        found = [self.tasks.get(task_id) for task_id in task_ids]
        unfinished = [target for target in found if target is not None]
        if not unfinished or (any_of and len(unfinished) < len(found)):
            return [Resume(ticket)]  # what it waits for is there already
        self._wait(ticket, unfinished, any_of, effects, now)
        return effects

    def on_wait_outside(self, ticket: Ticket, now: float) -> list[Effect]:
        """The code of ``ticket`` waits for something that this host cannot see (another host's call)."""
        effects: list[Effect] = []
        if self.blocked + self.running >= self.config.max_threads:
            return [Resume(ticket, self._too_many_waits())]
        ticket.waits_for = []
        self._give_slot_back(ticket, effects, now)
        return effects

    def on_wait_over(self, ticket: Ticket, now: float) -> list[Effect]:
        """The wait of ``ticket`` ended from its own side (it timed out, or what is outside is there)."""
        effects: list[Effect] = []
        if ticket.waits_for is not None:
            self._wake(ticket, effects, now)
        return effects

    # ------------------------------------------------------------ events: results

    def on_fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float, now: float) -> list[Effect]:
        """A client asks for the result of ``task_id`` and would wait ``timeout_s`` for it."""
        ticket = self.tasks.get(task_id)
        if ticket is None:
            return [Lookup(peer, call_id, task_id)]
        if timeout_s <= 0:
            return [Pending(peer, call_id)]
        parked = ParkedFetch(peer, call_id)
        ticket.fetches = ticket.fetches or []
        ticket.fetches.append(parked)
        self._add_timer(now + min(timeout_s, self.config.max_timeout_seconds), parked)
        return []

    def on_dep(self, ticket: Ticket, task_id: str, reply: Reply, now: float) -> list[Effect]:
        """The store's answer for an argument of a parked call."""
        effects: list[Effect] = []
        self._dep_done(ticket, task_id, reply, effects, now)
        return effects

    # ------------------------------------------------------------ events: time, agents, the end

    def next_deadline(self) -> float | None:
        """When `on_tick` is due at the latest."""
        due = self._timers[0][0] if self._timers else None
        if self._drain_deadline is not None and not self._drained:
            return self._drain_deadline if due is None else min(due, self._drain_deadline)
        return due

    def on_tick(self, now: float) -> list[Effect]:
        """Answer what is overdue."""
        effects: list[Effect] = []
        while self._timers and self._timers[0][0] <= now:
            _, _, late = heapq.heappop(self._timers)
            if isinstance(late, ParkedFetch):
                if not late.done:
                    late.done = True
                    self._live_timers -= 1
                    effects.append(Pending(late.peer, late.call_id))
            elif not late.settled:
                self._time_out(late, effects, now)
        if self._drain_deadline is not None and now >= self._drain_deadline and not self._drained:
            self._cut_short(effects, now)
        return self._check_drained(effects)

    def on_drain(self, deadline: float, now: float) -> list[Effect]:
        """Take no new calls; what is accepted may go on until ``deadline``. A later call may only shorten it."""
        if self._drain_deadline is None or deadline < self._drain_deadline:
            self._drain_deadline = deadline
        return self.on_tick(now)

    @property
    def draining(self) -> bool:
        return self._drain_deadline is not None

    def remove_agent(self, agent_id: str, now: float) -> list[Effect]:
        """Delete an agent: its running calls end, its queued ones get `AgentDeleted`. UnknownAgent if none."""
        record = self.agents.get(agent_id)
        if record is None:
            raise self._unknown_agent(agent_id)
        effects: list[Effect] = []
        self._forget_agent(record, effects, now, "was deleted")
        return effects

    # ------------------------------------------------------------ accepting

    def _accept(self, peer: Peer, call: Call, now: float, parent: Ticket | None) -> Ticket:
        if self._drain_deadline is not None and parent is None:
            raise errors.HostStopping("the host is stopping and takes no new calls")
        config = self.config
        if len(self.tasks) >= config.max_calls:
            raise errors.HostBusy(f"the host has {len(self.tasks)} calls open, limit {config.max_calls} (max_calls)")
        if len(peer.calls) >= config.max_calls_per_client and not peer.local:
            raise errors.HostBusy(
                f"this client has {len(peer.calls)} calls open, limit {config.max_calls_per_client}"
                " (max_calls_per_client)"
            )
        if call.call_id in peer.calls:
            raise errors.RemoteProtocolError(f"call id {call.call_id} is in use")
        op = ""
        method: MethodSpec | None = None
        if call.agent == "":
            record, op = self._management(call, now)
        else:
            found = self.agents.get(call.agent)
            if found is None:
                raise self._unknown_agent(call.agent)
            record = found
            if call.flags & Flag.ATTRIBUTE:
                op = self._attribute(record, call.method)
            else:
                method = record.spec.methods.get(call.method)
                if method is None:
                    raise self._unknown_method(record, call.method)
        deadline = now + call.time_ms / 1000 if call.time_ms else None
        if parent is not None and parent.deadline is not None:
            deadline = parent.deadline if deadline is None else min(deadline, parent.deadline)
        task_id = task_id_of(peer.prefix, call.call_id)
        ticket = Ticket(peer, call, task_id, record, op, method, deadline, now, parent)
        self._check_mailbox(record, ticket)
        if parent is not None:
            ticket.chain = (*parent.chain, parent.task_id)
            parent.spawned = parent.spawned or []
            parent.spawned.append(ticket)
        elif "chain" in call.options:
            ticket.chain = tuple(link for link in call.options["chain"] if isinstance(link, str))
        self._check_foreign_chain(ticket)
        record.calls += 1
        peer.calls[call.call_id] = ticket
        self.tasks[task_id] = ticket
        self.counters.accepted += 1
        if deadline is not None:
            self._add_timer(deadline, ticket)
        return ticket

    def _check_mailbox(self, record: AgentRecord, ticket: Ticket) -> None:
        if record.queued >= self.config.max_mailbox:
            raise errors.HostBusy(
                f"{record.agent_id} has {record.queued} calls queued, limit {self.config.max_mailbox} (max_mailbox)"
            )
        if record.options.on_busy == "reject" and self._takes_turn(ticket) and not self._turn_free(record, ticket.op):
            raise errors.HostBusy(f"{record.agent_id} is busy (on_busy='reject')")

    def _management(self, call: Call, now: float) -> tuple[AgentRecord, str]:
        """The record and the operation of a management request that runs an agent's code."""
        name = call.options.get("id")
        if call.method == Op.MEMORY:
            record = self.agents.get(name) if isinstance(name, str) else None
            if record is None:
                raise self._unknown_agent(name)
            return record, Op.MEMORY
        if call.method != Op.CREATE:
            raise errors.UnknownMethod(f"the host has no management request {call.method!r}")
        class_name = call.options.get("class")
        if not isinstance(class_name, str):
            raise errors.RemoteProtocolError("create_agent without a class name")
        spec = self.find_class(class_name)
        if name is None:
            name = new_agent_id(spec.short)
        if not isinstance(name, str) or not 1 <= len(name) <= 255 or not name.isprintable():
            raise errors.ConfigError(f"agent_id must be a text of 1 to 255 printable characters, not {name!r}")
        if name in self.agents:
            raise errors.AgentExists(f"there is already an agent {name!r} ({self.agents[name].spec.name})")
        options = spec.options
        limit = call.options.get("max_concurrency")
        if limit is not None:
            options = AgentOptions(limit, options.reentrant, options.on_busy)
        record = AgentRecord(name, spec, options, now)
        self.agents[name] = record
        return record, Op.CREATE

    def _attribute(self, record: AgentRecord, name: str) -> str:
        if name.startswith("_"):
            raise self._unknown_method(record, name)
        return "attribute"

    def _unknown_agent(self, agent_id: object) -> errors.UnknownAgent:
        return errors.UnknownAgent(f"there is no agent {agent_id!r} on {self.config.server_id}")

    def _unknown_method(self, record: AgentRecord, name: str) -> errors.UnknownMethod:
        if name.startswith("_"):
            text = f"{name!r} of {record.agent_id} ({record.spec.short}) is private"
        else:
            offered = ", ".join(sorted(record.spec.methods)) or "none"
            text = f"{record.agent_id} ({record.spec.short}) has no public method {name!r}; it has: {offered}"
        return errors.UnknownMethod(text)

    def _check_foreign_chain(self, ticket: Ticket) -> None:
        """A chain of calls that left this host and came back: it waits, so its turn never ends."""
        if ticket.parent is not None or not ticket.chain or not self._takes_turn(ticket):
            return
        holders = ticket.agent.holders
        if len(holders) >= ticket.agent.options.max_concurrency and all(h.task_id in ticket.chain for h in holders):
            self.counters.deadlocks += 1
            names = [h.label for h in holders]
            raise _deadlock([*names, "other hosts", ticket.label])

    # ------------------------------------------------------------ parked: arguments that are not there yet

    def _park(self, ticket: Ticket, deps: Sequence[str], effects: list[Effect]) -> None:
        ticket.deps = set(deps)
        ticket.dep_replies = {}
        for task_id in ticket.deps.copy():
            target = self.tasks.get(task_id)
            if target is None:
                effects.append(Lookup(ticket.peer, ticket.call_id, task_id, ticket))
            else:
                target.dependents = target.dependents or []
                target.dependents.append(ticket)

    def _dep_done(self, ticket: Ticket, task_id: str, reply: Reply, effects: list[Effect], now: float) -> None:
        if ticket.settled or not ticket.deps or ticket.dep_replies is None:
            return
        ticket.deps.discard(task_id)
        ticket.dep_replies[task_id] = reply
        if reply.code:  # an argument that failed fails the call, with the argument's own error
            self._settle(ticket, reply, effects, now)
            self._release(ticket, effects, now)
        elif not ticket.deps:
            self._enqueue(ticket, now, effects)
            if ticket.state is State.QUEUED and ticket.waiters:
                self._refuse_cycle(ticket, effects, now)

    def _refuse_cycle(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """Queueing ``ticket`` may have closed a cycle through one of the calls that wait for it."""
        for waiter in list(ticket.waiters or ()):
            path = self._path(ticket, waiter)
            if path is not None and not waiter.wait_any:
                self.counters.deadlocks += 1
                error = _deadlock([t.label for t in (waiter, *path)])
                self._settle(ticket, self._error(ticket, error), effects, now)
                self._release(ticket, effects, now)
                return

    # ------------------------------------------------------------ turns and slots

    def _takes_turn(self, ticket: Ticket) -> bool:
        if ticket.op:
            return ticket.op == Op.CREATE
        return not (ticket.method is not None and ticket.method.concurrent)

    def _turn_free(self, record: AgentRecord, op: str = "") -> bool:
        if record.instance is None and op != Op.CREATE:  # still in its __init__
            return False
        return len(record.holders) < record.options.max_concurrency and not record.queued

    def _reenters(self, ticket: Ticket) -> bool:
        """True if the class is reentrant and a call further up this chain holds the agent's turn."""
        if not ticket.agent.options.reentrant or not ticket.chain:
            return False
        return any(holder.task_id in ticket.chain for holder in ticket.agent.holders)

    def _enqueue(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        record = ticket.agent
        if record.removed:
            gone = errors.AgentDeleted(f"{record.agent_id} was deleted before {ticket.name} could start")
            self._settle(ticket, self._error(ticket, gone), effects, now)
            self._release(ticket, effects, now)
        elif not self._takes_turn(ticket):
            if record.instance is None:  # still in its __init__
                self._queue(record, ticket)
            else:
                self._admit(ticket, now, effects)
        elif self._turn_free(record, ticket.op):
            ticket.turn = True
            record.holders.append(ticket)
            self._admit(ticket, now, effects)
        elif self._reenters(ticket):
            self._admit(ticket, now, effects)
        else:
            self._queue(record, ticket)

    def _queue(self, record: AgentRecord, ticket: Ticket) -> None:
        ticket.state = State.QUEUED
        if record.mailbox is None:
            record.mailbox = deque()
        record.mailbox.append(ticket)
        record.queued += 1
        ticket.place = record.taken + record.queued

    def _admit(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        """``ticket`` may run as soon as there is a slot."""
        if ticket.on_loop:
            self._start(ticket, now, effects)
        elif self.running < self.config.capacity and not self._resuming:
            self.running += 1
            ticket.slot = True
            self._start(ticket, now, effects)
        else:
            ticket.state = State.READY
            self._ready.append(ticket)

    def _start(self, ticket: Ticket, now: float, effects: list[Effect]) -> None:
        ticket.state = State.RUNNING
        ticket.started = now
        effects.append(Start(ticket))

    def _release(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """The code of ``ticket`` will not go on: free its turn and its slot, start who is next."""
        if ticket.state is State.WAITING:
            self._end_wait(ticket)
        ticket.state = State.DONE
        self._open.discard(ticket)
        ticket.spawned = None
        if ticket.turn:
            ticket.turn = False
            ticket.agent.holders.remove(ticket)
            self._next_of(ticket.agent, now, effects)
        if ticket.slot:
            ticket.slot = False
            self.running -= 1
            self._fill_slots(now, effects)

    def _next_of(self, record: AgentRecord, now: float, effects: list[Effect]) -> None:
        mailbox = record.mailbox
        while mailbox:
            ticket = mailbox[0]
            if ticket.settled:
                mailbox.popleft()
                continue
            takes_turn = self._takes_turn(ticket)
            if takes_turn and len(record.holders) >= record.options.max_concurrency:
                return
            mailbox.popleft()
            record.queued -= 1
            record.taken += 1
            if takes_turn:
                ticket.turn = True
                record.holders.append(ticket)
            self._admit(ticket, now, effects)

    def _fill_slots(self, now: float, effects: list[Effect]) -> None:
        while self.running < self.config.capacity:
            if self._resuming:
                ticket = self._resuming.popleft()
                if ticket.state is State.DONE:
                    continue
                self.running += 1
                ticket.slot = True
                effects.append(Resume(ticket, ticket.wait_error))
                ticket.wait_error = None
            elif self._ready:
                ticket = self._ready.popleft()
                if ticket.settled:
                    continue
                self.running += 1
                ticket.slot = True
                self._start(ticket, now, effects)
            else:
                return

    # ------------------------------------------------------------ waiting and the wait-for graph

    def _wait(self, ticket: Ticket, targets: list[Ticket], any_of: bool, effects: list[Effect], now: float) -> None:
        targets = [target for target in targets if not target.settled]
        if not targets:
            effects.append(Resume(ticket))
            return
        paths = [self._path(target, ticket) for target in targets]
        closing = next((path for path in paths if path is not None), None)
        if closing is not None and (not any_of or all(path is not None for path in paths)):
            self.counters.deadlocks += 1
            error = _deadlock([t.label for t in (ticket, *closing)])
            for target, path in zip(targets, paths, strict=True):
                if path is not None and target.parent is ticket and target.state <= State.READY:
                    self._settle(target, self._error(target, error), effects, now)
                    self._release(target, effects, now)
            effects.append(Resume(ticket, error))
            return
        if self.blocked + self.running >= self.config.max_threads and ticket.slot:
            effects.append(Resume(ticket, self._too_many_waits()))
            return
        ticket.waits_for = targets
        ticket.wait_any = any_of
        for target in targets:
            target.waiters = target.waiters or []
            target.waiters.append(ticket)
        self._give_slot_back(ticket, effects, now)

    def _too_many_waits(self) -> errors.HostBusy:
        return errors.HostBusy(
            f"{self.blocked} calls of this host wait for others and {self.running} run: max_threads="
            f"{self.config.max_threads} allows no further stand-in"
        )

    def _give_slot_back(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        ticket.state = State.WAITING
        if ticket.slot:
            ticket.slot = False
            self.running -= 1
            self.blocked += 1
            self._fill_slots(now, effects)

    def _end_wait(self, ticket: Ticket) -> None:
        """Take ``ticket`` out of the graph."""
        for target in ticket.waits_for or ():
            if target.waiters and ticket in target.waiters:
                target.waiters.remove(ticket)
        ticket.waits_for = None
        if not ticket.on_loop:
            self.blocked -= 1

    def _wake(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """What ``ticket`` waited for is there: it goes on as soon as it has a slot again."""
        self._end_wait(ticket)
        ticket.state = State.RUNNING
        if ticket.on_loop:
            effects.append(Resume(ticket))
        else:
            self._resuming.append(ticket)
            self._fill_slots(now, effects)

    def _path(self, start: Ticket, goal: Ticket) -> list[Ticket] | None:
        """The calls from ``start`` to ``goal`` if ``start`` cannot end before ``goal`` goes on, else None."""
        path: list[Ticket] = []
        seen: set[Ticket] = set()
        node = start
        while True:
            path.append(node)
            if node is goal:
                return path
            if node in seen:
                return None
            seen.add(node)
            nexts, need_all = self._waits_of(node)
            if not nexts:
                return None
            if len(nexts) == 1:
                node = nexts[0]
                continue
            branches = [self._path(each, goal) for each in nexts]
            found = next((branch for branch in branches if branch is not None), None)
            if found is None or (need_all and any(branch is None for branch in branches)):
                return None
            return path + found

    def _waits_of(self, ticket: Ticket) -> tuple[list[Ticket], bool]:
        """What must end before ``ticket`` can, and whether one of them that moves is enough."""
        if ticket.state is State.WAITING:
            return ticket.waits_for or [], ticket.wait_any
        if ticket.state is State.QUEUED:
            return ticket.agent.holders, True
        if ticket.state is State.PARKED and ticket.deps:
            found = [self.tasks.get(dep) for dep in ticket.deps]
            return [target for target in found if target is not None], False
        return [], False

    # ------------------------------------------------------------ answering

    def _error(self, ticket: Ticket, exc: ZmqAgentsError) -> Reply:
        return error_reply(exc, agent=ticket.agent.agent_id, method=ticket.name, call_id=ticket.task_id)

    def _settle(self, ticket: Ticket, reply: Reply, effects: list[Effect], now: float) -> None:
        """Answer everyone who asked for ``ticket``. Its code may still be running."""
        ticket.settled = True
        self.counters.answered += 1
        if ticket.state is State.QUEUED:
            ticket.agent.queued -= 1
            ticket.agent.taken += 1
        elif ticket.state in (State.RUNNING, State.WAITING):
            self._open.add(ticket)
        if ticket.deadline is not None:
            self._live_timers -= 1
        ticket.body = ()
        peer = ticket.peer
        peer.calls.pop(ticket.call_id, None)
        del self.tasks[ticket.task_id]
        if ticket.flags & Flag.DETACHED:
            effects.append(Keep(ticket.task_id, reply))
        if not peer.gone:
            effects.append(Answer(peer, ticket.call_id, reply))
        for parked in ticket.fetches or ():
            if not parked.done:
                parked.done = True
                self._live_timers -= 1
                effects.append(Answer(parked.peer, parked.call_id, reply))
        dependents, ticket.dependents = ticket.dependents, None
        for dependent in dependents or ():
            self._dep_done(dependent, ticket.task_id, reply, effects, now)
        for waiter in list(ticket.waiters or ()):
            waiter.waits_for = waiter.waits_for or []
            if ticket in waiter.waits_for:
                waiter.waits_for.remove(ticket)
            if waiter.wait_any or not waiter.waits_for:
                self._wake(waiter, effects, now)
        ticket.waiters = None
        if ticket.parent is not None and ticket.parent.spawned is not None:
            ticket.parent.spawned.remove(ticket)

    def _cancel(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """Cancel ``ticket`` and the calls that it has made."""
        error = errors.CallCancelled(f"{ticket.label} was cancelled {self._phase(ticket, now)}")
        self.counters.cancelled += 1
        self._give_up(ticket, error, effects, now)

    def _time_out(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        spent = now - ticket.accepted
        error = errors.CallTimeout(f"{ticket.label} timed out after {spent:.3g} s: {self._phase(ticket, now)}")
        self.counters.timed_out += 1
        self._give_up(ticket, error, effects, now)

    def _give_up(self, ticket: Ticket, error: ZmqAgentsError, effects: list[Effect], now: float) -> None:
        """Answer ``ticket`` and its unfinished children with an error; stop their code where that is possible."""
        if ticket.settled:
            return
        children = list(ticket.spawned or ())
        started = ticket.state in (State.RUNNING, State.WAITING)
        self._settle(ticket, self._error(ticket, error), effects, now)
        if started:
            effects.append(Interrupt(ticket))
        else:
            self._release(ticket, effects, now)
        for child in children:
            if not child.settled:
                parent_gone = type(error)(f"{child.label}: its caller {ticket.label} has ended ({error})")
                self._give_up(child, parent_gone, effects, now)
        if ticket.state is State.WAITING:  # for something that is not its child
            ticket.wait_error = error
            self._wake(ticket, effects, now)

    def _phase(self, ticket: Ticket, now: float) -> str:
        """Where a call stood: for the text of its error."""
        queued = now - ticket.accepted
        if ticket.state is State.PARKED:
            return f"parked {queued:.2g} s for {len(ticket.deps or ())} unfinished arguments, never started"
        if ticket.state is State.QUEUED:
            ahead = max(0, ticket.place - ticket.agent.taken - 1) + len(ticket.agent.holders)
            return f"queued {queued:.2g} s behind {ahead} calls, never started"
        if ticket.state is State.READY:
            return f"queued {queued:.2g} s for one of {self.config.capacity} worker slots, never started"
        if ticket.state is State.WAITING and ticket.waits_for:
            return f"running {now - ticket.started:.2g} s, waiting for {ticket.waits_for[0].label}"
        return f"running {now - ticket.started:.2g} s"

    def _forget_agent(self, record: AgentRecord, effects: list[Effect], now: float, why: str) -> None:
        record.removed = True
        if self.agents.get(record.agent_id) is record:
            del self.agents[record.agent_id]
        for ticket in list(record.mailbox or ()):
            if not ticket.settled:
                gone = errors.AgentDeleted(f"{record.agent_id} {why} before {ticket.name} could start")
                self._settle(ticket, self._error(ticket, gone), effects, now)
                self._release(ticket, effects, now)
        effects.append(Removed(record))

    # ------------------------------------------------------------ timers and draining

    def _add_timer(self, due: float, what: Ticket | ParkedFetch) -> None:
        heapq.heappush(self._timers, (due, next(self._order), what))
        self._live_timers += 1
        if len(self._timers) > 2 * self._live_timers + 1024:  # mostly calls that ended long before
            self._timers = [entry for entry in self._timers if not self._timer_over(entry[2])]
            heapq.heapify(self._timers)

    @staticmethod
    def _timer_over(what: Ticket | ParkedFetch) -> bool:
        return what.done if isinstance(what, ParkedFetch) else what.settled

    def _cut_short(self, effects: list[Effect], now: float) -> None:
        """The grace is over: answer all that is left."""
        left = [ticket for ticket in self.tasks.values() if not ticket.settled]
        for ticket in left:
            stopping = errors.HostStopping(f"the host stopped: {ticket.label} was {self._phase(ticket, now)}")
            self._give_up(ticket, stopping, effects, now)
        self._drained = True
        effects.append(Drained(len(left)))

    def _check_drained(self, effects: list[Effect]) -> list[Effect]:
        if self._drain_deadline is not None and not self._drained and not self.tasks and not self._open:
            self._drained = True
            effects.append(Drained(0))
        return effects


def _deadlock(labels: list[str]) -> errors.DeadlockError:
    error = errors.DeadlockError(
        f"deadlock: {' -> '.join(labels)}: each waits for the next, so none of them would ever end"
    )
    error.chain = labels
    return error
