"""Agents of a cluster that are hard to place: odd names, classes that few members have, many that are made at once."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import CLASSES, Account, Hosts, Nearby, hosts_on, result_of
from hosts import eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import (
    AgentBase,
    AgentExists,
    AsyncCluster,
    CallCancelled,
    CallTimeout,
    Cluster,
    ConfigError,
    NoHost,
    RpcClient,
    UnknownClass,
)
from zmqagents.agents.context import current_call
from zmqagents.discovery import MEMBER_AGE_S, sweep
from zmqagents.errors import CannotServe
from zmqagents.store.cluster_scripts import cluster_scripts
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


class Rare(AgentBase):
    """One member has it."""

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def get(self) -> int:
        return self.number


class Guest(AgentBase, lifetime="client"):
    """Goes with its client, where it may."""

    def here(self) -> bool:
        return True


class Builder(AgentBase, placement="local"):
    """Has an agent made, and called, while it is made itself."""

    def __init__(self) -> None:
        call = current_call()
        assert call is not None
        key = self.agent_id.rpartition("/")[2]
        self.calls = call.client().get_agent(f"cluster:shop/Forgetful/{key}").call()

    def get(self) -> int:
        return int(self.calls)


class Visitor(AgentBase):
    """Opens a cluster of its own."""

    def visit(self, hosts: str, key: str) -> int:
        with Cluster(hosts) as cluster:
            return cluster.get_agent(key, cls=Account).add(1)


def older() -> type:
    """The class Account as it was before: it reads the first version of its state."""

    class Account(AgentBase):
        state_version = 1

        def __init__(self) -> None:
            self.cents = 0

        def save_state(self) -> dict[str, Any]:
            return {"currency": "EUR", "cents": self.cents}

        def load_state(self, state: dict[str, Any]) -> None:
            self.cents = state["cents"]

        def add(self, cents: int) -> int:
            self.cents += cents
            return self.cents

        def process(self) -> int:
            return os.getpid()

    return Account


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    """Three hosts, of which the last has what the others do not have."""
    hosts = Hosts(lasting_redis)
    try:
        for number in range(3):
            more: list[type] = [Rare] if number == 2 else []
            hosts.start(custom_agent_classes=[*CLASSES, Builder, Guest, Visitor, *more])
        assert eventually(lambda: hosts.all_know(3), 20)
        yield hosts
    finally:
        hosts.close()


def address(hosts: Hosts, index: int) -> str:
    return f"127.0.0.1:{hosts.launchers[index].port}"


@pytest.fixture
def cluster(hosts: Hosts) -> Iterator[Cluster]:
    with Cluster(address(hosts, 0)) as cluster:
        yield cluster


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` gives or raises for each number, all at the same time."""
    found: list[Any] = [None] * count
    begin = threading.Barrier(count)

    def run(number: int) -> None:
        begin.wait()
        try:
            found[number] = work(number)
        except Exception as exc:
            found[number] = exc

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    return found


# ---------------------------------------------------------------- names, classes


@pytest.mark.parametrize(
    "key", ["ü" * 192, "a/b//c/", "{shop/00}:a:x", "* ?[a]", "ann' or 1=1 --", "语言 😀", ":", "a:b"]
)
def test_any_printable_name_of_up_to_200_characters_is_an_agent(hosts: Hosts, key: str) -> None:
    for caller in (0, 1, 2):
        with Cluster(address(hosts, caller)) as cluster:
            assert cluster.get_agent(key, cls=Account).add(1) == caller + 1
            assert [row["agent"] for row in cluster.agents(f"Account/{key}")] == [f"Account/{key}"]
    with Cluster(address(hosts, 0)) as cluster:
        assert cluster.move(key, cls=Account)["epoch"] > 0
        assert cluster.get_agent(f"Account/{key}").balance() == 3
        assert cluster.delete_agent(key, cls=Account)
        assert cluster.where(key, cls=Account)["epoch"] == 0


@pytest.mark.parametrize("key", ["", "a\nb", "x" * 193, "\0"])
def test_what_is_no_name_is_refused_before_anybody_is_asked(cluster: Cluster, key: str) -> None:
    for ask in (lambda: cluster.get_agent(key, cls=Account), lambda: cluster.create_agent(Account, name=key)):
        with pytest.raises(ConfigError, match="name"):
            ask()


