"""Which child a new agent goes to, and who knows where it is."""

from __future__ import annotations

import pytest

from zmqagents.members.directory import LocalDirectory
from zmqagents.members.placement import least_loaded


@pytest.mark.parametrize(
    ("loads", "most", "chosen"),
    [
        ([], 2, None),
        ([1], 2, None),  # there may be another one
        ([0], 2, 0),  # an idle one is there
        ([1, 0], 2, 1),
        ([3, 2], 2, 1),
        ([2, 2], 2, 0),
        ([5], 1, 0),
    ],
)
def test_a_new_agent_goes_to_the_least_loaded_child_or_a_new_one(
    loads: list[int], most: int, chosen: int | None
) -> None:
    assert least_loaded(loads, most) == chosen


def test_agents_placed_one_by_one_are_spread_evenly() -> None:
    loads: list[int] = []
    for _ in range(100):
        best = least_loaded(loads, 4)
        if best is None:
            loads.append(0)
            best = -1
        loads[best] += 1
    assert loads == [25, 25, 25, 25]


def test_an_agent_that_is_put_again_has_a_higher_epoch() -> None:
    directory: LocalDirectory[str] = LocalDirectory()
    assert directory.find("a") is None
    first = directory.put("a", "one")
    second = directory.put("a", "two")
    assert (first.member, second.member, directory.find("a")) == ("one", "two", second)
    assert second.epoch > first.epoch
    assert (len(directory), list(directory), "1 agents" in repr(directory)) == (1, ["a"], True)
    directory.drop("a")
    directory.drop("a")
    assert directory.find("a") is None
