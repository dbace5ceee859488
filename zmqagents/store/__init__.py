"""Where finished results wait for those who ask: see `store.base` for the contract.

`open_store` is the only place that knows which backends there are.
"""

from __future__ import annotations

import time
from typing import Literal

from ..errors import ConfigError
from .base import Clock, Found, FutureStore, State, StoreLimits, StoreStats
from .memory import MemoryStore

__all__ = ["Found", "FutureStore", "State", "StoreLimits", "StoreStats", "open_store"]


def open_store(
    kind: Literal["local", "redis"], limits: StoreLimits, *, url: str | None = None, clock: Clock = time.monotonic
) -> FutureStore:
    """A store of ``kind``, ready for use; ``url`` is for "redis" alone, ``clock`` (seconds) for "local".

    Raises `ConfigError` for a kind that this build does not have.
    """
    if kind == "local":
        return MemoryStore(limits, clock=clock)
    if kind == "redis":
        raise ConfigError("pool_type 'redis': this build has only the local store; say pool_type='local'")
    raise ConfigError(f"pool_type must be 'local' or 'redis', not {kind!r}")
