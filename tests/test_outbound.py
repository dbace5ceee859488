"""The way out without a socket: order, limits, and peers that do not read or are no more."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import zmq

from hosts import eventually
from zmqagents.broker.delivery import BUSY_MS, IN_FLIGHT_BYTES, PUSH_AT, PUSH_S, RETRY_S, Delivery, Session
from zmqagents.wire import messages as frames
from zmqagents.wire.messages import Code, Frame, Hello, Kind, Reply

LIMIT = 1000


class Router:
    """What a ROUTER does at a send: the first frame of a message finds its peer and the room in its queue."""

    def __init__(self) -> None:
        self.room: dict[bytes, int] = {}  # messages that a peer still takes; not here: any number
        self.gone: set[bytes] = set()
        self.sent: list[tuple[bytes, list[bytes]]] = []
        self.held: list[zmq.Frame] = []  # large ones, which are not written yet
        self._parts: list[bytes] = []

    def send(self, frame: Any, flags: int, copy: bool) -> None:
        if not self._parts:
            if frame in self.gone:
                raise zmq.ZMQError(errno.EHOSTUNREACH)
            if self.room.get(frame) == 0:
                raise zmq.Again
        if isinstance(frame, zmq.Frame):
            self.held.append(frame)
        self._parts.append(bytes(frame))
        if not flags & zmq.SNDMORE:
            (routing_id, *message), self._parts = self._parts, []
            if routing_id in self.room:
                self.room[routing_id] -= 1
            self.sent.append((routing_id, message))

    def to(self, session: Session) -> list[bytes]:
        """What the peer of ``session`` was sent: the first frame of each message."""
        return [message[0] for routing_id, message in self.sent if routing_id == session.routing_id]


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def out(router: Router) -> Delivery:
    out = Delivery(LIMIT)
    out.attach(router.send)
    return out


def seated(name: str) -> Session:
    session = Session(Hello(0, name.encode().ljust(frames.CLIENT_ID_BYTES), {}), "", "call", LIMIT)
    session.take_seat(name.encode(), 0.0)
    return session


def push(out: Delivery, session: Session, *messages: Frame) -> None:
    out.unsent += [(session, [message]) for message in messages]
    out.push_all()


def test_a_message_is_sent_whole_behind_the_name_of_its_peer(out: Delivery, router: Router) -> None:
    assert out.send(b"ann", [b"one", b"two", b"three"])
    assert router.sent == [(b"ann", [b"one", b"two", b"three"])]


def test_an_error_that_is_not_about_the_peer_is_raised(out: Delivery) -> None:
    def broken(frame: Any, flags: int, copy: bool) -> None:
        raise zmq.ZMQError(errno.ENOTSOCK)

    out.attach(broken)
    with pytest.raises(zmq.ZMQError):
        out.send(b"ann", [b"x"])


@pytest.mark.parametrize(
    ("code", "kind", "time_ms"),
    [(Code.NONE, Kind.RESULT, 0), (Code.HOST_ERROR, Kind.ERROR, 0), (Code.BUSY, Kind.ERROR, BUSY_MS)],
)
def test_an_answer_says_what_it_is_and_when_to_come_again(
    out: Delivery, router: Router, code: int, kind: Kind, time_ms: int
) -> None:
    ann = seated("ann")
    out.push_reply(ann, 7, Reply(code, (b"body",)))
    assert not router.sent, "soon, with others"
    out.push_all()
    head, body = frames.split_answer(router.sent[0][1])
    assert (head.kind, head.code, head.call_id, head.token, head.time_ms) == (kind, code, 7, ann.token, time_ms)
    assert body == (b"body",)


def test_who_does_not_read_gets_it_later_in_order_and_the_others_do_not_notice(out: Delivery, router: Router) -> None:
    ann, bob = seated("ann"), seated("bob")
    router.room[b"ann"] = 1
    out.unsent += [(ann, [b"1"]), (bob, [b"1"]), (ann, [b"2"]), (bob, [b"2"]), (ann, [b"3"])]
    out.push_all()
    assert (router.to(ann), router.to(bob)) == ([b"1"], [b"1", b"2"])
    assert out.stalled == {ann}
    router.room[b"ann"] = 1
    push(out, ann, b"4")  # there is room, but what was left comes first
    assert router.to(ann) == [b"1"]
    out.retry(1.0)
    assert (router.to(ann), ann.unread_bytes) == ([b"1", b"2"], 2)
    router.room[b"ann"] = 9
    out.retry(1.0 + RETRY_S / 2)
    assert router.to(ann) == [b"1", b"2"], "not before its time"
    out.retry(1.0 + RETRY_S)
    assert router.to(ann) == [b"1", b"2", b"3", b"4"]
    assert (out.stalled, ann.outbox, ann.unread_bytes) == (set(), None, 0)


def test_who_has_left_too_much_unread_is_dropped(out: Delivery, router: Router) -> None:
    ann = seated("ann")
    dropped: list[Session] = []
    out.drop = dropped.append
    router.room[b"ann"] = 0
    push(out, ann, bytes(LIMIT // 2), bytes(LIMIT // 2))
    assert not dropped
    push(out, ann, b"x")
    assert dropped == [ann]


def test_of_large_messages_only_so_many_bytes_are_on_their_way_to_one_peer(router: Router) -> None:
    out, ann, bob = Delivery(1 << 30), seated("ann"), seated("bob")
    out.attach(router.send)
    size, fit = 1 << 20, IN_FLIGHT_BYTES >> 20
    push(out, ann, *[bytes(size)] * (fit + 2), b"small")
    assert len(router.to(ann)) == fit
    push(out, bob, bytes(size))
    assert len(router.to(bob)) == 1
    out.retry(1.0)
    assert len(router.to(ann)) == fit, "none of them was written"
    router.held.clear()  # libzmq lets go of their memory
    assert eventually(lambda: all(tracker.done for tracker, _ in ann.in_flight), 5)
    out.retry(2.0)
    assert router.to(ann)[fit:] == [bytes(size), bytes(size), b"small"]


def test_a_peer_that_is_gone_is_told_and_gets_nothing_more(out: Delivery, router: Router) -> None:
    ann, bob = seated("ann"), seated("bob")
    told: list[bytes] = []

    def gone(routing_id: bytes) -> None:
        told.append(routing_id)
        ann.lost, ann.seated = True, False
        out.leave(ann)
        out.unsent.append((bob, [b"what ann's end has ended"]))

    out.gone = gone
    router.gone.add(b"ann")
    out.unsent += [(ann, [b"1"]), (ann, [b"2"]), (bob, [b"3"])]
    out.push_all()
    assert told == [b"ann"]
    assert router.to(bob) == [b"3", b"what ann's end has ended"], "in the same turn"
    assert (out.stalled, ann.outbox) == (set(), None)


def test_an_outbox_ends_with_its_connection(out: Delivery, router: Router) -> None:
    ann = seated("ann")

    def gone(routing_id: bytes) -> None:
        ann.lost, ann.seated = True, False
        out.leave(ann)

    out.gone = gone
    router.room[b"ann"] = 0
    push(out, ann, b"1", b"2")
    router.gone.add(b"ann")
    out.retry(1.0)
    assert (out.stalled, ann.outbox) == (set(), None)
    router.gone.clear()
    router.room.clear()
    ann.take_seat(b"ann again", 2.0)
    push(out, ann, b"3")
    assert router.sent == [(b"ann again", [b"3"])]


def test_replies_wait_for_others_but_not_for_many_nor_for_long(out: Delivery, router: Router) -> None:
    ann = seated("ann")
    out.push_by = 1.0
    out.unsent.append((ann, [b"1"]))
    out.push_some(0.9)
    assert not router.sent
    out.push_some(1.0)
    assert (len(router.sent), out.push_by) == (1, 1.0 + PUSH_S)
    out.unsent += [(ann, [b"x"])] * PUSH_AT
    out.push_some(1.0)
    assert len(router.sent) == 1 + PUSH_AT


def test_the_last_words_come_behind_what_was_not_read(out: Delivery, router: Router) -> None:
    ann = seated("ann")
    router.room[b"ann"] = 0
    push(out, ann, b"1", b"2")
    del router.room[b"ann"]
    out.finish(ann, [b"goodbye"])
    assert router.to(ann) == [b"1", b"2", b"goodbye"]
