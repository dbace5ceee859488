"""What every process of a host is told."""

from __future__ import annotations

from typing import Any

from world import World
from zmqagents.codec import pack
from zmqagents.members.answers import Answers
from zmqagents.members.members import Members


def test_what_is_told_again_counts_from_then_on_and_is_kept_once() -> None:
    nothing: Any = None
    members = Members(
        World().dispatcher, nothing, None, post=nothing, carry_out=nothing, pass_on=nothing, starve=nothing,
        clock=nothing,
    )  # fmt: skip
    told = [("models", "a"), ("models", "b"), ("classes", "a"), ("models", "a")]
    for op, what in told * 100:
        members.teach(op, (pack(what), memoryview(b"buffer")), Answers())
    found = [(lesson.method, lesson.body.payload) for lesson in members.lessons]
    assert found == [(op, pack(what)) for op, what in told[1:]]
