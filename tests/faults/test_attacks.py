"""One user does its worst with many connections, each attack for a moment: another user's calls all succeed.

The full run, with figures for each, is ``python -m benchmarks.attacks``.
"""

from __future__ import annotations

import pytest

from benchmarks.attackers import ATTACKS
from benchmarks.attacks import Door, measure
from scale import pick, soak_only

pytestmark = [pytest.mark.timeout(pick(90, 300)), pytest.mark.program]

SECONDS = pick(1.0, 5.0)
P99_MS = 1000.0  # on a machine that others use; 50 on a quiet one, where the benchmark looks
# All others: make soak.
SHORT = ["unread streams", "calls to the other's agent", "questions to the host", "colliding keys"]


def serves_the_other(attack: str, door: Door) -> None:
    figures = measure(attack, seconds=SECONDS, door=door, connections=pick(8, 32))
    assert figures["failed"] == {}
    assert figures["calls"] >= 3  # some 12 where the machine is not busy
    assert max(figures["plain_p99_ms"], figures["nested_p99_ms"]) < P99_MS
    assert figures["rss_mib"] < 2500  # of a host with the settings of one who says nothing


@pytest.mark.parametrize("attack", SHORT)
def test_calls_of_another_user_succeed_beside(attack: str) -> None:
    serves_the_other(attack, "tcp")


@soak_only
@pytest.mark.parametrize("door", ["tcp", "ipc"])
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack != "16 MiB of empty maps"])
def test_calls_of_another_user_succeed_beside_every_attack(attack: str, door: Door) -> None:
    serves_the_other(attack, door)
