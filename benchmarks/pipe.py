"""The floor of large values on one machine: bytes over a bare Unix socket, and nothing else.

A request is eight bytes that say how much follows and eight that say how much is wanted back; then the bytes, each way
with ``sendall`` and ``recv_into``. Memory is made once for each connection, so this is what the copies of the kernel
and the switches between two processes cost, and a value could at best be as fast.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

from .loops import NotOffered

HEAD = struct.Struct("<QQ")
MOST_BYTES = 1 << 26


def read_into(connection: socket.socket, view: memoryview) -> None:
    """Fill ``view``. Raises EOFError at the end of the connection."""
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


def answer(connection: socket.socket) -> None:
    """Serve one client until it goes."""
    memory, head = memoryview(bytearray(MOST_BYTES)), memoryview(bytearray(HEAD.size))
    with connection, contextlib.suppress(EOFError, ConnectionError):
        while True:
            read_into(connection, head)
            size, wanted = HEAD.unpack(head)
            read_into(connection, memory[:size])
            connection.sendall(memory[:wanted])


@contextlib.contextmanager
def serve(name: str, setup: dict[str, Any], directory: str) -> Iterator[str]:
    """Be the server; gives the path of its socket."""
    path = f"{directory}/pipe"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


class Pipe:
    """The caller's side."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._memory = memoryview(bytearray(MOST_BYTES))

    def call(self, payload: Any) -> Any:
        """The answer is a view of memory that the next call fills again."""
        return self._ask(payload, len(payload))

    def take(self, payload: Any) -> int:
        self._ask(payload, HEAD.size)
        return len(payload)

    def give(self, size: int) -> Any:
        return self._ask(b"", size)

    def pipeline(self, payload: bytes, calls: int, in_flight: int) -> None:
        raise NotOffered("large values only")

    def naps(self, seconds: float, count: int) -> None:
        raise NotOffered("large values only")

    def late(self, seconds: float) -> float:
        raise NotOffered("large values only")

    def close(self) -> None:
        self._socket.close()

    def _ask(self, payload: Any, wanted: int) -> memoryview:
        self._socket.sendall(HEAD.pack(len(payload), wanted))
        self._socket.sendall(payload)
        view = self._memory[:wanted]
        read_into(self._socket, view)
        return view


def connect(name: str, where: str) -> Pipe:
    return Pipe(where)
