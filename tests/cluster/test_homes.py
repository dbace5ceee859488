"""Where agents were last seen."""

from __future__ import annotations

from zmqagents.cluster.cache import Home, Homes


def test_only_a_later_home_replaces_one() -> None:
    homes = Homes()
    assert homes.note("A/x", "one", 5)
    assert not homes.note("A/x", "two", 5)
    assert not homes.note("A/x", "two", 4)
    assert homes.find("A/x") == Home("one", 5)
    assert homes.note("A/x", "two", 6)
    assert homes.find("A/x") == Home("two", 6)


def test_a_home_that_proved_wrong_goes_whatever_its_epoch() -> None:
    homes = Homes()
    homes.note("A/x", "one", 9)
    assert not homes.drop("A/x", "two"), "it was dropped before, and another one is known"
    assert homes.drop("A/x", "one")
    assert homes.find("A/x") is None
    assert homes.note("A/x", "two", 3)


def test_with_a_host_all_that_was_there_goes() -> None:
    homes = Homes()
    for number in range(6):
        homes.note(f"A/{number}", f"host {number % 2}", 1)
    assert homes.drop_all_at("host 1") == 3
    assert [homes.find(f"A/{number}") is None for number in range(6)] == [False, True] * 3


def test_the_homes_are_bounded_and_the_oldest_goes() -> None:
    homes = Homes(most=3)
    for number in range(5):
        homes.note(f"A/{number}", "one", 1)
    homes.note("A/2", "two", 2)
    homes.note("A/5", "one", 1)
    assert len(homes) == 3
    assert [homes.find(f"A/{number}") is not None for number in range(6)] == [False, False, True, False, True, True]
    assert (homes.hits, homes.misses) == (3, 3)