def test_a_class_that_one_member_has_is_used_from_all(hosts: Hosts) -> None:
    for index in (0, 1, 2):
        with Cluster(address(hosts, index)) as cluster:
            assert cluster.get_agent(f"Rare/by-name-{index}").get() == 1, "its methods are asked of who has the class"
            assert cluster.create_agent("Rare", 7, name=f"made-{index}").get() == 7
            assert cluster.where(f"Rare/made-{index}")["address"] == address(hosts, 2)
            with pytest.raises(NoHost, match="stays: no other member has the class Rare"):
                cluster.move(f"Rare/made-{index}")
            with pytest.raises(UnknownClass, match="Nowhere"):
                cluster.get_agent("Nowhere/x")
            with pytest.raises(NoHost, match="no member has the class Nowhere"):
                cluster.create_agent("Nowhere", name="x")
    assert hosts.callers[0].call("Teller/of-rare", "ask", "Rare/by-name-0", "get") == 1


def test_an_agent_that_is_brought_to_a_member_without_its_labels_is_not_made_there_nor_kept(hosts: Hosts) -> None:
    about: dict[str, Any] = {"id": "cluster:shop/Account/stray", "class": "Account", "labels": {"gpu": "yes"}}
    with pytest.raises(CannotServe, match="does not have the labels gpu=yes"):
        hosts.callers[1].ask("", Op.CREATE, **about, hop=1, activate=True, user="", task=f"m-{secrets.token_hex(4)}")
    assert eventually(lambda: hosts.callers[0].ask("", Op.WHERE, id=about["id"])["epoch"] == 0, 5)


def test_what_no_agent_of_a_cluster_can_have_is_said_and_a_member_has_it_for_its_own(
    hosts: Hosts, cluster: Cluster
) -> None:
    with pytest.raises(NoHost, match="go with no client, and Guest has lifetime='client'"):
        cluster.get_agent("x", cls=Guest).here()
    assert list(cluster.agents("Guest/")) == []
    with RpcClient("127.0.0.1", hosts.launchers[0].port) as client:
        assert client.create_agent(Guest).here()


def test_state_of_a_newer_class_goes_to_no_older_member_and_the_other_way_it_does(redis: RedisServer) -> None:
    hosts = Hosts(redis)
    try:
        hosts.start(custom_agent_classes=[older()])
        hosts.start(custom_agent_classes=[Account])
        assert eventually(lambda: hosts.all_know(2), 20)
        names = [f"Account/{number}" for number in range(8)]
        for name in names:
            hosts.callers[0].call(name, "add", 5)
        where = {name: hosts.home_of(name) for name in names}
        assert set(where.values()) == {0, 1}
        for name, index in where.items():
            if index == 0:
                assert hosts.callers[0].ask("", Op.MOVE, id=f"cluster:shop/{name}")["address"] == address(hosts, 1)
            else:
                with pytest.raises(NoHost, match="stays: no other member reads version 2 of the state of Account"):
                    hosts.callers[0].ask("", Op.MOVE, id=f"cluster:shop/{name}")
            assert hosts.callers[0].call(name, "add", 1) == 6
    finally:
        hosts.close()


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize("if_exists", ["error", "get"])
def test_of_twenty_who_make_an_agent_at_once_one_does(hosts: Hosts, if_exists: str) -> None:
    name = f"once-{if_exists}"

    def make(number: int) -> Any:
        with Cluster(address(hosts, number % 3), transport="tcp" if number % 2 else None) as cluster:
            made: Any = cluster.create_agent
            return made(Account, f"C{number:02}", name=name, if_exists=if_exists).currency

    found = in_threads(20, make)
    made = {each for each in found if isinstance(each, str)}
    refused = [each for each in found if not isinstance(each, str)]
    assert len(made) == 1, found
    assert all(isinstance(each, AgentExists) for each in refused), found
    assert len(refused) == (19 if if_exists == "error" else 0)


def test_the_same_from_tasks_of_asyncio(hosts: Hosts) -> None:
    async def make(number: int, if_exists: Any) -> Any:
        async with AsyncCluster(address(hosts, number % 3)) as cluster:
            made = await cluster.create_agent(Account, f"C{number:02}", name=f"tasks-{if_exists}", if_exists=if_exists)
            return await made.process()

    async def main(if_exists: str) -> list[Any]:
        return await asyncio.gather(*(make(number, if_exists) for number in range(20)), return_exceptions=True)

    assert len(set(asyncio.run(main("get")))) == 1
    found = asyncio.run(main("error"))
    assert sum(isinstance(each, int) for each in found) == 1, found
    assert sum(isinstance(each, AgentExists) for each in found) == 19, found


