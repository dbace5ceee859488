"""Calls of one client run in their order while their agent moves, and no answer is told that is not kept."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import Caller, Hosts, hosts_on, result_of
from hosts import ENDS_WITHIN_S, eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents import AgentBase, Cluster, agent, current_call, once
from zmqagents.client.proxy import request_body, value_of
from zmqagents.errors import HostStopping, MessageTooLarge, UnknownAgent
from zmqagents.scheduler.records import TICKS
from zmqagents.wire.link import Waiter
from zmqagents.wire.messages import Code, Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]


class Notes(AgentBase):
    """Notes what it is told, in that order."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    def save_state(self) -> list[Any]:
        return self.notes

    def load_state(self, state: list[Any]) -> None:
        self.notes = state

    def note(self, what: Any) -> None:
        self.notes.append(what)

    def note_short(self, what: Any, rest: bytes) -> None:
        """Without the rest."""
        self.notes.append(what)

    def note_when(self, what: Any, path: str) -> None:
        """When there is such a file."""
        call = current_call()
        assert call is not None
        while not Path(path).exists() and not call.wait_cancelled(0.01):
            pass
        call.remind("noted", after=600.0, method="read")
        self.notes.append(what)

    @once
    def note_too_much(self, path: str) -> None:
        """The same, and more than can be saved."""
        self.note_when(bytes(2 << 20), path)

    def read(self) -> list[Any]:
        return self.notes


@agent(idle_s=0.3)
class Passing(Notes):
    """Is given back soon."""


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    with hosts_on(lasting_redis, 2, classes=[Notes, Passing]) as hosts:
        yield hosts


def move_to(hosts: Hosts, name: str, index: int) -> None:
    """Have an agent at that host, by its record; it is made there by its next call."""
    agent_id, address = f"cluster:shop/{name}", f"127.0.0.1:{hosts.launchers[index].port}"
    if hosts.callers[0].ask("", Op.WHERE, id=agent_id)["address"] != address:
        assert hosts.callers[0].ask("", Op.MOVE, id=agent_id, to=address)["address"] == address


def passed_on(caller: Caller, name: str, leg: int, method: str, *args: Any) -> Waiter:
    """A call that another member passes on to the host of ``caller``."""
    task = f"{secrets.token_hex(8)}-1"
    return caller.begin(name, method, *args, task=task, user="uid:0", hop=1, leg=leg)


def test_what_comes_behind_a_call_that_was_turned_away_is_turned_away_although_the_agent_is_here_by_then(
    hosts: Hosts,
) -> None:
    name, there = "Notes/legs", hosts.callers[1]
    hosts.callers[0].call(name, "note", 0)
    move_to(hosts, name, 0)
    assert hosts.callers[0].call(name, "read") == [0]
    assert passed_on(there, name, 7, "note", 1).wait(20).code == Code.ELSEWHERE
    move_to(hosts, name, 1)
    assert passed_on(there, name, 7, "note", 2).wait(20).code == Code.ELSEWHERE, "it would have overtaken the first"
    waiters = [passed_on(there, name, 8, "note", number) for number in (1, 2, 3)]
    for waiter in waiters:
        assert result_of(waiter) is None
    assert passed_on(there, "Notes/another", 7, "note", 1).wait(20).code in (Code.NONE, Code.ELSEWHERE)
    assert hosts.callers[0].call(name, "read") == [0, 1, 2, 3]


def test_more_calls_than_the_way_to_the_next_host_takes_wait_for_their_turn(redis: RedisServer) -> None:
    with contextlib.ExitStack() as stack:
        hosts, name = stack.enter_context(hosts_on(redis, 2, max_calls_per_client=4)), "Account/far"
        hosts.callers[0].call(name, "add", 7)
        move_to(hosts, name, 1)
        assert hosts.callers[0].call(name, "balance") == 7
        callers = [Caller(f"127.0.0.1:{hosts.launchers[0].port}") for _ in range(8)]
        for caller in callers:
            stack.callback(caller.close)
        waiters = [caller.begin(name, "slow_look", 0.2) for _ in range(4) for caller in callers]
        assert [result_of(waiter) for waiter in waiters] == [7] * len(waiters)
        told = hosts.callers[0].status
        assert eventually(lambda: told()["ways"] == 0, 10)
        assert hosts.callers[0].ask("", Op.INFO)["calls_open"] == 0
        assert hosts.callers[0].call(name, "balance") == 7


def test_a_tick_that_was_handed_out_before_is_not_executed_again_however_short_its_method_is(hosts: Hosts) -> None:
    name, caller = "Forgetful/ticked", hosts.callers[0]
    assert [caller.call(name, "call") for _ in range(40)] == list(range(1, 41))
    at = caller.ask("", Op.WHERE, id=f"cluster:shop/{name}")["address"]
    home = next(c for c, host in zip(hosts.callers, hosts.launchers, strict=True) if at.endswith(f":{host.port}"))
    assert result_of(passed_on(home, name, 11, "call")) == 41
    for number in range(5):
        task = f"{TICKS}{number}/early/{name}"
        assert result_of(home.begin(name, "call", task=task, user="uid:0", hop=1, leg=11)) is True
    assert caller.call(name, "call") == 42


