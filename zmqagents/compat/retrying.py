"""The retry strategies of AgentScope 0.1.6. The transport needs none of them: a result is waited for, not asked for."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["RetryBase", "RetryExponential", "RetryFixedTimes"]


class RetryBase(ABC):
    """How often, and after how long, a function is called again that has failed."""

    @abstractmethod
    def retry(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``func`` until it does not fail. TimeoutError: it has failed too often."""

    def __call__(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.retry(func, *args, **kwargs)

    @classmethod
    def load_dict(cls, data: Mapping[str, Any]) -> RetryBase:
        """The strategy that a dict describes: its ``type`` is "fixed" or "exponential"."""
        given = dict(data)
        kind = given.pop("type", None)
        makers: dict[Any, type[RetryBase]] = {"fixed": RetryFixedTimes, "exponential": RetryExponential}
        if kind not in makers:
            raise NotImplementedError(f"a retry strategy is of the type 'fixed' or 'exponential', not {kind!r}")
        return makers[kind](**given)

    def _after(self, pauses_s: list[float], func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        last: Exception | None = None
        for pause_s in pauses_s:
            try:
                return func(*args, **kwargs)
            except Exception as exc:  # whatever it is, as in 0.1.6
                last = exc
                time.sleep(pause_s)
        raise TimeoutError(f"it has failed {len(pauses_s)} times, at last with {last!r}") from last


class RetryFixedTimes(RetryBase):
    """So many times, with about the same ``delay`` in seconds (half of it to one and a half) after each."""

    def __init__(self, max_retries: int = 10, delay: float = 5) -> None:
        self.max_retries = max_retries
        self.delay = delay

    def retry(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `RetryBase.retry`."""
        return self._after([self.delay * _about_one() for _ in range(self.max_retries)], func, args, kwargs)


class RetryExponential(RetryBase):
    """So many times, with a delay that doubles, up to ``max_delay`` seconds."""

    def __init__(self, max_retries: int = 10, base_delay: float = 5, max_delay: float = 300) -> None:
        self.max_retries = max_retries
        self.base_delay = base_delay
        self.max_delay = max_delay

    def retry(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `RetryBase.retry`."""
        pauses_s = [
            min(self.base_delay * 2**turn * _about_one(), self.max_delay) for turn in range(self.max_retries)
        ]  # fmt: skip
        return self._after(pauses_s, func, args, kwargs)


def _about_one() -> float:
    return 0.5 + random.random()
