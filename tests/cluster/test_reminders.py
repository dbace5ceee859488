"""Reminders of a cluster's agents, on real hosts and a real Redis: they come, in time, and end with the agent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster_hosts import Hosts, hosts_on
from hosts import eventually
from redis_server import RedisServer, running_redis
from scale import LATE_S, linux_only
from zmqagents import Cluster, RpcClient
from zmqagents.cluster.reminders import MAX_REMINDERS
from zmqagents.errors import ConfigError, HostBusy, MessageTooLarge
from zmqagents.store.cluster import bucket_of

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


@pytest.fixture(scope="module", params=["thread", "pool"])
def hosts(lasting_redis: RedisServer, request: pytest.FixtureRequest) -> Iterator[Hosts]:
    """Three hosts that no test harms, with their agents in threads or in processes."""
    with lasting_redis.client as records:
        records.flushall()
    with hosts_on(lasting_redis, 3, isolation=request.param, processes=1) as hosts:
        yield hosts


def ticks(hosts: Hosts, name: str) -> list[Any]:
    found: list[Any] = hosts.callers[0].sure(name, "ticks_so_far")
    return found


def texts(hosts: Hosts, name: str) -> list[str]:
    return [text for text, _, _ in ticks(hosts, name)]


def where(hosts: Hosts, name: str) -> list[dict[str, Any]]:
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        return [dict(row) for row in cluster.where(name)["reminders"]]


def figure(hosts: Hosts, name: str) -> int:
    """A figure of all hosts together."""
    return sum(caller.status()[name] for caller in hosts.callers)


# ---------------------------------------------------------------- they come


def test_a_reminder_calls_its_agent_once_and_in_time(hosts: Hosts) -> None:
    for number in range(12):
        hosts.callers[number % 3].call(f"Alarmed/once-{number}", "remind", "tea", 1.0, None)
    assert eventually(lambda: all(ticks(hosts, f"Alarmed/once-{number}") for number in range(12)), 20)
    for number in range(12):
        [(text, late_s, _)] = ticks(hosts, f"Alarmed/once-{number}")
        assert text == "tea"
        assert -0.1 < late_s < 1.0 + LATE_S
        assert where(hosts, f"Alarmed/once-{number}") == []


def test_one_that_repeats_comes_again_until_it_is_cancelled(hosts: Hosts) -> None:
    name = "Alarmed/often"
    hosts.callers[0].call(name, "remind", "tea", None, 1.0)
    [row] = where(hosts, name)
    assert (row["name"], row["method"], row["every_s"]) == ("tea", "tick", 1.0)
    assert 0 < row["due_s"] <= 1.0
    assert eventually(lambda: len(ticks(hosts, name)) >= 3, 20)
    for number, (_, late_s, _) in enumerate(ticks(hosts, name)):
        assert -0.1 < late_s - number < 1.0 + LATE_S, "each is late for itself, and not for those before"
    assert figure(hosts, "reminders_fired") >= 3
    assert figure(hosts, "reminders_late") == 0
    hosts.callers[1].call(name, "cancel", "tea")
    assert where(hosts, name) == []
    count = len(ticks(hosts, name))
    time.sleep(1.5)
    assert len(ticks(hosts, name)) == count


def test_a_reminder_that_is_set_anew_comes_at_its_new_time_alone(hosts: Hosts) -> None:
    name = "Alarmed/anew"
    hosts.callers[0].call(name, "remind", "tea", 0.5, None, "tick", "first")
    hosts.callers[0].call(name, "remind", "tea", 1.5, None, "tick", "second")
    hosts.callers[0].call(name, "remind", "bread", 0.2, None)
    assert eventually(lambda: len(ticks(hosts, name)) == 2, 20)
    assert texts(hosts, name) == ["bread", "second"]


def test_a_tick_whose_code_fails_is_over_and_counted(hosts: Hosts) -> None:
    name, failed = "Alarmed/fails", figure(hosts, "reminders_failed")
    hosts.callers[0].call(name, "remind", "tea", 0.1, None, "fail", "odd")
    assert eventually(lambda: bool(ticks(hosts, name)), 20)
    assert eventually(lambda: figure(hosts, "reminders_failed") == failed + 1, 10)
    time.sleep(2)
    assert texts(hosts, name) == ["odd"], "what it changed is kept, and it does not come again"
    assert where(hosts, name) == []


def test_a_method_that_is_no_more_keeps_its_reminder_until_it_is_back(hosts: Hosts) -> None:
    name = "Alarmed/gone"
    hosts.callers[0].call(name, "remind", "tea", 600.0, None, "tick", "x")
    base, failed = f"za:{{shop/{bucket_of(name):02x}}}:", figure(hosts, "reminders_failed")
    with hosts.redis.client as client:
        value = client.hget(f"{base}r:{name}", "tea")
        assert isinstance(value, bytes)
        client.hset(f"{base}r:{name}", "tea", value.replace(b"tick", b"tock"))
        client.zadd(f"{base}due", {f"{name}\ntea": 0})
        assert eventually(lambda: figure(hosts, "reminders_failed") > failed, 20)
        assert [row["method"] for row in where(hosts, name)] == ["tock"]
        client.hset(f"{base}r:{name}", "tea", value)
    assert eventually(lambda: texts(hosts, name) == ["x"], 20)


def test_agents_that_are_saved_seldom_or_never_have_reminders_too(hosts: Hosts) -> None:
    caller = hosts.callers[0]
    caller.call("Lazy/later", "put_later", 5)
    caller.call("Sleeper/later", "sleep", 0.3, "up")
    assert eventually(lambda: caller.call("Lazy/later", "get")[0] == 5, 20)
    assert eventually(lambda: ticks(hosts, "Sleeper/later") == ["up"], 20)
    assert where(hosts, "Sleeper/later") == where(hosts, "Lazy/later") == []
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        assert cluster.where("Lazy/later")["revision"] > 0, "a tick is saved with what it has changed"


def test_a_reminder_of_the_constructor_is_set_once(hosts: Hosts) -> None:
    name = "Punctual/one"
    hosts.callers[0].call(name, "look")
    [before] = where(hosts, name)
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        cluster.move(name)
    hosts.callers[0].call(name, "look")
    [after] = where(hosts, name)
    assert after["due_s"] < before["due_s"], "the next home has set it anew"


def test_reminders_end_with_their_agent(hosts: Hosts) -> None:
    name = "Alarmed/deleted"
    hosts.callers[0].call(name, "remind", "tea", 600.0, None)
    assert len(where(hosts, name)) == 1
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        cluster.delete_agent(name)
    assert where(hosts, name) == []
    assert texts(hosts, name) == []


def test_a_reminder_goes_where_its_agent_goes(hosts: Hosts) -> None:
    name = "Alarmed/moves"
    hosts.callers[0].call(name, "remind", "tea", None, 1.0)
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        for count in range(1, 4):
            assert eventually(lambda count=count: len(ticks(hosts, name)) >= count, 20)  # type: ignore[misc]
            cluster.move(name)
    hosts.callers[0].call(name, "cancel", "tea")
    for number, (_, late_s, _) in enumerate(ticks(hosts, name)):
        assert -0.1 < late_s - number < 1.0 + LATE_S


# ---------------------------------------------------------------- what is refused


def test_what_can_be_no_reminder_is_refused_where_it_is_set(hosts: Hosts) -> None:
    caller, name = hosts.callers[0], "Alarmed/refused"
    for wrong, what in (
        (("tea", None, None), "needs after= or every="), (("tea", -1.0, None), "after must be"),
        (("tea", None, 0.5), "every must be 1 seconds or more"), (("a/b", 1.0, None), "name of a reminder"),
        (("", 1.0, None), "name of a reminder"), (("tea", 1.0, None, "none"), "no public method"),
        (("tea", 1.0, None, "look"), "@concurrent"), (("tea", float("nan"), None), "after must be"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=what):
            caller.call(name, "remind", *wrong)
    with pytest.raises(MessageTooLarge):
        caller.call(name, "remind", "tea", 1.0, None, "tick", "x" * 20_000)
    assert where(hosts, name) == []


def test_an_agent_has_so_many_reminders_and_no_more(hosts: Hosts) -> None:
    caller, name = hosts.callers[0], "Alarmed/many"
    for number in range(MAX_REMINDERS):
        caller.call(name, "remind", f"r{number}", 600.0, None)
    with pytest.raises(HostBusy, match="reminders"):
        caller.call(name, "remind", "one-more", 600.0, None)
    caller.call(name, "cancel", "r0")
    caller.call(name, "remind", "one-more", 600.0, None)
    assert len(where(hosts, name)) == MAX_REMINDERS
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        cluster.delete_agent(name)


def test_an_agent_of_one_host_alone_has_none(hosts: Hosts) -> None:
    with RpcClient("127.0.0.1", hosts.launchers[0].port) as client:
        plain = client.create_agent("Alarmed", agent_id="plain")
        with pytest.raises(ConfigError, match="no agent of a cluster"):
            plain.remind("tea", 1.0, None)
        client.delete_agent("plain")


# ---------------------------------------------------------------- hosts and Redis go


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis(appendonly="yes", appendfsync="always") as server:
        yield server


def test_a_tick_that_takes_longer_than_its_hand_out_runs_once(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=1.0) as hosts:
        name = "Alarmed/slow"
        hosts.callers[0].call(name, "remind", "tea", 0.1, None, "slow_tick", 6.0)
        assert eventually(lambda: figure(hosts, "reminders_due") > 0, 10)
        assert eventually(lambda: bool(ticks(hosts, name)), 20)
        assert texts(hosts, name) == ["slow"]
        assert figure(hosts, "reminders_due") == 0
        time.sleep(2.5)
        assert texts(hosts, name) == ["slow"]


def test_a_host_that_is_killed_loses_no_reminder_and_no_tick_counts_twice(redis: RedisServer) -> None:
    names = [f"Alarmed/kill-{number}" for number in range(30)]
    with hosts_on(redis, 3, lease_s=2.0) as hosts:
        for number, name in enumerate(names):
            hosts.callers[number % 3].call(name, "remind", "tea", None, 1.0)
        assert eventually(lambda: all(ticks(hosts, name) for name in names), 20)
        hosts.kill(2)
        end = time.monotonic() + 8
        before = {name: len(ticks(hosts, name)) for name in names}
        assert eventually(lambda: all(len(ticks(hosts, name)) >= before[name] + 2 for name in names), 40)
        time.sleep(max(0.0, end - time.monotonic()))
        for name in names:
            calls = [call_id for _, _, call_id in ticks(hosts, name)]
            assert len(calls) == len(set(calls)), "what a tick has changed is there twice"


def test_reminders_outlive_a_restart_of_redis(redis: RedisServer) -> None:
    names = [f"Alarmed/redis-{number}" for number in range(10)]
    with hosts_on(redis, 2, lease_s=2.0) as hosts:
        for name in names:
            hosts.callers[0].call(name, "remind", "tea", 4.0, None)
            hosts.callers[0].call(name, "remind", "bread", None, 1.0)
        redis.kill()
        time.sleep(3)
        redis.start()
        assert eventually(lambda: all("tea" in texts(hosts, name) for name in names), 40)
        assert eventually(lambda: all(texts(hosts, name).count("bread") >= 2 for name in names), 20)
        time.sleep(1.5)
        for name in names:
            assert texts(hosts, name).count("tea") == 1


def test_a_host_that_drains_hands_none_out_and_the_others_do_in_time(redis: RedisServer) -> None:
    names = [f"Alarmed/drain-{number}" for number in range(30)]
    with hosts_on(redis, 3, lease_s=4.0) as hosts:
        for name in names:
            hosts.callers[0].call(name, "remind", "tea", None, 1.0)
        assert eventually(lambda: all(ticks(hosts, name) for name in names), 20)
        hosts.launchers[2].shutdown()
        before = {name: len(ticks(hosts, name)) for name in names}
        assert eventually(lambda: all(len(ticks(hosts, name)) >= before[name] + 2 for name in names), 20)
        for name in names:
            lates = [late_s - number for number, (_, late_s, _) in enumerate(ticks(hosts, name))]
            assert max(lates) < 2.0 + LATE_S, "a beat was missed, or late"
