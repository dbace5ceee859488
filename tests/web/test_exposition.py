"""The page that Prometheus reads: both formats are read again by Prometheus's own parsers, and nothing is lost."""

from __future__ import annotations

import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from host_figures import figures
from zmqagents.telemetry.meters import MAX_PAIRS
from zmqagents.telemetry.metrics import METRICS, Buckets, samples
from zmqagents.web.exposition import encode

Labels = frozenset[tuple[str, str]]
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
PARSERS = {"": parse_text, OPEN_METRICS: parse_open_metrics}


@pytest.mark.parametrize("accept", PARSERS)
def test_every_sample_arrives_with_its_labels_and_value(accept: str) -> None:
    told = figures()
    body, content_type = encode([("h1", told)], accept)
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    found: dict[tuple[str, Labels], float] = {}
    for family in PARSERS[accept](body.decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    for metric, values, value in samples(told):
        labels = {"host": "h1", **dict(zip(metric.labels, values, strict=True))}
        if not isinstance(value, Buckets):
            assert found[metric.name, frozenset(labels.items())] == value
            continue
        for edge, count in value.cumulative:
            bucket = frozenset({**labels, "le": edge}.items())
            assert found[f"{metric.name}_bucket", bucket] == count
        assert found[f"{metric.name}_count", frozenset(labels.items())] == sum(value.counts)
        assert found[f"{metric.name}_sum", frozenset(labels.items())] == pytest.approx(value.sum)
    assert found["zmqagents_host_up", frozenset({("host", "h1")})] == 1


def test_kinds_and_helps_are_those_of_the_catalogue() -> None:
    body, _ = encode([("h1", figures())], "")
    families = {family.name: family for family in parse_text(body.decode())}
    for metric in METRICS:
        family = families.get(metric.name.removesuffix("_total"))
        if family is not None:
            assert (family.type, family.documentation) == (metric.kind, metric.help)


@pytest.mark.parametrize("accept", PARSERS)
def test_a_host_that_does_not_answer_is_down_and_no_more_is_said(accept: str) -> None:
    body, _ = encode([("h1", None)], accept)
    (family,) = PARSERS[accept](body.decode())
    assert [(sample.name, sample.labels, sample.value) for sample in family.samples] == [
        ("zmqagents_host_up", {"host": "h1"}, 0.0)
    ]


def test_the_page_of_a_full_host_takes_no_long_time() -> None:
    told = figures(MAX_PAIRS + 1)
    took = []
    for _ in range(5):
        began = time.process_time()
        body, _ = encode([("h1", told)], "")
        took.append(time.process_time() - began)
    assert len(body) > 100_000
    assert min(took) < 0.5, "0.15 s where nothing else runs"


@pytest.mark.parametrize("accept", PARSERS)
def test_the_hosts_of_a_cluster_stand_on_one_page_each_metric_in_one_piece(accept: str) -> None:
    body, _ = encode([("h1", figures()), ("h2", None), ("h3", figures(1))], accept)
    names = [family.name for family in PARSERS[accept](body.decode())]
    assert len(names) == len(set(names))
    up = next(family for family in PARSERS[accept](body.decode()) if family.name == "zmqagents_host_up")
    assert {sample.labels["host"]: sample.value for sample in up.samples} == {"h1": 1, "h2": 0, "h3": 1}
    assert body.count(b'zmqagents_capacity{host="h') == 2


def test_open_metrics_names_the_trace_of_a_call_and_the_older_text_does_not() -> None:
    told = figures(1)
    told["methods"][0]["took"]["examples"] = {"0": ["ab" * 16, 0.00002, 1.7e9]}
    body, _ = encode([("h1", told)], OPEN_METRICS)
    samples_of = [sample for family in parse_open_metrics(body.decode()) for sample in family.samples]
    (found,) = (sample for sample in samples_of if sample.exemplar)
    assert found.name == "zmqagents_call_duration_seconds_bucket"
    assert (found.labels["le"], found.exemplar.labels, found.exemplar.value) == (
        "0.0001",
        {"trace_id": "ab" * 16},
        0.00002,
    )
    assert b"trace_id" not in encode([("h1", told)], "")[0]
