"""Which other members this host may declare dead.

Redis's clock alone does not do: it may be stepped, and then all leases are over at once. So whoever declares a member
dead must have seen for itself that the other has stopped, by its own clock: in answers of Redis no further apart than
half a lease, the other's beat number has not changed for a whole one. (If Redis had not answered in between, the other
could not have beaten either.) DECLARE names that number and is refused if it has moved, so it is the last look.

*Since when?* At the latest since the first answer that had the number came. That may be a quarter of a lease after the
beat, and the other's agents would be missing for so much longer. So Redis is believed where it can be checked: if from
one answer to the next its clock has gone as far as this host's, then it was not stepped in between, and what is left of
the other's lease tells when the beat was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..store.cluster import MemberRow

__all__ = ["Observers", "Sight"]

MAX_STRANGERS = 1024  # owners that Redis has no record of
MAX_DEAD = 1024  # the latest that are remembered; of others Redis is asked again
TOLERANCE = 0.01  # of a lease: what the clocks of Redis and this host may differ by from one answer to the next


class Sight(NamedTuple):
    """The beat number of another member, None for none; and whether it has been watched for a whole lease."""

    number: int | None
    watched: bool


class _Watch(NamedTuple):
    number: int | None
    since: float
    lease_s: float


class _Answer(NamedTuple):
    now_s: float  # by Redis's clock
    sent_at: float
    came_at: float


class Observers:
    """Watches the beats of the others. Times are seconds of a clock of this host's. For one thread.

    ``lease_s``: this host's own, which also stands for that of a member that Redis has no record of.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._watched: dict[str, _Watch] = {}
        self._strangers: dict[str, None] = {}  # that are watched although no record names them
        self._dead: dict[str, int | None] = {}  # with the number that it had
        self._latest: _Answer | None = None

    def __repr__(self) -> str:
        return f"<Observers [{len(self._watched)} watched]>"

    def saw(self, rows: Iterable[MemberRow], now_us: int, sent_at: float, came_at: float) -> None:
        """An answer of Redis: the other members, and its time."""
        answer, latest = _Answer(now_us / 1e6, sent_at, came_at), self._latest
        if latest is None or came_at - latest.sent_at > self._lease_s / 2:
            self._watched, latest = {}, None
        steady = latest is not None and self._is_steady(latest, answer)
        watched: dict[str, _Watch] = {}
        for row in rows:
            known = self._watched.get(row.incarnation)
            if known is None or known.number != row.number:
                since = came_at
                if steady and latest is not None and row.number is not None:
                    since = min(came_at, max(latest.sent_at, came_at - (row.lease_us - row.lease_left_us) / 1e6))
                known = _Watch(row.number, since, row.lease_us / 1e6 if row.number is not None else self._lease_s)
            watched[row.incarnation] = known
        for stranger in self._strangers:
            if stranger not in watched:
                known = self._watched.get(stranger)
                is_same = known is not None and known.number is None
                watched[stranger] = known if known and is_same else _Watch(None, came_at, self._lease_s)
        self._watched, self._latest = watched, answer

    def _is_steady(self, earlier: _Answer, later: _Answer) -> bool:
        """Whether Redis's clock has gone on between two answers as this host's has."""
        passed, tolerance = later.now_s - earlier.now_s, TOLERANCE * self._lease_s
        least, most = later.sent_at - earlier.came_at, later.came_at - earlier.sent_at
        return least - tolerance <= passed <= most + tolerance

    def judge(self, who: str, now: float) -> Sight:
        """What is known of ``who``, if DECLARE is sent now. One that is not known is watched from now on."""
        known = self._watched.get(who)
        if known is None:
            if len(self._strangers) >= MAX_STRANGERS:
                del self._strangers[next(iter(self._strangers))]
            self._strangers[who] = None
            return Sight(None, False)
        fresh = self._latest is not None and now - self._latest.sent_at <= self._lease_s / 2
        return Sight(known.number, fresh and now - known.since >= known.lease_s)

    def bury(self, who: str, number: int | None) -> None:
        """Redis has ``who`` among the dead, for ever; its last beat had this number, as far as is known."""
        self._watched.pop(who, None)
        self._strangers.pop(who, None)
        if who not in self._dead and len(self._dead) >= MAX_DEAD:
            del self._dead[next(iter(self._dead))]
        self._dead[who] = number

    def is_dead(self, who: str) -> bool:
        """Whether ``who`` is known to be dead."""
        return who in self._dead

    def doubt(self) -> list[tuple[str, int | None]]:
        """Redis may have lost its last writes: those that were dead are to be declared again, by these numbers.

        Until then they are not known to be dead: one whose death was lost may have beaten again, and run agents.
        """
        dead, self._dead = list(self._dead.items()), {}
        return dead

    def stopped(self, now: float) -> list[str]:
        """All that may be declared dead."""
        return [who for who in self._watched if self.judge(who, now).watched]
