"""What is timed, the same for every subject. Standard library alone: peers run it in their own environments.

A `Client` is one connection to a subject's server. What a subject does not offer raises `NotOffered` with the reason.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

# Where the curve of a latency distribution is kept, as shares of the calls.
SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999)

WARM_UP = 10  # values before the clock starts: the allocator gets its memory, a connection finds its pace
_clock = time.perf_counter_ns


class NotOffered(Exception):
    """The subject has no such kind of call."""


class Client(Protocol):
    """One connection."""

    def call(self, payload: Any) -> Any:
        """One round trip; the thread waits for it."""

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        """``calls`` round trips with up to ``in_flight`` of them under way, from one thread."""

    def take(self, payload: Any) -> Any:
        """A round trip that carries ``payload`` there, and back only its length."""

    def give(self, size: int) -> Any:
        """A round trip that brings ``size`` bytes back, which the server has ready."""

    def naps(self, seconds: float, count: int) -> None:
        """``count`` agents sleep at the same time; returns when the caller has every result."""

    def late(self, seconds: float) -> float:
        """Seconds from the end of a method that sleeps ``seconds`` to the moment when its caller has the result."""

    def close(self) -> None: ...


def lat(client: Client, calls: int, payload_bytes: int, kind: str = "bytes") -> dict[str, Any]:
    """Blocking calls one after the other: median and 99th percentile in µs, and the whole curve at `SHARES`.

    ``kind`` "dict": the payload is a map of texts that together are so long.
    """
    payload: Any = os.urandom(payload_bytes)
    if kind == "dict":
        payload = {f"field {number:02}": f"text {number:03}" for number in range(payload_bytes // 16)}
    samples = []
    for _ in range(calls):
        start = _clock()
        answer = client.call(payload)
        samples.append(_clock() - start)
        if answer != payload:
            raise RuntimeError("the echo is not what was sent")
    samples.sort()
    curve = [samples[min(int(share * calls), calls - 1)] / 1000 for share in SHARES]
    cuts = statistics.quantiles(samples, n=100)
    return {"p50_us": cuts[49] / 1000, "p99_us": cuts[98] / 1000, "curve": curve}


def thr(client: Client, calls: int, in_flight: int, payload_bytes: int) -> dict[str, Any]:
    """Many calls under way at once from one caller: calls per second."""
    payload = os.urandom(payload_bytes)
    start = _clock()
    client.pipeline(payload, calls, in_flight)
    return {"calls_per_s": calls / (_clock() - start) * 1e9}


def rate(client: Client, begin: float, seconds: float, payload_bytes: int) -> dict[str, Any]:
    """How many blocking calls in ``seconds`` from ``begin`` on (`time.monotonic`, the same in all processes)."""
    payload = os.urandom(payload_bytes)
    end, count = begin + seconds, 0
    time.sleep(max(begin - time.monotonic(), 0.0))
    while time.monotonic() < end:
        client.call(payload)
        count += 1
    return {"calls": count}


def large(client: Client, calls: int, payload_bytes: int) -> dict[str, Any]:
    """Blocking calls with a large payload: payload bytes per second, in MB/s; each byte goes there and back."""
    payload = os.urandom(payload_bytes)
    start = _clock()
    for _ in range(calls):
        answer = client.call(payload)
        if len(answer) != payload_bytes:
            raise RuntimeError("the echo is not what was sent")
    return {"mb_per_s": calls * payload_bytes / (_clock() - start) * 1e3}


def flow(client: Client, direction: str, kind: str, calls: int, payload_bytes: int) -> dict[str, Any]:
    """Blocking calls with a large value in one direction, or there and back: its bytes per second, in MB/s."""
    payload = _value_of(kind, payload_bytes)
    if direction == "receive" and kind != "bytes":
        raise NotOffered("what comes back is bytes")
    call: Callable[[], Any] = {
        "echo": lambda: client.call(payload),
        "send": lambda: client.take(payload),
        "receive": lambda: client.give(payload_bytes),
    }[direction]
    for _ in range(WARM_UP):
        answer = call()
    if direction != "send" and len(answer) != len(payload):
        raise RuntimeError("the answer is not what was asked for")
    start = _clock()
    for _ in range(calls):
        call()
    return {"mb_per_s": calls * payload_bytes / (_clock() - start) * 1e3}


def _value_of(kind: str, size: int) -> Any:
    data = os.urandom(size)
    if kind == "numpy":
        try:
            import numpy
        except ImportError:
            raise NotOffered("numpy is not here") from None
        return numpy.frombuffer(data, dtype=numpy.uint8)
    return bytearray(data) if kind == "bytearray" else data


def naps(client: Client, seconds: float, count: int) -> dict[str, Any]:
    """Wall time in s until ``count`` agents that sleep ``seconds`` at once are done."""
    start = _clock()
    client.naps(seconds, count)
    return {"wall_s": (_clock() - start) / 1e9}


def late(client: Client, seconds: float) -> dict[str, Any]:
    """How many ms after the end of a long method its caller knows."""
    return {"delay_ms": client.late(seconds) * 1000}


LOOPS: dict[str, Callable[..., dict[str, Any]]] = {
    "lat": lat, "thr": thr, "rate": rate, "large": large, "flow": flow, "naps": naps, "late": late,
}  # fmt: skip
