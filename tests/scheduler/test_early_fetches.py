"""A question for the result of a call that comes before the call itself, with the time in the test's hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from world import UNKNOWN, Sent, World
from zmqagents.errors import AuthenticationError, CallCancelled, HostBusy, HostStopping, UnknownMethod, UnknownTask
from zmqagents.scheduler.fetches import EARLY_S
from zmqagents.scheduler.records import Peer
from zmqagents.wire.messages import Code, Flag


def world_with(**settings: Any) -> World:
    world = World(**settings)
    world.agents("a")
    return world


def next_task(world: World) -> str:
    """The task id of the next call of the client."""
    return f"client-{world.ids[world.client] + 1}"


def early(world: World, **how: Any) -> tuple[Sent, Peer]:
    """A question of another client for the next call of the client."""
    other = Peer("other")
    world.expected.add(next_task(world))
    return world.fetch_early(next_task(world), peer=other, **how), other


def nothing_is_left(world: World, peer: Peer) -> bool:
    fetches = world.dispatcher.calls.fetches
    return (peer.fetches, peer.account.early, fetches.early) == ({}, 0, {})


def test_a_question_that_came_before_its_call_gets_the_result_of_that_call() -> None:
    world = world_with()
    asked, other = early(world)
    assert asked.replies == []
    world.sleep(EARLY_S / 2)
    call = world.send("a", "m")
    assert asked.replies == []
    world.done(call)
    assert asked.replies == call.replies
    assert nothing_is_left(world, other)


def test_several_questions_wait_for_one_call_that_is_to_come() -> None:
    world = world_with()
    task_id = next_task(world)
    world.expected.add(task_id)
    peers = [Peer("one"), Peer("two")]
    asked = [world.fetch_early(task_id, peer=peer) for peer in (*peers, *peers)]
    call = world.send("a", "m")
    world.done(call)
    assert [each.replies for each in asked] == [call.replies] * 4
    assert all(nothing_is_left(world, peer) for peer in peers)


def test_a_question_for_a_call_that_does_not_come_is_a_look_into_the_store_after_a_while() -> None:
    world = world_with()
    asked, other = early(world)
    assert world.dispatcher.timers.due <= world.now + EARLY_S
    world.sleep(EARLY_S)
    assert nothing_is_left(world, other)
    (look,) = world.lookups
    assert (look.peer, look.call_id) == (other, asked.call_id)
    world.not_in_store(look)
    assert asked.replies == [UNKNOWN], "it is believed the second time"


def test_a_question_waits_for_its_call_no_longer_than_it_has_time() -> None:
    world = world_with()
    early(world, timeout=0.1)
    assert world.dispatcher.timers.due == pytest.approx(world.now + 0.1)


def test_a_question_that_would_not_wait_for_its_call_is_answered_at_once() -> None:
    world = world_with()
    asked, other = early(world, timeout=0.0)
    assert isinstance(asked.error, UnknownTask)
    assert nothing_is_left(world, other)


def test_a_question_for_a_task_that_no_client_is_about_to_make_is_answered_at_once() -> None:
    world = world_with()
    asked = world.fetch_early("nobody-7")
    assert isinstance(asked.error, UnknownTask)
    assert world.dispatcher.timers.due == math.inf
    assert nothing_is_left(world, world.client)


def test_a_question_that_came_before_its_call_is_asked_again_when_its_time_is_over() -> None:
    world = world_with()
    asked, other = early(world)
    world.send("a", "m")
    world.sleep(EARLY_S)
    assert (asked.replies, world.pendings) == ([], [(other, asked.call_id)])
    assert nothing_is_left(world, other)


def test_a_question_for_a_call_that_came_while_the_store_was_asked_waits_for_the_end_of_that() -> None:
    world = world_with()
    other = Peer("other")
    asked = world.fetch(next_task(world), peer=other)
    call = world.send("a", "m")
    world.not_in_store(world.lookups.pop())
    world.done(call)
    assert asked.replies == call.replies
    assert nothing_is_left(world, other)


def test_a_question_that_a_shared_store_cannot_answer_waits_for_its_call_as_well() -> None:
    world = world_with(pool_type="redis")
    asked, other = early(world)
    assert other.account.fetches == 0, "it does not wait for the store any more"
    call = world.send("a", "m")
    world.done(call)
    assert asked.replies == call.replies
    assert nothing_is_left(world, other)


def test_the_question_for_a_call_that_is_refused_gets_the_refusal() -> None:
    world = world_with()
    asked, other = early(world)
    call = world.send("a", "no_method")
    assert isinstance(asked.error, UnknownMethod)
    assert asked.replies == call.replies
    assert nothing_is_left(world, other)


def test_the_question_for_a_call_that_is_to_be_tried_again_goes_on_waiting() -> None:
    world = world_with(max_calls=1)
    held = world.send("a", "m")
    asked, _ = early(world)
    refused = world.send("a", "n")
    assert refused.replies[0].code == Code.BUSY
    assert asked.replies == []
    world.done(held)
    again = world.send("a", "n", call_id=refused.call_id)
    world.done(again)
    assert asked.replies == [again.replies[-1]]


def test_the_question_for_a_stream_is_refused_when_that_comes() -> None:
    world = world_with()
    asked, other = early(world)
    world.send("a", "m", flags=Flag.STREAM)
    assert "is a stream" in str(asked.error)
    assert nothing_is_left(world, other)


def test_what_one_user_asks_of_calls_that_do_not_come_is_bounded_and_that_of_another_goes_on() -> None:
    world = world_with(max_calls=1024)
    world.expected.update(f"client-{number}" for number in range(100, 200))
    for number in range(100, 114):
        assert world.fetch_early(f"client-{number}").replies == []
    refused = world.fetch_early("client-114")
    assert refused.replies[0].code == Code.BUSY
    assert isinstance(refused.error, HostBusy)
    assert "14 fetches wait for calls to come" in str(refused.error)
    assert world.fetch_early("client-115", peer=Peer("other")).replies == []


def test_a_client_that_goes_leaves_no_question_behind() -> None:
    world = world_with()
    asked, other = early(world)
    world.detach(other)
    assert nothing_is_left(world, other)
    world.done(world.send("a", "m"))
    assert asked.replies == []


def test_a_question_that_is_given_up_or_refused_leaves_nothing_behind() -> None:
    world = world_with()
    asked, other = early(world)
    world.see(world.dispatcher.on_cancel(other, asked.call_id, "", world.now))
    assert nothing_is_left(world, other)
    again, third = early(world)
    world.see(world.dispatcher.on_revoke(third, AuthenticationError("revoked"), world.now))
    assert isinstance(again.error, AuthenticationError)
    assert nothing_is_left(world, third)


def test_a_question_for_a_call_that_was_cancelled_before_it_came_is_told_so() -> None:
    world = world_with()
    asked, _ = early(world)
    world.see(world.dispatcher.on_cancel(world.client, 0, next_task(world), world.now))
    world.send("a", "m", flags=Flag.DETACHED)
    assert isinstance(asked.error, CallCancelled)


def test_a_host_that_stops_answers_the_questions_for_calls_that_did_not_come() -> None:
    world = world_with()
    asked, other = early(world)
    world.drain()
    assert world.drained
    assert isinstance(asked.error, HostStopping)
    assert nothing_is_left(world, other)
