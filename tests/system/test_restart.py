"""A host that crashes is started again, one that was stopped is not; and nothing of either is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hosts import (
    STUCK_S,
    Worker,
    environment,
    eventually,
    freeze,
    is_gone,
    output_of,
    running,
    seconds_of,
    started,
    told,
)
from raw_peer import RawPeer
from scale import LATE_S, soak_only
from zmqagents import (
    AddressInUse,
    AgentBase,
    ConfigError,
    HostUnreachable,
    LaunchError,
    RpcAgentServerLauncher,
    RpcClient,
    SerializationError,
    async_func,
    cli,
    codec,
    discovery,
    idempotent,
)
from zmqagents.config import END_WAIT_S
from zmqagents.process.crashes import Crashes
from zmqagents.server.supervisor import LIMIT, WINDOW_S
from zmqagents.wire.messages import Kind

METHODS = ["fork", "fresh"]
READY_S = 1.5 + LATE_S  # after a crash


def epoch(host: Any) -> str:
    """What a host says in its WELCOME, by which clients tell it from its predecessor."""
    with RawPeer(host) as peer:
        peer.say_hello()
        welcome, (body,) = peer.receive()
        assert welcome.kind == Kind.WELCOME
        return str(codec.unpack(body)["epoch"])


def supervisor_of(pid: int) -> int:
    return psutil.Process(pid).ppid()


def pid_at(port: int) -> int | None:
    record = discovery.find_host("localhost", port)
    return None if record is None else record.pid


def another_pid(port: int, than: int) -> int:
    """The process of the next host, once that listens."""
    assert eventually(lambda: pid_at(port) not in (None, than), 10)
    pid = pid_at(port)
    assert pid is not None
    return pid


# ---------------------------------------------------------------- when


def test_the_pauses_double_and_differ_from_host_to_host() -> None:
    for expected in (0.1, 0.2, 0.4, 0.8):
        crashes = [Crashes(LIMIT, WINDOW_S) for _ in range(50)]
        pauses: list[float] = []
        for one in crashes:
            for second in range(round(expected / 0.1).bit_length()):
                pause = one.pause(100.0 + second)
            assert pause is not None
            pauses.append(pause)
        assert 0.8 * expected <= min(pauses) < max(pauses) <= 1.2 * expected


def test_the_sixth_crash_within_a_minute_is_the_last() -> None:
    crashes = Crashes(LIMIT, WINDOW_S)
    assert [crashes.pause(float(second)) is None for second in range(6)] == [False] * 5 + [True]


def test_crashes_of_long_ago_are_forgotten_and_the_pauses_are_short_again() -> None:
    crashes = Crashes(LIMIT, WINDOW_S)
    for number in range(100):
        pause = crashes.pause(number * 30.0)
        assert pause is not None
        assert pause <= 0.1 * 2 * 1.2
    assert len(crashes) == 2


def test_a_pause_is_never_longer_than_ten_seconds() -> None:
    crashes = Crashes(50, WINDOW_S)
    assert all((crashes.pause(second / 10) or 0) <= 12 for second in range(50))


# ---------------------------------------------------------------- a crash


@pytest.mark.parametrize("method", ["fork", pytest.param("fresh", marks=soak_only)])
def test_a_killed_host_is_there_again_within_two_seconds_and_knows_what_it_is(method: str) -> None:
    with running(method, restart=True) as host:
        old, before = discovery.find_host("localhost", host.port), epoch(host)
        assert old is not None
        with host.client() as client:
            client.create_agent(Worker, agent_id="w")
        os.kill(host.pid, signal.SIGKILL)
        assert seconds_of(lambda: another_pid(host.port, host.pid)) < READY_S
        new = discovery.find_host("localhost", host.port)
        assert new is not None
        assert (new.server_id, new.port, new.ipc, new.server_key) == (old.server_id, old.port, old.ipc, old.server_key)
        assert epoch(host) != before
        with host.client(transport="tcp") as client:
            assert client.get_agent_list() == []  # its agents died with it
            assert client.create_agent(Worker, agent_id="w").echo(1) == 1
        os.kill(new.pid, signal.SIGSEGV)  # and as often as it takes
        assert seconds_of(lambda: another_pid(host.port, new.pid)) < READY_S


EXIT = """
import json, os, time
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, AgentCallError

