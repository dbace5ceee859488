"""Blocking calls, one after the other, by each way to an agent; the ways take turns, and ratios are within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from zmqagents import Cluster, RpcClient

from .agents import Account, Echo
from .world import Host, World

__all__ = ["measure"]

PAYLOAD = b"x" * 64


def measure(world: World, calls: int, rounds: int, cold: int) -> dict[str, float]:
    """Medians over the rounds."""
    there, elsewhere = world.hosts[:2]
    with (
        world.cluster() as cluster, world.cluster(elsewhere.address, relay=True) as relayed,
        RpcClient("127.0.0.1", there.port, timeout=20) as client,
    ):  # fmt: skip
        echo, account = (_name_at(cluster, cls, there) for cls in (Echo, Account))
        warm, far = cluster.get_agent(echo, cls=Echo), relayed.get_agent(echo, cls=Echo)
        saved: Any = cluster.get_agent(account, cls=Account)
        plain: Any = client.create_agent(Echo)
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain.echo(PAYLOAD), "warm": lambda: warm.echo(PAYLOAD),
            "relayed": lambda: far.echo(PAYLOAD), "saved": lambda: saved.add(1),
        }  # fmt: skip
        for call in ways.values():
            p50_us(call, 200)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in [*ways, *ways][number % len(ways) :][: len(ways)]:
                found[name].append(p50_us(ways[name], calls))
        numbers = iter(range(cold))
        cold_us = p50_us(lambda: cluster.get_agent(f"cold-{next(numbers)}", cls=Echo).echo(PAYLOAD), cold)
    pairs = list(zip(found["warm"], found["plain"], found["relayed"], strict=True))
    return {
        "cold_ms": cold_us / 1000, "plain_us": statistics.median(found["plain"]),
        "warm_us": statistics.median(found["warm"]), "relayed_us": statistics.median(found["relayed"]),
        "saved_us": statistics.median(found["saved"]),
        "warm_of_plain": statistics.median(warm / plain for warm, plain, _ in pairs),
        "relayed_more_us": statistics.median(far - warm for warm, _, far in pairs),
    }  # fmt: skip


def p50_us(call: Callable[[], Any], count: int) -> float:
    """The median of so many."""
    samples = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        samples.append(time.perf_counter() - begin)
    return statistics.median(samples) * 1e6


def _name_at(cluster: Cluster, cls: type, host: Host) -> str:
    """An agent that lives there, and that the client knows to be there."""
    for number in range(1000):
        name = f"way-{number}"
        agent: Any = cluster.get_agent(name, cls=cls)
        call = agent.look if cls is Account else lambda agent=agent: agent.echo(PAYLOAD)
        call()
        if cluster.where(name, cls=cls)["server_id"] == host.name:
            call()
            return name
    raise RuntimeError(f"no agent was placed on {host.name}")
