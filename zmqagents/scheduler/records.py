"""What the dispatcher keeps records of: peers, agents, calls.

Plain data without decisions: `dispatcher` decides which call runs next, and `wait_graph` finds which call waits for
which. The records belong to the router thread; a worker thread reads only what no longer changes when its call starts.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence, Sized
from enum import IntEnum
from typing import Any, Protocol, TypeVar

from ..agents.context import RunningCall
from ..agents.options import AgentOptions
from ..agents.spec import ClassSpec, MethodSpec, away, unhurried
from ..agents.timing import Pace
from ..codec import SHORT_BYTES, unpack
from ..errors import CallCancelled, CallTimeout, ZmqAgentsError
from ..telemetry.meters import ClassMeters, Meters
from ..wire.messages import MAX_CHAIN, Call, Frame, Op, Reply, reply_from_bytes
from .shares import Account, FairQueue

__all__ = [
    "END", "MANY", "TICKS", "AgentRecord", "Alarm", "Counters", "DrainEnd", "Home", "Idle", "ParkedFetch", "Peer",
    "State", "Ticket", "Timed", "Unfinished", "bytes_of_ids", "left_over", "phase",
]  # fmt: skip

T = TypeVar("T")
END = "end_agent"  # the op of the call that runs the hooks of an agent that goes; the dispatcher makes it
TICKS = "tick-"  # what the task ids of calls that reminders make begin with, see `members.peers.ticks`
_NOBODY = Account()
MAX_GIVEN_BYTES = 1 << 40  # they come from the host that has started this one
ID_BYTES = 256  # what a task id of up to 255 characters costs in one table
MANY = 1 << 30  # calls of one agent at a time in a process that runs it for its host, which has the turn
MAX_PAST_LEGS = 65_536  # that are remembered of one member; beyond it the oldest is forgotten
COUNTED_AHEAD = 100  # the text of a time-out counts the queued calls ahead up to this


class State(IntEnum):
    """Where a call stands; see `dispatcher`. Up to READY its code has not started."""

    PARKED = 0
    QUEUED = 1
    READY = 2
    RUNNING = 3
    WAITING = 4
    DONE = 5


_PARKED = State.PARKED  # an attribute of a class is looked up anew at each use


class Counters:
    """Totals since the start, without calls that `Meters` counts as short.

    ``accepted`` equals ``answered`` when no call is open.
    """

    def __init__(self) -> None:
        self.accepted = self.answered = self.refused = self.timed_out = self.cancelled = self.deadlocks = 0


class DrainEnd:
    """The time limit of a drain, as the timers keep it; ``settled`` when the drain is over or has another limit.

    ``cut``: how many calls were answered unfinished; None until then. After that only agents' ends go on.
    """

    __slots__ = ("cut", "deadline", "settled")

    def __init__(self, deadline: float, cut: int | None = None) -> None:
        self.deadline = deadline
        self.cut = cut
        self.settled = False


class Alarm:
    """Something that is to be done at a time, as the timers keep it: ``ring`` gets the time, and gives effects."""

    __slots__ = ("ring", "settled")

    def __init__(self, ring: Callable[[float], list[Any]]) -> None:
        self.ring = ring
        self.settled = False

    def stop(self) -> None:
        """It is not to be done any more."""
        self.settled = True


class Unfinished:
    """Calls or agents that are to be ended, some in each turn of the router thread, as the timers keep them."""

    __slots__ = ("finish", "left", "settled")

    def __init__(self, what: Iterable[T], finish: Callable[[T, list[Any], float], None]) -> None:
        self.left: deque[Any] = deque(what)
        self.finish = finish
        self.settled = False


class Idle:
    """Looks now and then whether an agent is idle, as the timers keep it: nothing has to be noted when a call ends."""

    __slots__ = ("_calls", "_idle_s", "_since", "record")

    def __init__(self, record: AgentRecord, idle_s: float, now: float) -> None:
        self.record = record
        self._idle_s = idle_s
        self._calls = -1
        self._since = now

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to look at."""
        return self.record.removed

    def next_look(self, now: float) -> float:
        """When to look again."""
        return now + self._idle_s / 4

    def is_over(self, now: float) -> bool:
        """Whether nobody has called the agent for so long."""
        record = self.record
        if record.calls != self._calls or record.holders or record.beside or record.mailbox:
            self._calls = record.calls
            self._since = now
        return now - self._since >= self._idle_s


