"""The last minutes and hours of a host as numbers for charts: what lies between two answers to ``metrics``.

600 points of a second and 1,440 of a minute are kept, of fixed size in memory. A point that nobody was there to see is
missing: a host is asked only while somebody looks, or Prometheus scrapes.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from ...telemetry.metrics import percentile
from ...telemetry.rates import seconds_between

__all__ = ["NAMES", "Series", "point_between", "short"]

OUTCOMES = ("ok", "error", "timeout", "cancelled", "deadlock", "refused", "lost")
NAMES = (
    *(f"{outcome}_per_s" for outcome in OUTCOMES), "p50_s", "p90_s", "p99_s", "queued_p99_s", "queued", "running",
    "waiting", "ready", "parked", "busy", "streams", "oldest_s", "loop_lag_s", "store_bytes", "queued_bytes",
    "resident_bytes", "cpu", "in_per_s", "out_per_s", "clients", "agents",
)  # fmt: skip
SPANS = {"10m": (600, 1.0), "24h": (1_440, 60.0)}  # how many points, and seconds between two
LONGEST_GAP = 10  # steps between two looks; what lies further apart is not joined


class Series:
    """Any thread may read it; one adds."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._rows = {span: _Ring(size, step) for span, (size, step) in SPANS.items()}

    def __repr__(self) -> str:
        return f"<Series [{', '.join(map(repr, self._rows.values()))}]>"

    def add(self, figures: Mapping[str, Any]) -> None:
        """Take in the figures of a moment."""
        now = self._clock()
        for ring in self._rows.values():
            ring.add(figures, now)

    def told(self, span: str) -> dict[str, Any]:
        """``{"t": [...], NAME: [...]}``: times in seconds since 1970, and for each name a number or None."""
        return self._rows.get(span, self._rows["10m"]).told()


class _Ring:
    def __init__(self, size: int, step_s: float) -> None:
        self._size = size
        self._step_s = step_s
        self._times = array("d")
        self._columns = {name: array("d") for name in NAMES}
        self._before: Mapping[str, Any] | None = None
        self._at = -math.inf

    def __repr__(self) -> str:
        return f"{len(self._times)} points of {self._step_s:g} s"

    def add(self, figures: Mapping[str, Any], now: float) -> None:
        if now - self._at < self._step_s * 0.9:
            return
        before, gap = self._before, now - self._at
        self._before, self._at = figures, now
        if before is None or before["started"] != figures["started"]:
            return  # nothing to compare with
        if gap > LONGEST_GAP * self._step_s:
            if self._times and not math.isnan(self._columns["ok_per_s"][-1]):
                self._append(now - 1e-3, dict.fromkeys(NAMES, math.nan))
            return
        self._append(now, point_between(before, figures))

    def _append(self, now: float, point: Mapping[str, float]) -> None:
        if len(self._times) >= self._size:
            del self._times[0]
            for column in self._columns.values():
                del column[0]
        self._times.append(now)
        for name, column in self._columns.items():
            column.append(point[name])

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = {"t": [round(at, 1) for at in self._times]}
        for name, column in self._columns.items():
            told[name] = [short(value) for value in column.tolist()]
        return told


def short(value: Any) -> Any:
    """Numbers with four figures; None for what is none."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def point_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, float]:
    """One point of the charts, from two answers of one host."""
    seconds = seconds_between(before, now)
    ended, took, queued = _differences(before, now)
    edges, doors, doors_before = tuple(now["edges_s"]), now["doors"], before["doors"]

    def quantile(counts: list[int], part: float) -> float:
        found = percentile(edges, tuple(counts), part)
        return math.nan if found is None else found

    def bytes_per_s(key: str) -> float:
        return float(sum(doors[door][key] - doors_before.get(door, {}).get(key, 0) for door in doors)) / seconds

    lag = now["loop_lag_s"]
    return {
        **{f"{outcome}_per_s": ended.get(outcome, 0) / seconds for outcome in OUTCOMES},
        "p50_s": quantile(took, 0.5), "p90_s": quantile(took, 0.9), "p99_s": quantile(took, 0.99),
        "queued_p99_s": quantile(queued, 0.99), **{state: float(now["calls"].get(state, 0)) for state in _STATES},
        "busy": float(now["workers"]["busy"]), "streams": float(now["streams"]), "oldest_s": float(now["oldest_s"]),
        "loop_lag_s": math.nan if lag is None else float(lag), "store_bytes": float(now["store"]["bytes"]),
        "queued_bytes": float(now["queued_bytes"]), "resident_bytes": float(now["resident_bytes"]),
        "cpu": max(0.0, now["cpu_s"] - before["cpu_s"]) / seconds, "in_per_s": bytes_per_s("received_bytes"),
        "out_per_s": bytes_per_s("sent_bytes"), "clients": float(now["clients"]["connected"]),
        "agents": float(sum(now["agents"].values())),
    }  # fmt: skip


_STATES = ("queued", "running", "waiting", "ready", "parked")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, int], list[int], list[int]]:
    """What all methods together have added: ends by outcome, and the histograms of total and queued time."""
    known = {(each["class"], each["method"]): each for each in before["methods"]}
    ended: dict[str, int] = {}
    took, queued = ([0] * (len(now["edges_s"]) + 1) for _ in range(2))
    for each in now["methods"]:
        then = known.get((each["class"], each["method"]))
        for outcome, count in each["ends"].items():
            ended[outcome] = ended.get(outcome, 0) + count - (then["ends"].get(outcome, 0) if then else 0)
        for total, key in ((took, "took"), (queued, "queued")):
            earlier = then[key]["counts"] if then else [0] * len(total)
            for number, count in enumerate(each[key]["counts"]):
                total[number] += max(0, count - earlier[number])
    return {outcome: max(0, count) for outcome, count in ended.items()}, took, queued
