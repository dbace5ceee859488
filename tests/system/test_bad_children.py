"""Agents that do their worst to the process they live in: neighbours answer, the host stops in time, and all ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import CALL_TIMEOUT_S, client_of, host
from hosts import eventually, freeze, is_gone, started, told
from zmqagents import AgentBase, AgentCrashed, RpcAgentServerLauncher, RpcClient, agent, async_func, concurrent, errors
from zmqagents.connection.connection import Connection
from zmqagents.connection.target import Target
from zmqagents.members.nursery import START_LIMIT_S

pytestmark = pytest.mark.timeout(120)
GRACE_S = 0.5
P99_S = 1.5  # of the neighbours: 0.05 on a machine that is not busy; of few calls it is the longest
BEFORE_S = 0.3  # for so long they are called before, to see how busy it is
BACK_S = 3.0  # an agent whose process was killed answers again: 0.5 s on a machine that is not busy
LONG_S = 3600


class Quiet(AgentBase):
    """A neighbour."""

    def echo(self, value: Any) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()


@agent(isolation="process")
class Bad(Quiet):
    """Each method does one bad thing."""

    def exit(self) -> None:
        os._exit(7)

    def abort(self) -> None:
        ctypes.CDLL(None).abort()

    def crash(self) -> None:
        ctypes.string_at(0)

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def end_threads(self) -> None:
        """Those of its host, not its own."""
        for thread in sys._current_frames():
            if thread != threading.get_ident():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))
        time.sleep(LONG_S)

    @async_func
    def eat(self, mib: int, pause_s: float = 0.0) -> int:
        eaten = []
        for _ in range(mib):
            eaten.append(b"x" * (1 << 20))
            time.sleep(pause_s)
        return len(eaten)

    @async_func
    def hold_the_lock(self) -> None:
        ctypes.PyDLL(None).sleep(LONG_S)

    @async_func
    def compute(self) -> None:
        while True:
            pass

    @async_func
    def block_signals(self) -> None:
        """In this thread, and in the whole process as far as C code can: it ignores what can be ignored."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        for number in signal.valid_signals():
            libc.signal(number, 1)  # SIG_IGN
        time.sleep(LONG_S)

    def do_later(self, how: str, after_s: float) -> None:
        threading.Timer(after_s, getattr(self, how)).start()

    @async_func
    def recurse(self) -> None:
        def deeper(n: int) -> int:
            return deeper(n + 1) + 1

        deeper(0)

    def start(self, how: str) -> int:
        """A process that goes on for ever; its pid."""
        if how == "program":
            return subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG_S})"]).pid
        fork = os.fork if how == "fork" else ctypes.CDLL(None).fork
        pid = fork()
        if pid == 0:
            while True:
                time.sleep(LONG_S)
        return int(pid)

    def close_all(self) -> None:
        """All descriptors of the process, the connections to its host among them."""
        os.closerange(3, 4096)

    def shut_all(self) -> None:
        """All its sockets."""
        for name in os.listdir("/proc/self/fd"):
            try:
                socket.socket(fileno=os.dup(int(name))).shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def talk_nonsense(self) -> int:
        """Write to all its connections what no host says."""
        written = 0
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    os.set_blocking(int(name), False)
                    written += os.write(int(name), b"\xff" * 3000)
            except OSError:
                continue
        return written

    def remove(self, pattern: str) -> int:
        """Files of the host."""
        found = list(Path(os.environ["ZMQAGENTS_RUNTIME"]).glob(pattern))
        for path in found:
            path.unlink()
        return len(found)

    def start_daemon(self, in_c: bool) -> int:
        """A process of a session of its own, whose parent has ended; its pid."""
        fork = ctypes.CDLL(None).fork if in_c else os.fork
        read, write = os.pipe()
        between = fork()
        if between == 0:
            os.setsid()
            if fork() == 0:
                os.write(write, str(os.getpid()).encode())
                while True:
                    time.sleep(LONG_S)
            os._exit(0)
        os.waitpid(between, 0)
        return int(os.read(read, 20))

    def flood_stderr(self, kib: int) -> None:
        for _ in range(kib):
            os.write(2, b"x" * 1023 + b"\n")

    @async_func
    @concurrent
    def flood_later(self, mib: int) -> None:
        self.flood_stderr(1024 * mib)

    @async_func
    def fill_threads(self) -> int:
        """Start threads until the system refuses, or there are 2,000."""
        stop = threading.Event()
        started = 0
        try:
            for _ in range(2000):
                threading.Thread(target=stop.wait, daemon=True).start()
                started += 1
        except RuntimeError:
            pass
        stop.set()
        return started


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Quiet, Bad, Worker, isolation="pool", processes=1, grace_s=GRACE_S) as launcher:
        yield launcher


