"""The members of one host, as its broker knows them: where agents run, and the calls that come back from there.

`Members.settle` gives a new agent its home; the dispatcher's effects then go there instead of to the worker pool.
Code that runs on a member calls its host over a connection of its own. Such a call names the one that it was made in,
under a seal of this host, and so becomes its child here as if that ran in a thread of this host: with its deadline, its
account, its cancel, and its place in the wait-for graph.

All of this belongs to the router thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .. import errors
from ..agents.context import HostServices
from ..agents.options import AgentOptions
from ..codec import Encoded
from ..config import Parent
from ..scheduler.admission import cannot_settle
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Answer, Effect, refusal_of
from ..scheduler.records import AgentRecord, Peer, State, Ticket
from ..scheduler.seals import Seals
from ..scheduler.shares import Account
from ..wire import messages
from .answers import Answers
from .board import goes_on
from .directory import LocalDirectory
from .placement import least_loaded

if TYPE_CHECKING:
    from ..agents.state import Keeper
    from ..connection.requests import Call
    from ..execution.runner import AgentHost
    from ..execution.threads import WorkerPool
    from ..process import children
    from ..process.crashes import Crashes
    from .child import Child
    from .forwarder import PassOn, Starve
    from .nursery import Hatch, Nursery
    from .peers.room import Room

__all__ = ["Bound", "Members"]


MAX_OVER = 1024  # calls that were cancelled or late, and have returned, which are remembered


class Bound(Protocol):
    """Where a host can be reached."""

    @property
    def address(self) -> str:
        """The address that other hosts use."""

    @property
    def ipc(self) -> str:
        """The path of its Unix socket."""


class Members:
    """See the module's docstring. ``hatch`` starts a process; None: this host has no children.

    ``host``, ``pool``, ``keeper``, ``tell``, ``begin`` are for agents of a cluster that live here: see `peers.room`.
    """

    def __init__(
        self, dispatcher: Dispatcher, services: HostServices, hatch: Hatch | None, *, post: Callable[..., None],
        carry_out: Callable[[list[Effect]], None], pass_on: PassOn, starve: Starve, clock: Callable[[], float],
        host: AgentHost | None = None, pool: WorkerPool | None = None, keeper: Keeper | None = None,
        tell: Callable[[Peer, messages.Home], None] | None = None, begin: Callable[[Ticket], None] | None = None,
    ) -> None:  # fmt: skip
        self.dispatcher = dispatcher
        self.services = services
        self.carry_out = carry_out
        self.pass_on = pass_on
        self.starve = starve
        self.clock = clock
        self.running: dict[str, Ticket] = {}
        self._lessons: dict[tuple[str, bytes, tuple[bytes, ...]], Call] = {}
        self.beside: dict[int, Callable[[int, int], object]] = {}  # what the router thread calls, by descriptor
        self.poller: Any = None  # see `open`
        self.closing = False
        self._end_by = 0.0  # see `begin_end`
        self.directory: LocalDirectory[Child] = LocalDirectory()
        self.crashes: OrderedDict[str, Crashes] = OrderedDict()  # of agents that may come back, see `Yard`
        self.restarts = 0  # of processes that have ended by themselves, or were ended for their memory
        self._nursery: Nursery | None = None  # until an agent has a process
        self._config = dispatcher.config
        self._hatch = hatch
        self._parent: Parent | None = None  # this host, as its children know it
        self._post = post
        self._children: dict[Child, AgentRecord | None] = {}  # with the agent that has it for itself
        self._shared: list[Child] = []  # those of them that several agents share
        self._over: OrderedDict[str, Ticket] = OrderedDict()
        self._waits: dict[tuple[Peer, int], _Told] = {}
        self.room: Room | None = None  # of this host as a member of a cluster
        self.reach_out = bool(self._config.cluster)  # there may be agents elsewhere
        if self._config.cluster:
            from .peers.keeper import ClusterKeeper  # here: a host without a cluster need not load it
            from .peers.room import Room

            assert isinstance(keeper, ClusterKeeper)
            assert host is not None
            assert pool is not None
            self.room = Room(
                dispatcher, host, services, keeper, pool, post=post, carry_out=carry_out, pass_on=pass_on,
                starve=starve, tell=tell, clock=clock, begin=begin or pool.start,
                house=lambda record: self._house(record, dispatcher.calls.host.account),
                apart=lambda: (self.processes, len(self.running)), beside=self.beside,
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Members [{len(self.running)} calls] {self.directory!r} {self._nursery!r}>"

    @property
    def nursery(self) -> Nursery:
        """The processes. Made, as all that serves them is loaded, with the first: most hosts have none."""
        from .nursery import Nursery

        if self._nursery is None:
            self._nursery = Nursery(self._config.server_id, self._begin_process, self._post)
        return self._nursery

    def why_not_ready(self) -> list[str]:
        """What speaks against sending calls to this host, as a member of a cluster."""
        return [] if self.room is None else self.room.why_not_ready()

    @property
    def drains(self) -> bool:
        """Whether this host gives the agents of its cluster away."""
        return self.room is not None and self.room.drains

    def drain(self, end: float, then: Callable[[], None]) -> bool:
        """Give the agents of a cluster to other hosts first, until the time ``end``. False: there is nothing to do."""
        return self.room is not None and not self.dispatcher.draining and self.room.begin_drain(end, then)

    def find(self, peer: Peer, call: messages.Call, agent_id: str) -> tuple[AgentRecord, str]:
        """See `Room.find`. Raises UnknownCluster on a host that is a member of none."""
        if self.room is None:
            raise errors.UnknownCluster(f"{agent_id} is an agent of a cluster, and this host is a member of none")
        return self.room.find(peer, call, agent_id)

    def open(self, poller: Any, bound: Bound) -> None:
        """The router thread polls with ``poller``, and the host can be reached.

        Raises what `Room.open` raises, and LaunchError without a Redis.
        """
        self.poller = poller
        config, key = self._config, self.dispatcher.seals.key
        self._parent = Parent(
            config.server_id, bound.address, bound.ipc, key, config.takes_pickles, config.grace_s, config.cluster
        )
        if self.room is not None:
            try:
                self.room.open(bound.address, bound.ipc, poller)
            except errors.StoreUnavailable as exc:
                raise errors.LaunchError(f"the cluster {config.cluster} cannot be joined: {exc}") from None

    def _begin_process(self, name: str, stderr: int, env: Mapping[str, str] | None) -> children.Child:
        assert self._hatch is not None
        assert self._parent is not None
        return self._hatch(self._parent, name, stderr, env)

    def note_end(self, ticket: Ticket) -> None:
        """The code of ``ticket`` has returned: a call that it had made may come later all the same."""
        if self.running.get(ticket.task_id) is ticket:  # else it came again, to a later activation of its agent
            del self.running[ticket.task_id]
        if ticket.ended is not None:
            self._over[ticket.task_id] = ticket
            if len(self._over) > MAX_OVER:
                self._over.popitem(last=False)

    def note_restart(self) -> None:
        """A process is started in the place of one that has ended."""
        self.restarts += 1

    def later(self, step: Callable[[], None]) -> None:
        """Do ``step`` when what is being done is done."""
        self._post(_do, step)

    # ------------------------------------------------------------ where agents live

    def settle(self, record: AgentRecord, payer: Account) -> None:
        """Give a new agent of ``payer`` its home. Raises ConfigError, HostBusy."""
        record.live_at(self._house(record, payer))

    def _house(self, record: AgentRecord, payer: Account) -> Child:
        """The process that is to run a new agent of ``payer``. Raises ConfigError, HostBusy."""
        config = self._config
        isolation = record.options.isolation or config.isolation
        if self._hatch is None:
            raise cannot_settle(record)
        options = record.options.settled(isolation)
        # Code of a former agent of this id may run on in a process: there it is in the way of this one.
        shared = [child for child in self._shared if not child.has(record.agent_id)] if isolation == "pool" else []
        loads = [child.load for child in shared]
        best = least_loaded(loads, config.pool_size - (len(self._shared) - len(shared)))
        if best is None:
            best = self._room_for_child(payer, loads)
        child = self._new_child(record, options) if best is None else shared[best]
        self.directory.put(record.agent_id, child)
        return child

    def _room_for_child(self, payer: Account, loads: Sequence[float]) -> int | None:
        """None: there may be one more child. If not, one of the shared ones takes the agent, whose ``loads`` these are.

        Raises HostBusy.
        """
        children, share = self._children, self.dispatcher.shares.children
        for child in [each for each in children if each.process is None and not self._is_needed(each)]:
            del children[child]
        owners = [each and each.account for child, each in children.items() if self._is_needed(child)]
        if not share.refuses(held := owners.count(payer), len(owners)):
            return None
        best = least_loaded(loads, len(loads))
        if best is None:
            raise errors.HostBusy(share.reason(held, len(owners)))
        return best

    def _new_child(self, record: AgentRecord, options: AgentOptions) -> Child:
        from .child import Child  # here, see `nursery`

        children = self._children
        self.reach_out = True
        if options.isolation == "process":
            child = Child(self, options)
            children[child] = record
        else:
            child = Child(self, None)
            children[child] = None
            self._shared.append(child)
        return child

    def _is_needed(self, child: Child) -> bool:
        """Whether it is shared, or its agent is not deleted: it may be one that waits for its arguments."""
        record = self._children[child]
        return record is None or self.dispatcher.agents.get(record.agent_id) is record

    def forget(self, record: AgentRecord) -> None:
        """An agent is deleted; there may be another one of its id by now."""
        if self.dispatcher.agents.get(record.agent_id) in (None, record):
            self.directory.drop(record.agent_id)

    def pass_by(self, peer: Peer, call: messages.Call, now: float) -> bool:
        """Send a plain call of an agent that does nothing to where it lives: see `Room.pass_by`, which is the same."""
        if self.room is not None and self.room.pass_by(peer, call, now):
            return True
        record, dispatcher = self.dispatcher.agents.get(call.agent), self.dispatcher
        if record is None or record.home not in self._children or not dispatcher.may_pass_by(call):
            return False
        ticket = dispatcher.start_elsewhere(peer, call, record, now)
        if ticket is not None:
            record.home.start(ticket)
        return ticket is not None

    # ------------------------------------------------------------ what comes back

    def caller_of(self, peer: Peer, call: messages.Call) -> Ticket | None:
        """The call of a member's code that has made ``call``; None: it came from elsewhere.

        A process of this host has this host's user, so it is an admin.
        """
        chain = call.options.get("chain")
        if not chain or not peer.is_admin or not (self.running or self._over):
            return None
        seals = self.dispatcher.seals
        task_id = Seals.task_id_of(chain[-1])
        ticket = self.running.get(task_id) or self._over.get(task_id)
        if ticket is None or not seals.is_ours(chain[-1]):
            return None
        if ticket.agent.home is not None:
            ticket.agent.home.saw(call.call_id)
        return ticket

    def on_call(self, peer: Peer, call: messages.Call, caller: Ticket, now: float) -> list[Effect]:
        """The code of ``caller`` has made a call."""
        if caller.state is State.DONE and caller.ended is not None:
            name = f"{call.agent}.{call.method}"
            error = type(caller.ended)(f"{name}: its caller has ended ({caller.ended})")
            return [Answer(peer, call.call_id, messages.error_reply(error, agent=call.agent, method=call.method))]
        return self.dispatcher.on_call(peer, call, now, parent=caller, wait=bool(call.options.get("waits")))

    def on_waits(self, peer: Peer, waits: messages.Waits) -> list[Effect]:
        """The code of a call waits, or (without a task id) waits no more."""
        dispatcher, key = self.dispatcher, (peer, waits.call_id)
        if not waits.task_id:
            known = self._waits.pop(key, None)
            return [] if known is None else self._end_wait(known)
        ticket = self.running.get(waits.task_id)
        if ticket is None or not peer.is_admin:
            return []
        now = self.clock()
        if not waits.task_ids:
            self._waits[key] = _Told(ticket, ("",), waits.place)
            return dispatcher.on_go_outside(ticket, now)
        tasks = dispatcher.tasks
        own = [task_id for task_id in waits.task_ids if task_id in tasks and not _lags(tasks[task_id], waits)]
        effects = dispatcher.on_wait(ticket, own, now, any_of=waits.any_of) if own else []
        if refusal_of(ticket, effects) is None and not waits.any_of:
            for task_id in waits.task_ids:
                if task_id not in tasks:
                    effects += dispatcher.on_await_outside(ticket, task_id, now)
        refusal = refusal_of(ticket, effects)
        if refusal is not None:
            where = {"agent": ticket.agent.agent_id, "method": ticket.name, "call_id": ticket.task_id}
            return [*effects, Answer(peer, waits.call_id, messages.error_reply(refusal, **where))]
        self._waits[key] = _Told(ticket, waits.task_ids, waits.place)
        if len(self._waits) > 2 * len(self.running) + 1024:  # of processes that have ended meanwhile
            self._waits = {key: each for key, each in self._waits.items() if each.ticket.task_id in self.running}
        return effects

    def end_waits(self, of: Collection[Any]) -> bool:
        """Before a deadlock is told: end the waits of these calls that are over, as their processes show.

        False: there is none.
        """
        over = [key for key, told in self._waits.items() if told.ticket in of and not told.goes_on]
        for key in over:
            self._end_wait(self._waits.pop(key))
        return bool(over)

    def _end_wait(self, told: _Told) -> list[Effect]:
        dispatcher, ticket = self.dispatcher, told.ticket
        effects = dispatcher.on_unwait(ticket, told.task_ids)
        for task_id in told.task_ids:
            effects += dispatcher.on_unawait_outside(ticket, task_id)
        return effects

    # ------------------------------------------------------------ lessons, the end

    @property
    def lessons(self) -> list[Call]:
        """What every process is told, in this order."""
        return list(self._lessons.values())

    def teach(self, op: str, body: Sequence[messages.Frame], answers: Answers) -> None:
        """Tell all processes, also those to come, what the host was told: ``op`` is a management request."""
        from ..connection.requests import Call  # here, see `nursery`

        payload, *buffers = map(bytes, body)
        lesson = Call("", op, Encoded(payload, buffers, ()), 0, {}, None, None)
        what = op, payload, tuple(buffers)
        self._lessons.pop(what, None)  # told again, as by each client that starts: it counts from now on
        self._lessons[what] = lesson
        for child in self._children:
            child.learn(lesson, answers)

    @property
    def processes(self) -> int:
        """How many processes run agents of the host."""
        return sum(child.process is not None for child in self._children)

    def rows(self) -> list[dict[str, Any]]:
        """What a list says of each process."""
        return [child.row() for child in self._children if child.process is not None]

    def figures(self) -> dict[str, Any]:
        """Counts over all processes."""
        rows = self.rows()
        return {
            "processes": len(rows), "silent": sum(row["state"] == "silent" for row in rows),
            **{name: sum(row[name] for row in rows) for name in ("calls", "crashes")},
            "memory_mb": round(sum(row["memory_mb"] for row in rows), 1), "agents": len(self.directory),
        }  # fmt: skip

    def silent(self) -> dict[int, float]:
        """For how many seconds the processes have not answered that are silent, by pid."""
        return {child.pid: child.silent_s for child in self._children if child.is_silent}

    def restart(self, record: AgentRecord) -> bool:
        """End the process of an agent, and start it again. Raises ConfigError for an agent in threads of this host."""
        place = self.directory.find(record.agent_id)
        if place is None:
            raise errors.ConfigError(f"{record.agent_id} runs in threads of the host and has no process of its own")
        place.member.restart(record)
        return True

    def ask_all(self, op: str) -> Answers:
        """Ask every process that answers for a list of rows: ``op`` is a management request."""
        answers = Answers()
        for child in self._children:
            child.ask(op, answers)
        return answers

    def begin_end(self, timeout_s: float) -> None:
        """Ask all processes to end in order, within ``timeout_s`` seconds; no other is started."""
        self.closing = True
        self._end_by = self.clock() + timeout_s
        if self._nursery is not None:
            self._nursery.end_all()

    def close(self) -> bool:
        """Close the connections; end what has not ended within the time of `begin_end`. False: some did not."""
        if self.room is not None:
            self.room.close()
        for child in self._children:
            child.close()
        return self._nursery is None or self._nursery.close(max(0.0, self._end_by - self.clock()))


class _Told(NamedTuple):
    """A wait that a process has told of."""

    ticket: Ticket
    task_ids: Sequence[str]
    place: messages.Place | None

    @property
    def goes_on(self) -> bool:
        """Whether it is not over, as far as that can be seen."""
        home = self.ticket.agent.home
        return self.place is None or home is None or goes_on(home.pid, self.place)


def _lags(stream: Ticket, waits: messages.Waits) -> bool:
    """Whether a wait for an item of ``stream`` is over before it is known here: the item is on its way."""
    if waits.received < 0 or stream.context is None or stream.context.sender is None:
        return False
    return bool(stream.context.sender.items > waits.received)


def _do(step: Callable[[], None]) -> list[Effect]:
    step()
    return []
