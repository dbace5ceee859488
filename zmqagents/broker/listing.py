"""The lists of agents and of calls, by a thread of their own; that of agents in pages.

A host may have 100,000 agents, and to describe them all takes half a second, in which the router thread would serve
nobody. So that thread takes down the records, and no more; a second thread makes the rows, one request after the other,
however many clients ask. Between two requests it rests for as long as the first one took, so that no number of them
takes more than half of the interpreter's time. It starts with the first request and ends when none is left.

A page begins after a record's ``number``, by which records are ordered, so agents that come or go between two pages
move nothing. `Listing.add` belongs to the router thread.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from ..scheduler.records import AgentRecord

__all__ = ["PAGE_ROWS", "Listing", "page_of", "row_of"]

PAGE_ROWS = 1000


class Listing:
    """Runs functions in one thread, in the order in which they come."""

    def __init__(self) -> None:
        self._left: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._runs = False

    def __repr__(self) -> str:
        return f"<Listing [{len(self._left)} requests wait]>"

    def add(self, work: Callable[[], None]) -> None:
        """Have ``work`` done, which must not raise. RuntimeError: there is no thread to be had."""
        with self._lock:
            self._left.append(work)
            if self._runs:
                return
            self._runs = True
        try:
            threading.Thread(target=self._run, name="zmqagents-listing", daemon=True).start()
        except RuntimeError:
            with self._lock:
                self._left.clear()
                self._runs = False
            raise

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._runs = False
                    return
                work = self._left.popleft()
            began = time.perf_counter()
            work()
            if self._left:
                time.sleep(time.perf_counter() - began)


def page_of(records: list[AgentRecord], after: int, now: float) -> dict[str, Any]:
    """The rows of the page behind the record ``after``, and what the next page begins after; None at the last one."""
    start = bisect.bisect_right(records, after, key=attrgetter("number"))
    page = records[start : start + PAGE_ROWS]
    more = start + PAGE_ROWS < len(records)
    return {"agents": [row_of(record, now) for record in page], "next": page[-1].number if more else None}


def row_of(record: AgentRecord, now: float) -> dict[str, Any]:
    """What a list says of one agent."""
    return {
        "agent_id": record.agent_id, "class": record.spec.name, "type": record.spec.short, "calls": record.calls,
        "running": len(record.holders), "queued": record.queued, "age_s": round(now - record.created, 3),
        "child": record.child,
    }  # fmt: skip
