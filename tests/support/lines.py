"""Connections without sockets, for tests of what the host sends and to whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zmqagents.wire import messages
from zmqagents.wire.messages import Frame


class Line:
    """A `Peer` that writes down what it is sent. ``room``: how many messages it still takes, None: any number."""

    def __init__(self, name: str = "line", user: str = "uid:0") -> None:
        self.name = name
        self.user = user
        self.pid = 0
        self.session: Any = None
        self.pending = self.ended = False
        self.room: int | None = None
        self.is_cut = False  # nothing more reaches it, which only sending will show
        self.sent: list[list[bytes]] = []
        self.queued: list[list[bytes]] = []  # and not flushed

    def __str__(self) -> str:
        return self.name

    def seat(self, session: Any) -> None:
        self.session = session

    def queue(self, message: list[Frame]) -> bool:
        if self.is_cut:
            self.ended = True
            return True
        if self.room == 0:
            self.pending = True
            self.flush()  # a connection has no room only after it was written to
            return False
        if self.room is not None:
            self.room -= 1
        self.queued.append([bytes(frame) for frame in message])
        return True

    def send(self, message: list[Frame]) -> bool:
        taken = self.queue(message)
        self.flush()
        return taken

    def flush(self) -> None:
        self.sent += self.queued
        self.queued.clear()

    def probe(self, message: list[Frame]) -> None:
        self.send(message)

    def send_last(self, messages: Sequence[list[Frame]]) -> None:
        for message in messages:
            self.send(message)

    @property
    def texts(self) -> list[bytes]:
        """The first frames of what it was sent."""
        return [message[0] for message in self.sent]

    @property
    def heard(self) -> list[tuple[int, int]]:
        """Kinds and call ids of what it was sent."""
        heads = [messages.split_answer(message)[0] for message in self.sent]
        return [(head.kind, head.call_id) for head in heads]
