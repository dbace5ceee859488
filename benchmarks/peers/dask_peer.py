"""Dask actors: a scheduler and one worker process, over TCP on the loopback interface. Methods sleep as coroutines:
plain ones of all actors of a worker share one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from distributed import Client as DaskClient
from distributed import LocalCluster


class Echo:
    def echo(self, value: bytes) -> bytes:
        return value

    async def nap(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[str]:
    with LocalCluster(n_workers=1, threads_per_worker=4, dashboard_address=None, local_directory=directory) as cluster:
        yield cluster.scheduler_address


class Client:
    def __init__(self, address: str) -> None:
        self._client = DaskClient(address)
        self._actor = self._client.submit(Echo, actor=True, pure=False).result()

    def call(self, payload: bytes) -> bytes:
        return self._actor.echo(payload).result()

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        echo = self._actor.echo
        results = deque(echo(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().result()
            results.append(echo(payload))
        for result in results:
            result.result()

    def naps(self, seconds: float, count: int) -> None:
        for result in [self._actor.nap(seconds) for _ in range(count)]:
            result.result()

    def late(self, seconds: float) -> float:
        ended: float = self._actor.nap(seconds).result()
        return time.monotonic() - ended

    def close(self) -> None:
        self._client.close()


def connect(name: str, where: str) -> Client:
    return Client(where)
