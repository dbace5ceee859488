"""The ten minutes of docs/cluster.rst, typed line by line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from hosts import ENDS_WITHIN_S, ROOT, environment, eventually, free_port
from redis_server import NO_SERVER, binaries
from scale import linux_only
from typed import path_with_commands

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

PAGE = (ROOT / "docs" / "cluster.rst").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "account"


class Shell:
    """Types lines of the page, with other ports in the place of its own: those may be taken here."""

    def __init__(self, folder: Path, runtime: str) -> None:
        path = path_with_commands(folder, {"redis-server": str(binaries()[0])})
        self.environment = environment(PYTHONPATH=str(ROOT), PATH=path, ZMQAGENTS_RUNTIME=runtime)
        self.folder = folder
        self.ports = {page: str(free_port()) for page in ("6379", "12011", "12012", "12013")}

    def here(self, text: str) -> str:
        return re.sub("|".join(self.ports), lambda found: self.ports[found.group()], text)

    def run(self, line: str) -> str:
        assert f"    {line}\n" in PAGE, "the page says something else"
        return self.done(self.here(line))

    def done(self, line: str) -> str:
        command = ["/bin/sh", "-c", line]
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    @contextlib.contextmanager
    def started(self, line: str) -> Iterator[subprocess.Popen[str]]:
        assert f"    {line} &\n" in PAGE, "the page says something else"
        command = ["/bin/sh", "-c", f"exec {self.here(line)}"]
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with process:
            try:
                assert process.stdout is not None
                assert "listening on" in process.stdout.readline()
                yield process
            finally:
                process.kill()


@pytest.mark.skipif(not binaries(), reason=NO_SERVER)
def test_what_the_page_types_gives_what_it_says(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "agents", tmp_path / "agents", ignore=shutil.ignore_patterns("__pycache__"))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="za") as runtime, contextlib.ExitStack() as stack:
        shell = Shell(tmp_path, f"{runtime}/run")
        (tmp_path / "add.py").write_text(shell.here((EXAMPLE / "add.py").read_text(encoding="utf-8")))
        shell.run('redis-server --port 6379 --appendonly yes --save "" --daemonize yes')
        stack.callback(stack.enter_context(Redis(port=int(shell.ports["6379"]))).shutdown)
        starts = re.findall(r"^    (as_server start --cluster .*) &$", PAGE, re.MULTILINE)
        assert len(starts) == 3
        hosts = [stack.enter_context(shell.started(line)) for line in starts]
        assert eventually(lambda: len(shell.run("as_server hosts").splitlines()) == 4, ENDS_WITHIN_S)
        assert (shell.run("python add.py 500"), shell.run("python add.py 1")) == ("500\n", "501\n")
        home = re.findall(r"^host +(\w+) at ", shell.run("as_server where Account/ann"), re.MULTILINE)[0]
        pid = json.loads(shell.done(f"as_server status --server-id {home} --json"))["pid"]
        assert pid in {host.pid for host in hosts}
        os.kill(pid, signal.SIGKILL)  # kill -9 PID
        assert shell.run("python add.py 1") == "502\n"
        again = re.findall(r"^host +(\w+) at ", shell.run("as_server where Account/ann"), re.MULTILINE)[0]
        assert again != home
        assert "joined" in shell.run("as_server events")
        assert "as_server drain one\n" in PAGE
        other = next(name for name in ("one", "two", "three") if name not in (home, again))
        assert shell.done(f"as_server drain {other}").startswith("drained")
        assert shell.run("python add.py 1") == "503\n"