class Bomb(AgentBase):
    def end(self, status):
        os._exit(status)

with RpcAgentServerLauncher(custom_agent_classes=[Bomb], restart=True) as server:
    pid, found = server.pid, []
    with RpcClient(server.host, server.port) as client:
        try:
            client.create_agent(Bomb).end(3)
        except ConnectionError as exc:
            found.append(type(exc).__name__)
    while server.pid in (None, pid):
        assert server.is_running
        time.sleep(0.01)
    with RpcClient(server.host, server.port) as client:
        found.append(client.get_agent_list())
        client.stop(0)
    server.wait_until_terminate()  # because it was stopped, whoever stopped it
    found += [server.is_running, server.pid]
print(json.dumps(found))
"""


def test_a_launcher_sees_the_new_host_and_the_end_that_a_client_asked_for() -> None:
    error, agents, still_running, pid = output_of(EXIT)
    assert error in ("CallLost", "HostLost")
    assert (agents, still_running, pid) == ([], False, None)


def test_a_stopped_host_is_not_started_again() -> None:
    with running("fork", restart=True) as host:
        above = supervisor_of(host.pid)
        os.kill(host.pid, signal.SIGTERM)
        assert eventually(lambda: is_gone(above), 5)
        assert is_gone(host.pid)
        assert pid_at(host.port) is None


# ---------------------------------------------------------------- when it is no use

LOOP = """
import json, logging, os, signal, sys, time
from zmqagents import RpcAgentServerLauncher
from zmqagents.server import supervisor
supervisor.FIRST_S, supervisor.LIMIT = 0.01, 3
server = RpcAgentServerLauncher(agent_dir=sys.argv[1], restart=True)
server.launch()
os.kill(server.pid, signal.SIGKILL)
start = time.monotonic()
server.wait_until_terminate()
took = time.monotonic() - start
files = [name for name in os.listdir(os.environ["ZMQAGENTS_RUNTIME"]) if name.startswith(server.server_id)]
print(json.dumps([took, server.is_running, files]))
"""


def test_a_host_that_crashes_at_each_start_is_given_up_and_leaves_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agents.py").write_text(
        f"import os, pathlib\nseen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "if seen.exists(): os.write(2, b'[start]'); os._exit(9)\nseen.touch()\n"
    )
    took, still_running, files = output_of(LOOP, str(tmp_path))
    assert took < 10
    assert (still_running, files) == (False, [])
    said = capfd.readouterr().err
    assert said.count("[start]") == 3
    assert "exit status 9" in said
    assert "given up after 4 crashes in 60 s" in said


def test_settings_that_are_wrong_by_now_are_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agents.py").write_text(
        f"import pathlib\nseen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "if seen.exists(): raise ImportError('moved away')\nseen.touch()\n"
    )
    took, still_running, files = output_of(LOOP, str(tmp_path))
    assert took < 10
    assert (still_running, files) == (False, [])
    said = capfd.readouterr().err
    assert said.count("starting it again") == 1
    assert "the host is not started again" in said
    assert "moved away" in said


def test_the_first_start_fails_as_without_a_supervisor() -> None:
    with running("fork") as taken:
        server = RpcAgentServerLauncher(port=taken.port, restart=True)
        with pytest.raises(AddressInUse):
            server.launch()
        assert not server.is_running


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="restart"):
        RpcAgentServerLauncher(restart="yes")  # type: ignore[arg-type]
    with pytest.raises(LaunchError, match="restart=True"):
        RpcAgentServerLauncher(restart=True).launch(in_subprocess=False)


# ---------------------------------------------------------------- the end, at any moment


def test_shutdown_while_it_waits_to_start_again_is_immediate() -> None:
    source = """
import json, os, signal, time
from zmqagents import RpcAgentServerLauncher
from zmqagents.server import supervisor
supervisor.FIRST_S = 60
server = RpcAgentServerLauncher(restart=True)
server.launch()
os.kill(server.pid, signal.SIGKILL)
while server.pid is not None:
    time.sleep(0.01)
assert server.is_running
start = time.monotonic()
server.shutdown()
print(json.dumps([time.monotonic() - start, server.is_running]))
"""
    took, still_running = output_of(source)
    assert took < 1 + LATE_S
    assert not still_running


def test_a_crash_during_the_stop_is_the_end() -> None:
    source = """
