"""Which other members this host may declare dead.

Redis's clock alone does not do: it may be stepped, and then all leases are over at once. So whoever declares a member
dead must have seen for itself that the other has stopped, by its own clock: in answers of Redis no further apart than
half a lease, the other's beat number has not changed for a whole one. (If Redis had not answered in between, the other
could not have beaten either.) DECLARE names that number and is refused if it has moved.

The time is counted as the doubtful way round: from when the first answer with the number had *come*, to when the
request for the latest one was *sent*.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Observers", "Sight"]

MAX_STRANGERS = 1024  # owners that Redis has no record of
MAX_DEAD = 1024  # the latest that are remembered; of others Redis is asked again


class Sight(NamedTuple):
    """The beat number of another member, None for none; and whether it has been watched for a whole lease."""

    number: int | None
    watched: bool


class Observers:
    """Watches the beats of the others. Times are seconds of a clock of this host's. For one thread."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._since: dict[str, tuple[int | None, float]] = {}  # its number, and when an answer first had it
        self._strangers: dict[str, None] = {}  # that are watched although no record names them
        self._dead: dict[str, int | None] = {}  # with the number that it had
        self._sent_at = float("-inf")  # of the latest answer

    def __repr__(self) -> str:
        return f"<Observers [{len(self._since)} watched]>"

    def saw(self, numbers: Iterable[tuple[str, int | None]], sent_at: float, came_at: float) -> None:
        """An answer of Redis: the beat number of each member."""
        gap = came_at - self._sent_at > self._lease_s / 2
        before = {} if gap else self._since
        now = dict(numbers)
        for stranger in self._strangers:
            now.setdefault(stranger, None)
        self._since = {}
        for who, number in now.items():
            known = before.get(who)
            self._since[who] = known if known is not None and known[0] == number else (number, came_at)
        self._sent_at = sent_at

    def judge(self, who: str, now: float) -> Sight:
        """What is known of ``who``. One that is not known is watched from now on."""
        known = self._since.get(who)
        if known is None:
            if len(self._strangers) >= MAX_STRANGERS:
                del self._strangers[next(iter(self._strangers))]
            self._strangers[who] = None
            return Sight(None, False)
        number, since = known
        fresh = now - self._sent_at <= self._lease_s / 2
        return Sight(number, fresh and self._sent_at - since >= self._lease_s)

    def bury(self, who: str, number: int | None) -> None:
        """Redis has ``who`` among the dead, for ever; its last beat had this number, as far as is known."""
        self._since.pop(who, None)
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
        return [who for who in self._since if self.judge(who, now).watched]
