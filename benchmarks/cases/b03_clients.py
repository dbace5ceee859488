"""B3: client processes that make blocking calls at the same time; the budget is for 8 of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

PAYLOAD_BYTES = 64
BUDGETED = 8
HEAD_START_S = 0.05  # until all have heard when to begin


def rounds(options: Options) -> Iterator[list[Measurement]]:
    counts = options.scaled((1, 2, 4, BUDGETED, 16), (BUDGETED,))
    seconds = options.scaled(1.0, 0.5)

    def measure(subject: Subject) -> list[Measurement]:
        found = []
        for count in [count for count in counts if count <= len(subject.clients)]:
            clients = subject.clients[:count]
            begin = time.monotonic() + HEAD_START_S
            for client in clients:
                client.tell("rate", begin=begin, seconds=seconds, payload_bytes=PAYLOAD_BYTES)
            calls = sum(client.hear()["calls"] for client in clients)
            found.append({"point": count, "figures": {"calls_per_s": calls / seconds}})
        return found

    return take_turns(options, measure, clients=max(counts))


if __name__ == "__main__":
    run(rounds)
