"""What is in ``packaging/`` for Grafana and Prometheus: each query can be parsed, and asks for what a host tells."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from host_figures import figures
from zmqagents.scheduler.records import State
from zmqagents.telemetry.meters import Outcome
from zmqagents.telemetry.metrics import HOST_UP, METRICS, Metric
from zmqagents.web.exposition import encode

PACKAGING = Path(__file__).parents[2] / "packaging"
DASHBOARD: dict[str, Any] = json.loads((PACKAGING / "grafana" / "zmqagents.json").read_text(encoding="utf-8"))
RULES = PACKAGING / "prometheus" / "rules.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
VARIABLES = {"$__rate_interval": "5m", "$host": ".*", "$class": ".*"}
KNOWN = {metric.name: metric for metric in (*METRICS, HOST_UP)}
VALUES = {
    "outcome": {outcome.name.lower() for outcome in Outcome},
    "state": {"busy", "waiting", "idle", *(state.name.lower() for state in State)},
}
NOT_DRAWN = {"zmqagents_sessions_total"}  # reconnects tell more
KINDS = {"stat", "timeseries", "heatmap", "table", "row"}  # all of them Grafana's own


def queries() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for variable, value in VARIABLES.items():
                text = text.replace(variable, value)
            yield panel["title"], text
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]


def parts(node: Any) -> Iterator[Any]:
    """A parsed query and all that is in it."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        inner = getattr(node, name, None)
        if inner is not None:
            yield from parts(inner)
    for inner in getattr(node, "args", None) or ():
        yield from parts(inner)


def metric_of(name: str | None) -> Metric:
    assert name is not None
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    metric = KNOWN.get(name) or KNOWN[base]
    assert (metric.kind == "histogram") == (name != metric.name), name
    return metric


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_a_query_can_be_parsed_and_asks_for_what_there_is(title: str, query: str) -> None:
    parsed = promql_parser.parse(query)
    labels: set[str] = set()
    for part in parts(parsed):
        if isinstance(part, promql_parser.VectorSelector):
            metric = metric_of(part.name)
            own = {"host", *metric.labels, *(["le"] if metric.kind == "histogram" else ())}
            labels |= own
            for matcher in part.matchers.matchers:
                assert matcher.name in own, (title, matcher.name)
                if matcher.name in VALUES:
                    assert matcher.value in VALUES[matcher.name]
    for part in parts(parsed):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            assert set(part.modifier.labels) <= labels, (title, part.modifier.labels)


def test_counters_are_never_drawn_without_a_rate() -> None:
    for title, query in queries():
        for name in re.findall(r"zmqagents_\w+", query):
            if metric_of(name).kind == "counter":
                assert re.search(rf"(rate|increase)\({name}\b", query), (title, query)


def test_the_dashboard_draws_every_metric() -> None:
    asked = {metric_of(name).name for _, query in queries() for name in re.findall(r"zmqagents_\w+", query)}
    assert asked == KNOWN.keys() - NOT_DRAWN


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    panels = DASHBOARD["panels"]
    assert {panel["type"] for panel in panels} <= KINDS
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (set(variables), variables["ds"]["type"]) == ({"ds", "host", "class"}, "datasource")
    for panel in panels:
        assert all(target["datasource"]["uid"] == "${ds}" for target in panel.get("targets", ()))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_each_alert_says_what_is_wrong_and_of_which_host() -> None:
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels.host }}" in alert["annotations"]["summary"], alert["alert"]
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS) == 14


@pytest.mark.program
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheuss_own_tool_agrees() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True)
    page, _ = encode([("h1", figures())], "")
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
