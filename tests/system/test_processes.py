"""Agents in processes of their own: callers notice nothing, and a crash stays small."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from actors import client_of, client_on_host, host, within
from hosts import as_server, eventually, is_gone, output_of
from zmqagents import (
    AgentBase,
    AgentCrashed,
    AgentProxy,
    CallCancelled,
    CallLost,
    CallTimeout,
    ConfigError,
    DeadlockError,
    HostBusy,
    RpcAgentServerLauncher,
    RpcClient,
    agent,
    async_func,
    codec,
    concurrent,
    current_call,
)
from zmqagents.connection.tasks import program_id

pytestmark = pytest.mark.timeout(120)
CRASH_S = 1.0  # a call whose process has ended hears of it: 0.1 s on a machine that is not busy


class Worker(AgentBase):
    """Does what a test asks for, in whatever process it is."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.count = start

    def pid(self) -> int:
        return os.getpid()

    def call_id(self) -> str:
        call = current_call()
        assert call is not None
        return call.call_id

    def echo(self, value: Any) -> Any:
        return value

    def add(self, n: int = 1) -> int:
        self.count += n
        return self.count

    def numbers(self, n: int) -> Iterator[int]:
        yield from range(n)

    def collects(self) -> bool:
        return gc.isenabled()

    def context(self) -> tuple[str, str, str]:
        call = current_call()
        assert call is not None
        return call.call_id, call.agent, call.method

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def ask(self, other: Any, method: str, *args: Any) -> Any:
        return getattr(other, method)(*args)

    def fail(self) -> None:
        raise KeyError("no such thing")

    @async_func
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @async_func
    def attend(self, seconds: float) -> str:
        call = current_call()
        assert call is not None
        return "told" if call.wait_cancelled(seconds) else "done"

    @async_func
    def leave(self, status: int) -> None:
        print("last words", file=sys.stderr, flush=True)
        os._exit(status)

    @async_func
    def abort(self) -> None:
        os.kill(os.getpid(), signal.SIGABRT)
        time.sleep(10)

    @async_func
    def eat(self, mib: int) -> int:
        eaten = []
        for _ in range(mib):
            eaten.append(bytearray(1 << 20))
            eaten[-1][::4096] = b"x" * 256
            time.sleep(0.001)
        time.sleep(5)
        return len(eaten)

    @async_func
    def hold_the_lock(self, seconds: int) -> None:
        """Keep the interpreter lock in C code."""
        ctypes.PyDLL(None).sleep(seconds)

    @concurrent
    def look(self) -> int:
        return self.count

    def model(self) -> str:  # type: ignore[override]
        return str(self.model_config("m")["model_name"])


@agent(isolation="process", max_restarts=1)
class Fragile(Worker):
    pass


@pytest.fixture(scope="module", params=["pool", "process"])
def server(request: pytest.FixtureRequest) -> Iterator[RpcAgentServerLauncher]:
    with host(Worker, Fragile, isolation=request.param, processes=2) as launcher:
        yield launcher


@pytest.fixture
def worker(client: RpcClient) -> Iterator[AgentProxy]:
    proxy: Any = client.create_agent(Worker, 5)
    yield proxy
    client.delete_agent(proxy.agent_id)


# ---------------------------------------------------------------- callers notice nothing


def test_an_agent_runs_in_another_process_than_its_host(server: RpcAgentServerLauncher, worker: AgentProxy) -> None:
    assert worker.pid() not in (server.pid, os.getpid())
    assert psutil.Process(worker.pid()).ppid() == server.pid


def test_calls_attributes_streams_and_errors_are_as_in_a_thread(worker: AgentProxy) -> None:
    assert (worker.add(2), worker.count, worker.look()) == (7, 7, 7)
    assert list(worker.numbers(100)) == list(range(100))
    with pytest.raises(KeyError, match="no such thing") as caught:
        worker.fail()
    assert (caught.value.agent, caught.value.method) == (worker.agent_id, "fail")  # type: ignore[attr-defined]
    assert worker.echo({"x": [1.5, None, b"y" * 100_000]}) == {"x": [1.5, None, b"y" * 100_000]}


