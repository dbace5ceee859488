"""The result pools of AgentScope 0.1.6, for programs that use them by themselves. Hosts of this package do not."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from typing import Protocol

__all__ = ["AsyncResultPool", "LocalPool", "RedisPool", "get_pool"]

TASK_QUEUE_PREFIX = "as_task_"


class AsyncResultPool(Protocol):
    """Holds values that come later than their keys."""

    def prepare(self) -> int:
        """A new key."""

    def set(self, key: int, value: bytes) -> None:
        """Put a value under its key."""

    def get(self, key: int, timeout: float = 5) -> bytes:
        """The value of ``key``, once it is there. TimeoutError: not within ``timeout`` seconds, or it is gone."""


class LocalPool:
    """A pool in this process. Any thread may use it.

    ``max_expire``: seconds from its arrival for which a value is kept. Of more than ``max_len`` values the oldest goes;
    a key whose value has not come yet never does.
    """

    def __init__(self, max_len: int, max_expire: float) -> None:
        self._max_len = max_len
        self._max_expire_s = max_expire
        self._keys = itertools.count(1)
        self._changed = threading.Condition()
        self._values: OrderedDict[int, tuple[float, bytes]] = OrderedDict()

    def prepare(self) -> int:
        """A new key."""
        return next(self._keys)

    def set(self, key: int, value: bytes) -> None:
        """Put a value under its key."""
        now = time.monotonic()
        with self._changed:
            self._values[key] = now, value
            self._values.move_to_end(key)
            while self._values and (len(self._values) > self._max_len or self._is_old(next(iter(self._values)), now)):
                self._values.popitem(last=False)
            self._changed.notify_all()

    def get(self, key: int, timeout: float = 5) -> bytes:
        """The value of ``key``, once it is there. TimeoutError: not within ``timeout`` seconds, or it is gone."""
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout) or self._is_old(key, time.monotonic()):
                raise TimeoutError(f"there is no value for the key {key}")
            return self._values[key][1]

    def _is_old(self, key: int, now: float) -> bool:
        return self._values[key][0] + self._max_expire_s < now


class RedisPool:
    """A pool in a Redis, which several processes share. ConnectionError: none answers at ``url``."""

    INCR_KEY = "as_obj_id"

    def __init__(self, url: str, max_expire: float) -> None:
        from ..store.redis_client import FAILURES, client_of

        self._max_expire_s = int(max_expire)
        self._redis = client_of(url, {"socket_timeout": None})  # it may wait for longer
        try:
            self._redis.ping()
        except FAILURES as exc:
            raise ConnectionError(f"no Redis answers at {url.rpartition('@')[2]}: {exc}") from exc

    def prepare(self) -> int:
        """A new key."""
        return int(self._redis.incr(self.INCR_KEY))

    def set(self, key: int, value: bytes) -> None:
        """Put a value under its key."""
        queue = f"{TASK_QUEUE_PREFIX}{key}"
        with self._redis.pipeline() as pipeline:
            pipeline.set(str(key), value, ex=self._max_expire_s)
            pipeline.rpush(queue, key)
            pipeline.expire(queue, self._max_expire_s)
            pipeline.execute()

    def get(self, key: int, timeout: float = 5) -> bytes:
        """The value of ``key``, once it is there. TimeoutError: not within ``timeout`` seconds, or it is gone."""
        queue = f"{TASK_QUEUE_PREFIX}{key}"
        value = self._redis.get(str(key))
        if value is None and self._redis.blpop([queue], timeout=timeout) is not None:
            self._redis.rpush(queue, key)  # for whoever else waits
            value = self._redis.get(str(key))
        if value is None:
            raise TimeoutError(f"there is no value for the key {key}")
        return value if isinstance(value, bytes) else str(value).encode()


def get_pool(
    pool_type: str = "local", max_expire: float = 7200, max_len: int = 8192, redis_url: str = "redis://localhost:6379"
) -> AsyncResultPool:
    """A pool in this process, or with ``pool_type`` "redis" in a Redis. ConnectionError: none answers there."""
    return RedisPool(redis_url, max_expire) if pool_type == "redis" else LocalPool(max_len, max_expire)
