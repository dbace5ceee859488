"""Full garbage collections: what has survived a long one is frozen, and thawed when most of it has gone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from zmqagents.process.collecting import LONG_S, THAW_S, Collector


class Clock:
    """Each look at it takes ``step`` seconds: so long is a collection."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Knot:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def clock() -> Clock:
    return Clock()


def immortal() -> int:
    """How many objects a collection freezes by itself: Python 3.12 does so with those that can never go."""
    gc.unfreeze()
    gc.collect()
    return gc.get_freeze_count()


@pytest.fixture
def collector(clock: Clock) -> Iterator[Collector]:
    gc.unfreeze()  # what pytest has frozen
    with Collector(clock) as collector:
        yield collector
    assert gc.get_freeze_count() <= immortal()
    gc.freeze()


def test_what_survives_a_short_collection_is_not_frozen(collector: Collector) -> None:
    gc.collect()
    assert gc.get_freeze_count() <= immortal()


def test_what_survives_a_long_collection_is_looked_at_no_more_until_most_of_it_has_gone(
    collector: Collector, clock: Clock
) -> None:
    gc.disable()  # else it collects again and again meanwhile, all that the tests before this one have left
    flood = [[number] for number in range(2_000_000)]
    gc.enable()
    clock.step = LONG_S * 2
    gc.collect()
    clock.step = 0.0
    assert gc.get_freeze_count() >= 2_000_000
    assert len(gc.get_objects()) < 2_000_000
    collector.look()
    assert gc.get_freeze_count() >= 2_000_000
    flood.clear()
    collector.look()
    assert gc.get_freeze_count() <= immortal()


def test_cycles_among_what_was_frozen_go_after_a_while(collector: Collector, clock: Clock) -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    clock.step = LONG_S * 2
    gc.collect()
    clock.step = 0.0
    del knot
    gc.collect()
    assert gone() is not None
    collector.look()
    assert gc.get_freeze_count()
    clock.now += THAW_S
    collector.look()
    gc.collect()
    assert gone() is None
