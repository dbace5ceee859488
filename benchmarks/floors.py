"""The two floors: what bare pyzmq and msgpack make of an echo, with one thread and with worker threads.

Run as a program it is the floor's server: ``python -m benchmarks.floors echo ipc:///path`` binds, prints the
endpoint it got, and ends when its standard input does, so it cannot outlive the benchmark.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Callable

import msgpack
import zmq

WORKERS = 4
_BACKEND = "inproc://workers"

Socket = zmq.Socket[bytes]


def echo(socket: Socket) -> None:
    """Answer on a ROUTER, or on a worker's DEALER behind one, until the context is terminated."""
    try:
        while True:
            identity, body = socket.recv_multipart()
            number, payload = msgpack.unpackb(body)
            socket.send_multipart([identity, msgpack.packb([number, payload])])
    except zmq.ContextTerminated:
        socket.close(linger=0)


def serve_echo(context: zmq.Context[Socket], frontend: Socket) -> None:
    """One thread does it all."""
    echo(frontend)


def serve_workers(context: zmq.Context[Socket], frontend: Socket) -> None:
    """`WORKERS` threads behind libzmq's own proxy, which runs in C without the interpreter lock."""
    backend = context.socket(zmq.DEALER)
    backend.bind(_BACKEND)
    for _ in range(WORKERS):
        worker = context.socket(zmq.DEALER)
        worker.connect(_BACKEND)
        threading.Thread(target=echo, args=(worker,)).start()
    try:
        zmq.proxy(frontend, backend)
    except zmq.ContextTerminated:
        frontend.close(linger=0)
        backend.close(linger=0)


SERVERS: dict[str, Callable[[zmq.Context[Socket], Socket], None]] = {"echo": serve_echo, "workers": serve_workers}


def serve(kind: str, endpoint: str) -> None:
    """Be the server of one floor until standard input ends."""
    context: zmq.Context[Socket] = zmq.Context()
    frontend = context.socket(zmq.ROUTER)
    frontend.bind(endpoint)
    print(frontend.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)

    def end_with_the_parent() -> None:
        sys.stdin.read()
        context.term()  # wakes every thread out of its receive; returns when they have closed their sockets

    threading.Thread(target=end_with_the_parent).start()
    SERVERS[kind](context, frontend)


class Floor:
    """The caller's side of one floor, and the process that serves it."""

    def __init__(self, name: str, transport: str, directory: str) -> None:
        """``transport`` is "ipc" or "tcp"; ``directory`` takes the socket of the first."""
        endpoint = f"ipc://{directory}/{name}" if transport == "ipc" else "tcp://127.0.0.1:*"
        command = [sys.executable, "-m", "benchmarks.floors", name, endpoint]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        bound = self._server.stdout.readline().strip()
        if not bound:
            raise RuntimeError(f"the {name} floor did not start: exit status {self._server.wait()}")
        self._context: zmq.Context[Socket] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(bound)

    def call(self, payload: bytes) -> bytes:
        """One round trip."""
        self._send(0, payload)
        return self._receive()

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        """``calls`` round trips with up to ``in_flight`` of them under way."""
        for number in range(min(in_flight, calls)):
            self._send(number, payload)
        for number in range(in_flight, calls):
            self._receive()
            self._send(number, payload)
        for _ in range(min(in_flight, calls)):
            self._receive()

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        self._server.communicate(timeout=10)  # closes its standard input, and so ends it

    def _send(self, number: int, payload: bytes) -> None:
        self._socket.send(msgpack.packb([number, payload]))

    def _receive(self) -> bytes:
        _, payload = msgpack.unpackb(self._socket.recv())
        assert isinstance(payload, bytes)
        return payload


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve one floor.")
    parser.add_argument("kind", choices=SERVERS)
    parser.add_argument("endpoint")
    arguments = parser.parse_args()
    serve(arguments.kind, arguments.endpoint)
