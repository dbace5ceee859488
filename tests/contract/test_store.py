"""The contract of the future store, run on every backend, and what belongs to one of them.

A backend joins by one entry in `WORLDS`: a class that opens stores and lets time pass. The stress
test runs 1.5 s, and 20 s in ``make soak``; ``ZMQAGENTS_STRESS_S`` says another time.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from redis_server import NO_SERVER, RedisServer
from scale import pick
from zmqagents.errors import ConfigError, MessageTooLarge, StoreUnavailable
from zmqagents.store import Found, FutureStore, SharedStore, State, StoreLimits, open_store
from zmqagents.store.base import ENTRY_OVERHEAD_BYTES
from zmqagents.store.memory import SWEEP_LIMIT

STRESS_S = float(os.environ.get("ZMQAGENTS_STRESS_S", pick(1.5, 20.0)))
STRESS_THREADS = 16

PENDING, EXPIRED, UNKNOWN, LOST = (
    Found(state) for state in (State.PENDING, State.EXPIRED, State.UNKNOWN, State.LOST)
)  # fmt: skip


def done(value: bytes) -> Found:
    return Found(State.DONE, value)


def bytes_for(*lengths: int) -> int:
    """The ``max_bytes`` that exactly holds values of these lengths."""
    return sum(lengths) + len(lengths) * ENTRY_OVERHEAD_BYTES


class MemoryWorld:
    """Opens memory stores on a clock that only `advance` moves."""

    ttl_s = 10.0  # a lifetime that this world can wait for
    examples = pick(60, 200)  # of random sequences

    def __init__(self, shared_redis: RedisServer | None = None) -> None:
        self.now = 1000.0
        self.opened: list[FutureStore] = []

    def open(self, **limits: Any) -> FutureStore:
        store = open_store("local", StoreLimits(**{"ttl_s": self.ttl_s, **limits}), clock=lambda: self.now)
        self.opened.append(store)
        return store

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None:
        for store in self.opened:
            store.close()


class RedisWorld(MemoryWorld):
    """Opens stores in one real Redis, each in a namespace of its own, and lets time pass there.

    Redis's clock goes by itself and cannot be moved; `advance` makes all that is stored older instead.
    """

    ttl_s = 800.0  # an eighth of it is far longer than any test here takes
    examples = pick(8, 20)
    namespaces = itertools.count()

    def __init__(self, shared_redis: RedisServer | None = None) -> None:
        super().__init__()
        if shared_redis is None:
            pytest.skip(NO_SERVER)
        self.server = shared_redis
        self.names: list[str] = []
        self.redis = shared_redis.client

    def open(self, **limits: Any) -> FutureStore:
        self.names.append(f"test.{next(self.namespaces)}")
        return self.open_again(**limits)

    def open_again(self, **limits: Any) -> FutureStore:
        """Another store on the namespace of the latest."""
        limits = {"ttl_s": self.ttl_s, **limits}
        store = open_store("redis", StoreLimits(**limits), url=self.server.url, namespace=self.names[-1])
        self.opened.append(store)
        return store

    def advance(self, seconds: float) -> None:
        for name in self.names:
            self.redis.eval(_MAKE_OLDER, 1, f"za:{{{name}}}:", round(seconds * 1e6))

    def close(self) -> None:
        super().close()
        for name in self.names:
            keys = list(self.redis.scan_iter(f"za:{{{name}}}:*", count=1000))
            if keys:
                self.redis.unlink(*keys)
        self.redis.close()


_MAKE_OLDER = """
local older = tonumber(ARGV[1])
for _, task in ipairs(redis.call('ZRANGE', KEYS[1] .. 'fin', 0, -1)) do
    redis.call('ZINCRBY', KEYS[1] .. 'fin', -older, task)
    local key = KEYS[1] .. 'r:' .. task
    local left = redis.call('PTTL', key)
    if left > 0 then redis.call('PEXPIRE', key, left - older / 1000) end