class Peer:
    """The sender of calls: a client's session, or the host's own code (``local``)."""

    __slots__ = (
        "account", "agents", "calls", "fetches", "gone", "is_admin", "is_member", "key", "latest_leg", "local",
        "past_legs", "prefix", "program", "user",
    )  # fmt: skip

    def __init__(
        self, prefix: str, *, key: Any = None, local: bool = False, user: str = "", account: Account | None = None
    ) -> None:
        self.prefix = prefix  # first half of its task ids
        self.program = ""  # and of those that are the same by whatever connection a call comes; "": it has none
        self.user = user  # the name that the authentication has found; "": the host's own code
        self.account = Account(user) if account is None else account
        self.key = key  # the broker's handle
        self.local = local
        self.is_admin = local
        self.is_member = False  # a host of the same cluster: it may pass on the calls of others
        self.calls: dict[int, Ticket] = {}  # accepted and not yet answered
        self.fetches: dict[int, ParkedFetch] = {}
        self.agents: dict[AgentRecord, None] | None = None  # those that go with it; None: it never had one
        self.latest_leg = 0  # of a member: the highest leg of a call that it has passed on
        self.past_legs: dict[str, int] | None = None  # by agent: see `turn_away`; None: it was never turned away
        self.gone = False

    def leave(self) -> None:
        """It gets no answers any more."""
        self.gone = True

    def own(self, record: AgentRecord) -> None:
        """The agent goes with this client."""
        if self.agents is None:
            self.agents = {}
        self.agents[record] = None

    def show(self, program: str) -> None:
        """The random number of its process, which is told to hosts alone."""
        self.program = program

    def has_named(self, task_id: str) -> bool:
        """Whether the call is its own, and no other one that it has passed on."""
        return task_id.startswith((f"{self.prefix}-", f"{self.program or self.prefix}-"))

    def turn_away(self, agent_id: str) -> None:
        """A call that this member has passed on was answered ELSEWHERE: so are all that it sends before it knows.

        Were one of those taken, because the agent is here by then, it would overtake the ones that were turned away.
        A member counts its ways to agents as legs: it takes the next one when all calls of the last have come back.
        """
        past = self.past_legs
        if past is None:
            past = self.past_legs = {}
        past.pop(agent_id, None)
        past[agent_id] = self.latest_leg
        if len(past) > MAX_PAST_LEGS:
            del past[next(iter(past))]

    def is_past(self, agent_id: str, leg: int) -> bool:
        """Whether a call of this leg comes behind one that was turned away."""
        if leg > self.latest_leg:
            self.latest_leg = leg
        past = self.past_legs
        if not past or agent_id not in past:
            return False
        if leg <= past[agent_id]:
            return True
        del past[agent_id]
        return False

    def trust(self, is_admin: bool, is_member: bool) -> None:
        """Note whether it has the role admin, and whether it may pass on the calls of others."""
        self.is_admin = is_admin
        self.is_member = is_member


class Home(Protocol):
    """What runs the calls of agents: the threads of this host, a process that it has started, or another host. See
    `members`.

    The calls of an agent that is ``away``, beside this process, count as coroutines: they hold no slot here, for that
    is a matter of the process that runs them, and their code may wait for several things at a time.
    """

    @property
    def pid(self) -> int:
        """The process that runs them, 0 while there is none."""

    def start(self, ticket: Ticket) -> None:
        """Run ``ticket``; its end is told by `Dispatcher.on_done`."""

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for ``ticket`` any more; ``alone``: the calls that its code has made go on."""

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """These agents are deleted, and none of their calls runs."""

    def returned(self, ticket: Ticket, reply: Reply) -> list[Any]:
        """The code of ``ticket`` has returned in a thread of this host; effects."""

    def saw(self, call_id: int) -> None:
        """A request of the agents' code has come, over a connection of its own."""


