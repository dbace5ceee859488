"""The wait-for graph over real processes: no false alarm where no call can come back, and each ring is found."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import client_of, host
from zmqagents import AgentBase, AgentProxy, CallTimeout, DeadlockError, RpcClient, async_func, wait

pytestmark = [pytest.mark.program, pytest.mark.timeout(240)]
GRAPHS = 10_000
AGENTS, THREADS = 9, 6
Plan = list[Any]  # [[how, number of an agent, plan], ...]: the calls that a call makes, one after the other


class Walker(AgentBase):
    """Follows a plan: calls others, and waits for them in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[Any] = []
        self.answer = 0

    def meet(self, others: list[Any]) -> None:
        self.others = others

    def go(self, plan: Plan) -> int:
        return sum(self._step(*step) for step in plan) + 1

    @async_func
    def later(self, plan: Plan) -> int:
        return self.go(plan)

    def stream(self, plan: Plan) -> Iterator[int]:
        for step in plan:
            yield self._step(*step)
        yield 1

    async def on_loop(self, plan: Plan) -> int:
        total = 1
        for _, number, inner in plan:
            total += await self.others[number].later(inner)
        return total

    def give_up(self, other: Any, me: int) -> str:
        result = other.come_back(me, 0.5)
        with contextlib.suppress(CallTimeout):
            result.result(timeout=0.2)
        ctypes.PyDLL(None).sleep(1)
        return "gave up"

    def wait_for_return(self, other: Any, me: int) -> int:
        return int(other.come_back(me, 0.1).result(timeout=30))

    @async_func
    def come_back(self, caller: int, after_s: float) -> int:
        time.sleep(after_s)
        self.answer = int(self.others[caller].go([]))
        return self.answer

    def last_answer(self) -> int:
        return self.answer

    def _step(self, how: str, number: int, plan: Plan) -> int:
        other = self.others[number]
        if how == "call":
            return int(other.go(plan))
        if how == "loop":
            return int(other.on_loop(plan).result())
        if how == "stream":
            return sum(other.stream(plan))
        first = other.later(plan)
        if how == "any":
            second = other.later([])
            wait([first, second], return_when="FIRST_COMPLETED")
            second.result()
        elif how == "time":
            try:
                return int(first.result(timeout=0.001))
            except CallTimeout:
                pass
        return int(first.result())


def total_of(plan: Plan) -> int:
    return 1 + sum(total_of(inner) for _, _, inner in plan)


def plan_of(chance: random.Random, lowest: int, left: list[int]) -> Plan:
    """Calls of agents of higher numbers only: no two calls can ever need each other."""
    steps: Plan = []
    while left[0] > 0 and lowest < AGENTS and chance.random() < 0.6:
        left[0] -= 1
        number = chance.randrange(lowest, AGENTS)
        how = chance.choice(["call", "call", "later", "any", "time", "stream", "loop"])
        steps.append([how, number, plan_of(chance, number + 1, left)])
    return steps


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with host(Walker, isolation="pool", processes=2, capacity=4) as launcher, client_of(launcher, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def walkers(client: RpcClient) -> list[AgentProxy]:
    """Every third one lives in the host itself, the others in two children."""
    chosen = [{"isolation": "thread"} if number % 3 == 2 else {} for number in range(AGENTS)]
    walkers: list[Any] = [client.create_agent(Walker, agent_options=options) for options in chosen]
    for walker in walkers:
        walker.meet(walkers)
    return walkers


def test_calls_that_never_come_back_give_no_alarm(walkers: list[Any]) -> None:
    failures: list[str] = []

    def run(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(GRAPHS // THREADS):
            start = chance.randrange(AGENTS)
            plan = plan_of(chance, start + 1, [6])
            try:
                found = walkers[start].go(plan)
            except Exception as exc:
                failures.append(f"seed {seed}, {start} {plan}: {exc!r}")
                return
            if found != total_of(plan):
                failures.append(f"seed {seed}, {start} {plan}: {found}")

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("how", ["call", "later", "loop", "stream", "any"])
@pytest.mark.parametrize("ring", [[0, 1], [0, 2], [0, 1, 2], [1, 3, 4, 5]])
def test_a_ring_over_processes_is_found_within_a_second(walkers: list[Any], how: str, ring: list[int]) -> None:
    plan: Plan = []
    for number in reversed([*ring[1:], ring[0]]):
        plan = [[how, number, plan]]
    begun = time.monotonic()
    with pytest.raises(DeadlockError):
        walkers[ring[0]].go(plan)
    assert time.monotonic() - begun < 1.0


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (2, 1)])
def test_calls_that_cross_between_processes_are_found_within_a_second(walkers: list[Any], one: int, other: int) -> None:
    """Two callers, each of whose calls needs the turn that the other's has; whoever comes second is refused."""
    for _ in range(10):
        begun = time.monotonic()
        first = walkers[one].later([["call", 8, []], ["call", other, []]])
        second = walkers[other].later([["call", 8, []], ["call", one, []]])
        errors = [result.exception() for result in (first, second)]
        assert all(error is None or isinstance(error, DeadlockError) for error in errors)
        assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("other", [1, 2])
def test_a_wait_that_is_over_is_none_although_its_process_can_tell_nobody(walkers: list[Any], other: int) -> None:
    """The code gives up a wait and keeps the interpreter lock; meanwhile the other call comes back to its agent."""
    assert walkers[0].give_up(walkers[other], 0) == "gave up"
    assert walkers[other].last_answer() == 1


@pytest.mark.parametrize("other", [1, 2])
def test_a_wait_with_a_time_out_that_goes_on_is_part_of_a_deadlock(walkers: list[Any], other: int) -> None:
    with pytest.raises(DeadlockError):
        walkers[0].wait_for_return(walkers[other], 0)