end
"""

WORLDS = {"memory": MemoryWorld, "redis": RedisWorld}


@pytest.fixture(scope="session", params=["memory", pytest.param("redis", marks=pytest.mark.program)])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def server(backend: str, request: pytest.FixtureRequest) -> RedisServer | None:
    """Only for the backend that needs one."""
    found: RedisServer | None = request.getfixturevalue("shared_redis") if backend == "redis" else None
    return found


@pytest.fixture
def world(backend: str, server: RedisServer | None) -> Iterator[MemoryWorld]:
    made = WORLDS[backend](server)
    yield made
    made.close()


@pytest.fixture
def store(world: MemoryWorld) -> FutureStore:
    return world.open()


# ---------------------------------------------------------------- states


def test_a_task_never_heard_of_is_unknown(store: FutureStore) -> None:
    assert store.get("t") == UNKNOWN


def test_a_begun_task_is_pending_and_a_finished_one_done(store: FutureStore) -> None:
    store.begin("t")
    assert store.get("t") == PENDING
    store.put("t", b"value")
    assert store.get("t") == done(b"value")
    assert store.get("t") == done(b"value"), "reading takes nothing away"


@pytest.mark.parametrize("value", [b"", b"\x00", b"\xc0", b"None"])
def test_every_value_is_legal_and_told_from_no_value_by_the_state(store: FutureStore, value: bytes) -> None:
    store.put("t", value)
    assert store.get("t") == done(value)
    assert store.get("other").value is None


def test_a_result_may_be_put_without_a_begin(store: FutureStore) -> None:
    store.put("t", b"value")
    assert store.get("t") == done(b"value")


def test_the_first_put_of_a_task_wins(store: FutureStore) -> None:
    store.begin("t")
    store.put("t", b"first")
    store.put("t", b"second")
    store.begin("t")
    store.lose("t")
    assert store.get("t") == done(b"first")
    assert store.stats().done == 1


@pytest.mark.parametrize("begun", [True, False])
def test_a_lost_task_stays_lost(store: FutureStore, begun: bool) -> None:
    if begun:
        store.begin("t")
    store.lose("t")
    assert store.get("t") == LOST
    store.begin("t")
    store.put("t", b"late")
    assert store.get("t") == LOST


@pytest.mark.parametrize("prepare", ["begin", "put", "lose", "expire", "refuse"])
def test_a_forgotten_task_is_as_if_never_begun(world: MemoryWorld, prepare: str) -> None:
    store = world.open(max_bytes=1024)
    if prepare == "refuse":
        with pytest.raises(MessageTooLarge):
            store.put("t", bytes(2000))
    elif prepare == "expire":
        store.put("t", b"value")
        world.advance(world.ttl_s)
    else:
        store.put("t", b"value") if prepare == "put" else getattr(store, prepare)("t")
    assert store.get("t") != UNKNOWN

    store.forget("t")
    store.forget("t")

    assert store.get("t") == UNKNOWN
    stats = store.stats()
    assert (stats.pending, stats.done, stats.bytes, stats.tombstones) == (0, 0, 0, 0)
    store.begin("t")
    assert store.get("t") == PENDING


def test_only_bytes_are_taken_since_a_buffer_could_still_change(store: FutureStore) -> None:
    for value in (bytearray(b"x"), memoryview(b"x"), "x", None):
        with pytest.raises(TypeError, match="keeps bytes"):
            store.put("t", value)  # type: ignore[arg-type]
    assert store.get("t") == UNKNOWN


# ---------------------------------------------------------------- age


def test_a_result_lives_for_its_ttl_counted_from_the_finish_and_not_from_the_call(world: MemoryWorld) -> None:
    store = world.open()
    store.begin("t")
    world.advance(world.ttl_s * 3)
    assert store.get("t") == PENDING, "a running task has no age"
    store.put("t", b"value")
    world.advance(world.ttl_s * 0.5)
    assert store.get("t") == done(b"value")
    world.advance(world.ttl_s * 0.5)
    assert store.get("t") == EXPIRED


def test_reading_and_putting_again_do_not_renew_a_result(world: MemoryWorld) -> None:
    store = world.open()
    store.put("t", b"value")
    world.advance(world.ttl_s * 0.6)
    assert store.get("t") == done(b"value")
    store.put("t", b"again")
    world.advance(world.ttl_s * 0.6)
    assert store.get("t") == EXPIRED
    store.put("t", b"late")
    store.begin("t")
    assert store.get("t") == EXPIRED, "what expired does not come back"


def test_results_of_one_age_all_go_and_are_all_remembered(world: MemoryWorld) -> None:
    count = 10 * SWEEP_LIMIT + 7  # more than one operation drops
    store = world.open()
    for number in range(count):
        store.put(f"old-{number}", b"value")
    world.advance(world.ttl_s)
    store.put("new", b"value")
    # The youngest first: it is still behind a backlog.
    assert [store.get(f"old-{number}") for number in reversed(range(count))] == [EXPIRED] * count
    assert store.get("new") == done(b"value")
    stats = store.stats()
    assert (stats.done, stats.expired, stats.evicted, stats.bytes) == (1, count, 0, bytes_for(5))


def test_stats_count_no_result_that_has_come_of_age(world: MemoryWorld) -> None:
    store = world.open()
    for number in range(3 * SWEEP_LIMIT):
        store.put(f"t-{number}", b"value")
    world.advance(world.ttl_s)
    stats = store.stats()
    assert (stats.done, stats.bytes, stats.expired) == (0, 0, 3 * SWEEP_LIMIT)


def test_an_old_result_behind_the_backlog_can_be_forgotten(world: MemoryWorld) -> None:
    store = world.open()
    for number in range(3 * SWEEP_LIMIT):
        store.put(f"t-{number}", b"value")
    world.advance(world.ttl_s)
    store.forget(f"t-{3 * SWEEP_LIMIT - 1}")
    assert store.get(f"t-{3 * SWEEP_LIMIT - 1}") == UNKNOWN


# ---------------------------------------------------------------- limits


def test_a_full_store_drops_its_oldest_finished_result(world: MemoryWorld) -> None:
    store = world.open(max_entries=3)
    for task in ("c", "a", "b"):  # the order of the calls does not matter, that of the finishes does
        store.begin(task)
    for task in ("a", "b", "c", "d"):
        store.put(task, task.encode())
    assert store.get("a") == EXPIRED
    assert [store.get(task) for task in "bcd"] == [done(b"b"), done(b"c"), done(b"d")]
    assert store.stats().evicted == 1


def test_reading_a_result_does_not_save_it_from_being_the_oldest(world: MemoryWorld) -> None:
    store = world.open(max_entries=2)
    store.put("a", b"")
    store.put("b", b"")
    for _ in range(5):
        store.get("a")
    store.put("c", b"")
    assert [store.get(task).state for task in "abc"] == [State.EXPIRED, State.DONE, State.DONE]


def test_a_store_full_of_bytes_drops_as_many_of_the_oldest_as_it_must(world: MemoryWorld) -> None:
    store = world.open(max_bytes=bytes_for(300, 300, 300))
    for task in "abc":
        store.put(task, bytes(300))
    assert store.stats().bytes == bytes_for(300, 300, 300)
    store.put("d", bytes(301))
    assert [store.get(task).state for task in "abcd"] == [State.EXPIRED, State.EXPIRED, State.DONE, State.DONE]
    assert store.stats().bytes == bytes_for(300, 301)


def test_empty_values_are_charged_so_that_millions_of_them_are_bounded(world: MemoryWorld) -> None:
    store = world.open(max_bytes=bytes_for(0, 0, 0, 0))
    for number in range(10):
        store.put(f"t-{number}", b"")
    assert store.stats().done == 4


def test_pending_tasks_are_never_evicted_and_do_not_count(world: MemoryWorld) -> None:
    store = world.open(max_entries=2, max_bytes=bytes_for(1, 1))
    tasks = [f"p-{number}" for number in range(500)]
    for task in tasks:
        store.begin(task)
    for number in range(100):
        store.put(f"d-{number}", b"x")
    world.advance(world.ttl_s * 10)
    assert [store.get(task) for task in tasks] == [PENDING] * 500
    assert store.stats().pending == 500


def test_a_value_that_can_never_fit_is_refused_and_nobody_waits_for_it(world: MemoryWorld) -> None:
    store = world.open(max_bytes=bytes_for(600))
    store.put("kept", bytes(600))
    store.begin("t")
    with pytest.raises(MessageTooLarge, match=r"task t is 601 bytes.* at most 600 ") as caught:
        store.put("t", bytes(601))
    assert (caught.value.size, caught.value.limit) == (601, store.limits.max_value_bytes)
    assert store.get("t") == EXPIRED
    store.begin("t")
    store.lose("t")
    assert store.get("t") == EXPIRED
    assert store.get("kept") == done(bytes(600)), "nothing was dropped for it"
    assert store.stats().refused == 1


def test_an_error_that_fits_may_take_the_place_of_a_refused_value(world: MemoryWorld) -> None:
    store = world.open(max_bytes=1024)
    with pytest.raises(MessageTooLarge):
        store.put("t", bytes(2000))
    store.put("t", b"too large, sorry")
    store.put("t", b"never mind")
    assert store.get("t") == done(b"too large, sorry")
    assert store.stats().tombstones == 0


def test_a_refused_put_of_a_settled_task_changes_nothing(world: MemoryWorld) -> None:
    store = world.open(max_bytes=1024)
    store.put("t", b"value")
    with pytest.raises(MessageTooLarge):
        store.put("t", bytes(2000))
    assert store.get("t") == done(b"value")


def test_the_latest_tombstones_are_remembered_and_older_ones_become_unknown(world: MemoryWorld) -> None:
    store = world.open(max_entries=1, max_tombstones=3)
    for number in range(6):  # five go, the last stays
        store.put(f"t-{number}", b"")
    states = [store.get(f"t-{number}").state for number in range(6)]
    assert states == [State.UNKNOWN] * 2 + [State.EXPIRED] * 3 + [State.DONE]
    for number in range(1000):
        store.lose(f"lost-{number}")
    assert store.stats().tombstones == 3


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_entries": 0}, "max_entries"),
        ({"max_entries": -1}, "max_entries"),
        ({"max_entries": 1.5}, "max_entries"),
        ({"max_entries": True}, "max_entries"),
        ({"max_bytes": 100}, "max_bytes"),
        ({"max_bytes": "1G"}, "max_bytes"),
        ({"max_tombstones": 0}, "max_tombstones"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": -1.0}, "ttl_s"),
        ({"ttl_s": math.nan}, "ttl_s"),
        ({"ttl_s": math.inf}, "ttl_s"),
        ({"ttl_s": "2h"}, "ttl_s"),
    ],
)
def test_a_wrong_limit_is_named(limits: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        StoreLimits(**limits)


# ---------------------------------------------------------------- figures, end


def test_stats_tell_hits_from_misses(world: MemoryWorld) -> None:
    store = world.open(max_entries=1)
    store.begin("pending")
    store.lose("lost")
    store.put("evicted", b"")
    store.put("kept", b"12345")
    for task in ("pending", "lost", "evicted", "unknown", "kept", "kept"):
        store.get(task)
    stats = store.stats()
    assert (stats.hits, stats.misses) == (2, 3)
    assert (stats.pending, stats.done, stats.tombstones, stats.evicted) == (1, 1, 2, 1)
    assert stats.bytes == bytes_for(5)


def test_the_latest_results_are_listed_with_size_and_age(world: MemoryWorld) -> None:
    store = world.open()
    store.begin("running")
    store.put("aged", b"")
    world.advance(world.ttl_s * 0.75)
    for number in range(3):
        store.put(f"t-{number}", bytes(number))
    world.advance(world.ttl_s * 0.25)
    rows = store.entries(2)
    assert [(row.task_id, row.bytes) for row in rows] == [("t-2", bytes_for(2)), ("t-1", bytes_for(1))]
    assert rows[0].age_s == pytest.approx(world.ttl_s * 0.25, rel=0.2)
    assert [row.task_id for row in store.entries(10)] == ["t-2", "t-1", "t-0"], "none that has come of age"


def test_closing_twice_is_fine_and_a_closed_store_says_so(store: FutureStore) -> None:
    store.begin("t")
    store.close()
    store.close()
    for use in (store.begin, store.get, store.lose, store.forget, lambda task: store.put(task, b"")):
        with pytest.raises(StoreUnavailable, match="closed"):
            use("t")
    with pytest.raises(StoreUnavailable):
        store.stats()


def test_two_stores_share_nothing(world: MemoryWorld) -> None:
    first, second = world.open(), world.open()
    first.put("t", b"value")
    assert second.get("t") == UNKNOWN


def test_a_kind_of_store_that_there_is_not_is_a_clear_error() -> None:
    with pytest.raises(ConfigError, match="'local' or 'redis', not 'disk'"):
        open_store("disk", StoreLimits())  # type: ignore[arg-type]


def test_the_local_store_may_be_called_by_the_router_thread() -> None:
    with open_store("local", StoreLimits()) as store:
        assert not isinstance(store, SharedStore)
        assert store.stats().kind == "local"


# ---------------------------------------------------------------- laws


@dataclass
class Model:
    """The contract in its slowest form: one list of results in the order of their finish."""

    max_entries: int
    max_bytes: int
    ttl_s: float
    now: float = 0.0
    pending: set[str] = field(default_factory=set)
    results: list[tuple[str, bytes, float]] = field(default_factory=list)  # task, value, finished at
    expired: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def settled(self, task: str) -> bool:
        return task in self.expired | self.refused | self.lost or any(task == kept for kept, _, _ in self.results)

    def drop_oldest(self) -> None:
        self.expired.add(self.results.pop(0)[0])

    def age(self) -> None:
        while self.results and self.results[0][2] + self.ttl_s <= self.now:
            self.drop_oldest()

    def charged_bytes(self) -> int:
        return bytes_for(*(len(value) for _, value, _ in self.results))

    def begin(self, task: str) -> None:
        if not self.settled(task):
            self.pending.add(task)

    def put(self, task: str, value: bytes) -> None:
        if self.settled(task) and task not in self.refused:
            return
        self.pending.discard(task)
        self.refused.discard(task)
        self.results.append((task, value, self.now))
        while len(self.results) > self.max_entries or self.charged_bytes() > self.max_bytes:
            self.drop_oldest()

    def mark(self, task: str, marked: set[str]) -> None:
        if not self.settled(task):
            self.pending.discard(task)
            marked.add(task)

    def forget(self, task: str) -> None:
        for tasks in (self.pending, self.expired, self.refused, self.lost):
            tasks.discard(task)
        self.results = [entry for entry in self.results if entry[0] != task]

    def get(self, task: str) -> Found:
        for kept, value, _ in self.results:
            if kept == task:
                return done(value)
        if task in self.pending:
            return PENDING
        if task in self.lost:
            return LOST
        return EXPIRED if task in self.expired | self.refused else UNKNOWN


TASKS = [f"task-{number}" for number in range(8)]
tasks = st.sampled_from(TASKS)


class StoreLaws(RuleBasedStateMachine):
    """Any store and the model, given the same operations, say the same."""

    def __init__(self, world: MemoryWorld) -> None:
        super().__init__()
        self.world = world
        self.model = Model(max_entries=4, max_bytes=bytes_for(100, 100, 100), ttl_s=world.ttl_s)
        self.store = world.open(max_entries=self.model.max_entries, max_bytes=self.model.max_bytes)

    def teardown(self) -> None:
        self.world.close()

    @rule(task=tasks)
    def begin(self, task: str) -> None:
        self.store.begin(task)
        self.model.begin(task)

    @rule(task=tasks, length=st.integers(0, 400))
    def put(self, task: str, length: int) -> None:
        value = task.encode()[:length].ljust(length, b".")
        self.store.put(task, value)
        self.model.put(task, value)

    @rule(task=tasks)
    def put_too_much(self, task: str) -> None:
        with pytest.raises(MessageTooLarge):
            self.store.put(task, bytes(self.store.limits.max_value_bytes + 1))
        self.model.mark(task, self.model.refused)

    @rule(task=tasks)
    def lose(self, task: str) -> None:
        self.store.lose(task)
        self.model.mark(task, self.model.lost)

    @rule(task=tasks)
    def forget(self, task: str) -> None:
        self.store.forget(task)
        self.model.forget(task)

    # Fractions of a power of two: sums of floats are exact, so both sides agree on every boundary.
    @rule(eighths=st.integers(1, 12))
    def advance(self, eighths: int) -> None:
        seconds = self.world.ttl_s * eighths / 8
        self.world.advance(seconds)
        self.model.now += seconds
        self.model.age()

    @precondition(lambda self: self.model.results)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from([task for task, _, _ in self.model.results]))
        assert self.store.get(task) == self.model.get(task)

    @invariant()
    def every_task_is_in_the_state_of_the_model(self) -> None:
        assert {task: self.store.get(task) for task in TASKS} == {task: self.model.get(task) for task in TASKS}

    @invariant()
    def figures_and_limits_agree(self) -> None:
        stats, model = self.store.stats(), self.model
        assert stats.pending == len(model.pending)
        assert stats.done == len(model.results) <= model.max_entries
        assert stats.bytes == model.charged_bytes() <= model.max_bytes
        assert stats.tombstones == len(model.expired | model.refused | model.lost)


def test_any_sequence_of_operations_agrees_with_the_model(backend: str, server: RedisServer | None) -> None:
    run_state_machine_as_test(
        lambda: StoreLaws(WORLDS[backend](server)),  # type: ignore[arg-type]  # any factory does
        settings=settings(
            max_examples=WORLDS[backend].examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


# ---------------------------------------------------------------- threads


class Hammer:
    """Threads that each own some tasks, know their states, and read those of the others."""

    # Small enough that the puts of a slow machine evict, too.
    limits = {
        "memory": StoreLimits(max_entries=100, max_bytes=bytes_for(*[400] * 50), ttl_s=0.05),
        "redis": StoreLimits(max_entries=20, max_bytes=bytes_for(*[400] * 10), ttl_s=0.2),
    }
    tasks_each = {"memory": 50, "redis": 5}

    def __init__(self, store: FutureStore, backend: str) -> None:
        self.store = store
        self.each = self.tasks_each[backend]
        self.stop = threading.Event()
        self.failures: list[BaseException] = []
        self.rounds = 0

    def run(self, seconds: float) -> None:
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)  # change threads in the midst of an operation, not between two
        try:
            self._run(seconds)
        finally:
            sys.setswitchinterval(interval_s)

    def _run(self, seconds: float) -> None:
        threads = [threading.Thread(target=self._guarded, args=(number,)) for number in range(STRESS_THREADS)]
        for thread in threads:
            thread.start()
        self.stop.wait(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()

    def _guarded(self, number: int) -> None:
        try:
            self._work(number, random.Random(number))
        except BaseException as exc:
            self.failures.append(exc)
            self.stop.set()

    def _work(self, number: int, dice: random.Random) -> None:
        store = self.store
        for turn in itertools.count():
            if self.stop.is_set():
                self.rounds += turn  # exact enough for a figure in a message
                return
            task = f"{number}-{turn % self.each}"
            store.forget(task)
            assert store.get(task) == UNKNOWN
            store.begin(task)
            assert store.get(task) == PENDING
            if dice.random() < 0.1:
                store.lose(task)
                assert store.get(task) == LOST
            else:
                value = f"{task}:{turn}:".encode() + bytes(dice.randrange(800))
                store.put(task, value)
                assert store.get(task) in (done(value), EXPIRED)
            self._look_around(dice)

    def _look_around(self, dice: random.Random) -> None:
        task = f"{dice.randrange(STRESS_THREADS)}-{dice.randrange(self.each)}"
        found = self.store.get(task)
        assert (found.value is not None) == (found.state is State.DONE)
        assert found.value is None or found.value.startswith(f"{task}:".encode())
        stats = self.store.stats()
        assert stats.done <= self.store.limits.max_entries
        assert stats.bytes <= self.store.limits.max_bytes
        assert stats.pending <= STRESS_THREADS
        assert stats.tombstones <= STRESS_THREADS * self.each


@pytest.mark.timeout(60 + 2 * STRESS_S)
def test_sixteen_threads_of_put_get_and_expire_see_no_error_and_no_limit_exceeded(
    backend: str, server: RedisServer | None
) -> None:
    if backend == "redis" and server is None:
        pytest.skip(NO_SERVER)
    kind: Literal["local", "redis"] = "redis" if backend == "redis" else "local"
    url = server.url if server is not None else None
    with open_store(kind, Hammer.limits[backend], url=url, namespace="stress") as store:  # on the real clock
        hammer = Hammer(store, backend)
        hammer.run(STRESS_S)
        stats = store.stats()
        if hammer.failures:
            raise hammer.failures[0]
        assert hammer.rounds > STRESS_THREADS * hammer.each, "every task was used more than once"
        assert stats.evicted > 0
        # All that is left comes of age, which shows that expiry ran beside eviction.
        deadline = time.monotonic() + 10
        while store.stats().done and time.monotonic() < deadline:
            time.sleep(store.limits.ttl_s)
        assert store.stats().done == store.stats().bytes == 0
        assert store.stats().expired > 0
        print(f"{hammer.rounds:,} rounds in {STRESS_S:g} s, {stats}")


def test_the_last_of_many_simultaneous_puts_changes_nothing(world: MemoryWorld) -> None:
    """All threads settle the same tasks at once: for each task every reader sees one and the same value."""
    tasks = [f"t-{number}" for number in range(200)]
    shared = world.open()
    barrier = threading.Barrier(8)
    seen: list[list[Found]] = []

    def settle(number: int) -> None:
        mine = []
        for task in tasks:
            barrier.wait()
            shared.put(task, f"{task} by {number}".encode())
            mine.append(shared.get(task))
        seen.append(mine)

    with shared:
        threads = [threading.Thread(target=settle, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen) == 8
    assert all(found.state is State.DONE for found in seen[0])
    assert all(mine == seen[0] for mine in seen)


# ---------------------------------------------------------------- cost


def cost_s(store: FutureStore, tasks: list[str]) -> float:
    """Seconds for one life of each of these tasks."""
    start = time.perf_counter()
    for task in tasks:
        store.begin(task)
        store.put(task, b"value")
        store.get(task)
        store.forget(task)
    return time.perf_counter() - start


def test_an_operation_costs_the_same_with_a_thousand_times_the_results() -> None:
    """Within a factor of 10: on a busy machine the larger one is not in the cache; a scan would make it a thousand."""
    few, many = (open_store("local", StoreLimits(max_entries=200_000)) for _ in range(2))
    with few, many:
        for store, count in ((few, 100), (many, 100_000)):
            for number in range(count):
                store.put(f"kept-{number}", b"value")
        tasks = [f"task-{number}" for number in range(500)]
        rounds = [(cost_s(few, tasks), cost_s(many, tasks)) for _ in range(15)]
    assert min(slow for _, slow in rounds) < 10 * min(fast for fast, _ in rounds)


def test_evicting_from_a_full_store_costs_the_same_at_any_size() -> None:
    def eviction_s(store: FutureStore, number: int) -> float:
        start = time.perf_counter()
        for serial in range(500):
            store.put(f"{number}-{serial}", b"value")
        return time.perf_counter() - start

    small, large = (open_store("local", StoreLimits(max_entries=count)) for count in (100, 50_000))
    with small, large:
        for store in (small, large):
            for number in range(60_000):
                store.put(f"kept-{number}", b"value")
        rounds = [(eviction_s(small, number), eviction_s(large, number)) for number in range(15)]
        assert large.stats().done == 50_000
    assert min(slow for _, slow in rounds) < 3 * min(fast for fast, _ in rounds)


# ---------------------------------------------------------------- defects of the earlier system


def test_an_evicted_expired_or_never_made_result_is_told_apart_and_is_never_a_bare_none(world: MemoryWorld) -> None:
    store = world.open(max_entries=1)
    store.put("evicted", b"1")
    store.put("aged", b"2")
    world.advance(world.ttl_s)
    assert [store.get(task).state for task in ("evicted", "aged", "never made")] == [
        State.EXPIRED,
        State.EXPIRED,
        State.UNKNOWN,
    ]


def test_running_tasks_beyond_max_entries_keep_their_results_coming(world: MemoryWorld) -> None:
    """Two places, four tasks at once, each fetched as it ends: none is lost."""
    store = world.open(max_entries=2)
    for task in "abcd":
        store.begin(task)
    for task in "abcd":
        world.advance(world.ttl_s * 2)  # and each runs longer than a result is kept
        store.put(task, task.encode())
        assert store.get(task) == done(task.encode())


def test_putting_a_result_whose_place_is_gone_raises_nothing(world: MemoryWorld) -> None:
    store = world.open(max_entries=1)
    store.put("t", b"first")
    store.put("other", b"pushes t out")
    store.put("t", b"again")
    world.advance(world.ttl_s)
    store.put("other", b"again")
    assert [store.get("t"), store.get("other")] == [EXPIRED, EXPIRED]
