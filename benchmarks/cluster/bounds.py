"""What the figures of a cluster must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["BOUNDS", "Bound", "lines"]


class Bound(NamedTuple):
    """A bound on one figure of a case; without a ``limit`` it is shown, not judged."""

    case: str
    figure: str
    what: str
    limit: float | None = None
    at_most: bool = True

    def holds(self, value: float) -> bool:
        if self.limit is None:
            return True
        return value <= self.limit if self.at_most else value >= self.limit


BOUNDS = (
    Bound("activation", "one_per_s", "agents made per second, one host", 3000, at_most=False),
    Bound("activation", "three_of_one", "the same of three hosts / of one", 1.2, at_most=False),
    Bound("activation", "three_per_s", "agents made per second, three hosts"),
    Bound("activation", "redis_share", "Redis meanwhile, share of a core"),
    Bound("calls", "cold_ms", "first call of an agent, p50, ms", 2.0),
    Bound("calls", "warm_of_plain", "a call by the cluster's client / a plain call, p50", 1.1),
    Bound("calls", "warm_us", "a call by the cluster's client, p50, µs"),
    Bound("calls", "relayed_more_us", "a call through another host: more than straight, p50, µs", 150),
    Bound("calls", "saved_us", "a call whose state is saved, p50, µs"),
    Bound("drain", "agents_per_s", "a host gives its agents away, agents per second", 300, at_most=False),
    Bound("drain", "failed", "calls that failed meanwhile", 0),
    Bound("drain", "p99_ms", "calls meanwhile, p99, ms", 100),
    Bound("upgrade", "failed", "three hosts exchanged for a new state version, and back: failed calls", 0),
    Bound("upgrade", "p99_ms", "calls meanwhile, p99, ms"),
    *(
        bound
        for case, how, limit in (
            ("kill", "killed and started again", 1.0),
            ("kill-lease", "killed, nobody tells", None),
        )
        for bound in (
            Bound(case, "back_s", f"a host is {how}: all its agents answer after, s", limit),
            Bound(case, "latest_s", "the longest call beyond its deadline, s", 1.0),
            Bound(case, "others_ratio", "p99 of calls to the other hosts / before", 3.0),
            Bound(case, "lost", "calls that were under way there: CallLost"),
            Bound(case, "untyped", "calls that ended in anything but a value or an error of this package", 0),
        )
    ),
    Bound("kill-lease", "back_beyond_lease_s", "the same beyond the lease, s", 1.0),
    Bound(
        "return", "others_ratio", "200 clients lose their host: p99 of others' calls to the other hosts / before", 3.0
    ),
    Bound("return", "back_s", "each of them has an answer again after, s"),
    Bound("return", "peak_ratio", "commands of Redis in the busiest half second / before"),
    Bound("return", "untyped", "calls that ended in anything but a value or an error of this package", 0),
    Bound("hundred", "redis_share", "100 hosts: Redis for their beats, share of a core", 0.10),
    Bound("hundred", "unevenness", "100,000 agents placed: the fullest host / the mean, less 1", 0.15),
    Bound("hundred", "more_mib", "memory of a host in such a cluster: more than alone, MiB", 10),
)


def lines(found: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, str, str]]:
    """For each bound that has a figure: case, what, figure, limit, mark."""
    told = []
    for bound in BOUNDS:
        value = found.get(bound.case, {}).get(bound.figure)
        if value is not None:
            sign = "" if bound.limit is None else f"{'≤' if bound.at_most else '≥'} {bound.limit:,g}"
            mark = "" if bound.limit is None else "✓" if bound.holds(value) else "✗"
            told.append((bound.case, bound.what, _shown(value), sign, mark))
    return told


def _shown(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
