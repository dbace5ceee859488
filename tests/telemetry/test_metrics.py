"""The catalogue of metrics: Prometheus's rules for names, and what a host's figures become under them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from zmqagents.telemetry.meters import EDGES_S, Meters, Outcome
from zmqagents.telemetry.metrics import METRICS, Buckets, percentile, samples


def figures(methods: int = 2) -> dict[str, Any]:
    meters = Meters()
    for number in range(methods):
        meter = meters.of_class("m:A")[f"f{number}"]
        meter.note_short(0.00002)
        meter.note(Outcome.ERROR, 0.002, 0.02)
    door = {"received_bytes": 500, "sent_bytes": 700}
    store = {"pending": 1, "done": 2, "bytes": 300, "expired": 4, "evicted": 5, "refused": 0}
    return {
        "edges_s": list(EDGES_S), "methods": [meter.told() for meter in meters], "refused": {"HostBusy": 3},
        "limits": {"mailbox": 3}, "calls": {"queued": 1, "running": 2}, "agents": {"m:A": 9}, "oldest_s": 1.5,
        "longest_mailbox": 1, "queued_bytes": 10, "queued_limit_bytes": 1000, "streams": 1, "streams_waiting": 0,
        "workers": {"busy": 2, "waiting": 1, "idle": 3}, "capacity": 4, "loop_tasks": 0, "loop_lag_s": None,
        "children": 0, "child_restarts": 0, "clients": {"connected": 2, "lost": 0}, "sessions": 2, "resent": 0,
        "auth_failures": 1, "doors": {"unix": door}, "store": store, "store_limit_bytes": 1000, "cpu_s": 0.5,
        "resident_bytes": 1_000_000, "open_fds": 20, "log_lines_dropped": 0, "draining": 0, "started": 1.7e9,
        "version": "1.0", "python": "3.11.1",
    }  # fmt: skip


def test_names_follow_the_rules_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"zmqagents(_[a-z]+)+", metric.name), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds"), metric
        for unit in ("second", "byte", "millisecond", "ms", "mb", "kb"):
            assert not metric.name.endswith(f"_{unit}"), f"{metric.name}: a base unit, in the plural"
        assert metric.help.endswith(".")
        assert all(
            re.fullmatch("[a-z_]+", label) and label not in ("le", "quantile", "host") for label in metric.labels
        )


def test_no_metric_has_a_label_that_agents_or_callers_could_make_up() -> None:
    labels = {label for metric in METRICS for label in metric.labels}
    assert labels == {"class", "method", "outcome", "error", "limit", "state", "door", "reason", "version", "python"}


def test_each_sample_is_of_a_known_metric_and_each_metric_comes_in_one_piece() -> None:
    found = list(samples(figures()))
    order = [sample.metric.name for sample in found]
    assert all(sample.metric in METRICS and len(sample.labels) == len(sample.metric.labels) for sample in found)
    pieces = [name for number, name in enumerate(order) if number == 0 or order[number - 1] != name]
    assert len(pieces) == len(set(pieces))
    missing = {metric.name for metric in METRICS} - set(order)
    assert missing == {"zmqagents_loop_lag_seconds", "zmqagents_store_round_trip_seconds"}, "no loop, no Redis"
    keys = [(sample.metric.name, sample.labels) for sample in found]
    assert len(set(keys)) == len(keys)


def test_a_redis_store_that_is_away_shows() -> None:
    away = figures()
    away["store"] |= {"state": "down", "round_trip_ms": 2.0, "given_up": 7}
    values = {(sample.metric.name, sample.labels): sample.value for sample in samples(away)}
    assert values["zmqagents_store_up", ()] == 0
    assert values["zmqagents_store_round_trip_seconds", ()] == 0.002
    assert values["zmqagents_store_dropped_total", ("given_up",)] == 7


def test_a_histogram_is_cumulative_and_ends_in_all() -> None:
    buckets = Buckets((0.1, 1.0), (2, 0, 3), 30.0)
    assert list(buckets.cumulative) == [("0.1", 2), ("1.0", 2), ("+Inf", 5)]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [((0, 0, 0), 0.5, None), ((10, 0, 0), 0.5, 0.05), ((0, 10, 0), 0.5, 0.55), ((9, 1, 0), 0.99, 0.91),
     ((0, 0, 4), 0.5, 1.0), ((1, 0, 0), 1.0, 0.1)],
)  # fmt: skip
def test_a_percentile_lies_in_its_bucket(counts: tuple[int, ...], share: float, expected: float | None) -> None:
    assert percentile((0.1, 1.0), counts, share) == (expected if expected is None else pytest.approx(expected))
