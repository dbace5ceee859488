"""A cluster played step by step: the real scripts on a real Redis, the real parts of each host, and time that is set.

The threads of a host are replaced by a `Wire`: it sends the same requests in the same order, and the test says what
becomes of each: answered, answered late, executed with its answer lost, executed twice, or not executed before long
after it was sent again. Redis can lose its last writes, its clock can be stepped, hosts can stop, crash and come back.

What must hold is checked at every step; a breach is an AssertionError.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from zmqagents.cluster import activations as acts
from zmqagents.cluster.activations import OnceOutcome, Phase, Readiness
from zmqagents.cluster.lease import Admission, LeaseState
from zmqagents.cluster.member import Died, HostEffect, Joined, Member, Unsaved
from zmqagents.cluster.placement import MemberInfo
from zmqagents.cluster.reminders import Reminders
from zmqagents.cluster.steward import (
    Answered,
    Beaten,
    Declared,
    Event,
    Identity,
    MissedBeat,
    Rejoined,
    ServerChanged,
    ToldDead,
    Trouble,
)
from zmqagents.store.cluster import (
    Answer,
    Claim,
    ClusterRecords,
    Released,
    Request,
    Save,
    Saved,
    Verdict,
    bucket_of,
)
from zmqagents.store.cluster import Release as ReleaseRequest
from zmqagents.store.cluster_scripts import ClusterScripts, cluster_scripts
from zmqagents.store.reminders import Change, Done, Drop, DueRow, Set

LEASE_S = 10.0
SNAPSHOTS = 8
CLS = "Account"
CLOCK = "return tonumber(redis.call('GET', 'clock'))"

DUMP = """
local found = {}
for _, key in ipairs(redis.call('KEYS', 'za:*')) do
    found[#found + 1] = {key, redis.call('DUMP', key), redis.call('PTTL', key)}
end
return found
"""


def clocked_scripts() -> ClusterScripts:
    """The product's scripts, by a clock that is set."""
    return cluster_scripts(CLOCK)


@dataclass
class Call:
    """A call as its caller sees it."""

    number: int
    name: str
    once: bool
    outcome: str = ""  # "value" or "lost"
    copies: int = 0  # on their way or at hosts
    was_sent: bool = False
    after_s: float | None = None  # it sets a reminder that is due then
    every_s: float = 0.0
    cancels: bool = False  # it cancels the oldest reminder
    tick: DueRow | None = None  # a reminder has made it

    @property
    def task_id(self) -> str:
        return f"t{self.number}" if self.tick is None else f"tick {self.tick.row.name} {self.tick.row.stamp}"

    def __hash__(self) -> int:
        return self.number


def standing(state: Sequence[str]) -> list[str]:
    """The reminders that an agent has if this is its state, the oldest first."""
    left: dict[str, bool] = {}
    for effect in state:
        kind, _, rest = effect.partition(" ")
        if kind in ("once", "often"):
            left[rest] = kind == "once"
        elif kind == "cancel" or (kind == "tick" and left.get(rest.partition(" ")[0])):
            left.pop(rest.partition(" ")[0], None)
    return list(left)


class Wire:
    """Stands in for the threads of a host: what it has to send, and what of that is where."""

    def __init__(self, world: World, host: Host) -> None:
        self.world, self.host = world, host
        self.backlog: list[Request] = []
        self.errands: list[Callable[[], list[Event]]] = []
        self.held: list[Event] | None = None  # answers that have not come yet; the thread waits for them
        self.held_beat: list[Event] | None = None
        self.number = 0
        self.incarnation = ""
        self.seen = {"beat": world.identity, "exchange": world.identity}
        self.description: tuple[bytes, bool, int] = (b"", False, 0)
        self.is_dead = False
        self.down_since: float | None = None

    # -------------------------------------------------- as the steward has them

    def join(self) -> str:
        joined = self.world.records.join("key")
        self.world.joined += 1
        self.incarnation = f"h{self.host.index}/{joined.now_us}/{self.world.joined}"
        self.number, self.is_dead = 0, False
        return self.incarnation

    def start(self) -> None: ...

    def describe(self, record: bytes, *, draining: bool = False, writes: int = 0) -> None:
        self.description = (record, draining, writes)

    def send(self, request: Request) -> None:
        self.backlog.append(request)

    def ask(self, incarnation: str, number: int | None, *, watched: bool) -> None:
        self.errands.append(lambda: [Declared(incarnation, number, self.world.declare(incarnation, number, watched))])

    def note(self, kind: str, what: str) -> None: ...

    def obituary(self, start: str) -> None:
        self.world.write(lambda: self.world.records.obituary(start))

    def rejoin(self) -> None:
        self.errands.append(lambda: [Rejoined(self.join())])

    def close(self) -> None: ...

    # -------------------------------------------------- what the test does with it

    def of_server(self, channel: str, events: list[Event]) -> list[Event]:
        """``events`` of Redis; before them that it is another server, if this channel has not seen that yet."""
        if self.seen[channel] == self.world.identity:
            return events
        self.seen[channel] = self.world.identity
        return [ServerChanged(str(self.world.identity)), *events]

    @property
    def is_up_to_date(self) -> bool:
        """Whether the host knows which server it has reached."""
        has_all = self.held is None and self.held_beat is None
        return has_all and set(self.seen.values()) == {self.world.identity}

    def beat(self) -> list[Event]:
        """Send a beat, and what comes of it."""
        self.number += 1
        record, draining, writes = self.description
        sent_at = self.world.now
        incarnation, number, start = self.incarnation, self.number, self.host.start
        if not self.world.redis_is_up:
            return [MissedBeat(sent_at, "down")]
        beat = self.world.write(
            lambda: self.world.records.beat(
                incarnation, number, lease_s=LEASE_S, draining=draining, start=start, record=record, writes=writes
            )
        )
        if not beat.alive:
            self.is_dead = True
            return self.of_server("beat", [ToldDead(incarnation)])
        return self.of_server("beat", [Beaten(beat, sent_at, self.world.now)])

    def exchange(self, most: int) -> list[Event]:
        """Carry out the first requests; the answers are to be delivered by the caller. They leave the backlog."""
        if not self.world.redis_is_up:
            return self.trouble()
        events: list[Event] = []
        if self.down_since is not None:
            self.down_since = None
            events.append(Trouble(0.0, ""))
        batch, self.backlog = self.backlog[:most], self.backlog[most:]
        events += [Answered(request, self.world.execute(request)) for request in batch]
        return self.of_server("exchange", events)

    def trouble(self) -> list[Event]:
        if self.down_since is None:
            self.down_since = self.world.now
        return [Trouble(self.down_since, "down")]

    def run_errands(self) -> list[Event]:
        """Do what is to be asked beside the requests."""
        if not self.world.redis_is_up:
            return self.trouble()
        events: list[Event] = []
        errands, self.errands = self.errands, []
        for errand in errands:
            events += errand()
        return self.of_server("exchange", events)


class Host:
    """A host: its member, and agents whose state is the list of the calls that they have executed."""

    def __init__(self, world: World, index: int) -> None:
        self.world, self.index = world, index
        self.runs = self.paused = False
        self.starts = 0
        self.boot()

    def boot(self) -> None:
        """Start its process."""
        self.starts += 1
        self.start = f"start{self.index}x{self.starts}"
        self.wire = Wire(self.world, self)
        self.runs, self.paused = True, False
        self.states: dict[str, list[str]] = {}
        self.queues: dict[str, list[Call]] = {}
        self.running: dict[str, Call] = {}
        self.making: set[str] = set()  # agents whose constructors run
        self.at_work: dict[tuple[str, str], list[Call]] = {}  # by name and task id: an @once call, and its copies
        identity = Identity(f"h{self.index}", self.start, "key", LEASE_S)
        info = MemberInfo("", f"address:{self.index + 1}", classes={CLS: 1})
        wire: Any = self.wire
        self.member = Member(wire, identity, info, clock=lambda: self.world.now, chance=random.Random(0))
        self.member.start()

    def __repr__(self) -> str:
        return f"<host {self.index} {self.member!r}>"

    @property
    def can_act(self) -> bool:
        return self.runs and not self.paused

    # -------------------------------------------------- calls

    def take(self, call: Call) -> None:
        """A call comes."""
        if self.member.lease.admits(self.world.now) is not Admission.START:
            self.world.send_back(call)
            return
        activations = self.member.activations
        readiness = activations.readiness(call.name)
        if readiness is Readiness.LEAVING:
            self.world.send_back(call)
            return
        self.queues.setdefault(call.name, []).append(call)
        if readiness is Readiness.ABSENT:
            self.do(self.member.carry(activations.activate(call.name, CLS, 1)))

    def can_start(self, name: str) -> bool:
        """Whether a call of the agent may start."""
        return (
            self.can_act
            and bool(self.queues.get(name))
            and name not in self.running
            and self.member.lease.admits(self.world.now) is Admission.START
            and self.member.activations.readiness(name) is Readiness.READY
        )

    def begin(self, name: str) -> None:
        """Start the first call of the agent."""
        call = self.queues[name].pop(0)
        self.world.check_served(self, name)
        if call.tick is not None:
            row = call.tick.row
            known = self.member.activations.reminder(name, row.name)
            if known is None or known.stamp != row.stamp:
                return  # it is done, or the reminder is no more
        if call.once:
            if (kept := self.member.activations.outcome_of(name, call.task_id)) is not None:
                self.world.settle(call, "value", kept.decode())
                return
            others = self.at_work.get((name, call.task_id))
            if others is not None:
                others.append(call)
                return
            self.at_work[name, call.task_id] = []
        self.running[name] = call

    def finish(self, name: str) -> None:
        """The code of the running call returns; it has added itself to the state."""
        call = self.running.pop(name)
        state = self.states[name]
        state.append(call.task_id)
        once = OnceOutcome(call.task_id, str(len(state)).encode(), 3600.0) if call.once else None
        activations = self.member.activations
        changes = self.remind(call, state, activations.reminders_of(name))
        self.do(self.member.carry(activations.save(name, packed(state), 1, call, once, changes)))

    def remind(self, call: Call, state: list[str], reminders: Reminders) -> list[Change]:
        """What the call does to the agent's reminders; the state tells of it as well."""
        if call.tick is not None:
            return [Done(call.tick.row.name, call.tick.row.stamp, reminders.stamp())]
        if call.cancels and (left := standing(state)):
            state.append(f"cancel {left[0]}")
            return [Drop(left[0])]
        if call.after_s is not None:
            state.append(f"{'often' if call.every_s else 'once'} {call.task_id}")
            return [Set(call.task_id, reminders.stamp(), call.after_s, call.every_s, b"")]
        return []

    def is_idle(self, name: str) -> bool:
        """Whether the agent is here, and its turn is free."""
        return self.can_act and self.member.activations.phase(name) is Phase.ACTIVE and name not in self.running

    def release(self, name: str, following: str) -> None:
        """Give the agent away."""
        self.do(self.member.carry(self.member.activations.release(name, following, packed(self.states[name]), 1)))

    def delete(self, name: str) -> None:
        """Remove the agent."""
        self.do(self.member.carry(self.member.activations.delete(name)))

    def make(self, name: str, *, well: bool = True) -> None:
        """The constructor returns, or raises."""
        self.making.remove(name)
        activations = self.member.activations
        if well:
            self.do(self.member.carry(activations.started(name)))
        else:
            for call in self.queues.pop(name, ()):
                self.answer(name, call, "lost")
            self.do(self.member.carry(activations.release(name)))

    # -------------------------------------------------- what comes of it

    def on_events(self, events: Sequence[Event]) -> None:
        """Events of the steward."""
        for event in events:
            self.do(self.member.on_event(event))

    def do(self, effects: Sequence[HostEffect]) -> None:
        """Carry out what the member asks for."""
        for effect in effects:
            self.do_one(effect)

    def do_one(self, effect: HostEffect) -> None:
        activations = self.member.activations
        if isinstance(effect, acts.Activated):
            self.states[effect.name] = json.loads(effect.mine.state or b"[]")
            self.making.add(effect.name)
        elif isinstance(effect, acts.Taken):
            for call in effect.calls:
                self.answer(effect.name, call, "value")
        elif isinstance(effect, acts.Dropped):
            self.world.counts[effect.why.value] += 1
            if effect.had is not None:
                self.answer(effect.name, effect.had[0], "value", effect.had[1].decode())
            for call in effect.lost:
                self.answer(effect.name, call, "lost")
            self.drop(effect.name)
        elif isinstance(effect, (acts.Elsewhere, acts.NotActivated, acts.Gone, acts.Removed)):
            self.drop(effect.name)
        elif isinstance(effect, acts.Renew):
            self.do(self.member.carry(activations.save(effect.name, packed(self.states[effect.name]), 1)))
        elif isinstance(effect, Died):
            self.world.counts["told dead"] += 1
            for name in list(self.running):
                self.answer(name, self.running.pop(name), "lost")
            self.do(self.member.leave_dead())
        elif isinstance(effect, Unsaved):
            for name, lost in effect.calls:
                self.answer(name, lost, "lost")
        else:
            assert isinstance(effect, (acts.Cleared, acts.Room, acts.Soon, Joined))

    def answer(self, name: str, call: Any, outcome: str, value: str = "") -> None:
        """A call has ended, and its copies with it."""
        self.world.settle(call, outcome, value)
        for copy in self.at_work.pop((name, call.task_id), ()):
            self.world.settle(copy, outcome, value)

    def drop(self, name: str) -> None:
        """The agent is here no more."""
        if name in self.running:
            self.answer(name, self.running.pop(name), "lost")
        self.states.pop(name, None)
        self.making.discard(name)
        for call in self.queues.pop(name, ()):
            self.world.send_back(call)

    def crash(self) -> None:
        """The process is gone, and all calls with it."""
        self.runs = False
        self.wire.held = self.wire.held_beat = None
        for name, call in list(self.running.items()):
            self.answer(name, call, "lost")
        for name, task_id in list(self.at_work):
            for copy in self.at_work.pop((name, task_id)):
                self.world.settle(copy, "lost")
        for pending in self.member.activations.give_up_all():
            self.answer(*pending, "lost")
        for queue in self.queues.values():
            for call in queue:
                self.world.settle(call, "lost")


@dataclass
class Ledger:
    """The writes of one agent's state that Redis has taken, since it was made."""

    life: int = 0
    epoch: int = 0
    revision: int = 0
    state: list[str] = field(default_factory=list)


@dataclass
class Snapshot:
    """What Redis held, and what the test knew of it."""

    keys: list[Any]
    ledgers: dict[str, Ledger]


class World:
    """Three hosts, one Redis, some callers. ``loses``: Redis may lose writes, so what it held before is kept."""

    def __init__(self, client: Any, url: str, scripts: ClusterScripts | None = None, *, loses: bool = False):
        self.redis = client
        client.flushdb()
        self.now, self.offset = 1_000_000.0, 0.0  # seconds; of Redis's clock
        self.set_clock()
        self.identity = 1
        self.redis_is_up = True
        self.joined = 0
        self.loses = loses
        self.history: list[Snapshot] = []
        self.ledgers: dict[str, Ledger] = {}
        self.highest: dict[str, int] = {}  # epochs ever seen
        self.late: list[list[Request]] = []
        self.calls: list[Call] = []
        self.calls_of_reminders: list[Call] = []  # that were answered
        self.unsent: list[Call] = []  # with their callers
        self.excused: set[str] = set()
        self.murky: set[str] = set()  # agents
        self.clock_was_stepped = self.writes_were_lost = False
        self.counts: Counter[str] = Counter()
        self.records = ClusterRecords(url, "model", scripts=scripts or clocked_scripts())
        self.hosts = [Host(self, index) for index in range(3)]
        for host in self.hosts:
            host.on_events(host.wire.beat())

    def close(self) -> None:
        self.records.close()

    # -------------------------------------------------- time and Redis

    def set_clock(self) -> None:
        self.redis.set("clock", round((self.now + self.offset) * 1e6))

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.set_clock()

    def step_clock(self, seconds: float) -> None:
        """Somebody sets the clock of Redis's machine."""
        self.offset += seconds
        self.clock_was_stepped = True
        self.set_clock()

    def write(self, what: Callable[[], Any]) -> Any:
        """Let Redis do something; before that, remember what it held."""
        if self.loses:
            copies = {name: Ledger(**vars(ledger)) for name, ledger in self.ledgers.items()}
            for ledger in copies.values():
                ledger.state = list(ledger.state)
            self.history.append(Snapshot(self.redis.eval(DUMP, 0), copies))
            del self.history[:-SNAPSHOTS]
        return what()

    def lose_writes(self, back: int) -> None:
        """Redis is another server, which has not seen the last writes."""
        self.tick(1.0)
        snapshot = self.history[-min(back, len(self.history))]
        del self.history[-min(back, len(self.history)) :]
        before = {task_id for ledger in self.ledgers.values() for task_id in ledger.state}
        pipeline = self.redis.pipeline()
        for key in self.redis.keys("za:*"):
            pipeline.delete(key)
        for key, value, ttl in snapshot.keys:
            pipeline.restore(key, max(0, ttl), value)
        pipeline.execute()
        self.ledgers = snapshot.ledgers
        after = {task_id for ledger in self.ledgers.values() for task_id in ledger.state}
        self.excused |= before - after
        self.identity += 1
        self.writes_were_lost = True
        self.counts["failovers"] += 1

    def record(self, name: str) -> tuple[str, int, int, list[str]]:
        """Owner, epoch, revision and state as Redis has them."""
        key = self.records.key_of(name)
        own, epoch, revision, state = self.redis.hmget(key, ["own", "ep", "rev", "st"])
        return (own or b"").decode(), int(epoch or 0), int(revision or 0), json.loads(state or b"[]")

    # -------------------------------------------------- requests and what must hold of them

    def execute(self, request: Request, *, late: bool = False) -> Answer:
        """Let Redis carry out a request, and check what it has done. ``late``: it was sent long ago."""
        name = request.name
        if isinstance(request, Claim) and request.dead and self.writes_were_lost:
            claimer = self.hosts[int(request.owner[1])]
            if late or not claimer.wire.is_up_to_date:
                self.murky.add(name)  # it may take the agent from one whose death is lost: until all have noticed
        before = self.record(name)[1]
        answer: Answer = self.write(lambda: self.records.exchange([request]))[0]
        _, epoch, _, state = self.record(name)
        ledger = self.ledgers.setdefault(name, Ledger())
        if epoch not in (0, before):
            highest = self.highest.get(name, 0)
            assert epoch > highest or (self.clock_was_stepped and self.writes_were_lost), f"{name}: {epoch}, {highest}"
            self.highest[name] = max(highest, epoch)
        if epoch == 0 and ledger.revision:  # it was deleted, with all that its callers were told of
            self.excused |= set(ledger.state)
            self.ledgers[name] = Ledger(ledger.life + 1, ledger.epoch)
            self.counts["deleted"] += 1
        elif isinstance(request, Save) and isinstance(answer, Saved) and answer.verdict is Verdict.SAVED:
            self.check_write(name, ledger, request, state)
        elif isinstance(request, ReleaseRequest) and isinstance(answer, Released) and answer.done and request.last:
            self.check_write(name, ledger, request.last, state)
        self.check_answered(name, state)
        self.check_reminders(name, state)
        return answer

    def check_reminders(self, name: str, state: list[str]) -> None:
        """The reminders are those that the state tells of: both are written together, or neither."""
        kept = [row.name for row in self.records.reminders(name)]
        assert sorted(kept) == sorted(standing(state)), f"{name}: {state} has the reminders {kept}"
        base = self.records.key_of(name).removesuffix(f"a:{name}")
        due = [place for place in self.redis.zrange(f"{base}due", 0, -1) if place.startswith(f"{name}\n".encode())]
        assert len(due) == len(kept), f"{name}: {kept} are to come as {due}"

    def check_write(self, name: str, ledger: Ledger, save: Save, state: list[str]) -> None:
        """A state was taken: it follows what was there."""
        self.counts["writes"] += 1
        if save.revision + 1 < ledger.revision:
            return  # a last save that was taken before
        assert save.revision + 1 > ledger.revision, f"{name}: revision {save.revision + 1} twice"
        assert save.epoch >= ledger.epoch, f"{name}: a write of epoch {save.epoch} after one of {ledger.epoch}"
        assert len(set(state)) == len(state), f"{name}: an effect twice in {state}"
        if not self.writes_were_lost:
            assert state[: len(ledger.state)] == ledger.state, f"{name}: {ledger.state} has become {state}"
        ledger.epoch, ledger.revision, ledger.state = save.epoch, save.revision + 1, state

    def check_answered(self, name: str, state: list[str]) -> None:
        """No update is lost that its caller was told of."""
        for call in (*self.calls, *self.calls_of_reminders):
            if call.name == name and call.outcome == "value" and call.task_id not in self.excused:
                assert call.task_id in state, f"{call} was answered, and its effect is gone from {state}"

    def check_served(self, host: Host, name: str) -> None:
        """A call starts: the record names this activation, unless the host cannot know yet that Redis has changed."""
        if not host.wire.is_up_to_date or name in self.murky:
            return
        owner, epoch, _, _ = self.record(name)
        activations = host.member.activations
        assert (owner, epoch) == (activations.me, activations.epoch(name)), (
            f"host {host.index} serves {name} as {activations.me} in epoch {activations.epoch(name)}, "
            f"the record names {owner} in {epoch}"
        )

    def declare(self, who: str, number: int | None, watched: bool) -> bool:
        """Ask Redis for a member's death. Nobody who may still start calls is declared dead."""
        dead = bool(self.write(lambda: self.records.declare(who, number, watched=watched, lease_s=LEASE_S)))
        for other in self.hosts:
            if dead and other.runs and other.member.incarnation == who:
                state = other.member.lease.state(self.now)
                assert state is not LeaseState.HELD or self.writes_were_lost, (
                    f"host {other.index} lives and holds its lease"
                )
        return dead

    # -------------------------------------------------- callers

    def hand_out(self, names: Iterable[str]) -> list[Call]:
        """Look for what is due, as a host does that looks after the buckets of these agents."""
        buckets = sorted({bucket_of(name) for name in names})
        polled = self.write(lambda: self.records.due(buckets, for_s=2 * LEASE_S, most=8))
        rows = [due for each in polled for due in each.rows]
        self.counts["handed out"] += len(rows)
        return [Call(0, due.agent, False, tick=due) for due in rows]

    def call(self, name: str, once: bool, **more: Any) -> Call:
        """Somebody makes a call; `send` sends it."""
        call = Call(len(self.calls) + 1, name, once, **more)
        self.calls.append(call)
        self.unsent.append(call)
        return call

    def send(self, call: Call, host: Host) -> None:
        """Send a call, or a copy of it, to a host."""
        if call in self.unsent:
            self.unsent.remove(call)
        if not host.runs:
            if not call.outcome and not call.copies:
                self.unsent.append(call)
            return
        call.was_sent = True
        call.copies += 1
        host.take(call)

    def send_back(self, call: Call) -> None:
        """A host has not executed the call: its caller sends it elsewhere."""
        call.copies -= 1
        if call.tick is not None:
            return  # whoever sent it hands it out again, or somebody else does
        if not call.outcome and call not in self.unsent and call.copies == 0:
            self.unsent.append(call)

    def settle(self, call: Call, outcome: str, value: str = "") -> None:
        """A call has its outcome."""
        call.copies -= 1
        if call.tick is not None and outcome == "lost":
            return
        if call.outcome == "value":
            return
        if outcome == "lost" and call.once:
            if call.copies == 0 and call not in self.unsent:
                self.unsent.append(call)
            return
        if call.outcome:
            return
        call.outcome = outcome
        if call.tick is not None:
            self.calls_of_reminders.append(call)
        self.counts["ticks" if call.tick is not None else outcome] += 1
        if outcome == "value":
            state = self.record(call.name)[3]
            self.check_answered(call.name, state)
            if value and call.task_id not in self.excused:
                assert state.index(call.task_id) + 1 == int(value), f"{call} was told {value} of {state}"

    # -------------------------------------------------- the end

    def heal(self, names: Sequence[str]) -> None:
        """All is well again: then every call gets its outcome, and each agent answers from one host."""
        self.redis_is_up = True
        for host in self.hosts:
            host.paused = False
            if not host.runs:
                host.boot()
        self.fair_round()
        probes = [self.call(name, True) for name in names]
        for _ in range(60):
            self.fair_round()
            if all(call.outcome for call in self.calls):
                break
        left = [call for call in self.calls if not call.outcome]
        assert left == [], (left, self.hosts)
        assert all(probe.outcome == "value" for probe in probes)
        self.let_all_tick(names)
        for name in names:
            served = [host for host in self.hosts if host.member.activations.readiness(name) is Readiness.READY]
            served = [host for host in served if host.member.lease.state(self.now) is LeaseState.HELD]
            assert len(served) <= 1, f"{name} is served by {served}"

    def let_all_tick(self, names: Sequence[str]) -> None:
        """Time passes, and each reminder ticks."""
        self.step_clock(300.0)  # whatever it was set to before
        left = self.to_come(names)
        for _ in range(40):
            if not left:
                break
            self.fair_round()
            for number, tick in enumerate(self.hand_out(names)):
                owner = self.record(tick.name)[0]
                homes = [host for host in self.hosts if host.member.incarnation == owner]
                self.send(tick, homes[0] if homes else self.hosts[number % 3])
            left = self.to_come(names)
        assert left == [], f"these reminders do not come: {left}"

    def to_come(self, names: Sequence[str]) -> list[str]:
        """The reminders that do not repeat and have not ticked."""
        states = {name: self.record(name)[3] for name in names}
        return [each for state in states.values() for each in standing(state) if f"once {each}" in state]

    def fair_round(self) -> None:
        """Every host does everything that it has to do."""
        self.tick(1.0)
        for host in self.hosts:
            self.deliver(host)
            host.on_events([ToldDead(host.wire.incarnation)] if host.wire.is_dead else host.wire.beat())
        for _ in range(6):
            for host in self.hosts:
                host.on_events(host.wire.exchange(64))
                host.on_events(host.wire.run_errands())
                for name in list(host.making):
                    host.make(name)
                for name in list(host.queues):
                    while host.can_start(name):
                        host.begin(name)
                        if name in host.running:
                            host.finish(name)
                for name in list(host.running):
                    host.finish(name)
        for number, call in enumerate(list(self.unsent)):
            owner = self.record(call.name)[0]
            homes = [host for host in self.hosts if host.member.incarnation == owner]
            third = self.hosts[(number + round(self.now)) % 3]
            self.send(call, homes[0] if homes and round(self.now) % 3 else third)

    def deliver(self, host: Host) -> None:
        """What was held back comes."""
        wire = host.wire
        events, wire.held = wire.held or [], None
        beats, wire.held_beat = wire.held_beat or [], None
        beats = [event._replace(came_at=self.now) if isinstance(event, Beaten) else event for event in beats]
        host.on_events(events + beats)


def packed(state: list[str]) -> bytes:
    return json.dumps(state).encode()
