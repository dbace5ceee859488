"""A Redis, hosts of one cluster on it, and what they take of a core."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import redis

from zmqagents import Cluster

from ..driver import ROOT

__all__ = ["Host", "Look", "World", "free_port", "quantile", "world"]

Transport = Literal["curve", "ipc"]
CLUSTER = "bench"
LOOK_S = 0.1
PARTS = "benchmarks.cluster.agents:Account", "benchmarks.cluster.agents:Echo"


def quantile(samples: list[float], share: float) -> float:
    """The value below which ``share`` of the samples lie; 0 without any."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))] if samples else 0.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Look(NamedTuple):
    """Redis since the look before: when, commands a second, and its share of a core."""

    at: float
    commands_per_s: float
    share: float


class Host:
    """One host: a process that `start` has given, and perhaps the one that this has started."""

    def __init__(self, process: subprocess.Popen[str], told: dict[str, Any]) -> None:
        self.process = process
        self.port: int = told["port"]
        self.name: str = told["server_id"]
        self.pid: int = told["pid"]

    @property
    def address(self) -> str:
        """As `Cluster` takes it."""
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """kill -9 of the host itself, not of what starts it again."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM: it gives its agents away first. Its exit status."""
        self.process.terminate()
        self.process.communicate(timeout=80)
        return self.process.returncode

    def close(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.send_signal(signal.SIGTERM)  # the second one: it waits for nothing
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


class World:
    """See the module's docstring."""

    def __init__(self, home: Path, stack: contextlib.ExitStack, transport: Transport, lease_s: float) -> None:
        self.home, self.transport, self.lease_s = home, transport, lease_s
        self._stack = stack
        self.hosts: list[Host] = []
        self.socket = home / "redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "yes"]
        server = subprocess.Popen([*command, "--dir", str(home)], stdout=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.kill)
        self.redis = psutil.Process(server.pid)
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        stack.callback(self.client.close)
        end = time.monotonic() + 20
        while not self._answers():
            if time.monotonic() > end:
                raise RuntimeError("redis-server does not answer")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def environment(self, place: str, **more: str) -> dict[str, str]:
        """Of a host or client. Over ``curve`` none finds another in the file system."""
        runtime = self.home / (place if self.transport == "curve" else "run")
        return {**os.environ, "ZMQAGENTS_KEYS": str(self.home / "keys"), "ZMQAGENTS_RUNTIME": str(runtime), **more}

    def start(self, *words: str, **more: str) -> Host:
        """Start one more host; it has joined when this returns."""
        name = f"h{len(self.hosts) + 1}"
        command = [
            sys.executable, "-m", "zmqagents", "start", *PARTS, "--cluster", CLUSTER, "--lease", str(self.lease_s),
            "--redis-url", f"unix://{self.socket}", "--host", "127.0.0.1", "--local-mode", "--server-id", name,
            "--log-level", "error", "--grace", "30", "--json", *words,
        ]  # fmt: skip
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment(name, **more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        host = Host(process, json.loads(process.stdout.readline()))
        self._stack.callback(host.close)
        self.hosts.append(host)
        return host

    def start_all(self, count: int, *words: str) -> None:
        """So many, which know each other when this returns."""
        for _ in range(count):
            self.start(*words)
        self.wait_for(count)

    def wait_for(self, count: int) -> None:
        """Wait until so many have joined and know each other."""
        with self.cluster() as cluster:
            end = time.monotonic() + 30
            while len(cluster.hosts()) < count:
                if time.monotonic() > end:
                    raise RuntimeError("the hosts have not joined")
                time.sleep(0.02)
        time.sleep(self.lease_s / 2)  # each host hears of the others with a beat of its own

    @property
    def addresses(self) -> str:
        """Of all hosts."""
        return ",".join(host.address for host in self.hosts)

    def cluster(self, hosts: str = "", *, relay: bool = False) -> Cluster:
        """A client of this process; see `joined`."""
        return Cluster(hosts or self.addresses, relay=relay, timeout=20)

    def homes(self) -> dict[str, str]:
        """The name of the host that each agent lives on."""
        with self.cluster() as cluster:
            return {row["agent"]: row["server_id"] for row in cluster.agents()}

    def program(self, module: str, *words: str) -> subprocess.Popen[str]:
        """A module of this folder as a client."""
        command = [sys.executable, "-m", f"benchmarks.cluster.{module}", *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment("client"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def fill(self, cls: str, prefix: str, count: int, clients: int = 1) -> float:
        """Have agents made by their first calls; seconds that it took."""
        share = -(-count // clients)
        programs = []
        for number in range(clients):
            first = number % len(self.hosts)
            seeds = [host.address for host in (*self.hosts[first:], *self.hosts[:first])]
            begin, end = number * share, min(count, (number + 1) * share)
            programs.append(self.program("load", "fill", ",".join(seeds), cls, prefix, str(begin), str(end)))
        for program in programs:
            assert program.stdout is not None
            program.stdout.readline()
        began = time.monotonic()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        for program in programs:
            program.communicate()
            if program.returncode:
                raise RuntimeError("an agent was not made")
        return time.monotonic() - began

    def redis_seconds(self) -> float:
        """What Redis has taken of a core so far."""
        times = self.redis.cpu_times()
        return float(times.user + times.system)

    @contextlib.contextmanager
    def looked_at(self) -> Iterator[list[Look]]:
        """Look at Redis ten times a second meanwhile."""
        found: list[Look] = []
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over, found))
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event, found: list[Look]) -> None:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            before = time.monotonic(), client.info("stats")["total_commands_processed"], self.redis_seconds()
            while not over.wait(LOOK_S):
                now = time.monotonic(), client.info("stats")["total_commands_processed"], self.redis_seconds()
                took, commands, seconds = (b - a for a, b in zip(before, now, strict=True))
                found.append(Look(now[0], (commands - 1) / took, seconds / took))
                before = now


@contextlib.contextmanager
def world(transport: Transport, lease_s: float = 3.0) -> Iterator[World]:
    """A Redis and no host yet. This process is a client meanwhile: its keys and files are those of the world."""
    if shutil.which("redis-server") is None:
        raise SystemExit("benchmarks.cluster needs redis-server")
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="zb")))
        found = World(home, stack, transport, lease_s)
        before = dict(os.environ)
        stack.callback(os.environ.update, before)
        os.environ.update(found.environment("client"))
        yield found
