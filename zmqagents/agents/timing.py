"""How long the runs of one method take: whether the router thread may run it itself.

A hand-off to a worker thread and back costs several times what a short method does. So a method whose last runs
were all short is *quick* and takes the fast lane (`leader`), until two runs come close together that are not. One long
run alone says little: on a busy machine one in two or three hundred is long because the processor was with others,
and to send all of them to the workers would cost far more than the two or three milliseconds for which a run that
really is long holds up the other callers.
"""

from __future__ import annotations

__all__ = ["LONG_S", "Pace"]

SHORT_S = 0.0002  # decoding, code and encoding: about what the hand-off costs
LONG_S = 0.001
LEAST_RUNS = 32  # short ones in a row, and it is quick
FORGIVEN_RUNS = 100  # short ones in a row, and one that is long changes nothing


class Pace:
    """The record of one method of one class, for all its agents. Told of each run by the thread that ran it.

    Threads may tell at the same time; what gets lost then is a run or two of the count.
    """

    __slots__ = ("_row", "quick")

    def __init__(self) -> None:
        self.quick = False
        self._row = 0  # runs since the last that was not short; while it is quick: not long

    def note(self, seconds: float) -> None:
        """A run took ``seconds`` and waited for nobody."""
        if seconds <= SHORT_S:
            self._row += 1
            if self._row == LEAST_RUNS:
                self.quick = True
        elif seconds > LONG_S or not self.quick:
            self.disappoint()

    def disappoint(self) -> None:
        """A run was long, or waited for another call."""
        if self._row < FORGIVEN_RUNS:
            self.quick = False
        self._row = 0
