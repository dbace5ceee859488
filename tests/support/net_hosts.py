"""Hosts of one cluster, each on a machine of its own (`net_world`), and their Redis on the hub.

They find nothing of each other in the file system but one key store, as copies of it on several machines would be: all
that they say to each other goes through TCP, encrypted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hosts import environment
from net_world import Machine, Network, network
from redis_server import RedisServer, running_redis
from zmqagents.security.keys import KeyStore

__all__ = ["NetHosts", "net_hosts", "redis_on"]

CLUSTER, PORT = "shop", 12010


class NetHosts:
    """Hosts 1 to ``count``. ``words``: what `as_server start` gets besides."""

    def __init__(self, net: Network, redis: RedisServer, home: Path, count: int, words: Sequence[str]) -> None:
        self.net, self.redis = net, redis
        self._home, self._words = home, words
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self.numbers = range(1, count + 1)
        keys = KeyStore.open(home / "keys")
        for number in self.numbers:
            keys.remember_host(net[number].address, PORT, keys.server_keypair().public)

    @property
    def addresses(self) -> str:
        """As `Cluster` takes them."""
        return ",".join(f"{self.net[number].address}:{PORT}" for number in self.numbers)

    def environment_of(self, place: str) -> dict[str, str]:
        """What a program has there: files of its own, and the keys of the cluster."""
        return environment(ZMQAGENTS_KEYS=str(self._home / "keys"), ZMQAGENTS_RUNTIME=str(self._home / place))

    def begin(self, number: int) -> None:
        """Start a host; `heard` waits for it."""
        machine = self.net[number]
        command = [
            *machine.within, sys.executable, "-m", "zmqagents", "start", "--cluster", CLUSTER,
            "--host", machine.address, "--port", str(PORT), "--server-id", f"h{number}", "--json",
            "--redis-url", f"redis://{self.net.hub.address}:{self.redis.port}", *self._words,
        ]  # fmt: skip
        self._processes[number] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            env=self.environment_of(f"h{number}"), cwd=self._home,
        )  # fmt: skip

    def heard(self, number: int) -> None:
        """It listens."""
        stdout = self._processes[number].stdout
        assert stdout is not None
        line = stdout.readline()
        assert line, f"host {number} has ended, see its stderr"
        assert json.loads(line)["port"] == PORT

    def pid(self, number: int) -> int:
        """The process of a host."""
        return self._processes[number].pid

    def kill(self, number: int) -> None:
        """kill -9."""
        process = self._processes.pop(number)
        process.kill()
        process.communicate()

    def program(self, *words: str, place: Machine | None = None) -> subprocess.Popen[str]:
        """A Python program that runs on the hub, and prints what its reader wants."""
        command = [*(place or self.net.hub).within, sys.executable, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment_of("client"))

    def close(self) -> None:
        """End them, in order where that goes within some seconds."""
        for process in self._processes.values():
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
        for process in self._processes.values():
            try:
                process.communicate(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def redis_on(net: Network) -> contextlib.AbstractContextManager[RedisServer]:
    """A Redis on the hub, which loses nothing when it is started anew."""
    return running_redis(within=net.hub.within, bind=net.hub.address, protected_mode="no", appendonly="yes")


@contextlib.contextmanager
def net_hosts(count: int, *words: str) -> Iterator[NetHosts]:
    """So many hosts that listen, on a network of this block alone."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="zan")))
        net = stack.enter_context(network(count))
        redis = stack.enter_context(redis_on(net))
        hosts = NetHosts(net, redis, home, count, words)
        stack.callback(hosts.close)
        for number in hosts.numbers:
            hosts.begin(number)
        for number in hosts.numbers:
            hosts.heard(number)
        yield hosts
