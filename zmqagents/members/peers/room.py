"""This host as a member of its cluster: what the router thread has of it.

`cluster.Member` says what is to be done for the cluster; this class does it with the host's own parts. A call for an
agent of the cluster that is not here goes into the `Way` of its name; an agent that lives here is a `Resident`.

    admission ── find ──► Way ── claimed here ──► Resident ── its code runs in the worker pool
                           └── elsewhere ──► Neighbour ──► its home

All of this belongs to the router thread, but for `take_state` and what the threads of the steward deliver.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import codec, discovery, errors
from ...agents.context import HostServices
from ...agents.options import OPTION_NAMES
from ...agents.state import Snapshot
from ...cluster import activations as acts
from ...cluster.lease import PATIENCE_S, Admission, boot_time
from ...cluster.member import Died, HostEffect, Joined, Member, Unsaved, Whereabouts
from ...cluster.naming import AgentName, parse_reference
from ...cluster.placement import MemberInfo
from ...cluster.steward import Beaten, Event, Identity, Steward, Told
from ...config import CLUSTER
from ...errors import ZmqAgentsError
from ...execution.classes import ClassTable
from ...execution.runner import AgentHost
from ...execution.threads import WorkerPool
from ...scheduler.dispatcher import Dispatcher
from ...scheduler.effects import Effect
from ...scheduler.records import AgentRecord, Alarm, Peer, State, Ticket
from ...security.keys import KeyStore
from ...security.private import read_private, write_private
from ...store.cluster import ClusterRecords, Refusal
from ...version import __version__
from ...wire.messages import Call, Code, Home, Op, Reply
from ..forwarder import PassOn, Starve
from .drain import Drain
from .inquiries import Inquiries
from .keeper import ClusterKeeper, packed, unpacked
from .neighbour import Neighbour
from .resident import Leaving, Resident
from .way import MAKE, UNMAKE, Passage, Way, WayState

__all__ = ["Room"]

log = logging.getLogger(__name__)

JOIN_S = 5.0  # for the first beat
WATCH_S = 0.1  # how often what is held is looked at
IDLE_S = 3600.0  # an agent that was not called for so long is saved and given back
IDLE_EVERY_S = 30.0
LAST_WORDS_S = 0.5  # for the agents of a host that was declared dead to save what they have
OF_MEMBERS = ("user", "hop", "activate")  # options of calls that are taken from other members alone
MAX_OPTIONS_BYTES = 65_536


class Room:
    """See the module's docstring. ``tell`` tells a client where an agent is."""

    def __init__(
        self, dispatcher: Dispatcher, host: AgentHost, services: HostServices, keeper: ClusterKeeper, pool: WorkerPool,
        *, post: Callable[..., None], carry_out: Callable[[list[Effect]], None], pass_on: PassOn, starve: Starve,
        tell: Callable[[Peer, Home], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.dispatcher = dispatcher
        self.services = services
        self.pool = pool
        self.post = post
        self.carry_out = carry_out
        self.pass_on = pass_on
        self.starve = starve
        self.clock = clock
        self.address = ""
        self.residents: dict[str, Resident] = {}
        self.member: Member  # see `open`
        self.inquiries = Inquiries(self)
        self.drain: Drain | None = None  # this host gives its agents away
        self._host = host
        self._classes: ClassTable = host.classes
        self._keeper = keeper
        self._tell = tell
        self._config = config = dispatcher.config
        self._prefix = f"{CLUSTER}{config.cluster}/"
        self._ways: dict[str, Way] = {}
        self._leaving: dict[str, Resident] = {}  # whose record is not released yet
        self._neighbours: dict[str, Neighbour] = {}
        self._addresses: set[str] = set()  # of the members, as of the latest beat
        self._watch: Alarm | None = None
        self._joined = threading.Event()
        self._start_file: Path | None = None
        self._relayed = self._refused = 0
        keeper.open(self.take_state)

    def __repr__(self) -> str:
        return f"<Room [{len(self.residents)} agents here, {len(self._ways)} ways, {len(self._neighbours)} neighbours]>"

    # ------------------------------------------------------------ a member's life

    def open(self, address: str, ipc: str) -> None:
        """Join the cluster, as the host at ``address`` that holds the lock of ``ipc``.

        Raises `ConfigError` if this host may not, `StoreUnavailable` without a Redis.
        """
        config, start = self._config, secrets.token_hex(12)
        self.address = address
        key = KeyStore.open().server_keypair().public
        fingerprint = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        identity = Identity(config.server_id, start, fingerprint, config.lease_s)
        steward = Steward(lambda: ClusterRecords(config.redis_url, config.cluster), identity, self._deliver)
        self.member = Member(steward, identity, self._info())
        self.member.start()
        self._start_file = path = Path(ipc).with_suffix(".start")
        for former in _starts_of_the_dead(path, config.cluster):
            steward.obituary(former)
        write_private(path, f"{config.cluster} {start}".encode(), lasting=False)
        self.alarm(IDLE_EVERY_S, Alarm(self._look_for_idle))
        if not self._joined.wait(JOIN_S):
            self.close()
            raise errors.StoreUnavailable("Redis does not take the first sign of life of this member")

    def _info(self) -> MemberInfo:
        config, dispatcher, classes = self._config, self.dispatcher, {}
        for name in self._classes.names():
            spec = self._classes.spec(name)
            classes[spec.short] = spec.hooks.state_version
        agents, running = len(self.residents), dispatcher.running
        figures = {"agents": agents, "running": running, "capacity": config.capacity, "relayed": self._relayed}
        draining = self.drain is not None or dispatcher.draining
        return MemberInfo(
            "", self.address, __version__, config.labels, classes, float(agents + running), draining,
            figures={**figures, **self._counters()},
        )  # fmt: skip

    def _counters(self) -> dict[str, int]:
        return asdict(self.member.activations.counters) if self._joined.is_set() else {}

    def _deliver(self, events: Sequence[Event]) -> None:
        """For the threads of the steward."""
        if any(isinstance(event, Beaten) for event in events):
            self._joined.set()
        self.post(self._on_events, events)

    def _on_events(self, events: Sequence[Event]) -> list[Effect]:
        for event in events:
            self.do(self.member.on_event(event))
            if isinstance(event, Beaten):
                self.member.describe(self._info())
                self._look_at_members()
                for resident in list(self.residents.values()):
                    resident.go_on()
        return []

    def _look_at_members(self) -> None:
        """End the connections to members that are no more, and what waits for their answers."""
        now = {info.address for info in self.member.placement.members}
        for address in (self._addresses - now) & self._neighbours.keys():
            self._neighbours.pop(address).close(errors.CallLost(f"the host at {address} was declared dead"))
        self._addresses = now

    def close(self) -> None:
        """Tell the others that this host ends; end the threads and the connections."""
        for neighbour in self._neighbours.values():
            neighbour.close(errors.HostStopping("the host has stopped"))
        activations = self.member.activations
        for name in activations:
            if activations.phase(name) in (acts.Phase.STARTING, acts.Phase.ACTIVE):
                self.member.carry(activations.release(name))
        self.member.close()
        if self._start_file is not None:
            self._start_file.unlink(missing_ok=True)
        for neighbour in self._neighbours.values():
            neighbour.join()

    # ------------------------------------------------------------ for admission

    def find(self, peer: Peer, call: Call, agent_id: str) -> tuple[AgentRecord, str]:
        """The agent that a call is for, which is not among those of this host, and what is to be done with it."""
        name = self.name_in(agent_id)
        if not peer.is_member and any(option in call.options for option in OF_MEMBERS):
            self._refused += 1
            raise errors.PermissionRefused(f"{call.method} of {agent_id} has options that are taken from members alone")
        passage = self.way(name).passage()
        passage.hop, passage.activate = bool(call.options.get("hop")), bool(call.options.get("activate"))
        op = ""
        if call.agent == "":
            op = UNMAKE if call.method == Op.DELETE else MAKE
            told = ("id", "class", "if_exists", *OPTION_NAMES) if op == MAKE else ("id",)
            passage.options = {key: call.options[key] for key in told if key in call.options}
            if op == MAKE:
                passage.made = self._made(name, call)
        return passage.record, op

    def name_in(self, agent_id: str) -> AgentName:
        """The name of an agent of this cluster. Raises `UnknownCluster`, `ConfigError`."""
        reference = parse_reference(agent_id)
        if reference.cluster != self._config.cluster:
            text = f"this host is a member of the cluster {self._config.cluster}, not of {reference.cluster}"
            raise errors.UnknownCluster(text)
        return reference.agent

    def _made(self, name: AgentName, call: Call) -> acts.Made:
        """What `create_agent` says of an agent."""
        cls = call.options.get("class")
        if not isinstance(cls, str) or cls.rpartition(":")[2].rpartition(".")[2] != name.cls:
            raise errors.ConfigError(f"an agent of the class {cls!r} cannot be called {name}: say Class/key")
        chosen = {key: call.options[key] for key in OPTION_NAMES if key in call.options}
        arguments, options = packed(call.body), codec.pack(chosen)
        if len(arguments) + len(options) > MAX_OPTIONS_BYTES:
            size = len(arguments) + len(options)
            raise errors.MessageTooLarge(
                f"the arguments of {name} take {size} bytes, at most {MAX_OPTIONS_BYTES} are kept", size,
                MAX_OPTIONS_BYTES,
            )  # fmt: skip
        return acts.Made(arguments, options, call.options.get("if_exists") != "get")

    # ------------------------------------------------------------ for ways and residents

    @property
    def may_answer(self) -> bool:
        """Whether this host holds its lease."""
        return self.member.lease.admits(boot_time()) is Admission.START

    def may_start(self, name: str) -> bool:
        """Whether a call of an agent that lives here may begin."""
        return self.may_answer and self.member.activations.readiness(name) is acts.Readiness.READY

    def is_leaving(self, name: AgentName) -> bool:
        """Whether the agent was here, and its record is not released."""
        resident = self.residents.get(str(name))
        return str(name) in self._leaving or (resident is not None and resident.is_leaving)

    def way(self, name: AgentName) -> Way:
        """The way to an agent, made now if there is none."""
        way = self._ways.get(str(name))
        if way is None:
            way = self._ways[str(name)] = Way(self, name, f"{self._prefix}{name}")
        return way

    def forget(self, way: Way) -> None:
        """Drop a way that nothing depends on."""
        if way.is_empty and self._ways.get(str(way.name)) is way:
            del self._ways[str(way.name)]

    def neighbour(self, address: str) -> Neighbour:
        """The connection to another member."""
        known = self._neighbours.get(address)
        if known is None or not known.is_open:
            known = self._neighbours[address] = Neighbour(address)
        return known

    def address_of(self, incarnation: str) -> str:
        """The address of a member, "" for one that is not known."""
        return self.member.address_of(incarnation)

    def agent_id(self, name: str) -> str:
        """The reference to an agent of this cluster."""
        return f"{self._prefix}{name}"

    def left_of(self, info: MemberInfo) -> float:
        """The part of a member's lease that was left at this host's latest beat."""
        return min(1.0, max(0.0, info.lease_left_s / self._config.lease_s))

    def state_version(self, cls: str) -> int:
        """The newest state of this class that this host reads. Raises UnknownClass."""
        return self._classes.spec(cls).hooks.state_version

    def why_not_ready(self) -> list[str]:
        """What speaks against sending calls to this host."""
        reasons = [] if self.may_answer else [f"its lease in the cluster {self._config.cluster} is not held"]
        return reasons + (["it gives its agents away"] if self.drain is not None else [])

    @property
    def leaving(self) -> int:
        """How many agents are about to leave this host."""
        return len(self._leaving) + sum(resident.is_leaving for resident in self.residents.values())

    def begin_drain(self, end: float, then: Callable[[], None]) -> bool:
        """Give the agents to others until the time ``end``, then call ``then``. False: there is nobody to take them."""
        mine = self.member.incarnation
        others = [info for info in self.member.placement.members if info.incarnation != mine and not info.draining]
        if self.drain is not None or not others:
            return False
        self.drain = Drain(self, end, then)
        self.member.describe(self._info())
        self.later(self.drain.step)
        return True

    def incarnation_at(self, address: str) -> str:
        """The member at this address, "" if none is known."""
        return next((info.incarnation for info in self.member.placement.members if info.address == address), "")

    def activate(self, name: AgentName, made: acts.Made | None) -> None:
        """Claim an agent. Raises UnknownClass, CannotServe."""
        spec = self._classes.spec(name.cls)
        if self.drain is not None:
            raise errors.CannotServe(f"{self._config.server_id} gives its agents away, and takes none")
        if (spec.options.isolation or self._config.isolation) != "thread":
            raise errors.CannotServe(f"{name}: agents of a cluster run in threads of their host (isolation)")
        version = spec.hooks.state_version
        self.do(self.member.carry(self.member.activations.activate(str(name), name.cls, version, made)))

    def send_on(self, ticket: Ticket, name: AgentName) -> None:
        """A call of an agent that leaves is to be run wherever that goes."""
        passage = self.way(name).passage()
        passage.hop = ticket.peer.is_member and not ticket.task_id.startswith(f"{ticket.peer.prefix}-")
        self.carry_out(self.dispatcher.on_move(ticket, passage.record, self.clock()))

    def moved_out(self, resident: Resident) -> None:
        """No code of the agent runs here any more."""
        if self.residents.get(resident.name) is resident:
            del self.residents[resident.name]
            if resident.phase is not None:
                self._leaving[resident.name] = resident

    def dismiss(self, resident: Resident) -> None:
        """Another activation of the agent may be here, although the code of this one may run on."""
        if self.residents.get(resident.name) is resident:
            del self.residents[resident.name]

    def described(self, record: AgentRecord) -> Reply:
        """What `create_agent` gives for an agent that is there."""
        return Reply(Code.NONE, (self._host.description(record),))

    def describe(self, agent_id: str) -> bytes:
        """What an agent of the cluster offers: of its class, for it may not be here. Raises UnknownClass."""
        name = self.name_in(agent_id)
        resident = self.residents.get(str(name))
        if resident is not None and resident.record.made:
            return self._host.description(resident.record)
        spec = self._classes.spec(name.cls)
        return self._host.description(AgentRecord(agent_id, spec, spec.options, self.clock()))

    def count_relay(self) -> None:
        """A call is passed on."""
        self._relayed += 1

    def met(self, name: str, address: str) -> None:
        """A call was answered at this address."""
        if self.member.homes.find(name) is None:
            self.member.homes.note(name, address, 1)

    def hint(self, passage: Passage) -> None:
        """Tell a client the shorter way."""
        home, ticket = self.member.homes.find(str(passage.way.name)), passage.ticket
        if home is not None and ticket is not None and not (ticket.peer.local or ticket.peer.gone or passage.hop):
            self._tell(ticket.peer, Home(passage.way.agent_id, home.address, home.epoch))

    def alarm(self, delay_s: float, alarm: Alarm) -> None:
        """Have ``alarm`` ring in ``delay_s``."""
        self.dispatcher.timers.add(self.clock() + delay_s, alarm)

    def later(self, step: Callable[[], None]) -> None:
        """Do ``step`` when what is being done is done."""
        self.post(_do, step)

    def watch(self) -> None:
        """Something is held: look at it now and then."""
        if self._watch is None:
            self._watch = Alarm(self._look)
            self.alarm(WATCH_S, self._watch)

    def _look(self, now: float) -> list[Effect]:
        """End what has waited for Redis long enough; give places of activations that wait to others."""
        self._watch = None
        before, is_away = now - PATIENCE_S, self.member.lease.is_away
        gone = errors.StoreUnavailable(f"Redis does not answer for {PATIENCE_S:g} s: nothing was executed")
        for resident in list(self.residents.values()):
            if is_away:
                resident.refuse_held(gone, before)
            resident.go_on()
        for way in list(self._ways.values()):
            if is_away and way.state in (WayState.LOOKING, WayState.CLAIMING):
                way.refuse(gone, only=[passage for passage in way.held if passage.came <= before])
                self.forget(way)
        for name, resident in list(self.residents.items()):
            if not resident.record.made and any(each.state is State.WAITING for each in resident.record.holders):
                self.do(self.member.carry(self.member.activations.waits(name)))
        starts = any(not resident.record.made for resident in self.residents.values())
        if starts or any(way.held for way in self._ways.values()) or any(r.is_held for r in self.residents.values()):
            self.watch()
        return []

    def _look_for_idle(self, now: float) -> list[Effect]:
        """Give agents back that nobody has called for long."""
        self.alarm(IDLE_EVERY_S, Alarm(self._look_for_idle))
        for resident in list(self.residents.values()):
            if resident.is_idle and now - resident.used >= IDLE_S:
                resident.leave(Leaving.RELEASED)
        return []

    # ------------------------------------------------------------ what the cluster says

    def take_state(self, agent_id: str, snapshot: Snapshot, record: object) -> None:
        """Take the state of an agent. Any thread."""
        self.post(self._on_state, agent_id, snapshot, record)

    def _on_state(self, agent_id: str, snapshot: Snapshot, record: object) -> list[Effect]:
        resident = self.residents.get(agent_id.removeprefix(self._prefix))
        if resident is not None and resident.record is record:  # code of a former activation may still run
            resident.save(snapshot)
        return []

    def do(self, effects: Iterable[HostEffect]) -> None:
        """Do what the cluster asks of this host."""
        for effect in effects:
            action = _ACTIONS.get(type(effect))
            if action is not None:
                action(self, effect)

    def _resident(self, name: str) -> Resident | None:
        return self.residents.get(name) or self._leaving.get(name)

    def on_activated(self, activated: acts.Activated) -> None:
        """The agent is this host's: make it."""
        name, mine, now = activated.name, activated.mine, self.clock()
        self.member.homes.forget(name)
        agent_id = f"{self._prefix}{name}"
        way = self._ways.get(name)
        try:
            agent = parse_reference(agent_id).agent
            spec = self._classes.spec(agent.cls)
            options = spec.options
            if mine.options:
                options = options.but(codec.unpack(mine.options, max_bytes=MAX_OPTIONS_BYTES)).checked()
            body = unpacked(mine.arguments) if mine.arguments else (_NO_ARGUMENTS,)
            if mine.state is not None:
                self._keeper.give(agent_id, Snapshot(0, mine.version or 0, unpacked(mine.state)))
        except ZmqAgentsError as exc:
            self.do(self.member.carry(self.member.activations.release(name)))
            if way is not None:
                way.cannot(errors.CannotServe(f"{agent_id}: {exc}"))
            return
        record = AgentRecord(agent_id, spec, options, now, (), self.dispatcher.calls.meters.of_class(spec.name))
        self.residents[name] = Resident(self, agent, record, mine.epoch)
        effects: list[Effect] = []
        self.dispatcher.calls.begin_agent(record, body, effects, now)
        self.carry_out(effects)
        self.watch()
        if way is not None:
            way.claimed()

    def on_elsewhere(self, elsewhere: acts.Elsewhere) -> None:
        """Another host has the agent."""
        name, owner, epoch = elsewhere
        address = self.member.address_of(owner) if owner != self.member.incarnation else ""
        if address:
            self.member.homes.note(name, address, epoch)
        way = self._ways.get(name)
        if way is not None:
            way.not_claimed(address)

    def on_not_activated(self, refused: acts.NotActivated) -> None:
        """The agent cannot be had."""
        name, why, detail = refused
        way = self._ways.get(name)
        if way is None:
            return
        error: ZmqAgentsError
        if why is Refusal.EXISTS:
            error = errors.AgentExists(
                f"there is already an agent {name}{f', of the class {detail}' if detail else ''}"
            )
        elif why is Refusal.NEWER:
            error = errors.TooOld(f"the state of {name} has version {detail}, which this host does not read")
            way.cannot(error)
            return
        elif why is Refusal.FULL:
            error = errors.HostBusy(f"the cluster {self._config.cluster} has as many agents as it may have")
        else:
            error = errors.StoreError(detail)
        way.not_claimable(error)

    def on_taken(self, taken: acts.Taken) -> None:
        """Saves are in Redis."""
        resident = self._resident(taken.name)
        if resident is not None:
            resident.taken(taken.calls)  # type: ignore[arg-type]  # they are tickets

    def on_dropped(self, dropped: acts.Dropped) -> None:
        """An activation is no more."""
        resident = self._resident(dropped.name)
        self._leaving.pop(dropped.name, None)
        if resident is not None:
            resident.drop(dropped)
            self.dismiss(resident)
            resident.gone()
        self.on_way_out(dropped.name)

    def on_gone(self, gone: acts.Gone | acts.Removed) -> None:
        """An agent is given back, or deleted."""
        name = gone.name
        resident = self._leaving.pop(name, None) or self.residents.get(name)
        if resident is not None:
            self.dismiss(resident)
            resident.gone()
        if isinstance(gone, acts.Gone) and gone.following:
            address = self.member.address_of(gone.following)
            if address:
                self.member.homes.note(name, address, gone.epoch)
        self.on_way_out(name)

    def on_way_out(self, name: str) -> None:
        """Nothing of the agent is here any more."""
        way = self._ways.get(name)
        if way is not None:
            way.left()
        if self.drain is not None:
            self.drain.step()

    def on_room(self, cleared: acts.Cleared | acts.Room) -> None:
        """Calls of an agent may start again."""
        resident = self.residents.get(cleared.name)
        if resident is not None:
            resident.go_on()

    def on_renew(self, renew: acts.Renew) -> None:
        """Redis has lost what was written: the agent is given back, with its state, and the next call has it again."""
        resident = self.residents.get(renew.name)
        if resident is not None:
            resident.leave(Leaving.RELEASED)

    def on_unsaved(self, unsaved: Unsaved) -> None:
        """Redis has not taken saves for too long."""
        error = errors.CallLost("Redis has not taken the state of the agent: the call ran, whether it is kept is open")
        for name, call in unsaved.calls:
            resident = self._resident(name)
            if resident is not None and isinstance(call, Ticket):
                resident.lose(call, error)

    def on_whereabouts(self, found: Whereabouts) -> None:
        """Redis has said where an agent is."""
        way = self._ways.get(found.name)
        if way is not None:
            way.found(found)

    def on_told(self, told: Told) -> None:
        """An inquiry is answered."""
        token: Any = told.token
        token(told.answer)

    def on_joined(self, joined: Joined) -> None:
        """This host has a lease."""
        log.info("%s: joined the cluster %s", joined.incarnation, self._config.cluster)

    def on_died(self, died: Died) -> None:
        """The others take this host for dead: give back what it has, and be another member."""
        log.warning("%s: was declared dead; its agents are given back", died.incarnation)
        for resident in list(self.residents.values()):
            resident.give_up()
        self.alarm(LAST_WORDS_S, Alarm(self._leave_dead))

    def _leave_dead(self, now: float) -> list[Effect]:
        self.do(self.member.leave_dead())
        return []

    # ------------------------------------------------------------ figures

    def figures(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "name": self._config.cluster, **self.member.figures(), "relayed": self._relayed, "ways": len(self._ways),
            "refused": self._refused,
        }  # fmt: skip


def _starts_of_the_dead(own: Path, cluster: str) -> Iterator[str]:
    """The tokens of members of this user on this machine whose process has ended without a word; each once."""
    for path in own.parent.glob("*.start"):
        lock = discovery.IpcLock(str(path.with_suffix(".ipc")), wait_s=0)
        with contextlib.suppress(OSError, errors.ConfigError, errors.AddressInUse):
            name, _, start = read_private(path).decode("ascii", "replace").partition(" ")
            if name == cluster and start.isalnum():
                with lock if path != own else contextlib.nullcontext():  # its own lock this host has already
                    path.unlink()
                yield start


def _do(step: Callable[[], None]) -> list[Effect]:
    step()
    return []


_NO_ARGUMENTS = codec.encode_call((), {}, what="").payload
_ACTIONS: dict[type, Callable[[Room, Any], None]] = {
    acts.Activated: Room.on_activated, acts.Elsewhere: Room.on_elsewhere, acts.NotActivated: Room.on_not_activated,
    acts.Taken: Room.on_taken, acts.Dropped: Room.on_dropped, acts.Gone: Room.on_gone, acts.Removed: Room.on_gone,
    acts.Cleared: Room.on_room, acts.Room: Room.on_room, acts.Renew: Room.on_renew, Unsaved: Room.on_unsaved,
    Whereabouts: Room.on_whereabouts, Told: Room.on_told, Joined: Room.on_joined, Died: Room.on_died,
}  # fmt: skip
