"""B4: blocking calls that carry 1 MiB and 16 MiB there and back."""

from __future__ import annotations

from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

MIB = 1 << 20


def rounds(options: Options) -> Iterator[list[Measurement]]:
    sizes = {1: options.scaled(64, 16), 16: options.scaled(8, 3)}  # MiB: calls

    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        return [
            {"point": size, "figures": client.ask("large", calls=calls, payload_bytes=size * MIB)}
            for size, calls in sizes.items()
        ]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
