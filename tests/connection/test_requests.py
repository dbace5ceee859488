"""The bookkeeping of a client, without sockets."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents.agents.context import RunningCall
from zmqagents.codec import encode_call
from zmqagents.connection.requests import Call, Repeat, Request
from zmqagents.connection.session import LARGE_BYTES, Outstanding
from zmqagents.errors import HostBusy
from zmqagents.wire.link import Waiter
from zmqagents.wire.messages import Frame, Reply


class Message:
    def __init__(self, repeat: Repeat = Repeat.ONCE, is_call: bool = True) -> None:
        self.repeat = repeat
        self.is_call = is_call
        self.deadline: float | None = None

    def to_frames(
        self, call_id: int, token: int, server_id: str, needed: int, resent: bool, one_clock: bool
    ) -> list[Frame]:
        return [b""]

    def kept_as(self, task_id: str) -> str | None:
        return None


class Sink:
    def deliver(self, reply: Reply | None) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def chunk(self, item: Reply) -> None: ...


def request(repeat: Repeat = Repeat.ONCE, *, sink: Any = None, deadline: float | None = None) -> Request:
    return Request(Message(repeat), sink or Sink(), deadline)


class Services:
    """Those of a host, for code that asks for none of them."""

    def chain_of(self, call: RunningCall) -> list[str]:
        return []


@pytest.mark.parametrize("timeout", [4.0, 5.0, 6.0])
def test_a_call_made_in_a_call_has_no_later_deadline_than_that(timeout: float) -> None:
    services: Any = Services()
    end = time.monotonic() + 5
    made = Call("b", "m", encode_call((), {}), 0, None, timeout, RunningCall(services, "client-1", "a", "m", end))
    assert made.deadline is not None
    assert made.deadline <= end
    assert (made.deadline == end) == (timeout >= 5)


def send_all(book: Outstanding, size: int = 10) -> list[int]:
    """Send what may be sent; the ids in their order."""
    book.take_in()
    ids = []
    while (each := book.next_to_send()) is not None:
        book.sent(each, size)
        ids.append(each.call_id)
    return ids


def test_requests_go_out_in_their_order_and_wait_for_an_answer() -> None:
    book = Outstanding()
    requests = [request() for _ in range(3)]
    assert [book.add(each) for each in requests] == [1, 2, 3]
    assert send_all(book) == [1, 2, 3]
    assert book.answered(2) is requests[1]
    assert book.answered(2) is None
    assert len(book) == 2


def test_what_was_dropped_before_it_was_sent_is_not_sent() -> None:
    book = Outstanding()
    for _ in range(3):
        book.add(request())
    assert book.drop(2)
    assert not book.drop(2)
    assert send_all(book) == [1, 3]


def test_no_more_calls_are_open_than_the_host_allows() -> None:
    book = Outstanding()
    book.max_calls = 2
    for _ in range(4):
        book.add(request())
    assert send_all(book) == [1, 2]
    book.answered(1)
    assert send_all(book) == [3]
    assert book.add(request()) == 5
    with pytest.raises(HostBusy, match="twice what the host takes"):
        book.add(request())


def test_a_call_goes_out_at_once_only_where_nothing_is_to_go_before_it_and_one_more_may_be_open() -> None:
    book = Outstanding()
    book.max_calls = 3
    assert book.begin(request()) == 1
    waits = request()
    assert book.add(waits) == 2
    assert not book.begin(request()), "it would overtake what was asked before"
    assert send_all(book) == [2]
    assert book.begin(third := request()) == 3
    assert (third.call_id, third.sent, book.find(3)) == (3, True, third)
    assert not book.begin(request()), "the host allows no more"
    assert book.answered(1) is not None
    assert book.lowest() == 2
    assert book.begin(request()) == 4


def test_large_messages_wait_until_there_is_room_but_one_alone_never_does() -> None:
    book = Outstanding()
    book.max_open_bytes = 3 * LARGE_BYTES
    first = request()
    book.add(first)
    assert book.has_room_for(100 * LARGE_BYTES)
    assert send_all(book, 2 * LARGE_BYTES) == [1]
    assert not book.has_room_for(2 * LARGE_BYTES)
    assert book.has_room_for(10)
    book.answered(1)
    assert book.has_room_for(2 * LARGE_BYTES)


def test_the_lowest_needed_reply_moves_on_with_the_oldest_answer() -> None:
    book = Outstanding()
    for sink in (None, Waiter(), None):
        book.add(request(sink=sink))
    assert book.lowest() == 1
    book.answered(2)
    assert book.lowest() == 1
    book.answered(1)
    assert book.lowest() == 3
    book.answered(3)
    assert book.lowest() == 4
    book.add(request())
    assert book.lowest() == 4


def test_overdue_requests_are_given_out_once() -> None:
    book = Outstanding()
    for deadline in (5.0, 3.0, None):
        book.add(request(deadline=deadline))
    send_all(book)
    assert book.due == 3.0
    assert [each.call_id for each in book.take_overdue(4.0)] == [2]
    assert [each.call_id for each in book.take_overdue(9.0)] == [1]
    assert book.due == math.inf


def test_a_busy_host_is_asked_again_at_the_time() -> None:
    book = Outstanding()
    book.add(request())
    send_all(book)
    found = book.find(1)
    assert found is not None
    book.try_later(found, 2.0)
    assert not book.take_ready(1.9)
    assert send_all(book) == []
    assert book.take_ready(2.0)
    assert send_all(book) == [1]


def test_a_broken_connection_sends_the_rest_again_before_what_is_new() -> None:
    book = Outstanding()
    for repeat in (Repeat.ONCE, Repeat.SAFE):
        book.add(request(repeat))
    send_all(book)
    book.add(request())
    book.take_in()
    lost = book.carry_over(lambda each: each.message.repeat is not Repeat.ONCE)
    assert [each.call_id for each in lost] == [1]
    assert send_all(book) == [2, 3]


@given(st.lists(st.sampled_from(["add", "send", "answer", "drop", "break"]), max_size=60), st.randoms())
def test_every_request_is_answered_dropped_or_there_and_the_lowest_is_right(steps: list[str], random: Any) -> None:
    book, there = Outstanding(), dict[int, Request]()
    book.max_calls = 5
    for step in steps:
        if step == "add" and len(there) < 10:
            each = request(sink=Waiter() if random.random() < 0.3 else None)
            there[book.add(each)] = each
        elif step == "send":
            send_all(book)
        elif step == "break":
            assert book.carry_over(lambda _: True) == []
        elif there:
            call_id = random.choice(sorted(there))
            if step == "drop":
                assert book.drop(call_id)
                del there[call_id]
            elif there[call_id].sent:
                assert book.answered(call_id) is there.pop(call_id)
        assert len(book) == len(there)
        assert book.lowest() == min(there, default=book.highest + 1)
    book.max_calls = 1000
    send_all(book)
    assert all(each.sent for each in there.values())