@pytest.fixture
def bad(client: RpcClient) -> Iterator[Any]:
    proxy: Any = client.create_agent(Bad)
    assert proxy.echo(1) == 1
    yield proxy
    if proxy.agent_id in {row["agent_id"] for row in client.get_agent_list()}:
        client.restart_child(proxy.agent_id)
        client.delete_agent(proxy.agent_id)


@contextmanager
def neighbours(launcher: RpcAgentServerLauncher) -> Iterator[list[float]]:
    """Two agents, in another child and in the host, that are called meanwhile; they and the host itself must answer.

    Gives the seconds that each call took, as they come.
    """
    samples: list[float] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def ask(answer: Any) -> None:
        try:
            while not over.is_set():
                begun = time.perf_counter()
                assert answer()
                samples.append(time.perf_counter() - begun)
                time.sleep(0.003)
        except BaseException as exc:
            failures.append(exc)

    with client_of(launcher) as client:
        agents = [client.create_agent(Quiet, agent_options={"isolation": where}) for where in ("process", "thread")]
        pids = [each.pid() for each in agents]
        asks = [client.is_alive, *(lambda each=each: each.echo(True) for each in agents)]
        threads = [threading.Thread(target=ask, args=(each,)) for each in asks]
        for thread in threads:
            thread.start()
        try:
            time.sleep(BEFORE_S)
            before = max(samples)
            samples.clear()
            yield samples
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert [each.pid() for each in agents] == pids
        assert sorted(samples)[int(len(samples) * 0.99)] < P99_S + 3 * before
        for each in agents:
            client.delete_agent(each.agent_id)


# ---------------------------------------------------------------- sudden ends


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "exit status 7"),
        ("abort", "SIGABRT"),
        ("crash", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("end_threads", "ended"),
    ],
)
def test_a_sudden_end_is_the_matter_of_the_call_alone(
    server: RpcAgentServerLauncher, bad: Any, how: str, said: str
) -> None:
    with neighbours(server):
        before = bad.pid()
        with pytest.raises(AgentCrashed, match=said):
            getattr(bad, how)()
        assert bad.pid() != before


def test_the_last_words_of_a_crash_in_c_are_its_stack(bad: Any) -> None:
    with pytest.raises(AgentCrashed, match="SIGABRT") as caught:
        bad.abort()
    assert caught.value.stderr.startswith("Fatal Python error: Aborted\nCurrent thread")
    assert "in abort" in caught.value.stderr


@pytest.mark.parametrize("how", ["close_all", "shut_all"])
def test_a_process_that_closes_its_connections_is_ended(server: RpcAgentServerLauncher, bad: Any, how: str) -> None:
    with neighbours(server):
        pid = bad.pid()
        with pytest.raises(errors.ZmqAgentsError):
            getattr(bad, how)()
        assert eventually(lambda: is_gone(pid), 10.0)
        assert bad.pid() != pid


