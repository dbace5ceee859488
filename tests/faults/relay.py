"""A TCP relay between a client and a host, whose connections a test can cut, as a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Relay:
    """Listens on ``port`` and passes on to ``127.0.0.1:target``."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._client_ends: list[socket.socket] = []
        self._host_ends: list[socket.socket] = []
        self._open = threading.Event()  # clear: new connections are refused
        self._open.set()
        self._replies = threading.Event()  # clear: what the host says is held back
        self._replies.set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for end in (self._listener, *self._client_ends, *self._host_ends):
            end.close()

    def cut(self, *, host_too: bool = True) -> None:
        """End all connections; ``host_too`` False: the host does not notice. Replies held back are lost."""
        with self._lock:
            for end in self._client_ends + (self._host_ends if host_too else []):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._replies.set()

    def hold_replies(self) -> None:
        """From now on nothing that the host says arrives on the connections there are."""
        self._replies.clear()

    def refuse(self) -> None:
        """New connections are closed at once."""
        self._open.clear()

    def accept(self) -> None:
        """The reverse of `refuse`."""
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                client_end, _ = self._listener.accept()
            except OSError:
                return
            if not self._open.is_set():
                client_end.close()
                continue
            host_end = socket.create_connection(("127.0.0.1", self._target))
            with self._lock:
                self._client_ends.append(client_end)
                self._host_ends.append(host_end)
            for source, sink in ((client_end, host_end), (host_end, client_end)):
                gate = self._replies if source is host_end else None
                thread = threading.Thread(target=_pump, args=(source, sink, gate))
                self._threads.append(thread)
                thread.start()


def _pump(source: socket.socket, sink: socket.socket, gate: threading.Event | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            if gate is not None:
                gate.wait()
            sink.sendall(data)
