"""The interfaces of a connection, the same for every kind of socket.

Two pairs of interfaces, each with a body for Unix sockets (hosts and clients of one machine) and one for TCP:

    `Transport`              a client's end of one connection         `unix.UnixTransport`, `dealer.DealerTransport`
    `Peer`, `Listener`       the host's end of all connections        `unix_listener`, `router_listener`

A message is a list of frames. Sending never waits. A broken connection is no exception: a transport notes an `Event`,
a listener puts the peer into ``ended``. One thread at a time uses a transport, or a listener with its peers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq

from .messages import Frame

__all__ = [
    "CLOSE_S", "IN", "SHORT_MS", "ZERO_COPY_BYTES", "Event", "Items", "Listener", "Peer", "Receive", "Terminated",
    "Transport", "TransportError", "poll",
]  # fmt: skip

SHORT_MS = 1  # how long `Transport.receive_soon` waits
CLOSE_S = 1.0  # how long what was sent may take to be written when the connection is closed
ZERO_COPY_BYTES = 65_536  # a shorter frame is copied faster than it is shared
DELAY_S = 0.1  # a shorter delay is no frozen host, but a busy machine; see `router_listener.RouterListener.note_delay`


# ---------------------------------------------------------------- the client's end


class Event(enum.Enum):
    """What happens to a connection."""

    READY = "the handshake is over: messages may be sent"
    REFUSED = "nothing listens there"
    CUT = "the connection has ended"
    KEY_REFUSED = "the host refused this client's key"
    BROKEN_OFF = "the handshake failed: the host has another key, or it is no host"
    FOREIGN = "the handshake failed: the other side does not speak this protocol"


IN = int(zmq.POLLIN)
TransportError = zmq.ZMQError  # what libzmq raises beside `OSError`
Terminated = zmq.ContextTerminated  # the program has ended its ZeroMQ context
Items = list[tuple[Any, int]]  # what `zmq.zmq_poll` takes, and gives


class Transport(Protocol):
    """One connection of a client, or an attempt at one."""

    events: list[Event]  # what has happened, oldest first; `take_events` empties it
    pending: bool  # something sent waits until there is room
    is_clean: bool  # what was read has been received: only a poll tells whether there is more
    polls_all: bool  # a poll tells of all that can be received, also where ``is_clean`` is False

    @property
    def items(self) -> Items:
        """What to poll. Whatever is ready is to be given to `look` before the next `receive`."""

    @property
    def fds(self) -> Sequence[int]:
        """The descriptors of ``items``, for one who polls them along with others."""

    @property
    def unseen(self) -> bool:
        """Whether there is something to receive of which ``fds`` may tell no more."""

    def take_events(self) -> list[Event]:
        """What has happened, oldest first; ``events`` is empty after it."""

    def look(self, ready: Items) -> None:
        """Note the events in ``ready``, the result of a poll."""

    def send(self, parts: list[Frame]) -> bool:
        """Send a message now, as far as there is room, and keep the rest. True: the message was taken."""

    def queue(self, parts: list[Frame]) -> bool:
        """Send a message at the next `flush`. True: the message was taken."""

    def flush(self) -> None:
        """Write what is queued, as far as there is room."""

    def receive(self) -> list[Frame] | None:
        """The next message; None if there is none. Large frames are not copied."""

    def receive_soon(self) -> list[Frame] | None:
        """The next message; waits `SHORT_MS` for it, unless something is still to be written."""

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Close the connection; what was sent is written if the other side takes it within ``wait_s``."""

    def abandon(self) -> None:
        """Close this process's copy, in a forked child: the connection is the parent's."""


def poll(items: Items, timeout_ms: int) -> Items:
    """Wait until one of ``items`` is ready, ``timeout_ms`` at most (-1: without a limit), and return the ready ones."""
    ready: Items = zmq.zmq_poll(items, timeout_ms)
    return ready


# ---------------------------------------------------------------- the host's end


class Peer(Protocol):
    """One client's connection, as its listener's host sees it. Its text names it in log lines."""

    user: str  # the user that the authentication found
    pid: int  # of its process, as the system knows it; 0: not known
    session: Any  # what the host has given to `seat`
    pending: bool  # it had no room for all that was sent; the listener tells when there may be some
    ended: bool  # nothing more reaches it

    def seat(self, session: Any) -> None:
        """Keep ``session`` for this client, None: nothing. Only a peer with a session stays the same object."""

    def send(self, message: list[Frame]) -> bool:
        """Send ``message`` now, as far as there is room, and keep the rest.

        False if nothing was taken, because too much waits already: `Listener` tells when to try again. A peer that
        has ended takes everything.
        """

    def queue(self, message: list[Frame]) -> bool:
        """Do the same at the next `flush` at the latest."""

    def flush(self) -> None:
        """Write what is queued, as far as there is room."""

    def probe(self, message: list[Frame]) -> None:
        """Find out whether the connection has ended; ``message`` is sent where only sending tells."""

    def send_last(self, messages: Sequence[list[Frame]]) -> None:
        """Send ``messages``, as many as there is room for, before the listener is closed. Raises nothing."""


# One message: its sender, its frames (None: too many of them; the first alone: too many bytes), the bytes of all
# frames, and the time. The result is the time when the message has been handled.
Receive = Callable[[Peer, "Sequence[Frame] | None", int, float], float]


class Listener(Protocol):
    """Accepts connections and reads from them. The host polls its descriptors and calls `on_ready`.

    A listener calls the functions that it was made with: ``receive`` for each message, ``on_room`` for a peer that may
    have room again, ``complain`` for a peer that breaks the protocol.
    """

    due: float  # when `look` has something to do at the latest, on the host's clock
    ended: Any  # a list or deque of peers whose connection has ended; the host takes them out and calls `forget`

    @property
    def received_bytes(self) -> int:
        """Bytes of the messages that clients have sent so far."""

    @property
    def sent_bytes(self) -> int:
        """Bytes that the system, shared memory or libzmq has taken for clients so far."""

    def on_ready(self, fd: int, events: int) -> bool:
        """Note what the poller has said of ``fd``; False if that is no descriptor of this listener."""

    def read(self, limit: int, now: float, end: float) -> None:
        """Hand over ``limit`` messages at most, and begin with none at the time ``end``."""

    def look(self, now: float) -> None:
        """Do what is ``due``."""

    def forget(self, peer: Any) -> None:
        """Close a connection that has ended."""
