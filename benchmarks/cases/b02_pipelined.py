"""B2: calls from one client with 64 bytes each, 256 of them in flight."""

from __future__ import annotations

from collections.abc import Iterator

from . import Measurement, Options, Subject, run, take_turns

PAYLOAD_BYTES = 64
IN_FLIGHT = 256
FIRST_CALLS = 1_000  # tell how fast the subject is: 400 to 150,000 calls/s, and each is to be measured as long


def rounds(options: Options) -> Iterator[list[Measurement]]:
    seconds = options.scaled(1.0, 0.3)
    calls: dict[str, int] = {}

    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients

        def rate(count: int) -> float:
            answer = client.ask("thr", calls=count, in_flight=IN_FLIGHT, payload_bytes=PAYLOAD_BYTES)
            return float(answer["calls_per_s"])

        if subject.name not in calls:
            calls[subject.name] = max(int(rate(FIRST_CALLS) * seconds), FIRST_CALLS)
        return [{"figures": {"calls_per_s": rate(calls[subject.name])}}]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
