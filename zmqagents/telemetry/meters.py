"""Counters of calls: by class and method how they ended, and how long they waited and ran.

One thread (the router's) counts; any thread may read the numbers meanwhile, and then finds some of them a call ahead
of others. A call that began and ended in one go, in less than the first edge, is the common one on a busy host: two
numbers are all that is counted of it, and it is put into the histograms when they are read.

Names are bounded: `MAX_PAIRS` pairs of a class and a method are counted apart, all others together as `OTHER`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

__all__ = ["ATTRIBUTE", "EDGES_S", "MAX_PAIRS", "OTHER", "SHORT_S", "ClassMeters", "Meter", "Meters", "Outcome"]

EDGES_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
SHORT_S = EDGES_S[0]
MAX_PAIRS = 200
OTHER = "_other"
ATTRIBUTE = "_attribute"  # the method's name for all reads of attributes: their names are chosen by callers


class Outcome(IntEnum):
    """How a call ended."""

    OK = 0
    ERROR = 1  # its code raised, or its value could not be sent
    TIMEOUT = 2
    CANCELLED = 3
    DEADLOCK = 4
    REFUSED = 5  # at a limit of the host's
    LOST = 6  # with its agent, its process or the host


class Meter:
    """The counters of one method of one class."""

    __slots__ = ("_queued", "_queued_s", "_ran", "_ran_s", "_took", "class_name", "ends", "method", "short", "short_s")

    def __init__(self, class_name: str, method: str) -> None:
        self.class_name = class_name
        self.method = method
        self.ends = [0] * len(Outcome)  # without those that are `short`
        # How many durations lie between the edges. Queued: from accepted to the first line of its code, or to its end
        # without one; ran: from there to its answer; took: from accepted to its answer.
        self._queued, self._ran, self._took = ([0] * (len(EDGES_S) + 1) for _ in range(3))
        self._queued_s = self._ran_s = 0.0
        self.short = 0
        self.short_s = 0.0

    def __repr__(self) -> str:
        return f"<Meter {self.class_name} {self.method} [{self.short + sum(self.ends)} calls]>"

    def note_short(self, seconds: float) -> None:
        """Count a call that began when it came, and ended well in less than `SHORT_S`."""
        self.short += 1
        self.short_s += seconds

    def note(self, outcome: Outcome, queued_s: float, ran_s: float | None) -> None:
        """Count a call; ``ran_s`` is None if its code never began. A duration that is an edge counts below it."""
        self.ends[outcome] += 1
        self._queued[bisect_left(EDGES_S, queued_s)] += 1
        self._queued_s += queued_s
        if ran_s is None:
            self._took[bisect_left(EDGES_S, queued_s)] += 1
        else:
            self._ran[bisect_left(EDGES_S, ran_s)] += 1
            self._took[bisect_left(EDGES_S, queued_s + ran_s)] += 1
            self._ran_s += ran_s

    def told(self) -> dict[str, Any]:
        """As plain data. Any thread."""
        short, short_s, queued_s, ran_s = self.short, self.short_s, self._queued_s, self._ran_s
        ends = self.ends.copy()
        ends[Outcome.OK] += short
        return {
            "class": self.class_name, "method": self.method,
            "ends": {outcome.name.lower(): ends[outcome] for outcome in Outcome},
            "queued": _told(self._queued, short, queued_s), "ran": _told(self._ran, short, ran_s + short_s),
            "took": _told(self._took, short, queued_s + ran_s + short_s),
        }  # fmt: skip


def _told(row: list[int], short: int, sum_s: float) -> dict[str, Any]:
    counts = row.copy()
    counts[0] += short
    return {"counts": counts, "sum_s": sum_s}


class ClassMeters(dict[str, Meter]):
    """The meters of one class by the names of its methods, each made when it is first asked for, and how many agents of
    the class there are.
    """

    __slots__ = ("_meters", "agents", "class_name")

    def __init__(self, class_name: str, meters: Meters) -> None:
        super().__init__()
        self.class_name = class_name
        self.agents = 0
        self._meters = meters

    def __missing__(self, method: str) -> Meter:
        meter = self[method] = self._meters.add(self.class_name, method)
        return meter

    def count_agents(self, more: int) -> None:
        """There are ``more`` agents of the class; fewer if it is negative."""
        self.agents += more


class Meters:
    """All meters of one host; see the module's docstring."""

    def __init__(self) -> None:
        self._classes: dict[str, ClassMeters] = {}
        self._meters: list[Meter] = []
        self._other = Meter(OTHER, OTHER)
        self.refused: dict[str, int] = {}  # calls that were not accepted, by the class of the error

    def __repr__(self) -> str:
        return f"<Meters [{len(self._meters)} methods of {len(self._classes)} classes]>"

    def of_class(self, class_name: str) -> ClassMeters:
        """The meters of a class of this host, the same for each of its agents."""
        found = self._classes.get(class_name)
        if found is None:
            found = self._classes[class_name] = ClassMeters(class_name, self)
        return found

    def add(self, class_name: str, method: str) -> Meter:
        """A meter for a method that has none; that of `OTHER` if there are too many."""
        if len(self._meters) >= MAX_PAIRS:
            return self._other
        meter = Meter(class_name, method)
        self._meters.append(meter)
        return meter

    @property
    def short(self) -> int:
        """How many calls were short, of all methods."""
        return sum(meter.short for meter in (*self._meters, self._other))

    def refuse(self, error: str) -> None:
        """Count a call that is not accepted."""
        self.refused[error] = self.refused.get(error, 0) + 1

    def __iter__(self) -> Iterator[Meter]:
        yield from self._meters.copy()
        if self._other.ends != [0] * len(Outcome) or self._other.short:
            yield self._other

    def agents(self) -> dict[str, int]:
        """How many agents there are of each class that has some, `MAX_PAIRS` classes at most. Any thread."""
        counts: dict[str, int] = {}
        for each in list(self._classes.values()):
            if each.agents:
                name = each.class_name if len(counts) < MAX_PAIRS else OTHER
                counts[name] = counts.get(name, 0) + each.agents
        return counts
