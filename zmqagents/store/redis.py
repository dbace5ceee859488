"""The future store that many hosts share, in Redis (6.2 or newer) or Valkey, on redis-py.

The keys and the scripts that work on them are in `store.scripts`.

*Leases.* A store with an ``owner`` says twice a second that it lives (`beat`). When its lease of `LEASE_S` is over, its
pending tasks are LOST to all readers; after `MOURNING_S` more they are marked so for good, unless the owner came
back, from a stall of its machine, say. When no owner has beaten for a while, Redis itself was away: then all that
lived at the last beat get a new lease.

*Waiting.* `watch` reads tasks and, in the same step, enters the caller as one to be told of those that are not settled.
The word comes on the caller's own channel, ``done:<owner>`` (`RedisListener`); a word can be lost with its connection,
so a reader that waits looks again after each empty word, which stands for a new subscription, and every few seconds.

Hosts that share a namespace should have the same limits: each one applies its own to all.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from ..errors import ConfigError, StoreError, ZmqAgentsError
from . import scripts
from .base import (
    ENTRY_OVERHEAD_BYTES,
    Entry,
    Found,
    Mark,
    Owners,
    Settlement,
    SharedStore,
    State,
    StoreLimits,
    StoreStats,
)
from .redis_client import RedisClient, RedisListener

__all__ = ["LEASE_S", "RedisStore"]

log = logging.getLogger(__name__)

LEASE_S = 2.0  # four beats; with a beat of the reader's host on top a dead host's calls are LOST within 2.5 s
MOURNING_S = 10.0
ABSENCE_S = 1.5  # three beats of every host missed: not a dead host but an absent Redis
WATCH_S = 60.0  # an entry in w: outlives the longest pause between two looks; then Redis drops it
SWEEP_LIMIT = 64  # results that one operation drops by age: about 300 us of Redis's time
REAP_LIMIT = 500
SCRIPT_ITEMS = 64  # tasks that one script settles or reads: Redis does nothing else for 1 ms
SCRIPT_BYTES = 1 << 20

_KINDS = {Mark.EXPIRED: 0, Mark.REFUSED: 1, Mark.LOST: 2}
_STATES = {b"D": State.DONE, b"P": State.PENDING, b"E": State.EXPIRED, b"L": State.LOST, b"U": State.UNKNOWN}

_Command = tuple[scripts.Script, tuple[Any, ...]]


# ---------------------------------------------------------------- the store


class RedisStore(SharedStore):
    """Results in Redis, shared by all hosts that open the same ``url`` and ``namespace``.

    ``url``: ``redis://``, ``rediss://`` or ``unix://`` as redis-py takes them (user, password, db, query), or
    ``redis+sentinel://user:password@host:port,host:port/service/db`` or ``redis+cluster://host:port,host:port``
    (``rediss+...`` for TLS). With an ``owner`` the tasks that are begun here are LOST when it beats no more; without,
    they are pending for ever. Raises `ConfigError` for a wrong URL, `StoreUnavailable` if there is no Redis.
    """

    kind: ClassVar[str] = "redis"

    def __init__(self, limits: StoreLimits, url: str, *, namespace: str = "zmqagents", owner: str = "") -> None:
        super().__init__(limits)
        self.owner = owner
        self._prefix = f"za:{{{namespace}}}:"
        self._ttl_us = round(limits.ttl_s * 1e6)
        self._client = RedisClient(url)
        self.shown_url = self._client.shown_url
        try:
            self._before = (0, 0)
            stats = self._stats()  # proves that scripts may run
            self._before = (stats.expired, stats.evicted)
            self._look_at_policy()
        except (
            TypeError,
            ValueError,
        ) as exc:  # redis-py, which learns the settings of the URL with the first connection
            self._close()
            raise ConfigError(f"redis_url {self.shown_url}: {self._client.without_secrets(exc)}") from None
        except BaseException:
            self._close()
            raise

    # ------------------------------------------------------------ what many tasks share

    def settle(self, items: Iterable[tuple[str, Settlement]]) -> dict[str, ZmqAgentsError]:
        self._check_open()
        limit = self._max_value_bytes
        failures: dict[str, ZmqAgentsError] = {}
        values: list[tuple[str, bytes]] = []
        others: dict[Mark | None, list[str]] = {}
        for task_id, outcome in items:
            if not isinstance(outcome, bytes):
                others.setdefault(outcome, []).append(task_id)
            elif len(outcome) <= limit or (refusal := self._refusal(task_id, outcome)) is None:
                values.append((task_id, outcome))
            else:
                failures[task_id] = refusal
                others.setdefault(Mark.REFUSED, []).append(task_id)
        batches: list[tuple[Sequence[str], _Command]] = []
        for mark, task_ids in others.items():
            make = self._beginning if mark is None else functools.partial(self._marking, mark)
            batches += [(some, make(some)) for some in _portions(task_ids)]
        batches += [([task_id for task_id, _ in pairs], self._putting(pairs)) for pairs in _weighed(values)]
        for (batch, _), answer in zip(batches, self._run_many([command for _, command in batches]), strict=True):
            if isinstance(answer, StoreError):
                failures.update(dict.fromkeys(batch, answer))
        return failures

    def watch(self, task_ids: Sequence[str]) -> list[Found]:
        self._check_open()
        wait_ms = int(WATCH_S * 1000)
        commands = [(scripts.GET, (self.owner, wait_ms, *some)) for some in _portions(task_ids)]
        found = []
        for answer in self._run_many(commands):
            if isinstance(answer, Exception):
                raise answer
            found += [_found(row) for row in answer]
        with self._lock:
            for state, _ in found:
                self._hits += state is State.DONE
                self._misses += state in (State.EXPIRED, State.LOST)
        return found

    def beat(self) -> Owners:
        self._check_open()
        arguments = (
            self.owner, round(LEASE_S * 1e6), round(ABSENCE_S * 1e6), round(MOURNING_S * 1e6), self._ttl_us,
            self.limits.max_tombstones, REAP_LIMIT, SWEEP_LIMIT,
        )  # fmt: skip
        living, dead, known = self._run(scripts.BEAT, arguments)
        return Owners(frozenset(map(bytes.decode, living)), frozenset(map(bytes.decode, dead)), bool(known))

    def retire(self) -> None:
        self._check_open()
        while self._run(scripts.RETIRE, (self.owner, self.limits.max_tombstones, REAP_LIMIT)):
            pass

    def nudge(self) -> None:
        self._check_open()
        self._client.publish(f"{self._prefix}done:{self.owner}", "")

    def listen(self) -> RedisListener:
        self._check_open()
        return self._client.listen(f"{self._prefix}done:{self.owner}")

    # ------------------------------------------------------------ the primitives

    def _begin(self, task_id: str) -> None:
        self._run(*self._beginning([task_id]))

    def _put(self, task_id: str, value: bytes) -> None:
        self._run(*self._putting([(task_id, value)]))

    def _mark(self, task_id: str, mark: Mark) -> None:
        self._run(*self._marking(mark, [task_id]))

    def _get(self, task_id: str) -> Found:
        return _found(self._run(scripts.GET, ("", 0, task_id))[0])

    def _forget(self, task_id: str) -> None:
        self._run(scripts.FORGET, (task_id,))

    def _stats(self) -> StoreStats:
        swept = SWEEP_LIMIT
        while swept == SWEEP_LIMIT:  # in portions, so that others get their turn
            start = time.perf_counter()
            figures = self._run(scripts.STATS, (self._ttl_us, self.limits.max_tombstones, SWEEP_LIMIT))
            self.round_trip_s = time.perf_counter() - start
            swept, pending, done, size, marks, expired, evicted = figures
        before = self._before
        return StoreStats(
            self.kind, pending, done, size, marks, max(0, expired - before[0]), max(0, evicted - before[1])
        )

    def _entries(self, most: int) -> list[Entry]:
        rows = self._run(scripts.ENTRIES, (most, self._ttl_us))
        return [Entry(task.decode(), size, age_us / 1e6) for task, age_us, size in rows]

    def _close(self) -> None:
        self._client.close()

    def _beginning(self, task_ids: Sequence[str]) -> _Command:
        return scripts.BEGIN, (self.owner, round(LEASE_S * 1e6), *task_ids)

    def _putting(self, items: Sequence[tuple[str, bytes]]) -> _Command:
        limits = self.limits
        return scripts.PUT, (
            self._ttl_us, limits.max_entries, limits.max_bytes, limits.max_tombstones, ENTRY_OVERHEAD_BYTES,
            SWEEP_LIMIT, *itertools.chain.from_iterable(items),
        )  # fmt: skip

    def _marking(self, mark: Mark, task_ids: Sequence[str]) -> _Command:
        return scripts.MARK, (_KINDS[mark], self.limits.max_tombstones, *task_ids)

    def _run(self, script: scripts.Script, arguments: tuple[Any, ...]) -> Any:
        """What ``script`` gives. Raises `StoreUnavailable` or `StoreFull`."""
        return self._client.run(script, self._prefix, arguments)

    def _run_many(self, commands: Sequence[_Command]) -> list[Any]:
        """What each of ``commands`` gives, or the `StoreError` that it failed with; in one round trip."""
        return self._client.run_many([(script, self._prefix, arguments) for script, arguments in commands])

    def _look_at_policy(self) -> None:
        """Warn if Redis may throw results away on its own."""
        policy = self._client.policy()
        if policy != "noeviction" and not policy.startswith("volatile-"):
            log.warning(
                "Redis at %s has the maxmemory-policy %s: at its limit it drops the store's records, too; "
                "set noeviction or one of volatile-*", self.shown_url, policy,
            )  # fmt: skip


def _found(answer: Any) -> Found:
    return Found(_STATES[answer[0]], answer[1] if len(answer) > 1 else None)


def _portions(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[start : start + SCRIPT_ITEMS] for start in range(0, len(items), SCRIPT_ITEMS)]


def _weighed(items: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Portions for one script each, of at most `SCRIPT_BYTES` or a single value."""
    portion: list[tuple[str, bytes]] = []
    size = 0
    for item in items:
        if portion and (len(portion) >= SCRIPT_ITEMS or size + len(item[1]) > SCRIPT_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(item)
        size += len(item[1])
    if portion:
        yield portion
