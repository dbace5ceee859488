"""What holds for a cluster whatever happens: the real scripts on a real Redis, and hosts that play against each other.

A walk is a row of random steps: calls that are sent, sent again and by two ways at once, requests whose answers are
late, lost or come twice, requests that are executed long after they were sent again, beats that are missed, hosts that
stop, crash and come back, moves, deletions, steps of Redis's clock, a Redis that is away or has lost its last writes.
Calls set and cancel reminders, and what is due is handed out, sent late, sent twice, or lost by whoever had it.
`cluster_world` says what must hold, at each step and when all is well again.

That the walks find anything is shown with scripts that lack a part: each of these must be caught.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cluster_world import LEASE_S, Call, Host, World, clocked_scripts
from redis_server import RedisServer, running_redis
from scale import SOAK, pick
from zmqagents.cluster.lease import BEATS
from zmqagents.cluster.steward import Answered, MissedBeat
from zmqagents.errors import StoreError
from zmqagents.store.cluster_scripts import ClusterScripts
from zmqagents.store.scripts import Script

pytestmark = [pytest.mark.program, pytest.mark.timeout(pick(240, 3000))]

NAMES = ["Account/x", "Account/y"]
WALKS, STEPS = pick(150, 3000), 120
CALLS = 40
# How often a host, or the world, does what it can do, against each other.
OF_HOST = {
    "beat": 6, "beat lost": 1, "beat late": 1, "beat held": 1, "start": 20, "finish": 20, "exchange": 30,
    "exchange lost": 4, "exchange late": 5, "exchange held": 4, "exchange twice": 3, "exchange spoiled": 1,
    "errands": 12, "deliver": 10, "move": 4, "delete": 1, "crash": 1, "restart": 8, "obituary": 3, "pause": 1,
    "wake": 6, "quiet": 2, "settle": 4, "make": 24, "make fail": 1,
}  # fmt: skip
OF_WORLD = {
    "tick": 12, "call": 20, "send": 20, "copy": 8, "execute late": 12, "redis up": 12, "redis down": 1,
    "lose writes": 4, "step clock": 6, "hand out": 14, "send tick": 14, "copy tick": 5,
}  # fmt: skip


OF_AGENT = {"start", "finish", "move", "delete", "make", "make fail"}


class Walk(RuleBasedStateMachine):
    """One walk; see the module's docstring."""

    client: redis.Redis
    url: str
    scripts: ClusterScripts | None = None
    world: World
    totals: Counter[str] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.late_beats: list[Any] = []
        self.ticks: list[Call] = []  # that were handed out and not sent yet
        self.former_ticks: list[Call] = []  # that were sent

    @initialize(loses=st.booleans(), steps_clock=st.booleans(), seed=st.integers(0, 10**6))
    def begin(self, loses: bool, steps_clock: bool, seed: int) -> None:
        self.world = World(self.client, self.url, self.scripts, loses=loses)
        self.steps_clock = steps_clock
        self.chance = random.Random(seed)

    @rule(number=st.integers(0, 10**9))
    def step(self, number: int) -> None:
        """One of the steps that can be taken now."""
        steps = [(weight, what) for what, weight in self.possible()]
        number %= sum(weight for weight, _ in steps)
        for weight, (kind, host, name) in steps:
            number -= weight
            if number < 0:
                self.take_step(kind, host, name)
                return

    def possible(self) -> Iterator[tuple[tuple[str, Host, str], int]]:
        for host in self.hosts:
            for kind, weight in OF_HOST.items():
                for name in NAMES if kind in OF_AGENT else NAMES[:1]:
                    if self.can(kind, host, name):
                        yield (kind, host, name), weight
        for kind, weight in OF_WORLD.items():
            if self.can_happen(kind):
                yield (kind, self.hosts[0], NAMES[0]), weight

    def can(self, kind: str, host: Host, name: str) -> bool:
        """Whether the host can do this, or have it done."""
        if kind in ("restart", "obituary"):
            return not host.runs and self.redis_is_up
        if kind == "wake":
            return host.runs and host.paused
        if not host.can_act:
            return False
        wire = host.wire
        if kind in ("move", "delete"):
            return host.is_idle(name)
        kind = kind.partition(" ")[0]
        can = {
            "crash": sum(other.runs for other in self.hosts) > 1,
            "start": host.can_start(name),
            "finish": name in host.running,
            "make": name in host.making,
            "beat": not wire.is_dead and wire.held_beat is None,
            "exchange": wire.held is None and bool(wire.backlog),
            "errands": wire.held is None and bool(wire.errands),
            "deliver": wire.held is not None or wire.held_beat is not None,
        }
        return can.get(kind, True)

    def can_happen(self, kind: str) -> bool:
        """Whether this can happen to all."""
        can = {
            "call": len(self.calls) < CALLS,
            "send": bool(self.world.unsent),
            "copy": bool(self.copied()),
            "execute late": self.redis_is_up and bool(self.world.late or self.late_beats),
            "redis up": not self.redis_is_up,
            "redis down": self.redis_is_up,
            "lose writes": self.world.loses and bool(self.world.history),
            "step clock": self.steps_clock,
            "hand out": self.redis_is_up,
            "send tick": bool(self.ticks),
            "copy tick": bool(self.former_ticks),
        }
        return can.get(kind, True)

    def take_step(self, kind: str, host: Host, name: str) -> None:
        world, chance = self.world, self.chance
        if kind == "tick":
            world.tick(chance.choice([0.5, 1.0, 1.0, 2.0, 2.0, 3.0, 11.0]))
        elif kind == "call":
            world.send(self.new_call(), self.any_host())
        elif kind == "send":
            world.send(chance.choice(world.unsent), self.any_host())
        elif kind == "copy":
            world.send(chance.choice(self.copied()), self.any_host())
        elif kind == "execute late":
            self.execute_late()
        elif kind in ("redis up", "redis down"):
            world.redis_is_up = kind == "redis up"
        elif kind == "lose writes":
            world.lose_writes(chance.randint(1, 6))
        elif kind == "step clock":
            world.step_clock(chance.choice([60.0, -60.0, 9.0, 7.0, 6.0, 5.0, 4.0, 3.0, -3.0, -6.0]))
        elif kind == "hand out":
            found = world.hand_out(NAMES)
            self.ticks += found if chance.random() < 0.8 else []  # else the answer is lost
        elif kind == "send tick":
            tick = self.ticks.pop(chance.randrange(len(self.ticks)))
            self.former_ticks.append(tick)
            world.send(tick, self.any_host())
        elif kind == "copy tick":
            former = chance.choice(self.former_ticks[-6:])
            world.send(Call(0, former.name, False, tick=former.tick), self.any_host())
        elif kind == "quiet":
            self.be_quiet(host)
        else:
            self.act(kind, host, name)

    def new_call(self) -> Call:
        """A call; some set a reminder, some cancel one."""
        chance, more = self.chance, dict[str, Any]()
        if chance.random() < 0.4:
            more = {"after_s": chance.choice([0.0, 1.0, 5.0, 20.0]), "every_s": chance.choice([0.0, 0.0, 0.0, 4.0])}
        elif chance.random() < 0.15:
            more = {"cancels": True}
        return self.world.call(chance.choice(NAMES), once=chance.random() < 0.6, **more)

    def any_host(self) -> Host:
        return self.chance.choice(self.hosts)

    def copied(self) -> list[Call]:
        """Calls that may come by a second way, while they run or late: a relay has died, the sender believed."""
        return [call for call in self.calls if call.once and call.was_sent]

    # -------------------------------------------------- what a host does

    def act(self, kind: str, host: Host, name: str) -> None:
        if kind == "restart":
            host.boot()
        elif kind == "obituary":
            host.wire.obituary(host.start)
        elif kind in ("pause", "wake"):
            host.paused = kind == "pause"
        elif kind == "start":
            host.begin(name)
        elif kind == "finish":
            host.finish(name)
        elif kind.startswith("make"):
            host.make(name, well=kind == "make")
        elif kind.startswith("beat"):
            self.beat(kind, host)
        elif kind.startswith("exchange"):
            self.exchange(kind, host, self.chance.randint(1, 4))
        elif kind == "errands":
            host.on_events(host.wire.run_errands())
        elif kind == "deliver":
            self.world.deliver(host)
        elif kind == "move":
            others = [other.member.incarnation for other in self.hosts if other is not host]
            host.release(name, self.chance.choice(["", *others]))
        elif kind == "delete":
            host.delete(name)
        elif kind == "crash":
            self.crash(host)
        elif kind == "settle":
            self.settle(host)

    @property
    def now(self) -> float:
        return self.world.now

    @property
    def hosts(self) -> list[Host]:
        return self.world.hosts

    @property
    def calls(self) -> list[Call]:
        return self.world.calls

    @property
    def redis_is_up(self) -> bool:
        return self.world.redis_is_up

    def beat(self, kind: str, host: Host) -> None:
        wire = host.wire
        if kind == "beat late":
            wire.number += 1
            self.late_beats.append((wire.incarnation, wire.number, host.start))
            host.on_events([MissedBeat(self.now, "late")])
            return
        events = wire.beat()
        if kind == "beat lost":
            wire.is_dead = False  # it has not been told
            host.on_events([MissedBeat(self.now, "lost")])
        elif kind == "beat held":
            wire.held_beat = events
        else:
            host.on_events(events)

    def exchange(self, kind: str, host: Host, most: int) -> None:
        wire, world = host.wire, self.world
        batch = wire.backlog[:most]
        if kind == "exchange late" or (kind == "exchange spoiled" and self.chance.random() < 0.5):
            world.late.append(batch)
        if kind == "exchange late":
            host.on_events(wire.trouble())
            return
        if kind == "exchange spoiled":  # the first meets an error that is its own
            first = wire.backlog.pop(0)
            host.on_events([Answered(first, StoreError("spoiled"))])
            return
        if kind in ("exchange lost", "exchange twice") and world.redis_is_up:
            for request in batch:
                world.execute(request)
        if kind == "exchange lost":
            host.on_events(wire.trouble())
        elif kind == "exchange held":
            wire.held = wire.exchange(most)
        else:
            host.on_events(wire.exchange(most))

    def settle(self, host: Host) -> None:
        """The host does all that it has to do, undisturbed."""
        self.world.deliver(host)
        for _ in range(4):
            host.on_events(host.wire.exchange(64))
            host.on_events(host.wire.run_errands())

    def crash(self, host: Host) -> None:
        if host.wire.backlog:
            self.world.late.append(host.wire.backlog[:3])
        host.crash()

    # -------------------------------------------------- what happens to all

    def execute_late(self) -> None:
        world = self.world
        if self.late_beats and (not world.late or self.chance.random() < 0.3):
            incarnation, number, start = self.late_beats.pop(self.chance.randrange(len(self.late_beats)))
            world.write(
                lambda: world.records.beat(
                    incarnation, number, lease_s=LEASE_S, draining=False, start=start, record=b""
                )
            )
            return
        for request in world.late.pop(self.chance.randrange(len(world.late))):
            world.execute(request, late=True)

    def be_quiet(self, host: Host) -> None:
        """For more than a lease only this host beats, or one more."""
        beating = {host.index, (host.index + 1) % 3} if self.chance.random() < 0.5 else {host.index}
        for _ in range(6):
            self.world.tick(LEASE_S / BEATS - self.chance.random() / 2)
            for other in self.hosts:
                if other.index in beating and other.can_act and not other.wire.is_dead:
                    self.world.deliver(other)
                    self.beat("beat", other)
        if host.can_act:
            self.settle(host)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            for index in range(3):
                self.world.deliver(self.hosts[index])
            self.world.heal(NAMES)
        finally:
            self.totals.update(self.world.counts)
            self.world.close()


