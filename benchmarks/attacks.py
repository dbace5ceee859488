"""What one user cannot do to another: each attack of `attackers` in turn, and the calls of another user beside it.

    python -m benchmarks.attacks [--only "NAME;NAME"] [--seconds 5] [--door tcp,ipc] [--store local,redis]
                                 [--json FILE] [--table FILE] [--charts DIR]

For each attack a host of its own is started, with the settings that a user gets who says nothing. The attacker is one
user with 32 connections in two processes. Host and other user go before them on the machine's cores, where that is
allowed by a real-time priority: what the attackers' own programs take is no fault of the host's. The other user has a
key of its own, and makes plain calls, and calls of an agent that calls another one, by turns over TCP. By the door
"ipc" the attacker is the host's own user, since a host lets nobody else in there.

Exit status 1 if one of the other user's calls failed, or one p99 is more than `MAX_P99_MS`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict

import psutil
import redis

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, ZmqAgentsError
from zmqagents.security.keys import KeyStore

from . import machine
from .attackers import ATTACKS, Where
from .driver import ROOT

MAX_P99_MS = 50.0
CALL_TIMEOUT_S = 10.0
CONNECTIONS, PROCESSES = 32, 2
SETTLE_S = 1.0  # after an attack has begun, before the other's calls are timed
PAUSE_S = 0.001  # between two of these
LOOK_S = 0.1  # how often memory is looked at
AGENTS = 64  # of the attacker
LISTED = 10_000  # agents for the attack that lists them
FILE_BYTES = 64 << 20
REDIS_MAXMEMORY = 256 << 20
MIB = 1 << 20
Time = Literal["plain_p50_ms", "plain_p99_ms", "nested_p50_ms", "nested_p99_ms", "worst_ms"]
TIMES: tuple[Time, ...] = ("plain_p50_ms", "plain_p99_ms", "nested_p50_ms", "nested_p99_ms", "worst_ms")

Door = Literal["tcp", "ipc"]
Store = Literal["local", "redis"]


class Figures(TypedDict):
    """What one attack has done to the other user, and to memory."""

    attack: str
    door: str
    store: str
    calls: int
    failed: dict[str, int]  # by the name of the error
    plain_p50_ms: float
    plain_p99_ms: float
    nested_p50_ms: float
    nested_p99_ms: float
    worst_ms: float
    host_cores: float  # of processor time that the host took
    rss_mib: float  # the most that the host had
    redis_mib: float


class Greedy(AgentBase):
    """An agent of the attacker's."""

    def echo(self, value: Any) -> Any:
        return value

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Crowd(AgentBase, max_concurrency=100_000):
    """One that takes very many calls at a time."""

    def count(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    async def wait(self) -> None:
        await asyncio.sleep(1e6)


class Bystander(AgentBase):
    """An agent of the other user's."""

    def echo(self, value: Any) -> Any:
        return value

    def ask(self, other: Any, value: Any) -> Any:
        return other.echo(value)


# ---------------------------------------------------------------- the scene


@contextlib.contextmanager
def key_store(path: Path) -> Iterator[None]:
    """Who connects or listens during the block does so with the keys in ``path``."""
    kept = os.environ.get("ZMQAGENTS_KEYS")
    os.environ["ZMQAGENTS_KEYS"] = str(path)
    try:
        yield
    finally:
        if kept is None:
            del os.environ["ZMQAGENTS_KEYS"]
        else:
            os.environ["ZMQAGENTS_KEYS"] = kept


@contextlib.contextmanager
def scene(directory: Path, **settings: Any) -> Iterator[tuple[RpcAgentServerLauncher, RpcClient]]:
    """A host that knows two users with keys of their own, and a client of the second."""
    stores = {name: KeyStore.open(directory / name) for name in ("host", "attacker", "other")}
    for name in ("attacker", "other"):
        stores["host"].authorize(name, stores[name].client_keypair().public, "call")
    launcher = RpcAgentServerLauncher(
        custom_agent_classes=[Greedy, Crowd, Bystander], local_mode=True, grace_s=0.1,
        file_roots=[str(directory / "files")], **settings,
    )  # fmt: skip
    with (
        key_store(directory / "host"), launcher, key_store(directory / "other"),
        RpcClient(launcher.host, launcher.port, transport="tcp", timeout=CALL_TIMEOUT_S) as other,
    ):  # fmt: skip
        yield launcher, other


def _as_attacker(directory: Path, door: Door, launcher: RpcAgentServerLauncher) -> RpcClient:
    """A client that makes the attacker's agents, which then count for that user."""
    client = RpcClient(launcher.host, launcher.port, transport=door, timeout=30.0)
    with key_store(directory / "attacker"):
        client.get_server_info()  # connects
    return client


@contextlib.contextmanager
def attacked(where: Where, keys: Path, connections: int) -> Iterator[list[int]]:
    """The attack goes on during the block, from `PROCESSES` processes; their pids."""
    environment = {**os.environ, "ZMQAGENTS_KEYS": str(keys), "PYTHONPATH": str(ROOT)}
    part = dataclasses.replace(where, connections=connections // PROCESSES)
    crew = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attackers", json.dumps(dataclasses.asdict(each))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )
        for each in (dataclasses.replace(part, seed=seed) for seed in range(PROCESSES))
    ]  # fmt: skip
    try:
        for process in crew:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("an attacker could not begin, see its messages")
        yield [process.pid for process in crew]
    finally:
        for process in crew:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def own_redis(store: Store) -> Iterator[str | None]:
    """The URL of a Redis for this run; None where results stay in the host."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if store == "local":
        yield None
        return
    if binary is None:
        raise RuntimeError("the store redis needs redis-server on the PATH")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="zbr") as directory:
        path = Path(directory, "redis.sock")
        limits = ["--maxmemory", str(REDIS_MAXMEMORY), "--save", "", "--appendonly", "no"]
        server = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", str(path), "--dir", directory, *limits],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not path.exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            server.terminate()
            server.wait()


# ---------------------------------------------------------------- measuring


class Samples:
    """The calls of the other user, and the memory beside them."""

    def __init__(self, pid: int, redis_url: str | None) -> None:
        self.took: dict[str, list[float]] = {"plain": [], "nested": []}
        self.failed: dict[str, int] = {}
        self.rss_mib = self.redis_mib = 0.0
        self._host = psutil.Process(pid)
        self._redis = redis.Redis.from_url(redis_url) if redis_url else None
        self._next_look = 0.0
        self._start = (time.monotonic(), 0.0)

    def begin(self) -> None:
        """Forget the calls so far: what counts begins now."""
        for took in self.took.values():
            took.clear()
        self._start = (time.monotonic(), sum(self._host.cpu_times()[:2]))

    @property
    def host_cores(self) -> float:
        """How many processors the host has kept busy."""
        at, spent = self._start
        return float(sum(self._host.cpu_times()[:2]) - spent) / (time.monotonic() - at)

    def call(self, kind: str, method: Any, *arguments: Any) -> None:
        """One call, timed."""
        start = time.perf_counter()
        try:
            if method(*arguments) != arguments[-1]:
                raise RuntimeError("the answer is not what was asked for")
        except ZmqAgentsError as exc:
            name = f"{type(exc).__name__}: {str(exc)[:120]}"
            self.failed[name] = self.failed.get(name, 0) + 1
        self.took[kind].append((time.perf_counter() - start) * 1000)

    def look(self) -> None:
        """Look at memory, now and then."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        self.rss_mib = max(self.rss_mib, self._host.memory_info().rss / MIB)
        if self._redis is not None:
            told: Any = self._redis.info("memory")
            self.redis_mib = max(self.redis_mib, told["used_memory"] / MIB)

    def close(self) -> None:
        """Let Redis go."""
        if self._redis is not None:
            self._redis.close()


def measure(
    attack: str, *, seconds: float = 5.0, door: Door = "tcp", store: Store = "local", connections: int = CONNECTIONS,
    **settings: Any,
) -> Figures:  # fmt: skip
    """Make one attack, "" for none, on a host of its own, and the other user's calls beside it."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="zb")))
        (directory / "files").mkdir()
        file = directory / "files" / "large"
        file.write_bytes(os.urandom(MIB) * (FILE_BYTES // MIB))
        url = stack.enter_context(own_redis(store))
        if url is not None:
            settings |= {"pool_type": "redis", "redis_url": url}
        launcher, other = stack.enter_context(scene(directory, **settings))
        asker, asked = other.create_agent(Bystander), other.create_agent(Bystander)
        if attack:
            client = stack.enter_context(_as_attacker(directory, door, launcher))
            ids = [client.create_agent(Greedy).agent_id for _ in range(AGENTS)]
            crowd = client.create_agent(Crowd).agent_id
            for _ in range(LISTED if attack == "lists of agents" else 0):
                client.create_agent(Greedy)
            where = Where(attack, launcher.host, launcher.port or 0, door, asked.agent_id, ids, crowd, str(file))
            keys = directory / ("host" if door == "ipc" else "attacker")
            stack.enter_context(attacked(where, keys, connections))
        assert launcher.pid is not None
        samples = Samples(launcher.pid, url)
        stack.callback(samples.close)
        _call_for(samples, asker, asked, SETTLE_S)
        samples.begin()
        _call_for(samples, asker, asked, seconds)
        return _figures(attack or "no attack", door, store, samples)


def _call_for(samples: Samples, asker: Any, asked: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        samples.call("plain", asked.echo, number)
        samples.look()
        time.sleep(PAUSE_S)
        samples.call("nested", asker.ask, asked, number)
        time.sleep(PAUSE_S)


def _figures(attack: str, door: str, store: str, samples: Samples) -> Figures:
    plain, nested = (sorted(samples.took[kind]) for kind in ("plain", "nested"))
    return {
        "attack": attack, "door": door, "store": store,
        "calls": len(plain) + len(nested), "failed": samples.failed,
        "plain_p50_ms": statistics.median(plain), "plain_p99_ms": _p99(plain),
        "nested_p50_ms": statistics.median(nested), "nested_p99_ms": _p99(nested),
        "worst_ms": max(*plain, *nested), "host_cores": samples.host_cores, "rss_mib": samples.rss_mib,
        "redis_mib": samples.redis_mib,
    }  # fmt: skip


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def holds(figures: Figures) -> bool:
    """Whether the other user was served as it must be."""
    return not figures["failed"] and max(figures["plain_p99_ms"], figures["nested_p99_ms"]) <= MAX_P99_MS


# ---------------------------------------------------------------- telling


def line_of(figures: Figures) -> str:
    """One attack, for the eye."""
    mark = "✓" if holds(figures) else "✗"
    failed = "".join(f"\n      {count} x {name}" for name, count in figures["failed"].items())
    return (
        f"{mark} {figures['attack']:28} {figures['door']:4} {figures['store']:6} {figures['calls']:6} calls"
        f"  plain {figures['plain_p50_ms']:7.2f} {figures['plain_p99_ms']:8.2f}"
        f"  nested {figures['nested_p50_ms']:7.2f} {figures['nested_p99_ms']:8.2f}"
        f"  worst {figures['worst_ms']:8.1f} ms"
        f"  host {figures['host_cores']:4.2f} cores {figures['rss_mib']:5.0f} MiB"
        f"  redis {figures['redis_mib']:4.0f} MiB{failed}"
    )


def table(found: list[Figures]) -> str:
    """The figures as a table for the documentation."""
    head = ("attack, ms", "plain p50", "p99", "nested p50", "p99", "longest", "host")
    rows = [(each["attack"], *(f"{each[name]:.1f}" for name in TIMES), f"{each['rss_mib']:,.0f} MiB") for each in found]
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    ruler = "  ".join("=" * width for width in widths)
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *rows))
    lines = ["  ".join(cells).rstrip() for cells in padded]
    return "\n".join([ruler, lines[0], ruler, *lines[1:], ruler]) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description="One user against another.")
    parser.add_argument("--only", help="names of attacks, with semicolons between them")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--door", default="tcp", help="tcp, ipc or both with a comma")
    parser.add_argument("--store", default="local", help="local, redis or both with a comma")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the figures as a table for the documentation")
    parser.add_argument("--charts", type=Path, metavar="DIR")
    parser.add_argument("--load", type=Path, metavar="FILE", help="figures of an earlier run, instead of a new one")
    return parser.parse_args(arguments)


def go_first() -> str:
    """Let this process, and the hosts that it starts, go before others on the machine; how."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (AttributeError, OSError):
        return "attackers at the lowest"
    return "host and other user in real time"


def run(given: argparse.Namespace) -> list[Figures]:
    """Every attack that is asked for, by every door, with every store."""
    names = given.only.split(";") if given.only else ["", *ATTACKS]
    found = []
    for store in given.store.split(","):
        for door in given.door.split(","):
            for name in names:
                found.append(measure(name, seconds=given.seconds, door=door, store=store))
                print(line_of(found[-1]), flush=True)
    return found


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.load:
        found: list[Figures] = json.loads(given.load.read_text(encoding="utf-8"))["attacks"]
    else:
        facts = {**machine.describe(), "priority": go_first()}
        print(*(f"{name}: {value}" for name, value in facts.items()), "", sep="\n")
        found = run(given)
        if given.json:
            given.json.write_text(json.dumps({"machine": facts, "attacks": found}) + "\n", encoding="utf-8")
    if given.table:
        given.table.write_text(table(found), encoding="utf-8")
    if given.charts:
        from . import charts

        charts.attacks(found, given.charts)
    return 0 if all(map(holds, found)) else 1


if __name__ == "__main__":
    sys.exit(main())
