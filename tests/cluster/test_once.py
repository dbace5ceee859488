"""Calls marked @once have their effect on the state once, by however many ways and however often they are sent."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import CHILDREN_TOO, Caller, hosts_on, result_of
from hosts import ENDS_WITHIN_S, eventually
from redis_server import RedisServer
from relay import Relay
from scale import linux_only, pick, soak_only
from zmqagents import AgentBase, Cluster, agent, concurrent, current_call, once
from zmqagents.agents.spec import spec_of
from zmqagents.errors import CallLost, CallTimeout, ConfigError, HostUnreachable, StoreUnavailable
from zmqagents.wire.link import Waiter
from zmqagents.wire.messages import Flag, Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(pick(180, 600)), linux_only("CLOCK_BOOTTIME")]


def task() -> str:
    """An id as senders make it."""
    return f"{secrets.token_hex(8)}-1"


@CHILDREN_TOO
def test_what_is_sent_twice_is_done_once_and_answered_twice(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        first, second = hosts.callers
        for number in range(1, 101):
            same = task()
            waiters = [caller.begin("Account/twice", "pay", 2, task=same) for caller in (first, second)]
            assert [result_of(waiter) for waiter in waiters] == [2 * number, 2 * number]
        assert first.call("Account/twice", "balance") == 200


def test_the_first_call_of_an_agent_that_comes_by_two_ways_is_done_once_and_answered_twice(redis: RedisServer) -> None:
    with hosts_on(redis, 3) as hosts:
        for number in range(60):
            same, name = task(), f"Account/first-{number}"
            waiters = [caller.begin(name, "pay", 2, task=same) for caller in hosts.callers]
            assert [result_of(waiter) for waiter in waiters] == [2, 2, 2]
            assert hosts.callers[number % 3].call(name, "balance") == 2


@CHILDREN_TOO
def test_an_error_is_an_outcome_too(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        same = task()
        for _ in range(3):
            with pytest.raises(ValueError, match="3"):
                result_of(hosts.callers[0].begin("Account/odd", "pay", 3, task=same))
        assert hosts.callers[0].call("Account/odd", "balance") == 3


@CHILDREN_TOO
def test_an_outcome_outlives_the_host(redis: RedisServer) -> None:
    same = task()
    for _ in range(2):
        with hosts_on(redis, 1) as hosts:
            assert result_of(hosts.callers[0].begin("Account/kept", "pay", 4, task=same)) == 4
            assert hosts.callers[0].call("Account/kept", "balance") == 4


def test_without_a_time_limit_it_is_refused(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts, pytest.raises(ConfigError, match="needs a timeout"):
        hosts.callers[0].call("Account/endless", "pay", 2, timeout=None)


def test_increments_that_are_sent_again_are_counted_once_while_hosts_are_killed(redis: RedisServer) -> None:
    with hosts_on(redis, 3, lease_s=1.0, restart=True) as hosts:
        caller, end = hosts.callers[0], time.monotonic() + 12
        paid: dict[str, list[int]] = {f"Account/paid-{number}": [] for number in range(6)}

        def pay(name: str) -> None:
            while time.monotonic() < end:
                same = task()
                for _ in range(20):
                    try:
                        told = result_of(caller.begin(name, "pay", 2, task=same, flags=Flag.IDEMPOTENT, timeout=20), 30)
                        paid[name].append(told)
                        break
                    except CallLost:
                        continue

        hosts.kill_in_turn(pay, paid)
        for name, told in paid.items():
            assert told == list(range(2, 2 * len(told) + 1, 2)), "one is missing, or was counted twice"
            assert caller.call(name, "balance") == 2 * len(told)
        assert sum(map(len, paid.values())) > 50


class Tally(AgentBase):
    """Counts once, and takes the time that it is told to take."""

    def __init__(self) -> None:
        self.count = 0

    def save_state(self) -> int:
        return self.count

    def load_state(self, state: int) -> None:
        self.count = state

    @once
    def add_when(self, path: str) -> int:
        call = current_call()
        assert call is not None
        while not Path(path).exists() and not call.wait_cancelled(0.01):
            pass
        self.count += 1
        return self.count

    @once
    def add(self) -> int:
        self.count += 1
        return self.count

    @concurrent
    def read(self) -> int:
        return self.count


@pytest.mark.parametrize("how", ["call", "submit"])
def test_what_a_program_sends_again_by_another_host_is_done_once(redis: RedisServer, tmp_path: Path, how: str) -> None:
    """The host that it has asked is killed, while its call runs on another one."""
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(hosts_on(redis, 2, classes=[Tally], lease_s=30.0))
        one, two = (f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers)
        cluster = stack.enter_context(Cluster(f"{one},{two}", relay=True))
        for number in range(20):
            agent: Any = cluster.get_agent(f"sent-{number}", cls=Tally)
            assert agent.read() == 0
            if cluster.where(f"Tally/sent-{number}")["address"] == two:
                break
        else:
            pytest.fail("all agents are on one host")
        told = list[int]()
        if how == "call":
            thread = threading.Thread(target=lambda: told.append(agent.add_when(str(tmp_path / "go"), timeout=30)))
            thread.start()
            stack.callback(thread.join, 40)
        else:
            result = agent.add_when.aio(str(tmp_path / "go"), timeout=30)
        assert eventually(lambda: hosts.callers[1].ask("", Op.INFO)["running"] == 1, 10)
        hosts.kill(0)
        assert eventually(lambda: cluster.hosts() != [], ENDS_WITHIN_S)
        (tmp_path / "go").touch()
        if how == "call":
            thread.join(40)
        else:
            told.append(result.result(40))
        assert told == [1]
        assert agent.add_when(str(tmp_path / "go"), timeout=30) == 2, "it was done twice"


def test_an_agent_keeps_no_outcome_for_long_that_its_caller_has_got(redis: RedisServer) -> None:
    count = pick(6_000, 60_000)  # an agent keeps 4,096 outcomes
    with hosts_on(redis, 2, classes=[Tally]) as hosts:
        addresses = ",".join(f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers)
        with Cluster(addresses) as cluster:
            agent: Any = cluster.get_agent("many", cls=Tally)
            under_way, told, begun = deque[Any](), list[int](), time.monotonic()
            for _ in range(count):
                under_way.append(agent.add.aio(timeout=120))
                if len(under_way) > 128:
                    told.append(under_way.popleft().result(60))
            told += [result.result(60) for result in under_way]
            print(f"{count / (time.monotonic() - begun):.0f} calls a second")
            assert told == list(range(1, count + 1))
            assert agent.add(timeout=120) == count + 1
        with redis.client as client:
            [key] = client.keys("za:*:d:Tally/many")
            assert client.hlen(key) < 200


def test_a_thousand_calls_a_second_that_come_by_two_ways_are_done_once(redis: RedisServer) -> None:
    count, per_s = pick(1_000, 4_000), 1_000.0  # an agent keeps 4,096 outcomes
    with hosts_on(redis, 2) as hosts:
        first, second = hosts.callers
        first.call("Account/both", "balance")
        under_way: deque[tuple[Waiter, Waiter]] = deque()
        told, begun = list[tuple[int, int]](), time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, begun + number / per_s - time.monotonic()))
            same = task()
            one, other = (first, second) if number % 2 else (second, first)
            sent = one.begin("Account/both", "pay", 2, task=same), other.begin("Account/both", "pay", 2, task=same)
            under_way.append(sent)
            if len(under_way) > 256:
                told.append(results_of(under_way.popleft()))
        told += map(results_of, under_way)
        print(f"{count / (time.monotonic() - begun):.0f} calls a second, each by two ways")
        assert all(value == twin for value, twin in told)
        assert sorted(value for value, _ in told) == list(range(2, 2 * count + 1, 2))
        assert first.call("Account/both", "balance") == 2 * count


def results_of(pair: tuple[Waiter, Waiter]) -> tuple[int, int]:
    return result_of(pair[0]), result_of(pair[1])


@soak_only
def test_twenty_thousand_increments_are_counted_once_while_hosts_are_killed_and_saves_are_late(
    redis: RedisServer,
) -> None:
    """Twenty agents, a thousand calls each, sent again under the same task id until there is an answer."""
    with (
        Relay(redis.port) as relay,
        hosts_on(redis, 3, lease_s=1.0, restart=True, redis_url=f"redis://127.0.0.1:{relay.port}") as hosts,
        relay.trouble(3, 0.4) as troubles,
    ):
        told: dict[str, list[int]] = {f"Account/many-{number}": [] for number in range(20)}
        again = Counter[str]()

        def pay(name: str) -> None:
            for _ in range(1_000):
                told[name].append(insist(hosts.callers[0], name, again))

        threads = [threading.Thread(target=pay, args=(name,)) for name in told]
        for thread in threads:
            thread.start()
        kills = 0
        while any(thread.is_alive() for thread in threads):
            time.sleep(3)  # the load itself, not a wait for something
            hosts.kill(1 + kills % 2)
            kills += 1
        print(f"{kills} kills, {len(troubles)} troubles on the way to Redis, sent again {dict(again)}")
        assert kills > 2
        assert len(troubles) > 2
        for name, numbers in told.items():
            assert numbers == list(range(2, 2001, 2)), "one is missing, or was counted twice"
            assert hosts.callers[0].sure(name, "balance") == 2000


def insist(caller: Caller, name: str, again: Counter[str]) -> int:
    """Pay once; the same call is made again until there is an answer."""
    same = task()
    end = time.monotonic() + 60
    while True:
        try:
            return int(result_of(caller.begin(name, "pay", 2, task=same, flags=Flag.IDEMPOTENT, timeout=20), 30))
        except (CallLost, CallTimeout, StoreUnavailable, HostUnreachable) as exc:
            assert time.monotonic() < end
            again[type(exc).__name__] += 1
            time.sleep(0.02)


def test_where_a_call_cannot_be_executed_once_the_class_is_refused() -> None:
    class Stateless(AgentBase):
        @once
        def pay(self) -> None: ...

    @agent(max_concurrency=2)
    class Crowded(AgentBase):
        def save_state(self) -> None: ...
        def load_state(self, state: None) -> None: ...
        @once
        def pay(self) -> None: ...

    class Beside(AgentBase):
        def save_state(self) -> None: ...
        def load_state(self, state: None) -> None: ...
        @once
        @concurrent
        def pay(self) -> None: ...

    for cls, why in ((Stateless, "persist"), (Crowded, "max_concurrency"), (Beside, "@concurrent")):
        with pytest.raises(ConfigError, match=f"{cls.__name__}.pay cannot be @once.*{why}"):
            spec_of(cls)
