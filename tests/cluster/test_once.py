"""Calls marked @once have their effect on the state once, by however many ways and however often they are sent."""

from __future__ import annotations

import secrets
import time

import pytest

from cluster_hosts import hosts_on, result_of
from redis_server import RedisServer
from scale import linux_only
from zmqagents import AgentBase, agent, concurrent, once
from zmqagents.agents.spec import spec_of
from zmqagents.errors import CallLost, ConfigError
from zmqagents.wire.messages import Flag

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


def task() -> str:
    """An id as senders make it."""
    return f"{secrets.token_hex(8)}-1"


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


def test_an_error_is_an_outcome_too(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        same = task()
        for _ in range(3):
            with pytest.raises(ValueError, match="3"):
                result_of(hosts.callers[0].begin("Account/odd", "pay", 3, task=same))
        assert hosts.callers[0].call("Account/odd", "balance") == 3


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
