"""What has happened between two looks at a host's figures."""

from __future__ import annotations

from typing import Any

import pytest

from zmqagents.telemetry.meters import EDGES_S, Meters, Outcome
from zmqagents.telemetry.rates import rows_between, seconds_between


def figures(meters: Meters, uptime_s: float, started: float = 1.0) -> dict[str, Any]:
    methods = meters.told()
    return {"methods": methods, "uptime_s": uptime_s, "started": started, "edges_s": list(EDGES_S)}


@pytest.fixture
def meters() -> Meters:
    meters = Meters()
    for method in ("f", "g"):
        meters.of_class("m:A")[method].note(Outcome.OK, 0.0, 0.002)
    return meters


def test_only_what_is_new_counts(meters: Meters) -> None:
    before = figures(meters, 10.0)
    meter = meters.of_class("m:A")["g"]
    for _ in range(9):
        meters.of_class("m:A").at_once["g"](0.00005)
    meter.note(Outcome.ERROR, 0.0, 0.7)
    busy, idle = rows_between(before, figures(meters, 12.0))
    assert (busy.method, busy.per_s, busy.failed_per_s, busy.total) == ("g", 5.0, 0.5, 11)
    assert busy.p50_s is not None
    assert busy.p50_s < 0.0001
    assert busy.p99_s is not None
    assert 0.5 < busy.p99_s <= 1.0
    assert (idle.method, idle.per_s, idle.p99_s, idle.total) == ("f", 0.0, None, 1)


def test_the_first_look_shows_the_time_since_the_start(meters: Meters) -> None:
    (first, _) = rows_between(None, figures(meters, 4.0))
    assert first.per_s == 0.25


def test_a_host_that_was_started_again_begins_anew(meters: Meters) -> None:
    before = figures(meters, 100.0)
    fresh = Meters()
    fresh.of_class("m:A")["f"].note(Outcome.OK, 0.0, 0.002)
    now = figures(fresh, 2.0, started=2.0)
    assert seconds_between(before, now) == 2.0
    (row,) = rows_between(before, now)
    assert (row.per_s, row.total) == (0.5, 1)
