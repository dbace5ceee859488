"""B1: blocking calls with 64 bytes, one after the other, from one client."""

from __future__ import annotations

from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

PAYLOAD_BYTES = 64


def rounds(options: Options) -> Iterator[list[Measurement]]:
    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        figures = client.ask("lat", calls=options.scaled(2_000, 500), payload_bytes=PAYLOAD_BYTES)
        return [{"curve": figures.pop("curve"), "figures": figures}]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
