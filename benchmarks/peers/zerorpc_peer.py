"""zerorpc: gevent, ZeroMQ and msgpack. Its methods are coroutines of one thread, so they sleep with gevent's sleep."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import gevent
import zerorpc

LONG_S = 600
LATER = {"async": True}  # a keyword of Python since 3.7


class Echo:
    def echo(self, value: bytes) -> bytes:
        return value

    def nap(self, seconds: float) -> float:
        gevent.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[str]:
    where: list[str] = []
    bound = threading.Event()

    def run() -> None:  # gevent's loop belongs to a thread; the main one reads standard input
        server = zerorpc.Server(Echo())
        [at] = server.bind(f"ipc://{directory}/zerorpc" if setup["transport"] == "ipc" else "tcp://127.0.0.1:*")
        where.append(at._endpoint if hasattr(at, "_endpoint") else _last_endpoint(server))
        bound.set()
        server.run()

    threading.Thread(target=run, daemon=True).start()
    bound.wait()
    yield where[0]


def _last_endpoint(server: Any) -> str:
    import zmq

    return str(server._events._socket.getsockopt_string(zmq.LAST_ENDPOINT))


class Client:
    def __init__(self, where: str) -> None:
        self._client = zerorpc.Client(timeout=LONG_S)
        self._client.connect(where)

    def call(self, payload: bytes) -> bytes:
        return self._client.echo(payload)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        echo = self._client.echo
        results = deque(echo(payload, **LATER) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().get()
            results.append(echo(payload, **LATER))
        for result in results:
            result.get()

    def naps(self, seconds: float, count: int) -> None:
        for result in [self._client.nap(seconds, **LATER) for _ in range(count)]:
            result.get()

    def late(self, seconds: float) -> float:
        ended: float = self._client.nap(seconds)
        return time.monotonic() - ended

    def close(self) -> None:
        self._client.close()


def connect(name: str, where: str) -> Client:
    return Client(where)
