"""The thread that does something later: it lives while there is something to do."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

__all__ = ["Retries"]

log = logging.getLogger(__name__)


class Retries:
    """Calls functions when their time has come, one after the other. Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Retries [{len(self._due)}]>"

    @property
    def is_this_thread(self) -> bool:
        """Whether it is this one that calls now: what waits here for another call of it would wait for ever."""
        return self._thread is threading.current_thread()

    def later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Call ``function`` in ``delay_s`` seconds. It must not block for long."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._numbers), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zmqagents-retries", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def take_all(self) -> list[Callable[[], None]]:
        """What was to be called and is not any more."""
        with self._changed:
            functions = [function for _, _, function in sorted(self._due)]
            self._due.clear()
            self._changed.notify()
            return functions

    def join(self) -> None:
        """Wait until the thread has ended; there is nothing to do any more."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)

    def renew_lock(self) -> None:
        """In a forked child: the thread is not here."""
        self._changed = threading.Condition()
        self._due.clear()
        self._thread = None

    def _run(self) -> None:
        while (function := self._next()) is not None:
            try:
                function()
            except BaseException:  # a done-callback may raise anything
                log.exception("a call that was to be sent again failed")

    def _next(self) -> Callable[[], None] | None:
        """The next function when its time has come; None when there is none left."""
        with self._changed:
            while self._due:
                left_s = self._due[0][0] - time.monotonic()
                if left_s <= 0:
                    return heapq.heappop(self._due)[2]
                self._changed.wait(left_s)
            self._thread = None
            return None