import json, os, signal, sys, threading, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher, RpcClient
server = RpcAgentServerLauncher(custom_agent_classes=[Worker], restart=True)
server.launch()
pid = server.pid
with RpcClient(server.host, server.port) as client:
    client.create_agent(Worker).nap(1e6)
    client.get_server_info()  # on the same connection: when it is answered, the host has the call
    ending = threading.Thread(target=server.shutdown, args=(30,))
    ending.start()
    while client.get_server_info()["state"] != "draining":
        time.sleep(0.01)
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    ending.join()
print(json.dumps([time.monotonic() - start, server.is_running, server.pid]))
"""
    took, still_running, pid = output_of(source)
    assert took < 1.5 + LATE_S
    assert (still_running, pid) == (False, None)


CHAIN = """
import json, sys, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher
server = RpcAgentServerLauncher(custom_agent_classes=[Worker], start_method=sys.argv[1], restart=True)
server.launch()
print(json.dumps([server.pid, server.port]), flush=True)
server.wait_until_terminate()
print(json.dumps(server.is_running), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_death_of_the_launcher_ends_the_whole_chain_within_two_seconds(method: str) -> None:
    with started(CHAIN, method) as program:
        pid, port = told(program)
        above = supervisor_of(pid)
        with RpcClient("localhost", port) as client:
            client.create_agent(Worker).nap(STUCK_S)
            assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
            program.kill()
            assert eventually(lambda: is_gone(pid) and is_gone(above), 2 + LATE_S)


def test_the_death_of_the_launcher_while_the_host_is_being_started_again_ends_the_supervisor() -> None:
    with started(
        CHAIN.replace("server = ", "from zmqagents.server import supervisor; supervisor.FIRST_S = 60\nserver = "),
        "fork",
    ) as program:
        pid, port = told(program)
        above = supervisor_of(pid)
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: pid_at(port) is None, 5)
        assert not is_gone(above)
        program.kill()
        assert eventually(lambda: is_gone(above), 2 + LATE_S)


def test_the_death_of_the_supervisor_ends_the_host_and_is_seen_by_the_launcher() -> None:
    with started(CHAIN, "fork") as program:
        pid, _ = told(program)
        os.kill(supervisor_of(pid), signal.SIGKILL)
        assert told(program) is False
        assert eventually(lambda: is_gone(pid), 2 + LATE_S)


# ---------------------------------------------------------------- from the shell


