"""This host as a member of its cluster: what the router thread has of it.

`cluster.Member` says what is to be done for the cluster; this class does it with the host's own parts. A call for an
agent of the cluster that is not here goes into the `Way` of its name; an agent that lives here is a `Resident`.

    admission ── find ──► Way ── claimed here ──► Resident ── its code runs in the worker pool
                           │                 └──► Tenant ──── its code runs in a process of this host
                           └── elsewhere ──► Neighbour ──► its home

All of this belongs to the router thread, but for `take_state` and what the threads of the steward deliver.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ... import codec, discovery, errors
from ...agents.context import HostServices
from ...agents.options import OPTION_NAMES, AgentOptions
from ...agents.spec import ClassSpec
from ...agents.state import Reminder, Snapshot
from ...cluster import activations as acts
from ...cluster.member import Died, HostEffect, Joined, Member, Unsaved, Whereabouts
from ...cluster.naming import AgentName, parse_reference
from ...cluster.placement import shown_labels
from ...cluster.reminders import MAX_REMINDERS
from ...cluster.steward import Beaten, Event, Identity, Steward, Told, Trouble
from ...config import BrokerConfig
from ...errors import ZmqAgentsError
from ...execution.runner import AgentHost
from ...execution.threads import WorkerPool
from ...scheduler.admission import check_persist
from ...scheduler.dispatcher import Dispatcher
from ...scheduler.effects import Effect
from ...scheduler.records import AgentRecord, Alarm, Peer, Ticket
from ...security.keys import KeyStore
from ...security.private import read_private, write_private
from ...store.cluster import ClusterRecords, Mine, Refusal
from ...store.forms import Forms
from ...wire.messages import Call, Op
from .drain import Drain
from .inquiries import STATES, Inquiries, state_of
from .keeper import ClusterKeeper, packed, unpacked
from .quarters import Leaving, Lodger, Quarters
from .resident import Resident
from .tenant import Tenant
from .ticks import Ticks
from .watch import Watch
from .way import MAKE, MAX_OPTIONS_BYTES, UNMAKE, Way

__all__ = ["Room"]

log = logging.getLogger(__name__)

JOIN_S = 5.0  # for the first beat
RELEASES_S = 0.2  # beyond the grace; agents that are not released have to be claimed from a member that is dead
LAST_WORDS_S = 0.5  # for the agents of a host that was declared dead to save what they have
OF_MEMBERS = ("user", "hop", "leg", "activate")  # options of calls that are taken from other members alone


class Room(Quarters):
    """See the module's docstring."""

    def __init__(
        self, dispatcher: Dispatcher, host: AgentHost, services: HostServices, keeper: ClusterKeeper, pool: WorkerPool,
        **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(dispatcher, host, services, pool, **more)
        self.inquiries = Inquiries(self)
        self._ticks = Ticks(self)
        self._watch = Watch(self, lambda: list(self._ways.values()))
        self._residents: dict[str, Resident] = {}
        self._drain: Drain | None = None
        self._keeper = keeper
        self._ways: dict[str, Way] = {}
        self._leaving: dict[str, Resident] = {}  # whose record is not released yet
        self._unmade: dict[str, ZmqAgentsError] = {}  # names that are given back, for no agent could be made; and why
        self._start_file: Path | None = None
        self._refused = 0
        keeper.open(self.take_state, self.take_reminder)

    def __repr__(self) -> str:
        return (
            f"<Room [{len(self._residents)} agents here, {len(self._ways)} ways, {len(self._neighbours)} neighbours]>"
        )

    # ------------------------------------------------------------ a member's life

    def open(self, address: str, ipc: str, poller: Any) -> None:
        """Join the cluster, as the host at ``address`` that holds the lock of ``ipc`` and polls with ``poller``.

        Raises `ConfigError` if this host may not, `StoreUnavailable` without a Redis.
        """
        config, start = self._config, secrets.token_hex(12)
        self.address, self.poller = address, poller
        key = KeyStore.open().server_keypair().public
        fingerprint = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        identity = Identity(config.server_id, start, fingerprint, config.lease_s)
        forms = Forms(*config.record_forms)
        steward = Steward(
            lambda: ClusterRecords(config.redis_url, config.cluster, forms=forms), identity, self._deliver
        )
        self.member = Member(steward, identity, self._info())
        self.member.start()
        self._start_file = path = Path(ipc).with_suffix(".start")
        for former in _starts_of_the_dead(path, config.cluster):
            steward.obituary(former)
        write_private(path, f"{config.cluster} {start}".encode(), lasting=False)
        self._watch.begin_idle(path)
        self._ticks.begin()
        if not self._joined.wait(JOIN_S):
            self.close()
            raise errors.StoreUnavailable("Redis does not take the first sign of life of this member")

    def _deliver(self, events: Sequence[Event]) -> None:
        """For the threads of the steward."""
        if any(isinstance(event, Beaten) for event in events):
            self._joined.set()
        self.post(self._on_events, events)

    def _on_events(self, events: Sequence[Event]) -> list[Effect]:
        for event in events:
            self.do(self.member.on_event(event))
            if isinstance(event, Trouble):
                self.watch()
            elif isinstance(event, Beaten):
                self.member.describe(self._info())
                self._look_at_members()
                self._ticks.settle()
                for lodger in self._watch.held:
                    lodger.go_on()
        return []

    def close(self) -> None:
        """Tell the others that this host ends; end the threads and the connections."""
        self.is_closed = True  # what comes back from the connections finds no other way
        self._ticks.close()
        for neighbour in list(self._neighbours.values()):
            neighbour.close(errors.HostStopping("the host has stopped"))
        activations = self.member.activations
        drain = self.dispatcher.calls.drain
        end = self.clock() if drain is None else drain.deadline
        releases_until = max(end, self.clock() + RELEASES_S)
        for name in itertools.takewhile(lambda _: self.clock() < releases_until, activations):
            if activations.phase(name) in (acts.Phase.STARTING, acts.Phase.ACTIVE):
                self.member.carry(activations.release(name))
        self.member.close(end - self.clock())
        if self._start_file is not None:
            self._start_file.unlink(missing_ok=True)

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
                passage.made = _made(name, call)
        return passage.record, op

    def pass_by(self, peer: Peer, call: Call, now: float) -> bool:
        """Pass on a plain call for an agent that has a home elsewhere, as far as is known.

        False: it is a matter for `find`, and nothing is changed. What this leaves out is what decides where a call
        goes: for most of those that a host passes on it is known, and nothing is held.
        """
        if not call.agent.startswith(self._prefix) or not self.dispatcher.may_pass_by(call):
            return False
        name = call.agent[len(self._prefix) :]
        if name in self._residents or name in self._leaving:
            return False
        way = self._ways.get(name)
        if way is None:
            home = self.member.homes.find(name) if name in self.member.homes else None
            if home is None or home.address == self.address:
                return False
            way = Way(self, self.name_in(call.agent), call.agent)
            way.set_out(home.address)
        if self.is_closed or not way.passes_on:
            return False
        passage = way.passage()
        ticket = self.dispatcher.start_elsewhere(peer, call, passage.record, now)
        if ticket is not None:
            self._ways[name] = way
            way.pass_on(passage, ticket)
        return ticket is not None

    # ------------------------------------------------------------ for ways and residents

    def is_leaving(self, name: AgentName) -> bool:
        """Whether the agent was here, and its record is not released."""
        resident = self._residents.get(name.text)
        return name.text in self._leaving or (resident is not None and resident.is_leaving)

    def resident(self, name: AgentName) -> Resident | None:
        """An agent that lives here."""
        return self._residents.get(name.text)

    @property
    def lodgers(self) -> list[Lodger]:
        """All agents that live here."""
        return list(self._residents.values())

    def way(self, name: AgentName) -> Way:
        """The way to an agent, made now if there is none."""
        way = self._ways.get(name.text)
        if way is None:
            way = self._ways[name.text] = Way(self, name, f"{self._prefix}{name}")
        return way

    def forget(self, way: Way) -> None:
        """Drop a way that nothing depends on."""
        if way.is_empty and self._ways.get(way.name.text) is way:
            del self._ways[way.name.text]

    def has(self, lodger: Lodger) -> bool:
        """Whether it lives here, or its record is not released yet."""
        return self._residents.get(lodger.name) is lodger or self._leaving.get(lodger.name) is lodger

    @property
    def leaving(self) -> int:
        """How many agents are about to leave this host."""
        return len(self._leaving) + sum(resident.is_leaving for resident in self._residents.values())

    def begin_drain(self, end: float, then: Callable[[], None]) -> bool:
        """Give the agents to others until the time ``end``, then call ``then``. False: there is nobody to take them."""
        mine = self.member.incarnation
        others = [info for info in self.member.placement.members if info.incarnation != mine and not info.draining]
        if self.drains or not others:
            return False
        self.drains = True
        self._drain = Drain(self, end, then)
        self.member.describe(self._info())
        self.later(self._drain.step)
        return True

    def send_on(self, ticket: Ticket, name: AgentName, *, ahead: bool = False) -> None:
        """A call of an agent that leaves is to be run wherever that goes."""
        passage = self.way(name).passage(ahead=ahead)
        passage.hop = ticket.peer.is_member and not ticket.peer.has_named(ticket.task_id)
        self.carry_out(self.dispatcher.on_move(ticket, passage.record, self.clock()))

    def moved_out(self, resident: Resident) -> None:
        """No code of the agent runs here any more."""
        if self._residents.get(resident.name) is resident:
            del self._residents[resident.name]
            if resident.phase is not None:
                self._leaving[resident.name] = resident

    def dismiss(self, resident: Resident) -> None:
        """Another activation of the agent may be here, although the code of this one may run on."""
        if self._residents.get(resident.name) is resident:
            del self._residents[resident.name]

    def watch(self, lodger: Lodger | None = None) -> None:
        """Something is held: look at it now and then."""
        self._watch.begin(lodger)

    # ------------------------------------------------------------ what the cluster says

    def take_state(self, agent_id: str, snapshot: Snapshot, record: object) -> None:
        """Take the state of an agent. Any thread."""
        self.post(self._for_own, agent_id, record, lambda resident: resident.save(snapshot))

    def _for_own(self, agent_id: str, record: object, act: Callable[[Resident], None]) -> list[Effect]:
        resident = self._residents.get(agent_id.removeprefix(self._prefix))
        if resident is not None and resident.record is record:  # code of a former activation may still run
            act(resident)
        return []

    def take_reminder(self, agent_id: str, reminder: Reminder, record: object) -> None:
        """Take a reminder of an agent. Any thread. Raises HostBusy."""
        resident = self._residents.get(agent_id.removeprefix(self._prefix))
        if reminder.method and resident is not None and resident.reminders >= MAX_REMINDERS:
            raise errors.HostBusy(f"{agent_id} has {MAX_REMINDERS} reminders, which is as many as it may have")
        self.post(self._for_own, agent_id, record, lambda own: own.note_reminder(reminder, is_made=own.record.made))

    def do(self, effects: Iterable[HostEffect]) -> None:
        """Do what the cluster asks of this host."""
        for effect in effects:
            action = _ACTIONS.get(type(effect))
            if action is not None:
                action(self, effect)

    def _whose(self, name: str) -> Resident | None:
        return self._residents.get(name) or self._leaving.get(name)

    def on_activated(self, activated: acts.Activated) -> None:
        """The agent is this host's: make it."""
        name, mine, now = activated.name, activated.mine, self.clock()
        self.member.homes.forget(name)
        agent_id = f"{self._prefix}{name}"
        way = self._ways.get(name)
        if self.drains and not mine.fresh:  # it was given to this host before, and nobody had called it since
            self.do(self.member.carry(self.member.activations.release(name)))
            if way is not None:
                way.not_claimed("")
            return
        try:
            body = unpacked(mine.arguments) if mine.arguments else (_NO_ARGUMENTS,)
            resident = self._move_in(agent_id, mine, way.maker if way is not None else None)
        except ZmqAgentsError as exc:
            activations = self.member.activations
            self._unmade[name] = errors.CannotServe(f"{agent_id}: {exc}")
            ends = activations.delete(name) if mine.fresh else activations.release(name)  # no host could make it either
            self.do(self.member.carry(ends))
            return
        self._residents[name] = resident
        effects: list[Effect] = []
        self.dispatcher.calls.begin_agent(resident.record, body, effects, now)
        self.carry_out(effects)
        self.watch(resident)
        if way is not None:
            way.claimed()

    def _move_in(self, agent_id: str, mine: Mine, maker: acts.Made | None) -> Resident:
        """An agent that is this host's, and is to be made. Raises what speaks against that."""
        agent = parse_reference(agent_id).agent
        spec = self._classes.spec(agent.cls)
        options = spec.options
        chosen = _options_in(mine.options) if mine.options else {}
        if chosen:
            options = options.but(chosen).checked()
        _check_options(spec, options, self._config)
        state = None if mine.state is None else Snapshot(0, mine.version or 0, unpacked(mine.state))
        meters = self.dispatcher.calls.meters.of_class(spec.name)
        record = AgentRecord(agent_id, spec, options, self.clock(), (), meters)
        known = self, agent, record, mine, chosen.get("labels"), maker
        if (options.isolation or self._config.isolation) != "thread":
            return Tenant(*known, process=self.house(record), state=None if options.persist is None else state)
        if state is not None:
            self._keeper.give(agent_id, state)
        return Resident(*known)

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
        elif why is Refusal.FORM:
            way.cannot(errors.TooOld(f"the record of {name} has form {detail}, which this host does not read"))
            return
        elif why is Refusal.FULL:
            error = errors.HostBusy(f"the cluster {self._config.cluster} has as many agents as it may have")
        elif why is Refusal.CHOSEN:
            way.look_first()
            return
        else:
            error = errors.StoreError(detail)
        way.not_claimable(error)

    def on_taken(self, taken: acts.Taken) -> None:
        """Saves are in Redis."""
        resident = self._whose(taken.name)
        if resident is not None:
            resident.taken(taken.calls)  # type: ignore[arg-type]  # they are tickets

    def on_dropped(self, dropped: acts.Dropped) -> None:
        """An activation is no more."""
        resident = self._whose(dropped.name)
        self._leaving.pop(dropped.name, None)
        self._pass_unmade_on(dropped.name)
        if resident is not None:
            resident.drop(dropped)
            self.dismiss(resident)
            resident.gone()
        self.on_way_out(dropped.name)

    def _pass_unmade_on(self, name: str) -> None:
        """Nobody has the agent now that could not be made here: others may be able to. Not before, or they find it."""
        error, way = self._unmade.pop(name, None), self._ways.get(name)
        if error is not None and way is not None:
            way.cannot(error)

    def on_gone(self, gone: acts.Gone | acts.Removed) -> None:
        """An agent is given back, or deleted."""
        name = gone.name
        resident = self._leaving.pop(name, None) or self._residents.get(name)
        if resident is not None:
            resident.leave(Leaving.LOST)  # if it was released without its doing, as on a host that was declared dead
            self.dismiss(resident)
            resident.gone()
        if isinstance(gone, acts.Gone) and gone.following:
            address = self.member.address_of(gone.following)
            if address:
                self.member.homes.note(name, address, gone.epoch)
        self._pass_unmade_on(name)
        self.on_way_out(name)

    def on_way_out(self, name: str) -> None:
        """Nothing of the agent is here any more."""
        way = self._ways.get(name)
        if way is not None:
            way.left()
        if self._drain is not None:
            self._drain.step()

    def on_room(self, cleared: acts.Cleared | acts.Room) -> None:
        """Calls of an agent may start again."""
        resident = self._residents.get(cleared.name)
        if resident is not None:
            resident.go_on()

    def on_renew(self, renew: acts.Renew) -> None:
        """Redis has lost what was written: the agent is given back, with its state, and the next call has it again."""
        resident = self._residents.get(renew.name)
        if resident is not None:
            resident.leave(Leaving.RELEASED)

    def on_soon(self, soon: acts.Soon) -> None:
        """A reminder of an agent is due soon."""
        self._ticks.soon(soon.name, soon.after_s)

    def on_unsaved(self, unsaved: Unsaved) -> None:
        """Redis has not taken saves for too long."""
        error = errors.CallLost("Redis has not taken the state of the agent: the call ran, whether it is kept is open")
        for name, call in unsaved.calls:
            resident = self._whose(name)
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
        self.do(self.member.carry(self.member.activations.stop_claiming()))
        for resident in list(self._residents.values()):
            resident.give_up()
        self.alarm(LAST_WORDS_S, Alarm(self._leave_dead))

    def _leave_dead(self, now: float) -> list[Effect]:
        self.do(self.member.leave_dead())
        return []

    # ------------------------------------------------------------ figures

    def figures(self) -> dict[str, Any]:
        """For `status`."""
        return {
            "name": self._config.cluster, **self.member.figures(), "relayed": self._relayed,
            "elsewhere_told": self._elsewhere["told"], "elsewhere_met": self._elsewhere["met"], "ways": len(self._ways),
            "refused": self._refused, **self._ticks.figures(),
        }  # fmt: skip

    def metrics(self) -> dict[str, Any]:
        """For the request ``metrics``: the same, and what it is made of."""
        took, states = self.member.activations.durations, Counter(map(state_of, self.member.placement.members))
        return {
            **self.figures(), "members": {state: states[state] for state in STATES},
            "took": {"counts": list(took.counts), "sum_s": took.sum_s},
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


def _made(name: AgentName, call: Call) -> acts.Made:
    """What `create_agent` says of an agent."""
    cls = call.options.get("class")
    if not isinstance(cls, str) or cls.rpartition(":")[2].rpartition(".")[2] != name.cls:
        raise errors.ConfigError(f"an agent of the class {cls!r} cannot be called {name}: say Class/key")
    chosen = {key: call.options[key] for key in OPTION_NAMES if key in call.options}
    if chosen.get("persist") == "auto":  # as the class has it
        del chosen["persist"]
    if "env" in chosen:  # it steers the interpreter of a process, and who writes in Redis may not run code
        raise errors.ConfigError("environment variables (env) of an agent of a cluster are a matter of its class")
    if chosen.get("lifetime") == "client":
        raise errors.ConfigError("an agent of a cluster goes with no client: say idle_s, or delete it")
    AgentOptions().but(chosen)  # what no host could make is no agent
    arguments, options = packed(call.body), codec.pack(chosen)
    if len(arguments) + len(options) > MAX_OPTIONS_BYTES:
        size = len(arguments) + len(options)
        raise errors.MessageTooLarge(
            f"the arguments of {name} take {size} bytes, at most {MAX_OPTIONS_BYTES} are kept", size,
            MAX_OPTIONS_BYTES,
        )  # fmt: skip
    return acts.Made(arguments, options, call.options.get("if_exists") != "get")


def _options_in(packed_options: bytes) -> dict[str, Any]:
    """The options in the record of an agent. RemoteProtocolError for what no host has written."""
    chosen = codec.unpack(packed_options, max_bytes=MAX_OPTIONS_BYTES)
    if not isinstance(chosen, dict) or not chosen.keys() <= _IN_RECORD:
        raise errors.RemoteProtocolError("its record has options that are none")
    return chosen


_IN_RECORD = set(OPTION_NAMES) - {"env"}
_NO_ARGUMENTS = codec.encode_call((), {}, what="").payload
_ACTIONS: dict[type, Callable[[Room, Any], None]] = {
    acts.Activated: Room.on_activated, acts.Elsewhere: Room.on_elsewhere, acts.NotActivated: Room.on_not_activated,
    acts.Taken: Room.on_taken, acts.Dropped: Room.on_dropped, acts.Gone: Room.on_gone, acts.Removed: Room.on_gone,
    acts.Cleared: Room.on_room, acts.Room: Room.on_room, acts.Renew: Room.on_renew, Unsaved: Room.on_unsaved,
    acts.Soon: Room.on_soon,
    Whereabouts: Room.on_whereabouts, Told: Room.on_told, Joined: Room.on_joined, Died: Room.on_died,
}  # fmt: skip


def _check_options(spec: ClassSpec, options: AgentOptions, config: BrokerConfig) -> None:
    """Raise CannotServe or ConfigError if a host cannot run an agent of a class with these options."""
    asked = options.labels or {}
    if not asked.items() <= config.labels.items():
        raise errors.CannotServe(f"{config.server_id} does not have the labels {shown_labels(asked)}")
    if options.lifetime == "client":
        raise errors.CannotServe(f"agents of a cluster go with no client, and {spec.short} has lifetime='client'")
    check_persist(spec, options)
