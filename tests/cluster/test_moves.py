"""Agents of a cluster move: when their host is killed, when it ends, and when somebody says so."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from cluster_hosts import CHILDREN_TOO, Account, Hosts, hosts_on, result_of
from hosts import eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import RpcClient
from zmqagents.errors import AgentExists, CallLost, DeadlockError, NoHost, UnknownAgent, ZmqAgentsError
from zmqagents.wire.messages import Flag, Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]


def homes(hosts: Hosts, names: list[str]) -> dict[str, int]:
    return {name: hosts.home_of(name) for name in names}


def test_an_agent_of_a_killed_host_goes_on_elsewhere_when_its_lease_is_over(redis: RedisServer) -> None:
    with hosts_on(redis, 3, lease_s=2.0) as hosts:
        names = [f"Account/killed-{number}" for number in range(6)]
        for name in names:
            hosts.callers[0].call(name, "add", 7)
        where = homes(hosts, names)
        victim = next(index for index in where.values() if index != 0)
        hosts.kill(victim)
        killed = time.monotonic()
        for name in names:
            assert hosts.callers[0].sure(name, "balance") == 7, "a change that was told is lost"
        assert time.monotonic() - killed < 2.0 * 1.25 + 3
        assert [hosts.callers[0].call(name, "add", 1) for name in names] == [8] * len(names)


def test_calls_that_run_on_a_killed_host_are_lost_and_say_so(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=2.0) as hosts:
        name = next(f"Account/running-{number}" for number in range(50) if hosts.home_of(f"Account/running-{number}"))
        waiter = hosts.callers[0].begin(name, "slow", 30, timeout=60)
        assert eventually(lambda: hosts.callers[1].running() == 1, 10)
        hosts.kill(1)
        with pytest.raises(CallLost):
            result_of(waiter)


@CHILDREN_TOO
def test_a_running_call_that_a_drain_cuts_is_lost_and_does_not_run_again_elsewhere(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=2.0, grace_s=0.5) as hosts:
        name = next(f"Account/cut-{number}" for number in range(50) if hosts.home_of(f"Account/cut-{number}"))
        waiter = hosts.callers[0].begin(name, "slow", 30, timeout=60)
        assert eventually(lambda: hosts.callers[1].running() == 1, 10)
        hosts.callers[1].ask("", Op.DRAIN)
        with pytest.raises(CallLost, match="the host stopped"):
            result_of(waiter)
        assert hosts.callers[0].running() == 0


def test_agents_of_a_host_that_is_started_again_answer_within_a_second_or_two(redis: RedisServer) -> None:
    with hosts_on(redis, 2, lease_s=30.0, restart=True) as hosts:
        name = next(f"Account/again-{number}" for number in range(50) if hosts.home_of(f"Account/again-{number}"))
        hosts.callers[0].call(name, "add", 3)
        hosts.kill(1)
        killed = time.monotonic()
        assert hosts.callers[0].sure(name, "balance") == 3
        assert time.monotonic() - killed < 10, "the lease of 30 s was waited for"


@CHILDREN_TOO
def test_an_agent_moves_with_its_state_when_it_is_told_to(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        name = "Account/moved"
        hosts.callers[0].call(name, "add", 5)
        for _ in range(4):
            before = hosts.home_of(name)
            row = hosts.callers[0].ask("", Op.MOVE, id=f"cluster:shop/{name}")
            assert row["address"] == f"127.0.0.1:{hosts.launchers[1 - before].port}"
            assert hosts.home_of(name) == 1 - before
            assert [caller.call(name, "balance") for caller in hosts.callers] == [5, 5]


@CHILDREN_TOO
def test_an_agent_that_nobody_has_called_since_it_moved_moves_again(redis: RedisServer) -> None:
    with hosts_on(redis, 3) as hosts:
        name = "Account/to-and-fro"
        hosts.callers[0].call(name, "add", 5)
        homes = []
        for number in range(9):
            to = f"127.0.0.1:{hosts.launchers[number % 3].port}"
            if hosts.callers[0].ask("", Op.WHERE, id=f"cluster:shop/{name}")["address"] != to:
                row = hosts.callers[number // 3].ask("", Op.MOVE, id=f"cluster:shop/{name}", to=to)
                assert row["address"] == to
                homes.append(to)
        assert len(homes) >= 8
        assert hosts.home_of(name) == 2
        assert hosts.callers[0].call(name, "balance") == 5


def test_an_agent_that_can_go_nowhere_stays(redis: RedisServer) -> None:
    with hosts_on(redis, 1) as hosts:
        hosts.callers[0].call("Account/stays", "add", 5)
        with pytest.raises(NoHost, match="stays"):
            hosts.callers[0].ask("", Op.MOVE, id="cluster:shop/Account/stays")
        assert hosts.callers[0].call("Account/stays", "balance") == 5


def test_a_host_that_ends_gives_its_agents_away_and_no_call_fails(redis: RedisServer) -> None:
    with hosts_on(redis, 3, grace_s=10.0) as hosts:
        names = [f"Account/drained-{number}" for number in range(180)]  # each host has seen many short ends
        for name in names:
            hosts.callers[0].call(name, "add", 1)
        waiters = []
        hosts.callers[2].ask("", Op.DRAIN)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            waiters += [(name, hosts.callers[0].begin(name, "add", 1)) for name in names[::15]]
            time.sleep(0.02)
        for _, waiter in waiters:
            assert isinstance(result_of(waiter), int)
        assert eventually(lambda: not hosts.launchers[2].is_running, 15)
        for name in names:
            told = sum(each == name for each, _ in waiters)
            assert hosts.callers[1].call(name, "balance") == 1 + told


def test_agents_that_were_given_to_a_host_which_goes_as_well_are_had_elsewhere_meanwhile(redis: RedisServer) -> None:
    with hosts_on(redis, 3, grace_s=20.0) as hosts:
        first, names = hosts.callers[0], [f"Account/handed-{number}" for number in range(60)]
        for name in names:
            first.call(name, "add", 1)
        hosts.callers[2].ask("", Op.DRAIN)
        assert eventually(lambda: not hosts.launchers[2].is_running, 20)
        handed = [name for name in names if first.ask("", Op.WHERE, id=f"cluster:shop/{name}")["server_id"]
                  == hosts.launchers[1].server_id]  # fmt: skip
        keeper = next(name for name in (f"Account/keeper-{n}" for n in range(99)) if hosts.home_of(name) == 1)
        running = first.begin(keeper, "slow", 6.0)
        hosts.callers[1].ask("", Op.DRAIN)
        begun = time.monotonic()
        assert [first.call(name, "balance", timeout=15) for name in handed] == [1] * len(handed)
        assert time.monotonic() - begun < 5, "they waited for the end of the host that goes"
        assert len(handed) > 10
        assert result_of(running) == 0


@CHILDREN_TOO
def test_agents_are_made_with_arguments_and_found_and_deleted_by_name(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        one, two = hosts.callers
        about: dict[str, Any] = {"id": "cluster:shop/Account/made", "class": "Account"}
        one.ask("", Op.CREATE, "CHF", **about)
        with pytest.raises(AgentExists):
            two.ask("", Op.CREATE, "USD", **about)
        two.ask("", Op.CREATE, "USD", **about, if_exists="get")
        row = two.ask("", Op.WHERE, id=about["id"])
        assert row["address"] in {f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers}
        one.ask("", Op.MOVE, id=about["id"])
        one.ask(about["id"], "add", 5)
        assert two.ask("", Op.DELETE, id=about["id"]) is True
        assert two.ask("", Op.DELETE, id=about["id"]) is True
        assert one.ask("", Op.WHERE, id=about["id"])["epoch"] == 0
        assert one.call("Account/made", "balance") == 0


def test_the_hosts_agents_and_events_of_a_cluster_are_listed(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for number in range(20):
            hosts.callers[0].call(f"Forgetful/listed-{number}", "call")
        rows = hosts.callers[1].ask("", Op.HOSTS)
        assert rows[0]["address"] == f"127.0.0.1:{hosts.launchers[1].port}"
        assert {row["state"] for row in rows} == {"held"}
        assert all(row["classes"]["Account"] == 2 for row in rows)
        found, after = [], ""
        while True:
            page = hosts.callers[0].ask("", Op.LIST, cluster=True, prefix="Forgetful/listed-", after=after, most=7)
            found += [row["agent"] for row in page["rows"]]
            after = page["following"]
            if not after:
                break
        assert sorted(found) == sorted(f"cluster:shop/Forgetful/listed-{number}" for number in range(20))
        events = hosts.callers[0].ask("", Op.EVENTS)
        assert "joined" in {row["kind"] for row in events["rows"]}
        assert hosts.callers[0].ask("", Op.EVENTS, after=events["following"])["rows"] == []


def test_a_host_without_a_cluster_answers_none_of_that(redis: RedisServer) -> None:
    with hosts_on(redis, 1, cluster="") as hosts:
        for op in (Op.HOSTS, Op.WHERE, Op.EVENTS, Op.MOVE, Op.DRAIN):
            with pytest.raises(ZmqAgentsError, match="member of no cluster"):
                hosts.callers[0].ask("", op)


@CHILDREN_TOO
def test_calls_of_one_client_keep_their_order_while_the_agent_moves(redis: RedisServer) -> None:
    with hosts_on(redis, 3) as hosts:
        caller, waiters, moves = hosts.callers[0], [], 0
        assert caller.call("Diary/ordered", "read") == []
        for number in range(300):
            waiters.append(caller.begin("Diary/ordered", "note", number))
            if number % 60 == 59:
                with contextlib.suppress(UnknownAgent):  # it is on its way
                    hosts.callers[1].ask("", Op.MOVE, id="cluster:shop/Diary/ordered")
                    moves += 1
        assert moves
        for waiter in waiters:
            result_of(waiter)
        assert caller.call("Diary/ordered", "read") == list(range(300))


@CHILDREN_TOO
def test_agents_call_agents_on_other_hosts_also_while_they_are_made(redis: RedisServer) -> None:
    with hosts_on(redis, 3, capacity=4) as hosts:
        waiters = [hosts.callers[n % 3].begin(f"Teller/{n}", "ask", "Account/of-tellers", "balance") for n in range(90)]
        for waiter in waiters:
            assert result_of(waiter) >= 1
        assert hosts.callers[0].call("Account/of-tellers", "balance") == 90
        names = [f"Teller/{n}" for n in range(12)]
        assert hosts.callers[1].call("Teller/first", "chain", names) == 13


@CHILDREN_TOO
def test_a_chain_of_calls_that_comes_back_over_another_host_is_refused_and_does_not_hang(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for number in range(6):
            for name in (f"Teller/a{number}", f"Teller/b{number}"):
                hosts.callers[0].call(name, "chain", [])
        rows = [hosts.callers[0].ask("", Op.WHERE, id=f"cluster:shop/Teller/{n}") for n in ("a0", "b0", "a1", "b1")]
        assert all(row["address"] for row in rows)
        for number in range(6):
            with pytest.raises(DeadlockError):
                hosts.callers[number % 2].call(
                    f"Teller/a{number}", "chain", [f"Teller/b{number}", f"Teller/a{number}"], timeout=60
                )


@CHILDREN_TOO
def test_results_that_are_kept_are_found_from_every_host(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        for number in range(8):
            waiter = hosts.callers[0].begin(f"Account/kept-{number}", "add", number, flags=Flag.DETACHED)
            assert result_of(waiter) == number
            task_id = hosts.callers[0].task_of(waiter)
            assert [caller.fetched(task_id) for caller in hosts.callers] == [number, number]


@CHILDREN_TOO
def test_what_is_saved_when_idle_is_kept_when_it_leaves_and_when_it_says_so(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        first = hosts.callers[0]
        first.call("Lazy/moves", "put", 1)
        assert first.ask("", Op.WHERE, id="cluster:shop/Lazy/moves")["revision"] == 0, "saved without being told to"
        first.ask("", Op.MOVE, id="cluster:shop/Lazy/moves")
        assert first.call("Lazy/moves", "get") == [1, 2], "the version that was written is state_writes"
        first.call("Lazy/says", "put", 2)
        first.call("Lazy/says", "save_now")
        assert first.ask("", Op.WHERE, id="cluster:shop/Lazy/says")["revision"] == 1
    with hosts_on(redis, 1) as hosts:
        assert hosts.callers[0].call("Lazy/moves", "get") == [1, 2]


@CHILDREN_TOO
def test_the_fence_that_code_is_shown_is_the_epoch_and_rises_when_the_agent_moves(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts:
        first, name = hosts.callers[0], "Account/fenced"
        fences = [first.call(name, "fence")]
        for _ in range(3):
            first.ask("", Op.MOVE, id=f"cluster:shop/{name}")
            fences.append(first.call(name, "fence"))
        assert 0 < fences[0] < fences[1] < fences[2] < fences[3]
        assert first.ask("", Op.WHERE, id=f"cluster:shop/{name}")["epoch"] == fences[-1]
        with RpcClient("127.0.0.1", hosts.launchers[0].port) as client:
            plain: Any = client.create_agent(Account)
            assert plain.fence() == 0, "outside a cluster nothing is fenced"