def test_a_process_that_talks_nonsense_to_its_host_is_ended(server: RpcAgentServerLauncher, bad: Any) -> None:
    with neighbours(server):
        pid = bad.pid()
        with pytest.raises(errors.ZmqAgentsError):
            bad.talk_nonsense()
        assert eventually(lambda: is_gone(pid), 10.0)
        assert bad.pid() != pid


def await_listening(path: Path) -> None:
    """Until the process whose Unix socket has this path tells that it listens."""
    assert eventually(path.exists, 10.0)
    with RpcClient(link=Connection(Target("", None, ipc=str(path)))) as spare:
        assert eventually(spare.is_alive, 10.0)


def test_a_spare_process_that_cannot_be_reached_is_replaced(runtime_dir: Path) -> None:
    with host(Bad, grace_s=GRACE_S) as launcher, client_of(launcher) as own:
        bad: Any = own.create_agent(Bad)
        spare = f"{launcher.server_id}.child-2.ipc"
        await_listening(runtime_dir / spare)
        assert bad.remove(spare) == 1
        other: Any = own.create_agent(Bad)
        assert other.echo(1) == bad.echo(1) == 1


def test_a_spare_process_that_is_stopped_is_replaced(runtime_dir: Path) -> None:
    limit_s = 2 * START_LIMIT_S  # it may be stopped before it has said that it is there
    with host(Bad, grace_s=GRACE_S) as launcher, client_of(launcher, timeout=limit_s) as own:
        bad: Any = own.create_agent(Bad)
        await_listening(runtime_dir / f"{launcher.server_id}.child-2.ipc")
        (pid,) = {each.pid for each in psutil.Process(launcher.pid).children()} - {bad.pid()}
        freeze(pid)
        other: Any = own.create_agent(Bad)
        assert other.echo(1) == bad.echo(1) == 1
        assert is_gone(pid)


def test_a_recursion_without_an_end_is_an_error_or_a_crash_of_its_own(server: RpcAgentServerLauncher, bad: Any) -> None:
    with neighbours(server):
        with pytest.raises((RecursionError, AgentCrashed)):
            bad.recurse().result()
        assert bad.echo(1) == 1


def test_much_on_stderr_holds_up_nobody(server: RpcAgentServerLauncher, bad: Any, capfd: Any) -> None:
    with neighbours(server):
        bad.flood_stderr(200)
        with pytest.raises(AgentCrashed) as caught:
            bad.exit()
        assert len(caught.value.stderr) < 20_000


def test_many_threads_in_a_child_are_no_matter_of_others(server: RpcAgentServerLauncher, bad: Any) -> None:
    with neighbours(server):
        assert bad.fill_threads().result() > 0
        assert bad.echo(1) == 1


# ---------------------------------------------------------------- memory


