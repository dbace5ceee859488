"""What holds for the dispatcher whatever happens: random hosts, random call graphs, everything in random order.

``ZMQAGENTS_THOROUGH=1`` runs the full numbers: 10,000 call graphs of each kind, and long random lives.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scale import pick
from world import Sent, World, failed, ok
from zmqagents import errors
from zmqagents.scheduler.dispatcher import Answer, Drained, Effect, Peer, Resume, State, Ticket
from zmqagents.scheduler.records import END, ID_BYTES, DrainEnd
from zmqagents.scheduler.wait_graph import stuck_with
from zmqagents.wire.messages import Flag

THOROUGH = bool(os.environ.get("ZMQAGENTS_THOROUGH"))
GRAPHS = 10_000 if THOROUGH else pick(250, 500)


# ---------------------------------------------------------------- random call graphs


Step = tuple[str, str]  # what to do, at which agent
Program = Callable[["Play", Ticket], list[Step]]


class Play:
    """Runs calls whose code is a list of steps, one step of one call at a time, in random order."""

    def __init__(self, seed: int, program: Program, *, classes: Sequence[str], agents: int) -> None:
        self.rng = random.Random(seed)
        self.world = World(capacity=self.rng.randint(1, 3), max_threads=100_000)
        self.names = [f"a{number}" for number in range(agents)]
        for name in self.names:
            self.world.agent(name, self.rng.choice(classes))
        self.program = program
        self.left: dict[Ticket, list[Step]] = {}
        self.asked: dict[Ticket, list[Sent]] = {}
        self.sent: list[Sent] = []

    def root(self, name: str, method: str = "m", **kwargs: Any) -> Sent:
        self.sent.append(self.world.send(name, method, flags=Flag.DETACHED, **kwargs))
        return self.sent[-1]

    def run(self) -> None:
        """Until nothing moves any more."""
        while going := [t for t in self.world.started if t.state is State.RUNNING and not t.owed]:
            self.step(self.rng.choice(going))
            while self.world.lookups:
                lookup = self.world.lookups.pop()
                self.world.dep(lookup, self.world.kept[lookup.task_id])

    def step(self, ticket: Ticket) -> None:
        if ticket not in self.left:
            made = ticket.op or ticket.settled
            self.left[ticket], self.asked[ticket] = [] if made else self.program(self, ticket), []
        if not self.left[ticket]:
            self.world.done(ticket)
            return
        kind, name = self.left[ticket].pop(0)
        own, asked = Sent(self.world, ticket.peer, ticket.call_id, ticket), self.asked[ticket]
        if kind == "call" and not ticket.on_loop:
            self.sent.append(self.world.nested(own, name))
        elif kind in ("all", "wait"):
            self.world.wait(own, *asked)
        elif kind == "any" and asked:
            self.world.wait(own, *asked, any_of=not ticket.on_loop)
        elif kind != "any":
            deps = self.rng.sample(asked, min(len(asked), self.rng.randint(0, 2))) if kind == "take" else []
            method = "co" if kind == "co" else "progress" if kind == "beside" else "m"
            asked.append(self.world.later(own, name, method, deps=deps))
            self.sent.append(asked[-1])
            if kind == "call":  # of a coroutine
                self.world.wait(own, asked[-1])

    def check(self, deadlocks: int, seed: int) -> None:
        """Everybody was answered, with so many deadlocks among them."""
        text = f"seed {seed}"
        assert self.world.dispatcher.counters.deadlocks == deadlocks, text
        assert all(sent.answered for sent in self.sent), text
        if not deadlocks:
            assert all(sent.error is None for sent in self.sent), text
        self.world.assert_idle()


def downwards(play: Play, ticket: Ticket) -> list[Step]:
    """Calls agents of higher numbers only, so no two calls can ever need each other."""
    own = play.names.index(ticket.agent.agent_id)
    higher = play.names[own + 1 :]
    if not higher or len(play.sent) > 50:
        return []
    kinds = ["call", "call", "later", "co", "beside", "take", "all", "any"]
    return [(play.rng.choice(kinds), play.rng.choice(higher)) for _ in range(play.rng.randint(1, 5))]


def test_call_graphs_without_a_cycle_give_no_alarm_and_finish() -> None:
    for seed in range(GRAPHS):
        play = Play(seed, downwards, classes=["Plain", "Pair", "Again", "Wide"], agents=seed % 5 + 3)
        for _ in range(play.rng.randint(2, 8)):
            deps = play.rng.sample(play.sent, min(len(play.sent), play.rng.randint(0, 2)))
            play.root(play.rng.choice(play.names), play.rng.choice(["m", "co", "progress"]), deps=deps)
        play.run()
        play.check(0, seed)


def test_every_chain_that_comes_back_to_itself_is_one_deadlock() -> None:
    for seed in range(GRAPHS):
        following: dict[str, str] = {}

        def on_and_on(play: Play, ticket: Ticket, following: dict[str, str] = following) -> list[Step]:
            return [("call", following[ticket.agent.agent_id])]

        play = Play(seed, on_and_on, classes=["Plain"], agents=seed % 7 + 1)
        following.update({name: play.rng.choice(play.names) for name in play.names})
        play.root(play.rng.choice(play.names), play.rng.choice(["m", "co"]))
        play.run()
        play.check(1, seed)


@pytest.mark.parametrize("cls", ["Plain", "Pair"])
def test_every_ring_of_callers_is_one_deadlock(cls: str) -> None:
    for seed in range(GRAPHS // 2):
        roots: set[Ticket] = set()

        def to_the_next(play: Play, ticket: Ticket, roots: set[Ticket] = roots) -> list[Step]:
            if ticket not in roots:
                return []
            following = play.names[(play.names.index(ticket.agent.agent_id) + 1) % len(play.names)]
            return [(play.rng.choice(["call", "take"]), following), ("all", "")]

        play = Play(seed, to_the_next, classes=[cls], agents=seed % 6 + 1)
        play.world.dispatcher.calls.slots.capacity = 100  # all of them must be there before the first goes on
        for name in play.names * (2 if cls == "Pair" else 1):
            roots.add(play.root(name, play.rng.choice(["m", "co"])).t)
        play.run()
        play.check(1, seed)


def test_reentrant_agents_never_deadlock_with_their_own_chain() -> None:
    for seed in range(GRAPHS // 2):

        def anywhere(play: Play, ticket: Ticket) -> list[Step]:
            if len(ticket.chain) > 8 or len(play.sent) > 40:
                return []
            return [("call", play.rng.choice(play.names)) for _ in range(play.rng.randint(1, 2))]

        play = Play(seed, anywhere, classes=["Again", "PairAgain"], agents=seed % 4 + 1)
        play.root(play.rng.choice(play.names), play.rng.choice(["m", "co"]))
        play.run()
        play.check(0, seed)


def can_end(ticket: Ticket, targets: list[Ticket], any_of: bool, known: Sequence[Ticket]) -> bool:
    """The plain definition, tried out: what can end, what can end then, and so on until nothing is added."""
    ended: set[Ticket] = set()

    def may_end(other: Ticket) -> bool:
        if other is ticket:
            return (any if any_of else all)(target in ended for target in targets)
        if other.state is State.WAITING and not other.settled:
            return (any if other.wait_any else all)(target in ended for target in other.waits_for or ())
        if other.state is State.PARKED:
            return all(target in ended for target in (other.deps or {}).values() if target is not None)
        if other.state is State.QUEUED:
            return any(holder in ended for holder in other.agent.holders)
        return True

    while more := {other for other in known if other not in ended and may_end(other)}:
        ended |= more
    return ticket in ended


def test_a_wait_is_refused_exactly_when_it_could_never_end() -> None:
    outcomes: Counter[bool] = Counter()
    for seed in range(GRAPHS):

        def anywhere(play: Play, ticket: Ticket) -> list[Step]:
            kinds = ["later", "co", "take", "later", "beside"] if len(play.sent) < 25 else ["all"]
            steps = [(play.rng.choice(kinds), play.rng.choice(play.names)) for _ in range(play.rng.randint(1, 3))]
            return [*steps, ("wait", "")]

        play = Play(seed, anywhere, classes=["Plain", "Pair"], agents=seed % 4 + 1)
        dispatcher, world = play.world.dispatcher, play.world
        play.world.dispatcher.calls.slots.capacity = 100
        for _ in range(play.rng.randint(2, 6)):
            play.root(play.rng.choice(play.names))

        def judged(own: Sent, *targets: Sent | str, any_of: bool = False) -> list[Effect]:
            any_of = not own.t.on_loop and play.rng.random() < 0.3  # noqa: B023
            wanted = play.rng.sample(play.sent, min(len(play.sent), play.rng.randint(1, 3)))  # noqa: B023
            found = [dispatcher.tasks[sent.task_id] for sent in wanted if sent.task_id in dispatcher.tasks]  # noqa: B023
            at_once = not found or (any_of and len(found) < len(wanted))
            known = list({*dispatcher.tasks.values(), *world.started})  # noqa: B023
            expected = at_once or can_end(own.t, found, any_of, known)
            effects = world.see(  # noqa: B023
                dispatcher.on_wait(own.t, [sent.task_id for sent in wanted], world.now, any_of=any_of)  # noqa: B023
            )
            errors_ = [e.error for e in effects if isinstance(e, Resume) and e.ticket is own.t and e.error is not None]
            assert not any(not isinstance(error, errors.DeadlockError) for error in errors_)
            assert bool(errors_) != expected, f"seed {seed}"  # noqa: B023
            outcomes[expected] += not at_once
            return effects

        world.wait = judged  # type: ignore[method-assign,assignment]
        play.run()
        assert all(sent.answered for sent in play.sent), f"seed {seed}"
        world.assert_idle()
    assert min(outcomes.values()) > GRAPHS / 4, "both kinds are common"


# ---------------------------------------------------------------- a whole life


AGENTS = ["a", "b", "c", "d"]
CLASSES = ["Plain", "Pair", "Again", "PairAgain", "Picky", "PickyAgain", "Wide", "Ending", "PairEnding"]
numbers = st.integers(0, 10**6)  # which one of those that are there: taken modulo their count


class Life(RuleBasedStateMachine):
    """A host with everything that can happen to it. Threads are played as what they are: one wait at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(capacity=2, max_threads=5, max_calls=40, max_calls_per_client=12, max_mailbox=4)
        self.sent: list[Sent] = []
        self.waits: Counter[Ticket] = Counter()  # begun by threads
        self.outside: set[Ticket] = set()
        self.peers = [Peer("p0"), Peer("p1")]
        self.fetches: list[Sent] = []
        self.accepted_agents = 0
        self.early: set[int] = set()
        for name in AGENTS[:3]:
            self.world.agent(name, "Plain")

    # -------------------------------------------------- who is there

    def code(self) -> list[Ticket]:
        """Calls whose code can do something now; a coroutine that waits may have another task that does not."""
        threads = [t for t in self.world.started if not t.on_loop and t.state is State.RUNNING and not t.owed]
        coroutines = [t for t in self.world.started if t.on_loop and t.state in (State.RUNNING, State.WAITING)]
        return threads + coroutines

    def open(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.ticket is not None and not sent.t.settled]

    def as_sent(self, ticket: Ticket) -> Sent:
        return Sent(self.world, ticket.peer, ticket.call_id, ticket)

    @property
    def drained(self) -> bool:
        return bool(self.world.drained)

    def check_silence(self, effects: list[Effect]) -> None:
        if self.drained and not any(isinstance(effect, Drained) for effect in effects):
            assert effects == []

    def begin_wait(self, ticket: Ticket) -> None:
        if not ticket.on_loop:
            self.waits[ticket] += 1

    # -------------------------------------------------- rules

    @rule(name=st.sampled_from(AGENTS), cls=st.sampled_from(CLASSES), timeout=st.sampled_from([None, 2]))
    def make(self, name: str, cls: str, timeout: int | None) -> None:
        self.sent.append(self.world.create(name, cls, timeout=timeout, peer=self.peers[0]))

    @rule(name=st.sampled_from(AGENTS))
    def delete(self, name: str) -> None:
        if name in self.world.dispatcher.agents:
            self.check_silence(self.world.remove(name))

    @rule(
        name=st.sampled_from(AGENTS), method=st.sampled_from(["m", "n", "progress", "co", "missing"]),
        peer=st.integers(0, 1), timeout=st.sampled_from([None, None, 1, 3]), detached=st.booleans(),
        deps=st.lists(numbers, max_size=3), back=st.none() | numbers,
    )  # fmt: skip
    def call(
        self, name: str, method: str, peer: int, timeout: int | None, detached: bool, deps: list[int], back: int | None
    ) -> None:
        options: dict[str, Any] = {}
        if back is not None and self.outside:
            through = sorted(self.outside, key=lambda ticket: ticket.task_id)[back % len(self.outside)]
            options["chain"] = [through.task_id, "there-1"]
        self.sent.append(
            self.world.send(
                name, method, peer=self.peers[peer], timeout=timeout, flags=Flag.DETACHED if detached else 0,
                deps=self.some(deps), **options,
            )
        )  # fmt: skip

    def some(self, which: list[int]) -> list[Sent | str]:
        """Calls that were made before, finished ones among them, and one that nobody knows."""
        return [self.sent[number % len(self.sent)] if number % 7 and self.sent else "x-1" for number in which]

    @precondition(lambda self: self.code())
    @rule(
        who=numbers, name=st.sampled_from(AGENTS), method=st.sampled_from(["m", "progress", "co"]), wait=st.booleans(),
        deps=st.lists(numbers, max_size=2),
    )  # fmt: skip
    def call_inside(self, who: int, name: str, method: str, wait: bool, deps: list[int]) -> None:
        parent = self.code()[who % len(self.code())]
        own = self.as_sent(parent)
        if wait:
            self.begin_wait(parent)
            self.sent.append(self.world.nested(own, name, method, deps=self.some(deps)))
        else:
            self.sent.append(self.world.later(own, name, method, deps=self.some(deps)))

    @precondition(lambda self: self.code() and self.sent)
    @rule(who=numbers, which=st.lists(numbers, max_size=4), any_of=st.booleans())
    def wait(self, who: int, which: list[int], any_of: bool) -> None:
        ticket = self.code()[who % len(self.code())]
        self.begin_wait(ticket)
        self.world.wait(self.as_sent(ticket), *self.some(which), any_of=any_of)

    @precondition(lambda self: self.code())
    @rule(who=numbers, known=st.booleans())
    def wait_outside(self, who: int, known: bool) -> None:
        ticket = self.code()[who % len(self.code())]
        self.begin_wait(ticket)
        if ticket.on_loop:
            self.world.await_outside(self.as_sent(ticket), "there-1" if known else "there-2")
            self.outside.add(ticket)
            return
        self.world.wait_outside(self.as_sent(ticket), *(["there-1"] if known else []))
        if ticket.outside is not None:
            self.outside.add(ticket)

    @precondition(lambda self: any(t.state is State.WAITING for t in self.world.started))
    @rule(who=numbers)
    def wait_over(self, who: int) -> None:
        waiting = [t for t in self.world.started if t.state is State.WAITING]
        ticket = waiting[who % len(waiting)]
        if ticket.on_loop:
            for target in list(ticket.waits_for or {})[:1]:
                assert self.world.dispatcher.on_unwait(ticket, [target.task_id]) == []
            for task_id in ticket.outside or ():
                assert self.world.dispatcher.on_unawait_outside(ticket, task_id) == []
        else:
            self.world.wait_over(self.as_sent(ticket))

    @precondition(lambda self: self.code())
    @rule(who=numbers, well=st.booleans())
    def code_returns(self, who: int, well: bool) -> None:
        ticket = self.code()[who % len(self.code())]
        self.check_silence(self.world.done(ticket, ok() if well else failed(ValueError("no"))))

    @precondition(lambda self: any(t.state is State.WAITING and t.on_loop for t in self.world.started))
    @rule(who=numbers)
    def coroutine_returns_while_it_waits(self, who: int) -> None:
        waiting = [t for t in self.world.started if t.state is State.WAITING and t.on_loop]
        self.world.done(waiting[who % len(waiting)])

    @precondition(lambda self: self.world.lookups)
    @rule(well=st.booleans())
    def store_answers(self, well: bool) -> None:
        lookup = self.world.lookups.pop()
        if lookup.ticket is not None:
            self.check_silence(self.world.dep(lookup, ok() if well else failed(LookupError("gone"))))

    @precondition(lambda self: self.sent)
    @rule(which=numbers, by_task_id=st.booleans())
    def cancel(self, which: int, by_task_id: bool) -> None:
        self.check_silence(self.world.cancel(self.sent[which % len(self.sent)], by_task_id=by_task_id))

    @rule(peer=st.integers(0, 1))
    def cancel_early(self, peer: int) -> None:
        coming = Sent(self.world, self.peers[peer], self.world.ids[self.peers[peer]] + 1, None)
        self.check_silence(self.world.cancel(coming))

    @precondition(lambda self: self.sent)
    @rule(which=numbers, peer=st.integers(0, 1), timeout=st.sampled_from([0.0, 1.0, 100.0]))
    def fetch(self, which: int, peer: int, timeout: float) -> None:
        sent = self.sent[which % len(self.sent)]
        self.fetches.append(self.world.fetch(sent.task_id, timeout, peer=self.peers[peer]))

    @rule(peer=st.integers(0, 1))
    def peer_goes(self, peer: int) -> None:
        self.check_silence(self.world.detach(self.peers[peer]))
        self.peers[peer] = Peer(f"p{peer}-{len(self.sent)}")

    @rule(seconds=st.sampled_from([0.5, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.check_silence(self.world.sleep(seconds))

    @precondition(lambda self: len(self.sent) > 10)
    @rule(grace=st.sampled_from([0.0, 1.0, 5.0]))
    def drain(self, grace: float) -> None:
        self.world.drain(grace)

    # -------------------------------------------------- laws

    @invariant()
    def slots_are_counted_and_used(self) -> None:
        dispatcher, started = self.world.dispatcher, self.world.started
        assert dispatcher.running == sum(ticket.slot for ticket in started) <= 2 + 1  # one for those that hold none
        assert dispatcher.blocked == sum(ticket.owed for ticket in started)
        assert dispatcher.running + dispatcher.blocked <= 5 + 1
        ready = [ticket for ticket in dispatcher.tasks.values() if ticket.state is State.READY]
        assert dispatcher.calls.slots.ready == len(ready)
        if dispatcher.running < 3 and not self.drained:
            assert all(ticket.account.slots for ticket in ready)
        if dispatcher.running < 2 and not self.drained:
            assert not ready
            assert not any(ticket.owed and ticket.state is State.RUNNING for ticket in started)

    @invariant()
    def bytes_of_calls_that_have_not_started_are_counted(self) -> None:
        dispatcher = self.world.dispatcher
        calls = dispatcher.tasks.values()
        assert dispatcher.queued_bytes == sum(ticket.queued_bytes for ticket in calls)
        for ticket in calls:
            chain = 2 * ID_BYTES * len(ticket.sealed)
            if ticket.state < State.RUNNING:  # and the ids of the results that it needs, which may have come
                ids = ticket.queued_bytes - sum(map(len, ticket.body)) - chain
                assert ids >= ID_BYTES * len(ticket.deps or ())
                assert ids % ID_BYTES == 0
            else:
                assert ticket.queued_bytes == chain

    @invariant()
    def what_users_hold_is_counted(self) -> None:
        dispatcher = self.world.dispatcher
        for account in {ticket.account for ticket in self.world.started}:
            assert account.calls == sum(ticket.account is account for ticket in dispatcher.tasks.values())
            assert account.slots == sum(ticket.slot and ticket.account is account for ticket in self.world.started)
            assert account.waits == sum(ticket.owed and ticket.account is account for ticket in self.world.started)
            mine = [ticket for ticket in dispatcher.tasks.values() if ticket.account is account]
            assert account.queued_bytes == sum(ticket.queued_bytes for ticket in mine)
            there = [*dispatcher.agents.values(), *(t.agent for t in self.ends() if not t.agent.dropped)]
            assert account.agents == sum(record.account is account for record in there)
        for record in dispatcher.agents.values():
            queued = list(record.mailbox or ())
            assert record.queued == len(queued)
            for account, places in Counter(ticket.account for ticket in queued).items():
                assert record.places_of(account) == places

    def ends(self) -> set[Ticket]:
        """The calls that end agents, those too that a stop has answered while other calls of their agents still run."""
        known = (*self.world.dispatcher.tasks.values(), *self.world.started)
        return {t for t in known if t.op == END} | {t.agent.end for t in known if t.agent.end is not None}

    @invariant()
    def agents_end_alone(self) -> None:
        for end in self.ends():
            if end.seat >= 0:
                assert end.agent.holders == [end]
                assert not end.agent.beside
        assert self.world.dispatcher.calls.ending == sum(not end.agent.dropped for end in self.ends())

    @invariant()
    def turns_are_held_by_no_more_than_may(self) -> None:
        for record in self.world.dispatcher.agents.values():
            assert len(record.holders) <= record.options.max_concurrency
            assert all(ticket.turn and ticket.agent is record for ticket in record.holders)
            if record.made and record.mailbox:
                assert len(record.holders) == record.options.max_concurrency
            states = {ticket.state for ticket in record.mailbox or ()}
            assert states <= {State.QUEUED}
        reentrant = [t for t in self.world.started if t.state in (State.RUNNING, State.WAITING) and t.exclusive]
        running = Counter(t.agent for t in reentrant if t.state is State.RUNNING and not t.owed and not t.settled)
        for record, count in running.items():
            if record.options.max_concurrency == 1 and not record.options.reentrant:
                assert count <= 1

    @invariant()
    def nobody_is_answered_twice_and_counters_agree(self) -> None:
        dispatcher = self.world.dispatcher
        assert all(len(replies) <= 1 for replies in self.world.answers.values())
        assert dispatcher.counters.accepted - dispatcher.counters.answered == len(dispatcher.tasks)
        for sent in self.sent:
            open_now = dispatcher.tasks.get(sent.task_id) is sent.ticket is not None
            if not sent.peer.gone:
                assert sent.answered != open_now
        live = sum(ticket.deadline is not None for ticket in dispatcher.tasks.values())
        parked = {fetch for ticket in dispatcher.tasks.values() for fetch in ticket.fetches or ()}
        assert sum(not isinstance(due, DrainEnd) for due in dispatcher.timers) == live + len(parked)
        assert all(not fetch.peer.gone for fetch in parked)
        lingering = [t for t in self.world.started if t.settled and t.state is not State.DONE]
        assert dispatcher.calls.lingering == len(lingering)

    @invariant()
    def every_wait_of_a_thread_ends_once(self) -> None:
        ended = Counter(resume.ticket for resume in self.world.resumed if not resume.ticket.on_loop)
        for ticket, begun in self.waits.items():
            open_now = int(ticket.owed)
            assert ended[ticket] + open_now == begun

    @invariant()
    def nothing_is_stuck_or_leads_nowhere(self) -> None:
        for ticket in [*self.world.dispatcher.tasks.values(), *self.world.started]:
            if ticket.state is not State.DONE:
                assert stuck_with(ticket) == []
            for target in ticket.waits_for or ():
                assert ticket.state is State.WAITING
                assert not target.settled
                assert target.waiters is not None
                assert ticket in target.waiters
            if ticket.state is State.DONE:
                assert not ticket.waits_for
                assert ticket.context is None
                assert ticket.seat == -1

    def teardown(self) -> None:
        """Whatever is going on: when the code returns and outside answers, everything ends, without any time-out."""
        world = self.world
        while True:
            for lookup in [lookup for lookup in world.lookups if lookup.ticket is not None]:
                world.lookups.remove(lookup)
                world.dep(lookup, ok())
            for ticket in [t for t in world.started if t.outside is not None]:
                world.wait_over(self.as_sent(ticket))
                for task_id in ticket.outside or ():
                    assert world.dispatcher.on_unawait_outside(ticket, task_id) == []
            going = [ticket for ticket in self.code() if ticket.state is State.RUNNING]
            if not going:
                break
            for ticket in going:
                world.done(ticket)
        assert not world.dispatcher.tasks
        world.client = self.peers[0]
        world.assert_idle()
        if world.dispatcher.draining:
            assert len(world.drained) == 1
            refused = world.send("a", peer=self.peers[0])
            assert isinstance(refused.error, errors.HostStopping)


Life.TestCase.settings = settings(
    max_examples=2000 if THOROUGH else pick(40, 100),
    stateful_step_count=100 if THOROUGH else 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
)


class TestLife(Life.TestCase):  # type: ignore[misc,valid-type]
    """Any life of a host obeys the laws, and ends."""


def test_the_effects_of_a_life_are_what_the_broker_knows() -> None:
    assert {Answer, Drained, Resume} <= set(Effect.__args__)
