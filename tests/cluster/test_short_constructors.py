"""Agents of a cluster that are soon made: the router thread makes them, and one that takes long holds up nobody."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from actors import is_router
from cluster_hosts import Caller, hosts_on, result_of
from redis_server import RedisServer
from scale import LATE_S, linux_only
from zmqagents import AgentBase
from zmqagents.agents.context import current_call
from zmqagents.agents.timing import LEAST_RUNS
from zmqagents.errors import AgentCallError

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

_numbers = itertools.count()


class Made(AgentBase):
    """Does while it is made what its name says, and tells which thread that was."""

    def __init__(self) -> None:
        what = self.agent_id.rpartition("/")[2].partition("-")[0]
        self.made_by = threading.current_thread().name
        if what == "long":
            time.sleep(2 * LATE_S)
        elif what == "failing":
            raise ValueError(self.made_by)
        elif what == "asking":
            call = current_call()
            assert call is not None
            key = self.agent_id.rpartition("/")[2]
            call.client().get_agent(f"cluster:shop/Made/{key.replace('asking', 'asked')}").maker()

    def maker(self) -> str:
        return self.made_by


@pytest.fixture(scope="module")
def host(lasting_redis: RedisServer) -> Iterator[Caller]:
    with hosts_on(lasting_redis, 1, classes=[Made]) as hosts:
        yield hosts.callers[0]


def new(what: str) -> str:
    return f"Made/{what}-{next(_numbers)}"


def quicken(host: Caller) -> None:
    """Have agents made until the router thread makes one: on a busy machine now and then one takes long."""
    for _ in range(100 * LEAST_RUNS):
        if is_router(host.call(new("short"), "maker")):
            return
    raise AssertionError("the router thread never made one")


def test_an_agent_is_made_in_a_worker_until_its_class_has_been_short_for_a_while(host: Caller) -> None:
    assert not any(is_router(host.call(new("short"), "maker")) for _ in range(LEAST_RUNS))
    quicken(host)


def test_one_that_takes_long_holds_up_no_other(host: Caller) -> None:
    for _ in range(20):
        quicken(host)
        name = new("long")
        waiter = host.begin(name, "maker", timeout=30)
        begun = time.monotonic()
        host.call(new("short"), "maker")
        took_s = time.monotonic() - begun
        if is_router(result_of(waiter)):
            assert took_s < LATE_S
            return
    raise AssertionError("the router thread made none of those that take long")


def test_one_that_calls_an_agent_which_is_to_be_made_is_not_stuck(host: Caller) -> None:
    for _ in range(20):
        quicken(host)
        if is_router(host.call(new("asking"), "maker", timeout=30)):
            return
    raise AssertionError("the router thread made none of those that ask")


def test_one_that_fails_says_so_and_may_be_tried_again(host: Caller) -> None:
    for _ in range(20):
        quicken(host)
        name = new("failing")
        for _ in range(2):
            with pytest.raises(AgentCallError) as failed:
                host.call(name, "maker")
        if is_router(str(failed.value)):
            return
    raise AssertionError("the router thread made none of those that fail")


class Slow(AgentBase, persist="idle"):
    """Is saved when it leaves, and loaded, by coroutines."""

    def __init__(self) -> None:
        self.calls = 0

    async def save_state(self) -> int:
        await asyncio.sleep(0)
        return self.calls

    async def load_state(self, state: int) -> None:
        await asyncio.sleep(0)
        self.calls = state

    def call(self) -> int:
        self.calls += 1
        return self.calls


def test_agents_whose_state_is_saved_and_loaded_by_coroutines_are_made_as_well(redis: RedisServer) -> None:
    with hosts_on(redis, 1, classes=[Slow]) as hosts:
        for turn in (1, 2, 3):
            waiters = [hosts.callers[-1].begin(f"Slow/{number}", "call", timeout=60) for number in range(300)]
            assert {result_of(waiter, 60) for waiter in waiters} == {turn}
            hosts.launchers[-1].shutdown()
            hosts.start()
