"""A member gives its agents to others before it ends, so that their callers notice a moment's pause at most.

No agent is placed here any more. Idle agents go first, `AT_ONCE` of them at a time: the last save, and the record that
names the next home, in one step; calls that come meanwhile are passed on there. Agents with a call that runs follow,
each when that has ended. What is left when the time is up ends with the host.

They go no faster than they have to, for each costs the router thread time that calls wait for: `PER_S` a second, or so
many that all are gone when half of the time is over; and `IN_A_ROW` of them before the router looks at anything else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ...scheduler.effects import Effect
from ...scheduler.records import Alarm
from .quarters import Leaving, Lodger, Quarters

__all__ = ["Drain"]

log = logging.getLogger(__name__)

AT_ONCE = 64
PER_S = 600.0  # with 1,900 a second calls to a host on half a core took 129 ms at p99
IN_A_ROW = 16


class Drain:
    """See the module's docstring. ``then`` is called once, when all agents are gone or the time ``end`` has come."""

    def __init__(self, room: Quarters, end: float, then: Callable[[], None]) -> None:
        self._room = room
        self._then: Callable[[], None] | None = then
        self._left: list[Lodger] = []  # as they were when the list was empty, those to go next at its end
        self._going: list[Lodger] = []
        self._half = (room.clock() + end) / 2
        self._due = 0.0  # when the next agent may go
        self._pause: Alarm | None = None
        self._alarm = Alarm(self._at_end)
        room.alarm(max(0.0, end - room.clock()), self._alarm)

    def step(self) -> None:
        """Let some more go; end when all are gone."""
        room = self._room
        if self._then is None:
            return
        self._going = [resident for resident in self._going if room.has(resident)]
        if not self._left:
            self._left = [resident for resident in room.lodgers if not resident.is_leaving]
            self._left.sort(key=lambda resident: resident.is_idle)
        now = room.clock()
        every_s = 1 / max(PER_S, len(self._left) / max(self._half - now, 0.001))
        self._due = max(self._due, now - (IN_A_ROW - 1) * every_s)
        while self._left and len(self._going) < AT_ONCE and self._due <= now:
            resident = self._left.pop()
            if room.has(resident) and not resident.is_leaving:
                self._due += every_s
                self._going.append(resident)
                self._let_go(resident)
        if self._left and self._due > now and self._pause is None:
            self._pause = Alarm(self._go_on)
            room.alarm(self._due - now, self._pause)
        if not self._left and not room.lodgers and not room.leaving:
            self._end()

    def _go_on(self, now: float) -> list[Effect]:
        self._pause = None
        self.step()
        return []

    def _let_go(self, resident: Lodger) -> None:
        room = self._room
        cls, placement, mine = resident.agent.cls, room.member.placement, room.member.incarnation
        chosen = placement.choose(cls, room.state_version(cls), resident.labels, but=[mine])
        resident.leave(Leaving.RELEASED, chosen.incarnation if chosen is not None else "")

    def _at_end(self, now: float) -> list[Effect]:
        if self._room.lodgers:
            log.warning("%d agents of the cluster end with this host: the time is up", len(self._room.lodgers))
        self._end()
        return []

    def _end(self) -> None:
        then, self._then = self._then, None
        self._alarm.stop()
        if self._pause is not None:
            self._pause.stop()
        if then is not None:
            then()
