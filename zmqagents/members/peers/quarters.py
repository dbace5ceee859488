"""What ways, residents and the others of this package have of the member that they belong to: the lower half of `Room`.

`Lodger` is a resident as others see it. What `Room` alone knows is abstract here.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from ... import errors
from ...agents.context import HostServices
from ...checks import CLUSTER
from ...cluster import activations as acts
from ...cluster.lease import Admission, boot_time
from ...cluster.member import HostEffect, Member
from ...cluster.naming import AgentName, parse_reference
from ...cluster.placement import MemberInfo
from ...execution.classes import ClassTable
from ...execution.runner import AgentHost
from ...execution.threads import WorkerPool
from ...scheduler.dispatcher import Dispatcher
from ...scheduler.effects import Effect
from ...scheduler.records import AgentRecord, Alarm, Peer, Ticket
from ...version import __version__
from ...wire.messages import Code, Home, Reply
from ..forwarder import PassOn, Starve
from .neighbour import Neighbour

__all__ = ["Leaving", "Lodger", "Lodging", "Process", "Quarters", "Runner"]


class Runner(Protocol):
    """What runs the code of agents: the worker threads of this host, or a process of its own."""

    def start(self, ticket: Ticket) -> None:
        """Run ``ticket``."""

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for ``ticket`` any more."""

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """These agents are here no more."""


class Lodging(Protocol):
    """Where an agent stands in its process."""

    @property
    def is_suspect(self) -> bool:
        """Whether it seems to end its process."""

    def holds(self, ticket: Ticket) -> bool:
        """Whether ``ticket`` waits until the agent is made."""

    def take_back(self) -> list[Ticket]:
        """The calls that wait so: they do no longer."""


class Process(Runner, Protocol):
    """A process of this host."""

    @property
    def pid(self) -> int:
        """Its number, 0 while there is none."""

    def saw(self, call_id: int) -> None:
        """A request of its code has come."""

    def lodging(self, record: AgentRecord) -> Lodging:
        """Where an agent stands that it runs, or is to run."""


class Leaving(enum.Enum):
    """Why an agent leaves this host."""

    RELEASED = "released"
    DELETED = "deleted"
    LOST = "lost"  # it has another home, or this host was declared dead


class Lodger(Protocol):
    """An agent of the cluster that lives here, see `Resident`."""

    record: AgentRecord
    name: str
    agent: AgentName
    leaving: Leaving | None
    labels: Mapping[str, str] | None  # that were asked for where it was made
    used: float  # when a call of it was answered last

    @property
    def is_leaving(self) -> bool:
        """Whether no call is for it any more."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""

    @property
    def is_held(self) -> bool:
        """Whether calls wait here with the turn, or answers for the lease."""

    def go_on(self) -> None:
        """What has held calls may be over."""

    def refuse_held(self, error: errors.ZmqAgentsError, before: float) -> None:
        """What is held since ``before`` or longer ends in this error; nothing of it ran."""

    @property
    def phase(self) -> acts.Phase | None:
        """Where its activation is; None: there is none, or it is another one by now."""

    def welcome(self, passage: Any) -> None:
        """A call that was on its way is for this agent."""

    def leave(self, why: Leaving, following: str = "") -> None:
        """No call begins any more; then it goes to the member ``following``, or to nobody."""

    def on_gone(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when its record is released."""


