"""Stop means stop, as seen from outside: real processes, signals, exit statuses; and nothing left after a kill."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hosts import STUCK_S, environment, eventually, is_gone, output_of, started, told
from scale import LATE_S, linux_only, soak_only
from zmqagents import AgentBase, HostStopping, RpcClient, async_func, discovery

AGENTS = """
import os, time
from zmqagents import AgentBase, async_func

class Worker(AgentBase):
    @async_func
    def nap(self, seconds):
        time.sleep(seconds)
        return seconds

    def sleep(self, seconds):
        time.sleep(seconds)

    def leave(self, status):
        os._exit(status)
"""


class Hog(AgentBase):
    """Lets no other thread of its process run."""

    @async_func
    def keep_the_gil(self, seconds: int, mark: str) -> None:
        sleep = ctypes.PyDLL(None).sleep  # of PyDLL: it does not let go
        Path(mark).touch()
        sleep(seconds)


@pytest.fixture(scope="module")
def agent_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("agents")
    (place / "agents.py").write_text(AGENTS)
    return str(place)


@contextlib.contextmanager
def shell(*options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``as_server start``: its process and the port of its host."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqagents", "start", "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=10)[1]
            yield process, json.loads(line)["port"]
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=15)
            process.kill()


# ---------------------------------------------------------------- every caller is answered


@linux_only("elsewhere no signal can be sent to a thread of others")
@pytest.mark.parametrize("restart", [[], ["--restart"]], ids=["alone", "supervised"])
def test_a_signal_that_another_thread_gets_is_heard_at_once(restart: list[str]) -> None:
    """The kernel may give it to any thread, and then it does not end the wait of the one that handles it."""
    with shell(*restart) as (process, port):
        with RpcClient("localhost", port) as client:
            host = client.get_server_info()["pid"]
        (other, *_) = [int(name) for name in os.listdir(f"/proc/{host}/task") if int(name) != host and _takes(name)]
        begun = time.monotonic()
        assert ctypes.CDLL(None).tgkill(host, other, signal.SIGTERM) == 0
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 3 + LATE_S


def _takes(thread: str) -> bool:
    """Whether it is none that blocks SIGTERM, as those of libzmq do."""
    status = Path(f"/proc/{thread}/status").read_text()
    return not int(status.partition("SigBlk:")[2].split()[0], 16) >> signal.SIGTERM - 1 & 1


@pytest.mark.parametrize(
    "restart",
    [pytest.param([], id="alone"), pytest.param(["--restart"], id="supervised", marks=soak_only)],
)
def test_sigterm_with_a_stuck_method_answers_50_callers_and_ends_within_the_grace_and_two_seconds(
    agent_dir: str, restart: list[str]
) -> None:
    grace_s = 2.0  # so that a busy machine has time to tell 50 callers
    with shell("--agent-dir", agent_dir, "--grace", str(grace_s), *restart) as (process, port):
        outcomes: list[str] = []
        with RpcClient("localhost", port) as client, RpcClient("localhost", port, transport="tcp") as far:
            stuck = client.create_agent("Worker")

            def call(proxy: Any) -> None:
                try:
                    proxy.sleep(STUCK_S)
                except HostStopping as exc:
                    outcomes.append(str(exc))

            proxies = [stuck, far.get_agent(stuck.agent_id)] * 25
            callers = [threading.Thread(target=call, args=(proxy,)) for proxy in proxies]
            for caller in callers:
                caller.start()
            assert eventually(lambda: client.get_server_info()["calls_open"] == 50, 10)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(grace_s + 10) == 0
            took = time.monotonic() - start
            for caller in callers:
                caller.join(5)
        assert grace_s <= took < grace_s + 1.5 + LATE_S
        assert len(outcomes) == 50
        assert sum("running" in text for text in outcomes) == 1
        assert sum("queued" in text for text in outcomes) == 49


# ---------------------------------------------------------------- exit statuses


def test_the_exit_statuses_of_start_are_those_of_the_table(agent_dir: str, tmp_path: Path) -> None:
    with shell("--agent-dir", agent_dir) as (process, port):
        with socket.socket() as nobody:  # a port that is taken
            nobody.bind(("127.0.0.1", 0))
            nobody.listen()
            assert start("--port", str(nobody.getsockname()[1])).returncode == 3
        assert start("--capacity", "0").returncode == 2
        assert start("--agent-dir", str(tmp_path / "none")).returncode == 2
        assert start("--restart", "--port", str(port)).returncode == 3
        with RpcClient("localhost", port) as client, pytest.raises(ConnectionError):
            client.create_agent("Worker").leave(9)
        assert process.wait(10) == 9


def start(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zmqagents", "start", *options],
        capture_output=True, text=True, env=environment(), timeout=30,
    )  # fmt: skip


# ---------------------------------------------------------------- the parent dies

HOG = """
import json, sys, time
from test_stop import Hog
from zmqagents import RpcAgentServerLauncher
server = RpcAgentServerLauncher(custom_agent_classes=[Hog], start_method=sys.argv[1], restart=sys.argv[2] == "restart")
server.launch()
print(json.dumps([server.pid, server.port]), flush=True)
time.sleep(60)
"""


@linux_only("needs a signal at the end of a pipe")
@pytest.mark.parametrize(
    ("method", "restart"),
    [("fork", ""), pytest.param("fresh", "", marks=soak_only), pytest.param("fork", "restart", marks=soak_only)],
)
def test_a_host_whose_agent_keeps_the_gil_does_not_outlive_its_parent(
    method: str, restart: str, tmp_path: Path
) -> None:
    with started(HOG, method, restart) as program:
        pid, port = told(program)
        with RpcClient("localhost", port) as client:
            client.create_agent(Hog).keep_the_gil(60, str(tmp_path / "mark"))
            assert eventually((tmp_path / "mark").exists, 10)
            program.kill()
            assert eventually(lambda: is_gone(pid), 2 + LATE_S)
    discovery.sweep()  # it could not do that itself


MOMENTS = """
import sys
from hosts import Worker
from zmqagents import RpcAgentServerLauncher
print("null", flush=True)
method, restart = sys.argv[1:]
RpcAgentServerLauncher(custom_agent_classes=[Worker], start_method=method, restart=restart != "").launch()
"""


@pytest.mark.parametrize(
    ("method", "restart"),
    [pytest.param("fork", "", marks=soak_only), pytest.param("fresh", "", marks=soak_only), ("fresh", "restart")],
)
def test_a_launcher_that_is_killed_at_any_moment_of_the_launch_leaves_nothing(
    method: str, restart: str, runtime_dir: Path
) -> None:
    for pause_s in (0.0, 0.02, 0.1, 0.3):  # from before the child is there until it listens
        with started(MOMENTS, method, restart) as program:
            told(program)
            time.sleep(pause_s)
            group = psutil.Process(program.pid).children(recursive=True)
            program.kill()
            assert eventually(lambda: all(is_gone(child.pid) for child in group), 2 + LATE_S)  # noqa: B023  # waits here
    for draft in runtime_dir.glob(".*.json.*"):  # a host was killed while it wrote its record
        os.utime(draft, (0, 0))  # no later sweep takes it for one that is being written
    discovery.sweep()


# ---------------------------------------------------------------- what a kill leaves, the next start removes


def test_the_next_start_removes_what_killed_hosts_have_left(runtime_dir: Path) -> None:
    def files() -> set[str]:
        return {path.name for path in runtime_dir.iterdir()}

    before = files()
    with shell("--server-id", "killed-1") as (one, _), shell("--server-id", "killed-2") as (two, _):
        for process in (one, two):
            process.kill()
            process.wait()
    assert files() - before == {f"killed-{n}.{end}" for n in (1, 2) for end in ("ipc", "ipc.lock", "json")}
    (runtime_dir / "killed-2.json").unlink()  # as if killed before it had written its record
    drafts = [runtime_dir / f".killed-{n}.json.{'0' * 12}" for n in (1, 2)]
    for draft in drafts:
        draft.touch()
    os.utime(drafts[0], (0, 0))
    try:
        with shell("--server-id", "alive-1"), shell("--server-id", "alive-2"):
            of_the_living = {f"alive-{n}.{end}" for n in (1, 2) for end in ("ipc", "ipc.lock", "json")}
            assert files() - before == of_the_living | {drafts[1].name}  # somebody may be writing that now
    finally:
        drafts[1].unlink()
    assert files() == before


def test_a_host_says_nothing_secret_in_the_arguments_of_its_process() -> None:
    source = """
