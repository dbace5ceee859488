"""Xoscar: asyncio actors, over TCP on the loopback interface. Its methods are coroutines, so they sleep as such."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import xoscar


class Echo(xoscar.Actor):
    async def echo(self, value: bytes) -> bytes:
        return value

    async def nap(self, seconds: float) -> AsyncIterator[Any]:
        yield asyncio.sleep(seconds)  # the library's own way to let other calls of the actor run meanwhile
        raise xoscar.Return(time.monotonic())


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def main() -> None:
        pool = await xoscar.create_actor_pool(address, n_process=0)
        await xoscar.create_actor(Echo, address=address, uid="echo")
        ready.set()
        await pool.join()

    threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True).start()
    ready.wait(30)
    yield address


class Client:
    def __init__(self, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._echo = self._run(xoscar.actor_ref(address, "echo"))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)

    def call(self, payload: bytes) -> bytes:
        return self._run(self._echo.echo(payload))

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        async def chain(count: int) -> None:
            for _ in range(count):
                await self._echo.echo(payload)

        async def main() -> None:
            share = [calls // in_flight + (number < calls % in_flight) for number in range(in_flight)]
            await asyncio.gather(*map(chain, share))

        self._run(main())

    def naps(self, seconds: float, count: int) -> None:
        async def main() -> None:
            await asyncio.gather(*(self._echo.nap(seconds) for _ in range(count)))

        self._run(main())

    def late(self, seconds: float) -> float:
        ended: float = self._run(self._echo.nap(seconds))
        return time.monotonic() - ended

    def close(self) -> None:
        self._run(xoscar.stop_actor_pools()) if hasattr(xoscar, "stop_actor_pools") else None


def connect(name: str, where: str) -> Client:
    return Client(where)