@contextlib.contextmanager
def shell(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """``as_server start --restart``, in a process group of its own as a shell makes it; and what it announces."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqagents", "start", "--restart", "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate(timeout=10)[1]
            yield process, json.loads(line)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=15)
            process.kill()


def test_start_restart_starts_it_again_and_ends_with_status_0_when_it_is_stopped() -> None:
    with shell() as (process, said):
        assert supervisor_of(said["pid"]) == process.pid
        os.kill(said["pid"], signal.SIGKILL)
        again = another_pid(said["port"], said["pid"])
        with RpcClient("localhost", said["port"]) as client:
            client.stop()
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out) == (0, "")
        assert is_gone(again)
        lines = err.splitlines()
        assert len(lines) == 2
        assert "killed by SIGKILL" in lines[0]
        assert f"as process {again}" in lines[1]


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=soak_only)])
def test_a_signal_to_its_process_group_drains_the_host_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "naps.py").write_text(
        "import time\nfrom zmqagents import AgentBase, async_func\nclass Naps(AgentBase):\n"
        "    @async_func\n    def nap(self, seconds):\n        time.sleep(seconds)\n        return seconds\n"
    )
    with shell("--agent-dir", str(tmp_path)) as (process, said), RpcClient("localhost", said["port"]) as client:
        result = client.create_agent("Naps").nap(0.5)
        assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
        os.killpg(process.pid, getattr(signal, name))
        assert result.result(5) == 0.5
        assert process.wait(5) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with running("fork", restart=True, grace_s=60) as host, host.client() as client:
        stuck = client.create_agent(Worker).nap(STUCK_S)
        assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
        above = supervisor_of(host.pid)
        os.kill(above, signal.SIGTERM)
        assert eventually(lambda: client.get_server_info()["state"] == "draining", 5)
        os.kill(above, signal.SIGTERM)
        assert stuck.exception(5) is not None
        assert eventually(lambda: is_gone(above) and is_gone(host.pid), 2 + LATE_S)


def test_a_host_that_hears_nothing_is_killed_by_its_supervisor() -> None:
    with shell("--grace", "0.1") as (process, said):
        freeze(said["pid"])
        start = time.monotonic()
        process.terminate()
        assert process.wait(10) == 1
        assert time.monotonic() - start < 0.1 + END_WAIT_S + 1.5 + LATE_S
        assert is_gone(said["pid"])
        assert pid_at(said["port"]) is None
        with pytest.raises(HostUnreachable), RpcClient("localhost", said["port"]) as client:
            client.get_agent_list()


# ---------------------------------------------------------------- agents that are there at each start


class Shelf(AgentBase):
    """Slow to make, so that whoever comes too early would find nothing."""

    def __init__(self, size: int = 1, *, colour: str = "grey") -> None:
        super().__init__()
        if size < 0:
            raise ValueError("a shelf has a size")
        time.sleep(0.2)
        self.about = [size, colour]

    @idempotent
    @async_func
    def look(self, number: int) -> list[Any]:
        time.sleep(0.001)
        return [number, *self.about]


def test_idempotent_calls_go_on_with_the_next_host_on_agents_that_are_made_at_each_start() -> None:
    agents: dict[str, Any] = {"shelf": (Shelf, {"size": 3, "colour": "red"}), "other": f"{Shelf.__module__}:Shelf"}
    with (
        RpcAgentServerLauncher(agents=agents, restart=True) as server,
        RpcClient(server.host, server.port) as client,
    ):
        assert client.get_agent("other").about == [1, "grey"]  # without a wait: it was there first
        shelf = client.get_agent("shelf")
        results = [shelf.look(number) for number in range(200)]
        results[20].result(10)
        pid = server.pid
        assert pid is not None
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        assert [result.result(10) for result in results] == [[number, 3, "red"] for number in range(200)]
        assert time.monotonic() - start < READY_S + 2
        assert server.pid not in (None, pid)


@pytest.mark.parametrize(
    ("agents", "kind", "words"),
    [
        ({"shelf": (Shelf, {"size": -1})}, LaunchError, "agent shelf could not be made.*a shelf has a size"),
        ({"shelf": "Cupboard"}, ConfigError, "shelf cannot be made.*Cupboard"),
        ({"shelf": (Shelf, {"size": object()})}, SerializationError, "shelf.*size.*object"),
        ({"shelf": 3}, ConfigError, "agents must be"),
        ({"shelf": (Shelf, [])}, ConfigError, "agents must be"),
        ({"": Shelf}, ConfigError, "agents must be"),
        ([Shelf], ConfigError, "agents must be"),
    ],
)
def test_an_agent_that_cannot_be_made_at_the_start_keeps_the_host_from_starting(
    agents: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        RpcAgentServerLauncher(agents=agents, start_method="fresh").launch()


def test_agents_of_the_command_line_are_there_when_the_host_says_that_it_listens(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text("from zmqagents import AgentBase\nclass A(AgentBase): pass\n")
    options = ["--agent-dir", str(tmp_path), "--agent", "one=A", "--agent", "two=A"]
    with shell(*options) as (_, said), RpcClient("localhost", said["port"]) as client:
        assert [agent["agent_id"] for agent in client.get_agent_list()] == ["one", "two"]
        assert client.get_server_info()["settings"]["agents"] == {"one": "A", "two": "A"}
        os.kill(said["pid"], signal.SIGKILL)
        another_pid(said["port"], said["pid"])
        assert len(client.get_agent_list()) == 2
    for wrong in ("one", "=A", "one="):
        with pytest.raises(SystemExit) as ended:
            cli.main(["start", "--agent", wrong])
        assert ended.value.code == 2


def test_a_host_that_is_not_ready_in_time_leaves_nothing_although_it_listens() -> None:
    server = RpcAgentServerLauncher(agents={"slow": Snail}, launch_timeout_s=1)
    with pytest.raises(LaunchError, match="launch_timeout_s"):
        server.launch()
    assert not [path for path in discovery.runtime_dir().iterdir() if server.server_id in path.name]


class Snail(AgentBase):
    def __init__(self) -> None:
        super().__init__()
        time.sleep(60)