class AgentRecord:
    """One agent: its class, its mailbox and its running calls. ``instance`` belongs to the host.

    ``home``: where its calls run, None: in the threads of this host. ``away``: that is beside this process.
    ``admits``: whether its home lets a short call of a method begin, or be answered, with nothing to be looked at or
    kept; None: it never does.
    """

    __slots__ = (
        "account", "admits", "agent_id", "away", "beside", "calls", "client", "created", "dropped", "end", "epoch",
        "holders", "home", "instance", "kept_bytes", "made", "mailbox", "meters", "number", "options", "ours",
        "removed", "sought", "spec",
    )  # fmt: skip

    def __init__(
        self, agent_id: str, spec: ClassSpec, options: AgentOptions, now: float, ours: Collection[str] = (),
        meters: ClassMeters | None = None,
    ) -> None:  # fmt: skip
        self.agent_id = agent_id
        self.spec = spec
        self.options = options
        self.created = now
        self.ours = ours  # keywords among those of its constructor that were meant for the host
        self.meters = Meters().of_class(spec.name) if meters is None else meters  # of its class
        self.instance: Any = None
        self.home: Home | None = None
        self.admits: Callable[[MethodSpec], bool] | None = None
        self.away = False
        self.sought = False  # which host of the cluster has it is not known for certain: this stands for one call to it
        self.epoch = 0  # of its activation, in a cluster
        self.number = 0  # among all agents that were made
        self.account = _NOBODY  # of the user that has made it
        self.kept_bytes = 0  # of the arguments that it was made with, see `keep_arguments`
        self.client: Peer | None = None  # it goes with this one
        self.made = False  # its __init__ has returned
        self.holders: list[Ticket] = []  # calls that have the turn, in no order
        # Made when first needed: most agents never queue.
        self.beside: list[Ticket] | None = None  # calls that run beside the turn, in no order
        self.mailbox: FairQueue[Ticket] | None = None  # calls that wait for the turn
        self.calls = 0  # accepted since it was made
        self.removed = False
        self.end: Ticket | None = None  # runs the hooks of a deleted agent when no other call runs any more
        self.dropped = False  # `Removed` was given

    @property
    def child(self) -> int | None:
        """The process of its home, 0 while that has none; None: its calls run in the threads of this host."""
        return self.home.pid if self.home is not None and self.away else None

    @property
    def queued(self) -> int:
        """Calls in the mailbox."""
        return self.mailbox.count if self.mailbox is not None else 0

    @property
    def owner(self) -> str:
        """The user who has made it, "": the host's own code."""
        return self.account.key

    def try_to_seat(self, ticket: Ticket) -> bool:
        """Give ``ticket`` the turn or a place beside it, if it need not queue; True if it has one."""
        if not self.made or (ticket.exclusive and len(self.holders) >= self.options.max_concurrency):
            return False
        self.seat(ticket)
        return True

    def queue(self, ticket: Ticket) -> None:
        """Put ``ticket`` at the end of the mailbox."""
        ticket.state = State.QUEUED
        if self.mailbox is None:
            self.mailbox = FairQueue()
        self.mailbox.add(ticket.account, ticket)

    def next_queued(self) -> Ticket:
        """Take the call out of the mailbox whose turn it is; there is one."""
        assert self.mailbox is not None
        return self.mailbox.pop()

    def unqueue(self, ticket: Ticket) -> None:
        """Take ``ticket`` out of the mailbox, if it is there."""
        if self.mailbox is not None:
            self.mailbox.remove(ticket.account, ticket)

    def places_of(self, account: Account) -> int:
        """How many places of the mailbox a user has."""
        return self.mailbox.held(account) if self.mailbox is not None else 0

    def seat(self, ticket: Ticket, *, beside: bool = False) -> None:
        """Give ``ticket`` the turn, or a place beside it."""
        ticket.turn = ticket.exclusive and not beside
        if ticket.turn:
            row = self.holders
        else:
            if self.beside is None:
                self.beside = []
            row = self.beside
        ticket.seat = len(row)
        row.append(ticket)

    def unseat(self, ticket: Ticket) -> None:
        """Take back what `seat` gave."""
        row = self.holders if ticket.turn else self.beside
        assert row is not None  # it holds ticket
        last = row.pop()
        if last is not ticket:  # the last one takes the place: no shifting of a long row
            row[ticket.seat] = last
            last.seat = ticket.seat
        ticket.seat = -1
        ticket.turn = False

    def live_at(self, home: Home, epoch: int = 0) -> None:
        """Have its calls run at ``home``, beside this process, which is decided before the first of them."""
        self.home = home
        self.epoch = epoch
        self.away = True
        self.spec = away(self.spec)

    def be_elsewhere(self, home: Home) -> None:
        """Have its calls go to ``home``, of which it is not known what the agent offers."""
        self.home = home
        self.away = self.made = self.sought = True

    def live_under(self, home: Home, epoch: int, admits: Callable[[MethodSpec], bool] | None = None) -> None:
        """Have ``home`` look at each call before it runs in a thread of this host, and before it is answered."""
        self.home = home
        self.admits = admits
        self.epoch = epoch
        self.spec = unhurried(self.spec)

    def keep_arguments(self, size: int) -> None:
        """So many bytes are kept of the arguments that it was made with, which counts for the user that has made it."""
        self.account.keep_arguments(size - self.kept_bytes)
        self.kept_bytes = size

    def be_activation(self, epoch: int) -> None:
        """It is the activation of this number of an agent of a cluster, which the host of this process has claimed."""
        self.epoch = epoch

    def end_by(self, ticket: Ticket) -> None:
        """Note the call that ends the agent. It waits for no place in the mailbox, but for all others to be gone."""
        ticket.state = State.QUEUED
        self.end = ticket

    def go_with(self, client: Peer) -> None:
        """It is to be deleted when this client has gone."""
        self.client = client
        client.own(self)

    def become(self, spec: ClassSpec, options: AgentOptions) -> None:
        """Take the spec of the object that a factory has made, before it is held."""
        self.spec = away(spec) if self.away else spec if self.home is None else unhurried(spec)
        self.options = options

    def hold(self, instance: Any) -> None:
        """Keep the object of the agent, which has been made and started."""
        self.instance = instance

    def drop_instance(self) -> None:
        """Drop the object of a deleted agent, once no call runs on it."""
        if not self.holders:
            self.instance = None