def test_the_code_of_a_call_knows_it_by_the_id_that_its_caller_knows(worker: AgentProxy) -> None:
    call_id, agent_id, method = worker.context()
    assert (agent_id, method) == (worker.agent_id, "context")
    result = worker.nap(0.0)
    assert call_id.rpartition("-")[0] == result.task_id.rpartition("-")[0]


def test_a_result_is_an_argument_before_it_is_there(client: RpcClient, worker: AgentProxy) -> None:
    other: Any = client.create_agent(Worker)
    assert other.echo([worker.nap(0.05)]) == [0.05]


def test_a_process_collects_its_garbage(worker: AgentProxy) -> None:
    assert worker.collects()


def test_agents_call_each_other_in_every_direction(client: RpcClient, worker: AgentProxy) -> None:
    near: Any = client.create_agent(Worker, 1, agent_options={"isolation": "thread"})
    far: Any = client.create_agent(Worker, 2)
    assert near.pid() != far.pid()
    for caller in (near, far, worker):
        for other in (near, far, worker):
            if caller is not other:
                assert caller.ask(other, "look") == other.look()
    assert worker.ask(far, "ask", near, "echo", 7) == 7


def test_a_cancelled_call_is_told_and_keeps_its_turn_until_it_returns(worker: AgentProxy) -> None:
    running = worker.attend(20)
    queued = worker.nap(0.0)
    assert eventually(lambda: worker.look() == 5, 1.0)
    with within(2.0):
        assert running.cancel()
        assert queued.result() == 0.0


def test_a_deadline_is_kept_although_the_code_ignores_it(worker: AgentProxy) -> None:
    with within(2.0), pytest.raises(CallTimeout, match="running"):
        worker.echo(worker.nap(1.0, timeout=0.2))


def test_a_circle_between_two_processes_is_a_deadlock(client: RpcClient, worker: AgentProxy) -> None:
    other: Any = client.create_agent(Worker)
    with within(1.0), pytest.raises(DeadlockError, match=worker.agent_id):
        worker.ask(other, "ask", worker, "echo", 1)


def test_model_configurations_reach_agents_that_are_there_and_those_to_come(
    client: RpcClient, worker: AgentProxy
) -> None:
    client.set_model_configs({"config_name": "m", "model_type": "none", "model_name": "of all"})
    assert worker.model() == "of all"
    later: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    assert later.model() == "of all"


def test_the_lists_tell_in_which_process_an_agent_lives_and_a_call_runs(
    server: RpcAgentServerLauncher, client: RpcClient, worker: AgentProxy
) -> None:
    near: Any = client.create_agent(Worker, agent_options={"isolation": "thread"})
    pid = worker.pid()
    running = [worker.attend(20), near.attend(20)]
    assert eventually(lambda: all(row["stack"] for row in client.dump()) and len(client.dump()) == 2, 5.0)
    homes = {worker.agent_id: pid, near.agent_id: None}
    for rows in (client.get_agent_list(), client.get_call_list(), client.dump()):
        assert {row.get("agent_id") or row.get("agent"): row["child"] for row in rows}.items() >= homes.items()
    assert all("wait_cancelled" in row["stack"] for row in client.dump())
    for verb, words in (("agents", [worker.agent_id]), ("calls", ["attend"]), ("dump", ["in child", "wait_cancelled"])):
        shown = as_server(verb, port=server.port)
        assert shown.returncode == 0
        assert [word for word in [*words, str(pid)] if word not in shown.stdout] == []
        told = json.loads(as_server(verb, "--json", port=server.port).stdout)
        assert {row["child"] for row in told} >= {pid, None}
    for result in running:
        result.cancel()
    client.delete_agent(near.agent_id)


def test_the_status_counts_the_processes(server: RpcAgentServerLauncher, client: RpcClient, worker: AgentProxy) -> None:
    running = worker.attend(20)
    assert eventually(lambda: client.get_server_info()["children"]["calls"] == 1, 5.0)

    def agree() -> bool:  # a process that nobody needs any more may end between two looks
        found = client.get_server_info()["children"]
        shown = as_server("status", port=server.port)
        [line] = [line for line in shown.stdout.splitlines() if line.startswith("children ")]
        assert (found["silent"], found["memory_mb"] > 0) == (0, True)
        return (
            found["processes"] == len(client.get_child_list()) and f"{found['processes']} processes, 0 silent" in line
        )

    assert eventually(agree, 15.0)
    running.cancel()


