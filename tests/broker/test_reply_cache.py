"""What a host remembers of the replies that it has given to one client."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents.broker.session import NOTE_BYTES, STEP_BYTES, ReplyCache
from zmqagents.wire.messages import Reply


def reply(size: int) -> Reply:
    return Reply(0, (b"x" * size,))


def test_a_reply_is_there_until_the_client_needs_it_no_more() -> None:
    cache = ReplyCache(1 << 20)
    cache.note(1, reply(10))
    cache.note(2, reply(20))
    assert cache.find(1) == reply(10)
    cache.acknowledge(2)
    with pytest.raises(KeyError):
        cache.find(1)
    assert cache.find(2) == reply(20)
    assert cache.bytes == 20 + NOTE_BYTES


def test_beyond_the_limit_the_oldest_replies_go_but_not_that_they_were_given() -> None:
    cache = ReplyCache(3 * (1000 + NOTE_BYTES))
    for call_id in range(1, 6):
        cache.note(call_id, reply(1000))
    assert [cache.find(call_id) is None for call_id in range(1, 6)] == [True, True, False, False, False]
    assert cache.bytes <= 3 * (1000 + NOTE_BYTES)


def test_replies_beyond_the_limit_cost_the_same_time_however_many_went_before() -> None:
    cache, took = ReplyCache(100_000), []
    for start in range(1, 100_001, 20_000):
        began = time.perf_counter()
        for call_id in range(start, start + 20_000):
            cache.note(call_id, reply(100))
        took.append(time.perf_counter() - began)
    assert cache.bytes <= 100_000
    assert min(took[3:]) < 10 * min(
        took[:2]
    )  # it was a thousand times as long when each looked at all that went before


def test_an_acknowledgement_of_everything_that_ever_may_come_costs_no_time() -> None:
    cache = ReplyCache(1 << 20)
    cache.note(7, reply(1))
    cache.acknowledge(2**63)
    assert (len(cache), cache.bytes) == (0, 0)
    cache.note(8, reply(1))  # not needed
    assert len(cache) == 0


@given(st.lists(st.tuples(st.sampled_from(["note", "acknowledge"]), st.integers(1, 40), st.integers(0, 500))))
def test_it_keeps_just_what_was_noted_and_is_needed_and_counts_its_bytes(steps: list[tuple[str, int, int]]) -> None:
    cache, model, needed = ReplyCache(1 << 30), dict[int, Reply](), 1
    for what, number, size in steps:
        if what == "note" and number not in model:
            cache.note(number, reply(size))
            if number >= needed:
                model[number] = reply(size)
        elif what == "acknowledge":
            cache.acknowledge(number)
            needed = max(needed, number)
            model = {call_id: kept for call_id, kept in model.items() if call_id >= needed}
        assert len(cache) == len(model)
        assert {call_id: cache.find(call_id) for call_id in model} == model
        assert cache.bytes == sum(len(kept.body[0]) + NOTE_BYTES for kept in model.values())


def test_a_reply_above_the_lowest_needed_one_goes_when_the_client_has_it() -> None:
    cache = ReplyCache(1 << 20)
    for call_id in (2, 3, 4):  # call 1 is still running
        cache.note(call_id, reply(100))
    cache.forget([2, 4, 99])
    assert (len(cache), cache.bytes) == (1, 100 + NOTE_BYTES)
    assert cache.find(3) == reply(100)


def test_a_client_that_acknowledges_nothing_costs_a_bounded_number_of_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zmqagents.broker.session.MAX_NOTES", 10)
    cache = ReplyCache(1 << 20)
    for call_id in range(1, 101):
        cache.note(call_id, reply(1))
        assert len(cache) <= 10
    cache.note(2, reply(7))  # it was open meanwhile
    assert cache.find(2) == reply(7)
    assert cache.find(50) is None  # answered, and dropped: it does not run again
    assert cache.find(100) == reply(1)


def test_a_cache_that_may_not_grow_drops_the_oldest_replies_and_asks_again_only_after_some_more() -> None:
    asked = []

    def may_grow() -> bool:
        asked.append(cache.bytes)
        return len(asked) <= 1

    cache = ReplyCache(1 << 30, may_grow)
    mebibyte = reply(1 << 20)
    for call_id in range(1, 201):
        cache.note(call_id, mebibyte)
        assert cache.bytes <= 2 * STEP_BYTES
    assert 2 < len(asked) < 40
    assert cache.find(200) is mebibyte
    assert cache.find(1) is None
