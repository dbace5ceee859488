"""B5: 32 agents sleep 0.5 s in a worker thread each, at the same time. The ideal is 0.5 s."""

from __future__ import annotations

from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

AGENTS = 32  # the default capacity
NAP_S = 0.5


def rounds(options: Options) -> Iterator[list[Measurement]]:
    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        return [{"figures": client.ask("naps", seconds=NAP_S, count=AGENTS)}]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
