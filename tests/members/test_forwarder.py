"""What is sent to a member."""

from __future__ import annotations

from world import World
from zmqagents.members.forwarder import request_of


def test_a_call_on_a_member_has_the_very_deadline_that_it_has_on_its_host() -> None:
    world = World()
    world.agent("a")
    for timeout in (0.001, 5.0, 1000.0):
        called = world.send("a", timeout=timeout)
        assert request_of(called.t, world.dispatcher).deadline == called.t.deadline == world.now + timeout
    assert request_of(world.send("a").t, world.dispatcher).deadline is None
