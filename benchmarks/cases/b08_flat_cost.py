"""B8: what a call costs with many agents, many stored results and many clients on the host.

For each point of each curve there is a host, and all of them take turns. A call's cost is the median round trip of
blocking calls. The figure that is bounded is the worst point of a curve over its first, of the
same round. Memory that each agent, result or client takes is said as well: what the process has grown by.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from .. import ours
from ..driver import OURS, Process
from . import Measurement, Options, in_turn, run

PASSES, CALLS = 10, 100  # small portions in turn: a slow moment of the machine meets all of them
IN_FLIGHT = 1_000

Place = tuple[str, int]  # a curve and a point of it


def rounds(options: Options) -> Iterator[list[Measurement]]:
    curves: dict[str, tuple[Callable[..., None], tuple[int, ...]]] = {
        "agents": (fill_with_agents, options.scaled((10, 100, 1_000, 10_000), (10, 2_000))),
        "results": (fill_with_results, options.scaled((0, 1_000, 10_000, 100_000), (0, 20_000))),
        "clients": (fill_with_clients, options.scaled((1, 10, 50, 200), (1, 20))),
    }
    with contextlib.ExitStack() as stack:
        agents: dict[Place, Any] = {}
        bytes_each: dict[str, float] = {}
        for curve, (fill, points) in curves.items():
            for point in points:
                server, client = stack.enter_context(ours.host(options, ours.Echo, max_pool_size=200_000))
                agents[curve, point] = agent = client.create_agent(ours.Echo)
                cost_us(agent)
                before = psutil.Process(server.pid).memory_info().rss
                fill(stack, options, server, client, agent, point)
                grown = psutil.Process(server.pid).memory_info().rss - before
                bytes_each[f"bytes_of_{curve}"] = grown / max(point, 1)  # the last and largest point stays
        where = {"subject": OURS}
        for number in range(options.rounds):
            costs = costs_in_turn(agents, number)
            found = [{"figures": bytes_each}] if number == 0 else []
            for curve, (_, points) in curves.items():
                found += summary(curve, points, costs)
            yield [{**where, "round": number, **one} for one in found]


def costs_in_turn(agents: dict[Place, Any], number: int) -> dict[Place, float]:
    """The median cost of a call at each place, in µs."""
    samples: dict[Place, list[float]] = {place: [] for place in agents}
    for step in range(PASSES):
        for place in in_turn(agents, number + step):
            samples[place] += cost_us(agents[place])
    return {place: statistics.median(found) for place, found in samples.items()}


def summary(curve: str, points: tuple[int, ...], costs: dict[Place, float]) -> Iterator[Measurement]:
    """One measurement for each point, and the ratio that is bounded."""
    first = costs[curve, points[0]]
    for point in points:
        yield {"point": point, "figures": {f"{curve}_cost_us": costs[curve, point]}}
    yield {"figures": {f"{curve}_cost_ratio": max(costs[curve, point] for point in points[1:]) / first}}


def cost_us(agent: Any) -> list[float]:
    """Blocking calls one after the other, in µs each."""
    samples = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        agent.echo(b"x" * 64)
        samples.append((time.perf_counter_ns() - start) / 1000)
    return samples


def fill_with_agents(_: Any, __: Any, server: Any, client: Any, agent: Any, count: int) -> None:
    for _ in range(count - 1):
        client.create_agent(ours.Echo)


def fill_with_results(_: Any, __: Any, server: Any, client: Any, agent: Any, count: int) -> None:
    """Results that the host keeps: those of asynchronous calls, which stay there when they have been read."""
    for begin in range(0, count, IN_FLIGHT):
        for result in [agent.aecho(b"x" * 64) for _ in range(min(IN_FLIGHT, count - begin))]:
            result.result()
    kept = client.get_server_info()["store"]["done"]
    if kept < count:
        raise RuntimeError(f"the host keeps {kept} of {count} results")


def fill_with_clients(
    stack: contextlib.ExitStack, options: Options, server: Any, client: Any, agent: Any, count: int
) -> None:
    """Connected processes that are idle."""
    where = {"host": server.host, "port": server.port, "transport": options.transport}
    others = [stack.enter_context(contextlib.closing(Process("client", OURS, where))) for _ in range(count - 1)]
    for other in others:
        other.hear()


if __name__ == "__main__":
    run(rounds)
