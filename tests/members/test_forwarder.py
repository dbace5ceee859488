"""What is sent to a member."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from world import World
from zmqagents.codec import pack
from zmqagents.members.forwarder import SHORT_CALL_BYTES, Forwarder, request_of
from zmqagents.scheduler.dispatcher import Ticket
from zmqagents.wire.messages import Call, Flag, Frame, parse_client


class Wire:
    """A line that keeps what it is asked; ``at_once``: whether by the short way."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, bool]] = []

    def ask(self, message: Any, sink: Any) -> int:
        self.asked.append((message, False))
        return len(self.asked)

    def ask_at_once(self, message: Any, sink: Any) -> int:
        self.asked.append((message, True))
        return len(self.asked)


def forwarder_of(world: World) -> tuple[Forwarder, Wire]:
    wire = Wire()
    outlet = SimpleNamespace(dispatcher=world.dispatcher, services=None, running={})
    return Forwarder(wire, outlet, lambda *told: None), wire  # type: ignore[arg-type]


def a_call(
    world: World, *, body: tuple[Frame, ...], flags: int = 0, timeout_ms: int = 5000, call_id: int = 100
) -> Ticket:
    world.see(world.dispatcher.on_call(world.client, Call(100, flags, timeout_ms, "a", "m", (), {}, body), world.now))
    return world.dispatcher.tasks["client-100"]


def read(message: Any, *, one_clock: bool) -> Call:
    found = parse_client(message.to_frames(5, 7, "server", 3, False, one_clock))
    assert isinstance(found, Call)
    return found


def test_a_call_on_a_member_has_the_very_deadline_that_it_has_on_its_host() -> None:
    world = World()
    world.agent("a")
    for timeout in (0.001, 5.0, 1000.0):
        called = world.send("a", timeout=timeout)
        assert request_of(called.t, world.dispatcher).deadline == called.t.deadline == world.now + timeout
    assert request_of(world.send("a").t, world.dispatcher).deadline is None


@given(
    st.binary(max_size=SHORT_CALL_BYTES), st.sampled_from([0, 1, 5000, 2**32 - 1]), st.booleans(),
    st.sampled_from([0, Flag.DETACHED, Flag.IDEMPOTENT, Flag.WATCHED]),
)  # fmt: skip
def test_a_short_call_is_sent_as_any_other_in_fewer_steps(
    payload: bytes, timeout_ms: int, one_clock: bool, flags: int
) -> None:
    world = World()
    world.agent("a")
    ticket = a_call(world, body=(payload,), flags=flags, timeout_ms=timeout_ms)
    forwarder, wire = forwarder_of(world)
    forwarder.start(ticket)
    ((short, at_once),) = wire.asked
    assert at_once
    sent, general = (read(each, one_clock=one_clock) for each in (short, request_of(ticket, world.dispatcher)))
    assert sent._replace(time_ms=0) == general._replace(time_ms=0)
    assert abs(sent.time_ms - general.time_ms) <= 50, "what is left of the time; the same moment where clocks agree"
    assert forwarder.sent == [ticket]
    assert ticket.context is not None


@pytest.mark.parametrize(
    ("flags", "body"),
    [
        (0, (bytes(SHORT_CALL_BYTES + 1),)),
        (0, (b"payload", b"buffer")),
        (Flag.STREAM, (b"payload",)),
    ],
)
def test_what_is_long_or_more_than_a_call_takes_the_general_way(flags: int, body: tuple[bytes, ...]) -> None:
    world = World()
    world.agent("a")
    forwarder, wire = forwarder_of(world)
    forwarder.start(a_call(world, body=body, flags=flags))
    ((message, at_once),) = wire.asked
    assert at_once == (len(body) == 1 and len(body[0]) <= SHORT_CALL_BYTES)
    assert message.options["task"] == "client-100"


def test_a_call_in_a_call_takes_its_chain_along() -> None:
    world = World()
    world.agent("a")
    world.agent("b")
    outer = world.running("a")
    inner = world.send("b", parent=outer)
    forwarder, wire = forwarder_of(world)
    forwarder.start(inner.t)
    ((message, _),) = wire.asked
    assert len(message.options["chain"]) == 1
    assert pack(message.options)
