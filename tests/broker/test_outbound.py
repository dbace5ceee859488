"""Sending without a socket: order, limits, and clients that do not read or are no more."""

from __future__ import annotations

import pytest

from lines import Line
from zmqagents.broker.delivery import LARGE_BYTES, PUSH_AT, PUSH_S, Delivery
from zmqagents.broker.session import BUSY_MS, Session
from zmqagents.config import BrokerConfig
from zmqagents.scheduler.shares import Account, Shares
from zmqagents.wire import messages
from zmqagents.wire.messages import Code, Frame, Hello, Kind, Reply

LIMIT = 1000


class Post:
    """A `Delivery` with two clients, Ann and Bob; who was dropped is in ``dropped``."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.dropped: list[Session] = []
        self.shares = Shares(BrokerConfig(max_unread_bytes=limit))
        self.out = Delivery(limit, self.shares, self.dropped.append, lambda session: None)
        self.ann, self.bob = Line("ann", "ann"), Line("bob", "bob")
        self.to_ann, self.to_bob = self.seated(self.ann), self.seated(self.bob)

    def seated(self, line: Line) -> Session:
        return seated(line, self.shares.account(line.user))

    def push(self, session: Session, *messages: Frame) -> None:
        self.out.unsent += [(session, [message]) for message in messages]
        self.out.push_all()

    def make_room(self, line: Line, room: int) -> None:
        """As a listener does that sees that a client reads again."""
        line.room, line.pending = room, False
        self.out.go_on(line.session)


def seated(line: Line, account: Account | None = None) -> Session:
    hello = Hello(0, line.name.encode().ljust(messages.CLIENT_ID_BYTES), {})
    session = Session(hello, account or Account(line.user), "call", LIMIT)
    session.take_seat(line, 0.0)
    return session


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.mark.parametrize(
    ("code", "kind", "time_ms"),
    [(Code.NONE, Kind.RESULT, 0), (Code.HOST_ERROR, Kind.ERROR, 0), (Code.BUSY, Kind.ERROR, BUSY_MS)],
)
def test_an_answer_says_what_it_is_and_when_to_come_again(post: Post, code: int, kind: Kind, time_ms: int) -> None:
    reply = Reply(code, (b"body",))
    message = post.to_ann.answer(7, reply)
    head, body = messages.split_answer(message)
    assert (head.kind, head.code, head.call_id, head.time_ms) == (kind, code, 7, time_ms)
    assert (head.token, body) == (post.to_ann.token, (b"body",))
    if code == Code.BUSY:
        with pytest.raises(KeyError):  # nothing was executed
            post.to_ann.replies.find(7)
    else:
        assert post.to_ann.replies.find(7) == reply


@pytest.mark.parametrize("size", [1, LARGE_BYTES])
def test_a_client_that_does_not_read_gets_it_later_in_order_and_the_others_do_not_notice(size: int) -> None:
    post = Post(limit=1 << 30)
    one, two, three, four = (bytes([number]) * size for number in range(4))
    post.ann.room = 1
    for session, text in ((post.to_ann, one), (post.to_bob, one), (post.to_ann, two), (post.to_bob, two)):
        post.out.unsent.append((session, [text]))
    post.push(post.to_ann, three)
    assert (post.ann.texts, post.bob.texts) == ([one], [one, two])
    post.ann.room = 1
    post.push(post.to_ann, four)  # there is room, but what was left comes first
    assert post.ann.texts == [one]
    post.make_room(post.ann, 1)
    assert (post.ann.texts, post.to_ann.unread_bytes) == ([one, two], 2 * size)
    post.make_room(post.ann, 9)
    assert post.ann.texts == [one, two, three, four]
    assert (post.to_ann.outbox, post.to_ann.unread_bytes) == (None, 0)


def test_a_client_with_too_much_unread_is_dropped(post: Post) -> None:
    post.ann.room = 0
    post.push(post.to_ann, bytes(LIMIT // 2), bytes(LIMIT // 2))
    assert not post.dropped
    post.push(post.to_ann, b"x")
    assert post.dropped == [post.to_ann]


def test_clients_of_one_user_that_do_not_read_are_dropped_before_all_together_hold_too_much(post: Post) -> None:
    post.ann.room = post.bob.room = 0
    others = []
    for number in range(3):
        line = Line(f"ann{number}", user=post.ann.user)
        line.room = 0
        others.append(post.seated(line))
    for session in (post.to_ann, *others):
        post.push(session, bytes(LIMIT // 2))
    assert post.dropped == [others[-1]]  # an eighth of twice the limit is kept for bob
    others[-1].clear()
    post.push(post.to_bob, bytes(LIMIT // 8))
    assert post.dropped == [others[-1]]
    for session in (post.to_ann, *others, post.to_bob):
        session.clear()
    assert [account.unread_bytes for account in (post.shares.everybody, post.to_ann.caller.account)] == [0, 0]


def test_what_a_dropped_client_ends_is_sent_in_the_same_turn() -> None:
    line, other = Line("ann"), Line("bob")
    ann, bob = seated(line), seated(other)

    def drop(session: Session) -> None:
        session.clear()
        out.unsent.append((bob, [b"what ann's end has ended"]))

    out = Delivery(LIMIT, Shares(BrokerConfig()), drop, lambda session: None)
    line.room = 0
    out.unsent += [(ann, [bytes(LIMIT + 1)]), (bob, [b"1"]), (ann, [b"2"])]
    out.push_all()
    assert other.texts == [b"1", b"what ann's end has ended"]
    assert ann.outbox is None, "a client without a seat is kept nothing for"


def test_a_client_that_is_gone_gets_nothing_more(post: Post) -> None:
    post.ann.is_cut = True
    post.out.unsent += [(post.to_ann, [b"1"]), (post.to_ann, [b"2"]), (post.to_bob, [b"3"])]
    post.out.push_all()
    assert post.ann.ended
    assert (post.ann.sent, post.ann.queued, post.to_ann.outbox) == ([], [], None)
    assert post.bob.texts == [b"3"]


def test_an_outbox_ends_with_its_connection(post: Post) -> None:
    post.ann.room = 0
    post.push(post.to_ann, b"1", b"2")
    post.to_ann.lose(1.0)
    assert (post.to_ann.outbox, post.to_ann.unread_bytes) == (None, 0)
    post.push(post.to_ann, b"3")
    assert post.to_ann.outbox is None
    again = Line("ann again")
    post.to_ann.take_seat(again, 2.0)
    post.push(post.to_ann, b"4")
    assert again.texts == [b"4"]


def test_replies_wait_for_others_but_not_for_many_nor_for_long(post: Post) -> None:
    post.out.unsent.append((post.to_ann, [b"1"]))
    post.out.push_some(1.0)
    assert not post.ann.sent
    post.out.push_some(1.0 + PUSH_S)
    assert len(post.ann.sent) == 1
    post.out.unsent += [(post.to_ann, [b"x"])] * PUSH_AT
    post.out.push_some(1.0 + PUSH_S)
    assert len(post.ann.sent) == 1 + PUSH_AT
    post.out.unsent.append((post.to_ann, [b"2"]))
    post.out.push_some(2.0)
    assert len(post.ann.sent) == 1 + PUSH_AT, "the time begins anew"
