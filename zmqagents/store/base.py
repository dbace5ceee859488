"""The future store: what became of a task, and its result while that is kept.

A task is in exactly one state:

=========  ======================================================================================
PENDING    begun and not finished; kept however long it takes, never evicted, free of all limits
DONE       finished; its value is kept for ``ttl_s`` seconds *from the finish*
EXPIRED    finished, its value has been dropped: by age, by a limit, or because it never fitted
LOST       it will never finish (its host died, say), and whether it ran is not known
UNKNOWN    never heard of, forgotten on request, or settled so long ago that even the mark is gone
=========  ======================================================================================

::

    UNKNOWN --begin--> PENDING --put--> DONE --age, limit--> EXPIRED
       |                  |---put of too large a value---> EXPIRED --put of one that fits--> DONE
       |--put, lose------>|---lose---> LOST                       any state --forget--> UNKNOWN

*The first settlement wins.* Once ``put`` or ``lose`` has settled a task, every later ``begin``,
``put`` or ``lose`` of it changes nothing, so each may be repeated after a broken connection; a
result that has expired does not come back. The one exception is a put that was refused for its
size: it settles the task as EXPIRED, so that no reader waits for ever, and the caller may put
something shorter in its place, an error that says so.

*A full store drops its oldest finished result.* Oldest is by time of finish: reading a result
neither renews it nor moves it back. Two limits hold at once, entries and bytes; each result is
charged `ENTRY_OVERHEAD_BYTES` on top of its length, so that a million empty ones are not free. What
went is remembered by a mark, the latest ``max_tombstones`` of them, so that its reader learns
"expired" and not "unknown".

Values are opaque bytes, and every value is legal, ``b""`` and an encoded ``None`` among them:
what is there is told by the state and never by the value. The store does not wait and wakes
no reader; pushing a result to its readers is the broker's business.

A backend writes the primitives below the line in `FutureStore`; what is checked and counted here
it need not check again.
"""

from __future__ import annotations

import abc
import enum
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from ..errors import ConfigError, MessageTooLarge, StoreUnavailable, ZmqAgentsError

__all__ = [
    "ENTRY_OVERHEAD_BYTES", "Clock", "Entry", "Found", "FutureStore", "Listener", "Mark", "Owners", "Settlement",
    "SharedStore", "State", "StoreLimits", "StoreStats",
]  # fmt: skip

Clock = Callable[[], float]  # seconds, never going back

# The memory store takes 310 bytes beside the value, with a task id of 36 characters (tracemalloc,
# CPython 3.11: id, bytes header, two dicts of cachetools, one linked dict). Rounded up, since ids may
# be longer and a backend may keep more indexes; the same for all, so that all drop the same results.
ENTRY_OVERHEAD_BYTES = 512
_Store = TypeVar("_Store", bound="FutureStore")
_LEAST_MAX_BYTES = 2 * ENTRY_OVERHEAD_BYTES


class State(enum.Enum):
    """What a store knows of a task; see the module's table."""

    PENDING = "pending"
    DONE = "done"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    LOST = "lost"


class Mark(enum.Enum):
    """Why a settled task has no value: what a backend remembers of it."""

    EXPIRED = "expired"  # was kept, was dropped
    REFUSED = "refused"  # too large to be kept; the only one that a later put replaces
    LOST = "lost"

    @property
    def state(self) -> State:
        return State.LOST if self is Mark.LOST else State.EXPIRED


class Found(NamedTuple):
    """The answer of `FutureStore.get`; ``value`` is bytes when the state is DONE, else None."""

    state: State
    value: bytes | None = None


