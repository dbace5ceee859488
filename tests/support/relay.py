"""A relay between clients and a host, over TCP or Unix sockets, which does to their connections what networks do.

One thread moves the bytes of all connections, so what a test asks for takes effect at one moment, in the thread of the
caller or between two moves, and the end is clean. Each direction holds at most `BUFFER_BYTES`: a receiver that does not
read slows the sender down, as on a wire.

    cut          an orderly end (FIN) of both sides, or of the clients' sides alone: the host does not notice
    reset        an abrupt end (RST), what was on its way is lost
    cut_after    a reset once so many more bytes have passed: in the middle of a frame
    half_close   one direction ends and the other goes on
    hold, let_go nothing passes, and nobody is told: a cable that is out
    hold_replies nothing passes that the host says, until the connections are cut
    delay_s      bytes pass so much later
    refuse       new connections are closed at once, until `accept`: a host that is not there
"""

from __future__ import annotations

import contextlib
import math
import random
import selectors
import socket
import struct
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from zmqagents import AsyncRpcClient, RpcClient
from zmqagents.connection.connection import connect
from zmqagents.connection.target import Target

BUFFER_BYTES = 262_144
_TURN_S = 0.05
_ABRUPT = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close() sends RST


class _Pipe:
    """One direction of a connection: what was read from ``source`` and is due, at a time, to be written to ``sink``."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.held_bytes = 0
        self.ended = False  # the source sends no more
        self.shut = False  # and the sink was told


class _Pair:
    """One connection through the relay."""

    def __init__(self, client: socket.socket, host: socket.socket) -> None:
        self.client = client
        self.host = host
        self.up = _Pipe(client, host)
        self.down = _Pipe(host, client)
        self.bytes_left: int | None = None  # until it is reset

    def pipes(self) -> tuple[_Pipe, _Pipe]:
        return self.up, self.down


class Relay:
    """Passes on to ``target``: a port of this machine, or the path of a Unix socket, and listens on one of its kind.

    Any thread may call; it is a context manager.
    """

    def __init__(self, target: int | str) -> None:
        self.delay_s = 0.0
        self.connections = 0  # that there were
        self.bytes_passed = 0
        self._target = target
        self._held = self._replies_held = False
        self._to_refuse: float = 0
        self._pairs: list[_Pair] = []
        self._left_open: list[socket.socket] = []  # ends at the host, of connections that were cut without its notice
        self._lock = threading.RLock()
        self._directory = tempfile.TemporaryDirectory(dir="/tmp", prefix="za")
        if isinstance(target, int):
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        else:
            self._listener = socket.create_server(f"{self._directory.name}/relay", family=socket.AF_UNIX, backlog=256)
        self._listener.setblocking(False)
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_w.setblocking(False)
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="relay")
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._wake()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.cut()
        for end in (self._listener, self._wake_r, self._wake_w):
            end.close()
        self._directory.cleanup()

    # ------------------------------------------------------------ what a test does to the connections

    def cut(self, *, host_too: bool = True) -> None:
        """End all connections; ``host_too`` False: the host's ends stay open, and silent. What is held back is lost."""
        with self._lock:
            self._replies_held = False
            for pair in self._pairs:
                pair.client.close()
                if host_too:
                    pair.host.close()
            self._left_open += [] if host_too else [pair.host for pair in self._pairs]
            self._pairs.clear()
            if host_too:
                for end in self._left_open:
                    end.close()
                self._left_open.clear()
        self._wake()

    def reset(self) -> None:
        """End all connections abruptly, on both sides."""
        with self._lock:
            for pair in self._pairs:
                _reset(pair)
            self._pairs.clear()
        self._wake()

    def cut_after(self, size: int) -> None:
        """Reset each connection that is open now once ``size`` more bytes have passed, in both directions together."""
        with self._lock:
            for pair in self._pairs:
                pair.bytes_left = size

    def half_close(self, *, towards_host: bool) -> None:
        """One side hears that there is nothing more to come, and may go on sending."""
        with self._lock:
            for pair in self._pairs:
                (pair.up if towards_host else pair.down).ended = True
        self._wake()

    def hold(self) -> None:
        """Let nothing pass, until `let_go`."""
        self._held = True

    def let_go(self) -> None:
        self._held = False
        self._wake()

    def hold_replies(self) -> None:
        """From now on nothing that the host says arrives on the connections there are."""
        with self._lock:
            self._replies_held = True

    def refuse(self, times: float = math.inf) -> None:
        """New connections, or so many of them, are closed at once."""
        self._to_refuse = times

    def accept(self) -> None:
        """The reverse of `refuse`."""
        self._to_refuse = 0

    @contextlib.contextmanager
    def trouble(self, seed: int, every_s: float, *kinds: str) -> Iterator[list[str]]:
        """During the block something happens to the connections again and again; what, is in the list.

        ``kinds`` are names of `TROUBLES`, by default all. The gaps are random, ``every_s`` seconds on average.
        """
        source, stop, done = random.Random(seed), threading.Event(), []

        def make() -> None:
            while not stop.wait(source.uniform(0.2, 1.8) * every_s):
                name = source.choice(kinds or tuple(TROUBLES))
                done.append(name)
                TROUBLES[name](self, source)
                if name in ("hold", "delay"):
                    stop.wait(source.uniform(0.1, 1.0) * every_s)
                    self.delay_s = 0.0
                    self.let_go()

        thread = threading.Thread(target=make, name="trouble")
        thread.start()
        try:
            yield done
        finally:
            stop.set()
            thread.join()
            self.delay_s = 0.0
            self.let_go()

    # ------------------------------------------------------------ the thread that moves the bytes

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_w.send(b"\0")

    def _run(self) -> None:
        while not self._ending:
            with self._lock:
                selector = self._interests()
            with selector:
                ready = selector.select(self._wait_s())
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._wake_r:
                        self._wake_r.recv(4096)
                    elif key.fileobj is self._listener:
                        self._accept()
                for pair in list(self._pairs):
                    self._move(pair)

    def _interests(self) -> selectors.BaseSelector:
        """A new selector each turn: the sockets come and go, and there are few of them."""
        selector = selectors.DefaultSelector()
        selector.register(self._wake_r, selectors.EVENT_READ)
        selector.register(self._listener, selectors.EVENT_READ)
        now = time.monotonic()
        for pair in self._pairs if not self._held else []:
            wanted: dict[socket.socket, int] = {}
            for pipe in self._open_pipes(pair):
                if not pipe.ended and pipe.held_bytes < BUFFER_BYTES:
                    wanted[pipe.source] = wanted.get(pipe.source, 0) | selectors.EVENT_READ
                if pipe.chunks and pipe.chunks[0][0] <= now:
                    wanted[pipe.sink] = wanted.get(pipe.sink, 0) | selectors.EVENT_WRITE
            for end, events in wanted.items():
                selector.register(end, events)
        return selector

    def _wait_s(self) -> float:
        now = time.monotonic()
        due = [pipe.chunks[0][0] - now for pair in self._pairs for pipe in self._open_pipes(pair) if pipe.chunks]
        later = [wait for wait in due if wait > 0]
        return min([_TURN_S, *later])

    def _open_pipes(self, pair: _Pair) -> tuple[_Pipe, ...]:
        return (pair.up,) if self._replies_held else pair.pipes()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def client(self, timeout: float) -> RpcClient:
        """A client of the host through this relay."""
        if isinstance(self._target, int):
            return RpcClient("127.0.0.1", self.port, timeout=timeout)
        return RpcClient(link=connect(Target("", None, ipc=self._listener.getsockname())), timeout=timeout)

    def async_client(self, timeout: float) -> AsyncRpcClient:
        """The same for asyncio."""
        return AsyncRpcClient(timeout=timeout, link=self.client(timeout).link)

    def _call_host(self) -> socket.socket:
        if isinstance(self._target, int):
            return socket.create_connection(("127.0.0.1", self._target), timeout=5)
        host = socket.socket(socket.AF_UNIX)
        try:
            host.connect(self._target)
        except OSError:
            host.close()
            raise
        return host

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            try:
                if self._to_refuse > 0:
                    self._to_refuse -= 1
                    raise ConnectionRefusedError
                host = self._call_host()
            except OSError:
                client.close()
                return
            for end in (client, host):
                end.setblocking(False)
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            self._pairs.append(_Pair(client, host))

    def _move(self, pair: _Pair) -> None:
        if self._held:
            return
        try:
            for pipe in self._open_pipes(pair):
                self._read(pipe)
                self._write(pair, pipe)
                if pair.bytes_left is not None and pair.bytes_left <= 0:
                    raise ConnectionResetError
        except OSError:
            _reset(pair)
            self._pairs.remove(pair)
            return
        if all(pipe.shut for pipe in pair.pipes()):
            pair.client.close()
            pair.host.close()
            self._pairs.remove(pair)

    def _read(self, pipe: _Pipe) -> None:
        if pipe.ended or pipe.held_bytes >= BUFFER_BYTES:
            return
        try:
            data = pipe.source.recv(65_536)
        except BlockingIOError:
            return
        if not data:
            pipe.ended = True
            return
        pipe.chunks.append((time.monotonic() + self.delay_s, data))
        pipe.held_bytes += len(data)

    def _write(self, pair: _Pair, pipe: _Pipe) -> None:
        now = time.monotonic()
        while pipe.chunks and pipe.chunks[0][0] <= now:
            due, data = pipe.chunks[0]
            room = len(data) if pair.bytes_left is None else min(len(data), pair.bytes_left)
            try:
                sent = pipe.sink.send(data[:room])
            except BlockingIOError:
                return
            pipe.held_bytes -= sent
            self.bytes_passed += sent
            if pair.bytes_left is not None:
                pair.bytes_left -= sent
            if sent == len(data):
                pipe.chunks.popleft()
            else:
                pipe.chunks[0] = (due, data[sent:])
                return
        if pipe.ended and not pipe.chunks and not pipe.shut:
            pipe.shut = True
            pipe.sink.shutdown(socket.SHUT_WR)


def _reset(pair: _Pair) -> None:
    for end in (pair.client, pair.host):
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABRUPT)
        end.close()


TROUBLES: dict[str, Callable[[Relay, Any], object]] = {
    "cut": lambda relay, _: relay.cut(),
    "cut, the host does not notice": lambda relay, _: relay.cut(host_too=False),
    "reset": lambda relay, _: relay.reset(),
    "cut within": lambda relay, source: relay.cut_after(source.randrange(1, 20_000)),
    "half close": lambda relay, source: relay.half_close(towards_host=source.random() < 0.5),
    "hold": lambda relay, _: relay.hold(),
    "delay": lambda relay, source: setattr(relay, "delay_s", source.uniform(0.001, 0.05)),
}
