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

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.backoff
import redis.cluster
import redis.retry
import redis.sentinel

from ..config import without_password
from ..errors import ConfigError, StoreError, StoreFull, StoreUnavailable, ZmqAgentsError
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

__all__ = ["LEASE_S", "RedisListener", "RedisStore"]

log = logging.getLogger(__name__)

LEASE_S = 2.0  # four beats; with a beat of the reader's host on top a dead host's calls are LOST within 2.5 s
MOURNING_S = 10.0
ABSENCE_S = 1.5  # three beats of every host missed: not a dead host but an absent Redis
WATCH_S = 60.0  # an entry in w: outlives the longest pause between two looks; then Redis drops it
SWEEP_LIMIT = 64  # results that one operation drops by age: about 300 us of Redis's time
REAP_LIMIT = 500
SCRIPT_ITEMS = 64  # tasks that one script settles or reads: Redis does nothing else for 1 ms
SCRIPT_BYTES = 1 << 20

# Explicit, since the defaults of redis-py 5 to 8 differ (no retry at all, 3 with pauses of up to 10 s, 10).
# A URL's query overrides them. A time-out is not tried again: a frozen Redis would take three times as long to tell.
_SETTINGS: dict[str, Any] = {
    "socket_timeout": 2.0, "socket_connect_timeout": 1.0, "socket_keepalive": True, "health_check_interval": 15,
    "protocol": 2,
}  # fmt: skip
_KINDS = {Mark.EXPIRED: 0, Mark.REFUSED: 1, Mark.LOST: 2}
_FAILURES = (redis.RedisError, redis.exceptions.RedisClusterException)
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
        self.shown_url = without_password(url)
        self.owner = owner
        self._prefix = f"za:{{{namespace}}}:"
        self._secrets = _secrets_in(url)
        self._ttl_us = round(limits.ttl_s * 1e6)
        self._redis = self._open(url)
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
            raise ConfigError(f"redis_url {self.shown_url}: {self._without_secrets(exc)}") from None
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
        with contextlib.suppress(*_FAILURES):
            self._redis.publish(f"{self._prefix}done:{self.owner}", "")

    def listen(self) -> RedisListener:
        self._check_open()
        return RedisListener(self._redis, f"{self._prefix}done:{self.owner}")

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
        self._redis.close()
        manager = getattr(getattr(self._redis, "connection_pool", None), "sentinel_manager", None)
        for sentinel in manager.sentinels if manager is not None else ():
            sentinel.close()

    def _beginning(self, task_ids: Sequence[str]) -> _Command:
        return scripts.BEGIN, (self.owner, *task_ids)

    def _putting(self, items: Sequence[tuple[str, bytes]]) -> _Command:
        limits = self.limits
        return scripts.PUT, (
            self._ttl_us, limits.max_entries, limits.max_bytes, limits.max_tombstones, ENTRY_OVERHEAD_BYTES,
            SWEEP_LIMIT, *itertools.chain.from_iterable(items),
        )  # fmt: skip

    def _marking(self, mark: Mark, task_ids: Sequence[str]) -> _Command:
        return scripts.MARK, (_KINDS[mark], self.limits.max_tombstones, *task_ids)

    # ------------------------------------------------------------ to the server and back

    def _run(self, script: scripts.Script, arguments: tuple[Any, ...]) -> Any:
        """What ``script`` gives. Raises `StoreUnavailable` or `StoreFull`."""
        try:
            try:
                return self._redis.execute_command("EVALSHA", script.sha, 1, self._prefix, *arguments)
            except redis.exceptions.NoScriptError:  # the first time on this server, or since its restart
                return self._redis.execute_command("EVAL", script.text, 1, self._prefix, *arguments)
        except _FAILURES as exc:
            error = self._error(exc)
        raise error  # out here: in its context the password might be read

    def _run_many(self, commands: Sequence[_Command]) -> list[Any]:
        """What each of ``commands`` gives, or the `StoreError` that it failed with; in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        for script, arguments in commands:
            pipeline.execute_command("EVALSHA", script.sha, 1, self._prefix, *arguments)
        try:
            got = pipeline.execute(raise_on_error=False)
        except _FAILURES as exc:
            error = self._error(exc)
        else:
            return [self._answer(command, answer) for command, answer in zip(commands, got, strict=True)]
        raise error

    def _answer(self, command: _Command, answer: Any) -> Any:
        if isinstance(answer, redis.exceptions.NoScriptError):
            try:
                return self._run(*command)
            except StoreFull as exc:
                return exc
        if isinstance(answer, redis.RedisError):
            error = self._error(answer)
            if isinstance(error, StoreUnavailable):
                raise error
            return error
        return answer

    def _error(self, exc: Exception) -> StoreError:
        if isinstance(exc, redis.sentinel.MasterNotFoundError):  # whose text shows all that redis-py knows of itself
            return StoreUnavailable(f"Redis at {self.shown_url}: no sentinel that answers knows of such a master")
        text = self._without_secrets(exc)
        # In a script of Redis 6.2 it is no error of its own.
        if isinstance(exc, redis.exceptions.OutOfMemoryError) or "OOM " in text:
            return StoreFull(f"Redis at {self.shown_url} has reached its maxmemory and takes no further result")
        return StoreUnavailable(f"Redis at {self.shown_url}: {text}")

    def _without_secrets(self, exc: Exception) -> str:
        text = str(exc)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _open(self, url: str) -> Any:
        error: ZmqAgentsError
        try:
            return _client_of(url)
        except _FAILURES as exc:  # a cluster
            error = self._error(exc)
        except (ValueError, TypeError) as exc:
            error = ConfigError(f"redis_url {self.shown_url}: {self._without_secrets(exc)}")
        raise error

    def _look_at_policy(self) -> None:
        """Warn if Redis may throw results away on its own."""
        try:
            memory = self._redis.info("memory")
        except _FAILURES:  # not allowed to this user
            return
        if "maxmemory_policy" not in memory:  # of a cluster: a dict for each node
            memory = next(iter(memory.values()), {})
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if policy != "noeviction" and not policy.startswith("volatile-"):
            log.warning(
                "Redis at %s has the maxmemory-policy %s: at its limit it drops the store's records, too; "
                "set noeviction or one of volatile-*", self.shown_url, policy,
            )  # fmt: skip


class RedisListener:
    """Tells an owner which of the tasks that it waits for are settled. For one thread."""

    def __init__(self, client: Any, channel: str) -> None:
        self._client = client
        self._channel = channel
        self._pubsub: Any = None

    def get(self, timeout_s: float) -> str | None:
        """The next settled task id; "" when messages may have been lost before; None after ``timeout_s``.

        Raises `StoreUnavailable`; the next call subscribes anew.
        """
        try:
            if self._pubsub is None:
                self._pubsub = self._client.pubsub()
                self._pubsub.subscribe(self._channel)
            message = self._pubsub.get_message(timeout=timeout_s)
        except (*_FAILURES, OSError) as exc:
            self.close()
            raise StoreUnavailable(f"the connection that listens is lost: {type(exc).__name__}") from None
        if message is None:
            return None
        if message["type"] == "subscribe":
            return ""
        return str(message["data"].decode()) if message["type"] == "message" else None

    def close(self) -> None:
        """Close the connection."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with contextlib.suppress(*_FAILURES, OSError):
                pubsub.close()


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


