"""How long this host may start calls of the cluster's agents.

A host says four times a lease that it lives. While the others believe that, none of them takes an agent from it. It
counts its own lease more strictly than Redis does: from *before* it sent the beat, on a clock that goes on while the
machine sleeps, and less a fifth, which is more than clocks of one machine and another drift apart.

::

    JOINING ──beat taken──► HELD ──time──► LAPSED ──beat taken──► HELD
                             │               │
                             └──── told dead ┴──► DEAD, for ever: a new incarnation joins

=========  ===================================================================================================
HELD       calls start
LAPSED     no call starts; running ones go on. A new one is sent ELSEWHERE while Redis answers: somebody else may
           have the agent. While Redis is away nobody can take it, so it waits here, `PATIENCE_S` at most
DEAD       nothing of this incarnation starts ever again
=========  ===================================================================================================
"""

from __future__ import annotations

import enum
import time

from ..config import LEASE_S
from ..errors import ConfigError

__all__ = ["BEATS", "MARGIN", "PATIENCE_S", "Admission", "Lease", "LeaseState", "boot_time"]

BEATS = 4  # in a lease
MARGIN = 0.2
PATIENCE_S = 2.0


def boot_time() -> float:
    """Seconds on a clock that goes on while the machine sleeps. Linux only."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseState(enum.Enum):
    """See the module's drawing."""

    JOINING = "joining"
    HELD = "held"
    LAPSED = "lapsed"
    DEAD = "dead"


class Admission(enum.Enum):
    """What becomes of a new call of a cluster's agent."""

    START = "start"
    WAIT = "wait"
    ELSEWHERE = "elsewhere"
    UNAVAILABLE = "unavailable"  # it has waited for Redis long enough: nothing ran


class Lease:
    """The lease of one incarnation. Times are seconds of `boot_time`, given by the caller. For one thread.

    Raises `ConfigError` for a length that is not 1 to 300 seconds.
    """

    def __init__(self, length_s: float) -> None:
        if not LEASE_S[0] <= length_s <= LEASE_S[1]:
            raise ConfigError(f"lease must be {LEASE_S[0]:g} to {LEASE_S[1]:g} seconds, not {length_s!r}")
        self.length_s = length_s
        self.until = float("-inf")
        self._joined = self._dead = False
        self._away_since: float | None = None

    def __repr__(self) -> str:
        return f"<Lease of {self.length_s:g} s, until {self.until:.3f}>"

    def state(self, now: float) -> LeaseState:
        """Where this incarnation stands."""
        if self._dead:
            return LeaseState.DEAD
        if not self._joined:
            return LeaseState.JOINING
        return LeaseState.HELD if now < self.until else LeaseState.LAPSED

    @property
    def is_away(self) -> bool:
        """Whether Redis does not answer."""
        return self._away_since is not None

    def left(self, now: float) -> float:
        """The part of the lease that is left, 0 to 0.8."""
        return 0.0 if self._dead else max(0.0, (self.until - now) / self.length_s)

    def taken(self, sent_at: float) -> None:
        """Redis has taken the beat that was sent at ``sent_at``."""
        self._joined, self._away_since = True, None
        self.until = max(self.until, sent_at + self.length_s * (1 - MARGIN))

    def unanswered(self, since: float) -> None:
        """Redis has not answered since ``since``."""
        if self._away_since is None:
            self._away_since = since

    def answered(self) -> None:
        """Redis answers."""
        self._away_since = None

    def told_dead(self) -> None:
        """Redis has this incarnation among the dead."""
        self._dead = True

    def admits(self, now: float, waiting_s: float = 0.0) -> Admission:
        """What becomes of a call that has waited here for ``waiting_s``. Looked at again before its answer leaves."""
        if now < self.until and not self._dead:
            return Admission.START
        if self._dead or self._away_since is None:
            return Admission.ELSEWHERE
        return Admission.WAIT if waiting_s < PATIENCE_S else Admission.UNAVAILABLE
