"""Agents of a cluster whose code runs in child processes: what a crash takes along, and what it does not."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster_hosts import Hosts, hosts_on, result_of
from hosts import eventually, freeze, is_gone
from redis_server import RedisServer
from scale import linux_only
from zmqagents import AgentBase, AgentCrashed, Cluster, RpcClient, agent, concurrent, once, stream_func
from zmqagents.agents.context import CallContext, current_call
from zmqagents.errors import CallLost, CallTimeout, ConfigError, DeadlockError, Fenced, HostBusy, NoHost
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("pidfd")]


def the_call() -> CallContext:
    call = current_call()
    assert call is not None
    return call


def task() -> str:
    """An id as senders make it."""
    return f"{secrets.token_hex(8)}-1"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def first_time(path: str) -> bool:
    """Whether nobody has asked for this path before."""
    is_first = not Path(path).exists()
    Path(path).touch()
    return is_first


class Safe(AgentBase, isolation="pool"):
    """Counts in a shared process."""

    def __init__(self, currency: str = "EUR") -> None:
        self.currency, self.cents, self.dies_saving, self.cannot_save = currency, 0, False, False

    def save_state(self) -> int:
        if self.dies_saving:
            die()
        if self.cannot_save:
            raise ValueError("not now")
        return self.cents

    def load_state(self, state: int) -> None:
        self.cents = state

    def add(self, cents: int) -> int:
        self.cents += cents
        return self.cents

    def balance(self) -> int:
        return self.cents

    def kind(self) -> str:
        return self.currency

    def process(self) -> int:
        return os.getpid()

    def fence(self) -> int:
        return the_call().fence

    def add_and_die(self, cents: int) -> None:
        self.cents += cents
        die()

    def add_save_and_die(self, cents: int) -> None:
        self.cents += cents
        the_call().save()
        die()

    def add_and_die_saving(self, cents: int) -> None:
        self.cents += cents
        self.dies_saving = True

    @once
    def pay(self, cents: int) -> int:
        self.cents += cents
        return self.cents

    @once
    def pay_but_die_first(self, cents: int, path: str) -> int:
        """The first time its process has told the state of this call, and not its end."""
        self.cents += cents
        the_call().save()
        if first_time(path):
            die()
        return self.cents

    @once
    def pay_and_remind(self, cents: int, path: str) -> int:
        the_call().remind("paid", after=3600.0, method="add", args=[1])
        return int(Safe.pay_but_die_first(self, cents, path))

    @once
    def pay_and_keep_it_back(self, cents: int, path: str) -> int:
        """Its state cannot be saved the first time."""
        self.cents += cents
        self.cannot_save = first_time(path)
        return self.cents

    def remind_and_die(self, path: str) -> None:
        the_call().remind("never", after=0.1, method="touch", args=[path])
        die()

    def touch(self, path: str) -> None:
        Path(path).touch()

    def remind_of_tick(self, path: str) -> None:
        the_call().remind("tick", after=0.1, method="tick", args=[path])

    def tick(self, path: str) -> None:
        """Counts, and dies the first time."""
        self.cents += 1
        the_call().save()
        if first_time(path):
            die()

    def remind_often(self, count: int) -> None:
        for number in range(count):
            the_call().remind(f"r{number}", after=3600.0, method="add", args=[1])

    def stuck(self, seconds: float, path: str = "") -> int:
        """Does not look whether it is to stop, and changes the state at its end."""
        time.sleep(seconds)
        self.cents += 1000
        if path:
            Path(path).touch()
        return self.cents

    def wait_and_tell(self, path: str) -> None:
        """Notes that it was told to stop."""
        if the_call().wait_cancelled(60):
            Path(path).touch()
        self.cents += 1000

    @concurrent
    def look(self, seconds: float) -> int:
        the_call().wait_cancelled(seconds)
        return self.cents

    @stream_func
    def count(self, most: int) -> Iterator[int]:
        for number in range(most):
            self.cents += 1
            yield number

    def ask(self, name: str, method: str, *args: Any) -> Any:
        return getattr(self.known(name), method)(*args)

    def known(self, name: str) -> Any:
        return the_call().client().get_agent(f"cluster:shop/{name}")


class Vault(Safe, isolation="process"):
    """The same in a process of its own."""


@agent(persist="idle", isolation="pool", idle_s=0.4)
class Slack(AgentBase):
    """Is saved when it leaves its host, and when it says so."""

    def __init__(self) -> None:
        self.number = 0

    def save_state(self) -> int:
        return self.number

    def load_state(self, state: int) -> None:
        self.number = state

    def put(self, number: int, saves: bool = False) -> int:
        self.number = number
        if saves:
            the_call().save()
        return os.getpid()

    def get(self) -> int:
        return self.number


class Frail(AgentBase, isolation="pool"):
    """Cannot be made again as long as there is a file."""

    def __init__(self) -> None:
        self.path = ""

    def save_state(self) -> str:
        return self.path

    def load_state(self, state: str) -> None:
        self.path = state
        if self.path and Path(self.path).exists():
            raise OSError("no")

    def break_down(self, path: str) -> None:
        self.path = path
        Path(path).touch()
        the_call().save()
        die()

    def get(self) -> str:
        return self.path


class Keeper(AgentBase, isolation="pool"):
    """Knows agents, and keeps that."""

    def __init__(self) -> None:
        self.known: list[Any] = []

    def save_state(self) -> list[Any]:
        return self.known

    def load_state(self, state: list[Any]) -> None:
        self.known = state

    def learn(self, agent: Any) -> None:
        self.known.append(agent)

    def total(self) -> int:
        return sum(agent.balance() for agent in self.known)

    def process(self) -> int:
        return os.getpid()


class Fatal(AgentBase, isolation="pool"):
    """Ends its process when it is made."""

    def __init__(self) -> None:
        die()

    def call(self) -> int:
        return 1


class Nested(AgentBase, isolation="pool", placement="local"):
    """Calls another one while it is made, down to the last."""

    def __init__(self) -> None:
        chain, _, depth = self.agent_id.rpartition("/")[2].partition("-")
        self.depth = 0
        if int(depth):
            near = the_call().client().get_agent(f"cluster:shop/Nested/{chain}-{int(depth) - 1}")
            self.depth = 1 + near.get()

    def get(self) -> int:
        return self.depth


OURS = [Safe, Vault, Slack, Frail, Keeper, Fatal, Nested]
BOTH = pytest.mark.parametrize("cls", ["Safe", "Vault"])


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    with hosts_on(lasting_redis, 2, classes=OURS, processes=1) as hosts:
        yield hosts


def where(hosts: Hosts, name: str) -> dict[str, Any]:
    row: dict[str, Any] = hosts.callers[0].ask("", Op.WHERE, id=f"cluster:shop/{name}")
    return row


@BOTH
def test_its_code_runs_in_a_child_of_its_host_and_its_state_is_kept_before_the_answer(hosts: Hosts, cls: str) -> None:
    names = [f"{cls}/counts-{number}" for number in range(4)]
    for expected in (1, 2, 3):
        for name in names:
            assert hosts.callers[expected % 2].call(name, "add", 1) == expected
            assert where(hosts, name)["revision"] >= expected
    processes = {hosts.callers[0].call(name, "process") for name in names}
    assert not processes & {launcher.pid for launcher in hosts.launchers}
    assert {psutil.Process(process).ppid() for process in processes} <= {launcher.pid for launcher in hosts.launchers}
    assert hosts.callers[0].stream(names[0], "count", 30) == list(range(30))
    assert hosts.callers[1].call(names[0], "balance") == 33
    assert hosts.callers[1].call(names[0], "fence") == where(hosts, names[0])["epoch"]


@BOTH
def test_a_crash_takes_the_call_that_runs_and_what_it_has_changed_and_nothing_else(hosts: Hosts, cls: str) -> None:
    name, caller = f"{cls}/crashes", hosts.callers[0]
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        cluster.create_agent(cls, "CHF", name="crashes")
    assert caller.call(name, "add", 5) == 5
    epoch = where(hosts, name)["epoch"]
    doomed, queued = caller.begin(name, "add_and_die", 100), [caller.begin(name, "add", 1) for _ in range(5)]
    with pytest.raises(AgentCrashed, match="SIGKILL"):
        result_of(doomed)
    assert [result_of(each) for each in queued] == [6, 7, 8, 9, 10]
    assert caller.call(name, "kind") == "CHF", "it was made again from other arguments"
    assert caller.call(name, "fence") == where(hosts, name)["epoch"] == epoch, "it is another activation"
    with pytest.raises(AgentCrashed):
        caller.call(name, "add_and_die_saving", 100)
    assert caller.call(name, "add", 1) == 11, "a state that was not saved was seen"
    with pytest.raises(AgentCrashed):
        caller.call(name, "add_save_and_die", 100)
    assert caller.call(name, "add", 1) == 112, "a state that was saved by its own word is lost"
    caller.ask("", Op.MOVE, id=f"cluster:shop/{name}")
    assert caller.call(name, "add", 1) == 113
    assert caller.call(name, "kind") == "CHF"


@BOTH
def test_calls_that_wait_for_a_new_process_go_on_where_the_agent_goes(hosts: Hosts, cls: str) -> None:
    name, caller = f"{cls}/goes", hosts.callers[0]
    assert caller.call(name, "add", 5) == 5
    os.kill(caller.call(name, "process"), signal.SIGKILL)
    queued = [caller.begin(name, "add", 1) for _ in range(5)]
    row = caller.ask("", Op.MOVE, id=f"cluster:shop/{name}")
    told = []
    for each in queued:
        try:
            told.append(result_of(each))
        except AgentCrashed:  # it had begun before the host knew of the end
            assert not told
    assert told == list(range(6, 6 + len(told)))
    assert len(told) >= 4
    assert where(hosts, name)["address"] == row["address"]


@BOTH
def test_a_once_call_that_crashes_has_neither_an_outcome_nor_an_effect(hosts: Hosts, cls: str, tmp_path: Path) -> None:
    name, caller, same = f"{cls}/pays", hosts.callers[0], task()
    assert caller.call(name, "pay", 10) == 10
    path, epoch = str(tmp_path / "first"), where(hosts, name)["epoch"]
    with pytest.raises(AgentCrashed):
        result_of(caller.begin(name, "pay_but_die_first", 5, path, task=same))
    assert caller.call(name, "balance") == 10, "the state of a call without an outcome was seen"
    for each in hosts.callers:
        assert result_of(each.begin(name, "pay_but_die_first", 5, path, task=same)) == 15, "the crash is its outcome"
    assert caller.call(name, "balance") == 15, "it has counted twice"
    with pytest.raises(AgentCrashed):
        caller.call(name, "pay_and_remind", 5, str(tmp_path / "second"))
    assert where(hosts, name)["reminders"] == []
    assert caller.call(name, "pay_and_remind", 5, str(tmp_path / "second")) == 20
    assert [row["name"] for row in where(hosts, name)["reminders"]] == ["paid"]
    assert where(hosts, name)["epoch"] == epoch


@BOTH
def test_a_once_call_whose_state_cannot_be_saved_has_no_effect_and_may_come_again(
    hosts: Hosts, cls: str, tmp_path: Path
) -> None:
    name, caller, same, path = f"{cls}/keeps-back", hosts.callers[0], task(), str(tmp_path / "first")
    assert caller.call(name, "pay", 10) == 10
    with pytest.raises(ValueError, match="not now"):
        result_of(caller.begin(name, "pay_and_keep_it_back", 5, path, task=same))
    assert caller.call(name, "balance") == 10
    for each in hosts.callers:
        assert result_of(each.begin(name, "pay_and_keep_it_back", 5, path, task=same)) == 15
    assert caller.call(name, "balance") == 15


def test_an_agent_that_cannot_be_made_again_says_why_and_is_tried_at_each_call(hosts: Hosts, tmp_path: Path) -> None:
    caller, path = hosts.callers[0], tmp_path / "broken"
    assert caller.call("Frail/one", "get") == ""
    with pytest.raises(AgentCrashed):
        caller.call("Frail/one", "break_down", str(path))
    for _ in range(2):
        with pytest.raises(AgentCrashed, match="could not be made again after its process had ended"):
            caller.call("Frail/one", "get")
    path.unlink()
    assert caller.call("Frail/one", "get") == str(path)


def test_a_call_that_does_not_end_at_its_deadline_has_its_own_process_killed(hosts: Hosts) -> None:
    caller, name = hosts.callers[0], "Vault/strict"
    about: dict[str, Any] = {"id": f"cluster:shop/{name}", "class": "Vault", "on_timeout": "kill"}
    caller.ask("", Op.CREATE, **about)
    assert caller.call(name, "add", 5) == 5
    process = caller.call(name, "process")
    with pytest.raises(CallTimeout):
        caller.call(name, "stuck", 60.0, timeout=0.3)
    assert caller.call(name, "balance", timeout=30) == 5, "the next call does not wait for its end"
    assert caller.call(name, "process") != process


def test_a_tick_that_crashes_comes_again_and_counts_once(hosts: Hosts, tmp_path: Path) -> None:
    name, caller, path = "Safe/reminded", hosts.callers[0], str(tmp_path / "first")
    caller.call(name, "remind_of_tick", path)
    assert eventually(lambda: Path(path).exists(), 20)
    assert eventually(lambda: caller.sure(name, "balance") == 1, 20)
    assert eventually(lambda: where(hosts, name)["reminders"] == [], 10)
    assert caller.call(name, "balance") == 1
    never = str(tmp_path / "never")
    with pytest.raises(AgentCrashed):
        caller.call(name, "remind_and_die", never)
    assert where(hosts, name)["reminders"] == []
    assert caller.call(name, "add", 1) == 2
    assert not Path(never).exists()


def test_more_reminders_than_an_agent_may_have_are_refused_at_the_end_of_the_call(hosts: Hosts) -> None:
    with pytest.raises(HostBusy, match="64 reminders"):
        hosts.callers[0].call("Safe/forgets", "remind_often", 65)
    assert len(where(hosts, "Safe/forgets")["reminders"]) == 64


def test_what_is_idle_is_saved_by_its_process_and_given_back(hosts: Hosts) -> None:
    caller = hosts.callers[0]
    caller.call("Slack/slack", "put", 7)
    assert where(hosts, "Slack/slack")["revision"] == 0
    assert eventually(lambda: not where(hosts, "Slack/slack")["address"], 20)
    assert caller.call("Slack/slack", "get") == 7
    caller.call("Slack/slack", "put", 8, True)
    process = caller.call("Slack/slack", "put", 9)
    os.kill(process, signal.SIGKILL)
    assert eventually(lambda: is_gone(process), 10)
    assert caller.sure("Slack/slack", "get") == 8, "what was saved last by its own word"


def test_references_to_agents_of_the_cluster_lead_there_from_a_process(hosts: Hosts) -> None:
    caller = hosts.callers[0]
    for number in range(6):
        mine, other = f"Safe/calls-{number}", f"Vault/called-{number % 2}"
        assert caller.call(mine, "ask", f"Account/called-{number}", "add", 3) == 3, "to an agent in a thread"
        assert caller.call(mine, "ask", f"Safe/called-{number}", "add", 4) == 4
        caller.call(mine, "ask", other, "add", 5)
        assert caller.call(f"Teller/calls-{number}", "ask", f"Safe/called-{number}", "add", 4) == 8
        with pytest.raises(DeadlockError):
            caller.call(mine, "ask", mine, "balance")
        caller.call("Safe/tells", "ask", "Keeper/keeps", "learn", caller.call(mine, "known", f"Safe/called-{number}"))
    assert caller.call("Keeper/keeps", "total") == 48
    os.kill(caller.call("Keeper/keeps", "process"), signal.SIGKILL)
    assert caller.sure("Keeper/keeps", "total") == 48, "its state knows them no more"
    caller.ask("", Op.MOVE, id="cluster:shop/Keeper/keeps")
    assert caller.call("Keeper/keeps", "total") == 48


@BOTH
def test_it_moves_with_its_state_and_when_it_goes_its_own_process_goes(hosts: Hosts, cls: str) -> None:
    name, caller, fences = f"{cls}/moves", hosts.callers[0], []
    caller.call(name, "add", 5)
    for expected in range(6, 10):
        before = hosts.home_of(name)
        caller.ask("", Op.MOVE, id=f"cluster:shop/{name}")
        assert hosts.home_of(name) == 1 - before
        assert caller.call(name, "add", 1) == expected
        fences.append(caller.call(name, "fence"))
    assert sorted(set(fences)) == fences
    process = caller.call(name, "process")
    assert caller.ask("", Op.DELETE, id=f"cluster:shop/{name}")
    assert where(hosts, name)["epoch"] == 0
    assert cls == "Safe" or eventually(lambda: is_gone(process), 10)
    assert caller.call(name, "balance") == 0


def test_a_member_has_agents_of_its_own_in_processes_too(hosts: Hosts) -> None:
    with RpcClient("127.0.0.1", hosts.launchers[0].port) as client, client.create_agent(Vault) as vault:
        assert psutil.Process(vault.process()).ppid() == hosts.launchers[0].pid
        assert vault.add(1) == 1
        assert vault.fence() == 0
        with pytest.raises(ConfigError, match="no agent of a cluster"):
            vault.remind_often(1)


def test_environment_variables_are_a_matter_of_the_class(hosts: Hosts) -> None:
    with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
        options = {"isolation": "process", "env": {"LD_PRELOAD": "evil.so"}}
        with pytest.raises(ConfigError, match="a matter of its class"):
            cluster.create_agent(Vault, name="steered", agent_options=options)
        limited = cluster.create_agent(Safe, name="apart", agent_options={"isolation": "process", "memory_mb": 512})
        plain = cluster.create_agent(Safe, name="inside", agent_options={"isolation": "thread"})
        assert psutil.Process(limited.process()).ppid() in (pids := [launcher.pid for launcher in hosts.launchers])
        assert plain.process() in pids


def test_an_agent_that_ends_its_process_when_it_is_made_is_given_up_and_others_go_on(redis: RedisServer) -> None:
    with hosts_on(redis, 1, classes=OURS, processes=1) as hosts:
        caller = hosts.callers[0]
        caller.call("Safe/beside", "add", 1)
        for _ in range(5):
            with pytest.raises(AgentCrashed, match="SIGKILL"):
                caller.call("Fatal/one", "call", timeout=60)
        before = caller.call("Safe/beside", "process")
        begun = time.monotonic()
        for _ in range(20):
            with pytest.raises(AgentCrashed, match="max_restarts=5"):
                caller.call("Fatal/one", "call")
        assert time.monotonic() - begun < 5, "its process was started for each call"
        assert caller.call("Safe/beside", "process") == before, "calls of another agent end its process"
        assert caller.call("Safe/beside", "add", 1) == 2


def test_activations_that_wait_for_each_other_are_never_stuck(redis: RedisServer) -> None:
    with hosts_on(redis, 1, classes=OURS, processes=2, capacity=4) as hosts:
        waiters = [hosts.callers[0].begin(f"Nested/{chain}-2", "get", timeout=60) for chain in range(64)]
        assert [result_of(waiter, 60) for waiter in waiters] == [2] * 64


def test_a_host_has_so_many_processes_and_says_so_when_it_has_no_more(redis: RedisServer) -> None:
    with hosts_on(redis, 1, classes=OURS, max_children=2) as hosts:
        for name in ("Vault/one", "Vault/two"):
            hosts.callers[0].call(name, "add", 1)
        with pytest.raises(NoHost, match="max_children"):
            hosts.callers[0].call("Vault/three", "add", 1)
        hosts.callers[0].ask("", Op.DELETE, id="cluster:shop/Vault/one")
        assert eventually(lambda: len(hosts.callers[0].ask("", Op.CHILDREN)) < 3, 10)
        assert hosts.callers[0].call("Vault/three", "add", 1) == 1


@BOTH
def test_what_a_fenced_activation_has_changed_in_its_process_is_not_kept(redis: RedisServer, cls: str) -> None:
    """As if another host had claimed the agent meanwhile, and given it back."""
    with hosts_on(redis, 1, classes=OURS, processes=1) as hosts:
        caller, name = hosts.callers[0], f"{cls}/lost"
        assert caller.call(name, "add", 5) == 5
        process, fence = caller.call(name, "process"), caller.call(name, "fence")
        stuck = caller.begin(name, "stuck", 2.0)
        assert eventually(lambda: caller.running() == 1, 10)
        with redis.client as records:
            (key,) = records.keys(f"za:*:a:{name}")
            records.hset(key, mapping={"own": "", "ep": int(records.hget(key, "ep")) + 1_000_000})
        with pytest.raises(Fenced):
            result_of(stuck)
        assert caller.call(name, "add", 1) == 6
        assert caller.call(name, "fence") > fence + 1_000_000
        assert cls == "Safe" or caller.call(name, "process") != process


@BOTH
def test_a_host_that_is_taken_for_dead_stops_the_calls_in_its_processes(
    redis: RedisServer, cls: str, tmp_path: Path
) -> None:
    with hosts_on(redis, 2, classes=OURS, lease_s=1.5, processes=1) as hosts:
        caller = hosts.callers[0]
        name, stubborn = (
            next(f"{cls}/{key}-{n}" for n in range(50) if hosts.home_of(f"{cls}/{key}-{n}") == 1)
            for key in ("frozen", "stubborn")
        )
        for each in (name, stubborn):
            caller.call(each, "add", 7)
        process, told, over = caller.call(stubborn, "process"), tmp_path / "told", tmp_path / "over"
        waiter = caller.begin(name, "wait_and_tell", str(told), timeout=60)
        stuck = caller.begin(stubborn, "stuck", 14.0, str(over), timeout=60)
        assert eventually(lambda: hosts.callers[1].running() == 2, 10)
        freeze(hosts.launchers[1].pid)
        try:
            for each in (name, stubborn):
                assert caller.sure(each, "balance") == 7
                assert hosts.home_of(each) == 0
        finally:
            os.kill(hosts.launchers[1].pid or 0, signal.SIGCONT)
        for lost in (waiter, stuck):
            with pytest.raises(CallLost):
                result_of(lost, 30)
        assert eventually(told.exists, 20), "its code was not told to stop"
        assert eventually(lambda: hosts.all_know(2), 20)
        if cls == "Vault":
            assert eventually(lambda: is_gone(process), 20), "code of an agent that is lost goes on in its own process"
        caller.ask("", Op.MOVE, id=f"cluster:shop/{stubborn}", to=f"127.0.0.1:{hosts.launchers[1].port}")
        assert caller.call(stubborn, "add", 1) == 8
        assert hosts.home_of(stubborn) == 1
        assert caller.call(stubborn, "process") != process
        assert not over.exists()
        if cls == "Safe":
            assert eventually(over.exists, 30)
            assert eventually(lambda: hosts.callers[1].running() == 0, 10)
        assert [caller.call(each, "balance") for each in (name, stubborn)] == [7, 8]


@BOTH
def test_a_host_that_ends_gives_agents_in_processes_away_and_no_call_fails(redis: RedisServer, cls: str) -> None:
    with hosts_on(redis, 2, classes=OURS, grace_s=20.0, processes=1) as hosts:
        caller, names = hosts.callers[0], [f"{cls}/d{number}" for number in range(20 if cls == "Safe" else 4)]
        for name in names:
            caller.call(name, "add", 1)
        running = [caller.begin(name, "look", 1.0) for name in names]
        hosts.callers[1].ask("", Op.DRAIN)
        waiters, end = [], time.monotonic() + 1.5
        while time.monotonic() < end:
            waiters += [(name, caller.begin(name, "add", 1)) for name in names[::3]]
            time.sleep(0.05)
        assert all(isinstance(result_of(each), int) for each in running)
        for _, waiter in waiters:
            assert isinstance(result_of(waiter), int)
        assert eventually(lambda: not hosts.launchers[1].is_running, 25)
        for name in names:
            assert caller.call(name, "balance") == 1 + sum(each == name for each, _ in waiters)
        caller.call("Slack/last", "put", 5)
        hosts.launchers[0].shutdown()  # the last one: it saves what it has
    with hosts_on(redis, 1, classes=OURS) as hosts:
        assert hosts.callers[0].call(names[1], "balance") == 1
        assert hosts.callers[0].call("Slack/last", "get") == 5


def test_a_killed_host_takes_its_processes_along_and_its_agents_go_on_elsewhere(redis: RedisServer) -> None:
    with hosts_on(redis, 2, classes=OURS, lease_s=2.0, processes=1) as hosts:
        caller, names = hosts.callers[0], [f"{cls}/k{number}" for number in range(3) for cls in ("Safe", "Vault")]
        processes = set()
        for name in names:
            caller.call(name, "add", 7)
            if hosts.home_of(name) == 1:
                processes.add(caller.call(name, "process"))
        assert processes
        hosts.kill(1)
        assert eventually(lambda: all(map(is_gone, processes)), 10)
        for name in names:
            assert caller.sure(name, "balance") == 7
            assert caller.call(name, "add", 1) == 8


def test_no_count_that_was_told_is_lost_or_told_twice_while_processes_are_killed(redis: RedisServer) -> None:
    with hosts_on(redis, 2, classes=OURS, processes=1) as hosts:
        names = [f"{cls}/c{number}" for number in range(3) for cls in ("Safe", "Vault")]
        for name in names:
            about: dict[str, Any] = {"id": f"cluster:shop/{name}", "class": name.partition("/")[0]}
            hosts.callers[0].ask("", Op.CREATE, **about, max_restarts=1000)
        told: dict[str, list[int]] = {name: [] for name in names}
        paid: dict[str, list[int]] = {name: [] for name in names}
        end = time.monotonic() + 6

        def count(name: str) -> None:
            caller = hosts.callers[names.index(name) % 2]
            while time.monotonic() < end:
                try:
                    told[name].append(caller.call(name, "add", 1))
                except CallLost:
                    told[name].append(-1)
                same = task()
                for _ in range(50):
                    try:
                        paid[name].append(result_of(caller.begin(name, "pay", 1000, task=same)))
                        break
                    except CallLost:
                        continue

        threads = [threading.Thread(target=count, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        kills = 0
        while time.monotonic() < end:
            time.sleep(0.6)  # the load itself, not a wait for something
            for index in range(2):
                for row in hosts.callers[index].ask("", Op.CHILDREN):
                    if row["pid"] and row["agents"] and (kills := kills + 1):
                        os.kill(row["pid"], signal.SIGKILL)
        for thread in threads:
            thread.join(60)
        for name in names:
            lost = told[name].count(-1)
            counts = [each % 1000 for each in told[name] if each != -1]
            assert counts == sorted(set(counts)), "one count was told twice, or an older one after a later"
            balance = hosts.callers[0].call(name, "balance")
            assert max(counts, default=0) <= balance % 1000 <= len(counts) + lost
            assert balance // 1000 == len(paid[name]), "a payment is missing, or was counted twice"
            assert [each // 1000 for each in paid[name]] == list(range(1, len(paid[name]) + 1))
        assert kills > 5
        assert sum(map(len, paid.values())) > 20
