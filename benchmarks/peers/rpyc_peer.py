"""RPyC with its threaded server, over a Unix socket where the transport is ipc. Its compression is off: it is meant
for other data and slower networks, and makes the random bytes that are sent here ten times slower.

Where the transport is curve, TLS takes its place, and both sides show a certificate.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import rpyc
from rpyc.core.channel import Channel
from rpyc.utils.authenticators import SSLAuthenticator
from rpyc.utils.server import ThreadedServer

from ..loops import NotOffered
from . import tls

READY: dict[int, bytes] = {}
CONFIG = {"sync_request_timeout": None}
Channel.COMPRESSION_THRESHOLD = 1 << 40


class Echo(rpyc.Service):
    def exposed_echo(self, value: bytes) -> bytes:
        return value

    def exposed_take(self, value: bytes) -> int:
        return len(value)

    def exposed_give(self, size: int) -> bytes:
        if size not in READY:
            READY[size] = os.urandom(size)
        return READY[size]

    def exposed_nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[Any]:
    path = f"{directory}/rpyc"
    at = {"socket_path": path} if setup["transport"] == "ipc" else {"hostname": "127.0.0.1", "port": 0}
    files = tls.make(directory) if setup["transport"] == "curve" else None
    door = None if files is None else SSLAuthenticator(files.key, files.certificate, files.certificate)
    server = ThreadedServer(Echo, protocol_config=CONFIG, authenticator=door, **at)
    thread = threading.Thread(target=server.start, daemon=True)
    thread.start()
    yield path if setup["transport"] == "ipc" else server.port, files
    server.close()
    thread.join()


class Client:
    def __init__(self, where: Any) -> None:
        self._where, self._files = where
        self._connection = self._connect()
        self._echo, self._take, self._give = (
            self._connection.root.echo,
            self._connection.root.take,
            self._connection.root.give,
        )

    def _connect(self) -> Any:
        if isinstance(self._where, str):
            return rpyc.utils.factory.unix_connect(self._where, config=CONFIG)
        if self._files is not None:
            certificate, key = self._files
            return rpyc.ssl_connect("127.0.0.1", self._where, key, certificate, certificate, config=CONFIG)
        return rpyc.connect("127.0.0.1", self._where, config=CONFIG)

    def call(self, payload: Any) -> bytes:
        return self._echo(_by_value(payload))

    def take(self, payload: Any) -> int:
        return self._take(_by_value(payload))

    def give(self, size: int) -> bytes:
        return self._give(size)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        echo = rpyc.async_(self._echo)
        results = deque(echo(payload) for _ in range(min(in_flight, calls)))
        for _ in range(in_flight, calls):
            results.popleft().wait()
            results.append(echo(payload))
        for result in results:
            result.wait()

    def naps(self, seconds: float, count: int) -> None:
        """A connection has one thread in the server, so each nap has a connection."""
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(contextlib.closing(self._connect())) for _ in range(count)]
            for result in [rpyc.async_(connection.root.nap)(seconds) for connection in connections]:
                result.wait()

    def late(self, seconds: float) -> float:
        ended: float = self._connection.root.nap(seconds)
        return time.monotonic() - ended

    def close(self) -> None:
        self._connection.close()


def _by_value(payload: Any) -> bytes:
    """Anything but bytes would go as a reference, and its items one by one."""
    if not isinstance(payload, bytes):
        raise NotOffered("bytes only")
    return payload


def connect(name: str, where: Any) -> Client:
    return Client(where)
