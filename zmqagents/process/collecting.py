"""How full garbage collections are kept short.

A full collection looks at every object that may hold others, and no thread runs meanwhile: 200 ms where the open calls
of a flood lie. So `Collector` freezes what has survived one that took long: the next ones look at what is new alone.
What is frozen goes as ever when nothing refers to it any more; only cycles among it stay until it is thawed, when most
of it has gone, or after a while.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Collector"]

LONG_S = 0.005
THAW_S = 600.0
THAW_SHARE = 0.5  # of what was frozen; when no more than that is left, the flood is over


class Collector:
    """Watches the collections of this process while it is entered; see the module's docstring. `look` now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = 0.0  # the full collection that is going on
        self._frozen = 0  # objects, when they were frozen last; 0: none are
        self._thaw_at = 0.0

    def __enter__(self) -> Collector:
        gc.callbacks.append(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.callbacks.remove(self._note)
        if self._frozen:
            gc.unfreeze()

    def look(self) -> None:
        """Thaw what was frozen, if it is time."""
        if not self._frozen:
            return
        left = gc.get_freeze_count()
        if left <= self._frozen * THAW_SHARE or self._clock() >= self._thaw_at:
            self._frozen = 0
            gc.unfreeze()

    def _note(self, step: str, told: dict[str, Any]) -> None:
        """Called by the interpreter at the start and the end of each collection, in any thread."""
        if told["generation"] < 2:
            return
        now = self._clock()
        if step == "start":
            self._began = now
        elif now - self._began >= LONG_S:
            if not self._frozen:
                self._thaw_at = now + THAW_S
            gc.freeze()
            self._frozen = gc.get_freeze_count()