def test_a_call_that_was_about_to_begin_when_its_agent_is_given_back_stays_before_those_behind_it(
    hosts: Hosts, tmp_path: Path
) -> None:
    """What the first one has made of the state cannot be saved, so the agent is made anew as it was."""
    caller, name = hosts.callers[0], "Notes/spoiled"
    caller.call(name, "note", 0)
    first = caller.begin(name, "note_too_much", str(tmp_path / "go"))
    waiters = [caller.begin(name, "note", number) for number in range(1, 9)]
    assert caller.ask("", Op.INFO)["server_id"]  # they are there
    (tmp_path / "go").touch()
    with pytest.raises(MessageTooLarge):
        result_of(first)
    for waiter in waiters:
        result_of(waiter)
    assert caller.call(name, "read") == list(range(9))


@pytest.mark.parametrize("long_each", [2, 3, 5, 1000])
def test_short_and_long_calls_of_one_client_keep_their_order_through_another_host_while_the_agent_moves(
    hosts: Hosts, long_each: int
) -> None:
    """Short ones take a shorter way through the host that passes them on."""
    caller, name = hosts.callers[0], f"Notes/mixed-{long_each}"
    caller.call(name, "note", 0)
    waiters, moves, numbers = [], 0, range(1, 241)
    for number in numbers:
        what = [number, bytes(20_000 * (number % long_each == 0))]
        waiters.append(caller.begin(name, "note_short", *what))
        if number % 40 == 0:
            with contextlib.suppress(UnknownAgent):  # it is on its way
                hosts.callers[1].ask("", Op.MOVE, id=f"cluster:shop/{name}")
                moves += 1
    assert moves
    for waiter in waiters:
        assert result_of(waiter) is None
    assert caller.call(name, "read") == [0, *numbers]


def test_calls_that_the_client_sends_again_stay_before_those_that_were_made_later(redis: RedisServer) -> None:
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(hosts_on(redis, 2, classes=[Notes], grace_s=30.0))
        one, two = (f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers)
        cluster = stack.enter_context(Cluster(f"{one},{two}", relay=True))
        notes: Any = cluster.get_agent("drained", cls=Notes)
        notes.note(0)
        move_to(hosts, "Notes/drained", 1)
        first, rest = hosts.callers[0], threading.Event()
        about: dict[str, Any] = {"id": "busy", "class": "Account"}
        first.ask("", Op.CREATE, **about)
        busy = first.link.submit("busy", "slow", request_body(first.link, "slow", (60,), {}), Waiter())
        first.ask("", Op.DRAIN)
        assert eventually(lambda: stops(first, "Notes/drained"), 10)
        stack.callback(rest.set)

        def wait() -> None:
            rest.wait()

        cluster.link.retries.later(0.0, wait)  # so that nothing is sent again for a while
        sent_again = notes.note.aio(1)
        link = cluster.link.connection_at(one)
        assert value_of(link, link.call("", Op.INFO, request_body(link, Op.INFO, (), {})))  # behind the answer to that
        later = [notes.note.aio(number) for number in range(2, 9)]
        assert hosts.callers[1].call("Notes/drained", "read") == [0], "a later one has overtaken the first"
        rest.set()
        notes.note(9)
        assert notes.read() == list(range(10))
        for result in (sent_again, *later):
            assert result.result(10) is None
        first.link.cancel(busy)
        assert eventually(lambda: not hosts.launchers[0].is_running, ENDS_WITHIN_S)


def stops(caller: Caller, name: str) -> bool:
    """Whether a host says that it stops."""
    try:
        caller.call(name, "read")
    except HostStopping:
        return True
    return False


def test_a_call_that_waited_for_its_argument_finds_an_agent_that_was_made_and_given_back_meanwhile(
    hosts: Hosts,
) -> None:
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}", relay=True) as cluster:
        passing: Any = cluster.get_agent("late", cls=Passing)
        slow: Any = cluster.get_agent("slow", cls="Account").slow
        waiting = passing.note.aio(slow.aio(2.0), timeout=15)
        passing.note("first")
        assert eventually(lambda: not cluster.where("Passing/late")["address"], 10)
        assert not waiting.done()
        assert waiting.result(20) is None
        assert passing.read() == ["first", 0]


def test_the_answer_of_a_call_that_ran_when_its_agent_was_told_to_move_waits_for_redis(
    redis: RedisServer, tmp_path: Path
) -> None:
    with hosts_on(redis, 2, classes=[Notes], lease_s=30.0, grace_s=5.0) as hosts:
        name, caller = "Notes/moving", hosts.callers[0]
        caller.call(name, "note", 0)
        move_to(hosts, name, 0)
        caller.call(name, "read")
        running = caller.begin(name, "note_when", 1, str(tmp_path / "go"))
        assert eventually(lambda: caller.ask("", Op.INFO)["running"] == 1, 10)
        mover = threading.Thread(target=move_to, args=(hosts, name, 1))
        mover.start()
        behind = caller.begin(name, "note", 2)
        assert eventually(lambda: caller.status()["ways"] == 1, 10), "it does not leave"
        with redis.frozen():
            (tmp_path / "go").touch()
            assert eventually(lambda: caller.ask("", Op.INFO)["running"] == 0, 10)
            assert caller.status()["ways"] == 1  # what comes behind the end of the call
            assert not running.done, "its state is not kept"
        assert result_of(running) is None
        assert result_of(behind) is None
        mover.join(20)
        assert hosts.callers[1].call(name, "read") == [0, 1, 2]
        row = caller.ask("", Op.WHERE, id=f"cluster:shop/{name}")
        assert [reminder["name"] for reminder in row["reminders"]] == ["noted"], "what its turn has set is lost"
