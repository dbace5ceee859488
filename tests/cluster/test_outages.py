"""What callers of a cluster's agents see while Redis is away, slow or gives way, and while a host stands still."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_hosts import CHILDREN_TOO, Hosts, hosts_on, result_of
from counting import Counter
from hosts import eventually, freeze, seconds_of
from redis_server import RedisServer, running_redis
from relay import Relay
from scale import linux_only
from zmqagents import RpcClient
from zmqagents.errors import CallLost, StoreUnavailable
from zmqagents.store.cluster import ClusterRecords

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


class Tally(Counter, persist="idle"):
    """Is saved when it leaves its host, and not before."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis(appendonly="yes") as server:
        yield server


def test_without_redis_calls_of_new_agents_end_within_seconds_and_others_go_on(redis: RedisServer) -> None:
    with hosts_on(redis, 1, lease_s=30.0) as hosts:
        caller = hosts.callers[0]
        with RpcClient("127.0.0.1", hosts.launchers[0].port) as client:
            plain = client.create_agent("Forgetful", agent_id="plain")
            caller.call("Account/here", "add", 1)
            with redis.frozen():

                def ask() -> None:
                    with pytest.raises(StoreUnavailable, match="nothing was executed"):
                        caller.call("Account/new", "add", 1)

                assert 1.5 < seconds_of(ask) < 8
                assert seconds_of(plain.call) < 1, "an agent without a name has noticed"
                with pytest.raises(CallLost, match="ran"):
                    caller.call("Account/here", "add", 1)
        back = time.monotonic()
        assert caller.call("Account/here", "add", 1) == 3, "what was to be saved is not kept in order"
        assert caller.call("Account/new", "add", 1) == 1
        assert time.monotonic() - back < 5


SHORT_CALLS = 100  # by then a host knows that a method is short, and runs its calls at once


def test_a_short_call_of_an_agent_that_keeps_nothing_is_not_answered_without_a_lease(redis: RedisServer) -> None:
    with hosts_on(redis, 1, lease_s=2.0) as hosts:
        caller = hosts.callers[0]
        told = [caller.call("Forgetful/here", "call") for _ in range(SHORT_CALLS)]
        assert told == list(range(1, SHORT_CALLS + 1))
        with redis.frozen():
            assert eventually(lambda: caller.status()["state"] != "held", 20)
            with pytest.raises((StoreUnavailable, CallLost)):
                caller.call("Forgetful/here", "call")
        assert eventually(lambda: caller.status()["state"] == "held", 20)
        assert caller.call("Forgetful/here", "call") in (SHORT_CALLS + 1, 1), "it went on, or was made anew"


def test_a_reminder_that_a_short_call_sets_is_kept_when_the_call_is_answered(redis: RedisServer) -> None:
    with hosts_on(redis, 1, lease_s=1.0) as hosts:
        for _ in range(SHORT_CALLS):
            hosts.callers[0].call("Sleeper/here", "sleep", 600.0, "late")
        hosts.callers[0].call("Sleeper/here", "sleep", 0.3, "now")
        hosts.kill(0)
        successor = hosts.start()
        assert eventually(lambda: successor.call("Sleeper/here", "ticks_so_far") == ["now"], 20)


def test_redis_that_was_away_for_longer_than_a_lease_kills_nobody(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=2.0) as hosts:
        for caller in hosts.callers:
            caller.call("Account/here", "add", 1)
        before = [caller.status()["incarnation"] for caller in hosts.callers]
        redis.kill()
        time.sleep(5)
        redis.start()
        assert eventually(lambda: all(c.status()["state"] == "held" for c in hosts.callers), 10)
        assert [caller.status()["incarnation"] for caller in hosts.callers] == before
        assert [caller.call("Account/here", "add", 1) for caller in hosts.callers] == [3, 4]


def test_a_host_that_stood_still_for_too_long_comes_back_as_another_and_no_change_is_lost(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=1.5) as hosts:
        names = [f"Account/still-{number}" for number in range(8)]
        for name in names:
            hosts.callers[0].call(name, "add", 1)
        there = [name for name in names if hosts.home_of(name) == 1]
        assert there, "placement has put all on one host"
        former = hosts.callers[1].status()["incarnation"]
        pid = hosts.launchers[1].pid
        freeze(pid)
        try:
            for name in there:
                assert hosts.callers[0].sure(name, "balance") == 1
                assert hosts.callers[0].call(name, "add", 1) == 2
        finally:
            os.kill(pid or 0, signal.SIGCONT)
        assert eventually(lambda: hosts.callers[1].status()["incarnation"] != former, 15)
        assert eventually(lambda: hosts.callers[1].status()["state"] == "held", 15)
        for name in names:
            assert len({caller.call(name, "balance") for caller in hosts.callers}) == 1
            assert hosts.callers[1].call(name, "add", 1) == hosts.callers[0].call(name, "balance")


