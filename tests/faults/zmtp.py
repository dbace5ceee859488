"""ZMTP 3.1 (RFC 23) by hand, on a plain socket: a peer that can be rude below the level of messages.

greeting   signature ff 00*8 7f | version 03 01 | mechanism, 20 bytes | as-server | filler: 64 bytes
frame      flags (1 more, 2 long, 4 command) | size, 1 or 8 bytes | body
command    a frame whose body begins with the length of its name, and the name
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from raw_peer import ipc_path
from zmqagents import codec, frames
from zmqagents.frames import Kind

MORE, LONG, COMMAND = 1, 2, 4


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes(32)


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) > 255:
        return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body
    return bytes([flags, len(body)]) + body


def command(name: bytes, data: bytes = b"") -> bytes:
    return frame(bytes([len(name)]) + name + data, COMMAND)


def message(parts: Sequence[bytes]) -> bytes:
    return b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1])


def ready(**properties: bytes) -> bytes:
    """The READY command of the mechanism NULL; underscores in names stand for hyphens."""
    data = b""
    for name, value in properties.items():
        key = name.replace("_", "-").encode()
        data += bytes([len(key)]) + key + struct.pack(">I", len(value)) + value
    return command(b"READY", data)


def connect_tcp(port: int | None) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or 0), timeout=5)


def connect_ipc(launcher: Any) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(5)
    try:
        end.connect(ipc_path(launcher))
    except BaseException:
        end.close()
        raise
    return end


class Wire:
    """A connection that has shaken hands (NULL) with a ROUTER, on any socket that is connected to it."""

    def __init__(self, end: socket.socket, identity: bytes = b"", **properties: bytes) -> None:
        self.end = end
        self._unread = b""
        self.end.sendall(greeting(b"NULL"))
        self._read(64)
        self.end.sendall(ready(**{"Socket_Type": b"DEALER", "Identity": identity, **properties}))
        flags, body = self.read_frame()
        assert flags & COMMAND, (flags, body)
        assert body.startswith(b"\x05READY"), body

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end.close()

    def send(self, *parts: bytes) -> None:
        self.end.sendall(message(parts))

    def hello(self) -> int:
        """Introduce itself; the session's token."""
        self.send(
            frames.header(Kind.HELLO), codec.pack({"client": os.urandom(frames.CLIENT_ID_BYTES), "versions": [1]})
        )
        head, _ = self.receive()
        assert head.kind == Kind.WELCOME, head
        return head.token

    def receive(self) -> tuple[frames.Header, list[bytes]]:
        """The next message; commands on the way are dropped, and PONGs that nobody asked for."""
        while True:
            parts = []
            flags = MORE
            while flags & (MORE | COMMAND):
                flags, body = self.read_frame()
                if not flags & COMMAND:
                    parts.append(body)
            head, rest = frames.split_answer(parts)
            if (head.kind, head.call_id) != (Kind.PONG, 0):
                return head, [bytes(frame) for frame in rest]

    def answer_to(self, call_id: int) -> tuple[frames.Header, list[bytes]]:
        """The answer to ``call_id``; others that come first are dropped."""
        while True:
            head, rest = self.receive()
            if head.call_id == call_id:
                return head, rest

    def read_frame(self) -> tuple[int, bytes]:
        flags = self._read(1)[0]
        size = struct.unpack(">Q", self._read(8))[0] if flags & LONG else self._read(1)[0]
        return flags, self._read(size)

    def is_closed(self, within_s: float) -> bool:
        """Whether the other side ends the connection; what it sends before that is dropped."""
        self.end.settimeout(within_s)
        with contextlib.suppress(ConnectionError):
            try:
                while self.end.recv(65_536):
                    pass
            except TimeoutError:
                return False
        return True

    def _read(self, size: int) -> bytes:
        while len(self._unread) < size:
            data = self.end.recv(65_536)
            if not data:
                raise ConnectionResetError("the other side has closed")
            self._unread += data
        data, self._unread = self._unread[:size], self._unread[size:]
        return data
