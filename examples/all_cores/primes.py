"""A computation on all cores: agents in child processes of a host, a bar that shows how far they are, the speed-up.

    python examples/all_cores/primes.py [--numbers 400000] [--workers N]

Each agent counts the primes in parts of a range. In threads of one interpreter they would take turns; in children
(``isolation="pool"``) each has a core of its own. `as_completed` gives the parts in the order in which they are done.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, as_completed, async_func

PARTS = 40


class Counter(AgentBase):
    """Counts primes, by a method that is simple and slow."""

    @async_func
    def primes(self, first: int, last: int) -> int:
        """How many primes there are from ``first`` to ``last - 1``."""
        return sum(all(number % divisor for divisor in range(2, int(number**0.5) + 1)) for number in range(first, last))


def count(workers: list[Counter], numbers: int) -> tuple[int, float]:
    """The primes below ``numbers``, and the seconds that it took."""
    begun = time.perf_counter()
    edges = [2 + (numbers - 2) * part // PARTS for part in range(PARTS + 1)]
    results = [
        workers[part % len(workers)].primes(first, last) for part, (first, last) in enumerate(itertools.pairwise(edges))
    ]
    total = 0
    for done, result in enumerate(as_completed(results), 1):
        total += result.result()
        if sys.stderr.isatty():
            print(f"\r[{'#' * done:<{PARTS}}] {total} primes", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--numbers", type=int, default=400_000, help="count the primes below this number")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="child processes")
    options = parser.parse_args()
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Counter], local_mode=True, processes=options.workers) as server,
        RpcClient(server.host, server.port) as client,
    ):
        threads = [client.create_agent(Counter) for _ in range(options.workers)]
        children = [client.create_agent(Counter, agent_options={"isolation": "pool"}) for _ in range(options.workers)]
        found, alone_s = count(threads, options.numbers)
        again, together_s = count(children, options.numbers)
    assert found == again
    print(f"{found} primes below {options.numbers}: {alone_s:.2f} s in threads, {together_s:.2f} s in children")
    print(f"speed-up on {options.workers} processes: {alone_s / together_s:.2f}")


if __name__ == "__main__":
    main()