def bytes_of_ids(deps: Sized, chain: Sized, far: Sized) -> int:
    """What the task ids in the options of a call count for, beside its arguments: kept in so many tables."""
    return ID_BYTES * (len(deps) + 2 * len(chain) + 3 * len(far))


class Ticket:
    """One accepted call."""

    __slots__ = (
        "accepted", "account", "agent", "body", "call_id", "came_by", "context", "dep_replies", "dependents", "deps",
        "deadline", "ended", "exclusive", "far", "fetches", "flags", "gate", "method", "name", "on_loop", "op",
        "outside", "owed", "pace", "parent", "parked", "peer", "queued_bytes", "returns", "sealed", "seat", "settled",
        "slot", "spawned", "started", "state", "task_id", "turn", "wait_any", "wait_error", "waiters", "waits_for",
    )  # fmt: skip

    def __init__(
        self, peer: Peer, call: Call, task_id: str, agent: AgentRecord, op: str, method: MethodSpec | None,
        exclusive: bool, deadline: float | None, now: float,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.account = peer.account  # that it counts for: of the user whose call began the chain
        self.body: Sequence[Frame]
        self.call_id, self.flags, _, _, self.name, _, _, self.body, _ = call  # as `Dispatcher.start_short`
        self.queued_bytes = 0  # of the body, until the call starts
        self.task_id = task_id
        self.agent = agent
        self.op = op  # "" for a method call, else what the host is to do
        self.method = method
        # How long such runs take; None for what never takes the fast lane: streams, coroutines and attributes.
        self.pace: Pace | None
        if method is None:
            self.on_loop = agent.away
            self.pace = agent.spec.pace if op == Op.CREATE and not self.on_loop else None
        else:
            self.on_loop = method.on_loop and (agent.away or not self.body or len(self.body[0]) <= SHORT_BYTES)
            self.pace = None if method.on_loop or method.returns == "stream" else method.pace
        self.exclusive = exclusive  # it runs in the agent's turn, not beside it
        self.deadline = deadline
        self.accepted = now
        self.started = now
        self.state = _PARKED
        self.seat = -1  # index in agent.holders (turn) or agent.beside
        self.turn = self.slot = False  # holds the agent's turn; one of the capacity slots
        self.owed = False  # it gave its slot back to wait and gets one again
        self.parked = False  # and its thread
        self.settled = False  # answered
        self.ended: ZmqAgentsError | None = None  # answered while its code was running: with this
        self.context: RunningCall | None = None
        self.gate: Any = None  # the broker's: where its thread waits for Resume
        # Sets are dicts without values: in order, and a member leaves in no time. None until needed.
        self.deps: dict[str, Ticket | None] | None = None  # unfinished arguments; None: the store was asked
        self.dep_replies: dict[str, Reply] | None = None
        self.dependents: dict[Ticket, None] | None = None  # parked calls that take this one's result
        self.waiters: dict[Ticket, None] | None = None  # calls whose code waits for this one
        self.waits_for: dict[Ticket, int] | None = None  # how often (a coroutine may wait for one call twice)
        self.wait_any = False  # one of them is enough
        self.wait_error: ZmqAgentsError | None = None  # told to the code when it goes on
        self.outside: frozenset[str] | None = None  # calls of other hosts that it waits for; empty: not known which
        self.fetches: dict[ParkedFetch, None] | None = None
        self.parent: Ticket | None = None  # the nearest call up its chain that has not returned
        self.spawned: dict[Ticket, None] | None = None  # unfinished calls that its code made; for cancel
        self.far: dict[str, list[str]] | None = None  # where those of `deps` are that another host has
        self.came_by: Sequence[str] = ()  # task ids of a chain that came here through another host
        self.sealed: Sequence[str] = ()  # the same with the seals of the hosts whose calls they are
        self.returns: dict[Ticket, None] | None = None  # calls whose came_by names this one

    def move(self, record: AgentRecord, method: MethodSpec | None) -> None:
        """Be a call of ``record``: its code has not begun, and the agent is there by now."""
        self.agent = record
        self.method = method
        self.on_loop = record.away if method is None else method.on_loop
        self.pace = None if method is None or method.on_loop or method.returns == "stream" else method.pace
        self.exclusive = method is not None and not method.concurrent
        self.state = State.PARKED
        self.context = None

    def go_outside(self, away: bool) -> None:
        """It is passed on to another host, and cannot end before calls that come back from there; or is here again."""
        self.state = State.WAITING if away else State.RUNNING
        self.outside = frozenset() if away else None

    def pay_by(self, account: Account) -> None:
        """It counts for this user."""
        self.account = account

    def begin(self, context: RunningCall) -> None:
        """Note what its code knows of the call: it is about to run."""
        self.context = context

    def take_given(self) -> None:
        """The last frame of its body holds the results among its arguments: its host has waited for these."""
        *body, packed = self.body
        given = unpack(packed, max_bytes=MAX_GIVEN_BYTES)
        self.body = body
        self.dep_replies = {task_id: reply_from_bytes(data) for task_id, data in given.items()}
        self.read_in_thread()

    def read_in_thread(self) -> None:
        """It has all its arguments. Where these are long they are not read on the event loop, which all users share."""
        if self.on_loop and not self.agent.away and self.method is not None and self.dep_replies:
            given = [reply.body[0] for reply in self.dep_replies.values() if reply.body]
            self.on_loop = all(len(payload) <= SHORT_BYTES for payload in (self.body[0], *given))

    def leave_thread(self) -> None:
        """From now on its code is a coroutine on the event loop."""
        self.on_loop = True

    @property
    def owner(self) -> str:
        """The user whose call this is, or in whose call it was made; "": the host's own code."""
        return self.account.key

    @property
    def is_tick(self) -> bool:
        """Whether a reminder of the agent has made it: this host says so, or another one of its cluster."""
        return self.peer.is_member and self.task_id.startswith(TICKS)

    @property
    def threaded(self) -> bool:
        """Whether its code waits for one thing at a time; the tasks of a coroutine may wait for several."""
        if not self.on_loop:
            return True
        return self.agent.away and (self.method is None or self.method.in_thread)

    @property
    def label(self) -> str:
        """``agent.method``, as errors name it."""
        return f"{self.agent.agent_id}.{self.name}"

    @property
    def chain(self) -> tuple[str, ...]:
        """Task ids of the calls that this one was made in, outermost first: the nearest ``MAX_CHAIN - 1``.

        Those that came through another host bear their seals, see `seals`.
        """
        if self.parent is None and not self.came_by:
            return ()
        ids: list[str] = []
        ticket = self
        while ticket.parent is not None and len(ids) < MAX_CHAIN - 1:
            ticket = ticket.parent
            ids.append(ticket.task_id)
        ids += reversed(ticket.sealed)
        return tuple(reversed(ids[: MAX_CHAIN - 1]))


def phase(ticket: Ticket, now: float, capacity: int, lingering: int) -> str:
    """Where a call stands, for the text of its error: ``queued 4.8 s behind 3 calls, never started``.

    ``lingering``: how many calls of the host have ended and still run.
    """
    queued = now - ticket.accepted
    if ticket.state is State.PARKED:
        return f"parked {queued:.2g} s for {len(ticket.deps or ())} unfinished arguments, never started"
    if ticket.state is State.QUEUED:
        ended = left_over(ticket.agent)
        return f"queued {queued:.2g} s behind {_ahead_of(ticket)}{f' ({ended})' if ended else ''}, never started"
    if ticket.state is State.READY:
        ended = f" (calls that have ended and still run: {lingering})" if lingering else ""
        return f"queued {queued:.2g} s for one of {capacity} worker slots{ended}, never started"
    if ticket.waits_for:
        return f"running {now - ticket.started:.2g} s, waiting for {next(iter(ticket.waits_for)).label}"
    return f"running {now - ticket.started:.2g} s"


def left_over(record: AgentRecord) -> str:
    """``reader.load was cancelled and still runs``: which of the calls that have the turn have ended; "" if none has.

    Python cannot end a thread: what is cancelled or late keeps its turn until its code returns.
    """
    ended = [holder for holder in itertools.islice(record.holders, COUNTED_AHEAD) if holder.ended is not None]
    if not ended:
        return ""
    first = ended[0]
    cancelled, late = isinstance(first.ended, CallCancelled), isinstance(first.ended, CallTimeout)
    how = "was cancelled" if cancelled else "timed out" if late else "has ended"
    more = f", and {len(ended) - 1} more like it" if len(ended) > 1 else ""
    return f"{first.label} {how} and still runs{more}"


def _ahead_of(ticket: Ticket) -> str:
    """How many calls the agent of a queued one takes first; counted no further than a glance at the queue."""
    before = itertools.takewhile(lambda other: other is not ticket, ticket.agent.mailbox or ())
    queued = sum(1 for _ in itertools.islice(before, COUNTED_AHEAD + 1))
    ahead = len(ticket.agent.holders) + min(queued, COUNTED_AHEAD)
    if queued > COUNTED_AHEAD:
        return f"more than {ahead} calls"
    return "1 call" if ahead == 1 else f"{ahead} calls"


class ParkedFetch:
    """A FETCH that waits: for a call of this host to end, for the call ``expected`` to come, or (else) for the answer
    of a shared store.
    """

    __slots__ = ("call_id", "expected", "peer", "settled", "ticket")

    def __init__(self, peer: Peer, call_id: int, expected: str = "") -> None:
        self.peer = peer
        self.call_id = call_id
        self.ticket: Ticket | None = None
        self.expected = expected  # a task id
        self.settled = False

    def meet(self, ticket: Ticket) -> None:
        """Wait for the end of ``ticket``."""
        self.ticket = ticket
        self.expected = ""
        if ticket.fetches is None:
            ticket.fetches = {}
        ticket.fetches[self] = None


Timed = Ticket | ParkedFetch | DrainEnd | Unfinished | Alarm | Idle  # what the timers keep
