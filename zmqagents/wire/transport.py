"""TODO."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Protocol

import zmq

from .messages import Frame

SHORT_MS = 1  # how long `receive_soon` waits
CLOSE_S = 1.0  # how long what was sent may take to be written when the connection is closed


class Event(enum.Enum):
    """What happens to a connection."""

    READY = "the handshake is over: messages may be sent"
    REFUSED = "nothing listens there"
    CUT = "the connection has ended"
    KEY_REFUSED = "it refused this client's key"
    BROKEN_OFF = "the handshake failed: its key is another one, or it is no host"
    FOREIGN = "the handshake failed: it does not speak this protocol"


Items = list[tuple[Any, int]]  # what `zmq.zmq_poll` takes, and gives


class Carrier(Protocol):
    """One connection, or an attempt at one."""

    events: list[Event]
    pending: bool  # something sent waits until there is room
    is_clean: bool  # what was read has been received: only a poll tells whether there is more

    @property
    def items(self) -> Items:
        """What to poll; whatever is ready is for `look`, and then for `receive`."""

    def look(self, ready: Items) -> None:
        """Note the events in what a poll has given."""

    def send(self, parts: list[Frame]) -> None:
        """Send a message now, as far as there is room. Never waits, never fails: a lost connection is an event."""

    def queue(self, parts: list[Frame]) -> None:
        """The same at the next `flush`."""

    def flush(self) -> None:
        """Write what is queued, as far as there is room."""

    def receive(self) -> list[Frame] | None:
        """The next message; None if there is none. Large frames are not copied."""

    def receive_soon(self) -> list[Frame] | None:
        """The same, but wait `SHORT_MS` for it, unless something is still to be written."""

    def close(self) -> None:
        """Let go of it; what was sent is written if the other side takes it within `CLOSE_S`."""

    def abandon(self) -> None:
        """The same in a forked child, where the connection is the parent's."""


def poll(items: Items, timeout_ms: int) -> Items:
    """Wait until one of ``items`` is ready, ``timeout_ms`` at most (-1: for ever)."""
    ready: Items = zmq.zmq_poll(items, timeout_ms)
    return ready


ZERO_COPY_BYTES = 65_536  # a frame of less is copied faster than it is shared


SendFrame = Callable[[Any, int, bool], Any]  # frame, flags, whether to copy it; raises zmq.Again, zmq.ZMQError
