"""How a member gives its agents away: as slowly as it may, and all of them in time. Pure: the clock is passed in."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from typing import Any, cast

import pytest

from zmqagents.cluster.naming import AgentName
from zmqagents.members.peers.drain import AT_ONCE, IN_A_ROW, PER_S, Drain
from zmqagents.members.peers.quarters import Leaving
from zmqagents.scheduler.records import Alarm


class Lodging:
    def __init__(self, room: Room, number: int, *, is_idle: bool) -> None:
        self.agent = AgentName("Cell", str(number))
        self.is_leaving, self.is_idle, self.labels = False, is_idle, None
        self._room = room

    def leave(self, why: Leaving, following: str = "") -> None:
        assert (why, following) == (Leaving.RELEASED, "")
        self.is_leaving = True
        self._room.told_to_leave.append((self._room.now, self))


class Room:
    """As much of a host as a drain sees; an agent is gone ``takes_s`` after it was told to leave."""

    incarnation = ""

    def __init__(self, agents: int, *, takes_s: float = 0.01, busy: int = 0) -> None:
        self.now = 100.0
        self._here = dict.fromkeys(Lodging(self, number, is_idle=number >= busy) for number in range(agents))
        self.told_to_leave: list[tuple[float, Lodging]] = []
        self.member = self.placement = self
        self.ended_at: float | None = None
        self._takes_s = takes_s
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now

    def alarm(self, delay_s: float, alarm: Alarm) -> None:
        heapq.heappush(self._alarms, (self.now + delay_s, next(self._numbers), alarm))

    @property
    def lodgers(self) -> list[Lodging]:
        return list(self._here)

    def has(self, lodging: Lodging) -> bool:
        return lodging in self._here

    @property
    def leaving(self) -> int:
        return sum(lodging.is_leaving for lodging in self.lodgers)

    def state_version(self, cls: str) -> int:
        return 0

    def choose(self, *_: object, **__: object) -> None:
        """There is no other host that takes it."""

    def end(self) -> None:
        self.ended_at = self.now

    def drain(self, time_s: float) -> None:
        """Until the drain has ended."""
        drain = Drain(cast(Any, self), self.now + time_s, self.end)
        drain.step()
        on_the_way = 0
        while self.ended_at is None:
            told_at, lodging = next(iter(self.told_to_leave[on_the_way:]), (math.inf, None))
            if lodging is not None and told_at + self._takes_s <= self._alarms[0][0]:
                self.now = told_at + self._takes_s
                del self._here[lodging]
                on_the_way += 1
                drain.step()
            else:
                self.now, _, alarm = heapq.heappop(self._alarms)
                if not alarm.settled:
                    alarm.ring(self.now)

    @property
    def most_at_once(self) -> int:
        return max(Counter(at for at, _ in self.told_to_leave).values())


@pytest.mark.parametrize("agents", [0, 1, IN_A_ROW, 1000])
def test_with_time_enough_agents_go_slowly_and_few_in_a_row(agents: int) -> None:
    room = Room(agents)
    room.drain(30.0)
    assert room.ended_at is not None
    assert len(room.told_to_leave) == agents
    if agents:
        assert room.most_at_once <= IN_A_ROW
        lasted_s = room.told_to_leave[-1][0] - 100.0
        assert (agents - IN_A_ROW) / PER_S * 0.9 <= lasted_s <= agents / PER_S * 1.1 + 0.01


def test_with_little_time_all_are_gone_when_about_half_of_it_is_over() -> None:
    room = Room(3000, takes_s=0.001)
    room.drain(2.0)
    assert room.lodgers == []
    assert room.told_to_leave[-1][0] - 100.0 < 1.2


def test_the_busy_go_last() -> None:
    room = Room(100, busy=10)
    room.drain(30.0)
    assert [lodging.is_idle for _, lodging in room.told_to_leave] == [True] * 90 + [False] * 10


def test_where_redis_is_slow_only_so_many_are_on_their_way() -> None:
    room = Room(500, takes_s=1.0)
    room.drain(60.0)
    ups = [(at, 1) for at, _ in room.told_to_leave]
    downs = [(at + 1.0, -1) for at, _ in room.told_to_leave]
    assert max(itertools.accumulate(step for _, step in sorted(ups + downs))) <= AT_ONCE


def test_what_is_left_when_the_time_is_up_ends_with_the_host() -> None:
    room = Room(100, takes_s=1000.0)
    room.drain(5.0)
    assert room.ended_at == 105.0
    assert len(room.told_to_leave) == AT_ONCE
