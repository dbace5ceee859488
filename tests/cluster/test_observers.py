"""Who may be declared dead: only what has been seen, by one's own clock, in answers that follow each other closely."""

from __future__ import annotations

from zmqagents.cluster.observers import MAX_DEAD, MAX_STRANGERS, Observers, Sight


def watched_for(seconds: float, *, every_s: float = 2.5, late_s: float = 0.1) -> Observers:
    """Answers in which "b" has the same beat number, for so long."""
    observers = Observers(10)
    at = 100.0
    while at <= 100 + seconds:
        observers.saw([("b", 7)], at, at + late_s)
        at += every_s
    return observers


def test_a_member_that_has_not_beaten_for_a_lease_may_be_declared_dead() -> None:
    assert watched_for(10).judge("b", 110) == Sight(7, False), "from answer to request it is less than a lease"
    assert watched_for(12.5).judge("b", 112.6) == Sight(7, True)
    assert watched_for(12.5).stopped(112.6) == ["b"]


def test_one_that_beats_is_watched_anew() -> None:
    observers = watched_for(12.5)
    observers.saw([("b", 8)], 113, 113.1)
    assert observers.judge("b", 113.2) == Sight(8, False)
    assert observers.stopped(113.2) == []


def test_answers_too_far_apart_prove_nothing() -> None:
    assert not watched_for(30, every_s=5.1).judge("b", 131).watched
    assert not watched_for(30, every_s=4.5, late_s=0.6).judge("b", 131).watched, "an answer may have waited"
    assert watched_for(30, every_s=4.5).judge("b", 128).watched


def test_what_was_seen_long_ago_proves_nothing() -> None:
    assert not watched_for(12.5).judge("b", 118).watched


def test_a_stranger_is_watched_from_the_first_question_on() -> None:
    observers = Observers(10)
    assert observers.judge("x", 100) == Sight(None, False)
    for at in (101, 104, 107, 110, 113):
        observers.saw([], at, at + 0.1)
    assert observers.judge("x", 113.2) == Sight(None, True)
    observers.saw([("x", 1)], 114, 114.1)
    assert observers.judge("x", 114.2) == Sight(1, False)


def test_the_dead_are_remembered_until_redis_may_have_lost_that() -> None:
    observers = watched_for(12.5)
    observers.bury("b", 7)
    assert observers.is_dead("b")
    assert observers.stopped(112.6) == []
    assert observers.doubt() == [("b", 7)]
    assert not observers.is_dead("b")


def test_what_is_remembered_is_bounded() -> None:
    observers = Observers(10)
    for number in range(2 * MAX_DEAD):
        observers.bury(f"d{number}", None)
    for number in range(2 * MAX_STRANGERS):
        observers.judge(f"s{number}", 100)
    observers.saw([], 100, 100)
    assert not observers.is_dead("d0")
    assert observers.is_dead(f"d{2 * MAX_DEAD - 1}")
    assert repr(observers) == f"<Observers [{MAX_STRANGERS} watched]>"
