"""The floors: what bare pyzmq and msgpack make of an echo. Both sides pack and unpack ``[number, payload]``.

echo
    one thread receives on a ROUTER and answers on it.
workers
    the guide's multithreaded server: `zmq.proxy` in C between a ROUTER and a DEALER, behind it four Python threads
    with a REP socket each. REP does the envelope in C, and a caller is a DEALER that sends the empty delimiter.
tight
    the same, but the caller sends and receives frame by frame instead of with ``send_multipart``. Those few µs are half
    of what a pipelined call costs (70 → 150 k calls/s here), so this is shown beside the floor that is judged by,
    which makes the calls that pyzmq's manual does.
raw
    for large payloads, the echo without msgpack: frames alone, sent without copying.

Transports: ``ipc``, ``tcp`` (loopback), ``curve`` (the same encrypted, each side with a key pair; no list of keys).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import zmq

from .loops import NotOffered

WORKERS = 4
_BACKEND = "inproc://workers"

Socket = zmq.Socket[bytes]


# ---------------------------------------------------------------- servers


def echo(socket: Socket) -> None:
    """Answer on a ROUTER."""
    while True:
        identity, body = socket.recv_multipart()
        number, payload = msgpack.unpackb(body)
        socket.send_multipart([identity, msgpack.packb([number, payload])])


def reply(socket: Socket) -> None:
    """Answer on a worker's REP."""
    while True:
        number, payload = msgpack.unpackb(socket.recv())
        socket.send(msgpack.packb([number, payload]))


def raw(socket: Socket) -> None:
    """Send back the frames as they are."""
    while True:
        socket.send_multipart(socket.recv_multipart(copy=False), copy=False)


def until_terminated(work: Callable[[Socket], None], socket: Socket) -> None:
    """Run ``work`` until the context is terminated, then close its socket."""
    try:
        work(socket)
    except zmq.ContextTerminated:
        socket.close(linger=0)


def proxy(frontend: Socket) -> None:
    """Serve with worker threads behind libzmq's own proxy, which runs without the interpreter lock."""
    context: zmq.Context[Socket] = frontend.context
    backend = context.socket(zmq.DEALER)
    backend.bind(_BACKEND)
    for _ in range(WORKERS):
        worker = context.socket(zmq.REP)
        worker.connect(_BACKEND)
        threading.Thread(target=until_terminated, args=(reply, worker)).start()
    try:
        zmq.proxy(frontend, backend)
    finally:
        backend.close(linger=0)


SERVERS: dict[str, Callable[[Socket], None]] = {
    "echo": echo, "workers": proxy, "tight": proxy, "raw": raw,
}  # fmt: skip


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[dict[str, Any]]:
    """Be the server of one floor; gives its endpoint and, for ``curve``, its public key."""
    context: zmq.Context[Socket] = zmq.Context()
    frontend = context.socket(zmq.ROUTER)
    transport, public = setup["transport"], None
    if transport == "curve":
        key, secret = zmq.curve_keypair()
        frontend.curve_server, frontend.curve_secretkey, public = True, secret, key.decode()
    frontend.bind(f"ipc://{directory}/floor" if transport == "ipc" else "tcp://127.0.0.1:*")
    endpoint = frontend.getsockopt_string(zmq.LAST_ENDPOINT)
    thread = threading.Thread(target=until_terminated, args=(SERVERS[name], frontend))
    thread.start()
    try:
        yield {"endpoint": endpoint, "public": public}
    finally:
        context.term()  # wakes every thread out of its receive; returns when they have closed their sockets
        thread.join()


# ---------------------------------------------------------------- clients


class Floor:
    """The caller's side: a DEALER."""

    def __init__(self, where: dict[str, Any]) -> None:
        self._context: zmq.Context[Socket] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        if where["public"]:
            self._socket.curve_publickey, self._socket.curve_secretkey = zmq.curve_keypair()
            self._socket.curve_serverkey = where["public"].encode()
        self._socket.connect(where["endpoint"])

    def call(self, payload: Any) -> Any:
        self._send(0, payload)
        return self._receive()

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        for number in range(min(in_flight, calls)):
            self._send(number, payload)
        for number in range(in_flight, calls):
            self._receive()
            self._send(number, payload)
        for _ in range(min(in_flight, calls)):
            self._receive()

    def take(self, payload: bytes) -> int:
        raise NotOffered("an echo only")

    def give(self, size: int) -> bytes:
        raise NotOffered("an echo only")

    def naps(self, seconds: float, count: int) -> None:
        raise NotOffered("an echo only")

    def late(self, seconds: float) -> float:
        raise NotOffered("an echo only")

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _send(self, number: int, payload: Any) -> None:
        self._socket.send(msgpack.packb([number, payload]))

    def _receive(self) -> Any:
        _, payload = msgpack.unpackb(self._socket.recv())
        return payload


class DelimitedFloor(Floor):
    """A caller of REP workers: an empty frame before the body."""

    def _send(self, number: int, payload: Any) -> None:
        self._socket.send_multipart([b"", msgpack.packb([number, payload])])

    def _receive(self) -> Any:
        _, body = self._socket.recv_multipart()
        _, payload = msgpack.unpackb(body)
        return payload


class TightFloor(Floor):
    """The same with fewer lines of Python below it."""

    def _send(self, number: int, payload: Any) -> None:
        self._socket.send(b"", zmq.SNDMORE)
        super()._send(number, payload)

    def _receive(self) -> Any:
        self._socket.recv()
        return super()._receive()


class RawFloor(Floor):
    """Frames alone."""

    def _send(self, number: int, payload: Any) -> None:
        self._socket.send(payload, copy=False)

    def _receive(self) -> Any:
        return self._socket.recv()


def connect(name: str, where: dict[str, Any]) -> Floor:
    return {"workers": DelimitedFloor, "tight": TightFloor, "raw": RawFloor}.get(name, Floor)(where)
