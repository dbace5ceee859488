"""Random walks of hosts that know different forms of the records, over the real scripts on a real Redis.

Hosts come, and are declared dead without knowing it; what they have asked for is carried out late; the form is raised,
records are rewritten, and hosts join that do not know the former form. At every moment each record can be read by every
member. The controls leave a part out, and find a record that some member cannot read.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cluster_world import CLOCK
from redis_server import RedisServer, running_redis
from scale import pick
from zmqagents.errors import ConfigError
from zmqagents.store.cluster import (
    Claim,
    ClusterRecords,
    Locate,
    Located,
    Mine,
    Refusal,
    Release,
    Released,
    Request,
    Save,
    Saved,
    Unclaimed,
    Verdict,
)
from zmqagents.store.cluster_scripts import ClusterScripts, cluster_scripts
from zmqagents.store.forms import Forms
from zmqagents.store.scripts import Script

pytestmark = pytest.mark.program

LEASE_S = 1000.0  # deaths are obituaries here
NAMES = [f"Account/{number}" for number in range(6)]
STEPS = 250


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@dataclass
class Host:
    """A member. It may be dead, and not know it."""

    records: ClusterRecords
    forms: Forms
    incarnation: str
    start: str
    writes: int = 0  # what its beats say
    form: int = 0  # that its requests have
    number: int = 0
    pending: list[Request] = field(default_factory=list)  # that have no answer
    epochs: dict[str, tuple[int, int]] = field(default_factory=dict)  # of its agents, with the next revision


class Walk:
    """One walk. ``hasty``: hosts say that they write a form while they have others under way."""

    def __init__(
        self, server: RedisServer, seed: int, scripts: ClusterScripts | None = None, *, hasty: bool = False
    ) -> None:
        self.chance = random.Random(seed)
        self.url = server.url
        self.scripts = scripts or cluster_scripts(CLOCK)
        self.hasty = hasty
        self.counts: Counter[str] = Counter()
        self.hosts: list[Host] = []
        self.dead: set[str] = set()  # starts
        self.started = 0
        self.newest = 1
        self.stack = contextlib.ExitStack()
        self.client = self.stack.enter_context(server.client)
        self.client.flushdb()
        self.client.set("clock", 10**12)
        self.join(Forms(1, 1))

    def __repr__(self) -> str:
        return f"<Walk {dict(self.counts)}>"

    def run(self, steps: int) -> None:
        with self.stack:
            for _ in range(steps):
                self.client.incrby("clock", 1000)
                self.step()

    @property
    def living(self) -> list[Host]:
        return [host for host in self.hosts if host.start not in self.dead]

    # -------------------------------------------------- steps

    def step(self) -> None:
        kind = self.chance.choices(
            ["join", "beat", "claim", "save", "release", "execute", "die", "upgrade", "look"],
            [3, 8, 8, 12, 2, 16, 1.5, 5, 4],
        )[0]
        if kind == "join":
            self.join_next()
        elif kind == "die" and len(self.living) > 1:
            self.bury(
                min(self.chance.sample(self.living, 2), key=lambda host: host.forms)
            )  # else no form is ever raised
        elif kind == "upgrade":
            self.upgrade()
        elif kind == "look":
            self.look()
        elif self.hosts:
            host = self.chance.choice(self.hosts)
            if kind == "beat" and (host.start not in self.dead or self.chance.random() < 0.1):
                self.beat(host)
            elif host.form and kind in ("claim", "save", "release"):
                self.ask(host, kind)
            elif kind == "execute" and host.pending:
                self.execute(host)

    def join_next(self) -> None:
        """A host of the newest version, of the one before, or of the next one."""
        newest = max(1, self.newest + self.chance.choice([-1, 0, 0, 1]))
        if len(self.living) < 4:
            self.join(Forms(max(1, newest - 1), newest), beats=self.chance.random() < 0.7)

    def join(self, forms: Forms, *, beats: bool = True) -> Host | None:
        records = ClusterRecords(self.url, "shop", scripts=self.scripts, forms=forms)
        self.stack.callback(records.close)
        try:
            now_us = records.join("key").now_us
        except ConfigError:
            self.counts["refused"] += 1
            return None
        self.newest = max(self.newest, forms.newest)
        self.started += 1
        host = Host(records, forms, f"h/{now_us}/{self.started}", f"s{self.started}")
        self.hosts.append(host)
        if beats:
            self.beat(host)
        return host

    def beat(self, host: Host) -> None:
        host.number += 1
        told = host.records.beat(
            host.incarnation, host.number, lease_s=LEASE_S, draining=False, start=host.start, record=b"{}",
            writes=host.writes,
        )  # fmt: skip
        if not told.alive:
            self.dead.add(host.start)
            host.records.obituary(host.start)
            self.hosts.remove(host)
            self.counts["told dead"] += 1
            return
        host.form = max(host.form, told.form)
        under_way = [form for request in host.pending if (form := form_of(request)) is not None]
        if self.hasty or all(form >= host.form for form in under_way):
            host.writes = host.form

    def bury(self, host: Host) -> None:
        """A host is declared dead, and does not know it."""
        host.records.obituary(host.start)
        self.dead.add(host.start)
        self.counts["died"] += 1

    def ask(self, host: Host, kind: str) -> None:
        """The host asks for something; it is carried out later."""
        if kind == "claim":
            name = self.chance.choice(NAMES)
            owner = (self.client.hget(host.records.key_of(name), "own") or b"").decode()
            if all(other.incarnation != owner for other in self.living):
                claim = Claim(name, host.incarnation, host.number, "Account", 1, dead=owner, arguments=b"args")
                host.pending.append(claim._replace(form=host.form))
        elif host.epochs:
            name = self.chance.choice(list(host.epochs))
            epoch, revision = host.epochs[name]
            save = Save(name, host.incarnation, epoch, revision, 1, b"state", form=host.form)
            host.epochs[name] = (epoch, revision + 1)
            host.pending.append(save if kind == "save" else Release(name, host.incarnation, epoch, "", save))
            if kind == "release":
                del host.epochs[name]

    def execute(self, host: Host) -> None:
        request = host.pending.pop(0)
        [answer] = host.records.exchange([request])
        if isinstance(answer, Mine):
            host.epochs[request.name] = (answer.epoch, answer.revision)
            self.counts["claims"] += 1
        elif isinstance(answer, Unclaimed):
            assert answer.why is not Refusal.FORM or host.start in self.dead, f"{host} cannot read {request.name}"
        elif isinstance(answer, Saved):
            self.counts["saves"] += answer.verdict is Verdict.SAVED
            if answer.verdict is Verdict.FENCED:
                host.epochs.pop(request.name, None)
                located = host.records.exchange([Locate(request.name)])[0]
                assert isinstance(located, Located)
                assert isinstance(request, Save)
                is_its = (located.owner, located.epoch) == (host.incarnation, request.epoch)
                assert host.start in self.dead or not is_its, f"{host} cannot write {request.name}, which it has"
        elif isinstance(answer, Released):
            self.counts["releases"] += answer.done

    def upgrade(self) -> None:
        """By one of the members."""
        members = [host for host in self.living if host.number]
        if members:
            self.upgrade_by(self.chance.choice(members), busy=True)

    def upgrade_by(self, host: Host, *, busy: bool = False) -> None:
        """As far as it goes, asked of one host; ``busy``: it may be interrupted, and something comes meanwhile."""
        newest = max(row.forms.newest for row in host.records.forms().members)
        if newest > host.forms.newest:
            return
        form = host.records.raise_form(newest).form
        if form != newest or any(row.writes < form for row in host.records.forms().members):
            return
        for _ in range(2):
            after, changed = "", 0
            while True:
                page = host.records.rewrite(form, after, 2)
                after, changed = page.following, changed + page.rewritten
                self.counts["rewritten"] += page.rewritten
                if not after:
                    break
                if busy and self.chance.random() < 0.02:
                    return
            if not changed:
                self.counts["settled"] += host.records.settle_form(form).former == form
                return
            if busy and self.hosts:
                other = self.chance.choice(self.hosts)
                if other.pending:
                    self.execute(other)

    def look(self) -> None:
        """Every member can read every record."""
        self.counts["looks"] += 1
        if not self.living:
            return
        for name in NAMES:
            form = self.client.hget(self.living[0].records.key_of(name), "fm")
            for host in (each for each in self.living if each.number):
                assert form is None or host.forms.oldest <= int(form) <= host.forms.newest, f"{host} cannot read {name}"


def form_of(request: Request) -> int | None:
    if isinstance(request, Release):
        return None if request.last is None else request.last.form
    return request.form if isinstance(request, (Claim, Save)) else None


def test_every_member_can_read_every_record_at_every_moment(server: RedisServer) -> None:
    counts: Counter[str] = Counter()
    for seed in range(pick(12, 500)):
        one = Walk(server, seed)
        one.run(STEPS)
        counts.update(one.counts)
    assert min(counts[kind] for kind in ("refused", "told dead", "died", "saves", "rewritten", "settled")) >= 5, counts


# ---------------------------------------------------------------- what each part is for


def upgraded_by(walk: Walk, first: Host) -> None:
    """Another host raises the form, and a third joins that does not know the one of the first."""
    second = walk.join(Forms(1, 2))
    assert second is not None
    walk.beat(second)
    for _ in range(2):  # each hears of it, and says so
        walk.upgrade_by(second)
        for host in (first, second):
            if host in walk.hosts and host.number and host.start not in walk.dead:
                walk.beat(host)
    walk.upgrade_by(second)
    walk.join(Forms(2, 3))


def late_of_the_dead(walk: Walk, kind: str) -> None:
    """A host was declared dead while it had something under way, which comes after the upgrade."""
    [host] = walk.hosts
    if kind != "claim":
        walk.ask(host, "claim")
        walk.execute(host)
    walk.ask(host, kind)
    walk.bury(host)
    upgraded_by(walk, host)
    walk.execute(host)
    walk.look()


def late_of_the_living(walk: Walk) -> None:
    """A host has a save under way while it hears of the new form; it is carried out when others may have gone on."""
    walk.join(Forms(1, 2))
    host = walk.hosts[1]
    walk.beat(host)
    walk.bury(walk.hosts[0])
    walk.ask(host, "claim")
    walk.execute(host)
    walk.ask(host, "save")
    upgraded_by(walk, host)
    walk.execute(host)
    walk.look()


def joined_before(walk: Walk) -> None:
    """A host joins, the form is raised, and only then it beats for the first time."""
    [host] = walk.hosts
    late = walk.join(Forms(1, 1), beats=False)
    assert late is not None
    walk.bury(host)
    upgraded_by(walk, late)
    other = walk.hosts[-1]
    walk.ask(other, "claim")
    walk.execute(other)
    walk.beat(late)
    walk.look()


FENCES = {
    "save": "if is_former(ARGV[8], r[4]) then return {'fenced', r[1], r[2]} end",
    "release": "if saves and is_former(ARGV[10], r[6]) then return {'gone'} end",
    "claim": "if tonumber(ARGV[11]) < tonumber(call('GET', base .. 'least') or 0) then return {'form', ARGV[11]} end",
    "beat": " or form > tonumber(ARGV[9])",
}


@pytest.mark.parametrize("script", FENCES)
def test_what_comes_late_is_refused_and_without_that_a_member_cannot_read_it(server: RedisServer, script: str) -> None:
    scripts = cluster_scripts(CLOCK)
    text = getattr(scripts, script).text
    assert FENCES[script] in text
    without = scripts._replace(**{script: Script(text.replace(FENCES[script], ""), "")})
    for chosen, breach in ((None, contextlib.nullcontext()), (without, pytest.raises(AssertionError, match="cannot"))):
        walk = Walk(server, 0, chosen)
        with walk.stack, breach:
            joined_before(walk) if script == "beat" else late_of_the_dead(walk, script)


@pytest.mark.parametrize("hasty", [False, True])
def test_a_save_under_way_is_kept_because_its_host_says_only_then_that_it_writes_the_new_form(
    server: RedisServer, hasty: bool
) -> None:
    walk = Walk(server, 0, hasty=hasty)
    with walk.stack, pytest.raises(AssertionError, match="cannot write") if hasty else contextlib.nullcontext():
        late_of_the_living(walk)
        assert walk.counts["settled"] == 0, "nobody has gone on"
