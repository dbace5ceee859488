"""How long a host may start calls, by its own count."""

from __future__ import annotations

import pytest

from scale import linux_only
from zmqagents.cluster.lease import PATIENCE_S, Admission, Lease, LeaseState, boot_time
from zmqagents.errors import ConfigError


def test_a_lease_counts_from_before_the_beat_and_a_fifth_less() -> None:
    lease = Lease(10)
    assert lease.state(100) is LeaseState.JOINING
    assert lease.admits(100) is Admission.ELSEWHERE
    lease.taken(100)
    assert lease.state(107.9) is LeaseState.HELD
    assert lease.left(104) == pytest.approx(0.4)
    assert lease.state(108) is LeaseState.LAPSED
    assert lease.left(109) == 0.0


def test_the_answer_to_an_earlier_beat_shortens_nothing() -> None:
    lease = Lease(10)
    lease.taken(100)
    lease.taken(97)
    assert lease.until == 108


def test_a_lapsed_host_sends_calls_on_while_redis_answers_and_lets_them_wait_while_it_is_away() -> None:
    lease = Lease(10)
    lease.taken(100)
    assert lease.admits(109) is Admission.ELSEWHERE
    lease.unanswered(108)
    assert lease.admits(107) is Admission.START, "while it has the lease it serves"
    assert lease.admits(109) is Admission.WAIT
    assert lease.admits(110, PATIENCE_S) is Admission.UNAVAILABLE
    lease.answered()
    assert lease.admits(110) is Admission.ELSEWHERE
    lease.taken(110)
    assert lease.admits(111) is Admission.START


def test_the_dead_start_nothing_ever_again() -> None:
    lease = Lease(10)
    lease.taken(100)
    lease.told_dead()
    lease.taken(101)
    assert lease.state(102) is LeaseState.DEAD
    assert (lease.admits(102), lease.left(102)) == (Admission.ELSEWHERE, 0.0)


@pytest.mark.parametrize("length", [0.99, 301])
def test_a_lease_is_a_second_to_five_minutes(length: float) -> None:
    with pytest.raises(ConfigError, match="1 to 300"):
        Lease(length)


@linux_only("CLOCK_BOOTTIME")
def test_the_clock_runs() -> None:
    first = boot_time()
    assert boot_time() >= first
