"""``as_server start --web``: a host and its web process by one command, which end together."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from gateway_world import World, token_of
from hosts import ROOT, eventually, free_port
from typed import path_with_commands
from zmqagents import RpcClient, discovery

pytestmark = [pytest.mark.program, pytest.mark.timeout(180)]
AS_SERVER = [sys.executable, "-m", "zmqagents"]
LIMIT_S = 60.0


@contextlib.contextmanager
def started(*words: str, cwd: Path, web: int) -> Iterator[tuple[subprocess.Popen[str], World]]:
    port = free_port()
    command = [*AS_SERVER, "start", *words, "--port", str(port), "--web", str(web)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert "listening on" in line
            assert f"http://127.0.0.1:{web}/#token=" in line
            with RpcClient("localhost", port) as client:
                yield process, World(None, client, f"http://127.0.0.1:{web}", token_of())
            told = time.monotonic()
            process.terminate()
            status = process.wait(LIMIT_S)
            assert status == 0, f"after {time.monotonic() - told:.1f} s"
        finally:
            process.kill()


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    source = """
        from zmqagents import AgentBase

        class Words(AgentBase):
            def reply(self, text: str) -> int:
                return len(text.split())

            def fail(self) -> None:
                raise ValueError("it does not work")
        """
    (tmp_path / "words.py").write_text(textwrap.dedent(source))
    return tmp_path


def test_the_agents_of_the_command_line_are_shown_as_soon_as_the_host_says_that_it_listens(agents: Path) -> None:
    web = free_port()
    with started("--agent", "w=words:Words", "--expose", "later", cwd=agents, web=web) as (process, world):
        assert world.call("w", "reply", text="one two") == (200, 2)
        world.client.create_agent("Words", agent_id="hidden")
        world.client.create_agent("Words", agent_id="later")
        assert world.call("hidden", "reply", text="one")[0] == 404
        assert world.call("later", "reply", text="one") == (200, 1)
        (beside,) = [each for each in psutil.Process(process.pid).children() if "web" in each.cmdline()]
    assert not beside.is_running()
    with socket.create_server(("127.0.0.1", web)):
        pass  # the port is free again


def test_the_web_process_ends_with_a_host_that_is_killed(agents: Path) -> None:
    web = free_port()
    command = [*AS_SERVER, "start", "words:Words", "--port", str(free_port()), "--web", f"127.0.0.1:{web}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=agents) as process:
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        (beside,) = [each for each in psutil.Process(process.pid).children() if "web" in each.cmdline()]
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)
        assert eventually(lambda: not beside.is_running() or beside.status() == psutil.STATUS_ZOMBIE, 20)
    discovery.sweep()  # the files of the host


def test_a_port_that_is_taken_is_told_before_anything_starts(agents: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [*AS_SERVER, "start", "words:Words", "--port", str(free_port()), "--web", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=agents, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"port {port} is in use" in done.stderr


def test_a_supervised_host_keeps_its_web_process(agents: Path) -> None:
    with started("--restart", "--agent", "w=words:Words", cwd=agents, web=free_port()) as (_, world):
        assert world.call("w", "reply", text="one two") == (200, 2)
        pid = world.client.get_server_info()["pid"]
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + LIMIT_S
        while world.call("w", "reply", text="one two") != (200, 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert world.client.get_server_info()["pid"] != pid


def test_a_failed_call_is_in_the_log_under_the_name_of_its_user(agents: Path) -> None:
    key = zmq.curve_keypair()[0].decode()
    subprocess.run([*AS_SERVER, "keys", "add", "ann", key], check=True, timeout=LIMIT_S)
    try:
        with started("--agent", "w=words:Words", cwd=agents, web=free_port()) as (_, world):
            assert world.ask("POST", "/agents/w/fail", {}, token=token_of("ann"))[0] == 500
            lines = [line for line in world.client.get_log()["lines"] if "it does not work" in str(line)]
        assert [line["user"] for line in lines] == ["key:ann"]
    finally:
        subprocess.run([*AS_SERVER, "keys", "remove", "ann"], check=True, timeout=LIMIT_S)


def commands() -> list[str]:
    """Those of the first block of docs/gateway.rst, which is in the README's links."""
    text = (ROOT / "docs" / "gateway.rst").read_text()
    block = re.search(r"\.\. code-block:: sh\n\n((?:    .*\n|\n)+)", text)
    assert block is not None
    lines = textwrap.dedent(block[1]).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def test_one_command_serves_a_graph_to_curl_and_to_clients_of_mcp_and_openai(tmp_path: Path) -> None:
    pytest.importorskip("langgraph")
    install, start, curl, by_mcp, by_openai = commands()
    assert install.startswith("pip install")
    web, environment = free_port(), {**os.environ, "PATH": path_with_commands(tmp_path)}

    def shell(text: str) -> dict[str, Any]:
        return {"args": text.replace("8080", str(web)), "shell": True, "cwd": ROOT, "text": True, "env": environment}

    assert shutil.which("curl")
    with subprocess.Popen(**shell(f"exec {start} --port {free_port()}"), stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        try:
            assert "listening on" in host.stdout.readline()
            told = [
                subprocess.run(**shell(text), capture_output=True, timeout=LIMIT_S)
                for text in (curl, by_mcp, by_openai)
            ]
        finally:
            host.terminate()
            host.wait(LIMIT_S)
    assert [done.returncode for done in told] == [0, 0, 0], [done.stderr for done in told]
    assert '"HELLO! (1)"' in told[0].stdout
    assert "g.reply" in told[1].stdout
    assert "HELLO! (1)" in told[1].stdout
    assert told[2].stdout == "models: g\nHELLO! (1)\n"


def test_agents_to_show_need_a_web_process() -> None:
    command = [*AS_SERVER, "start", "--expose", "reader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--expose says what the gateway of --web shows" in done.stderr
