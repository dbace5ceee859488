"""A host that is told to stop has ended at its grace and 2 s, whatever its agents do, and no process of it is left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hosts import environment, eventually
from redis_server import running_redis
from scale import LATE_S, linux_only, soak_only
from zmqagents import RpcClient, discovery

pytestmark = [pytest.mark.timeout(120), linux_only("the kernel's part is Linux'")]

GRACE_S = 1.0

AGENTS = """
import ctypes, multiprocessing, os, time
from zmqagents import AgentBase, async_func

class Stuck(AgentBase):
    def __init__(self, hangs=False):
        while hangs:
            time.sleep(1)

    def ready(self):
        return True

    @async_func
    def keep_the_lock(self, mark):
        sleep = ctypes.PyDLL(None).sleep  # of PyDLL: it does not let go
        open(mark, "w").close()
        sleep(1_000_000)

    def fork(self):
        os.fork()
        return os.getpid()

    @async_func
    def fork_amid(self):
        if os.fork() == 0:
            time.sleep(0.3)
        return os.getpid()

    async def fork_on_the_loop(self):
        os.fork()
        return os.getpid()

    def terminate_a_child(self):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        child.terminate()
        child.join(5)
        return child.exitcode

    def fork_for_good(self):
        child = os.fork()
        while child == 0:
            time.sleep(1)
        return child

    def fill_a_pool(self, method):
        pool = self.pool = multiprocessing.get_context(method).Pool(2)
        assert pool.apply(abs, (-1,)) == 1
        pool.map_async(time.sleep, [1_000_000] * 4)
        return 4

    def count(self):
        while True:
            yield 1

    @async_func
    def later(self, seconds):
        time.sleep(seconds)

class Clinging(Stuck):
    def __del__(self):
        time.sleep(1_000_000)
"""

LAUNCHER = """
import json, sys
from zmqagents import RpcAgentServerLauncher
server = RpcAgentServerLauncher(agent_dir=sys.argv[1], grace_s=float(sys.argv[2]), **json.loads(sys.argv[3]))
server.launch()
print(json.dumps({"port": server.port, "pid": server.pid}), flush=True)
sys.stdin.readline()
server.shutdown()
"""


# `as_server stop`, but for the half second that the interpreter takes to begin.
STOPPER = """
import sys
from zmqagents import cli
from zmqagents.cli.verbs import host
from zmqagents.client import rpc
print("ready", flush=True)
cli.main(["stop", "--port", sys.stdin.readline().strip()])
"""


class Running:
    """A host, the program that runs it, and all processes that have come of that."""

    def __init__(self, program: subprocess.Popen[str], stopper: subprocess.Popen[str], mark: str) -> None:
        self.program = program
        self.stopper = stopper
        self.port = 0
        self.files_before = _files()
        self._mark = mark

    def processes(self) -> list[int]:
        return [process.pid for process in psutil.process_iter() if self._bears_mark(process)]

    def kill(self) -> bool:
        """Whether no process is left; a supervisor may have started one meanwhile, and a dying one holds its files."""
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def is_swept(self) -> bool:
        """Whether its files are gone: it has died with its supervisor, so nobody else removes them.

        One that is dying shows no environment any more, and holds its files for a moment all the same.
        """
        discovery.sweep()
        return _files() <= self.files_before

    def _bears_mark(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get("STOP_TEST") == self._mark and process.status() != psutil.STATUS_ZOMBIE
        return False


def _by_command(host: Running) -> None:
    host.stopper.communicate(f"{host.port}\n", timeout=60)


def _by_signal(host: Running) -> None:
    host.program.send_signal(signal.SIGTERM)


def _by_launcher(host: Running) -> None:
    assert host.program.stdin is not None
    host.program.stdin.write("\n")
    host.program.stdin.flush()


# How the host is run, and how it is told to stop.
WAYS: dict[str, tuple[tuple[str, ...], Callable[[Running], None]]] = {
    "as_server stop": ((), _by_command),
    "SIGTERM": ((), _by_signal),
    "launcher": (("launcher",), _by_launcher),
    "supervisor": (("--restart",), _by_signal),
    "as_server stop of a supervised host": (("--restart",), _by_command),
}


@contextlib.contextmanager
def running(place: Path, kind: tuple[str, ...], **settings: str) -> Iterator[Running]:
    (place / "agents.py").write_text(AGENTS)
    mark = uuid.uuid4().hex
    if kind == ("launcher",):
        words = ["-c", LAUNCHER, str(place), str(GRACE_S), json.dumps(settings)]
    else:
        options = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), value)]
        words = ["-m", "zmqagents", "start", "--json", "--agent-dir", str(place), "--grace", str(GRACE_S)]
        words += [*kind, *options]
    with (place / "stderr").open("w") as stderr, subprocess.Popen(
        [sys.executable, *words], env=environment(STOP_TEST=mark), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
    ) as program, subprocess.Popen(
        [sys.executable, "-c", STOPPER], env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as stopper:  # fmt: skip
        assert program.stdout is not None
        assert stopper.stdout is not None
        host = Running(program, stopper, mark)
        try:
            assert stopper.stdout.readline() == "ready\n"
            line = program.stdout.readline()
            assert line, (place / "stderr").read_text()
            host.port = json.loads(line)["port"]
            yield host
        finally:
            assert eventually(host.kill, 10)
            program.wait(10)
            stopper.kill()
            assert eventually(host.is_swept, 10)


def _hang_in_finalizers(client: RpcClient, host: Running, place: Path) -> None:
    for _ in range(2):
        client.create_agent("Clinging")
    client.delete_agent(client.create_agent("Clinging").agent_id)


def _hold_the_lock(client: RpcClient, host: Running, place: Path) -> None:
    client.create_agent("Stuck").keep_the_lock(str(place / "mark"))
    assert eventually((place / "mark").exists, 10)


def _hang_in_init(client: RpcClient, host: Running, place: Path) -> None:
    def create() -> None:
        with contextlib.suppress(Exception):
            client.create_agent("Stuck", True)

    for _ in range(3):
        threading.Thread(target=create, daemon=True).start()
    assert eventually(lambda: client.get_server_info()["running"] == 3, 10)


def _fork_children(client: RpcClient, host: Running, place: Path) -> None:
    before = set(host.processes())
    stuck = client.create_agent("Stuck")
    for _ in range(5):
        stuck.fork()
    results = [stuck.fork_amid(), stuck.fork_on_the_loop()]
    assert all(result.result(10) for result in results)
    assert eventually(lambda: set(host.processes()) <= before, 10), "a forked child goes on where the host's code is"


def _fork_for_good(client: RpcClient, host: Running, place: Path) -> None:
    before = set(host.processes())
    stuck = client.create_agent("Stuck")
    children = {stuck.fork_for_good() for _ in range(5)}
    assert set(host.processes()) == before | children


def _open_streams(client: RpcClient, host: Running, place: Path) -> object:
    streams = [iter(client.create_agent("Stuck").count()) for _ in range(1000)]
    assert [next(stream) for stream in streams] == [1] * 1000
    return streams  # they stay open


TROUBLES: dict[str, Callable[[RpcClient, Running, Path], object]] = {
    "finalizers that hang": _hang_in_finalizers,
    "the interpreter lock held in C": _hold_the_lock,
    "__init__ that hangs": _hang_in_init,
    "5 forked children": _fork_children,
    "5 forked children that never come back": _fork_for_good,
    "1,000 open streams": _open_streams,
}
QUICK = {("the interpreter lock held in C", way) for way in WAYS} | {(trouble, "SIGTERM") for trouble in TROUBLES}
CASES = [
    pytest.param(trouble, way, marks=() if (trouble, way) in QUICK else soak_only)
    for trouble in TROUBLES
    for way in WAYS
]


def _files() -> set[Path]:
    return {path for place in discovery.places() for path in Path(place).glob("*")}


def told_of(pid: int) -> str:
    """What a process is, for the text of a failure."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            return f"{pid} of {process.ppid()}, {process.status()}: {process.cmdline()}"
    return f"{pid}, gone by now"


