"""Hosts of a cluster on a Redis that sentinels watch, and on a Redis Cluster, whose primaries are killed.

What a primary has taken last may be lost then: the record that survives decides, and no name is served twice.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_hosts import Caller, Hosts, hosts_on, result_of
from hosts import eventually
from redis_groups import RedisCluster, Watched, catch_up, running_cluster, running_watched
from redis_server import RedisServer
from scale import LATE_S, linux_only, soak_only
from zmqagents.errors import CallLost, CallTimeout, HostUnreachable, StoreUnavailable
from zmqagents.store.cluster import ClusterRecords, Locate, Located
from zmqagents.wire.messages import Flag, Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(240), linux_only("CLOCK_BOOTTIME")]

LEASE_S = 3.0
MEMBERS = "za:{shop}:lease"


@pytest.fixture
def watched() -> Iterator[Watched]:
    with running_watched() as redis:
        yield redis


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with running_cluster() as redis:
        yield redis


class Adding:
    """Threads that add 1 to agents until the end of the block, each to its own; what they were told."""

    def __init__(self, hosts: Hosts, names: list[str]) -> None:
        self.told: dict[str, list[int]] = {name: [] for name in names}
        self.unsure: Counter[str] = Counter()
        self.surprises: list[BaseException] = []
        self._hosts = hosts
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._add, args=(hosts.callers[index % len(hosts.callers)], names[index::4]))
            for index in range(4)
        ]

    def __enter__(self) -> Adding:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)

    def _add(self, caller: Caller, names: list[str]) -> None:
        while not self._is_over.is_set():
            for name in names:
                try:
                    self.told[name].append(caller.call(name, "add", 1, timeout=20))
                except (CallLost, CallTimeout):
                    self.unsure[name] += 1
                except (StoreUnavailable, HostUnreachable):  # nothing was executed
                    time.sleep(0.05)
                except BaseException as exc:
                    self.surprises.append(exc)

    def go_on(self) -> bool:
        """Whether each agent answers from now on."""
        before = {name: len(told) for name, told in self.told.items()}
        return eventually(lambda: all(len(self.told[name]) > count for name, count in before.items()), 60)

    def check(self) -> None:
        """No count that was told is lost or told twice."""
        assert self.surprises == []
        for name, told in self.told.items():
            assert told == sorted(set(told)), f"{name} went back, or told one twice"
            balance = self._hosts.callers[0].sure(name, "balance")
            assert told[-1] <= balance <= len(told) + self.unsure[name]


def incarnations(hosts: Hosts) -> list[str]:
    return [str(caller.status()["incarnation"]) for caller in hosts.callers]


def found_by(url: str, name: str) -> Located:
    """What the record of an agent says."""
    records = ClusterRecords(url, "shop")
    try:
        [found] = records.exchange([Locate(name)])
        assert isinstance(found, Located)
        return found
    finally:
        records.close()


def all_agree(hosts: Hosts, names: list[str]) -> bool:
    """Whether every host leads the calls of each name to one process."""
    return all(len({caller.sure(name, "process") for caller in hosts.callers}) == 1 for name in names)


def names_in(redis: RedisCluster, home: RedisServer, most: int) -> list[str]:
    """Names of agents whose records are on one server."""
    records = ClusterRecords(redis.url, "shop")
    try:
        names = (f"Account/in-{number}" for number in range(500))
        found = (name for name in names if redis.home_of(records.key_of(name)) is home)
        return [name for name, _ in zip(found, range(most), strict=False)]
    finally:
        records.close()


# ---------------------------------------------------------------- nothing is lost


def test_counts_go_on_over_a_failover_of_sentinel(watched: Watched) -> None:
    with hosts_on(watched, 3, lease_s=LEASE_S) as hosts:
        before, primary = incarnations(hosts), watched.primary
        with Adding(hosts, [f"Account/over-{number}" for number in range(16)]) as adding:
            assert adding.go_on()
            primary.kill()
            watched.new_primary(primary)
            assert adding.go_on()
        adding.check()
        assert incarnations(hosts) == before, "somebody was declared dead"


@pytest.mark.parametrize("shard", ["members", "agents"])
def test_counts_go_on_over_a_failover_of_one_shard(cluster: RedisCluster, shard: str) -> None:
    with hosts_on(cluster, 3, lease_s=LEASE_S) as hosts:
        homes = [server for server in cluster.servers if cluster.home_of(MEMBERS) is not server]
        home = cluster.home_of(MEMBERS) if shard == "members" else next(s for s in homes if names_in(cluster, s, 1))
        before = incarnations(hosts)
        with Adding(hosts, names_in(cluster, home, 4) + [f"Account/over-{number}" for number in range(12)]) as adding:
            assert adding.go_on()
            cluster.fail_over(home)
            assert adding.go_on()
            home.start()  # it is a replica from now on
            assert adding.go_on()
        adding.check()
        assert incarnations(hosts) == before, "somebody was declared dead"


def test_a_shard_that_stands_still_holds_calls_up_until_another_has_its_place(cluster: RedisCluster) -> None:
    with hosts_on(cluster, 2, lease_s=10) as hosts:
        home = next(s for s in cluster.servers[:3] if cluster.home_of(MEMBERS) is not s)
        with Adding(hosts, names_in(cluster, home, 8)) as adding:
            assert adding.go_on()
            successor = cluster.replica_of(home)
            with home.frozen():
                assert eventually(lambda: cluster.is_primary(successor), 60)
                assert adding.go_on()
            assert adding.go_on()
        adding.check()


def test_agents_stay_whole_while_their_slot_is_moved_to_another_node(cluster: RedisCluster) -> None:
    with hosts_on(cluster, 2, lease_s=LEASE_S) as hosts:
        records = ClusterRecords(cluster.url, "shop")
        key = records.key_of("Account/in-0")
        names = [f"Account/in-{n}" for n in range(4000) if records.key_of(f"Account/in-{n}").startswith(key[:11])]
        records.close()
        before = incarnations(hosts)
        with Adding(hosts, names) as adding:
            assert adding.go_on()
            for moved in (key, MEMBERS):
                cluster.move(moved)
                assert adding.go_on()
        adding.check()
        assert len(names) > 8
        assert incarnations(hosts) == before, "somebody was declared dead"


def is_kept(caller: Caller, task_id: str, value: int) -> bool:
    """Whether a result is found at a host."""
    try:
        return bool(caller.fetched(task_id) == value)
    except StoreUnavailable:
        return False


@pytest.mark.parametrize("kind", ["watched", "cluster"])
def test_results_that_are_kept_outlive_a_failover(kind: str, request: pytest.FixtureRequest) -> None:
    redis: Any = request.getfixturevalue(kind)
    with hosts_on(redis, 2, lease_s=LEASE_S) as hosts:
        waiter = hosts.callers[0].begin("Account/kept", "add", 7, flags=Flag.DETACHED)
        assert result_of(waiter) == 7
        task_id = hosts.callers[0].task_of(waiter)
        assert eventually(lambda: is_kept(hosts.callers[1], task_id, 7), 20)
        if kind == "cluster":
            home = redis.home_of("za:{zmqagents}:")
            catch_up(home, [redis.replica_of(home)])
            redis.fail_over(home)
        else:
            primary = redis.primary
            catch_up(primary, [server for server in redis.servers if server is not primary])
            primary.kill()
            redis.new_primary(primary)

        assert eventually(lambda: is_kept(hosts.callers[1], task_id, 7), 60)
        late = hosts.callers[1].begin("Account/kept", "add", 1, flags=Flag.DETACHED)
        assert result_of(late) == 8
        assert eventually(lambda: is_kept(hosts.callers[0], hosts.callers[1].task_of(late), 8), 60)


@soak_only
@pytest.mark.timeout(900)
def test_every_shard_fails_over_in_turn_and_hosts_are_killed_meanwhile(cluster: RedisCluster) -> None:
    with hosts_on(cluster, 3, lease_s=LEASE_S, restart=True) as hosts:
        with Adding(hosts, [f"Account/turn-{number}" for number in range(24)]) as adding:
            for number in range(12):
                assert adding.go_on()
                home = sorted(filter(cluster.is_primary, cluster.servers), key=lambda server: server.port)[number % 3]
                cluster.fail_over(home)
                if number % 4 == 3:
                    hosts.kill(number % 3)
                assert adding.go_on()
                home.start()
                assert eventually(cluster.is_whole, 60)
        adding.check()


# ---------------------------------------------------------------- the last writes are lost


def lose(hosts: Hosts, losing: Any, url: Callable[[], str], names: list[str]) -> None:
    """Claims, saves and moves are lost in a failover; then no name is served twice, and epochs have risen."""
    kept, moved, new = names[: len(names) // 3], names[len(names) // 3 : -len(names) // 3], names[-len(names) // 3 :]
    for name in [*kept, *moved]:
        assert hosts.callers[0].call(name, "add", 1) == 1
    with losing:
        for name in kept:
            assert hosts.callers[0].call(name, "add", 1) == 2
        for name in moved:
            hosts.callers[0].ask("", Op.MOVE, id=f"cluster:shop/{name}")
            assert hosts.callers[1].sure(name, "add", 10) == 11
        for name in new:
            assert hosts.callers[0].call(name, "add", 5) == 5
        lost = {name: found_by(url(), name).epoch for name in names}
    assert eventually(lambda: all(caller.status()["state"] == "held" for caller in hosts.callers), 30)
    time.sleep(1 + LATE_S)  # the time that hosts have to look at their agents
    assert all_agree(hosts, names), "a name is served by two hosts"
    for name in names:
        balances = [caller.sure(name, "balance") for caller in hosts.callers]
        assert len(set(balances)) == 1
        assert (
            balances[0] in {2} if name in kept else balances[0] in {1, 11} if name in moved else balances[0] in {0, 5}
        )
        assert hosts.callers[1].sure(name, "add", 100) == balances[0] + 100
        found = found_by(url(), name)
        assert found.epoch > lost[name] or (name in kept and found.epoch == lost[name])
    assert all_agree(hosts, names)


def test_a_failover_of_sentinel_that_loses_claims_leaves_each_name_with_one_host(watched: Watched) -> None:
    with hosts_on(watched, 3, lease_s=LEASE_S) as hosts:
        before = incarnations(hosts)
        lose(hosts, watched.losing(), lambda: watched.url, [f"Account/lost-{number}" for number in range(12)])
        assert incarnations(hosts) == before


def test_a_failover_of_the_agents_shard_that_loses_claims_leaves_each_name_with_one_host(
    cluster: RedisCluster,
) -> None:
    with hosts_on(cluster, 3, lease_s=LEASE_S) as hosts:
        home = next(s for s in cluster.servers[:3] if cluster.home_of(MEMBERS) is not s)
        lose(hosts, cluster.losing(home), lambda: cluster.url, names_in(cluster, home, 12))


def test_a_host_that_asks_redis_nothing_serves_no_agent_whose_move_to_it_was_lost(cluster: RedisCluster) -> None:
    with hosts_on(cluster, 3, lease_s=LEASE_S) as hosts:
        home = next(s for s in cluster.servers[:3] if cluster.home_of(MEMBERS) is not s)
        [name] = names_in(cluster, home, 1)
        hosts.callers[0].call(name, "add", 1)
        former = hosts.home_of(name)
        with cluster.losing(home):
            hosts.callers[former].ask("", Op.MOVE, id=f"cluster:shop/{name}")
            hosts.callers[former].call(name, "add", 1)
            present = hosts.home_of(name)
        [other] = {0, 1, 2} - {former, present}
        # The record says again that the former home has it; that one could still tell of the present one.
        hosts.kill(former)
        claimed = hosts.callers[other].sure(name, "process")  # when the former one's lease is over
        assert hosts.callers[present].sure(name, "process") == claimed, "the agent is served by two hosts"


def test_a_member_whose_joining_was_lost_with_the_members_shard_is_a_member(cluster: RedisCluster) -> None:
    with hosts_on(cluster, 2, lease_s=LEASE_S) as hosts:
        with cluster.losing(cluster.home_of(MEMBERS)):
            hosts.start()
            assert eventually(lambda: hosts.all_know(3), 20)
            before = incarnations(hosts)
        assert eventually(lambda: all(caller.status()["state"] == "held" for caller in hosts.callers), 30)
        assert eventually(lambda: hosts.all_know(3), 30)
        assert incarnations(hosts) == before, "somebody was declared dead"
        for number in range(12):
            assert hosts.callers[number % 3].call(f"Account/new-{number}", "add", 1) == 1
