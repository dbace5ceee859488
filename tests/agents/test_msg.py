"""`Msg` arrives as a `Msg`."""

from __future__ import annotations

from zmqagents import Msg
from zmqagents.codec import decode, encode


def test_a_message_arrives_as_a_message_at_any_depth() -> None:
    message = Msg("alice", {"text": "hello", "parts": (1, 2)}, role="user", metadata={"n": 1})
    there = decode(encode([message, {"again": message}]).payload)
    assert there == [message, {"again": message}]
    assert type(there[0]) is Msg
    assert there[0].content["parts"] == (1, 2)


def test_two_messages_are_told_apart_by_their_ids() -> None:
    assert Msg("a", "x").id != Msg("a", "x").id


def test_a_message_goes_through_a_dict_and_ignores_fields_that_it_does_not_know() -> None:
    message = Msg("bob", "hi")
    assert Msg.from_dict({**message.to_dict(), "invocation_id": "later versions have this"}) == message
