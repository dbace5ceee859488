"""Counters of calls: by class and method how they ended, and how long they waited and ran.

One thread (the router's) counts; any thread may read the numbers meanwhile, and then finds some of them a call ahead
of others. Of a call that ends well no more is done there than to append its times to an array, which is a function in C
that has no frame. `Meters.settle` puts these into the histograms, in whatever thread calls it a few times a second.

Names are bounded: `MAX_PAIRS` pairs of a class and a method are counted apart, all others together as `OTHER`.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any

__all__ = [
    "ATTRIBUTE", "EDGES_S", "MAX_PAIRS", "OTHER", "ClassMeters", "Histogram", "Meter", "Meters", "Outcome", "Uncounted",
]  # fmt: skip

EDGES_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
MAX_PAIRS = 200
OTHER = "_other"
ATTRIBUTE = "_attribute"  # the method's name for all reads of attributes: their names are chosen by callers
AT_ONCE = 1000  # calls that are put into the histograms before another thread may go on


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
    """How many durations lie between the edges, and their sum. A duration that is an edge counts below it."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(EDGES_S) + 1)
        self.sum_s = 0.0

    def __repr__(self) -> str:
        return f"<Histogram [{sum(self.counts)} durations]>"

    def add(self, seconds: float) -> None:
        """One duration."""
        self.counts[bisect_left(EDGES_S, seconds)] += 1
        self.sum_s += seconds

    def add_many(self, durations: Iterable[float]) -> None:
        """Many of them: sorting them costs less than to look for the place of each."""
        row = sorted(durations)
        self.sum_s += sum(row)
        below = 0
        for place, edge in enumerate(EDGES_S):
            if below == len(row):
                return
            up_to = bisect_right(row, edge, below)
            self.counts[place] += up_to - below
            below = up_to
        self.counts[-1] += len(row) - below

    def add_short(self, other: Histogram) -> dict[str, Any]:
        """This one and the other as one, as plain data."""
        counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        return {"counts": counts, "sum_s": self.sum_s + other.sum_s}


class Times:
    """Of calls: queued, from accepted to the first line of the code, or to the end without one; ran, from there to the
    answer; took, from accepted to the answer.
    """

    __slots__ = ("queued", "ran", "took")

    def __init__(self) -> None:
        self.queued, self.ran, self.took = Histogram(), Histogram(), Histogram()


class Meter:
    """The counters of one method of one class.

    ``ended`` takes the times of calls that have ended well, one after the other: queued, ran. ``at_once`` takes how
    long those ran that began when they came.
    """

    __slots__ = ("_apart", "_settled", "_settled_calls", "at_once", "class_name", "ended", "ends", "method", "short")

    def __init__(self, class_name: str, method: str) -> None:
        self.class_name = class_name
        self.method = method
        self.ends = [0] * len(Outcome)  # of the calls that are counted by `note`
        self.ended, self.at_once = array("d"), array("d")
        self.short = 0  # calls that were in `at_once`
        self._settled_calls = 0  # that were in `ended`
        self._apart = Times()  # of `note`, which another thread calls
        self._settled = Times()

    def __repr__(self) -> str:
        return f"<Meter {self.class_name} {self.method} [{self.calls} calls]>"

    @property
    def calls(self) -> int:
        """How many calls have ended."""
        return sum(self.ends) + self.short + self._settled_calls + len(self.at_once) + len(self.ended) // 2

    def note(self, outcome: Outcome, queued_s: float, ran_s: float | None) -> None:
        """Count a call; ``ran_s`` is None if its code never began."""
        self.ends[outcome] += 1
        times = self._apart
        times.queued.add(queued_s)
        if ran_s is None:
            times.took.add(queued_s)
        else:
            times.ran.add(ran_s)
            times.took.add(queued_s + ran_s)

    def settle(self) -> None:
        """Put what lies in the arrays into the histograms. One thread at a time; another may append meanwhile."""
        times = self._settled
        while self.ended:
            pairs = self.ended[: 2 * AT_ONCE]
            queued, ran = pairs[::2], pairs[1::2]
            times.queued.add_many(queued)
            times.ran.add_many(ran)
            times.took.add_many(map(float.__add__, queued, ran))
            self._settled_calls += len(queued)
            del self.ended[: len(pairs)]
        while self.at_once:
            row = self.at_once[:AT_ONCE]
            times.queued.counts[0] += len(row)
            times.ran.add_many(row)
            times.took.add_many(row)
            self.short += len(row)
            del self.at_once[: len(row)]

    def told(self) -> dict[str, Any]:
        """As plain data, once it is settled."""
        ends, apart, settled = self.ends.copy(), self._apart, self._settled
        ends[Outcome.OK] += self.short + self._settled_calls
        return {
            "class": self.class_name, "method": self.method,
            "ends": {outcome.name.lower(): ends[outcome] for outcome in Outcome},
            "queued": apart.queued.add_short(settled.queued), "ran": apart.ran.add_short(settled.ran),
            "took": apart.took.add_short(settled.took),
        }  # fmt: skip