# ---------------------------------------------------------------- addresses


def _client_of(url: str) -> Any:
    """A client of redis-py for any form of URL. Sends nothing, but for a cluster, whose nodes must be known."""
    scheme = url.partition("://")[0]
    settings = {**_SETTINGS, "retry": _retry()}
    if scheme in ("redis", "rediss"):
        return redis.Redis.from_url(url, **settings)
    if scheme == "unix":
        del settings["socket_keepalive"]
        return redis.Redis.from_url(url, **settings)
    plain, _, kind = scheme.partition("+")
    if plain not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        forms = "redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// (rediss+... for TLS)"
        raise ValueError(f"the schemes are {forms}")
    parts = urlsplit(url)
    settings.update(redis.connection.parse_url(f"redis://?{parts.query}"))  # type: ignore[no-untyped-call]
    user_info, _, places = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    settings.update({name: unquote(text) for name, text in (("username", user), ("password", password)) if text})
    if plain == "rediss":
        settings["ssl"] = True
    nodes = [_place(place, 26379 if kind == "sentinel" else 6379) for place in places.split(",")]
    return _sentinel_client(nodes, parts.path, settings) if kind == "sentinel" else _cluster_client(nodes, settings)


def _sentinel_client(nodes: list[tuple[str, int]], path: str, settings: dict[str, Any]) -> Any:
    service, _, db = path.strip("/").partition("/")
    if not service:
        raise ValueError("redis+sentinel:// needs the name of the service: redis+sentinel://host:26379/service/0")
    own = {name: settings[name] for name in ("socket_timeout", "socket_connect_timeout")}
    own["retry"] = redis.retry.Retry(redis.backoff.NoBackoff(), 0)  # the next sentinel is asked instead
    for name in ("username", "password"):  # of the sentinels themselves
        if f"sentinel_{name}" in settings:
            own[name] = settings.pop(f"sentinel_{name}")
    own |= {name: value for name, value in settings.items() if name.startswith("ssl")}
    sentinel = redis.sentinel.Sentinel(nodes, sentinel_kwargs=own, db=int(db or 0), **settings)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service)  # type: ignore[no-untyped-call]


def _cluster_client(nodes: list[tuple[str, int]], settings: dict[str, Any]) -> Any:
    found = [redis.cluster.ClusterNode(*node) for node in nodes]  # type: ignore[no-untyped-call]
    return redis.cluster.RedisCluster(startup_nodes=found, **settings)


def _place(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no host:port")
    return parts.hostname, parts.port or default_port


def _retry() -> Any:
    backoff = getattr(redis.backoff, "ExponentialWithJitterBackoff", redis.backoff.ExponentialBackoff)
    return redis.retry.Retry(backoff(base=0.02, cap=0.2), 2, supported_errors=(redis.ConnectionError,))


def _secrets_in(url: str) -> list[str]:
    """What must not be shown of ``url``, as it is and decoded."""
    parts = urlsplit(url)
    found = [parts.netloc.rpartition("@")[0].partition(":")[2]]
    found += [text for name, texts in parse_qs(parts.query).items() if "password" in name for text in texts]
    return [secret for text in found if text for secret in {text, unquote(text)}]
