"""B2: calls from one client with 64 bytes each, 256 of them in flight."""

from __future__ import annotations

from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

PAYLOAD_BYTES = 64
IN_FLIGHT = 256


def rounds(options: Options) -> Iterator[list[Measurement]]:
    calls = options.scaled(20_000, 5_000)

    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        return [{"figures": client.ask("thr", calls=calls, in_flight=IN_FLIGHT, payload_bytes=PAYLOAD_BYTES)}]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
