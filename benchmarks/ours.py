"""zmqagents as a subject: through its public API, with the settings that a user gets who says nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func

from .cases import Options


@lru_cache(maxsize=8)
def ready(size: int) -> bytes:
    """What `Echo.give` gives, made once."""
    return os.urandom(size)


class Echo(AgentBase):
    """Gives back what it gets."""

    def echo(self, value: bytes) -> bytes:
        return value

    @async_func
    def aecho(self, value: bytes) -> bytes:
        return value

    def take(self, value: Any) -> int:
        return len(value)

    def give(self, size: int) -> bytes:
        return ready(size)


class Napper(AgentBase):
    """Sleeps in a worker thread."""

    @async_func
    def nap(self, seconds: float) -> float:
        """The moment of its end, on the clock that all processes of a machine share."""
        time.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def host(options: Options, *classes: type, **more: Any) -> Iterator[tuple[RpcAgentServerLauncher, RpcClient]]:
    """A host with the store and transport of ``options``, and a client of it."""
    if options.store == "redis":
        more |= {"pool_type": "redis", "redis_url": options.redis_url}
    if options.transport == "tcp":
        more |= {"insecure": True, "local_mode": True}
    with (
        RpcAgentServerLauncher(custom_agent_classes=list(classes), **more) as server,
        client(server.host, server.port, options.transport) as connected,
    ):
        yield server, connected


@contextlib.contextmanager
def own_keys() -> Iterator[None]:
    """A key store for this run: a benchmark has no need of the user's own."""
    with tempfile.TemporaryDirectory(prefix="zb") as directory:
        is_set = "ZMQAGENTS_KEYS" in os.environ
        os.environ.setdefault("ZMQAGENTS_KEYS", directory)
        try:
            yield
        finally:
            if not is_set:
                del os.environ["ZMQAGENTS_KEYS"]


def client(host: str, port: int | None, transport: str) -> RpcClient:
    """On ``ipc`` what a client on the same machine takes by itself; TCP is encrypted unless the host is insecure."""
    override: Literal["tcp"] | None = None if transport == "ipc" else "tcp"
    return RpcClient(host, port, transport=override)


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[dict[str, Any]]:
    with host(Options(**setup), Echo, Napper) as (server, _):
        yield {"host": server.host, "port": server.port, "transport": setup["transport"]}


class Ours:
    """A client with an echo agent of its own; those that sleep are made when they are needed."""

    def __init__(self, where: dict[str, Any]) -> None:
        self._client = client(**where)
        self._agent = self._client.create_agent(Echo)
        self._nappers: list[Any] = []

    def call(self, payload: Any) -> Any:
        return self._agent.echo(payload)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        """Each result is collected, the oldest first."""
        aecho = self._agent.aecho
        results = deque(aecho(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().result()
            results.append(aecho(payload))
        for result in results:
            result.result()

    def take(self, payload: Any) -> Any:
        return self._agent.take(payload)

    def give(self, size: int) -> Any:
        return self._agent.give(size)

    def naps(self, seconds: float, count: int) -> None:
        for result in [napper.nap(seconds) for napper in self._first_nappers(count)]:
            result.result()

    def late(self, seconds: float) -> float:
        [napper] = self._first_nappers(1)
        ended: float = napper.nap(seconds).result()
        return time.monotonic() - ended

    def close(self) -> None:
        self._client.close()

    def _first_nappers(self, count: int) -> list[Any]:
        while len(self._nappers) < count:
            self._nappers.append(self._client.create_agent(Napper))
        return self._nappers[:count]


def connect(name: str, where: dict[str, Any]) -> Ours:
    return Ours(where)
