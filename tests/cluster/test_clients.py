"""Programs call the agents of a cluster, whichever of its hosts they know, and go on when hosts come and go."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster_hosts import Account, Hosts, Till, hosts_on
from hosts import ENDS_WITHIN_S, eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import (
    AgentExists,
    AsyncCluster,
    CallCancelled,
    CallLost,
    CallTimeout,
    Cluster,
    ConfigError,
    HostUnreachable,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownCluster,
)
from zmqagents.client.cluster.link import ClusterLink
from zmqagents.client.cluster.seeds import Seeds
from zmqagents.client.proxy import request_body, value_of
from zmqagents.wire.link import Waiter
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    """Three hosts that no test harms."""
    with hosts_on(lasting_redis, 3) as hosts:
        yield hosts


def seeds(hosts: Hosts, *indexes: int) -> str:
    """The addresses of hosts, as a user gives them."""
    chosen = [hosts.launchers[index] for index in indexes] if indexes else hosts.launchers
    return ",".join(f"127.0.0.1:{launcher.port}" for launcher in chosen)


@pytest.fixture
def cluster(hosts: Hosts) -> Iterator[Cluster]:
    with Cluster(seeds(hosts)) as cluster:
        yield cluster


# ---------------------------------------------------------------- agents by name


def test_a_virtual_agent_always_exists_and_is_the_same_for_every_client(hosts: Hosts, cluster: Cluster) -> None:
    ann = cluster.get_agent("ann", cls=Account)
    assert ann.add(500) == 500
    with Cluster(seeds(hosts, 2)) as other:
        assert other.get_agent("Account/ann").add(1) == 501
        assert other.get_agent("ann", cls="Account").balance() == 501
    assert ann.agent_id == "cluster:shop/Account/ann"
    assert ann.currency == "EUR"


def test_a_cluster_is_known_by_the_name_that_a_host_tells(cluster: Cluster, hosts: Hosts) -> None:
    assert cluster.name == "shop"
    with Cluster(seeds(hosts), name="other") as wrong, pytest.raises(UnknownCluster, match="'shop', not of 'other'"):
        wrong.hosts()


def test_a_host_that_is_no_member_is_no_cluster() -> None:
    with (
        RpcAgentServerLauncher(local_mode=True) as alone,
        Cluster(f"127.0.0.1:{alone.port}") as cluster,
        pytest.raises(UnknownCluster, match="no member"),
    ):
        cluster.get_agent("ann", cls=Account)


def test_without_any_host_the_first_request_says_so_at_once() -> None:
    with Cluster("127.0.0.1:1,127.0.0.1:2") as cluster, pytest.raises(HostUnreachable):
        cluster.hosts()


@pytest.mark.parametrize("hosts", ["", "nowhere", "a:0", "a:70000", [], ["a:1", "b"]])
def test_what_is_no_host_is_refused(hosts: list[str] | str) -> None:
    with pytest.raises(ConfigError, match="host"):
        Cluster(hosts)


def test_an_agent_that_is_made_keeps_its_arguments(hosts: Hosts, cluster: Cluster) -> None:
    usd = cluster.create_agent(Account, "USD", name="bob")
    assert usd.currency == "USD"
    assert usd.add(5) == 5
    with pytest.raises(AgentExists):
        cluster.create_agent(Account, "CHF", name="bob")
    again = cluster.create_agent(Account, "CHF", name="bob", if_exists="get")
    assert (again.currency, again.balance()) == ("USD", 5)
    assert cluster.delete_agent("Account/bob") is True
    assert cluster.delete_agent("bob", cls=Account) is True
    assert cluster.get_agent("bob", cls=Account).balance() == 0


def test_names_that_are_none_are_refused(cluster: Cluster) -> None:
    for name in ("", "x\n", "y" * 300):
        with pytest.raises(ConfigError, match="name"):
            cluster.get_agent(name, cls=Account)
    with pytest.raises(ConfigError, match="Class/key"):
        cluster.get_agent("Account")


def test_futures_streams_and_cancels_work_as_with_one_host(cluster: Cluster) -> None:
    agents: list[Any] = [cluster.get_agent(f"kinds-{number}", cls=Account) for number in range(6)]
    results = [agent.add.aio(number) for number, agent in enumerate(agents)]
    assert [result.result() for result in results] == list(range(6))
    for agent in agents:
        assert list(agent.count(40)) == list(range(40))
    slow = agents[0].slow.aio(30)
    time.sleep(0.1)
    assert slow.cancel()
    assert agents[0].add(0) == 0
    with pytest.raises(CallTimeout):
        agents[1].slow(30, timeout=0.3)


def test_a_result_is_found_by_its_task_id_at_any_host(hosts: Hosts, cluster: Cluster) -> None:
    agent: Any = cluster.get_agent("results", cls=Account)
    result = agent.add.aio(7)
    assert result.result() == 7
    for index in range(3):
        with Cluster(seeds(hosts, index)) as other:
            assert other.get_result(result.task_id).result(10) == 7


def test_calls_of_one_client_to_one_agent_keep_their_order(cluster: Cluster) -> None:
    agent: Any = cluster.get_agent("order", cls=Account)
    results = [agent.add.aio(1) for _ in range(200)]
    assert [result.result() for result in results] == list(range(1, 201))
    for _ in range(100):
        agent.add(1)
    assert agent.balance() == 300


def test_awaited_calls_are_as_those_of_threads(hosts: Hosts) -> None:
    async def program() -> None:
        async with AsyncCluster(seeds(hosts)) as cluster:
            assert await cluster.get_name() == "shop"
            eve = await cluster.get_agent("eve", cls=Account)
            assert await eve.add(3) == 3
            assert await (await cluster.get_agent("Account/eve")).balance() == 3
            made = await cluster.create_agent(Account, "GBP", name="async", if_exists="get")
            assert await made.currency == "GBP"
            assert [item async for item in made.count(20)] == list(range(20))
            assert (await cluster.where("Account/eve"))["address"]
            assert len(await cluster.hosts()) == 3
            assert "Account/eve" in [row["agent"] async for row in cluster.agents("Account/e")]
            assert await cluster.delete_agent("eve", cls=Account) is True

    asyncio.run(program())


# ---------------------------------------------------------------- what there is


def test_hosts_and_agents_are_listed(hosts: Hosts, cluster: Cluster) -> None:
    for number in range(5):
        cluster.get_agent(f"list-{number}", cls=Account).add(1)
    rows = list(cluster.agents("Account/list-"))
    assert [row["agent"] for row in sorted(rows, key=lambda row: row["agent"])] == [
        f"Account/list-{number}" for number in range(5)
    ]
    found = cluster.hosts()
    assert {row["server_id"] for row in found} == {launcher.server_id for launcher in hosts.launchers}
    assert {row["state"] for row in found} == {"held"}
    here = cluster.where("Account/list-0")
    assert here["address"] in {row["address"] for row in found}
    nowhere = cluster.where("Account/never")
    assert (nowhere["address"], nowhere["epoch"]) == ("", 0)


def test_the_shorter_way_is_taken_and_then_the_relay_has_less_to_do(hosts: Hosts, cluster: Cluster) -> None:
    names = [f"short-{number}" for number in range(36)]  # that two hosts get all comes once in a million runs
    for name in names:
        cluster.get_agent(name, cls=Account).add(1)
    homes = {cluster.where(f"Account/{name}")["address"] for name in names}
    assert len(homes) == 3
    before = [caller.status()["relayed"] for caller in hosts.callers]
    for name in names * 2:
        cluster.get_agent(name, cls=Account).add(1)
    assert [caller.status()["relayed"] for caller in hosts.callers] == before


def test_a_client_that_reaches_one_host_only_has_all_its_calls_relayed(hosts: Hosts) -> None:
    with Cluster(seeds(hosts, 0), relay=True) as cluster:
        names = [f"relay-{number}" for number in range(9)]
        for name in names * 5:
            cluster.get_agent(name, cls=Account).add(1)
        assert hosts.callers[0].status()["relayed"] >= 9


# ---------------------------------------------------------------- references


def test_a_proxy_travels_as_the_name_of_its_agent(hosts: Hosts, cluster: Cluster) -> None:
    ann = cluster.get_agent("travels", cls=Account)
    ann.add(9)
    data = pickle.dumps(ann)
    assert b"cluster:shop/Account/travels" in data
    assert pickle.loads(data).balance() == 9
    assert pickle.loads(data) == ann
    cluster.close()
    with pytest.raises(UnknownCluster, match="no Cluster of that name is open"):
        pickle.loads(data)
    with Cluster(seeds(hosts)):
        assert pickle.loads(data).balance() == 9


def test_of_two_open_objects_one_may_be_closed(hosts: Hosts) -> None:
    first, second = Cluster(seeds(hosts)), Cluster(seeds(hosts))
    data = pickle.dumps(first.get_agent("two", cls=Account))
    second.get_agent("two", cls=Account).add(1)
    first.close()
    assert pickle.loads(data).balance() == 1
    second.close()


def test_a_proxy_is_an_argument_a_part_of_the_state_and_used_in_agents(cluster: Cluster) -> None:
    for number in range(4):  # on different hosts, most likely
        cluster.get_agent(f"purse-{number}", cls=Account).add(10)
    till: Any = cluster.get_agent("till", cls=Till)
    for number in range(4):
        assert till.remember(cluster.get_agent(f"purse-{number}", cls=Account)) == number + 1
    assert till.total() == 40
    where = cluster.where("Till/till")["address"]
    moved = cluster.move("Till/till")
    assert moved["address"] != where, "its references have travelled with its state"
    assert till.total() == 40
    first = till.first()
    assert first.agent_id == "cluster:shop/Account/purse-0"
    assert first.add(1) == 11
    assert till.later_total().result(20) == 41


def test_a_result_that_is_not_there_yet_is_an_argument(cluster: Cluster) -> None:
    ann: Any = cluster.get_agent("args-ann", cls=Account)
    bob: Any = cluster.get_agent("args-bob", cls=Account)
    assert bob.add.aio(ann.add.aio(7)).result(20) == 7


# ---------------------------------------------------------------- hosts come and go


def test_another_host_is_asked_when_one_dies(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts, Cluster(seeds(hosts)) as cluster:
        for number in range(10):
            cluster.get_agent(f"dies-{number}", cls=Account).add(number)
        hosts.kill(0)
        for number in range(10):
            assert eventually(lambda n=number: balance_of(cluster, f"dies-{n}") == n, ENDS_WITHIN_S)  # type: ignore[misc]


def test_a_host_is_drained_and_no_call_fails(redis: RedisServer) -> None:
    with hosts_on(redis, 3, grace_s=20.0) as hosts, Cluster(seeds(hosts)) as cluster:
        agents: list[Any] = [cluster.get_agent(f"drains-{number}", cls=Account) for number in range(30)]
        for agent in agents:
            agent.add(1)
        gone = cluster.hosts()[0]
        body = request_body(cluster.link, Op.DRAIN, (), {})
        link = cluster.link.connection_at(gone["address"])
        assert value_of(link, link.call("", Op.DRAIN, body, timeout=20)) is True
        rounds = 0
        while gone["server_id"] in {row["server_id"] for row in cluster.hosts()}:
            rounds += 1
            for agent in agents:
                agent.add(1, timeout=20)
        assert {agent.balance() for agent in agents} == {rounds + 1}
        assert all(cluster.where(f"Account/drains-{number}")["address"] != gone["address"] for number in range(30))


def test_a_call_whose_host_dies_is_lost_unless_it_does_no_harm_to_make_it_again(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=2.0) as hosts, Cluster(seeds(hosts)) as cluster:
        for number in range(30):
            cluster.get_agent(f"lost-{number}", cls=Account).add(1)
        home = hosts.home_of("Account/lost-0")
        here = [number for number in range(30) if hosts.home_of(f"Account/lost-{number}") == home]
        agents: list[Any] = [cluster.get_agent(f"lost-{number}", cls=Account) for number in here[:3]]
        once, again = agents[0].slow.aio(30), agents[1].slow_look.aio(2)
        streamed = agents[2].drip(1000)
        assert next(streamed) == 0
        hosts.kill(home)
        with pytest.raises(CallLost):
            once.result(20)
        with pytest.raises(CallLost):
            list(streamed)
        assert again.result(30) == 1


def test_a_call_that_is_cancelled_while_no_host_is_there_never_runs() -> None:
    waiter, waiting = Waiter(), list[Callable[[], None]]()
    with RpcAgentServerLauncher(agents={"ann": Account}, local_mode=True) as first:
        port = first.port
        assert port is not None
        link = ClusterLink(Seeds([("127.0.0.1", port)]))
        link.connection_at(f"127.0.0.1:{port}").settle(ENDS_WITHIN_S)
    task_id = link.submit("ann", "add", request_body(link, "add", (5,), {}), waiter)
    assert eventually(lambda: waiting.extend(link.retries.take_all()) or bool(waiting), ENDS_WITHIN_S)  # type: ignore[func-returns-value]
    link.cancel(task_id)
    with (
        RpcAgentServerLauncher(agents={"ann": Account}, local_mode=True, port=port),
        RpcClient("127.0.0.1", port) as client,
    ):
        for function in waiting:  # the look at the seeds' names may be among them
            function()
        with pytest.raises(CallCancelled):
            waiter.wait(ENDS_WITHIN_S)
        assert client.get_agent("ann").balance() == 0
    link.close()


def balance_of(cluster: Cluster, name: str) -> int | None:
    try:
        agent: Any = cluster.get_agent(name, cls=Account)
        return int(agent.balance(timeout=5))
    except (CallLost, CallTimeout):
        return None