import json, psutil
from zmqagents import RpcAgentServerLauncher
url = "redis://me:sk-secret@localhost:1/2"
with RpcAgentServerLauncher(redis_url=url, start_method="fresh", restart=True):
    processes = psutil.Process().children(recursive=True)
    print(json.dumps([process.cmdline() for process in processes]))
"""
    processes = output_of(source)
    assert len(processes) == 2
    assert "sk-secret" not in json.dumps(processes)


def test_sigusr2_writes_the_stacks_of_all_threads_also_while_the_gil_is_held(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = ""

    def heard() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "in keep_the_gil" in said and "in _loop" in said  # the agent and the router

    with started(HOG, "fork", "") as program:  # its host writes to our stderr
        pid, port = told(program)
        with RpcClient("localhost", port) as client:
            hogging = client.create_agent(Hog).keep_the_gil(8, str(tmp_path / "mark"))
            assert eventually((tmp_path / "mark").exists, 10)
            os.kill(pid, signal.SIGUSR2)
            assert eventually(heard, 7.5)
            assert not hogging.done()
            hogging.result(10)  # and it goes on
        program.kill()
        assert eventually(lambda: is_gone(pid), 2 + LATE_S)


def test_processes_of_agents_of_the_shell_command_do_not_keep_its_port(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(
        "import multiprocessing, time\nfrom zmqagents import AgentBase\nclass Parent(AgentBase):\n"
        "    def start_one(self):\n"
        "        child = multiprocessing.Process(target=time.sleep, args=(60,))\n        child.start()\n"
        "        return child.pid, multiprocessing.get_start_method()\n"
    )
    with shell("--agent-dir", str(tmp_path)) as (process, port), RpcClient("localhost", port) as client:
        child, method = client.create_agent("Parent").start_one()
        try:
            process.kill()
            process.wait()
            assert (method, is_gone(child)) == ("forkserver", False)
            with shell("--port", str(port)):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
