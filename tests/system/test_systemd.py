"""The words to systemd, heard on a real socket; and the unit file."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import ROOT, environment, output_of
from zmqagents import RpcClient
from zmqagents.discovery import places
from zmqagents.server.systemd import Notifier

AGENTS = """
import gc, os, time
from zmqagents import AgentBase, async_func
from zmqagents.broker.broker import Broker

class Meddler(AgentBase):
    def environment(self):
        return [name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG"))]
    @async_func
    def stop_the_router_for(self, seconds):
        broker = next(thing for thing in gc.get_objects() if isinstance(thing, Broker))
        broker.post(lambda: [time.sleep(seconds)][:0])
"""


class Manager:
    """The service manager's end of ``$NOTIFY_SOCKET``."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)

    def hear(self) -> list[str]:
        """The next word, as lines."""
        return self.socket.recv(4096).decode().splitlines()

    def hear_all(self) -> list[list[str]]:
        """What has come and was not heard yet."""
        self.socket.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(self.hear())
        return heard


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    place = str(tmp_path / "notify") if request.param == "path" else f"@zmqagents-test-{os.getpid()}"
    manager = Manager(place)
    with manager.socket:
        yield manager


@pytest.fixture
def on_a_path(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        yield manager


@contextlib.contextmanager
def service(manager: Manager, *options: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """``as_server start`` as systemd starts it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqagents", "start", "--grace", "0.2", *options],
        stdout=subprocess.PIPE, text=True, env=environment(NOTIFY_SOCKET=manager.address, **more),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def test_a_service_says_when_it_listens_and_when_it_stops(manager: Manager) -> None:
    with service(manager, "--server-id", "told") as process:
        ready, status = manager.hear()
        assert ready == "READY=1"
        assert re.fullmatch(r"STATUS=listening on port \d+ as told", status)
        process.send_signal(signal.SIGTERM)
        assert manager.hear()[0] == "STOPPING=1"
        assert process.wait(10) == 0
        assert manager.hear_all() == []


def test_a_stop_by_a_client_is_told_while_calls_go_on(on_a_path: Manager, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(
        "import time\nfrom zmqagents import AgentBase, async_func\nclass Naps(AgentBase):\n"
        "    @async_func\n    def nap(self, seconds):\n        time.sleep(seconds)\n"
    )
    with service(on_a_path, "--agent-dir", str(tmp_path)) as process:
        port = int(on_a_path.hear()[1].split()[3])
        with RpcClient("localhost", port) as client:
            client.create_agent("Naps").nap(1e6)
            client.stop(60)
            assert on_a_path.hear()[0] == "STOPPING=1"
            assert process.poll() is None


def test_the_supervisor_speaks_for_the_host(on_a_path: Manager) -> None:
    with service(on_a_path, "--restart", "--server-id", "told") as process:
        ready, status = on_a_path.hear()
        assert ready == "READY=1"
        port = int(status.split()[3])
        with RpcClient("localhost", port) as client:
            os.kill(client.get_server_info()["pid"], signal.SIGKILL)
        assert "killed by SIGKILL" in on_a_path.hear()[0]
        assert on_a_path.hear() == [f"STATUS=listening on port {port} as told"]
        process.send_signal(signal.SIGTERM)
        assert on_a_path.hear()[0] == "STOPPING=1"
        assert process.wait(10) == 0


def test_the_watchdog_hears_of_the_router_thread_and_of_no_other(on_a_path: Manager, tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    limit_s = 0.3
    with service(on_a_path, "--agent-dir", str(tmp_path), WATCHDOG_USEC=str(int(limit_s * 1e6))) as process:
        port = int(on_a_path.hear()[1].split()[3])
        with RpcClient("localhost", port) as client:
            meddler = client.create_agent("Meddler")
            assert meddler.environment() == []  # no child of the service may speak for it
            assert [on_a_path.hear() for _ in range(3)] == [["WATCHDOG=1"]] * 3
            meddler.stop_the_router_for(1.0)
            before = time.monotonic()
            silences: list[float] = []
            while sum(silences) < 1.6:
                assert on_a_path.hear() == ["WATCHDOG=1"]
                silences.append(time.monotonic() - before - sum(silences))
        assert max(silences) > 2 * limit_s  # systemd would have killed it
        assert silences[-1] < limit_s + 0.3  # and it has come back
        assert process.poll() is None


def test_a_watchdog_and_a_supervisor_are_refused_together(on_a_path: Manager) -> None:
    with service(on_a_path, "--restart", WATCHDOG_USEC="1000000") as process:
        assert process.wait(10) == 2
    assert on_a_path.hear_all() == []


def test_a_watchdog_that_is_meant_for_another_process_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, meant in (("1", False), (str(os.getpid()), True), ("", True)):
        monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
        monkeypatch.setenv("WATCHDOG_USEC", "2000000")
        monkeypatch.setenv("WATCHDOG_PID", pid)
        notifier = Notifier.from_environment()
        assert notifier
        assert notifier.watchdog_s == (2.0 if meant else None)
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()


def test_a_program_that_launches_a_host_speaks_for_itself(on_a_path: Manager) -> None:
    source = """
import json, os
from zmqagents import RpcAgentServerLauncher
with RpcAgentServerLauncher():
    print(json.dumps("NOTIFY_SOCKET" in os.environ))
"""
    assert output_of(source, NOTIFY_SOCKET=on_a_path.address) is True
    assert on_a_path.hear_all() == []


def test_a_manager_that_is_deaf_full_or_gone_disturbs_nobody(on_a_path: Manager) -> None:
    Notifier().ready("nobody listens")
    Notifier(f"{on_a_path.address}.gone").ready("nobody is there")
    notifier = Notifier(on_a_path.address, 1.0)
    for _ in range(2000):  # the socket's queue is full long before
        notifier.alive()
    heard = on_a_path.hear_all()
    assert 0 < len(heard) < 2000
    notifier.status("one\nline")
    assert on_a_path.hear_all() == [["STATUS=one line"]]


# ---------------------------------------------------------------- the unit and the cleaner of /tmp


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="there is no systemd here")
def test_the_cleaner_of_tmp_spares_the_files_of_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQAGENTS_RUNTIME", raising=False)
    fallback = places()[-1]
    assert fallback.parent == Path("/tmp")
    line = (ROOT / "packaging" / "zmqagents.tmpfiles.conf").read_text(encoding="utf-8").splitlines()[-1]
    kept, lost = tmp_path / fallback.name, tmp_path / "other"
    for place in (kept, lost):
        place.mkdir()
        (place / "host.json").touch()
        os.utime(place / "host.json", (0, 0))
    rules = tmp_path / "rules.conf"
    rules.write_text(f"d {tmp_path} - - - 0\n{line.replace('/tmp', str(tmp_path))}\nx {rules}\n")
    subprocess.run(["systemd-tmpfiles", "--clean", str(rules)], check=False, capture_output=True)
    assert (kept / "host.json").exists()
    assert not (lost / "host.json").exists()


@pytest.fixture(scope="module")
def unit() -> str:
    return (ROOT / "packaging" / "zmqagents.service").read_text(encoding="utf-8")


def settings_of(unit: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))


def test_the_unit_fits_what_the_host_does(unit: str) -> None:
    from zmqagents.config import BrokerConfig

    settings = settings_of(unit)
    assert settings["Type"] == "notify"
    assert float(settings["TimeoutStopSec"]) > BrokerConfig().grace_s + 2
    assert settings["RestartPreventExitStatus"] == "2 3"
    assert settings["KillMode"] == "mixed"
    assert {"MemoryMax", "LimitNOFILE", "WatchdogSec", "NoNewPrivileges", "ProtectSystem"} <= settings.keys()
    assert "--restart" not in settings["ExecStart"]


def test_its_command_line_is_one_that_starts_a_host(unit: str, tmp_path: Path) -> None:
    words = settings_of(unit)["ExecStart"].split()[1:]
    (tmp_path / "a.py").write_text("from zmqagents import AgentBase\nclass A(AgentBase): pass\n")
    words[words.index("--agent-dir") + 1] = str(tmp_path)
    words[words.index("--port") + 1] = "0"
    process = subprocess.Popen(
        [sys.executable, "-m", "zmqagents", *words], stdout=subprocess.PIPE, text=True, env=environment()
    )
    with process:
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_wrong_with_it(unit: str, tmp_path: Path) -> None:
    place = tmp_path / "zmqagents.service"  # its name is that of the unit
    program = settings_of(unit)["ExecStart"].split()[0]
    place.write_text(unit.replace(program, sys.executable).replace("User=zmqagents", f"User={os.getuid()}"))
    found: Any = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(place)], capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in found.stderr.splitlines() if "zmqagents.service" in line]
    assert (found.returncode, complaints) == (0, [])