class _Appenders(dict[str, Callable[[Any], None]]):
    """A function for each method, made when it is first asked for."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[str], Callable[[Any], None]]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, method: str) -> Callable[[Any], None]:
        appender = self[method] = self._make(method)
        return appender


class ClassMeters:
    """The meters of one class, and how many agents of it there are.

    By the name of a method, ``ended`` has the function that takes the two times of a call that has ended well, and
    ``at_once`` the one that takes how long such a call ran that began when it came.
    """

    __slots__ = ("_by_name", "_meters", "agents", "at_once", "class_name", "ended")

    ended: dict[str, Callable[[Any], None]]
    at_once: dict[str, Callable[[Any], None]]

    def __init__(self, class_name: str, meters: Meters) -> None:
        self.class_name = class_name
        self.agents = 0
        self._meters = meters
        self._by_name: dict[str, Meter] = {}
        self.ended = _Appenders(lambda method: self[method].ended.extend)
        self.at_once = _Appenders(lambda method: self[method].at_once.append)

    def __repr__(self) -> str:
        return f"<ClassMeters of {self.class_name} [{len(self._by_name)} methods]>"

    def __getitem__(self, method: str) -> Meter:
        """The meter of a method, made when it is first asked for."""
        meter = self._by_name.get(method)
        if meter is None:
            meter = self._by_name[method] = self._meters.add(self.class_name, method)
        return meter

    def count_agents(self, more: int) -> None:
        """There are ``more`` agents of the class; fewer if it is negative."""
        self.agents += more


class _Nowhere(dict[str, Callable[[Any], None]]):
    """A function for each method that keeps nothing."""

    __slots__ = ()

    def __missing__(self, method: str) -> Callable[[Any], None]:
        return _forget


def _forget(times: object) -> None:
    """See `_Nowhere`."""


class Uncounted(ClassMeters):
    """For calls that another host counts, whatever the names of their methods."""

    __slots__ = ("_meter",)

    def __init__(self) -> None:
        super().__init__("", Meters())
        self._meter = Meter("", "")
        self.ended = self.at_once = _Nowhere()

    def __getitem__(self, method: str) -> Meter:
        return self._meter


class Meters:
    """All meters of one host; see the module's docstring."""

    def __init__(self) -> None:
        self._classes: dict[str, ClassMeters] = {}
        self._meters: list[Meter] = []
        self._other = Meter(OTHER, OTHER)
        self._settling = threading.Lock()
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

    def settle(self) -> None:
        """Put the times of calls that have ended into the histograms. Any thread."""
        with self._settling:
            for meter in (*self._meters, self._other):
                meter.settle()

    def told(self) -> list[dict[str, Any]]:
        """All that has been counted, a map for each method. Any thread."""
        self.settle()
        with self._settling:
            return [meter.told() for meter in self]

    @property
    def short(self) -> int:
        """How many calls began when they came, and ended well."""
        return sum(meter.short + len(meter.at_once) for meter in (*self._meters, self._other))

    def refuse(self, error: str) -> None:
        """Count a call that is not accepted."""
        self.refused[error] = self.refused.get(error, 0) + 1

    def __iter__(self) -> Iterator[Meter]:
        yield from self._meters.copy()
        if self._other.calls:
            yield self._other

    def agents(self) -> dict[str, int]:
        """How many agents there are of each class that has some, `MAX_PAIRS` classes at most. Any thread."""
        counts: dict[str, int] = {}
        for each in list(self._classes.values()):
            if each.agents:
                name = each.class_name if len(counts) < MAX_PAIRS else OTHER
                counts[name] = counts.get(name, 0) + each.agents
        return counts
