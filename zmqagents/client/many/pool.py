"""`Pool`: several agents of one class that are used as one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Generic, TypeVar

from ... import errors
from ..proxy import AgentProxy
from ..result import AsyncResult

__all__ = ["Pool", "PoolMethod"]

T = TypeVar("T")
AHEAD = 2  # calls of `map` that each replica has at most: one that runs, and the next


class Pool(Generic[T]):
    """Replicas of one agent: each call goes to the one that has the fewest open calls of this pool. Any thread.

    `RpcClient.pool` makes it. Its methods are those of the agents and give an `AsyncResult` each, at once; one that
    gives a stream is a ConfigError. `map` of a method goes through many items. The replicas share nothing. ``with`` it,
    or `close`, deletes them.
    """

    def __init__(self, agents: Sequence[AgentProxy]) -> None:
        self._agents = tuple(agents)
        self._open = [0] * len(self._agents)
        self._lock = threading.Lock()

    @property
    def agents(self) -> tuple[T, ...]:
        """The proxies of the replicas."""
        return self._agents  # type: ignore[return-value]  # a proxy is typed as its agent

    def __getattr__(self, name: str) -> PoolMethod:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private: the agents of {self!r} do not offer it")
        if self._agents[0].__zmqagents_method__(name) is None:
            offered = dir(self._agents[0])
            near = errors.did_you_mean(name, offered)
            raise errors.UnknownMethod(f"{self!r} has no method {name!r}; it has: {', '.join(offered)}{near}")
        return PoolMethod(self, name)

    def __len__(self) -> int:
        return len(self._agents)

    def __enter__(self) -> Pool[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __dir__(self) -> list[str]:
        return sorted({"agents", "close", *dir(self._agents[0])} - {"agent_id", "__call__"})

    def __repr__(self) -> str:
        return f"<Pool of {len(self._agents)}: {self._agents[0]!r} ...>"

    def close(self) -> None:
        """Delete the replicas. Their running calls end, as `RpcClient.delete_agent` says.

        All of them, also if that fails for some; then this raises the first of these errors.
        """
        failed: list[Exception] = []
        for agent in self._agents:
            try:
                agent.__exit__(None, None, None)
            except Exception as exc:
                failed.append(exc)
        if failed:
            raise failed[0]

    def __zmqagents_call__(self, name: str, args: Any, kwargs: Any) -> AsyncResult[Any]:
        with self._lock:
            index = min(range(len(self._open)), key=self._open.__getitem__)
            self._open[index] += 1
        try:
            method = getattr(self._agents[index], name)
            if method.returns == "stream":
                raise errors.ConfigError(f"{name} gives a stream, which no pool shares out: call it of one of `agents`")
            result: AsyncResult[Any] = method.aio(*args, **kwargs)
        except BaseException:
            self._ended(index)
            raise
        result.add_done_callback(lambda _: self._ended(index))
        return result

    def _ended(self, index: int) -> None:
        with self._lock:
            self._open[index] -= 1


class PoolMethod:
    """One method of a `Pool`. A call gives an `AsyncResult`."""

    def __init__(self, pool: Pool[Any], name: str) -> None:
        self._pool = pool
        self.__name__ = self.__qualname__ = name

    def __call__(self, /, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        """Call the method on the replica that has the fewest open calls."""
        return self._pool.__zmqagents_call__(self.__name__, args, kwargs)

    def map(self, *iterables: Iterable[Any]) -> Generator[Any, None, None]:
        """The values for all items, in their order, as the function ``map`` gives them: one argument of each iterable.

        Items are taken as replicas become free, so an endless iterable is fine: two calls for each replica are under
        way. Raises what a call raises, at its place; the calls that are under way are cancelled then, and when the
        iterator is closed.
        """
        under_way: deque[AsyncResult[Any]] = deque()
        try:
            for args in zip(*iterables, strict=False):
                if len(under_way) == AHEAD * len(self._pool):
                    yield under_way.popleft().result()
                under_way.append(self(*args))
            while under_way:
                yield under_way.popleft().result()
        finally:
            for result in under_way:
                result.cancel()

    def __repr__(self) -> str:
        return f"<PoolMethod {self.__name__} of {self._pool!r}>"
