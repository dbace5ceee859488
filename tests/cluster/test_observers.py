"""Who may be declared dead: only what has been seen, by one's own clock, in answers that follow each other closely."""

from __future__ import annotations

import pytest

from zmqagents.cluster.observers import MAX_DEAD, MAX_STRANGERS, Observers, Sight
from zmqagents.store.cluster import MemberRow

LEASE_S = 10.0


class Watcher:
    """Observers, and a Redis whose clock is ``ahead_s`` of theirs; "b" has beaten last at ``beat_at``."""

    def __init__(self) -> None:
        self.observers = Observers(LEASE_S)
        self.ahead_s = 1000.0
        self.beat_at, self.number, self.lease_s = 0.0, 7, LEASE_S

    def look(self, at: float, late_s: float = 0.0) -> None:
        left_us = round((self.beat_at + self.lease_s - at) * 1e6)
        row = MemberRow("b", left_us, self.number, False, "s", b"", round(self.lease_s * 1e6))
        self.observers.saw([row], round((at + self.ahead_s) * 1e6), at, at + late_s)

    def look_until(self, end: float, *, every_s: float = 2.5, late_s: float = 0.0) -> None:
        """Look from 100 s on; b's last beat was just before the first look."""
        self.beat_at, at = 100.0, 100.0
        while at <= end:
            self.look(at, late_s)
            at += every_s

    def is_watched(self, now: float) -> bool:
        return self.observers.judge("b", now).watched


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def test_a_member_that_has_not_beaten_for_a_lease_may_be_declared_dead(watcher: Watcher) -> None:
    watcher.look_until(110, late_s=0.1)
    assert watcher.observers.judge("b", 110.05) == Sight(7, False)
    assert watcher.observers.judge("b", 110.1) == Sight(7, True), "counted from when the first answer came"
    assert watcher.observers.stopped(110.1) == ["b"]


def test_one_that_beats_is_watched_anew(watcher: Watcher) -> None:
    watcher.look_until(110)
    watcher.beat_at, watcher.number = 111.0, 8
    watcher.look(112.5)
    assert watcher.observers.judge("b", 112.5) == Sight(8, False)
    for at in (115, 117.5, 120):
        watcher.look(at)
    assert not watcher.is_watched(120.9)
    assert watcher.is_watched(121.0), "a lease from its beat, not from when it was seen"


def test_a_clock_that_was_stepped_is_not_believed(watcher: Watcher) -> None:
    watcher.look_until(110)
    watcher.beat_at, watcher.number, watcher.ahead_s = 105.0, 8, 1005.0  # it has beaten at 110, as a stepped clock says
    watcher.look(112.5)
    for at in (115, 117.5, 120):
        watcher.look(at)
    assert not watcher.is_watched(122.4)
    assert watcher.is_watched(122.5)


def test_no_beat_was_before_the_answer_that_did_not_show_it(watcher: Watcher) -> None:
    watcher.look_until(110)
    watcher.beat_at, watcher.number = 90.0, 8
    watcher.look(112.5)
    watcher.look(115)
    assert not watcher.is_watched(119.9)


def test_a_member_is_watched_for_its_own_lease(watcher: Watcher) -> None:
    watcher.lease_s = 30.0
    watcher.look_until(130)
    assert not watcher.is_watched(129.9)
    assert watcher.is_watched(130)


def test_answers_too_far_apart_prove_nothing(watcher: Watcher) -> None:
    watcher.look_until(130, every_s=5.1)
    assert not watcher.is_watched(130)


def test_answers_that_may_have_waited_prove_nothing(watcher: Watcher) -> None:
    watcher.look_until(130, every_s=4.5, late_s=0.6)
    assert not watcher.is_watched(130)


def test_what_was_seen_long_ago_proves_nothing(watcher: Watcher) -> None:
    watcher.look_until(110)
    assert watcher.is_watched(115)
    assert not watcher.is_watched(115.1)


def test_a_stranger_is_watched_from_the_first_question_on(watcher: Watcher) -> None:
    observers = watcher.observers
    assert observers.judge("x", 100) == Sight(None, False)
    watcher.look_until(107.5)
    assert observers.judge("x", 109.9) == Sight(None, False)
    watcher.look(110)
    assert observers.judge("x", 110) == Sight(None, True)
    row = MemberRow("x", 10_000_000, 1, False, "s", b"", 10_000_000)
    observers.saw([row], 1_111_000_000, 111, 111)
    assert observers.judge("x", 111) == Sight(1, False)


def test_the_dead_are_remembered_until_redis_may_have_lost_that(watcher: Watcher) -> None:
    watcher.look_until(110)
    watcher.observers.bury("b", 7)
    assert watcher.observers.is_dead("b")
    assert watcher.observers.stopped(110) == []
    assert watcher.observers.doubt() == [("b", 7)]
    assert not watcher.observers.is_dead("b")


def test_what_is_remembered_is_bounded() -> None:
    observers = Observers(LEASE_S)
    for number in range(2 * MAX_DEAD):
        observers.bury(f"d{number}", None)
    for number in range(2 * MAX_STRANGERS):
        observers.judge(f"s{number}", 100)
    observers.saw([], 0, 100, 100)
    assert not observers.is_dead("d0")
    assert observers.is_dead(f"d{2 * MAX_DEAD - 1}")
    assert repr(observers) == f"<Observers [{MAX_STRANGERS} watched]>"
