"""Measure all subjects in turns, in this process and so in one mode: ``python -m benchmarks.rounds OPTIONS``.

``OPTIONS`` is `Options` as JSON. Standard output is one JSON list of measurements: for each round, subject,
transport and benchmark a map with the figures, see `BENCHMARKS`. It runs as a process of its own because a
core is chosen for a whole process before its first thread, and inherited by the servers that it starts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Protocol

from .floors import Floor


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. The figures of a run can be compared only with those of one with equal options."""

    only: tuple[str, ...] = ("lat", "thr")
    subjects: tuple[str, ...] = ("echo", "workers", "zmqagents")
    transports: tuple[str, ...] = ("ipc", "tcp")
    rounds: int = 7
    payload_bytes: int = 64
    lat_calls: int = 2_000
    thr_calls: int = 10_000
    in_flight: int = 256
    warm_up_calls: int = 200
    core: int | None = None  # the core to be pinned to

    @classmethod
    def from_json(cls, text: str) -> Options:
        values: Any = json.loads(text, object_hook=lambda found: {key: _frozen(value) for key, value in found.items()})
        return cls(**values)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class Subject(Protocol):
    """Something that can echo."""

    def call(self, payload: bytes) -> bytes: ...
    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None: ...
    def close(self) -> None: ...


def open_subject(name: str, transport: str, directory: str) -> Subject:
    """Start the subject's server and connect to it; ``directory`` is for its sockets."""
    if name == "zmqagents":
        from .ours import Ours  # not before: the floors alone can be measured without it

        return Ours(name, transport, directory)
    return Floor(name, transport, directory)


def lat(subject: Subject, options: Options) -> dict[str, float]:
    """Blocking calls one after the other: median and 99th percentile in µs."""
    payload = os.urandom(options.payload_bytes)
    samples = []
    clock = time.perf_counter_ns
    for _ in range(options.lat_calls):
        start = clock()
        answer = subject.call(payload)
        samples.append(clock() - start)
        if answer != payload:
            raise RuntimeError("the echo is not what was sent")
    cuts = statistics.quantiles(samples, n=100)
    return {"p50_us": cuts[49] / 1000, "p99_us": cuts[98] / 1000}


def thr(subject: Subject, options: Options) -> dict[str, float]:
    """Many calls under way at once from one caller: calls per second."""
    payload = os.urandom(options.payload_bytes)
    start = time.perf_counter()
    subject.pipeline(payload, options.thr_calls, options.in_flight)
    return {"calls_per_s": options.thr_calls / (time.perf_counter() - start)}


BENCHMARKS: dict[str, Callable[[Subject, Options], dict[str, float]]] = {"lat": lat, "thr": thr}


def turns(options: Options) -> Iterator[dict[str, Any]]:
    """Open every subject, then measure in rounds; one map for each measurement."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="zb"))
        opened: list[tuple[str, str, Subject]] = []
        for transport in options.transports:
            os.mkdir(f"{directory}/{transport}")
            for name in options.subjects:
                subject = stack.enter_context(closing(open_subject(name, transport, f"{directory}/{transport}")))
                subject.pipeline(b"warm up", options.warm_up_calls, options.in_flight)
                opened.append((name, transport, subject))
        for number in range(options.rounds):
            print(f"  round {number + 1} of {options.rounds}", file=sys.stderr)
            first = number % len(opened)
            for name, transport, subject in opened[first:] + opened[:first]:
                for bench in options.only:
                    figures = BENCHMARKS[bench](subject, options)
                    yield {"round": number, "subject": name, "transport": transport, "bench": bench, **figures}


if __name__ == "__main__":
    chosen = Options.from_json(sys.argv[1])
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})
    json.dump(list(turns(chosen)), sys.stdout)
