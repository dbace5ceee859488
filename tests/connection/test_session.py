"""The protocol of a client with its host, without a socket and with a clock that the tests move."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents import AuthenticationError, CallLost, CallTimeout, HostStopping, HostUnreachable, MessageTooLarge, codec
from zmqagents.connection import session as limits
from zmqagents.connection.requests import Call, Credit, Fetch, Plain, Request
from zmqagents.connection.session import Session, State
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind, Reply
from zmqagents.wire.transport import Event

NOTHING = codec.encode_call((), {})


class Outcome:
    """A sink that keeps what has come."""

    def __init__(self) -> None:
        self.replies: list[Reply | None] = []
        self.errors: list[Exception] = []
        self.chunks: list[Reply] = []

    def deliver(self, reply: Reply | None) -> None:
        self.replies.append(reply)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)

    def chunk(self, item: Reply) -> None:
        self.chunks.append(item)

    @property
    def count(self) -> int:
        return len(self.replies) + len(self.errors)


def new_session() -> Session:
    return Session("there:1", jitter=lambda low, high: low)


def ask(session: Session, flags: int = 0, deadline: float | None = None) -> Outcome:
    outcome = Outcome()
    session.book.add(Request(Call("a", "m", NOTHING, flags, None, None, None), outcome, deadline))
    return outcome


def kind_of(message: list[messages.Frame] | None) -> int | None:
    return None if message is None else messages.parse_header(message[0]).kind


def greet(session: Session, now: float, *, epoch: str = "e", flags: int = 0, **facts: int) -> None:
    session.connect(now)
    session.dial("ipc:///there")
    assert session.state is State.CONNECTING
    assert kind_of(session.on_event(Event.READY, now)) == Kind.HELLO
    assert session.state is State.GREETING
    welcome = codec.pack({"server_id": "s", "epoch": epoch, **facts})
    session.received([messages.header(Kind.WELCOME, 0, 7, flags=flags), welcome], now)
    assert session.state is State.READY


def send_all(session: Session) -> list[messages.Header]:
    sent = []
    while (message := session.next_message()) is not None:
        sent.append(messages.parse_header(message[0]))
    return sent


def answer(session: Session, call_id: int, now: float) -> None:
    session.received(messages.answer_frames(Kind.RESULT, call_id, 7, (codec.pack(1),)), now)


def test_a_request_is_answered_and_the_reply_acknowledged_in_time() -> None:
    session = new_session()
    outcome = ask(session)
    greet(session, 0.0)
    assert [head.kind for head in send_all(session)] == [Kind.CALL]
    answer(session, 1, 1.0)
    assert [reply and reply.body for reply in outcome.replies] == [(codec.pack(1),)]
    assert session.next_due() == 1.0 + limits.ACK_WITHIN_S
    assert kind_of(session.look(session.next_due())) == Kind.ACK
    assert session.next_due() == 1.0 + limits.PING_IDLE_S


def test_a_silent_host_is_pinged_and_then_given_up() -> None:
    session = new_session()
    outcome = ask(session)
    greet(session, 0.0)
    send_all(session)
    assert session.next_due() == limits.PING_BUSY_S
    assert kind_of(session.look(limits.PING_BUSY_S)) == Kind.PING
    assert session.next_due() == limits.DEAD_S
    assert session.look(limits.DEAD_S) is None
    assert (session.state, session.linked, outcome.count) == (State.LOST, False, 0)


def test_a_handshake_without_an_answer_fails_what_was_asked_before_it() -> None:
    session = new_session()
    before = ask(session)
    session.connect(0.0)
    after = ask(session)
    assert session.next_due() == limits.CONNECT_TIMEOUT_S
    session.look(limits.CONNECT_TIMEOUT_S)
    assert [type(error) for error in before.errors] == [HostUnreachable]
    assert (session.state, after.count) == (State.IDLE, 0)


def test_a_request_that_is_overdue_fails_once() -> None:
    session = new_session()
    outcome = ask(session, deadline=3.0)
    greet(session, 0.0)
    send_all(session)
    session.look(3.0)
    answer(session, 1, 3.1)
    assert [type(error) for error in outcome.errors] == [CallTimeout]
    assert outcome.count == 1


def test_a_host_that_resumes_is_asked_again_for_all() -> None:
    session = new_session()
    call, stream = ask(session), ask(session, Flag.STREAM)
    greet(session, 0.0)
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    assert session.state is State.LOST
    assert stream.errors == []
    greet(session, session.next_try, flags=Flag.RESUMED)
    again = send_all(session)
    assert [(head.call_id, bool(head.flags & Flag.RESENT)) for head in again] == [(1, True), (2, True)]
    answer(session, 1, 2.0)
    assert (len(call.replies), call.errors) == (1, [])


def chunk(session: Session, number: int, token: int | None = None) -> None:
    """An item of the stream 1 comes."""
    token = session.token if token is None else token
    session.received(messages.answer_frames(Kind.CHUNK, 1, token, (b"item",), time_ms=number), 2.0)


def test_a_stream_says_where_it_goes_on_and_what_credit_it_has_sent() -> None:
    session = new_session()
    stream = ask(session, Flag.STREAM)
    greet(session, 0.0)
    send_all(session)
    for number in range(10):
        chunk(session, number)
    session.book.add(Request(Credit(1, 8), None, None))
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    session.book.add(Request(Credit(1, 8), None, None))  # is not sent: it follows the call
    greet(session, session.next_try, flags=Flag.RESUMED)
    parts = session.next_message()
    assert parts is not None
    message = messages.parse_client(parts)
    assert isinstance(message, messages.Call)
    assert message.options == {"stream": [10, 8]}
    assert len(stream.chunks) == 10


def test_an_item_that_comes_twice_or_too_early_is_dropped_and_so_is_an_end_before_its_items() -> None:
    session = new_session()
    stream = ask(session, Flag.STREAM)
    greet(session, 0.0)
    send_all(session)
    for number in (0, 0, 2, 1):
        chunk(session, number)
    assert len(stream.chunks) == 2
    early = messages.answer_frames(Kind.RESULT, 1, session.token, (b"end",), time_ms=3)
    session.received(early, 2.0)
    assert stream.replies == []
    chunk(session, 2)
    session.received(early, 2.0)
    assert (len(stream.chunks), len(stream.replies)) == (3, 1)


def test_a_new_host_is_asked_again_only_for_what_may_be_repeated() -> None:
    session = new_session()
    once, safe = ask(session), ask(session, Flag.IDEMPOTENT)
    greet(session, 0.0)
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    greet(session, session.next_try, epoch="another")
    assert [head.call_id for head in send_all(session)] == [2]
    assert ([type(error) for error in once.errors], safe.count) == ([CallLost], 0)


def test_pauses_between_attempts_grow_and_what_may_be_repeated_is_lost_last() -> None:
    session = new_session()
    once, safe = ask(session), ask(session, Flag.IDEMPOTENT)
    greet(session, 0.0)
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    now, pauses = 1.0, []
    while session.state is State.LOST:
        pauses.append(session.next_try - now)
        now = session.next_try
        session.connect(now)
        session.on_event(Event.REFUSED, now)
        assert bool(once.errors) == (now - 1.0 >= limits.DEAD_HOST_S)
    assert all(later > before - 1e-6 for before, later in itertools.pairwise(pauses))
    assert max(pauses) == pytest.approx(0.8 * limits.RETRY_S[1])
    assert now - 1.0 == pytest.approx(limits.GIVE_UP_S, abs=1)
    assert [type(error) for error in safe.errors] == [CallLost]
    assert session.state is State.IDLE


def cut_while_it_fetches(at_home: bool) -> tuple[Session, Outcome]:
    """A session that had asked for a result when its connection broke, at 1 s."""
    session, outcome = new_session(), Outcome()
    session.book.add(Request(Fetch("other-1", 1000, at_home=at_home), outcome, None))
    greet(session, 0.0)
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    return session, outcome


@pytest.mark.parametrize("at_home", [True, False])
def test_a_result_is_given_up_with_its_host_if_that_made_it(at_home: bool) -> None:
    session, outcome = cut_while_it_fetches(at_home)
    while session.state is State.LOST:
        now = session.next_try
        session.connect(now)
        session.on_event(Event.REFUSED, now)
    assert [type(error) for error in outcome.errors] == [CallLost]
    assert now - 1.0 == pytest.approx(limits.DEAD_HOST_S if at_home else limits.GIVE_UP_S, abs=1)


@pytest.mark.parametrize("at_home", [True, False])
def test_the_successor_of_a_host_is_asked_for_its_results(at_home: bool) -> None:
    session, outcome = cut_while_it_fetches(at_home)
    greet(session, session.next_try, epoch="another")
    assert [head.kind for head in send_all(session)] == [Kind.FETCH]
    assert outcome.count == 0


def test_a_lost_session_with_nothing_open_rests() -> None:
    session = new_session()
    ask(session, deadline=2.0)
    greet(session, 0.0)
    send_all(session)
    session.on_event(Event.CUT, 1.0)
    session.look(2.0)
    assert (session.state, session.next_due()) == (State.IDLE, math.inf)


@pytest.mark.parametrize(("endpoint", "error"), [("tcp://x:1", AuthenticationError), ("ipc:///x", HostUnreachable)])
def test_handshakes_that_break_off_are_blamed_on_the_key_after_a_while_and_only_on_tcp(
    endpoint: str, error: type[Exception]
) -> None:
    session = new_session()
    outcome = ask(session)
    session.book.take_in()
    now = 0.0
    while not outcome.count:
        session.connect(now)
        session.dial(endpoint)
        session.on_event(Event.BROKEN_OFF, now)
        if not outcome.count:
            now = session.next_due()
    assert [type(each) for each in outcome.errors] == [error]
    assert now >= (limits.DOUBT_S if error is AuthenticationError else 0.0)


@pytest.mark.parametrize("endpoint", ["tcp://x:1", "ipc:///x"])
def test_a_first_connection_that_is_cut_before_it_stands_is_tried_again_for_a_while(endpoint: str) -> None:
    def cut_at(now: float) -> None:
        session.connect(now)
        session.dial(endpoint)
        session.on_event(Event.CUT, now)

    session = new_session()
    outcome = ask(session)
    session.book.take_in()
    cut_at(0.0)
    assert (session.state, outcome.count) == (State.IDLE, 0)
    while not outcome.count:
        now = session.next_due()
        cut_at(now)
    assert [type(error) for error in outcome.errors] == [HostUnreachable]
    assert limits.DOUBT_S <= now < 3 * limits.DOUBT_S


def test_a_host_that_says_goodbye_is_not_asked_again() -> None:
    session = new_session()
    outcome = ask(session)
    greet(session, 0.0)
    send_all(session)
    session.received([messages.header(Kind.GOODBYE, 0, 7)], 1.0)
    assert [type(error) for error in outcome.errors] == [HostStopping]
    assert (session.state, session.linked) == (State.IDLE, False)


def test_a_message_beyond_the_limit_fails_alone() -> None:
    session = new_session()
    greet(session, 0.0, max_message_bytes=1000)
    big = Outcome()
    session.book.add(Request(Plain(Kind.FETCH, None, bytes(5000)), big, None))
    small = ask(session)
    assert [head.call_id for head in send_all(session)] == [2]
    assert ([type(error) for error in big.errors], small.count) == ([MessageTooLarge], 0)


def test_a_short_call_that_goes_out_at_once_says_what_is_needed_no_more_and_is_answered_as_any_other() -> None:
    session = new_session()
    greet(session, 1.0)
    first, second = Outcome(), Outcome()
    for outcome in (first, second):
        call = Call("a", "m", codec.encode_call((), {}), 0, None, None, None)
        parts = session.begin_short(request := Request(call, outcome, None))
        assert parts is not None
        (read,) = [messages.parse_client(parts)]
        assert (read.call_id, read.needed) == (request.call_id, request.call_id)  # type: ignore[union-attr]
        answer(session, request.call_id, 2.0)
        assert outcome.count == 1
    assert not session.book


def test_a_call_that_is_too_long_to_go_out_at_once_leaves_nothing_behind() -> None:
    session = new_session()
    greet(session, 1.0)
    call = Call("a", "m", codec.encode_call((), {}), 0, {"x": "x" * messages.MAX_META_BYTES}, None, None)
    with pytest.raises(MessageTooLarge):
        session.begin_short(Request(call, Outcome(), None))
    odd = Call("a", "m", codec.encode_call((), {}), 0, {"x": object()}, None, None)
    with pytest.raises(Exception, match="object"):
        session.begin_short(Request(odd, Outcome(), None))
    assert not session.book
    ask(session)
    assert [head.call_id for head in send_all(session)] == [3]


def test_nothing_follows_the_end() -> None:
    session = new_session()
    outcome = ask(session)
    greet(session, 0.0)
    session.close(CallLost("gone"))
    assert (session.state, session.linked, session.bye(), outcome.count) == (State.CLOSED, False, None, 1)


STEPS = ["ask", "stream", "answer", "cut", "refused", "goodbye", "need hello", "broken off", "wait"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.floats(0.0, 20.0)), max_size=50))
def test_whatever_happens_every_request_has_one_outcome_and_the_token_goes_with_the_state(
    steps: list[tuple[str, float]],
) -> None:
    session, outcomes, now = new_session(), list[Outcome](), 0.0
    for step, pause_s in steps:
        now += pause_s if step == "wait" else 0.0
        if not session.linked and now >= session.next_try and session.state is not State.CLOSED:
            session.connect(now)
            session.dial("tcp://there:1")
        if step in ("ask", "stream"):
            outcomes.append(ask(session, Flag.STREAM if step == "stream" else 0))
        elif not session.linked:
            pass
        elif step == "answer":
            if session.state is State.CONNECTING:
                session.on_event(Event.READY, now)
            elif session.state is State.GREETING:
                welcome = codec.pack({"server_id": "s", "epoch": "e"})
                session.received([messages.header(Kind.WELCOME, 0, 7), welcome], now)
            else:
                for head in send_all(session)[:1]:
                    answer(session, head.call_id, now)
        elif step in ("goodbye", "need hello"):
            kind = Kind.GOODBYE if step == "goodbye" else Kind.NEED_HELLO
            session.received([messages.header(kind, 0, 7)], now)
        elif step != "wait":
            event = {"cut": Event.CUT, "refused": Event.REFUSED, "broken off": Event.BROKEN_OFF}[step]
            session.on_event(event, now)
        session.look(now)
        assert bool(session.token) == (session.state is State.READY)
        assert session.linked == (session.state in (State.CONNECTING, State.GREETING, State.READY))
        assert all(outcome.count <= 1 for outcome in outcomes)
        assert len(session.book) == sum(outcome.count == 0 for outcome in outcomes)
    session.close(CallLost("gone"))
    assert all(outcome.count == 1 for outcome in outcomes)


# What a host of the first version with a wheel has said, before its protocol had a minor version.
OLD_WELCOME = [
    bytes.fromhex("5a410141" + "00" * 12 + "580012b77fc531b900000000"),
    b"\x8b\xa9server_id\xb0127-0-0-1-14b7d7\xa4host\xa9127.0.0.1\xa4port\xcd\x8c\xd3\xa5epoch\xb02b837d1ab97824cf"
    b"\xa7address\xaf127.0.0.1:36051\xb1max_message_bytes\xce\x10\x00\x00\x00\xadmax_timeout_s\xcb@\x14\x00\x00\x00"
    b"\x00\x00\x00\xa6pickle\xc2\xa7version\xa50.1.0\xa9max_calls\xcd@\x00\xaemax_open_bytes\xce\x10\x00\x00\x00",
]


def test_a_host_that_is_too_old_is_told_by_its_welcome_and_nothing_is_sent_to_it() -> None:
    session = new_session()
    session.connect(0.0)
    outcome = ask(session)
    session.dial("ipc:///there")
    session.on_event(Event.READY, 0.0)
    session.received(list(OLD_WELCOME), 0.0)
    assert "upgrade hosts before their clients" in str(outcome.errors)
    assert session.state is State.IDLE
    assert session.next_message() is None