def _stop_in_time(host: Running, way: str) -> None:
    start = time.monotonic()
    WAYS[way][1](host)
    assert eventually(lambda: host.program.poll() is not None, 30), f"still there: {host.processes()}"
    took = time.monotonic() - start
    assert eventually(lambda: not host.processes(), 10), f"left: {[told_of(pid) for pid in host.processes()]}"
    assert took <= GRACE_S + 2 + LATE_S, f"{took:.2f} s"


@pytest.mark.parametrize(("trouble", "way"), CASES)
def test_a_host_is_gone_in_time_with(trouble: str, way: str, tmp_path: Path) -> None:
    with running(tmp_path, WAYS[way][0]) as host, RpcClient("localhost", host.port, timeout=20) as client:
        kept = TROUBLES[trouble](client, host, tmp_path)
        _stop_in_time(host, way)
        del kept


@pytest.mark.parametrize("kind", [(), ("launcher",)])
def test_a_host_that_was_started_by_nohup_is_gone_in_time_with_the_lock_held(
    kind: tuple[str, ...], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does; programs inherit it
    try:
        with running(tmp_path, kind) as host, RpcClient("localhost", host.port, timeout=20) as client:
            _hold_the_lock(client, host, tmp_path)
            _stop_in_time(host, "launcher" if kind else "SIGTERM")
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", [(), ("launcher",)])
def test_a_host_that_was_started_by_nohup_goes_on_when_the_terminal_is_gone(
    kind: tuple[str, ...], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running(tmp_path, kind) as host, RpcClient("localhost", host.port, timeout=20) as client:
            agent = client.create_agent("Stuck")
            for pid in host.processes():
                os.kill(pid, signal.SIGHUP)
            agent.later(1.5).result()  # an alarm of 1 s would have come
            assert agent.ready()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_threads_and_processes_that_are_stuck_end_at_the_same_time(tmp_path: Path) -> None:
    """In order, and not by the timer of the kernel: each of them takes what a stop may take beyond its grace."""
    with running(tmp_path, ()) as host, RpcClient("localhost", host.port, timeout=20) as client:
        client.create_agent("Stuck", agent_options={"isolation": "thread"}).later(1_000_000)
        for number in range(2):
            mark = tmp_path / f"mark{number}"
            client.create_agent("Stuck", agent_options={"isolation": "process"}).keep_the_lock(str(mark))
            assert eventually(mark.exists, 10)
        _stop_in_time(host, "SIGTERM")
        assert host.program.returncode == 0


@pytest.mark.parametrize("way", [pytest.param(way, marks=() if way == "SIGTERM" else soak_only) for way in WAYS])
def test_a_host_is_gone_in_time_with_a_redis_that_is_frozen(way: str, tmp_path: Path) -> None:
    with (
        running_redis() as redis,
        running(tmp_path, WAYS[way][0], pool_type="redis", redis_url=redis.url) as host,
        RpcClient("localhost", host.port, timeout=20) as client,
    ):
        stuck = client.create_agent("Stuck")
        stuck.later(0).result(10)
        with redis.frozen():
            waiting = [stuck.later(0) for _ in range(20)]
            _stop_in_time(host, way)
            for result in waiting:
                result.exception(10)  # each has ended


def test_sigterm_while_a_declared_agent_hangs_in_its_init_is_a_stop_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS.replace("hangs=False", "hangs=True"))
    words = ["start", "--agent-dir", str(tmp_path), "--grace", "0.5", "--agent", "s=Stuck", "--server-id", "hanging"]
    with subprocess.Popen([sys.executable, "-m", "zmqagents", *words], env=environment()) as program:
        try:
            assert eventually(lambda: any(r.server_id == "hanging" for r in discovery.list_hosts()), 20)
            start = time.monotonic()
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0
            assert time.monotonic() - start <= 0.5 + 2 + LATE_S
        finally:
            program.kill()


def test_a_host_with_a_hang_limit_is_ended_with_its_stacks_and_started_again(tmp_path: Path) -> None:
    with (
        running(tmp_path, ("--restart", "--agent", "s=Stuck"), hang_limit="1") as host,
        RpcClient("localhost", host.port, timeout=20) as client,
    ):
        first = client.get_server_info()["pid"]
        client.get_agent("s").keep_the_lock(str(tmp_path / "mark"))
        assert eventually((tmp_path / "mark").exists, 10)
        assert eventually(lambda: (tmp_path / "stderr").read_text().count("running again") == 1, 30)
        assert client.get_agent("s").ready()
        assert client.get_server_info()["pid"] != first
        assert "in keep_the_lock" in (tmp_path / "stderr").read_text()
        time.sleep(2.5)  # longer than the limit: a host that answers is left alone
        assert client.get_agent("s").ready()
        assert (tmp_path / "stderr").read_text().count("running again") == 1


def test_who_reaps_a_host_that_the_kernel_had_to_end_removes_its_files(tmp_path: Path) -> None:
    with running(tmp_path, ("--restart",)) as host:
        with RpcClient("localhost", host.port, timeout=20) as client:  # an open one would look for the host, and tidy
            _hold_the_lock(client, host, tmp_path)
        assert _files() - host.files_before
        _stop_in_time(host, "supervisor")
        assert not _files() - host.files_before


def test_a_host_that_is_killed_takes_the_forks_with_it_that_its_agents_have_made(tmp_path: Path) -> None:
    with running(tmp_path, ()) as host, RpcClient("localhost", host.port, timeout=20) as client:
        _fork_for_good(client, host, tmp_path)
        host.program.kill()
        assert eventually(lambda: not host.processes(), 5), f"still there: {host.processes()}"


def test_a_process_that_an_agent_forks_ends_on_sigterm_and_ends_no_host(tmp_path: Path) -> None:
    with running(tmp_path, ()) as host, RpcClient("localhost", host.port, timeout=20) as client:
        stuck = client.create_agent("Stuck")
        assert stuck.terminate_a_child() == -signal.SIGTERM
        time.sleep(GRACE_S + 1)  # the alarm that a signal to the host sets would be over
        assert stuck.ready()


@pytest.mark.parametrize("way", ["SIGTERM", "launcher", pytest.param("supervisor", marks=soak_only)])
def test_a_host_that_stops_leaves_no_process_of_a_pool_that_its_agents_have_made(way: str, tmp_path: Path) -> None:
    with running(tmp_path, WAYS[way][0]) as host, RpcClient("localhost", host.port, timeout=20) as client:
        for isolation in ("thread", "process"):
            for method in ("fork", "spawn", "forkserver"):
                stuck = client.create_agent("Stuck", agent_options={"isolation": isolation})
                assert stuck.fill_a_pool(method) == 4
        _stop_in_time(host, way)