def test_what_takes_too_much_memory_is_gone_within_a_second(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    bad: Any = client.create_agent(Bad, agent_options={"isolation": "process", "memory_mb": 150})
    process = psutil.Process(bad.pid())
    with neighbours(server):
        eating = bad.eat(2000, 0.001)
        above: list[float] = []

        def has_ended() -> bool:
            if is_gone(process.pid):
                return True
            if not above and process.memory_info().rss > 150 << 20:
                above.append(time.monotonic())
            return False

        assert eventually(has_ended, 20.0)
        assert time.monotonic() - above[0] < 1.5, "looked at twice a second"
        with pytest.raises(AgentCrashed, match="memory_mb") as caught:
            eating.result()
        assert caught.value.memory_mb > 150
        assert bad.echo(1) == 1
    client.delete_agent(bad.agent_id)


def test_memory_that_is_taken_at_once_is_refused_by_the_system_or_ends_the_process(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """Faster than the memory is looked at; the kernel's limit is the backstop."""
    bad: Any = client.create_agent(Bad, agent_options={"isolation": "process", "memory_mb": 150})
    with neighbours(server):
        begun = time.monotonic()
        with pytest.raises((MemoryError, AgentCrashed)):
            bad.eat(1500).result()
        assert time.monotonic() - begun < 5.0
        assert bad.echo(1) == 1
    client.delete_agent(bad.agent_id)


# ---------------------------------------------------------------- processes of its own


@pytest.mark.parametrize("how", ["fork", "fork in C", "program"])
@pytest.mark.parametrize("end", ["exit", "delete"])
def test_what_a_child_has_started_does_not_outlive_it(client: RpcClient, how: str, end: str) -> None:
    bad: Any = client.create_agent(Bad)
    pid, started = bad.pid(), bad.start(how)
    assert psutil.Process(started).ppid() == pid
    begun = time.monotonic()
    if end == "exit":
        with pytest.raises(AgentCrashed):
            bad.exit()
        assert time.monotonic() - begun < 1.0, "the fork holds nothing that tells of the end of its parent"
        assert bad.echo(1) == 1
    client.delete_agent(bad.agent_id)
    assert eventually(lambda: is_gone(pid) and is_gone(started), 10.0)


@pytest.mark.parametrize("in_c", [False, True])
def test_a_daemon_that_an_agent_has_started_hides_no_end_of_its_process(bad: Any, in_c: bool) -> None:
    """It holds all descriptors of that process, if it was started in C; else it ends with it, session or not."""
    pid, daemon = bad.pid(), bad.start_daemon(in_c)
    try:
        begun = time.monotonic()
        with pytest.raises(AgentCrashed, match="exit status 7"):
            bad.exit()
        assert time.monotonic() - begun < 1.0
        assert bad.pid() != pid
        assert in_c != eventually(lambda: is_gone(daemon), 0.5 if in_c else 5.0)
    finally:
        if in_c:
            os.kill(daemon, signal.SIGKILL)


def test_a_fork_of_a_child_lets_go_of_the_listening_socket(bad: Any) -> None:
    started = bad.start("fork")
    listening = {each.inode for each in _unix_sockets(bad.pid()) if each.listens}
    assert listening
    assert eventually(lambda: not listening & {each.inode for each in _unix_sockets(started)}, 5.0)


class _Socket:
    def __init__(self, inode: str, listens: bool) -> None:
        self.inode = inode
        self.listens = listens


def _unix_sockets(pid: int) -> list[_Socket]:
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    known = {line[6]: line[3] == "00010000" for line in lines}
    held = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = [link[8:-1] for link in held if link.startswith("socket:[")]
    return [_Socket(inode, known[inode]) for inode in inodes if inode in known]


# ---------------------------------------------------------------- what goes on for ever


@pytest.mark.parametrize("how", ["hold_the_lock", "compute", "block_signals"])
def test_what_goes_on_for_ever_stops_no_neighbour(server: RpcAgentServerLauncher, bad: Any, how: str) -> None:
    with neighbours(server) as samples:
        running = getattr(bad, how)()
        assert eventually(lambda: len(samples) > 500, 20.0)
        assert not running.done()


@pytest.mark.parametrize("how", ["hold_the_lock", "compute", "block_signals"])
@pytest.mark.parametrize("isolation", ["process", "pool"])
def test_the_host_stops_in_time_whatever_its_children_do(how: str, isolation: str) -> None:
    with host(Quiet, Bad, isolation="pool", processes=2, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        bads: list[Any] = [client.create_agent(Bad, agent_options={"isolation": isolation}) for _ in range(2)]
        started = [bad.start("fork") for bad in bads]
        running = [getattr(bad, how)() for bad in bads]
        assert eventually(lambda: len([row for row in client.get_call_list() if row["state"] == "running"]) == 2, 5.0)
        assert launcher.pid is not None
        pids = [process.pid for process in psutil.Process(launcher.pid).children(recursive=True)]
        assert set(started) < set(pids)
        begun = time.monotonic()
        launcher.shutdown()
        took_s = time.monotonic() - begun
        assert took_s < GRACE_S + 2 + 1, "1 s for a machine that is busy"
        assert eventually(lambda: all(map(is_gone, pids)), 1.0)
        assert all(isinstance(each.exception(), errors.ZmqAgentsError) for each in running)


def test_a_process_that_is_stopped_is_silent_and_gets_no_new_agent() -> None:
    with host(Quiet, isolation="pool", processes=2, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        stopped, other = [client.create_agent(Quiet) for _ in range(2)]
        pid: int = stopped.pid()
        client.delete_agent(stopped.agent_id)  # now its process has the fewest agents
        freeze(pid)
        assert eventually(lambda: {row["pid"]: row["state"] for row in client.get_child_list()}[pid] == "silent", 5.0)
        assert client.create_agent(Quiet).pid() == other.pid()
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: {row["pid"]: row["state"] for row in client.get_child_list()}[pid] == "up", 5.0)
        assert client.create_agent(Quiet).pid() == pid


def test_processes_that_are_stopped_end_with_their_agents_and_with_the_host() -> None:
    with host(Quiet, isolation="process", grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        agents: list[Any] = [client.create_agent(Quiet) for _ in range(2)]
        pids = [each.pid() for each in agents]
        for pid in pids:
            freeze(pid)
        client.delete_agent(agents[0].agent_id)
        assert eventually(lambda: is_gone(pids[0]), 5.0)
        begun = time.monotonic()
        launcher.shutdown()
        assert time.monotonic() - begun < GRACE_S + 2 + 1, "1 s for a machine that is busy"
        assert eventually(lambda: is_gone(pids[1]), 1.0)


@agent(isolation="process")
class Clinging(Quiet):
    """Does not go."""

    def on_stop(self) -> None:
        time.sleep(LONG_S)

    @async_func
    def nap(self) -> None:
        time.sleep(LONG_S)


def test_a_process_of_its_own_goes_with_its_agent_whatever_its_code_does() -> None:
    with host(Bad, Clinging, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        clinging: Any = client.create_agent(Clinging)
        pid = clinging.pid()
        with pytest.raises(AgentCrashed, match="the end of its agent took too long"):
            client.delete_agent(clinging.agent_id)
        assert eventually(lambda: is_gone(pid), 1.0)
        bad: Any = client.create_agent(Bad)
        pid, running = bad.pid(), bad.hold_the_lock()
        assert eventually(lambda: [row["state"] for row in client.get_call_list()] == ["running"], 5.0)
        client.delete_agent(bad.agent_id)
        assert not is_gone(pid), "the running call may end"
        running.cancel()
        assert eventually(lambda: is_gone(pid), 5.0), "nobody waits for it any more"
        assert eventually(lambda: client.get_child_list() == [], 5.0)


@pytest.mark.parametrize("how", ["hold_the_lock", "block_signals"])
def test_children_that_hear_nothing_end_with_a_host_that_is_killed(how: str) -> None:
    with host(Quiet, Bad, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        bad: Any = client.create_agent(Bad)
        getattr(bad, how)()
        assert eventually(lambda: bool(client.dump()), 5.0)
        assert launcher.pid is not None
        pids = [process.pid for process in psutil.Process(launcher.pid).children(recursive=True)]
        os.kill(launcher.pid, signal.SIGKILL)
        assert eventually(lambda: all(map(is_gone, pids)), 6.0)


def test_a_process_that_is_stopped_ends_with_a_host_that_is_killed() -> None:
    with host(Quiet, isolation="process", grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        pid: int = client.create_agent(Quiet).pid()
        freeze(pid)
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGKILL)
        assert eventually(lambda: is_gone(pid), 6.0)


@pytest.mark.parametrize("how", ["hold_the_lock", "block_signals"])
def test_a_process_that_hears_nothing_ends_with_its_agent(client: RpcClient, how: str) -> None:
    """A thread that a call has left behind keeps the lock."""
    bad: Any = client.create_agent(Bad)
    pid = bad.pid()
    bad.do_later(how, 0.2)
    time.sleep(0.4)
    client.delete_agent(bad.agent_id)
    assert eventually(lambda: is_gone(pid), 10.0)


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_to_the_children_does_not_end_what_the_host_lets_go_on(to_all: bool) -> None:
    """As where a service manager signals all processes of a service at once."""
    with host(Quiet, Bad, Worker, isolation="pool", processes=1, grace_s=10) as launcher, client_of(launcher) as client:
        worker: Any = client.create_agent(Worker)
        pid = worker.pid()
        running, queued = worker.later(1, 1.0), worker.later(2)
        assert eventually(lambda: any(row["state"] == "running" for row in client.get_call_list()), 5.0)
        assert launcher.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        if to_all:
            os.kill(launcher.pid, signal.SIGTERM)
        assert [running.result(10), queued.result(10)] == [1, 2]
        if not to_all:
            assert worker.pid() == pid
    assert eventually(lambda: is_gone(pid), 5.0)


# ---------------------------------------------------------------- crashes in a row, and under load


def test_six_crashes_within_a_minute_are_too_many(client: RpcClient, bad: Any) -> None:
    for _ in range(6):
        with pytest.raises(AgentCrashed, match="exit status 7"):
            bad.exit()
    begun = time.monotonic()
    with pytest.raises(AgentCrashed, match="max_restarts=5"):
        bad.echo(1)
    assert time.monotonic() - begun < 1.0
    client.restart_child(bad.agent_id)
    assert bad.echo(1) == 1


def test_a_process_that_is_killed_under_load_loses_the_calls_that_ran_and_no_others(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """200 calls a second to four agents of one process."""
    agents: list[Any] = [client.create_agent(Worker) for _ in range(4)]
    pid = agents[0].pid()
    results: list[tuple[int, Any]] = []
    killed_at, number = 0.0, 0
    begun = time.monotonic()
    with neighbours(server):
        while number < 400:
            results.append((number, agents[number % 4].later(number)))
            number += 1
            if number == 200:
                os.kill(pid, signal.SIGKILL)
                killed_at = time.monotonic()
            time.sleep(max(0.0, begun + number / 200 - time.monotonic()))
        assert killed_at
        outcomes = Counter(type(result.exception(CALL_TIMEOUT_S)).__name__ for _, result in results)
    assert outcomes["AgentCrashed"] <= 4, "one of each agent was running"
    assert outcomes["AgentCrashed"] + outcomes["NoneType"] == 400, outcomes
    assert agents[0].pid() != pid
    for each in agents:
        client.delete_agent(each.agent_id)


class Worker(Quiet):
    @async_func
    def later(self, value: int, seconds: float = 0.01) -> int:
        time.sleep(seconds)
        return value


LOUD = """
import json, os, sys
from pathlib import Path
from test_bad_children import Bad, Quiet
from zmqagents import RpcAgentServerLauncher
server = RpcAgentServerLauncher(custom_agent_classes=[Bad, Quiet], local_mode=True, grace_s=0.5)
server.launch()
print(json.dumps([server.host, server.port]), flush=True)
sys.stdin.read()
server.shutdown()
print(json.dumps(True), flush=True)
"""


def test_a_host_whose_stderr_nobody_reads_notices_all_the_same_that_a_process_has_ended() -> None:
    read, write = os.pipe()
    with started(LOUD, stderr=write) as program:
        os.close(write)
        host_name, port = told(program)
        with RpcClient(host_name, port, timeout=CALL_TIMEOUT_S) as client:
            bad: Any = client.create_agent(Bad)
            flooding = bad.flood_later(4)
            time.sleep(1.0)  # the pipe is full now, and the agent waits until somebody reads it
            assert not flooding.done()
            pid = bad.pid()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(AgentCrashed, match="SIGKILL"):
                flooding.result(5.0)
            assert bad.pid() != pid
        assert program.stdin is not None
        program.stdin.close()
        assert told(program) is True
    os.close(read)


def test_agents_are_back_soon_after_each_of_five_crashes_and_the_sixth_is_one_too_many(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """200 calls a second to the agent of an own child, which is killed as soon as it is back."""
    worker: Any = client.create_agent(Worker, agent_options={"isolation": "process"})
    results: list[Any] = []
    over = threading.Event()

    def call() -> None:
        while not over.wait(0.005):
            results.append(worker.later(len(results), 0.004))

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(5):
            pid = worker.pid()
            begun = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while (next_pid := _pid_of(worker)) in (pid, None):
                assert time.monotonic() - begun < BACK_S
            assert next_pid != pid
        killed = worker.pid()
        os.kill(killed, signal.SIGKILL)
        assert eventually(lambda: _pid_of(worker) is None, 2.0)
    finally:
        over.set()
        thread.join()
    with pytest.raises(AgentCrashed, match="max_restarts=5"):
        worker.echo(1)
    crashed = [index for index, result in enumerate(results) if result.exception(CALL_TIMEOUT_S) is not None]
    until = crashed[-1] if len(crashed) < 6 else crashed[5]
    assert len([index for index in crashed if index < until]) <= 5, "one call ran at each crash"
    client.restart_child(worker.agent_id)
    assert worker.echo(1) == 1
    client.delete_agent(worker.agent_id)


def _pid_of(worker: Any) -> int | None:
    try:
        return int(worker.pid())
    except AgentCrashed:
        return None


@agent(isolation="pool")
class Mine(Quiet):
    """Cannot be made a second time: that ends the process."""

    def __init__(self, path: str) -> None:
        super().__init__()
        if os.path.exists(path):
            os._exit(9)
        with open(path, "w"):
            pass


def test_an_agent_that_crashes_when_it_is_made_again_is_given_up_and_its_neighbours_are_not(tmp_path: Path) -> None:
    with host(Quiet, Mine, isolation="pool", processes=1, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        quiet: list[Any] = [client.create_agent(Quiet) for _ in range(5)]
        mine: Any = client.create_agent(Mine, str(tmp_path / "made"))
        quiet += [client.create_agent(Quiet) for _ in range(5)]
        os.kill(mine.pid(), signal.SIGKILL)

        def is_given_up() -> bool:
            _pid_of(quiet[0])  # it has a call running at each crash
            try:
                mine.echo(1)
            except AgentCrashed as exc:
                return "max_restarts=5" in str(exc)
            except errors.CallTimeout:  # on a busy machine: the sixth process begins 2 s after the fifth
                return False
            return False

        assert eventually(is_given_up, 60.0)
        pid = quiet[0].pid()
        assert [each.echo(n) for n, each in enumerate(quiet)] == list(range(10))
        assert is_given_up()
        assert {each.pid() for each in quiet} == {pid}, "asking for it once more ends nothing"
        (tmp_path / "made").unlink()
        client.restart_child(mine.agent_id)
        assert mine.echo(1) == 1


@agent(isolation="pool")
class Late(Quiet):
    """Cannot be made as long as a file is there."""

    def __init__(self, path: str) -> None:
        super().__init__()
        if os.path.exists(path):
            raise OSError("not now")


def test_an_agent_that_could_not_be_made_again_is_when_it_is_called_later(tmp_path: Path) -> None:
    with host(Late, isolation="pool", processes=1, grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        late: Any = client.create_agent(Late, str(tmp_path / "no"))
        pid = late.pid()
        (tmp_path / "no").touch()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: pid not in [row["pid"] for row in client.get_child_list()], 5.0)
        for _ in range(3):
            with pytest.raises(AgentCrashed, match="not now"):
                late.echo(1)
        (tmp_path / "no").unlink()
        assert late.echo(1) == 1
        assert late.pid() != pid
