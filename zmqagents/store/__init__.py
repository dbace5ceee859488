"""The future store: finished results, until they are fetched or expire. See `store.base` for the contract.

`open_store` is the only place that knows which backends there are.

May import wire.messages, codec, config and errors.
"""

from __future__ import annotations

import time
from typing import Literal

from ..errors import ConfigError
from .base import Clock, Entry, Found, FutureStore, SharedStore, State, StoreLimits, StoreStats

__all__ = ["Entry", "Found", "FutureStore", "SharedStore", "State", "StoreLimits", "StoreStats", "open_store"]


def open_store(
    kind: Literal["local", "redis"], limits: StoreLimits, *, url: str | None = None, namespace: str = "zmqagents",
    owner: str = "", clock: Clock = time.monotonic,
) -> FutureStore:  # fmt: skip
    """A store of ``kind``, ready for use.

    For "redis": ``url``, ``namespace`` and ``owner`` (see `store.redis`); for "local": ``clock``, in seconds. Raises
    `ConfigError` for a kind that there is not or a wrong URL, `StoreUnavailable` if Redis does not answer.
    """
    if kind == "local":
        from .memory import MemoryStore

        return MemoryStore(limits, clock=clock)
    if kind == "redis":
        from .redis import RedisStore  # 60 ms that a host without Redis need not pay

        return RedisStore(limits, url or "redis://localhost:6379", namespace=namespace, owner=owner)
    raise ConfigError(f"pool_type must be 'local' or 'redis', not {kind!r}")
