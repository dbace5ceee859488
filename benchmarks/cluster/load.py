"""Calls at a rate, open loop, and agents made as fast as it goes: the programs, and what the first one has written.

    python -m benchmarks.cluster.load rate HOSTS CLASS PREFIX AGENTS CALLS_PER_S TIMEOUT_S FILE
    python -m benchmarks.cluster.load fill HOSTS CLASS PREFIX FIRST END

The first one says ``ready`` when each host has been reached, calls until its standard input ends, and writes each call
to FILE. The other one begins with the first line of its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from zmqagents import AsyncCluster, Cluster
from zmqagents.client.proxy import request_body
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Reply

from . import agents
from .world import World, quantile

__all__ = ["Called", "Load"]

IN_FLIGHT = 128  # while agents are made
PAYLOAD = b"x" * 64
CALLS: dict[str, Callable[[Any, float], Any]] = {
    "Account": lambda agent, timeout: agent.add(1, timeout=timeout),
    "Echo": lambda agent, timeout: agent.echo(PAYLOAD, timeout=timeout),
}


class Called(NamedTuple):
    """One call: the agent's number, when it was due, when it ended (`time.monotonic`), and its error, "": none."""

    agent: int
    due: float
    end: float
    error: str

    @property
    def ms(self) -> float:
        """How long its caller has waited."""
        return (self.end - self.due) * 1000


class Load:
    """The first program, from outside: calls that begin and end with this block, or with `end`."""

    def __init__(self, world: World, count: int, rate: float, *, timeout_s: float = 20.0, seeds: str = "") -> None:
        self._file = world.home / f"load-{time.monotonic_ns()}"
        words = [seeds or world.addresses, "Account", "a", str(count), str(rate), str(timeout_s), str(self._file)]
        self._program = world.program("load", "rate", *words)
        self.calls: list[Called] = []

    def __enter__(self) -> Load:
        assert self._program.stdout is not None
        if self._program.stdout.readline() != "ready\n":
            raise RuntimeError("the load has not begun, see its messages")
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> list[Called]:
        """Stop calling, wait for what is open; all calls."""
        if not self.calls:
            self._program.communicate()
            if self._program.returncode:
                raise RuntimeError("the load has failed, see its messages")
            self.calls = read(self._file)
        return self.calls


def read(file: Path) -> list[Called]:
    """What a program has written."""
    return [Called(*row) for row in json.loads(file.read_text(encoding="utf-8"))]


def p99(calls: list[Called], begin: float = 0.0, end: float = float("inf")) -> float:
    """In ms, of calls that were due then, whatever they ended in."""
    return quantile([call.ms for call in calls if begin <= call.due < end], 0.99)


def failed(calls: list[Called]) -> Counter[str]:
    """How many ended in which error."""
    return Counter(call.error for call in calls if call.error)


async def keep_rate(hosts: str, cls: str, prefix: str, count: int, rate: float, timeout: float, file: Path) -> None:
    """The program ``rate``: agents in turn, in an order that goes over all hosts."""
    found: list[Called] = []
    call = CALLS[cls]

    async def one(number: int, agent: Any, due: float) -> None:
        error = ""
        try:
            await call(agent, timeout)
        except Exception as exc:
            error = type(exc).__name__
        found.append(Called(number, due, time.monotonic(), error))

    async with AsyncCluster(hosts) as cluster:
        proxies = [await cluster.get_agent(f"{prefix}-{number}", cls=getattr(agents, cls)) for number in range(count)]
        await asyncio.gather(*(call(proxy, timeout) for proxy in proxies[:64]))
        print("ready", flush=True)
        over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        begin, number, running = time.monotonic(), 0, set[asyncio.Task[None]]()
        while not over.done():
            due = begin + number / rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            which = number * 7919 % count  # a prime: no two in a row are neighbours
            task = asyncio.create_task(one(which, proxies[which], due))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.gather(*running)
    file.write_text(json.dumps(found), encoding="utf-8")


class Taken:
    """What one call of `fill` has ended in: it lets the next one begin. A `Sink`."""

    def __init__(self, places: threading.Semaphore, errors: list[Exception]) -> None:
        self._places, self._errors = places, errors

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None:
            if reply.code:
                self._errors.append(rebuild_error(reply))
            self._places.release()

    def fail(self, error: Exception) -> None:
        self._errors.append(error)
        self._places.release()

    def chunk(self, item: Reply) -> None:
        """There are no streams here."""


def fill(hosts: str, cls: str, prefix: str, first: int, end: int) -> None:
    """The program ``fill``: calls whose results are not kept, `IN_FLIGHT` at a time."""
    places, errors = threading.Semaphore(IN_FLIGHT), list[Exception]()
    with Cluster(hosts) as cluster:
        name, link = cluster.name, cluster.link
        method, argument = {"Echo": ("echo", PAYLOAD), "Account": ("add", 1)}[cls]
        body = request_body(link, method, (argument,), {})
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(first, end):
            places.acquire()
            link.submit(f"cluster:{name}/{cls}/{prefix}-{number}", method, body, Taken(places, errors), timeout=30.0)
        for _ in range(IN_FLIGHT):
            places.acquire()
    if errors:
        raise errors[0]


if __name__ == "__main__":
    what, hosts, cls, prefix, *rest = sys.argv[1:]
    if what == "fill":
        fill(hosts, cls, prefix, int(rest[0]), int(rest[1]))
    else:
        asyncio.run(keep_rate(hosts, cls, prefix, int(rest[0]), float(rest[1]), float(rest[2]), Path(rest[3])))
