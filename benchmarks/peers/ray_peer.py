"""Ray actors: a node of its own, each client with an actor of its own, which is a process. Payloads go through its
object store from 100 KB on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # server and clients have to agree

import ray

NAMESPACE = "benchmark"


@ray.remote(num_cpus=0)
class Echo:
    def echo(self, value: bytes) -> bytes:
        return value


@ray.remote(num_cpus=0, max_concurrency=1000)
class Napper:
    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[str]:
    context = ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=512 << 20, _temp_dir=directory, log_to_driver=False,
        namespace=NAMESPACE,
    )  # fmt: skip
    yield context.address_info["address"]
    ray.shutdown()


class Client:
    def __init__(self, address: str) -> None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False)
        self._echo: Any = Echo.remote()  # type: ignore[attr-defined]
        self._napper: Any = Napper.remote()  # type: ignore[attr-defined]
        ray.get(self._echo.echo.remote(b""))

    def call(self, payload: bytes) -> bytes:
        return ray.get(self._echo.echo.remote(payload))

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        echo = self._echo.echo
        results = deque(echo.remote(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            ray.get(results.popleft())
            results.append(echo.remote(payload))
        ray.get(list(results))

    def naps(self, seconds: float, count: int) -> None:
        ray.get([self._napper.nap.remote(seconds) for _ in range(count)])

    def late(self, seconds: float) -> float:
        ended: float = ray.get(self._napper.nap.remote(seconds))
        return time.monotonic() - ended

    def close(self) -> None:
        ray.shutdown()


def connect(name: str, where: str) -> Client:
    return Client(where)
