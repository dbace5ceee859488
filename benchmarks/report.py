"""From single measurements to a table: medians over the rounds, spreads, ratios to the floors, budgets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zmq

Measurement = dict[str, Any]

_WHERE = ("mode", "transport", "subject")
_FIGURES = {"lat": ("p50_us", "p99_us"), "thr": ("calls_per_s",)}


class Row(NamedTuple):
    """One line of the table: the median over the rounds of one figure."""

    bench: str
    mode: str
    transport: str
    subject: str
    figure: str
    median: float
    spread: float  # (largest - smallest) / median
    to_echo: float | None  # median over the rounds of this / echo in the same round; None without that floor
    to_workers: float | None


class Budget(NamedTuple):
    """A bound on a ratio of ours, from the design: ``limit`` must hold, ``reach`` is hoped for."""

    name: str
    figure: str
    ratio: str
    at_most: bool
    limit: float
    reach: float


BUDGETS = (
    Budget("sync call p50 / echo", "p50_us", "to_echo", True, 3.0, 1.3),
    Budget("pipelined calls/s / workers", "calls_per_s", "to_workers", False, 0.25, 0.5),
)


def rows(measurements: Iterable[Measurement]) -> list[Row]:
    """One row for each benchmark, mode, transport, subject and figure, in the order in which they first appear."""
    series: dict[tuple[str, str, str, str, str], dict[int, float]] = {}
    for one in measurements:
        for figure in _FIGURES[one["bench"]]:
            key = (one["bench"], *(one[name] for name in _WHERE), figure)
            series.setdefault(key, {})[one["round"]] = one[figure]

    def ratio(key: tuple[str, str, str, str, str], floor: str) -> float | None:
        bench, mode, transport, _, figure = key
        under = series.get((bench, mode, transport, floor, figure))
        if under is None:
            return None
        return statistics.median(value / under[number] for number, value in series[key].items())

    found = []
    for key, values in series.items():
        median = statistics.median(values.values())
        spread = (max(values.values()) - min(values.values())) / median
        found.append(Row(*key, median, spread, ratio(key, "echo"), ratio(key, "workers")))
    return sorted(found, key=lambda row: (row.bench, row.figure, row.mode, row.transport))


def table(found: Iterable[Row]) -> Iterator[str]:
    """The rows as text lines, aligned, with a blank line where another figure or place begins."""
    line = "{:<12} {:<7} {:<5} {:<10} {:>10} {:>7} {:>8} {:>10}"
    yield line.format("figure", "mode", "over", "subject", "median", "spread", "× echo", "× workers")
    place = None
    for row in found:
        if place != (place := (row.figure, row.mode, row.transport)):
            yield ""
        numbers = f"{row.median:,.0f}", f"{row.spread:.0%}", _times(row.to_echo), _times(row.to_workers)
        yield line.format(row.figure, row.mode, row.transport, row.subject, *numbers)


def verdicts(found: Iterable[Row]) -> Iterator[str]:
    """How ours stand to the budgets, over the transport that a caller on the same machine gets."""
    for budget in BUDGETS:
        for row in found:
            if (row.subject, row.transport, row.figure) != ("zmqagents", "ipc", budget.figure):
                continue
            value: float | None = getattr(row, budget.ratio)
            if value is None:
                continue
            holds = value <= budget.limit if budget.at_most else value >= budget.limit
            sign = "≤" if budget.at_most else "≥"
            yield (
                f"{budget.name}, {row.mode}: {value:.2f} (budget {sign} {budget.limit}, hoped for {sign} "
                f"{budget.reach}) {'holds' if holds else 'MISSED'}"
            )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    versions = {name: importlib.metadata.version(name) for name in ("pyzmq", "msgpack")}
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "load_before": os.getloadavg()[0],  # above about 0.3, somebody else was measured too
        **versions,
        "zmqagents": _our_version(),
    }


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _our_version() -> str:
    import zmqagents

    return zmqagents.__version__
