"""What calls over HTTP cost a host that others use at the same time: ``python -m benchmarks.gateway [--rate 500]``.

One host, one web process with its gateway, one program that asks the gateway for ``rate`` calls a second over
connections that stay open, and this one, which calls the host itself, over ZeroMQ, every two milliseconds. It prints
the times of its own calls, first alone, then beside the calls over HTTP, and the times of those. The budget: the host's
own p99 beside 500 calls a second is at most 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from zmqagents import RpcAgentServerLauncher, RpcClient

BUDGET_MS = 10.0
CONNECTIONS = 16
PACE_S = 0.002


class Echo:
    """Answers at once."""

    def echo(self, value: int) -> int:
        return value


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=500, help="calls over HTTP a second (500)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each part takes (20)")
    parser.add_argument("--load", nargs=2, metavar=("PORT", "TOKEN"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        asyncio.run(load(int(given.load[0]), given.load[1], given.rate, given.seconds))
        return 0
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Echo], local_mode=True) as host, gateway(host.port) as web,
        RpcClient(host.host, host.port) as client,
    ):  # fmt: skip
        agent = client.create_agent(Echo, agent_id="echo")
        alone = own_calls(agent, given.seconds)
        words = ["--rate", str(given.rate), "--seconds", str(given.seconds + 2), "--load", *web]
        command = [sys.executable, "-m", "benchmarks.gateway", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loader:
            time.sleep(1.0)
            beside = own_calls(agent, given.seconds)
            assert loader.stdout is not None
            over_http = json.load(loader.stdout)
    show("own calls, alone", alone)
    show(f"own calls, beside {given.rate}/s over HTTP", beside)
    show(f"over HTTP, {over_http['right']} of {over_http['asked']} right", over_http["ms"])
    is_met = quantile(beside, 0.99) <= BUDGET_MS and over_http["right"] == over_http["asked"]
    print(f"budget, own p99 of at most {BUDGET_MS:g} ms: {'met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


@contextlib.contextmanager
def gateway(port: int | None) -> Iterator[tuple[str, str]]:
    """The port of a web process, and a token."""
    as_server = [sys.executable, "-m", "zmqagents"]
    token = subprocess.run([*as_server, "keys", "token"], capture_output=True, text=True, check=True).stdout.strip()
    command = [*as_server, "web", "--listen", "127.0.0.1:0", "--port", str(port), "--expose", "echo", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url: str = json.loads(process.stdout.readline())["url"]
        try:
            yield url.rpartition(":")[2], token
        finally:
            process.terminate()


def own_calls(agent: Any, seconds: float) -> list[float]:
    """The times of calls, one every `PACE_S`, in milliseconds."""
    found, begin, number = [], time.perf_counter(), 0
    while (now := time.perf_counter()) - begin < seconds:
        due = begin + number * PACE_S
        if now < due:
            time.sleep(due - now)
        number += 1
        before = time.perf_counter()
        agent.echo(number)
        found.append((time.perf_counter() - before) * 1000)
    return found


async def load(port: int, token: str, rate: int, seconds: float) -> None:
    """Ask the gateway, and print what came of it. Times count from when a call was due, not from when it was sent."""
    found: list[float] = []
    right = 0

    async def connection(place: int) -> None:
        nonlocal right
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(place, int(rate * seconds), CONNECTIONS):
            due = begin + number / rate
            await asyncio.sleep(due - time.perf_counter())
            body = json.dumps({"value": number}).encode()
            head = f"POST /agents/echo/echo HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            value = await reader.readexactly(int(size.partition(b":")[2]))
            found.append((time.perf_counter() - due) * 1000)
            right += json.loads(value) == number
        writer.close()

    begin = time.perf_counter() + 0.2
    await asyncio.gather(*(connection(place) for place in range(CONNECTIONS)))
    print(json.dumps({"asked": len(found), "right": right, "ms": found}))


def quantile(samples: list[float], share: float) -> float:
    """The value below which ``share`` of the samples lie."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def show(what: str, samples: list[float]) -> None:
    """Print a line about them."""
    p50, p99, most = quantile(samples, 0.5), quantile(samples, 0.99), max(samples)
    print(f"{what:45} {len(samples):6} calls   p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   max {most:7.2f} ms")


if __name__ == "__main__":
    sys.exit(main())
