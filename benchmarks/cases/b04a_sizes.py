"""B4a: values of 64 KiB to 16 MiB there and back, there, and back; as bytes, bytearray and, for ours, a numpy array."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..loops import NotOffered
from . import Measurement, Options, Subject, run, take_turns

KIB = 1 << 10
SIZES_KIB = (64, 256, 1024, 4096, 16384)
ROUND_BYTES = 1 << 28  # so much in each direction and round: 4,096 values of 64 KiB, 16 of 16 MiB
DIRECTIONS = ("echo", "send", "receive")
KINDS = ("bytes", "bytearray", "numpy")


def rounds(options: Options) -> Iterator[list[Measurement]]:
    total = options.scaled(ROUND_BYTES, ROUND_BYTES // 8)

    def measure(subject: Subject) -> list[Measurement]:
        [client] = subject.clients
        found: list[Measurement] = []
        for size in SIZES_KIB:
            calls = max(4, total // (size * KIB))
            figures: dict[str, Any] = {}
            for kind in KINDS:
                for direction in DIRECTIONS:
                    try:
                        rate = client.ask("flow", direction=direction, kind=kind, calls=calls, payload_bytes=size * KIB)
                    except NotOffered:
                        continue
                    label = direction if kind == "bytes" else f"{direction}_{kind}"
                    figures[f"{label}_mb_per_s"] = rate["mb_per_s"]
            found.append({"point": size, "figures": figures})
        return found

    return take_turns(options, measure)


if __name__ == "__main__":
    run(rounds)
