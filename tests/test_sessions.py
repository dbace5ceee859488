"""Who is here and who is lost: sessions without sockets, threads and clock."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from world import World, ok
from zmqagents import frames
from zmqagents.broker import Bound, Broker
from zmqagents.config import BrokerConfig
from zmqagents.frames import Flag, Hello, Kind
from zmqagents.hosting import build
from zmqagents.outbound import Session
from zmqagents.security import Authenticator
from zmqagents.tickets import Answer, Effect

RESUME_S = 5.0


class Lobby:
    """The sessions of a `World`. Who is in ``dead`` has hung up; ``sent`` is what the others were sent."""

    def __init__(self) -> None:
        self.world = World(resume_s=RESUME_S)
        self.dead: set[bytes] = set()
        self.sent: list[tuple[bytes, list[bytes]]] = []
        self._parts: list[bytes] = []
        self.broker = build(BrokerConfig(private=True, resume_s=RESUME_S), [])
        self._take_the_place_of_sockets(self.broker)

    def _take_the_place_of_sockets(self, broker: Broker) -> None:
        broker.bound = Bound("s", "h", None, "", None)
        broker._auth = Authenticator(None)
        broker._clock = lambda: self.world.now
        broker._next_zap = float("inf")
        broker._dispatcher = self.world.dispatcher
        broker._actions = dict.fromkeys(broker._actions, self._carry_out)
        broker._out.attach(self._send)
        broker._hello_from = f"uid:{os.geteuid()}"

    def _carry_out(self, effect: Effect) -> None:
        self.world.see([effect])
        if isinstance(effect, Answer) and not effect.peer.local:
            self.broker._answer(effect)

    def _send(self, frame: Any, flags: int, copy: bool) -> None:
        """As the ROUTER does: the first frame of a message finds its peer."""
        if not self._parts and frame in self.dead:
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        self._parts.append(bytes(frame))
        if not flags & zmq.SNDMORE:
            (routing_id, *message), self._parts = self._parts, []
            self.sent.append((routing_id, message))

    def hello(self, client: str, routing_id: bytes) -> Session:
        """``client`` says HELLO over the connection ``routing_id``."""
        client_id = client.encode().ljust(frames.CLIENT_ID_BYTES)
        self.broker._on_hello(routing_id, Hello(0, client_id, {"resume": client.encode()}), self.world.now)
        return self.broker._clients[client_id]

    def hang_up(self, session: Session) -> None:
        """Its connection breaks, and the roll call finds that out."""
        self.dead.add(session.routing_id)
        self.broker._call_roll()

    def sleep(self, seconds: float) -> None:
        self.world.now += seconds
        self.broker._look_at_clock(self.world.now)

    def knows(self, session: Session) -> bool:
        return session in self.broker._clients.values()

    def is_here(self, session: Session) -> bool:
        return session in self.broker._sessions.values()

    def push_all(self) -> None:
        self.broker._out.push_all()

    def heard(self, session: Session) -> list[tuple[Kind, int]]:
        """What was sent to the session since it took its seat: kinds and call ids."""
        heads = [
            frames.split_answer(message)[0] for routing_id, message in self.sent if routing_id == session.routing_id
        ]
        return [(head.kind, head.call_id) for head in heads]


@pytest.fixture
def lobby() -> Iterator[Lobby]:
    lobby = Lobby()
    yield lobby
    lobby.broker.abandon()


def test_who_has_come_back_may_be_silent_again(lobby: Lobby) -> None:
    ann = lobby.hello("ann", b"1")
    lobby.hang_up(ann)
    assert not lobby.is_here(ann)
    lobby.sleep(0.05)
    assert lobby.hello("ann", b"2") is ann
    call = lobby.world.create("a", peer=ann.peer)
    lobby.sleep(RESUME_S + 1)  # a client with nothing to say pings every 10 s
    assert lobby.is_here(ann)
    lobby.world.done(call)
    assert call.error is None


def test_who_has_come_back_stands_in_nobodys_way_to_be_let_go(lobby: Lobby) -> None:
    ann, bob = lobby.hello("ann", b"1"), lobby.hello("bob", b"2")
    lobby.hang_up(ann)
    lobby.hello("ann", b"3")
    lobby.hang_up(bob)
    for _ in range(3):
        ann.last_seen = lobby.world.now
        lobby.sleep(RESUME_S / 2)
    assert lobby.is_here(ann)
    assert not lobby.knows(bob)


def test_clients_that_were_lost_together_are_let_go_together(lobby: Lobby) -> None:
    lost = [lobby.hello(f"client {n}", b"%d" % n) for n in range(100)]
    lobby.dead |= {session.routing_id for session in lost}
    lobby.broker._call_roll()
    lobby.sleep(RESUME_S - 1)
    late = lobby.hello("late", b"late")
    lobby.hang_up(late)
    assert all(map(lobby.knows, lost))
    lobby.sleep(1.01)
    assert not any(map(lobby.knows, lost))
    assert lobby.knows(late)


def test_a_reply_that_is_made_while_replies_are_sent_is_sent_too(lobby: Lobby) -> None:
    ann, bob = lobby.hello("ann", b"1"), lobby.hello("bob", b"2")
    lobby.world.agents("a", "b")
    stream = lobby.world.running("a", peer=ann.peer, flags=Flag.STREAM)
    made_by_it = lobby.world.later(stream, "b")
    fetch = lobby.world.fetch(made_by_it.task_id, peer=bob.peer)
    lobby.dead.add(ann.routing_id)
    lobby.broker._answer(Answer(ann.peer, 99, ok()))  # sending it shows that nobody reads the stream any more
    lobby.push_all()
    assert lobby.heard(bob)[1:] == [(Kind.ERROR, fetch.call_id)]
