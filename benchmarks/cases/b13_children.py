"""B13: agents in children: how much two of them compute, how long others wait meanwhile, what the way there costs.

``speed_up`` is the time of one bare process over that of two agents that share the work, each in a child; ``of_bare``
is what two bare processes take for it over what the two agents take, in the same round. ``ping_p99_ms`` is that of the
host beside 8 agents that burn CPU in 2 shared children, ``ping_p99_8_ms`` the same with a child for each. ``hop_us`` is
what a call of 64 bytes takes more in a child than in a thread of the host, ``hop_mib_us`` one with an argument of 1 MiB
and a short result (medians).
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from zmqagents import AgentBase, async_func

from .. import ours
from . import Measurement, Options, Told, in_turn, run
from .b09_busy_host import BURNERS, Burner, during

PAIR = 2
BLOCK = 50  # calls of one kind before the next kind has its turn
MIB = 1 << 20


def work(steps: int) -> int:
    """Keep a core busy for some 0.2 µs a step."""
    number = 1
    for _ in range(steps):
        number = number * 1_103_515_245 + 12_345 & 0x7FFF_FFFF
    return number


class Worker(AgentBase):
    """Computes."""

    @async_func
    def work(self, steps: int) -> int:
        return work(steps)


class Bare(Told):
    """A process that computes what it is told.

    In a session of its own, as a child is: Linux shares a busy machine out to sessions (autogroup).
    """

    SOURCE = """
import sys
from benchmarks.cases.b13_children import work
for line in sys.stdin:
    print(work(int(line)), flush=True)
"""

    def __init__(self) -> None:
        super().__init__(self.SOURCE, new_session=True)


def of_bare(bare: list[Bare], steps: int) -> float:
    """Seconds in which bare processes share the work."""
    start = time.perf_counter()
    for one in bare:
        one.begin(steps // len(bare))
    for one in bare:
        one.end()
    return time.perf_counter() - start


def of_agents(agents: list[Any], steps: int) -> float:
    """The same for agents."""
    start = time.perf_counter()
    results = [agent.work(steps // len(agents)) for agent in agents]
    for result in results:
        result.result()
    return time.perf_counter() - start


def speed(workers: list[Any], bare: list[Bare], steps: int, number: int) -> dict[str, float]:
    """The figures of the speed-up."""
    measures: dict[str, Callable[[], float]] = {
        "one": lambda: of_bare(bare[:1], steps), "two": lambda: of_bare(bare, steps),
        "agents": lambda: of_agents(workers, steps),
    }  # fmt: skip
    seconds = {name: measure() for name, measure in in_turn(measures.items(), number)}
    return {
        "speed_up": seconds["one"] / seconds["agents"], "bare_speed_up": seconds["one"] / seconds["two"],
        "of_bare": seconds["two"] / seconds["agents"],
    }  # fmt: skip


def p99_ms(burners: list[Any], seconds: float, ask: Callable[[], object]) -> float:
    samples = during([burner.burn(seconds) for burner in burners], ask)
    return statistics.quantiles(samples, n=100)[98] * 1000


def hops(near: Any, far: Any, blocks: int) -> dict[str, float]:
    """What calls take more at ``far`` than at ``near``."""
    large = b"\xaa" * MIB
    small = b"\xaa" * 64
    kinds: dict[str, Callable[[Any], object]] = {
        "hop_us": lambda agent: agent.echo(small), "hop_mib_us": lambda agent: agent.take(large),
    }  # fmt: skip
    figures = {}
    for name, call in kinds.items():
        samples: dict[int, list[float]] = {0: [], 1: []}
        for block in range(2 * blocks):
            agent = (near, far)[block % 2]
            for _ in range(BLOCK):
                start = time.perf_counter()
                call(agent)
                samples[block % 2].append(time.perf_counter() - start)
        figures[name] = (statistics.median(samples[1]) - statistics.median(samples[0])) * 1e6
    return figures


def rounds(options: Options) -> Iterator[list[Measurement]]:
    steps, seconds, blocks = options.scaled(8_000_000, 2_000_000), options.scaled(3.0, 1.0), options.scaled(20, 4)
    with contextlib.ExitStack() as stack:
        _, client = stack.enter_context(ours.host(options, Worker, Burner, ours.Echo, processes=PAIR))
        bare = [stack.enter_context(contextlib.closing(Bare())) for _ in range(PAIR)]

        def made(cls: type, isolation: str, count: int) -> list[Any]:
            return [client.create_agent(cls, agent_options={"isolation": isolation}) for _ in range(count)]

        workers, shared, apart = made(Worker, "pool", PAIR), made(Burner, "pool", BURNERS), made(Burner, "process", 8)
        (near,), (far,) = made(ours.Echo, "thread", 1), made(ours.Echo, "pool", 1)
        of_bare(bare, 1000)  # it has imported what it needs
        for number in range(options.first_round, options.first_round + options.rounds):
            figures = speed(workers, bare, steps, number)
            figures["ping_p99_ms"] = p99_ms(shared, seconds, client.is_alive)
            figures["ping_p99_8_ms"] = p99_ms(apart, seconds, client.is_alive)
            figures |= hops(near, far, blocks)
            yield [{"subject": "zmqagents", "round": number, "figures": figures}]


if __name__ == "__main__":
    run(rounds)
