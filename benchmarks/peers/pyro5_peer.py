"""Pyro5 with its msgpack serializer, over a Unix socket where the transport is ipc. It has no asynchronous calls.

Where the transport is curve, TLS takes its place, and both sides show a certificate.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import Pyro5.api

from ..loops import NotOffered
from . import tls

Pyro5.config.SERIALIZER = "msgpack"
Pyro5.config.THREADPOOL_SIZE = 250  # one thread for each connection, 80 if nothing is said
READY: dict[int, bytes] = {}


@Pyro5.api.expose
class Echo:
    def echo(self, value: bytes) -> bytes:
        return value

    def take(self, value: bytes) -> int:
        return len(value)

    def give(self, size: int) -> bytes:
        if size not in READY:
            READY[size] = os.urandom(size)
        return READY[size]

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return time.monotonic()


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[Any]:
    files = tls.make(directory) if setup["transport"] == "curve" else None
    encrypt(files)
    at = {"unixsocket": f"{directory}/pyro"} if setup["transport"] == "ipc" else {"host": "127.0.0.1"}
    with Pyro5.api.Daemon(**at) as daemon:
        uri = daemon.register(Echo())
        thread = threading.Thread(target=daemon.requestLoop, daemon=True)
        thread.start()
        yield str(uri), files
        daemon.shutdown()
        thread.join()


def encrypt(files: Any) -> None:
    """Use TLS, with the certificate and the key in ``files`` on both sides; None: do not."""
    if files is None:
        return
    config = Pyro5.config
    config.SSL = config.SSL_REQUIRECLIENTCERT = True
    config.SSL_SERVERCERT, config.SSL_SERVERKEY = config.SSL_CLIENTCERT, config.SSL_CLIENTKEY = files
    config.SSL_CACERTS = files[0]


class Client:
    def __init__(self, where: Any) -> None:
        self._uri, files = where
        encrypt(files)
        self._proxy = Pyro5.api.Proxy(self._uri)

    def call(self, payload: Any) -> Any:
        if not isinstance(payload, (bytes, bytearray, dict)):
            raise NotOffered("no arrays")
        return self._proxy.echo(payload)

    def take(self, payload: Any) -> int:
        if not isinstance(payload, (bytes, bytearray)):
            raise NotOffered("bytes only")
        return self._proxy.take(payload)

    def give(self, size: int) -> bytes:
        return self._proxy.give(size)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        raise NotOffered("a proxy has one call under way; a batch is one message")

    def naps(self, seconds: float, count: int) -> None:
        def nap(_: int) -> None:
            with Pyro5.api.Proxy(self._uri) as proxy:
                proxy.nap(seconds)

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(nap, range(count)))

    def late(self, seconds: float) -> float:
        ended: float = self._proxy.nap(seconds)
        return time.monotonic() - ended

    def close(self) -> None:
        self._proxy._pyroRelease()


def connect(name: str, where: Any) -> Client:
    return Client(where)
