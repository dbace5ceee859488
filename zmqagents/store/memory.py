"""The future store of one host process, on cachetools.

cachetools is not thread-safe, so one lock covers everything here; no operation under it waits, runs
code of agents or walks over the entries. Every task is in at most one of three places: the set of
pending ones, the finished results, or the marks of those that went.

Age costs nothing while nothing happens: each operation first drops a few results that have come of
age. One lifetime for all means that the oldest finish is also the first to expire, so a single
order serves age and eviction.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from typing import ClassVar

from cachetools import Cache

from .base import ENTRY_OVERHEAD_BYTES, Clock, Entry, Found, FutureStore, Mark, State, StoreLimits, StoreStats

__all__ = ["MemoryStore"]

# At most so many results are dropped by age in one operation: about 100 us. The backlog still
# shrinks, because an operation adds at most one.
SWEEP_LIMIT = 64

_PENDING = Found(State.PENDING)
_UNKNOWN = Found(State.UNKNOWN)
_GONE = {mark: Found(mark.state) for mark in Mark}


TABLES = 64  # of marks: some 1,000 in each, which take 50 kB


def _charge_bytes(value: bytes) -> int:
    return len(value) + ENTRY_OVERHEAD_BYTES


class _Marks:
    """What became of tasks whose results are gone, oldest first.

    In many small tables. A single one of 65,536 marks, of which the oldest goes as the newest comes, is built anew
    every 110,000 marks: that takes 5 ms, and blocks of some MiB that the allocator does not give back.
    """

    def __init__(self) -> None:
        self._tables: tuple[dict[str, Mark], ...] = tuple({} for _ in range(TABLES))
        self._order: deque[str] = deque()
        self._dropped: Counter[str] = Counter()  # how many of its places in the order a task has given up
        self._stale = 0  # all of these

    def __len__(self) -> int:
        return len(self._order) - self._stale

    def get(self, task_id: str) -> Mark | None:
        """The mark of a task, None if it has none."""
        return self._tables[hash(task_id) % TABLES].get(task_id)

    def put(self, task_id: str, mark: Mark, most: int) -> None:
        """Mark a task; where more than ``most`` are marked then, the oldest mark goes."""
        table = self._tables[hash(task_id) % TABLES]
        if task_id not in table:
            if len(self._order) - self._stale >= most:
                oldest = next(self._taken())
                del self._tables[hash(oldest) % TABLES][oldest]
            self._order.append(task_id)
        table[task_id] = mark

    def drop(self, task_id: str) -> None:
        """Forget the mark of a task, if it has one. Its place in the order goes later."""
        if self._tables[hash(task_id) % TABLES].pop(task_id, None) is None:
            return
        self._dropped[task_id] += 1
        self._stale += 1
        if self._stale > len(self) + SWEEP_LIMIT:
            self._order = deque(self._taken())

    def _taken(self) -> Iterator[str]:
        """Take the tasks that are marked out of the order, the oldest first."""
        order, dropped = self._order, self._dropped
        while order:
            task_id = order.popleft()
            if dropped and task_id in dropped:
                self._stale -= 1
                dropped[task_id] -= 1
                if not dropped[task_id]:
                    del dropped[task_id]
            else:
                yield task_id


class _Results(Cache[str, bytes]):
    """Finished results, oldest finish first, and the marks of those that went. Not thread-safe.

    cachetools keeps the books on bytes: it calls `popitem` until a new value fits. Order and age are
    ours, since its `TTLCache` drops the least recently *used* one, and forgets in silence what expired.
    """

    def __init__(self, limits: StoreLimits) -> None:
        super().__init__(limits.max_bytes, getsizeof=_charge_bytes)
        self.limits = limits
        self.expires_at: OrderedDict[str, float] = OrderedDict()  # in the order of the finish
        self.marks = _Marks()
        self.expired = self.evicted = 0
        self._now = 0.0
        self._due = math.inf  # nothing expires before; a field, so that most sweeps touch no entry

    def sweep(self, now: float) -> bool:
        """Drop what has come of age, `SWEEP_LIMIT` at most; True if there may be more."""
        self._now = now
        if now < self._due:
            return False
        for _ in range(SWEEP_LIMIT):
            oldest = next(iter(self.expires_at), None)
            self._due = math.inf if oldest is None else self.expires_at[oldest]
            if now < self._due:
                return False
            self._drop_oldest()
        return True

    def add(self, task_id: str, value: bytes) -> None:
        """Keep a value that fits, of a task that has none; the time is that of the last `sweep`."""
        if len(self.expires_at) >= self.limits.max_entries:
            self._drop_oldest()
        self[task_id] = value
        self.expires_at[task_id] = expires_at = self._now + self.limits.ttl_s
        if expires_at < self._due:
            self._due = expires_at

    def find(self, task_id: str) -> bytes | None:
        """The value if it is there and young enough, at the time of the last `sweep`."""
        if task_id not in self.expires_at or self.expires_at[task_id] <= self._now:  # old, behind the backlog
            return None
        return self[task_id]

    def mark(self, task_id: str, mark: Mark) -> None:
        """Remember what became of a task; the oldest mark goes when there are too many."""
        self.marks.put(task_id, mark, self.limits.max_tombstones)

    def popitem(self) -> tuple[str, bytes]:
        """Drop the oldest result, leaving a mark."""
        oldest = next(iter(self.expires_at))
        value = self[oldest]
        self._drop_oldest()
        return oldest, value

    def _drop_oldest(self) -> None:
        oldest, expires_at = self.expires_at.popitem(last=False)
        super().__delitem__(oldest)
        if expires_at <= self._now:
            self.expired += 1
        else:
            self.evicted += 1
        self.mark(oldest, Mark.EXPIRED)

    def __delitem__(self, task_id: str) -> None:
        super().__delitem__(task_id)
        del self.expires_at[task_id]


class MemoryStore(FutureStore):
    """Results in this process's memory; ``clock`` gives seconds that never go back."""

    kind: ClassVar[str] = "local"

    def __init__(self, limits: StoreLimits, *, clock: Clock = time.monotonic) -> None:
        super().__init__(limits)
        self._clock = clock
        self._pending: set[str] = set()
        self._results = _Results(limits)

    def _begin(self, task_id: str) -> None:
        with self._lock:
            self._results.sweep(self._clock())
            if task_id not in self._results and self._results.marks.get(task_id) is None:
                self._pending.add(task_id)

    def _put(self, task_id: str, value: bytes) -> None:
        with self._lock:
            results = self._results
            # The clock is read under the lock: finishes are in the order of their times.
            results.sweep(self._clock())
            if task_id in results.expires_at:
                return
            mark = results.marks.get(task_id)
            if mark is not None:
                if mark is not Mark.REFUSED:
                    return
                results.marks.drop(task_id)
            self._pending.discard(task_id)
            results.add(task_id, value)

    def _mark(self, task_id: str, mark: Mark) -> None:
        with self._lock:
            results = self._results
            results.sweep(self._clock())
            if task_id not in results and results.marks.get(task_id) is None:
                self._pending.discard(task_id)
                results.mark(task_id, mark)

    def _get(self, task_id: str) -> Found:
        with self._lock:
            if task_id in self._pending:
                return _PENDING
            results = self._results
            results.sweep(self._clock())
            value = results.find(task_id)
            if value is not None:
                return Found(State.DONE, value)
            if task_id in results:
                return _GONE[Mark.EXPIRED]
            mark = results.marks.get(task_id)
            return _UNKNOWN if mark is None else _GONE[mark]

    def _forget(self, task_id: str) -> None:
        with self._lock:
            self._results.sweep(self._clock())
            self._pending.discard(task_id)
            self._results.pop(task_id, None)
            self._results.marks.drop(task_id)

    def _stats(self) -> StoreStats:
        while True:  # in portions, so that others get their turn at the lock
            with self._lock:
                results = self._results
                if not results.sweep(self._clock()):
                    return StoreStats(
                        self.kind, len(self._pending), len(results), int(results.currsize), len(results.marks),
                        results.expired, results.evicted,
                    )  # fmt: skip

    def _entries(self, most: int) -> list[Entry]:
        with self._lock:
            results, now = self._results, self._clock()
            results.sweep(now)
            latest = itertools.islice(reversed(results.expires_at.items()), most)
            return [
                Entry(task_id, int(results.getsizeof(results[task_id])), now - expires_at + self.limits.ttl_s)
                for task_id, expires_at in latest
                if expires_at > now
            ]

    def _close(self) -> None:
        with self._lock:
            self._pending = set()
            self._results = _Results(self.limits)