def test_no_acknowledged_change_is_lost_or_made_twice_while_hosts_are_killed(redis: RedisServer) -> None:
    with hosts_on(redis, 3, lease_s=1.0, restart=True) as hosts:
        names = [f"Account/ledger-{number}" for number in range(8)]
        told: dict[str, list[int]] = {name: [] for name in names}
        lost = dict.fromkeys(names, 0)
        end = time.monotonic() + 12

        def count(index: int) -> None:
            caller = hosts.callers[0]
            while time.monotonic() < end:
                for name in names[index::4]:
                    try:
                        told[name].append(caller.call(name, "add", 1, timeout=15))
                    except CallLost:
                        lost[name] += 1

        hosts.kill_in_turn(count, range(4))
        for name in names:
            counts = told[name]
            assert len(set(counts)) == len(counts), "one count was told twice"
            assert counts == sorted(counts)
            balance = hosts.callers[0].call(name, "balance")
            assert max(counts) <= balance <= len(counts) + lost[name]
        assert sum(map(len, told.values())) > 100


@CHILDREN_TOO
def test_streams_and_cancels_go_through_another_host(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        name = next(f"Account/far-{n}" for n in range(50) if hosts.home_of(f"Account/far-{n}") == 1)
        items = hosts.callers[0].stream(name, "count", 100)
        assert items == list(range(100))
        waiter = hosts.callers[0].begin(name, "slow", 30, timeout=60)
        assert eventually(lambda: hosts.callers[1].running() == 1, 10)
        hosts.callers[0].cancel(waiter)
        assert eventually(lambda: hosts.callers[1].running() == 0, 10)
        with pytest.raises(Exception, match="cancelled"):
            result_of(waiter)


def stopped_in_order(hosts: Hosts, index: int) -> bool:
    """Whether a host that is told to stop ends by itself, in time, and leaves nothing behind."""
    launcher = hosts.launchers[index]
    left = Path(launcher.ipc or "").with_suffix(".start")
    assert left.exists()
    launcher.shutdown()
    return not left.exists()


@pytest.mark.parametrize("how", ["frozen", "killed"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_host_that_is_told_to_stop_while_redis_is_away_ends_in_order(
    redis: RedisServer, count: int, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with hosts_on(redis, count, grace_s=1.0, pool_type="redis") as hosts:
        for number in range(20):
            hosts.callers[0].call(f"Account/{number}", "add", 1)
            hosts.callers[0].call(f"Forgetful/{number}", "call")
        with redis.frozen() if how == "frozen" else contextlib.nullcontext():
            if how == "killed":
                redis.kill()
            assert stopped_in_order(hosts, 0)
    assert "Traceback" not in capfd.readouterr().err


def test_a_host_that_has_many_agents_ends_in_order_and_leaves_no_record_of_those_without_a_state(
    redis: RedisServer,
) -> None:
    with hosts_on(redis, 1, grace_s=20.0) as hosts, contextlib.closing(ClusterRecords(redis.url, "shop")) as records:
        waiters = [hosts.callers[0].begin(f"Forgetful/{number}", "call", timeout=60) for number in range(10_000)]
        assert {result_of(waiter, 60) for waiter in waiters} == {1}
        assert records.count() == 10_000
        assert stopped_in_order(hosts, 0)
        assert records.count() == 0


def test_the_last_host_writes_the_states_of_all_its_agents_to_a_slow_redis_within_its_grace(redis: RedisServer) -> None:
    with (
        Relay(redis.port) as relay,
        hosts_on(
            redis, 1, grace_s=20.0, lease_s=10.0, classes=[Tally], redis_url=f"redis://127.0.0.1:{relay.port}"
        ) as hosts,
    ):
        for turn in (1, 2):
            waiters = [hosts.callers[-1].begin(f"Tally/{number}", "count", timeout=60) for number in range(1_500)]
            assert {result_of(waiter, 60)[1] for waiter in waiters} == {turn}
            relay.delay_s = 0.1  # there, and back; 64 saves take no longer than one
            assert stopped_in_order(hosts, turn - 1)
            relay.delay_s = 0.0
            hosts.start()
