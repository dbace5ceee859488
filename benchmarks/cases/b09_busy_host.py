"""B9: while 8 worker threads burn CPU, how long does a request to the host itself take, and a call of another agent?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from zmqagents import AgentBase, async_func

from .. import ours
from . import Measurement, Options, run

BURNERS = 8
PAUSE_S = 0.002  # between two pings, so that they fall anywhere in the host's own rhythm


class Burner(AgentBase):
    """Keeps a core, or its share of the interpreter, busy."""

    @async_func
    def burn(self, seconds: float) -> int:
        end, turns = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            turns += sum(range(1000)) & 1
        return turns


def rounds(options: Options) -> Iterator[list[Measurement]]:
    seconds = options.scaled(4.0, 1.5)
    with ours.host(options, Burner, ours.Echo) as (_, client):
        burners = [client.create_agent(Burner) for _ in range(BURNERS)]
        echo = client.create_agent(ours.Echo)
        for number in range(options.rounds):
            figures: dict[str, float] = {}
            for name, ask in (("ping", client.is_alive), ("call", lambda: echo.echo(b"x" * 64))):
                results = [burner.burn(seconds) for burner in burners]
                samples = during(results, ask)
                cuts = statistics.quantiles(samples, n=100)
                figures |= {f"{name}_p50_ms": cuts[49] * 1000, f"{name}_p99_ms": cuts[98] * 1000}
            yield [{"subject": "zmqagents", "round": number, "figures": figures}]


def during(results: list[Any], ask: Callable[[], object]) -> list[float]:
    """Seconds of each ``ask`` until the first result is there."""
    samples = []
    while not any(result.done() for result in results):
        start = time.perf_counter()
        ask()
        samples.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
    for result in results:
        result.result()
    return samples


if __name__ == "__main__":
    run(rounds)
