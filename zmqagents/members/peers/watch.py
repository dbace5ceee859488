"""What a member looks at now and then: calls that are held, agents that are still being made, and those nobody calls.

Agents with something to look at are few of perhaps a hundred thousand, so they are noted one by one. All are looked at
only for how long nobody has called them, some hundred in a turn of the router thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ... import errors
from ...cluster.lease import PATIENCE_S
from ...scheduler.effects import Effect
from ...scheduler.records import Alarm, State
from .quarters import Leaving, Lodger, Quarters
from .way import WayState

if TYPE_CHECKING:
    from .way import Way

__all__ = ["Watch"]

EVERY_S = 0.1  # how often what is held is looked at
IDLE_S = 3600.0  # an agent that was not called for so long is saved and given back
IDLE_EVERY_S, IDLE_AT_ONCE = 30.0, 500  # how often they are looked at, and how many in one turn


class Watch:
    """See the module's docstring. For the router thread. ``ways`` gives those that there are."""

    def __init__(self, room: Quarters, ways: Callable[[], list[Way]]) -> None:
        self._room = room
        self._ways = ways
        self._watched: dict[Lodger, None] = {}
        self._alarm: Alarm | None = None

    def __repr__(self) -> str:
        return f"<Watch [{len(self._watched)} agents]>"

    def begin(self, lodger: Lodger | None = None) -> None:
        """There is something to look at: ``lodger``, or calls on their way."""
        if lodger is not None:
            self._watched[lodger] = None
        if self._alarm is None:
            self._alarm = Alarm(self._look)
            self._room.alarm(EVERY_S, self._alarm)

    @property
    def held(self) -> list[Lodger]:
        """Agents that live here and have calls that wait."""
        return [lodger for lodger in self._watched if lodger.is_held and self._room.resident(lodger.agent) is lodger]

    def _look(self, now: float) -> list[Effect]:
        """End what has waited for Redis long enough; give places of activations that wait to others."""
        room, self._alarm = self._room, None
        before, is_stuck = now - PATIENCE_S, room.member.is_stuck
        what = "Redis does not answer" if room.member.lease.is_away else "Redis is full, and has taken nothing"
        gone = errors.StoreUnavailable(f"{what} for {PATIENCE_S:g} s: nothing was executed")
        room.do(room.member.give_up())
        for lodger in self.held:
            if is_stuck:
                lodger.refuse_held(gone, before)
            lodger.go_on()
        for way in self._ways():
            if is_stuck and way.state in (WayState.LOOKING, WayState.CLAIMING):
                way.refuse(gone, only=[passage for passage in way.held if passage.came <= before])
                room.forget(way)
        held, making = set(self.held), [lodger for lodger in self._watched if not lodger.record.made]
        for lodger in making:
            if any(each.state is State.WAITING for each in lodger.record.holders):
                room.do(room.member.carry(room.member.activations.waits(lodger.name)))
        self._watched = {
            lodger: None
            for lodger in self._watched
            if room.resident(lodger.agent) is lodger and (lodger in held or not lodger.record.made)
        }
        if is_stuck or self._watched or any(way.held for way in self._ways()):
            self.begin()
        return []

    # ------------------------------------------------------------ agents that nobody calls

    def begin_idle(self, start_file: Path | None) -> None:
        """From now on, give agents back that nobody has called for long; for those with a time of their own see `Idle`.

        ``start_file`` tells when this host was seen last: see `discovery.sweep`.
        """

        def look(now: float) -> list[Effect]:
            if start_file is not None:
                with contextlib.suppress(OSError):
                    os.utime(start_file)
            self._look_at_used(self._room.lodgers, now, look)
            return []

        self._room.alarm(IDLE_EVERY_S, Alarm(look))

    def _look_at_used(self, left: list[Lodger], now: float, again: Callable[[float], list[Effect]]) -> None:
        room = self._room
        if room.is_closed:
            return
        for lodger in left[-IDLE_AT_ONCE:]:
            has_own = lodger.record.options.idle_s is not None
            if not has_own and lodger.is_idle and now - lodger.used >= IDLE_S and room.resident(lodger.agent) is lodger:
                lodger.leave(Leaving.RELEASED)
        del left[-IDLE_AT_ONCE:]
        if left:
            room.later(lambda: self._look_at_used(left, now, again))
        else:
            room.alarm(IDLE_EVERY_S, Alarm(again))
