"""The points of the charts, made from what a host tells of itself at two moments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from host_figures import figures
from zmqagents.telemetry.meters import Meters, Outcome
from zmqagents.web.hosts.series import NAMES, Series


class Story:
    """A host that answers calls, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.meters = Meters()
        self.series = Series(clock=lambda: self.now)
        self.started = 1.0

    def look(self, *, seconds: float = 1.0, ok: int = 0, failed: int = 0) -> None:
        self.now += seconds
        meter = self.meters.of_class("m:A")["f"]
        for _ in range(ok):
            meter.note(Outcome.OK, 0.0, 0.002)
        for _ in range(failed):
            meter.note(Outcome.ERROR, 0.0, 0.2)
        told: dict[str, Any] = figures(0)
        methods = [each.told() for each in self.meters]
        self.series.add({**told, "methods": methods, "uptime_s": self.now, "started": self.started})


def test_rates_and_quantiles_are_those_of_the_time_between_two_looks() -> None:
    story = Story()
    story.look(ok=1000)
    story.look(ok=30, failed=10, seconds=2.0)
    told = story.series.told("10m")
    assert told["t"] == [1003.0]
    assert (told["ok_per_s"], told["error_per_s"]) == ([15.0], [5.0])
    assert told["p50_s"][0] < 0.005 < 0.1 < told["p99_s"][0]


def test_what_nobody_saw_is_missing_and_what_was_seen_too_often_is_one_point() -> None:
    story = Story()
    for _ in range(5):
        story.look(seconds=0.5, ok=5)
    assert len(story.series.told("10m")["t"]) == 2
    story.look(seconds=60.0)
    story.look(ok=7)
    assert story.series.told("10m")["ok_per_s"][-2:] == [None, 7.0]
    json.dumps(story.series.told("10m"), allow_nan=False)


def test_looks_that_are_far_apart_leave_the_points_that_there_are() -> None:
    story = Story()
    for seconds in (1.0, 1.0, *(15.0,) * 50):
        story.look(seconds=seconds, ok=30)
    assert story.series.told("10m")["ok_per_s"] == [30.0, None]
    assert story.series.told("24h")["ok_per_s"][-1] == 2.0, "but by the minute they tell enough"


def test_a_host_that_was_started_anew_is_compared_with_nothing() -> None:
    story = Story()
    story.look(ok=5)
    story.look(ok=5)
    story.meters, story.started = Meters(), 2.0
    story.look(ok=3)
    story.look(ok=4)
    assert story.series.told("10m")["ok_per_s"] == [5.0, 4.0]


@pytest.mark.parametrize(("span", "step_s", "most"), [("10m", 1.0, 600), ("24h", 60.0, 1440)])
def test_no_more_points_are_kept_than_there_is_room_for(span: str, step_s: float, most: int) -> None:
    story = Story()
    for _ in range(most + 5):
        story.look(seconds=step_s)
    told = story.series.told(span)
    assert {len(told[name]) for name in ("t", *NAMES)} == {most}
    assert told["t"][-1] == story.now
