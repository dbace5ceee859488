"""`Timers`: what is due, and when the next look is."""

from __future__ import annotations

import math

from zmqagents.scheduler.records import DrainEnd
from zmqagents.scheduler.timers import SPARE, Timers


def test_due_is_the_earliest_time_and_infinity_without_any() -> None:
    timers: Timers[DrainEnd] = Timers()
    assert timers.due == math.inf
    for due in (30.0, 10.0, 20.0):
        timers.add(due, DrainEnd(due))
    assert timers.due == 10.0
    assert [entry.deadline for entry in timers.take_due(20.0)] == [10.0, 20.0]
    assert timers.due == 30.0


def test_an_entry_that_is_settled_is_never_given_out() -> None:
    timers: Timers[DrainEnd] = Timers()
    entry = DrainEnd(10.0)
    timers.add(10.0, entry)
    entry.settled = True
    assert timers.due == 10.0, "too early does no harm"
    assert list(timers.take_due(10.0)) == []
    assert timers.due == math.inf


def test_entries_that_are_over_are_swept_out_and_the_others_are_kept() -> None:
    timers: Timers[DrainEnd] = Timers()
    living = [DrainEnd(float(number)) for number in range(100)]
    for entry in living:
        timers.add(entry.deadline, entry)
    for _ in range(10 * SPARE):
        over = DrainEnd(1000.0)
        timers.add(1000.0, over)
        over.settled = True
        assert len(timers) <= SPARE + 2 * len(living) + 2
    assert sorted(entry.deadline for entry in timers) == [entry.deadline for entry in living]
