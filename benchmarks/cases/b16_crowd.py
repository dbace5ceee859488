"""B16: 200 client processes that make blocking calls at the same time: is each served, how long does each wait?"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil

from ..driver import ROOT, Process, python_of
from . import Measurement, Options, in_turn, run

HEAD_START_S = 0.5  # until all have heard when to begin


def rounds(options: Options) -> Iterator[list[Measurement]]:
    count, seconds = options.scaled((200, 4.0), (50, 1.0))
    with contextlib.ExitStack() as stack:
        crowds = [stack.enter_context(contextlib.closing(Crowd(name, options, count))) for name in options.subjects]
        for number in range(options.first_round, options.first_round + options.rounds):
            yield [
                {"subject": crowd.name, "round": number, "figures": crowd.measure(seconds)}
                for crowd in in_turn(crowds, number)
            ]


class Crowd:
    """The server of a subject and its clients, who are children of one program."""

    def __init__(self, name: str, options: Options, count: int) -> None:
        self.name = name
        self._count = count
        setup = {"transport": options.transport, "store": options.store, "redis_url": options.redis_url}
        self._server = Process("serve", name, setup)
        where = self._server.hear()
        self._processes = [*psutil.Process(self._server.pid).children(recursive=True), psutil.Process(self._server.pid)]
        before = self._rss()
        self._clients = subprocess.Popen(
            [python_of(name), "-m", "benchmarks.crowd", name, json.dumps(where), str(count)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        if self._hear() != "ready\n":
            self.close()
            raise RuntimeError(f"the clients of {name} did not start, see their messages above")
        self._callers = psutil.Process(self._clients.pid).children()
        self._bytes_each = (self._rss() - before) / count

    def measure(self, seconds: float) -> dict[str, float]:
        """Let all of them call for so long."""
        assert self._clients.stdin is not None
        used = cpu_s(self._processes), cpu_s(self._callers)
        print(json.dumps([time.monotonic() + HEAD_START_S, seconds]), file=self._clients.stdin, flush=True)
        found = [json.loads(self._hear()) for _ in range(self._count)]
        calls = sum(map(len, found))
        return {
            **summary(found, seconds),
            "server_us_per_call": (cpu_s(self._processes) - used[0]) * 1e6 / calls,
            "clients_us_per_call": (cpu_s(self._callers) - used[1]) * 1e6 / calls,
            "bytes_each": self._bytes_each,
        }

    def close(self) -> None:
        """End the clients, then the server."""
        self._clients.communicate()
        self._server.close()

    def _hear(self) -> str:
        assert self._clients.stdout is not None
        return self._clients.stdout.readline()

    def _rss(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)


def cpu_s(processes: list[psutil.Process]) -> float:
    """The CPU time that they have had."""
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


def summary(latencies_ms: list[list[float]], seconds: float) -> dict[str, Any]:
    """Of what each client has waited for each of its calls."""
    counts = [len(one) for one in latencies_ms]
    every = [value for one in latencies_ms for value in one]
    cuts = statistics.quantiles(every, n=100)
    mean = len(every) / len(counts)
    return {
        "calls_per_s": len(every) / seconds, "p50_ms": cuts[49], "p99_ms": cuts[98], "longest_ms": max(every),
        "least_served_ratio": min(counts) / mean, "most_served_ratio": max(counts) / mean,
    }  # fmt: skip


if __name__ == "__main__":
    run(rounds)