class Quarters(abc.ABC):
    """See the module's docstring. ``tell`` tells a client where an agent is, ``begin`` begins a call's code.

    ``house`` gives the process in which an agent is to run, ``apart`` says how many processes there are, and how many
    calls run in them.
    """

    member: Member  # there when this host has joined

    def __init__(
        self, dispatcher: Dispatcher, host: AgentHost, services: HostServices, pool: WorkerPool, *,
        post: Callable[..., None], carry_out: Callable[[list[Effect]], None], pass_on: PassOn, starve: Starve,
        tell: Callable[[Peer, Home], None] | None, clock: Callable[[], float], begin: Callable[[Ticket], None],
        house: Callable[[AgentRecord], Process], apart: Callable[[], tuple[int, int]],
        beside: dict[int, Callable[[int, int], object]],
    ) -> None:  # fmt: skip
        self.dispatcher = dispatcher
        self.services = services
        self.pool = pool
        self.begin = begin
        self.post = post
        self.carry_out = carry_out
        self.pass_on = pass_on
        self.starve = starve
        self.clock = clock
        self.house = house
        self._apart = apart
        self.beside = beside
        self.poller: Any = None  # of the router thread; there when this host joins
        self.address = ""
        self.drains = False  # this host gives its agents away
        self.is_closed = False  # it passes nothing on any more
        self._host = host
        self._classes: ClassTable = host.classes
        self._tell = tell
        self._config = config = dispatcher.config
        self._prefix = f"{CLUSTER}{config.cluster}/"
        self._neighbours: dict[str, Neighbour] = {}
        self._addresses: set[str] = set()  # of the members, as of the latest beat
        self._joined = threading.Event()
        self._relayed = self._legs = 0
        self._elsewhere = {"told": 0, "met": 0}  # by this host, at another

    # ------------------------------------------------------------ what is above

    @abc.abstractmethod
    def resident(self, name: AgentName) -> Lodger | None:
        """An agent that lives here."""

    @property
    @abc.abstractmethod
    def lodgers(self) -> list[Lodger]:
        """All agents that live here."""

    @abc.abstractmethod
    def has(self, lodger: Lodger) -> bool:
        """Whether it lives here, or its record is not released yet."""

    @property
    @abc.abstractmethod
    def leaving(self) -> int:
        """How many agents are about to leave this host."""

    @abc.abstractmethod
    def do(self, effects: Iterable[HostEffect]) -> None:
        """Do what the cluster asks of this host."""

    @abc.abstractmethod
    def is_leaving(self, name: AgentName) -> bool:
        """Whether the agent was here, and its record is not released."""

    @abc.abstractmethod
    def way(self, name: AgentName) -> Any:
        """The way to an agent, made now if there is none."""

    @abc.abstractmethod
    def forget(self, way: Any) -> None:
        """Drop a way that nothing depends on."""

    @abc.abstractmethod
    def send_on(self, ticket: Ticket, name: AgentName, *, ahead: bool = False) -> None:
        """A call of an agent that leaves is to be run wherever that goes; ``ahead``: before those that were sent on."""

    @abc.abstractmethod
    def moved_out(self, lodger: Any) -> None:
        """No code of the agent runs here any more."""

    @abc.abstractmethod
    def on_way_out(self, name: str) -> None:
        """Nothing of the agent is here any more."""

    @abc.abstractmethod
    def watch(self, lodger: Lodger | None = None) -> None:
        """Something is held: look at it now and then. ``lodger``: calls of this one, or its making."""

    # ------------------------------------------------------------ the member

    def _info(self) -> MemberInfo:
        config, dispatcher = self._config, self.dispatcher
        classes: dict[str, int] = {}
        needs: dict[str, Mapping[str, str]] = {}
        for name in self._classes.names():
            spec = self._classes.spec(name)
            classes[spec.short] = spec.hooks.state_version
            if spec.options.labels:
                needs[spec.short] = spec.options.labels
        processes, calls = self._apart()
        agents, running = len(self.lodgers), dispatcher.running + calls
        capacity = config.capacity * (1 + processes)
        figures = {"agents": agents, "running": running, "capacity": capacity, "relayed": self._relayed}
        draining = self.drains or dispatcher.draining
        return MemberInfo(
            "", self.address, __version__, config.labels, classes, float(agents + running), draining,
            figures={**figures, **self._counters()}, needs=needs,
        )  # fmt: skip

    def _counters(self) -> dict[str, int]:
        return asdict(self.member.activations.counters) if self._joined.is_set() else {}

    def _look_at_members(self) -> None:
        """End the connections to members that are no more, and what waits for their answers."""
        now = {info.address for info in self.member.placement.members}
        for address in (self._addresses - now) & self._neighbours.keys():
            neighbour = self._neighbours.pop(address)
            neighbour.hear_out()  # its last words may come later than the news of its end
            neighbour.close(errors.CallLost(f"the host at {address} was declared dead"))
        self._addresses = now

    @property
    def may_answer(self) -> bool:
        """Whether this host holds its lease."""
        return self.member.lease.admits(boot_time()) is Admission.START

    def may_start(self, name: str) -> bool:
        """Whether a call of an agent that lives here may begin."""
        return self.may_answer and self.member.activations.readiness(name) is acts.Readiness.READY

    def why_not_ready(self) -> list[str]:
        """What speaks against sending calls to this host."""
        barred, reasons = self.member.barred, []
        if not self.may_answer:
            not_held = f"its lease in the cluster {self._config.cluster} is not held"
            reasons.append(f"it may not join again: {barred}" if barred else not_held)
        return reasons + (["it gives its agents away"] if self.drains else [])

    @property
    def newest_form(self) -> int:
        """The newest form of the cluster's records that this host knows."""
        return self._config.record_forms[1]

    # ------------------------------------------------------------ other members

    def neighbour(self, address: str) -> Neighbour:
        """The connection to another member."""
        known = self._neighbours.get(address)
        if known is None or not known.is_open:
            known = self._neighbours[address] = Neighbour(address, self)
        return known

    def address_of(self, incarnation: str) -> str:
        """The address of a member, "" for one that is not known."""
        return self.member.address_of(incarnation)

    def incarnation_at(self, address: str) -> str:
        """The member at this address, "" if none is known."""
        return next((info.incarnation for info in self.member.placement.members if info.address == address), "")

    def left_of(self, info: MemberInfo) -> float:
        """The part of a member's lease that was left at this host's latest beat."""
        return min(1.0, max(0.0, info.lease_left_s / self._config.lease_s))

    def next_leg(self) -> int:
        """Calls of an agent take another way: the number of that leg, which other members know it by."""
        self._legs += 1
        return self._legs

    def count_relay(self) -> None:
        """A call is passed on."""
        self._relayed += 1

    def count_elsewhere(self, side: str) -> None:
        """A call was not executed, for its agent is elsewhere: "told" by this host, "met" at another one."""
        self._elsewhere[side] += 1

    def met(self, name: str, address: str) -> None:
        """A call was answered at this address."""
        if self.member.homes.find(name) is None:
            self.member.homes.note(name, address, 1)

    def hint(self, ticket: Ticket, name: str) -> None:
        """Tell the client whose call this is the shorter way."""
        home = self.member.homes.find(name)
        if home is not None and self._tell is not None and not (ticket.peer.local or ticket.peer.gone):
            self._tell(ticket.peer, Home(self.agent_id(name), home.address, home.epoch))

    # ------------------------------------------------------------ agents

    def name_in(self, agent_id: str) -> AgentName:
        """The name of an agent of this cluster. Raises `UnknownCluster`, `ConfigError`."""
        reference = parse_reference(agent_id)
        if reference.cluster != self._config.cluster:
            text = f"this host is a member of the cluster {self._config.cluster}, not of {reference.cluster}"
            raise errors.UnknownCluster(text)
        return reference.agent

    def agent_id(self, name: str) -> str:
        """The reference to an agent of this cluster."""
        return f"{self._prefix}{name}"

    def has_class(self, cls: str) -> bool:
        """Whether this host has a class of this short name."""
        with contextlib.suppress(errors.UnknownClass):
            return self._classes.spec(cls).short == cls
        return False

    def state_version(self, cls: str) -> int:
        """The newest state of this class that this host reads. Raises UnknownClass."""
        return self._classes.spec(cls).hooks.state_version

    def takes_local(self, cls: str, asked: Mapping[str, Any]) -> bool:
        """Whether this host is to take a new agent for no other reason than that it was asked for it."""
        placement = asked.get("placement")
        if placement is None:
            with contextlib.suppress(errors.UnknownClass):
                placement = self._classes.spec(cls).options.placement
        mine = self.member.placement.find(self.member.incarnation)
        return placement == "local" and not self.drains and mine is not None and mine.takes(cls, 0, asked.get("labels"))

    def activate(self, name: AgentName, made: acts.Made | None, *, given: bool = False, unseen: bool = False) -> None:
        """Claim an agent. Raises UnknownClass, CannotServe.

        ``given``: its record says that it is this host's already. Then nobody else can have it while this host lives.
        ``unseen``: nobody has looked at its record.
        """
        spec = self._classes.spec(name.cls)
        if self.drains and not given:
            raise errors.CannotServe(f"{self._config.server_id} gives its agents away, and takes none")
        version = spec.hooks.state_version
        self.do(self.member.carry(self.member.activations.activate(name.text, name.cls, version, made, unseen=unseen)))

    def described(self, record: AgentRecord) -> Reply:
        """What `create_agent` gives for an agent that is there."""
        return Reply(Code.NONE, (self._host.description(record),))

    def describe(self, agent_id: str) -> bytes:
        """What an agent of the cluster offers: of its class, for it may not be here. Raises UnknownClass."""
        name = self.name_in(agent_id)
        resident = self.resident(name)
        if resident is not None and resident.record.made:
            return self._host.description(resident.record)
        spec = self._classes.spec(name.cls)
        return self._host.description(AgentRecord(agent_id, spec, spec.options, self.clock()))

    # ------------------------------------------------------------ time

    def alarm(self, delay_s: float, alarm: Alarm) -> None:
        """Have ``alarm`` ring in ``delay_s``."""
        self.dispatcher.timers.add(self.clock() + delay_s, alarm)

    def later(self, step: Callable[[], None]) -> None:
        """Do ``step`` when what is being done is done."""
        self.post(_do, step)


def _do(step: Callable[[], None]) -> list[Effect]:
    step()
    return []