def test_constructors_that_call_agents_which_are_to_be_made_are_never_stuck(hosts: Hosts) -> None:
    waiters = [
        hosts.callers[index].begin(f"Builder/{index}-{number}", "get", timeout=90)
        for number in range(100)  # more than the 64 of a host that are made at the same time
        for index in range(3)
    ]
    assert [result_of(waiter, 90) for waiter in waiters] == [1] * 300


# ---------------------------------------------------------------- over hosts


def far_from(hosts: Hosts, index: int, prefix: str) -> str:
    """An account that does not live on that host."""
    names = (f"Account/{prefix}-{number}" for number in range(50))
    return next(name for name in names if hosts.home_of(name) != index)


def test_deadlines_and_cancels_reach_the_home_through_a_relay(hosts: Hosts) -> None:
    name = far_from(hosts, 0, "late")
    home = hosts.callers[hosts.home_of(name)]
    relay = hosts.callers[0]
    with pytest.raises(CallTimeout):
        relay.call(name, "slow", 60, timeout=0.3)
    assert eventually(lambda: home.running() == 0, 10)
    waiter = relay.begin(name, "slow", 60, timeout=60)
    assert eventually(lambda: home.running() == 1, 10)
    relay.cancel(waiter)
    with pytest.raises(CallCancelled):
        result_of(waiter)
    assert eventually(lambda: home.running() == 0, 10)
    assert relay.call(name, "add", 1) == 1


def test_an_agent_may_open_a_cluster_of_its_own(hosts: Hosts, cluster: Cluster) -> None:
    seeds = ",".join(address(hosts, index) for index in (1, 2))
    visitors = [cluster.get_agent(f"v{number}", cls=Visitor) for number in range(6)]
    assert sorted(visitor.visit(seeds, "visited") for visitor in visitors) == [1, 2, 3, 4, 5, 6]


def test_streams_through_a_relay_come_to_their_end_while_their_home_drains(redis: RedisServer) -> None:
    with hosts_on(redis, 3, grace_s=20.0) as hosts, Cluster(address(hosts, 0), relay=True) as cluster:
        names = [f"Account/drip-{number}" for number in range(40)]
        there = [name for name in names if hosts.home_of(name) == 2][:4]
        streams = [iter(cluster.get_agent(name).drip(40)) for name in there]
        assert [next(stream) for stream in streams] == [0] * len(there)
        hosts.callers[2].ask("", Op.DRAIN)
        for stream in streams:
            assert list(stream) == list(range(1, 40))
        assert eventually(lambda: not hosts.launchers[2].is_running, 20)
        assert all(hosts.home_of(name) != 2 for name in there)


# ---------------------------------------------------------------- what a killed member leaves


def test_word_of_a_member_that_was_killed_is_kept_as_long_as_somebody_may_need_it(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        path = Path(hosts.launchers[0].ipc or "").with_suffix(".start")
        old = time.time() - MEMBER_AGE_S - 1
        os.utime(path, (old, old))
        sweep()
        assert path.exists(), "its member lives"
        os.utime(path)
        hosts.kill(0)
        assert eventually(lambda: not hosts.launchers[0].is_running, 10)
        sweep()
        assert path.exists(), "the next start of a member tells the others"
        os.utime(path, (old, old))
        sweep()
        assert not path.exists()


def test_the_first_call_of_a_name_costs_redis_one_script_where_the_agent_is_to_live(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts, Cluster(address(hosts, 0)) as cluster, redis.client as client:
        cluster.get_agent("first", cls=Nearby).process()
        client.config_set("slowlog-log-slower-than", 0)  # every command
        client.config_set("slowlog-max-len", 100_000)
        for number in range(50):
            cluster.get_agent(f"new-{number}", cls=Nearby).process()
        commands = [entry["command"].decode() for entry in client.slowlog_get(100_000)]
        scripts = cluster_scripts()
        claims, looks = (
            sum(script.sha in command for command in commands) for script in (scripts.claim, scripts.locate)
        )
        assert (claims, looks) == (50, 0)


def test_a_name_that_lives_elsewhere_is_found_by_the_claim_of_a_host_that_does_not_know_it(hosts: Hosts) -> None:
    addresses = [address(hosts, index) for index in range(len(hosts.launchers))]
    for number in range(30):
        homes = set()
        for each in addresses:
            with Cluster(each, relay=True) as cluster:
                homes.add(cluster.get_agent(f"found-{number}", cls=Nearby).process())
        assert len(homes) == 1
