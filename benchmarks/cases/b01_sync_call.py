"""B1: blocking calls with 64 bytes, and with a map of as much text, one after the other, from one client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..loops import NotOffered
from . import Measurement, Options, Subject, run, take_turns

PAYLOAD_BYTES = 64


def rounds(options: Options) -> Iterator[list[Measurement]]:
    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        calls = options.scaled(2_000, 500)
        figures = client.ask("lat", calls=calls, payload_bytes=PAYLOAD_BYTES)
        with contextlib.suppress(NotOffered):
            of_dict = client.ask("lat", calls=calls, payload_bytes=PAYLOAD_BYTES, kind="dict")
            figures |= {f"dict_{name}": of_dict[name] for name in ("p50_us", "p99_us")}
        return [{"curve": figures.pop("curve"), "figures": figures}]

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