class StoreLimits:
    """How much a store keeps. Raises `ConfigError` naming the limit that is wrong."""

    __slots__ = ("max_bytes", "max_entries", "max_tombstones", "ttl_s")

    def __init__(
        self, max_entries: int = 8192, max_bytes: int = 512 * 1024 * 1024, ttl_s: float = 7200.0,
        max_tombstones: int = 65_536,
    ) -> None:  # fmt: skip
        self.max_entries = max_entries  # finished results
        self.max_bytes = max_bytes  # their lengths, and ENTRY_OVERHEAD_BYTES each
        self.ttl_s = ttl_s  # from the finish
        self.max_tombstones = max_tombstones  # marks of results that went: 11 MB when all are in use
        value: Any
        for name, least in (("max_entries", 1), ("max_bytes", _LEAST_MAX_BYTES), ("max_tombstones", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} of the store must be a whole number of at least {least}, not {value!r}")
        value = self.ttl_s
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"ttl_s of the store must be a positive number of seconds, not {value!r}")

    @property
    def max_value_bytes(self) -> int:
        """The longest value that fits at all."""
        return self.max_bytes - ENTRY_OVERHEAD_BYTES


class StoreStats(NamedTuple):
    """A snapshot. The first five are what is there now, the rest counts since this store was opened."""

    kind: str
    pending: int
    done: int
    bytes: int  # with ENTRY_OVERHEAD_BYTES for each of `done`
    tombstones: int
    expired: int  # dropped by age
    evicted: int  # dropped by a limit
    refused: int = 0  # too large to be kept
    hits: int = 0  # gets that found a value
    misses: int = 0  # gets that found EXPIRED, LOST or UNKNOWN; a PENDING one is neither


class Entry(NamedTuple):
    """One result that is kept, without its value."""

    task_id: str
    bytes: int  # with ENTRY_OVERHEAD_BYTES
    age_s: float  # since its finish


