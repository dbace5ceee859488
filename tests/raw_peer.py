"""A peer that speaks ZA/1 frame by frame, so that it can also say what no client says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import zmq

from zmqagents import codec, frames
from zmqagents.frames import Header, Kind


class RawPeer:
    """A DEALER on a host's ipc socket. Everything it sends is up to the test; ``receive`` waits 3 s at most."""

    def __init__(self, launcher: Any, client_id: bytes | None = None, receive_limit: int = 0) -> None:
        self.client_id = client_id or os.urandom(frames.CLIENT_ID_BYTES)
        self.token = 0
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.RCVHWM, receive_limit)
        self.socket.setsockopt(zmq.RCVTIMEO, 3000)
        self.socket.setsockopt(zmq.SNDTIMEO, 3000)
        self.socket.connect(f"ipc://{ipc_path(launcher)}")

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()
        self._context.term()

    def say_hello(self) -> None:
        self.send(frames.header(Kind.HELLO), codec.pack({"client": self.client_id, "versions": [frames.VERSION]}))

    def hello(self) -> Header:
        """Introduce itself; the WELCOME."""
        self.say_hello()
        welcome, _ = self.receive()
        assert welcome.kind == Kind.WELCOME
        self.token = welcome.token
        return welcome

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def call(
        self, call_id: int, agent: Any, method: Any, *args: Any, options: Any = None, deps: Any = None,
        token: int | None = None, flags: int = 0, time_ms: int = 0,
    ) -> None:  # fmt: skip
        head = frames.header(Kind.CALL, call_id, self.token if token is None else token, flags=flags, time_ms=time_ms)
        self.send(head, codec.pack([agent, method, deps, options]), codec.encode_call(args, {}).payload)

    def receive(self) -> tuple[Header, Sequence[bytes]]:
        """The next message: its header and what follows."""
        head, rest = frames.split_answer(self.socket.recv_multipart())
        return head, [bytes(frame) for frame in rest]

    def answer_to(self, call_id: int) -> tuple[Header, Sequence[bytes]]:
        """The answer to ``call_id``; others that come first are dropped."""
        while True:
            head, rest = self.receive()
            if head.call_id == call_id:
                return head, rest

    def hears_nothing(self, milliseconds: int) -> bool:
        return not self.socket.poll(milliseconds)


def ipc_path(launcher: Any) -> str:
    """Where the host's ipc socket is: what its connection file says."""
    from zmqagents import endpoints

    record = endpoints.find_host(launcher.host, launcher.port)
    assert record is not None
    return record.ipc
