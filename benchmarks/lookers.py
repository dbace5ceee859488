"""What it costs a host to be looked at: ``python -m benchmarks.lookers``.

A host with 10,000 agents and 2,000 calls in flight gets half of the calls a second that this machine reaches. In each
round the same load runs twice, without readers and with three: each reads the live stream of the web process, as a
page does, and one of them shows the list of calls, another one the agents by their queues. Told are the ratio of the
two p99 in each round, the processor time and memory of the web process, and the bytes that each reader gets.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from zmqagents import AgentBase, RpcClient
from zmqagents.client import loadgen

AGENTS, IN_FLIGHT, READERS = 10_000, 2_000, 3
TABLES = ("/api/calls?most=50", "/api/agents?most=50&sort=queued", None)  # what each reader fetches besides
TABLE_EVERY_S = 2.0
FAST_MS = 50.0


class Member(AgentBase):
    """One of ten thousand."""

    def echo(self, value: Any = None) -> Any:
        """Give the value back."""
        return value

    async def wait(self, seconds: float) -> None:
        """Be in flight."""
        import asyncio

        await asyncio.sleep(seconds)


@contextlib.contextmanager
def house() -> Iterator[tuple[int, str, psutil.Process]]:
    """The port of a host, the link of its page, and the web process."""
    words = ["start", "benchmarks.lookers:Member", "--app-dir", str(Path(__file__).parent.parent), "--local-mode"]
    words += ["--port", "0", "--web", "0", "--json", "--grace", "0.1", "--max-agents", "20000", "--no-log"]
    with subprocess.Popen([sys.executable, "-m", "zmqagents", *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            (web,) = psutil.Process(process.pid).children()
            yield told["port"], told["web"], web
        finally:
            process.terminate()


class Reader(threading.Thread):
    """Reads the live stream, and fetches a table now and then."""

    def __init__(self, link: str, table: str | None) -> None:
        super().__init__(daemon=True)
        url, _, token = link.partition("/#token=")
        self.bytes = 0
        self._headers = {"Authorization": f"Bearer {token}"}
        self._address = url.removeprefix("http://")
        self._table = table
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        stream = http.client.HTTPConnection(self._address, timeout=30)
        stream.request("GET", "/api/stream", headers=self._headers)
        answer, due = stream.getresponse(), 0.0
        while not self._over.is_set():
            self.bytes += len(answer.readline())
            if self._table is not None and time.monotonic() >= due:
                due = time.monotonic() + TABLE_EVERY_S
                self._fetch(self._table)
        stream.close()

    def _fetch(self, table: str) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        connection.request("GET", table, headers=self._headers)
        self.bytes += len(connection.getresponse().read())
        connection.close()

    def stop(self) -> None:
        """End soon."""
        self._over.set()


def load(port: int, rate: float, seconds: float) -> loadgen.Summary:
    return loadgen.run(
        loadgen.Load(f"localhost:{port}", "m1", "echo", (1,), clients=2, rate=rate, duration_s=seconds, timeout_s=20)
    )


def reached(port: int) -> float:
    """About how many calls a second are answered within `FAST_MS`, most of them."""
    rate, best = 1000.0, 1000.0
    while rate < 64_000:
        summary = load(port, rate, 1.0)
        if summary.took_s > 1.25 or summary.total.latency_ms(99) > FAST_MS:
            break
        best, rate = rate, 1.5 * rate
    return best


def one_round(port: int, link: str, web: psutil.Process, rate: float, seconds: float) -> dict[str, float]:
    """Without readers, and with them."""
    alone = load(port, rate, seconds).total.latency_ms(99)
    readers = [Reader(link, table) for table in TABLES[:READERS]]
    for reader in readers:
        reader.start()
    time.sleep(1.5)
    cpu, began, had = sum(web.cpu_times()[:2]), time.monotonic(), [reader.bytes for reader in readers]
    seen = load(port, rate, seconds).total.latency_ms(99)
    took = time.monotonic() - began
    told = {
        "p99 alone ms": alone, "p99 seen ms": seen, "ratio": seen / alone,
        "web CPU %": 100 * (sum(web.cpu_times()[:2]) - cpu) / took, "web MiB": web.memory_info().rss / 2**20,
        "KB/s of a reader, at most": max(r.bytes - b for r, b in zip(readers, had, strict=True)) / took / 1000,
    }  # fmt: skip
    for reader in readers:
        reader.stop()
    for reader in readers:
        reader.join()
    return told


def main() -> None:
    """Print a line for each round, and the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run of the load")
    arguments = parser.parse_args()
    with house() as (port, link, web), RpcClient("localhost", port, timeout=3600) as client:
        agents = [client.create_agent("Member", agent_id=f"m{number}") for number in range(AGENTS)]
        waiting = [agent.wait(3600) for agent in agents[-IN_FLIGHT:]]
        rate = reached(port) / 2
        print(f"{AGENTS:,} agents, {len(waiting):,} calls in flight, {rate:,.0f} calls/s", flush=True)
        rounds = []
        for _ in range(arguments.rounds):
            rounds.append(one_round(port, link, web, rate, arguments.seconds))
            print("  ".join(f"{name} {value:.2f}" for name, value in rounds[-1].items()), flush=True)
        middle = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        print("median:  " + "  ".join(f"{name} {value:.2f}" for name, value in middle.items()))
        for result in waiting:
            result.cancel()


if __name__ == "__main__":
    main()
