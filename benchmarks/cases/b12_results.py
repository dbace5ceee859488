"""B12: 10,000 asynchronous results are made, then collected, by one thread. Both are rates of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import ours
from . import Measurement, Options, run, seconds_of

RESULTS = 10_000


def rounds(options: Options) -> Iterator[list[Measurement]]:
    count = options.scaled(RESULTS, 3_000)
    with ours.host(options, ours.Echo, max_pool_size=2 * RESULTS) as (_, client):
        agent = client.create_agent(ours.Echo)

        def one_round() -> dict[str, float]:
            results: list[Any] = []

            def make() -> None:
                results.extend(agent.aecho(b"x" * 64) for _ in range(count))

            def collect() -> None:
                for result in results:
                    result.result()

            return {"made_per_s": count / seconds_of(make), "collected_per_s": count / seconds_of(collect)}

        one_round()
        for number in range(options.rounds):
            yield [{"subject": "zmqagents", "round": number, "figures": one_round()}]


if __name__ == "__main__":
    run(rounds)