class FutureStore(abc.ABC):
    """Results by task id. Every method may be called from any thread.

    Those of a `SharedStore` may wait for the network, so the router thread must not call them. Each raises
    `StoreUnavailable` after `close`, and when the backend cannot be reached.
    """

    kind: ClassVar[str]

    def __init__(self, limits: StoreLimits) -> None:
        self.limits = limits
        self._max_value_bytes = limits.max_value_bytes
        self._lock = threading.Lock()  # guards this object's fields; never held during network I/O
        self._closed = False
        self._hits = self._misses = self._refused = 0

    def begin(self, task_id: str) -> None:
        """The task is PENDING from now on, unless it is settled already."""
        self._check_open()
        self._begin(task_id)

    def put(self, task_id: str, value: bytes) -> None:
        """The task is finished; keep ``value`` for ``ttl_s`` seconds from now. It need not have begun.

        Does nothing if the task is settled already. Raises `MessageTooLarge` if ``value`` is above
        ``limits.max_value_bytes``: the task is then EXPIRED until something that fits is put.
        """
        if not isinstance(value, bytes):  # a buffer that its owner could still change
            raise TypeError(f"the future store keeps bytes, not {type(value).__name__}")
        if self._closed:
            self._check_open()
        if len(value) <= self._max_value_bytes:
            self._put(task_id, value)
            return
        refusal = self._refusal(task_id, value)
        assert refusal is not None
        self._mark(task_id, Mark.REFUSED)
        raise refusal

    def get(self, task_id: str) -> Found:
        """What became of the task, with its value if it is DONE. Changes nothing."""
        self._check_open()
        found = self._get(task_id)
        if found.state is not State.PENDING:
            with self._lock:
                if found.state is State.DONE:
                    self._hits += 1
                else:
                    self._misses += 1
        return found

    def lose(self, task_id: str) -> None:
        """The task will never finish: it is LOST, unless it is settled already."""
        self._check_open()
        self._mark(task_id, Mark.LOST)

    def forget(self, task_id: str) -> None:
        """Drop all that is known of the task, in whatever state: it is UNKNOWN, as if never begun."""
        self._check_open()
        self._forget(task_id)

    def stats(self) -> StoreStats:
        """Figures for `status`. Results that have come of age are dropped first, so it may take a while."""
        self._check_open()
        stats = self._stats()
        with self._lock:
            return stats._replace(refused=self._refused, hits=self._hits, misses=self._misses)

    def entries(self, most: int) -> list[Entry]:
        """The latest results that are kept, at most ``most``, the youngest first."""
        self._check_open()
        return self._entries(most)

    def close(self) -> None:
        """Close everything; may be called again. Results in a shared backend stay there."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            self._close()

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the {self.kind} future store is closed")

    def _refusal(self, task_id: str, value: bytes) -> MessageTooLarge | None:
        """Why ``value`` cannot be kept, None if it can; what is refused is counted."""
        limit = self.limits.max_value_bytes
        if len(value) <= limit:
            return None
        with self._lock:
            self._refused += 1
        return MessageTooLarge(
            f"the result of task {task_id} is {len(value):,} bytes, the future store keeps at most {limit:,} "
            f"(max_bytes less {ENTRY_OVERHEAD_BYTES} for the entry)",
            len(value),
            limit,
        )

    # ------------------------------------------------------------ what a backend writes
    # Each is atomic for all that share the backend, and takes time independent of how much it holds.

    @abc.abstractmethod
    def _begin(self, task_id: str) -> None:
        """PENDING, if nothing is known of the task."""

    @abc.abstractmethod
    def _put(self, task_id: str, value: bytes) -> None:
        """DONE with ``value``, which fits, if the task is UNKNOWN, PENDING or marked REFUSED; keep the limits."""

    @abc.abstractmethod
    def _mark(self, task_id: str, mark: Mark) -> None:
        """Settle an UNKNOWN or PENDING task without a value."""

    @abc.abstractmethod
    def _get(self, task_id: str) -> Found: ...

    @abc.abstractmethod
    def _forget(self, task_id: str) -> None: ...

    @abc.abstractmethod
    def _stats(self) -> StoreStats:
        """All but ``refused``, ``hits`` and ``misses``."""

    @abc.abstractmethod
    def _entries(self, most: int) -> list[Entry]: ...

    @abc.abstractmethod
    def _close(self) -> None:
        """Called once."""


# ---------------------------------------------------------------- shared by several hosts

Settlement = bytes | Mark | None  # put, a mark, or begin


class Listener(Protocol):
    """Tells one owner which of the tasks that it watches are settled. For one thread."""

    def get(self, timeout_s: float) -> str | None:
        """The next settled task id; "" when messages may have been lost before; None after ``timeout_s``.

        Raises `StoreUnavailable`; the next call subscribes anew.
        """

    def close(self) -> None:
        """Close the connection."""


class Owners(NamedTuple):
    """The owners of a shared store."""

    living: frozenset[str]
    dead: frozenset[str]  # silent for too long, and not very long ago
    known: bool  # False at the first beat, and when the store has forgotten what it was told


class SharedStore(FutureStore):
    """A store that several hosts have open at once, each as an *owner* of the tasks that it begins.

    An owner says twice a second that it lives (`beat`). The pending tasks of one that does not are LOST to all readers.
    """

    shown_url: str  # without its password
    round_trip_s: float = 0.0  # how long the latest `stats` took to be answered

    @abc.abstractmethod
    def settle(self, items: Iterable[tuple[str, Settlement]]) -> dict[str, ZmqAgentsError]:
        """Begin (None), put (bytes) or mark many tasks, each at most once; what those that failed have failed with.

        Raises `StoreUnavailable`; then any part may have been carried out, and all of it may be repeated.
        """

    @abc.abstractmethod
    def watch(self, task_ids: Sequence[str]) -> list[Found]:
        """`get` of many tasks. Of those that are PENDING, this store's `listen` will tell the settlement."""

    @abc.abstractmethod
    def beat(self) -> Owners:
        """Renew the lease of the owner. The result says which owners live, and which of late do not."""

    @abc.abstractmethod
    def retire(self) -> None:
        """The owner ends: what it has not settled is LOST."""

    @abc.abstractmethod
    def listen(self) -> Listener:
        """The listener that tells this owner of the tasks that it watches."""

    @abc.abstractmethod
    def nudge(self) -> None:
        """Send this owner's listener an empty message: it may wait, and is to end."""
