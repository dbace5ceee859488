"""The catalogue of metrics: Prometheus's rules for names, and what a host's figures become under them."""

from __future__ import annotations

import re

import pytest

from host_figures import figures
from zmqagents.telemetry.metrics import METRICS, Buckets, percentile, samples


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
    assert labels == {"class", "method", "outcome", "error", "limit", "state", "door", "reason", "version", "python",
                      "side", "found"}  # fmt: skip


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


def test_a_host_of_no_cluster_tells_nothing_of_one() -> None:
    found = {sample.metric.name for sample in samples(figures(cluster=False))}
    assert [name for name in found if name.startswith("zmqagents_cluster")] == []


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
