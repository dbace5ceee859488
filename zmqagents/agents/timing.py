"""How long the runs of a method take, and so whether the router thread may run the method itself.

Handing a call to a worker thread and back costs several times what a short method does. So a method whose last runs
were all short is *quick*: the router thread runs it (the fast lane), until two runs close together are long. One long
run alone says little. On a busy machine one run in two or three hundred is long because the processor was taken away;
sending the method to the workers for that would cost far more than the two or three milliseconds for which a run
that is long by itself holds up the other callers.
"""

from __future__ import annotations

__all__ = ["LONG_S", "NEVER_QUICK", "Pace"]

SHORT_S = 0.0002  # decoding, code and encoding: about what the hand-off costs
LONG_S = 0.001
LEAST_RUNS = 32  # after so many short ones in a row the method is quick
FORGIVEN_RUNS = 100  # after so many short ones in a row one long run changes nothing


class Pace:
    """The record of one method of one class, for all its agents. The thread that ran the method notes the run.

    Two threads that note at the same time may lose a run or two of the count, which does no harm.
    """

    __slots__ = ("_row", "quick")

    def __init__(self) -> None:
        self.quick = False
        self._row = 0  # runs since the last that was not short; while it is quick: not long

    def note(self, seconds: float) -> None:
        """Note a run that took ``seconds`` and waited for no other call."""
        if seconds <= SHORT_S:
            self._row += 1
            if self._row == LEAST_RUNS:
                self.quick = True
        elif seconds > LONG_S or not self.quick:
            self.disappoint()

    def disappoint(self) -> None:
        """Note a run that was long, or that waited for another call."""
        if self._row < FORGIVEN_RUNS:
            self.quick = False
        self._row = 0


class HeldPace(Pace):
    """Of a method whose calls must be looked at before they begin: it is never ``quick``, but may be `is_short`.

    The constructors of such agents have one, too.
    """

    __slots__ = ("_own",)

    def __init__(self) -> None:
        super().__init__()
        self._own = Pace()

    @property
    def is_short(self) -> bool:
        """Whether the router thread may run it once its call was looked at."""
        return self._own.quick

    def note(self, seconds: float) -> None:
        """Note a run."""
        self._own.note(seconds)

    def disappoint(self) -> None:
        """Note a run that was long, or that waited for another call."""
        self._own.disappoint()


class _NeverQuick(Pace):
    """Of methods that the router thread never runs itself."""

    __slots__ = ()

    def note(self, seconds: float) -> None:
        """Take no notice."""

    def disappoint(self) -> None:
        """Take no notice."""


NEVER_QUICK = _NeverQuick()