def test_a_process_that_is_silent_is_told_apart_from_one_that_has_ended(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    stuck: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    pid = stuck.pid()

    def row() -> dict[str, Any]:
        rows = [row for row in client.get_child_list() if stuck.agent_id in row["agents"]]
        return rows[0] if rows else {"state": "none", "pid": 0}

    assert row()["state"] == "up"
    held = stuck.hold_the_lock(4)
    assert eventually(lambda: row()["state"] == "silent", 4.0)
    assert (row()["pid"], row()["silent_s"] >= 1.0, psutil.pid_exists(pid)) == (pid, True, True)
    [call] = [call for call in client.dump() if call["agent"] == stuck.agent_id]
    assert f"kill -USR2 {pid}" in call["stack"]
    assert "silent" in as_server("children", port=server.port).stdout
    assert held.result() is None
    assert eventually(lambda: row()["state"] == "up", 2.0)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: row()["state"] in ("starting", "up") and row()["pid"] != pid, 5.0)
    client.delete_agent(stuck.agent_id)


# ---------------------------------------------------------------- a crash stays small


def test_a_crash_ends_the_call_that_ran_and_those_that_queue_go_on(worker: AgentProxy) -> None:
    before = worker.pid()
    begun = time.monotonic()
    dying, *queued = [worker.leave(3), *[worker.nap(0.0) for _ in range(5)]]
    with pytest.raises(AgentCrashed, match="exit status 3") as caught:
        dying.result()
    assert time.monotonic() - begun < CRASH_S
    assert (caught.value.status, "last words" in caught.value.stderr) == (3, True)
    assert isinstance(caught.value, CallLost)
    assert [result.result() for result in queued] == [0.0] * 5
    assert worker.pid() != before
    assert worker.count == 5, "it was made again from its arguments"


def test_the_signal_of_a_crash_is_named(worker: AgentProxy) -> None:
    with pytest.raises(AgentCrashed, match="SIGABRT") as caught:
        worker.abort().result()
    assert caught.value.status == -signal.SIGABRT
    assert worker.echo(1) == 1


def test_a_crash_is_no_matter_of_agents_in_other_processes(client: RpcClient) -> None:
    one: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    other: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    near: Any = client.create_agent(Worker, agent_options={"isolation": "thread"})
    pids = other.pid(), near.pid()
    slow = other.nap(1.0)
    with pytest.raises(AgentCrashed):
        one.leave(1).result()
    assert slow.result() == 1.0
    assert (other.pid(), near.pid()) == pids


def test_an_agent_that_crashes_too_often_is_given_up(client: RpcClient) -> None:
    fragile: Any = client.create_agent(Fragile)
    for _ in range(2):
        with pytest.raises(AgentCrashed, match="exit status 1"):
            fragile.leave(1).result()
    with within(1.0), pytest.raises(AgentCrashed, match="max_restarts=1"):
        fragile.echo(1)


def test_a_deleted_agent_takes_its_own_process_with_it(client: RpcClient) -> None:
    proxy: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    pid = proxy.pid()
    client.delete_agent(proxy.agent_id)
    assert eventually(lambda: is_gone(pid), 5.0)


