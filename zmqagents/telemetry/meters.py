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

__all__ = ["ATTRIBUTE", "EDGES_S", "MAX_PAIRS", "OTHER", "SHORT_S", "ClassMeters", "Histogram", "Meter", "Meters",
           "Outcome"]  # fmt: skip

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


class Histogram:
    """How many durations lie between the edges, and their sum. ``counts`` has one number more than there are edges."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES_S) + 1)
        self.sum_s = 0.0

    def __repr__(self) -> str:
        return f"<Histogram [{self.count} durations, {self.sum_s:.3g} s]>"

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.counts)

    def add(self, seconds: float) -> None:
        """Count one duration. One that is an edge counts below it."""
        self.counts[bisect_left(EDGES_S, seconds)] += 1
        self.sum_s += seconds

    def told(self, more: int = 0, more_s: float = 0.0) -> dict[str, Any]:
        """As plain data, with ``more`` durations below the first edge that are ``more_s`` together."""
        counts = self.counts.copy()
        counts[0] += more
        return {"counts": counts, "sum_s": self.sum_s + more_s}


class Meter:
    """The counters of one method of one class."""

    __slots__ = ("class_name", "ends", "method", "queued", "ran", "short", "short_s", "took")

    def __init__(self, class_name: str, method: str) -> None:
        self.class_name = class_name
        self.method = method
        self.ends = [0] * len(Outcome)  # without those that are `short`
        self.queued = Histogram()  # from accepted to the first line of its code, or to its end without one
        self.ran = Histogram()  # from there to its answer
        self.took = Histogram()  # from accepted to its answer
        self.short = 0
        self.short_s = 0.0

    def __repr__(self) -> str:
        return f"<Meter {self.class_name} {self.method} [{self.short + sum(self.ends)} calls]>"

    def note_short(self, seconds: float) -> None:
        """Count a call that began when it came, and ended well in less than `SHORT_S`."""
        self.short += 1
        self.short_s += seconds

    def note(self, outcome: Outcome, queued_s: float, ran_s: float | None) -> None:
        """Count a call; ``ran_s`` is None if its code never began."""
        self.ends[outcome] += 1
        self.queued.add(queued_s)
        if ran_s is None:
            self.took.add(queued_s)
        else:
            self.ran.add(ran_s)
            self.took.add(queued_s + ran_s)

    def told(self) -> dict[str, Any]:
        """As plain data. Any thread."""
        short, short_s = self.short, self.short_s
        ends = self.ends.copy()
        ends[Outcome.OK] += short
        return {
            "class": self.class_name, "method": self.method,
            "ends": {outcome.name.lower(): ends[outcome] for outcome in Outcome},
            "queued": self.queued.told(short), "ran": self.ran.told(short, short_s),
            "took": self.took.told(short, short_s),
        }  # fmt: skip


class ClassMeters(dict[str, Meter]):
    """The meters of one class by the names of its methods, and how many agents of the class there are."""

    __slots__ = ("agents", "class_name")

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self.class_name = class_name
        self.agents = 0

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
            found = self._classes[class_name] = ClassMeters(class_name)
        return found

    def add(self, of_class: ClassMeters, method: str) -> Meter:
        """The meter of a method that is not in ``of_class`` yet; `OTHER` if there are too many."""
        if len(self._meters) < MAX_PAIRS:
            meter = Meter(of_class.class_name, method)
            self._meters.append(meter)
        else:
            meter = self._other
        of_class[method] = meter
        return meter

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
