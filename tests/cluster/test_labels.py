"""Where an agent of a cluster lives: labels, placement, and when it is given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from cluster_hosts import Account, Brief, Forgetful, Hosts, Nearby, Picky, Trainer
from hosts import eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import AgentExists, AsyncCluster, Cluster, ConfigError, NoHost, RpcClient, agent
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

LABELS: list[dict[str, str]] = [{}, {"gpu": "yes", "zone": "a"}, {"gpu": "yes", "zone": "b", "größe": "Ω = 5, x"}]


@contextlib.contextmanager
def labelled(redis: RedisServer, **options: Any) -> Iterator[Hosts]:
    """A host without labels, and two with."""
    hosts = Hosts(redis, **options)
    try:
        for labels in LABELS:
            hosts.start(labels=labels)
        assert eventually(lambda: hosts.all_know(len(LABELS)), 20)
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    """Those, for tests that do no harm."""
    with labelled(lasting_redis) as hosts:
        yield hosts


def address(hosts: Hosts, index: int) -> str:
    return f"127.0.0.1:{hosts.launchers[index].port}"


@pytest.fixture
def cluster(hosts: Hosts) -> Iterator[Cluster]:
    with Cluster(address(hosts, 0)) as cluster:  # which has no label
        yield cluster


def test_a_class_lives_on_members_that_have_its_labels(hosts: Hosts, cluster: Cluster) -> None:
    processes = {cluster.get_agent(f"of-class-{number}", cls=Trainer).process() for number in range(30)}
    assert {hosts.index_of(process) for process in processes} == {1, 2}


def test_labels_that_are_said_where_an_agent_is_made_win_over_those_of_its_class(
    hosts: Hosts, cluster: Cluster
) -> None:
    for number in range(6):
        in_b = cluster.options(name=f"in-b-{number}", labels={"zone": "b", "größe": "Ω = 5, x"})
        assert hosts.index_of(in_b.create_agent(Trainer, "beta").process()) == 2
        anywhere = cluster.create_agent(
            Trainer, name=f"any-{number}", agent_options={"labels": {}, "placement": "local"}
        )
        assert hosts.index_of(anywhere.process()) == 0


def test_no_member_with_the_labels_is_no_host_at_once_and_says_which_were_asked_for(cluster: Cluster) -> None:
    with pytest.raises(NoHost, match="no member with the class Account has the labels disk=fast, zone=a"):
        cluster.create_agent(Account, name="nowhere", agent_options={"labels": {"zone": "a", "disk": "fast"}})
    assert cluster.where("Account/nowhere")["epoch"] == 0, "an agent that no host can make was kept"
    assert cluster.create_agent(Account, "CHF", name="nowhere").balance() == 0


def test_an_agent_comes_back_and_moves_only_to_members_that_have_its_labels(hosts: Hosts, cluster: Cluster) -> None:
    about: dict[str, Any] = {"name": "kept", "labels": {"zone": "b"}}
    kept = cluster.options(**about, idle_s=0.3).create_agent(Account, "CHF")
    kept.add(5)
    for _ in range(3):
        assert eventually(lambda: not cluster.where("Account/kept")["address"], 20)
        for index in (0, 1, 2):  # whoever is asked finds them in the record
            with Cluster(address(hosts, index)) as other:
                assert other.get_agent("kept", cls=Account).balance() == 5
                assert hosts.index_of(other.get_agent("kept", cls=Account).process()) == 2
    cluster.create_agent(Account, name="stays", agent_options={"labels": {"zone": "b"}})
    with pytest.raises(NoHost, match="stays: no other member with the class Account has the labels zone=b"):
        cluster.move("Account/stays")
    with pytest.raises(NoHost, match="cannot run"):
        cluster.move("Account/stays", address(hosts, 0))


def test_a_drain_respects_labels(redis: RedisServer) -> None:
    with labelled(redis, grace_s=10.0) as hosts, Cluster(f"{address(hosts, 0)},{address(hosts, 2)}") as cluster:
        agents: list[Any] = [
            cluster.options(name=f"d{n}", labels={"gpu": "yes"}).create_agent(Account) for n in range(10)
        ]
        agents += [cluster.get_agent(f"d{n}", cls=Trainer) for n in range(10)]
        for each in agents:
            each.process()
        hosts.callers[1].ask("", Op.DRAIN)
        assert eventually(lambda: not hosts.launchers[1].is_running, 20)
        assert {hosts.index_of(each.process()) for each in agents} == {2}


def test_local_is_the_member_that_is_asked_and_another_one_where_that_cannot_have_it(
    hosts: Hosts, cluster: Cluster
) -> None:
    for index in (0, 1, 2):
        with Cluster(address(hosts, index)) as asked:
            near = [asked.get_agent(f"near-{index}-{number}", cls=Nearby) for number in range(5)]
            assert [hosts.index_of(each.process()) for each in near] == [index] * 5
            process = near[0].neighbour(f"of-{index}")
            assert hosts.index_of(process) == index, "an agent's call is asked of its own host"
    options = {"placement": "local", "labels": {"zone": "a"}}
    assert hosts.index_of(cluster.create_agent(Nearby, name="zoned", agent_options=options).process()) == 1


def test_an_agent_that_nobody_calls_is_saved_and_given_back_and_its_next_call_has_it_again(cluster: Cluster) -> None:
    brief = cluster.get_agent("brief", cls=Brief)
    assert [brief.add() for _ in range(2)] == [[1, 0], [2, 0]]
    assert eventually(lambda: not cluster.where("Brief/brief")["address"], 20)
    assert brief.add() == [3, 1]
    long = cluster.options(name="long", idle_s=3600).create_agent(Brief)
    long.add()
    assert eventually(lambda: not cluster.where("Brief/brief")["address"], 20)
    assert cluster.where("Brief/long")["address"], "its own time was asked for"


def test_an_agent_that_cannot_be_made_as_it_was_asked_for_is_not_in_the_way_of_the_next_try(cluster: Cluster) -> None:
    tries: list[Literal["error", "get"]] = ["error", "get"]
    for if_exists in tries:
        name = f"tried-{if_exists}"
        with pytest.raises(ValueError, match="-1"):
            cluster.create_agent(Picky, -1, name=name, if_exists=if_exists)
        assert eventually(lambda asked=f"Picky/{name}": cluster.where(asked)["epoch"] == 0, 5)  # type: ignore[misc]
        assert cluster.create_agent(Picky, 7, name=name).get() == 7
        with pytest.raises(AgentExists):
            cluster.create_agent(Picky, 8, name=name)


def test_options_that_no_member_could_follow_are_refused_where_they_are_given(hosts: Hosts, cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="goes with no client"):
        cluster.create_agent(Account, name="gone", agent_options={"lifetime": "client"})
    with pytest.raises(NoHost, match="save_state"):
        cluster.create_agent(Forgetful, name="saved", agent_options={"persist": "call"})
    assert cluster.where("Forgetful/saved")["epoch"] == 0
    about: dict[str, Any] = {"id": "cluster:shop/Account/bad", "class": "Account", "labels": [1]}
    with pytest.raises(ConfigError, match="labels must be"):
        hosts.callers[0].ask("", Op.CREATE, **about)


def test_an_agent_of_one_host_is_refused_labels_and_a_class_that_has_some_runs_there(hosts: Hosts) -> None:
    with RpcClient("127.0.0.1", hosts.launchers[0].port) as client:
        with pytest.raises(ConfigError, match="labels is for agents of a cluster: make it by a Cluster"):
            client.create_agent(Account, agent_options={"labels": {"gpu": "yes"}})
        with pytest.raises(ConfigError, match="placement and labels"):
            client.create_agent(Account, agent_options={"labels": {}, "placement": "local"})
        with client.create_agent(Trainer, "alone") as trainer:
            assert trainer.who() == "alone"


def test_the_same_for_asyncio(hosts: Hosts) -> None:
    async def main() -> None:
        async with AsyncCluster(address(hosts, 0)) as cluster:
            made = await cluster.options(name="for-asyncio", labels={"zone": "b"}, idle_s=60).create_agent(Account)
            assert hosts.index_of(await made.process()) == 2

    asyncio.run(main())


def test_an_option_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no option label; it has: .*placement, labels"):
        agent(label={"gpu": "yes"})  # type: ignore[call-overload]