def test_an_operator_sees_the_processes_and_restarts_one(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    fragile: Any = client.create_agent(Fragile, agent_id="fragile")
    for _ in range(2):
        with pytest.raises(AgentCrashed, match="exit status 1"):
            fragile.leave(1).result()
    with pytest.raises(AgentCrashed, match="max_restarts=1"):
        fragile.echo(1)
    done = as_server("children", "--restart", "fragile", port=server.port)
    assert (done.returncode, done.stdout) == (0, "restarted the process of fragile\n")
    assert fragile.echo(1) == 1
    [row] = [row for row in client.get_child_list() if "fragile" in row["agents"]]
    assert (row["pid"], row["state"], row["isolation"]) == (fragile.pid(), "up", "process")
    shown = as_server("children", port=server.port)
    assert (shown.returncode, "fragile" in shown.stdout, str(row["pid"]) in shown.stdout) == (0, True, True)
    client.delete_agent("fragile")
    near: Any = client.create_agent(Worker, agent_options={"isolation": "thread"})
    with pytest.raises(ConfigError, match="threads of the host"):
        client.restart_child(near.agent_id)


def test_a_process_that_cannot_make_its_agent_is_told_at_once(client: RpcClient) -> None:
    with within(10), pytest.raises(AgentCrashed, match="could not be started"):
        client.create_agent(Worker, agent_options={"isolation": "process", "env": {"PYTHONHOME": "/nowhere"}})
    assert client.is_alive()


# ---------------------------------------------------------------- limits


def test_the_environment_is_that_of_one_agent_alone(client: RpcClient, worker: AgentProxy) -> None:
    chosen = {"isolation": "process", "env": {"OMP_NUM_THREADS": "3"}}
    proxy: Any = client.create_agent(Worker, agent_options=chosen)
    assert (proxy.variable("OMP_NUM_THREADS"), worker.variable("OMP_NUM_THREADS")) == ("3", None)
    assert proxy.variable("PATH") == os.environ["PATH"]


def test_a_process_above_its_memory_is_killed_and_the_error_says_so(client: RpcClient) -> None:
    proxy: Any = client.create_agent(Worker, agent_options={"isolation": "process", "memory_mb": 120})
    with pytest.raises(AgentCrashed, match="memory_mb") as caught:
        proxy.eat(200).result()
    assert caught.value.memory_mb > 120
    assert proxy.echo(1) == 1


def test_a_call_that_ignores_its_end_is_killed_where_that_is_asked_for(client: RpcClient) -> None:
    proxy: Any = client.create_agent(Worker, agent_options={"isolation": "process", "on_timeout": "kill"})
    pid = proxy.pid()
    with pytest.raises(CallTimeout):
        proxy.nap(60, timeout=0.2).result()
    assert eventually(lambda: is_gone(pid), 5.0)
    assert proxy.echo(1) == 1


def test_a_process_whose_code_keeps_the_interpreter_lock_stops_nobody_else(client: RpcClient) -> None:
    stuck: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    other: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    near: Any = client.create_agent(Worker, agent_options={"isolation": "thread"})
    assert stuck.echo(1) == other.echo(1) == 1
    held = stuck.hold_the_lock(2)
    with within(1.5):
        for _ in range(50):
            assert other.echo(1) == near.echo(1) == 1
    assert held.result() is None


def test_there_are_only_so_many_processes() -> None:
    with client_on_host(Worker, isolation="process", max_children=1) as client:
        client.create_agent(Worker)
        with pytest.raises(HostBusy, match="max_children"):
            client.create_agent(Worker)


def test_agents_share_the_processes_that_there_may_be_where_those_are_fewer_than_asked_for() -> None:
    with client_on_host(Worker, isolation="pool", processes=6, max_children=3) as client:
        alone: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
        pids = [client.create_agent(Worker).pid() for _ in range(6)]
        assert sorted(map(pids.count, set(pids))) == [3, 3]
        assert alone.pid() not in pids
        with pytest.raises(HostBusy, match="max_children"):
            client.create_agent(Worker, agent_options={"isolation": "process"})


class Picky(Worker):
    """Takes what it was made with, or fails."""

    def __init__(self, start: bytes) -> None:
        if start[:1] == b"!":
            raise ValueError("not that")
        super().__init__(len(start))


@pytest.mark.parametrize("isolation", ["pool", "process"])
def test_what_agents_are_made_with_is_kept_up_to_a_share_of_a_limit(isolation: str) -> None:
    size = 1 << 20
    with client_on_host(Picky, isolation=isolation, processes=1, max_queued_bytes=4 * size) as client:
        made: list[Any] = [client.create_agent(Picky, bytes(size - 100)) for _ in range(3)]
        with pytest.raises(HostBusy, match=r"this user.*max_queued_bytes"):
            client.create_agent(Picky, bytes(size - 100), agent_id="more")
        assert client.create_agent(Picky, b"few").count == 3
        assert len(client.get_agent_list()) == 4
        assert made[0].echo(bytes(2 * size)) == bytes(2 * size), "calls have a limit of their own"
        client.delete_agent(made.pop().agent_id)
        for _ in range(3):
            with pytest.raises(ValueError, match="not that"):
                client.create_agent(Picky, b"!" + bytes(size - 100))
        again: Any = client.create_agent(Picky, bytes(size - 100), agent_id="more")
        with pytest.raises(AgentCrashed):
            again.leave(1).result()
        assert again.count == size - 100, "it is made again from what is kept"


def test_a_call_that_its_process_is_too_busy_for_runs_when_it_is_not() -> None:
    """The process takes one call at a time, and few bytes of those that wait."""
    with client_on_host(Worker, isolation="pool", processes=1, capacity=1, max_queued_bytes=3000) as client:
        agents: list[Any] = [client.create_agent(Worker) for _ in range(4)]
        napping = agents[0].nap(1.0)
        with ThreadPoolExecutor(3) as pool:
            echoes = [pool.submit(each.echo, "x" * 2000) for each in agents[1:]]
            assert [each.result() for each in echoes] == ["x" * 2000] * 3
        napping.result()
        assert [each.add() for each in agents] == [1] * 4


def test_the_id_that_a_client_gives_its_call_harms_no_agent_however_long_it_is() -> None:
    with client_on_host(Worker, isolation="pool", processes=1) as client:
        one: Any = client.create_agent(Worker)
        body = codec.encode_call((), {})
        for size in (10, 56 - len(program_id()) - 1, 300, 41_000):
            task_id = f"{program_id()}-{'1' * size}"
            reply = client.link.call(one.agent_id, "call_id", body, options={"task": task_id}, timeout=5.0)
            assert codec.decode(bytes(reply.body[0])) == task_id  # an admin may say any
        assert one.add() == 1


def test_a_wrong_isolation_is_refused(client: RpcClient) -> None:
    with pytest.raises(ConfigError, match="isolation"):
        client.create_agent(Worker, agent_options={"isolation": "container"})


# ---------------------------------------------------------------- the end


def test_no_process_is_left_when_the_host_has_stopped() -> None:
    with host(Worker, isolation="process", grace_s=0.5) as launcher, client_of(launcher) as client:
        pids = [client.create_agent(Worker).pid() for _ in range(2)]
        stuck: Any = client.create_agent(Worker)
        pids.append(stuck.pid())
        stuck.nap(60)
        begun = time.monotonic()
        launcher.shutdown()
        assert time.monotonic() - begun < 0.5 + 2 + 1
        assert eventually(lambda: all(map(is_gone, pids)), 2.0)


def test_processes_end_with_a_host_that_is_killed() -> None:
    with host(Worker, isolation="pool", processes=1) as launcher, client_of(launcher) as client:
        pid = client.create_agent(Worker).pid()
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGKILL)
        assert eventually(lambda: is_gone(pid), 4.0)