def walk(server: RedisServer, walks: int, scripts: ClusterScripts | None = None, *, seed: int | None = None) -> None:
    """So many walks; with a ``seed`` the same ones each time. The first breach is an AssertionError."""
    with server.client as client:
        here = type("WalkHere", (Walk,), {"client": client, "url": server.url, "scripts": scripts})
        run_state_machine_as_test(
            here,
            settings=settings(
                max_examples=walks, stateful_step_count=STEPS, deadline=None, database=None,
                suppress_health_check=list(HealthCheck), derandomize=seed is not None,
                phases=[Phase.generate, Phase.shrink] if SOAK and seed is None else [Phase.generate],
            ),
        )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of these tests alone: they empty it."""
    with running_redis() as server:
        yield server


def test_nothing_is_lost_or_made_twice_and_no_agent_is_served_twice(server: RedisServer) -> None:
    Walk.totals.clear()
    walk(server, WALKS)
    assert Walk.totals["writes"] > WALKS, "the walks do something"
    assert min(Walk.totals[kind] for kind in ("fenced", "failovers", "told dead", "lost", "ticks")) > 0, Walk.totals


# ---------------------------------------------------------------- what is found when a part is missing


def without(which: str, *parts: tuple[str, str]) -> ClusterScripts:
    """The scripts with some text of one of them replaced."""
    scripts = clocked_scripts()
    text = getattr(scripts, which).text
    for part, instead in parts:
        assert part in text
        text = text.replace(part, instead)
    return scripts._replace(**{which: Script(text, "")})


FENCE = "if not is_mine(r[1], r[2]) then return {'fenced', r[1] or '', r[2] or '0'} end"
BEHIND = "if kept < rev and ARGV[7] ~= '1' then return {'behind', kept} end"
GONE = "if not is_mine(r[1], r[2]) then return {'gone'} end"
AGAIN = "local again = own == me and act == tonumber(r[2])"
UNDONE = "                drop(reminder)\n            elseif its == stamp then"
STALE = "if own == me and act < tonumber(r[2]) then return {'stale'} end"


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param(without("save", (FENCE, ""), (BEHIND, "")), id="a save without the fence"),
        pytest.param(without("release", (GONE, "")), id="a release without the fence"),
        pytest.param(without("claim", (AGAIN, "local again = false"), (STALE, "")), id="claims without numbers"),
        pytest.param(without("beat", ("is_dead(me) or is_dead(start) or ", "")), id="a death that is not final"),
        pytest.param(
            without("claim", ("tonumber(call('GET', base .. 'floor') or 0)", "0")), id="epochs without a floor"
        ),
        pytest.param(
            without("save", (UNDONE, "            elseif its == stamp then")), id="a save that does not end its tick"
        ),
        pytest.param(without("delete", ("    drop_all()\n", "")), id="a deletion that leaves reminders"),
    ],
)
def test_the_walks_find_what_is_missing(server: RedisServer, scripts: ClusterScripts) -> None:
    with pytest.raises(AssertionError):
        walk(server, 300, scripts, seed=1)


CLEAR = "            drop_all()\n"


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param(None, id="as they are"),
        pytest.param(without("save", (CLEAR, "")), id="that only add to what is there"),
    ],
)
def test_a_reminder_that_was_cancelled_is_not_back_when_redis_has_lost_the_last_writes(
    server: RedisServer, scripts: ClusterScripts | None
) -> None:
    """The walks come by this seldom: the owner goes on, and writes again what Redis has lost."""
    with server.client as client, contextlib.closing(World(client, server.url, scripts, loses=True)) as world:
        owner, name = world.hosts[0], NAMES[0]

        def run(**more: Any) -> None:
            world.send(world.call(name, once=False, **more), owner)
            owner.on_events(owner.wire.exchange(64))
            if name in owner.making:
                owner.make(name)
            owner.begin(name)
            owner.finish(name)
            owner.on_events(owner.wire.exchange(64))

        run(after_s=20.0)
        run(cancels=True)
        assert world.records.reminders(name) == ()
        world.lose_writes(1)
        assert len(world.records.reminders(name)) == 1
        with contextlib.nullcontext() if scripts is None else pytest.raises(AssertionError, match="has the reminders"):
            world.heal(NAMES)
        assert len(world.records.reminders(name)) == (0 if scripts is None else 1)


WATCHED = "if not watched or (known(who) or '') ~= seen then return 'lives' end"


@pytest.mark.parametrize(
    "scripts",
    [
        pytest.param(None, id="as they are"),
        pytest.param(without("declare", (WATCHED, "")), id="whose lease is over is dead"),
    ],
)
def test_a_step_of_the_clock_beside_a_late_beat_kills_nobody(
    server: RedisServer, scripts: ClusterScripts | None
) -> None:
    """The one beats a third of a lease later than the other; then all leases are over at once, by Redis's clock."""
    with server.client as client, contextlib.closing(World(client, server.url, scripts)) as world:
        owner, other = world.hosts[:2]
        world.send(world.call(NAMES[0], once=False), owner)
        owner.on_events(owner.wire.exchange(1))
        owner.on_events(owner.wire.beat())
        world.tick(LEASE_S * 0.35)
        other.on_events(other.wire.beat())
        world.step_clock(LEASE_S * 0.7)
        world.send(world.call(NAMES[0], once=False), other)
        other.on_events(other.wire.exchange(1))
        with contextlib.nullcontext() if scripts is None else pytest.raises(AssertionError, match="holds its lease"):
            other.on_events(other.wire.run_errands())
            assert world.records.beat(
                owner.member.incarnation, 99, lease_s=LEASE_S, draining=False, start="s", record=b""
            ).alive
