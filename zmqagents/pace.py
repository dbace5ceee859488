"""How long the runs of one method take: whether the router thread may run it itself.

A hand-off to a worker thread and back costs several times what a short method does. So a method whose last runs
were all short is *quick* and takes the fast lane (`helm`), until a run is long. One that was long after all has to
prove itself for twice as many runs as before: each surprise holds up all callers for a millisecond or two.
"""

from __future__ import annotations

__all__ = ["LONG_S", "Pace"]

SHORT_S = 0.0002  # decoding, code and encoding: about what the hand-off costs
LONG_S = 0.001  # more than SHORT_S, so that a neighbour who takes the processor for a moment changes nothing
LEAST_RUNS = 32
MOST_RUNS = 1024


class Pace:
    """The record of one method of one class, for all its agents. Told of each run by the thread that ran it.

    Threads may tell at the same time; what gets lost then is a run or two of the count.
    """

    __slots__ = ("_needed", "_row", "quick")

    def __init__(self) -> None:
        self.quick = False
        self._row = 0  # short runs since the last that was not
        self._needed = LEAST_RUNS

    def note(self, seconds: float) -> None:
        """A run took ``seconds`` and waited for nobody."""
        if self.quick:
            if seconds > LONG_S:
                self.disappoint()
        elif seconds > SHORT_S:
            self._row = 0
        else:
            self._row += 1
            self.quick = self._row >= self._needed

    def disappoint(self) -> None:
        """A run was long, or waited for another call."""
        if self.quick:
            self._needed = min(2 * self._needed, MOST_RUNS)
        self.quick = False
        self._row = 0
