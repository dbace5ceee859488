"""What has happened between two answers to the request ``metrics``: calls a second, and how long they took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .metrics import percentile

__all__ = ["Row", "rows_between", "seconds_between"]


class Row(NamedTuple):
    """One method between two looks. Times in seconds, None if no call of it has ended. ``total``: since the start."""

    class_name: str
    method: str
    per_s: float
    failed_per_s: float
    p50_s: float | None
    p99_s: float | None
    queued_p99_s: float | None
    total: int


def seconds_between(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float:
    """How long lies between two answers of one host; since its start, where the first is None or of another process."""
    if before is None or before["started"] != now["started"]:
        return float(now["uptime_s"])
    return max(1e-3, float(now["uptime_s"] - before["uptime_s"]))


def rows_between(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Row]:
    """A row for each method, the busiest first."""
    seconds, edges = seconds_between(before, now), tuple(now["edges_s"])
    known: dict[tuple[str, str], Mapping[str, Any]] = {}
    if before is not None and before["started"] == now["started"]:
        known = {(each["class"], each["method"]): each for each in before["methods"]}
    rows = []
    for each in now["methods"]:
        then = known.get((each["class"], each["method"]))
        took, queued = _new(then, each, "took"), _new(then, each, "queued")
        ended, ok = sum(took), each["ends"]["ok"] - (then["ends"]["ok"] if then is not None else 0)
        rows.append(
            Row(
                each["class"], each["method"], ended / seconds, max(0, ended - ok) / seconds,
                percentile(edges, took, 0.5), percentile(edges, took, 0.99), percentile(edges, queued, 0.99),
                sum(each["ends"].values()),
            )
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row.per_s, -row.total, row.class_name, row.method))


def _new(then: Mapping[str, Any] | None, now: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The durations that have been added to a histogram."""
    counts = now[key]["counts"]
    if then is None:
        return tuple(counts)
    return tuple(max(0, count - before) for count, before in zip(counts, then[key]["counts"], strict=True))
