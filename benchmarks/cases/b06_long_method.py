"""B6: methods that take 6 s, each called by a process of its own: how long after its end does the caller know?

The figure of a round is the worst of its calls. They begin, and so end, a little apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

METHOD_S = 6.0
CALLERS = 20
APART_S = 0.02


def rounds(options: Options) -> Iterator[list[Measurement]]:
    def measure(subject: Subject) -> list[Measurement]:
        for client in subject.clients:
            client.tell("late", seconds=METHOD_S)
            time.sleep(APART_S)
        delays = sorted(client.hear()["delay_ms"] for client in subject.clients)
        return [{"figures": {"worst_delay_ms": delays[-1], "median_delay_ms": delays[len(delays) // 2]}}]

    return take_turns(options, measure, clients=CALLERS)


if __name__ == "__main__":
    run(rounds)
