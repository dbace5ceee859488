"""When a process is ended by force: the times, by a clock that the tests move."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from scale import linux_only
from zmqagents.process.alarms import alarm_within
from zmqagents.process.end_timer import FORCED_AFTER_S, EndTimer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def all_signals_as_the_system_has_them() -> Iterator[None]:
    """Whoever runs the tests by nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_the_forced_end_comes_within_two_seconds_of_the_grace() -> None:
    assert FORCED_AFTER_S < 2
    assert EndTimer(acts=False, clock=Clock()).plan(10.0) == pytest.approx(10 + FORCED_AFTER_S)


def test_a_second_stop_can_only_bring_the_end_nearer() -> None:
    clock = Clock()
    timer = EndTimer(acts=False, clock=clock)
    timer.plan(10.0)
    clock.now += 4
    assert timer.plan(10.0) == pytest.approx(6 + FORCED_AFTER_S)
    assert timer.plan(1.0) == pytest.approx(1 + FORCED_AFTER_S)
    clock.now += 0.5
    assert timer.plan(60.0) == pytest.approx(0.5 + FORCED_AFTER_S)
    clock.now += 60
    assert timer.plan(60.0) < 0  # over


@linux_only("the signals and their numbers are Linux'")
def test_the_alarm_for_a_signal_that_python_cannot_hear_is_the_latest_that_is_in_time() -> None:
    assert alarm_within(0.9) is None
    assert alarm_within(3) == signal.SIGHUP == 1
    assert alarm_within(12) == signal.SIGUSR1 == 10
    assert alarm_within(40) == 40
    assert alarm_within(1e9) == signal.SIGRTMAX


@linux_only("the signals and their numbers are Linux'")
def test_a_signal_that_somebody_handles_is_no_alarm() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        assert alarm_within(12) == signal.SIGHUP
    finally:
        signal.signal(signal.SIGUSR1, before)


@linux_only("the signals and their numbers are Linux'")
def test_a_signal_that_is_ignored_is_no_alarm() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert alarm_within(3) is None
