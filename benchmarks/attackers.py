"""What one user can do to a host with 32 connections: the attacks, and a process that makes one of them.

    python -m benchmarks.attackers WHERE_AS_JSON    until it is killed

Each connection is a DEALER that speaks the protocol frame by frame, for no client of this package asks for so much: it
waits for no answer, acknowledges nothing and does not stop when the host says that it is busy. `ATTACKS` is the table.
An attack is a function that gives the next messages of one connection; its process sends them as long as they are
taken. Most read what comes back; some never do.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import zmq

from zmqagents import codec
from zmqagents.connection.target import Target
from zmqagents.security import curve
from zmqagents.security.keys import KeyStore
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind

__all__ = ["ATTACKS", "Attack", "Attacker", "Where"]

BATCH = 32  # messages that one connection sends before the next one has its turn
QUEUED = 64  # messages that wait in a connection's socket: beyond it the host's pace counts
PATIENCE_MS = 10_000
NO_ARGUMENTS = codec.encode_call((), {}).payload
COLLIDING = 20_000  # integers of one hash in one set
ROWS = 80_000
EMPTY_MAPS = (16 << 20) - 8
LARGE_BYTES = 4 << 20
STUCK_S = 1e6


@dataclass(frozen=True)
class Where:
    """What an attacking process is told: the host, the way there, agents of both users, and its part of the work."""

    attack: str
    host: str
    port: int
    transport: Literal["ipc", "tcp"]
    victim: str  # the id of an agent of the other user
    agents: list[str]  # ids of agents of the attacking user, which take one call at a time
    crowd: str  # and of one that takes very many
    file: str  # that may be downloaded
    connections: int = 16
    seed: int = 0


class Attacker:
    """One connection: a socket that has said HELLO, and counts its calls."""

    def __init__(self, context: zmq.Context[Any], where: Where, seed: int) -> None:
        self.where = where
        self.source = random.Random(seed)
        self.number = seed
        self.token = 0
        self.client_id = b""
        self._ids = itertools.count(1)
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.SNDHWM, QUEUED)
        self.socket.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
        endpoint, server_keys = Target(where.host, where.port, where.transport).resolve()
        if server_keys:
            curve.client_curve(self.socket, KeyStore.open().client_keypair(), server_keys[0])
        self.socket.connect(endpoint)

    def say_hello(self) -> None:
        """Introduce itself as a client that is new."""
        self.client_id = os.urandom(messages.CLIENT_ID_BYTES)
        hello = codec.pack({"client": self.client_id, "versions": [messages.VERSION]})
        self.socket.send_multipart([messages.header(Kind.HELLO), hello])

    def be_welcomed(self) -> None:
        """Wait for the host's answer to that."""
        head, _ = messages.split_answer(self.socket.recv_multipart())
        if head.kind != Kind.WELCOME:
            raise RuntimeError(f"the host does not let the attacker in: {head}")
        self.token = head.token

    def call(
        self, agent: str, method: str, payload: bytes = NO_ARGUMENTS, *, flags: int = 0,
        options: dict[str, Any] | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The next CALL, which has no deadline."""
        head = messages.header(Kind.CALL, next(self._ids), self.token, flags=flags)
        return [head, codec.pack([agent, method, None, options]), payload]

    def say(self, kind: Kind, call_id: int, *frames: bytes, time_ms: int = 0) -> list[bytes]:
        """A message of another kind."""
        return [messages.header(kind, call_id, self.token, time_ms=time_ms), *frames]

    @property
    def latest(self) -> int:
        """The id of the call made last. (Uses up one that is never called.)"""
        return next(self._ids) - 1


Messages = Iterator[list[bytes]]
Attack = Callable[[Attacker], Messages]


# ---------------------------------------------------------------- the attacks


def plain_calls(me: Attacker) -> Messages:
    """Short calls to its own agent, without a pause."""
    while True:
        yield me.call(_own(me), "echo", _payload(0))


def calls_to_the_other(me: Attacker) -> Messages:
    """The same to the other user's agent."""
    while True:
        yield me.call(me.where.victim, "echo", _payload(0))


def unread_streams(me: Attacker) -> Messages:
    """Streams for which it grants no credit."""
    while True:
        yield me.call(me.where.crowd, "count", flags=int(Flag.STREAM))


def endless_calls(me: Attacker) -> Messages:
    """Calls that sleep in a worker for ever, on many agents."""
    agents = me.where.agents
    for turn in itertools.count(me.number):
        yield me.call(agents[turn % len(agents)], "sleep", _payload(STUCK_S))


def full_mailboxes(me: Attacker) -> Messages:
    """Calls to agents that are stuck."""
    stuck = me.where.agents[:4]
    for agent in stuck:
        yield me.call(agent, "sleep", _payload(STUCK_S))
    for turn in itertools.count():
        yield me.call(stuck[turn % len(stuck)], "echo", _payload(0))


def agents(me: Attacker) -> Messages:
    """Agents, as many as it gets; the host is asked for the first 60,000, and for more."""
    while True:
        yield me.call("", "create_agent", options={"class": "Greedy"})


def agents_that_come_and_go(me: Attacker) -> Messages:
    """Agents that are made and deleted."""
    for turn in itertools.count():
        name = f"passing-{me.number}-{turn}"
        yield me.call("", "create_agent", options={"class": "Greedy", "id": name})
        yield me.call("", "delete_agent", options={"id": name})


def unknown_fetches(me: Attacker) -> Messages:
    """Questions for results that nobody has: of clients that nobody knows, and of calls that it never makes, by turns.

    For the latter the host waits a while.
    """
    for number in itertools.count(1 << 40):
        for client_id in (me.source.randbytes(messages.CLIENT_ID_BYTES), me.client_id):
            task_id = messages.task_id_of(messages.client_prefix(client_id), number)
            yield me.say(Kind.FETCH, me.latest, codec.pack(task_id), time_ms=60_000)


def colliding_keys(me: Attacker) -> Messages:
    """Sets of whole numbers that all have one hash."""
    numbers = [((1 << 61) - 1) * number for number in range(1, COLLIDING)]
    items = _payload(numbers)[len(b"\xc1\x92\xdc..") : -len(b"\x80")]
    body = b"\xc1\x92\xdc" + COLLIDING.to_bytes(2, "big") + b"\xd4\x01s" + items + b"\x80"
    while True:
        yield me.call(_own(me), "echo", body)


def empty_maps(me: Attacker) -> Messages:
    """Arguments of 16 MiB that are nothing but empty maps."""
    body = b"\x92\xdd" + EMPTY_MAPS.to_bytes(4, "big") + b"\x80" * EMPTY_MAPS + b"\x80"
    while True:
        yield me.call(_own(me), "echo", body)


def long_lists(me: Attacker) -> Messages:
    """Structured arguments, as long as they may be, that come back: small numbers."""
    body = b"\x92\xdd" + EMPTY_MAPS.to_bytes(4, "big") + b"\x01" * EMPTY_MAPS + b"\x80"
    while True:
        yield me.call(_own(me), "echo", body)


def many_rows(me: Attacker) -> Messages:
    """The same of 4 MiB: 80,000 rows of a table."""
    row = {"id": 77_777, "name": "somebody", "tags": ["a", "b"], "score": 0.5}
    body = _payload([row] * ROWS)
    while True:
        yield me.call(_own(me), "echo", body)


def lists(me: Attacker) -> Messages:
    """The list of all agents, of which there are many."""
    while True:
        yield me.call("", "get_agent_list")


def questions(me: Attacker) -> Messages:
    """Every other question that a client may ask, while it has many calls open."""
    for _ in range(1000):
        yield me.call(me.where.crowd, "wait")
    while True:
        yield me.call("", "get_call_list")
        yield me.call("", "get_server_info")
        yield me.call("", "describe_agent", options={"id": _own(me)})
        yield me.call("", "set_model_configs", _payload([{"config_name": "x"}]))


def pings(me: Attacker) -> Messages:
    """PINGs."""
    while True:
        yield me.say(Kind.PING, 7)


def cancelled_calls(me: Attacker) -> Messages:
    """Calls that it cancels at once."""
    while True:
        yield me.call(me.where.crowd, "wait")
        yield me.say(Kind.CANCEL, me.latest)


def killed_streams(me: Attacker) -> Messages:
    """Streams that it ends at once."""
    while True:
        yield me.call(me.where.crowd, "count", flags=int(Flag.STREAM))
        yield me.say(Kind.CANCEL, me.latest)


def large_arguments(me: Attacker) -> Messages:
    """Arguments of 4 MiB that come back."""
    payload, buffers, _ = codec.encode_call((bytes(LARGE_BYTES),), {})
    while True:
        yield [*me.call(_own(me), "echo", bytes(payload)), *map(bytes, buffers)]


def downloads(me: Attacker) -> Messages:
    """A file of 64 MiB, as often as it can."""
    while True:
        yield me.call("", "download_file", _payload(me.where.file), flags=int(Flag.STREAM))
        yield me.say(Kind.CREDIT, me.latest, time_ms=1000)


def garbage(me: Attacker) -> Messages:
    """Messages that are none."""
    while True:
        yield [me.source.randbytes(60)]
        yield [messages.header(Kind.CALL, 1, me.token), me.source.randbytes(20), b""]


# ---------------------------------------------------------------- below messages


def handshakes(me: Attacker) -> Messages:
    """Connections that begin a handshake, and others that finish one and go."""
    held: list[socket.socket] = []
    while True:
        held.append(_strange_socket(me.where, b"\xff" + bytes(8) + b"\x7f\x03"))
        if len(held) > 100:
            held.pop(0).close()
        with contextlib.suppress(zmq.ZMQError):
            passing = Attacker(_context(), me.where, 0)
            passing.socket.setsockopt(zmq.RCVTIMEO, 1000)
            passing.say_hello()
            with contextlib.suppress(zmq.Again):
                passing.be_welcomed()
            passing.socket.close()
        yield []


def one_byte_a_second(me: Attacker) -> Messages:
    """A message of which a byte comes each second, on twenty connections."""
    rest = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(48)
    held = [_strange_socket(me.where, b"") for _ in range(20)]
    for place in itertools.count():
        for index, end in enumerate(held):
            try:
                end.send(rest[place % len(rest) :][:1])
            except OSError:
                end.close()
                held[index] = _strange_socket(me.where, b"")
        time.sleep(1.0 / me.where.connections)
        yield []


# By the name that the table of figures has. False: what comes back is not read.
ATTACKS: dict[str, tuple[Attack, bool]] = {
    "unread streams": (unread_streams, False),
    "endless calls": (endless_calls, True),
    "full mailboxes": (full_mailboxes, True),
    "60,000 agents": (agents, True),
    "unknown fetches": (unknown_fetches, True),
    "colliding keys": (colliding_keys, True),
    "16 MiB of empty maps": (empty_maps, True),
    "16 MiB of numbers": (long_lists, True),
    "80,000 rows": (many_rows, True),
    "lists of agents": (lists, True),
    "short calls": (plain_calls, True),
    "calls to the other's agent": (calls_to_the_other, True),
    "answers unread": (plain_calls, False),
    "questions to the host": (questions, True),
    "agents made and deleted": (agents_that_come_and_go, True),
    "calls cancelled at once": (cancelled_calls, True),
    "streams ended at once": (killed_streams, True),
    "arguments of 4 MiB": (large_arguments, True),
    "downloads": (downloads, True),
    "PINGs": (pings, True),
    "malformed messages": (garbage, True),
    "handshakes": (handshakes, True),
    "a byte a second": (one_byte_a_second, True),
}


def _own(me: Attacker) -> str:
    return me.where.agents[me.number % len(me.where.agents)]


def _payload(*arguments: Any) -> bytes:
    return bytes(codec.encode_call(arguments, {}).payload)


def _strange_socket(where: Where, said: bytes) -> socket.socket:
    """A plain socket at the same door, that has said a little."""
    endpoint, _ = Target(where.host, where.port, where.transport).resolve()
    if endpoint.startswith("ipc://"):
        end = socket.socket(socket.AF_UNIX)
        end.connect(endpoint[len("ipc://") :])
    else:
        end = socket.create_connection((where.host, where.port))
    if said:
        end.send(said)
    return end


def _context() -> zmq.Context[Any]:
    return zmq.Context.instance()


# ---------------------------------------------------------------- the process


def step_back() -> None:
    """Leave the machine's cores to the host, as an attacker on another machine would."""
    if hasattr(os, "sched_setscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    else:
        os.nice(19)


def attack(where: Where) -> None:
    """Make one attack until the process is killed."""
    make, reads = ATTACKS[where.attack]
    crew = [Attacker(_context(), where, where.seed * where.connections + n) for n in range(where.connections)]
    for each in crew:
        each.say_hello()
    for each in crew:
        each.be_welcomed()
    print(json.dumps("ready"), flush=True)
    sources = [(each, make(each)) for each in crew]
    waiting: dict[Attacker, list[bytes]] = {}
    poller = zmq.Poller()
    events = zmq.POLLOUT | (zmq.POLLIN if reads else 0)
    for each in crew:
        poller.register(each.socket, events)
    while True:
        poller.poll(100)
        for each, source in sources:
            _send_some(each, source, waiting)
            if reads:
                _read_all(each)


def _send_some(each: Attacker, source: Messages, waiting: dict[Attacker, list[bytes]]) -> None:
    for _ in range(BATCH):
        message = waiting.pop(each, None) or next(source)
        try:
            if message:
                each.socket.send_multipart(message, zmq.NOBLOCK)
        except zmq.Again:
            waiting[each] = message
            return
        if not message or sum(map(len, message)) > 100_000:
            return


def _read_all(each: Attacker) -> None:
    with contextlib.suppress(zmq.Again):
        while True:
            each.socket.recv(zmq.NOBLOCK, copy=False)


if __name__ == "__main__":
    step_back()
    attack(Where(**json.loads(sys.argv[1])))
