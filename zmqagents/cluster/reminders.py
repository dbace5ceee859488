"""Reminders: those of one activation, and which member looks after which bucket. Pure: no clock, no socket.

*Of an activation.* `Reminders` has them as Redis does once all saves that were taken are; what is in saves under way
lies on top (`Reminders.find`). So the owner knows whether a tick that comes is the present one, or was done before, or
of a reminder that is set anew or gone. And if Redis has lost its last writes, all of them are written again, with the
state that they belong to (`Reminders.again`).

*Of buckets.* Each bucket of agents is looked after by the living member, one that does not drain, whose number for the
bucket is the highest, and by the second one `BACKUP_S` later: it finds something only where the first has just died.
All members that know of the same members come to the same answer; where they do not, Redis hands each tick out once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..store.cluster import BUCKETS
from ..store.reminders import Change, Clear, Done, Drop, Row, Set

__all__ = ["BACKUP_S", "MAX_REMINDERS", "Reminders", "Shares", "Standing"]

BACKUP_S = 0.5
MAX_REMINDERS = 64  # of an agent
_SCORE_BYTES = 8


class Standing(NamedTuple):
    """A reminder as it is now: ``due`` on the owner's clock."""

    stamp: str
    due: float
    every_s: float
    what: bytes


class Reminders:
    """Those of the activation ``epoch``; see the module's docstring. ``rows``: as the claim gave them."""

    def __init__(self, epoch: int, rows: Iterable[Row], now: float) -> None:
        self._epoch = epoch
        self._numbers = itertools.count(1)
        self._all = {row.name: Standing(row.stamp, now + row.left_s, row.every_s, row.what) for row in rows}

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"<Reminders {', '.join(self._all)}>"

    def stamp(self) -> str:
        """A stamp that no other tick of the agent has or had."""
        return f"{self._epoch}.{next(self._numbers)}"

    def find(self, name: str, under_way: Iterable[Sequence[Change]], now: float) -> Standing | None:
        """The reminder as it will be when the saves ``under_way`` are taken; None: there is none."""
        found = {name: self._all[name]} if name in self._all else {}
        for changes in under_way:
            _apply(found, [change for change in changes if isinstance(change, Clear) or change.name == name], now)
        return found.get(name)

    def take(self, changes: Sequence[Change], now: float) -> None:
        """Redis has taken these."""
        _apply(self._all, changes, now)

    def again(self, now: float) -> tuple[Change, ...]:
        """What makes Redis have them, whatever it has."""
        sets = (Set(name, it.stamp, it.due - now, it.every_s, it.what) for name, it in self._all.items())
        return (Clear(), *sets)


def _apply(to: dict[str, Standing], changes: Sequence[Change], now: float) -> None:
    """What the scripts' ``remind`` does, on the owner's clock."""
    for change in changes:
        if isinstance(change, Set):
            to[change.name] = Standing(change.stamp, now + change.after_s, change.every_s, change.what)
        elif isinstance(change, Clear):
            to.clear()
        elif isinstance(change, Drop):
            to.pop(change.name, None)
        else:
            _end_tick(to, change, now)


def _end_tick(to: dict[str, Standing], done: Done, now: float) -> None:
    kept = to.get(done.name)
    if kept is None or kept.stamp != done.stamp:
        return
    if not kept.every_s:
        del to[done.name]
        return
    missed = max(1, int((now - kept.due) // kept.every_s) + 1)
    to[done.name] = kept._replace(stamp=done.following, due=kept.due + missed * kept.every_s)


class Shares:
    """Which buckets one member looks after, and how long after the time that a thing is due.

    ``late_s`` has 0.0 for a bucket of its own, `BACKUP_S` for one that it is the second for, None for all others.
    """

    def __init__(self) -> None:
        self.late_s: list[float | None] = [None] * BUCKETS
        self._scores: dict[str, bytes] = {}
        self._seen: tuple[str, frozenset[str]] = ("", frozenset())

    def settle(self, me: str, members: Iterable[str]) -> bool:
        """These members live and do not drain. True if something is different now."""
        there = frozenset(members)
        if (me, there) == self._seen:
            return False
        self._seen = me, there
        self._scores = {who: self._scores.get(who) or _scores(who) for who in there}
        self.late_s = [self._late(bucket, me) for bucket in range(BUCKETS)]
        return True

    def _late(self, bucket: int, me: str) -> float | None:
        if me not in self._scores:
            return None
        place = slice(bucket * _SCORE_BYTES, (bucket + 1) * _SCORE_BYTES)
        mine = self._scores[me][place], me
        above = sum((scores[place], who) > mine for who, scores in self._scores.items())
        return (0.0, BACKUP_S)[above] if above < 2 else None


def _scores(who: str) -> bytes:
    """The numbers of a member, one for each bucket."""
    return hashlib.shake_128(who.encode()).digest(BUCKETS * _SCORE_BYTES)