MAIN = """
import json, os
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient
class Here(AgentBase):
    def pid(self): return os.getpid()
with RpcAgentServerLauncher(custom_agent_classes=[Here], local_mode=True, isolation="pool", processes=1) as server:
    with RpcClient(server.host, server.port) as client:
        print(json.dumps(client.create_agent(Here).pid() != server.pid))
"""


def test_classes_of_main_run_in_children_too() -> None:
    assert output_of(MAIN) is True


def test_threads_do_calls_of_one_child_at_the_same_time(client: RpcClient) -> None:
    agents = [client.create_agent(Worker) for _ in range(4)]
    begun = time.monotonic()
    threads = [threading.Thread(target=proxy.echo, args=(proxy.nap(0.5),)) for proxy in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 1.5


# ---------------------------------------------------------------- lives and states


class Ledger(Worker):
    """Keeps what was booked, over the end of its process."""

    def __init__(self, start: int = 0) -> None:
        super().__init__(start)
        self.loaded = False

    def save_state(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state(self, state: dict[str, int]) -> None:
        self.count, self.loaded = state["count"], True

    def save_now(self, n: int) -> None:
        self.count += n
        call = current_call()
        assert call is not None
        call.save()
        os._exit(4)


class Guest(AgentBase):
    """Writes down where it is when it comes and when it goes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def on_start(self) -> None:
        self._write("came")

    async def on_stop(self) -> None:
        self._write("went")

    def pid(self) -> int:
        return os.getpid()

    @async_func
    def stay(self, seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def _write(self, word: str) -> None:
        with open(self.path, "a") as file:
            print(word, os.getpid(), file=file)


def test_the_state_of_an_agent_outlives_its_process() -> None:
    with client_on_host(Ledger, isolation="pool", processes=1) as client:
        ledger: Any = client.create_agent(Ledger, 10)
        for _ in range(5):
            ledger.add(1)
        for expected in (15, 16):  # the second process numbers its states anew
            with pytest.raises(AgentCrashed):
                ledger.leave(1).result()
            assert (ledger.count, ledger.loaded) == (expected, True)
            ledger.add(1)
        with pytest.raises(AgentCrashed):
            ledger.save_now(100)
        assert ledger.count == 117, "saved in the middle of a call that never ended"


def test_a_state_is_not_kept_where_none_is_asked_for() -> None:
    with client_on_host(Ledger, isolation="pool", processes=1) as client:
        ledger: Any = client.create_agent(Ledger, 10, agent_options={"persist": None})
        ledger.add(1)
        with pytest.raises(AgentCrashed):
            ledger.leave(1).result()
        assert (ledger.count, ledger.loaded) == (10, False)


def test_an_agent_in_a_child_is_told_when_it_comes_and_when_it_goes(tmp_path: Any) -> None:
    log = tmp_path / "log"
    with client_on_host(Guest, isolation="pool", processes=1) as client:
        guest: Any = client.create_agent(Guest, str(log))
        other: Any = client.create_agent(Guest, str(log))
        pid = guest.pid()
        client.delete_agent(guest.agent_id)
        assert log.read_text().split("\n") == [f"came {pid}", f"came {pid}", f"went {pid}", ""]
        assert other.pid() == pid
    assert log.read_text().count("went") == 2, "the other one goes with its host"


def test_an_end_that_is_cancelled_before_it_begins_takes_the_agent_out_of_its_process_all_the_same(
    tmp_path: Any,
) -> None:
    log = tmp_path / "log"
    with client_on_host(Guest, isolation="pool", processes=1) as client, ThreadPoolExecutor(1) as thread:
        guest: Any = client.create_agent(Guest, str(log), agent_id="guest")
        running = guest.stay(0.5)
        assert eventually(lambda: [row["state"] for row in client.get_call_list()] == ["running"], 5.0)
        deletion = thread.submit(client.delete_agent, "guest")
        assert eventually(lambda: len(client.get_call_list()) == 2, 5.0)
        [end] = [row["task_id"] for row in client.get_call_list() if row["caller"] == "the host"]
        assert client.cancel(end)
        assert isinstance(deletion.exception(), CallCancelled)
        pid = running.result()
        assert eventually(lambda: client.get_child_list()[0]["agents"] == [], 5.0)
        again: Any = client.create_agent(Guest, str(log), agent_id="guest")
        assert again.pid() == pid
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["came", "came", "went"]


@agent(isolation="pool")
class Slow(AgentBase):
    """Takes its time to go."""

    async def on_stop(self) -> None:
        await asyncio.sleep(1.3)


def test_the_end_of_an_agent_in_a_child_has_the_grace_of_the_host() -> None:
    with client_on_host(Slow, grace_s=10.0) as client:
        assert client.delete_agent(client.create_agent(Slow).agent_id)


def test_a_child_whose_agent_waits_for_its_arguments_counts() -> None:
    with client_on_host(Worker, isolation="process", max_children=2) as client:
        slow: Any = client.create_agent(Worker)
        late: list[Any] = []
        making = threading.Thread(target=lambda: late.append(client.create_agent(Worker, slow.nap(1.0))))
        making.start()
        assert eventually(lambda: len(client.get_agent_list()) == 2, 5.0)
        with pytest.raises(HostBusy, match="max_children"):
            client.create_agent(Worker)
        making.join()
        assert late[0].add(1) == 2.0
        assert len(client.get_child_list()) == 2
