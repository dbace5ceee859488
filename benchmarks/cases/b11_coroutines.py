"""B11: 10,000 calls of an ``async def`` method that sleeps 1 s, all at once, on a host of capacity 8."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from zmqagents import AgentBase, method

from .. import ours
from . import Measurement, Options, run, seconds_of

CALLS = 10_000
CAPACITY = 8
NAP_S = 1.0


class Sleeper(AgentBase, max_concurrency=CALLS):
    """Sleeps on the host's event loop."""

    @method
    async def nap(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def rounds(options: Options) -> Iterator[list[Measurement]]:
    calls = options.scaled(CALLS, 3_000)
    with ours.host(options, Sleeper, capacity=CAPACITY) as (_, client):
        agent = client.create_agent(Sleeper)

        def call_all() -> None:
            for result in [agent.nap(NAP_S) for _ in range(calls)]:
                result.result()

        for number in range(options.rounds):
            yield [{"subject": "zmqagents", "round": number, "figures": {"wall_s": seconds_of(call_all)}}]


if __name__ == "__main__":
    run(rounds)
