"""The rules of the dispatcher, one by one: events in, effects out, the time in the test's hand."""

from __future__ import annotations

import gc
import itertools
import math
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from world import Sent, World, failed, ok
from zmqagents import codec, errors
from zmqagents.scheduler import admission
from zmqagents.scheduler.dispatcher import Answer, Peer, Removed, Resume, State, Ticket
from zmqagents.scheduler.records import left_over
from zmqagents.wire import messages
from zmqagents.wire.messages import Call, Flag

# ---------------------------------------------------------------- turns


def test_a_call_of_an_idle_agent_starts_at_once_and_its_result_is_its_answer() -> None:
    world = World()
    world.agent("a")
    call = world.send("a")
    assert call.started
    assert not call.answered
    world.done(call, ok(42))
    assert call.value == 42
    world.assert_idle()


def test_one_call_at_a_time_runs_on_an_agent_in_arrival_order() -> None:
    world = World()
    world.agent("a")
    calls = [world.send("a") for _ in range(5)]
    for number, call in enumerate(calls):
        assert [other.started for other in calls] == [True] * (number + 1) + [False] * (4 - number)
        world.done(call)
    world.assert_idle()


def test_agents_do_not_wait_for_each_other() -> None:
    world = World()
    world.agents("a", "b")
    assert world.send("a").started
    assert world.send("b").started


@pytest.mark.parametrize("how", ["of its class", "given when it is made"])
def test_max_concurrency_lets_so_many_calls_of_one_agent_run(how: str) -> None:
    world = World()
    if how == "of its class":
        world.agent("a", "Pair")
    else:
        world.agent("a", max_concurrency=2)
    first, second, third, fourth = (world.send("a") for _ in range(4))
    assert [first.started, second.started, third.started] == [True, True, False]
    world.done(second)
    assert [third.started, fourth.started] == [True, False]
    world.done(first)
    assert fourth.started


def test_a_wrong_max_concurrency_makes_no_agent() -> None:
    world = World()
    assert isinstance(world.create("a", max_concurrency=0).error, errors.ConfigError)
    assert world.dispatcher.agents == {}
    assert world.agent("a").agent_id == "a"


def test_a_concurrent_method_and_an_attribute_are_read_beside_the_turn() -> None:
    world = World()
    world.agent("a")
    holder = world.running("a")
    queued = world.send("a")
    progress, attribute, memory = (
        world.send("a", "progress"), world.send("a", "anything", flags=Flag.ATTRIBUTE),
        world.send("", "get_agent_memory", id="a"),
    )  # fmt: skip
    assert progress.started
    assert attribute.started
    assert memory.started
    assert not queued.started
    world.done(progress)
    world.done(attribute)
    assert not queued.started
    world.done(holder)
    assert queued.started


def test_an_agent_that_rejects_when_busy_never_queues() -> None:
    world = World()
    world.agent("a", "Picky")
    holder = world.running("a")
    assert isinstance(world.send("a").error, errors.HostBusy)
    assert world.send("a", "progress").started, "which needs no turn"
    world.done(holder)
    assert world.send("a").started


def test_an_agent_that_rejects_when_busy_rejects_a_parked_call_when_its_arguments_are_there() -> None:
    world = World()
    world.agent("a", "Picky")
    world.agent("b")
    argument = world.running("b")
    first = world.running("a")
    parked = [world.send("a", deps=[argument]), world.send("a", deps=[argument])]
    assert not any(call.answered for call in parked), "nobody knows yet whether the agent will be busy then"
    world.done(first)
    world.done(argument)
    assert [call.started for call in parked] == [True, False]
    assert isinstance(parked[1].error, errors.HostBusy)
    world.done(parked[0])
    world.assert_idle()


# ---------------------------------------------------------------- making and deleting agents


def test_calls_queue_while_the_agent_is_being_made_and_run_in_order_then() -> None:
    world = World()
    made = world.create("a")
    first, beside, second, later = (world.send("a", method) for method in ("m", "progress", "n", "progress"))
    attribute = world.send("a", "x", flags=Flag.ATTRIBUTE)
    assert [sent.state for sent in (first, beside, second, later, attribute)] == [State.QUEUED] * 5
    world.done(made)
    assert made.answered
    assert [sent.started for sent in (first, beside, second, later, attribute)] == [True, True, False, True, True]
    world.done(first)
    assert second.started


def test_max_concurrency_does_not_let_a_call_run_beside_init() -> None:
    world = World()
    world.create("a", "Pair")
    assert world.send("a").state is State.QUEUED


def test_a_failed_init_ends_the_queued_calls_and_frees_the_name() -> None:
    world = World()
    made = world.create("a")
    queued = [world.send("a"), world.send("a", "progress")]
    world.done(made, failed(ValueError("no")))
    assert isinstance(made.error, ValueError)
    for sent in queued:
        assert isinstance(sent.error, errors.AgentDeleted)
        assert "a could not be made before" in str(sent.error)
    assert len(world.removed) == 1
    world.assert_idle()
    assert world.agent("a").agent_id == "a"


@pytest.mark.parametrize("when", ["ready", "running"])
def test_an_agent_whose_making_was_given_up_is_not_there(when: str) -> None:
    world = World(capacity=1)
    blocker: Sent | None = None
    if when == "ready":
        world.agent("other")
        blocker = world.running("other")
    made = world.create("a", timeout=2)
    queued = world.send("a")
    assert made.started == (when == "running")
    world.sleep(3)
    assert isinstance(made.error, errors.CallTimeout)
    if when == "running":
        assert not queued.answered, "its __init__ still runs"
        world.done(made)
    assert isinstance(queued.error, errors.AgentDeleted)
    assert "a" not in world.dispatcher.agents
    assert [record.agent_id for record in world.removed] == ["a"]
    if blocker is not None:
        world.done(blocker)
    world.assert_idle()


def test_an_agent_may_be_made_from_an_unfinished_result_while_its_calls_queue() -> None:
    world = World()
    world.agent("b")
    argument = world.running("b")
    made = world.create("a", deps=[argument])
    call = world.send("a")
    assert (made.state, call.state) == (State.PARKED, State.QUEUED)
    world.done(argument)
    assert made.started
    world.done(made)
    assert call.started


def test_a_name_that_is_taken_is_refused_also_while_its_agent_is_being_made() -> None:
    world = World()
    made = world.create("a")
    assert isinstance(world.create("a").error, errors.AgentExists)
    world.done(made)
    assert isinstance(world.create("a").error, errors.AgentExists)


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", 7])
def test_a_name_that_cannot_be_shown_is_refused(name: object) -> None:
    world = World()
    options: dict[str, Any] = {"class": "Plain", "id": name}
    assert isinstance(world.send("", "create_agent", **options).error, errors.ConfigError)


def test_an_agent_without_a_name_gets_one() -> None:
    world = World()
    world.done(world.create(None))
    (name,) = world.dispatcher.agents
    assert name.startswith("plain-")


def test_unknown_things_are_refused_at_once_by_their_name() -> None:
    world = World()
    world.agent("a")
    assert isinstance(world.create("b", "Nobody").error, errors.UnknownClass)
    assert isinstance(world.send("b").error, errors.UnknownAgent)
    assert isinstance(world.send("", "get_agent_memory", id="b").error, errors.UnknownAgent)
    assert isinstance(world.send("", "get_agent_memory", id=["b"]).error, errors.UnknownAgent)
    assert isinstance(world.send("", "no_such_request").error, errors.UnknownMethod)
    assert isinstance(world.send("", "create_agent").error, errors.RemoteProtocolError)
    missing = world.send("a", "missing").error
    assert isinstance(missing, errors.UnknownMethod)
    assert "it has: __call__, co, m, n, progress, reply" in str(missing)
    for private in (world.send("a", "_secret"), world.send("a", "_secret", flags=Flag.ATTRIBUTE)):
        assert isinstance(private.error, errors.UnknownMethod)
        assert "private" in str(private.error)
    with pytest.raises(errors.UnknownAgent, match="'b'"):
        world.remove("b")
    assert world.dispatcher.counters.refused == 9
    world.assert_idle()


def test_deleting_an_agent_ends_what_has_not_started_and_lets_the_rest_finish() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    running = world.running("a")
    ready = world.send("a", "progress")
    queued = world.send("a")
    assert (ready.state, queued.state) == (State.READY, State.QUEUED)
    argument = world.send("b")
    parked = world.send("a", deps=[argument])
    effects = world.remove("a")
    assert isinstance(queued.error, errors.AgentDeleted)
    assert isinstance(ready.error, errors.AgentDeleted)
    assert not any(isinstance(effect, Removed) for effect in effects), "a call still runs on the object"
    assert isinstance(world.send("a").error, errors.UnknownAgent)
    effects = world.done(running)
    assert running.value == "ok"
    assert [effect.agent.agent_id for effect in effects if isinstance(effect, Removed)] == ["a"]
    world.done(argument)
    assert isinstance(parked.error, errors.AgentDeleted)
    assert len(world.removed) == 1
    world.assert_idle()


def test_an_agent_is_dropped_when_the_last_call_beside_its_turn_has_returned() -> None:
    world = World()
    world.agent("a")
    beside, holder = world.running("a", "progress"), world.running("a")
    world.remove("a")
    world.done(holder)
    assert world.removed == []
    world.done(beside)
    assert len(world.removed) == 1


def test_deleting_an_agent_ends_its_streams_and_starts_nothing_in_their_place() -> None:
    world = World()
    world.agents("a", "b")
    stream = world.running("a", "co", flags=Flag.STREAM)
    queued = world.send("a", "co")
    plain = world.running("a", "progress")
    inner = world.later(stream, "b")
    world.remove("a")
    assert isinstance(stream.error, errors.AgentDeleted)
    assert "in the middle of co" in str(stream.error)
    assert isinstance(inner.error, errors.AgentDeleted)
    assert world.interrupted == [stream.t, inner.t]
    assert isinstance(queued.error, errors.AgentDeleted)
    assert not queued.started
    assert not plain.answered
    for call in (inner, stream, plain):
        assert world.removed == []
        world.done(call)
    assert len(world.removed) == 1
    world.assert_idle()


def test_an_idle_agent_is_dropped_at_once() -> None:
    world = World()
    record = world.agent("a")
    world.remove("a")
    assert world.removed == [record]


@pytest.mark.parametrize("state", ["parked", "ready"])
def test_deleting_an_agent_whose_init_has_not_started_ends_its_making(state: str) -> None:
    world = World(capacity=1)
    world.agent("b")
    argument = world.running("b")
    made = world.create("a", deps=[argument] if state == "parked" else [])
    queued = world.send("a")
    world.remove("a")
    assert isinstance(made.error, errors.AgentDeleted)
    assert isinstance(queued.error, errors.AgentDeleted)
    world.done(argument)
    assert not made.started
    assert len(world.removed) == 1
    world.assert_idle()


def test_an_agent_deleted_during_its_init_is_dropped_after_it() -> None:
    world = World()
    made = world.create("a")
    queued = world.send("a")
    world.remove("a")
    assert isinstance(queued.error, errors.AgentDeleted)
    assert world.removed == []
    world.done(made)
    assert made.value == "ok"
    assert len(world.removed) == 1
    assert isinstance(world.send("a").error, errors.UnknownAgent)


def test_a_new_agent_may_have_the_name_of_one_whose_last_call_still_runs() -> None:
    world = World()
    old = world.agent("a")
    last = world.running("a")
    world.remove("a")
    new = world.agent("a")
    assert new is not old
    assert world.send("a").started, "which has a turn of its own"
    world.done(last)
    assert world.removed == [old]
    assert world.dispatcher.agents == {"a": new}


# ---------------------------------------------------------------- slots


def test_no_more_calls_run_than_there_are_slots_and_the_others_start_in_order() -> None:
    world = World(capacity=2)
    world.agents(*"abcde")
    calls = [world.send(agent) for agent in "abcde"]
    assert [call.state for call in calls] == [State.RUNNING] * 2 + [State.READY] * 3
    for ended, started in ((1, 2), (0, 3), (2, 4)):
        world.done(calls[ended])
        assert calls[started].started
        assert world.dispatcher.running == 2
    world.done(calls[3])
    world.done(calls[4])
    world.assert_idle()


def test_a_turn_that_is_freed_waits_for_its_slot_behind_those_who_waited_longer() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    first, second, other = world.send("a"), world.send("a"), world.send("b")
    world.done(first)
    assert other.started
    assert second.state is State.READY
    world.done(other)
    assert second.started


def test_a_coroutine_needs_no_slot() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    world.running("a")
    coroutine = world.running("b", "co")
    assert world.dispatcher.running == 1
    world.done(coroutine)
    assert world.dispatcher.running == 1


# ---------------------------------------------------------------- waiting


def test_a_call_that_waits_gives_its_slot_back_and_takes_one_again_before_it_goes_on() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    inner = world.nested(outer, "b")
    assert inner.started
    assert outer.state is State.WAITING
    assert (world.dispatcher.running, world.dispatcher.blocked) == (1, 1)
    assert world.resumes(outer) == []
    world.done(inner)
    assert inner.value == "ok"
    assert world.resumes(outer) == [None]
    assert (world.dispatcher.running, world.dispatcher.blocked) == (1, 0)
    world.done(outer)
    world.assert_idle()


def test_a_call_that_goes_on_takes_its_slot_ahead_of_new_calls() -> None:
    world = World(capacity=1)
    world.agents("a", "b", "c", "d")
    outer = world.running("a")
    inner = world.nested(outer, "b")
    new = [world.send("c"), world.send("d")]
    world.done(inner)
    assert world.resumes(outer) == [None]
    assert [call.started for call in new] == [False, False]
    world.done(outer)
    assert [call.started for call in new] == [True, False]


def test_calls_that_go_on_share_the_slots_in_the_order_in_which_their_waits_ended() -> None:
    world = World(capacity=1)
    world.agents(*"abcd")
    world.agent("w", "Wide")
    first = world.running("a")
    first_inner = world.nested(first, "w", "co")
    second = world.running("b")
    second_inner = world.nested(second, "w", "co")
    busy = world.running("c")
    world.done(second_inner)
    world.done(first_inner)
    assert world.resumes(first) == world.resumes(second) == []
    assert world.dispatcher.blocked == 2, "their threads still stand"
    world.done(busy)
    assert (world.resumes(first), world.resumes(second)) == ([], [None])
    world.done(second)
    assert world.resumes(first) == [None]
    world.done(first)
    world.assert_idle()


def test_a_waiting_call_keeps_its_turn() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    inner = world.nested(outer, "b")
    next_call = world.send("a")
    assert not next_call.started
    world.done(inner)
    assert not next_call.started
    world.done(outer)
    assert next_call.started


def test_a_nested_call_that_is_refused_lets_its_caller_go_on_at_once_with_the_refusal() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    inner = world.nested(outer, "nobody")
    assert isinstance(inner.error, errors.UnknownAgent)
    assert world.resumes(outer) == [None]
    assert outer.state is State.RUNNING


def test_one_slot_is_enough_for_a_chain_of_100_nested_calls() -> None:
    world = World(capacity=1)
    names = [f"a{number}" for number in range(100)]
    world.agents(*names)
    chain: list[Sent] = []
    for name in names:
        chain.append(world.running("a0") if not chain else world.nested(chain[-1], name))
        assert world.dispatcher.running == 1
    assert world.dispatcher.blocked == 99
    for call in reversed(chain):
        world.done(call)
    assert all(call.value == "ok" for call in chain)
    world.assert_idle()


def test_one_slot_is_enough_for_100_calls_that_each_take_the_result_before() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    calls: list[Sent] = []
    for number in range(100):
        calls.append(world.send("ab"[number % 2], deps=calls[-1:]))
    assert [call.state for call in calls] == [State.RUNNING] + [State.PARKED] * 99
    for call, following in itertools.pairwise(calls):
        world.done(call, ok("result"))
        assert following.started
        assert following.t.dep_replies == {call.task_id: ok("result")}
    world.done(calls[-1])
    world.assert_idle()


def test_too_many_threads_refuse_a_nested_call_before_it_runs() -> None:
    world = World(capacity=2, max_threads=3)
    world.agents(*"abcd")
    first, second = world.running("a"), world.running("b")
    inner = world.nested(first, "c")
    assert inner.started
    refused = world.nested(second, "d")
    assert isinstance(refused.error, errors.HostBusy)
    assert "max_threads=3" in str(refused.error)
    assert not refused.started
    assert world.resumes(second) == [None]
    argument = world.later(second, "d")
    world.wait(second, argument)
    (error,) = world.resumes(second)[1:]
    assert isinstance(error, errors.HostBusy)
    world.wait_outside(second)
    assert isinstance(world.resumes(second)[-1], errors.HostBusy)
    world.done(inner)
    world.done(first)
    assert world.nested(second, "c").started, "there is room again"


def test_waiting_for_what_is_finished_or_unknown_ends_at_once() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    finished = world.later(outer, "b")
    world.done(finished)
    world.wait(outer, finished)
    world.wait(outer, "nobody-1")
    world.wait(outer)
    assert world.resumes(outer) == [None] * 3
    assert outer.t.slot


def test_waiting_for_all_ends_with_the_last_and_waiting_for_any_with_the_first() -> None:
    world = World()
    world.agents(*"abc")
    outer = world.running("a")
    first, second = world.later(outer, "b"), world.later(outer, "c")
    world.wait(outer, first, second, first)
    world.done(second)
    assert world.resumes(outer) == []
    world.done(first)
    assert world.resumes(outer) == [None]
    third, fourth = world.later(outer, "b"), world.later(outer, "c")
    world.wait(outer, third, fourth, any_of=True)
    world.done(fourth)
    assert world.resumes(outer) == [None, None]
    world.done(third)
    assert len(world.resumes(outer)) == 2
    world.wait(outer, third, world.later(outer, "b"), any_of=True)
    assert len(world.resumes(outer)) == 3, "one of them was there already"


def test_a_wait_that_times_out_on_its_own_side_ends_and_what_it_waited_for_goes_on() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    inner = world.later(outer, "b")
    world.wait(outer, inner)
    world.wait_over(outer)
    assert world.resumes(outer) == [], "the slot is taken"
    world.done(inner)
    assert world.resumes(outer) == [None]
    world.wait_over(outer)
    assert world.resumes(outer) == [None], "a late word of an old wait"
    assert inner.answered


def test_waiting_outside_costs_no_slot_either() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    world.wait_outside(outer)
    other = world.send("b")
    assert other.started
    world.wait_over(outer)
    assert world.resumes(outer) == []
    world.done(other)
    assert world.resumes(outer) == [None]
    world.done(outer)
    world.assert_idle()


def test_a_coroutine_that_waits_outside_gives_nothing_up() -> None:
    world = World()
    world.agent("a")
    coroutine = world.running("a", "co")
    assert world.wait_outside(coroutine) == []
    assert coroutine.state is State.RUNNING


@pytest.mark.parametrize("when", ["while it waits", "before it has a slot again"])
def test_a_call_that_returns_without_having_been_let_go_on_is_freed_whole(when: str) -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    world.wait_outside(outer)
    busy = world.running("b")
    if when != "while it waits":
        world.wait_over(outer)
    world.done(outer)
    assert (world.dispatcher.running, world.dispatcher.blocked) == (1, 0)
    world.done(busy)
    assert world.resumed == []
    world.assert_idle()


def test_a_waiting_coroutine_has_edges_but_no_slot_and_no_resume() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    coroutine = world.running("a", "co")
    inner = world.later(coroutine, "b")
    world.wait(coroutine, inner)
    assert coroutine.state is State.WAITING
    assert (world.dispatcher.running, world.dispatcher.blocked) == (1, 0)
    world.done(inner)
    assert coroutine.state is State.RUNNING
    assert world.resumed == []
    world.done(coroutine)
    world.assert_idle()


def test_a_coroutine_may_wait_for_several_calls_and_give_up_each_wait_by_itself() -> None:
    world = World()
    world.agents(*"abc")
    coroutine = world.running("a", "co")
    first, second = world.later(coroutine, "b"), world.later(coroutine, "c")
    for target in (first, second, first):
        world.wait(coroutine, target)
    unwait = world.dispatcher.on_unwait
    assert unwait(coroutine.t, [first.task_id]) == []
    assert coroutine.t.waits_for == {first.t: 1, second.t: 1}
    unwait(coroutine.t, [first.task_id])
    unwait(coroutine.t, [first.task_id])
    unwait(coroutine.t, ["nobody-1"])
    assert coroutine.t.waits_for == {second.t: 1}
    unwait(coroutine.t, [second.task_id])
    assert coroutine.state is State.RUNNING
    assert not first.t.waiters
    assert not second.t.waiters


def test_a_coroutine_that_returns_while_it_waits_leaves_no_edge() -> None:
    world = World()
    world.agents("a", "b")
    coroutine = world.running("a", "co")
    inner = world.later(coroutine, "b")
    world.wait(coroutine, inner)
    world.done(coroutine)
    assert not inner.t.waiters
    world.done(inner)
    world.assert_idle()


# ---------------------------------------------------------------- deadlock


def assert_deadlock(error: Exception | None, *labels: str) -> None:
    assert isinstance(error, errors.DeadlockError)
    assert error.chain == list(labels)
    assert " -> ".join(labels) in str(error)


def test_an_agent_that_calls_itself_is_told_so_at_once() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    inner = world.nested(outer, "a", "n")
    (error,) = world.resumes(outer)
    assert_deadlock(error, "a.m", "a.n", "a.m")
    assert_deadlock(inner.error, "a.m", "a.n", "a.m")
    assert outer.state is State.RUNNING
    assert outer.t.slot
    assert world.dispatcher.counters.deadlocks == 1
    world.done(outer)
    world.assert_idle()


def test_a_call_that_comes_back_through_another_agent_is_a_deadlock() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    first = world.running("a")
    second = world.nested(first, "b")
    third = world.nested(second, "a", "n")
    (error,) = world.resumes(second)
    assert_deadlock(error, "b.m", "a.n", "a.m", "b.m")
    assert isinstance(third.error, errors.DeadlockError)
    assert world.resumes(first) == []
    world.done(second, failed(ValueError("gave up")))
    world.done(first)
    world.assert_idle()


def test_two_callers_that_cross_are_a_deadlock_of_the_second() -> None:
    world = World()
    world.agents("a", "b")
    left, right = world.running("a"), world.running("b")
    inner = world.nested(left, "b", "n")
    assert inner.state is State.QUEUED, "for a while that is just a busy agent"
    refused = world.nested(right, "a", "n")
    assert isinstance(refused.error, errors.DeadlockError)
    assert_deadlock(world.resumes(right)[0], "b.m", "a.n", "a.m", "b.n", "b.m")
    world.done(right)
    assert inner.started
    world.done(inner)
    world.done(left)
    assert world.dispatcher.counters.deadlocks == 1
    world.assert_idle()


def test_three_that_wait_in_a_ring_are_a_deadlock_of_the_third() -> None:
    world = World()
    world.agents(*"abc")
    a, b, c = (world.running(name) for name in "abc")
    world.nested(a, "b", "n")
    world.nested(b, "c", "n")
    assert isinstance(world.nested(c, "a", "n").error, errors.DeadlockError)
    assert world.dispatcher.counters.deadlocks == 1
    for call in (c, b, a):
        world.finish()
        assert call.answered
    world.assert_idle()


def test_a_deadlock_of_a_result_that_was_asked_for_later_ends_that_call() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    own = world.later(outer, "a", "n")
    assert own.state is State.QUEUED
    world.wait(outer, own)
    assert_deadlock(world.resumes(outer)[0], "a.m", "a.n", "a.m")
    assert isinstance(own.error, errors.DeadlockError)
    assert world.kept[own.task_id].code
    world.done(outer)
    world.assert_idle()


def test_only_those_of_its_own_calls_end_that_could_never_start() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    stuck, fine = world.later(outer, "a", "n"), world.later(outer, "b")
    world.wait(outer, stuck, fine)
    assert isinstance(world.resumes(outer)[0], errors.DeadlockError)
    assert isinstance(stuck.error, errors.DeadlockError)
    assert not fine.answered
    world.done(outer)
    world.done(fine)
    world.assert_idle()


def test_waiting_for_somebody_elses_call_that_needs_this_one_ends_the_wait_and_not_that_call() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    foreign = world.send("a", "n")
    world.wait(outer, foreign)
    assert_deadlock(world.resumes(outer)[0], "a.m", "a.n", "a.m")
    world.done(outer)
    assert foreign.started


def test_waiting_for_itself_is_a_deadlock() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    world.wait(outer, outer)
    assert_deadlock(world.resumes(outer)[0], "a.m", "a.m")


def test_waiting_for_a_call_that_needs_this_ones_result_is_a_deadlock() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    parked = world.send("b", "n", deps=[outer])
    world.wait(outer, parked)
    assert_deadlock(world.resumes(outer)[0], "a.m", "b.n", "a.m")
    world.done(outer)
    assert parked.started


def test_a_cycle_that_closes_when_a_parked_call_begins_to_queue_ends_that_call() -> None:
    world = World()
    world.agents(*"abc")
    outer = world.running("a")
    argument = world.send("c")
    inner = world.later(outer, "a", "n", deps=[argument])
    world.wait(outer, inner)
    assert world.resumes(outer) == [], "it is parked: nothing is decided yet"
    world.done(argument)
    assert_deadlock(inner.error, "a.n", "a.m", "a.n")
    assert world.resumes(outer) == [None], "whose result() raises what the call ended in"
    world.done(outer)
    world.assert_idle()


def test_a_cycle_through_a_chain_of_arguments_is_found() -> None:
    world = World()
    world.agents(*"abcd")
    outer = world.running("a")
    last = world.running("b")
    parked = world.later(outer, "c", deps=[last])
    for _ in range(3):
        parked = world.later(outer, "d", deps=[parked])
    world.wait(outer, parked)
    refused = world.nested(last, "a", "n")
    assert isinstance(refused.error, errors.DeadlockError)
    assert_deadlock(world.resumes(last)[0], "b.m", "a.n", "a.m", "d.m", "d.m", "d.m", "c.m", "b.m")


def test_an_init_that_waits_for_a_call_of_its_own_agent_is_a_deadlock() -> None:
    world = World()
    made = world.create("a")
    inner = world.nested(made, "a")
    assert isinstance(inner.error, errors.DeadlockError)
    assert_deadlock(world.resumes(made)[0], "a.create_agent", "a.m", "a.create_agent")


def test_a_shared_turn_is_blocked_only_when_all_who_hold_it_are() -> None:
    world = World()
    world.agent("p", "Pair")
    first, second = world.running("p"), world.running("p")
    inner = world.nested(first, "p", "n")
    assert inner.state is State.QUEUED, "the second may still end"
    refused = world.nested(second, "p", "n")
    assert isinstance(refused.error, errors.DeadlockError)
    assert world.resumes(first) == []
    world.done(second)
    assert inner.started
    world.done(inner)
    assert world.resumes(first) == [None]
    assert world.dispatcher.counters.deadlocks == 1


def test_a_cycle_that_lies_beside_the_way_to_the_deadlock_does_not_hide_it() -> None:
    # first and its own inner call wait for each other; only `second` can free them, so it may not wait for them.
    world = World()
    world.agent("p", "Pair")
    world.agent("q")
    first, second = world.running("p"), world.running("p")
    inner = world.nested(first, "p", "n")
    assert inner.state is State.QUEUED
    third = world.running("q")
    world.wait(third, inner)
    refused = world.nested(second, "q", "n")
    assert isinstance(refused.error, errors.DeadlockError)
    world.done(second)
    world.finish()
    assert third.answered
    assert first.answered
    world.assert_idle()


def test_waiting_for_any_is_blocked_only_when_all_of_them_are() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    stuck, fine = world.later(outer, "a", "n"), world.later(outer, "b")
    world.wait(outer, stuck, fine, any_of=True)
    assert world.resumes(outer) == []
    world.done(fine)
    assert world.resumes(outer) == [None]
    world.wait(outer, stuck, any_of=True)
    assert isinstance(world.resumes(outer)[1], errors.DeadlockError)
    assert isinstance(stuck.error, errors.DeadlockError)


def test_a_method_beside_the_turn_may_call_its_own_agent() -> None:
    world = World()
    world.agent("a")
    beside = world.running("a", "progress")
    assert world.nested(beside, "a").started


def test_no_cycle_no_alarm() -> None:
    world = World(capacity=1)
    world.agents(*"abcd")
    outer = world.running("a")
    diamond = [world.later(outer, name) for name in "bc"]
    top = world.later(outer, "d", deps=diamond)
    world.wait(outer, top, *diamond)
    world.finish()
    assert top.value == outer.value == "ok"
    assert world.dispatcher.counters.deadlocks == 0
    world.assert_idle()


def test_a_deadlock_of_coroutines_is_found_too() -> None:
    world = World()
    world.agents("a", "b")
    first = world.running("a", "co")
    second = world.later(first, "b", "co")
    world.wait(first, second)
    third = world.later(second, "a", "co")
    world.wait(second, third)
    (resume,) = world.resumed
    assert resume.ticket is second.t
    assert_deadlock(resume.error, "b.co", "a.co", "a.co", "b.co")
    assert isinstance(third.error, errors.DeadlockError)
    assert second.state is State.RUNNING
    assert first.state is State.WAITING


def test_a_wait_that_a_coroutine_gave_up_closes_no_cycle() -> None:
    world = World()
    world.agents("a", "b")
    first = world.running("a", "co")
    second = world.later(first, "b", "co")
    world.wait(first, second)
    world.dispatcher.on_unwait(first.t, [second.task_id])
    third = world.later(second, "a", "co")
    world.wait(second, third)
    assert world.resumed == []
    world.done(first)
    assert third.started


def test_a_coroutine_that_waits_for_any_may_go_on_and_is_in_nobodys_way() -> None:
    world = World()
    world.agents(*"abc")
    coroutine = world.running("a", "co")
    first, second = world.running("b"), world.running("c")
    assert world.wait(coroutine, first, second, any_of=True) == []
    assert coroutine.state is State.RUNNING
    assert not first.t.waiters
    assert world.nested(first, "a").state is State.QUEUED
    assert world.dispatcher.counters.deadlocks == 0


def test_the_refused_wait_of_a_coroutine_leaves_its_others() -> None:
    world = World()
    world.agents("a", "b")
    coroutine = world.running("a", "co")
    fine, stuck = world.later(coroutine, "b"), world.later(coroutine, "a", "n")
    world.wait(coroutine, fine)
    world.wait(coroutine, stuck)
    assert isinstance(world.resumes(coroutine)[0], errors.DeadlockError)
    assert coroutine.t.waits_for == {fine.t: 1}


def test_a_call_that_is_over_but_still_runs_holds_its_turn_and_is_no_deadlock() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a", timeout=1)
    inner = world.nested(outer, "b")
    world.sleep(2)
    assert outer.answered
    world.done(inner)
    waiting = world.running("b")
    assert world.nested(waiting, "a").state is State.QUEUED
    assert world.dispatcher.counters.deadlocks == 0


# ---------------------------------------------------------------- reentrant agents


def test_a_reentrant_agent_lets_its_own_chain_in() -> None:
    world = World(capacity=1)
    world.agent("a", "Again")
    world.agent("b")
    first = world.running("a")
    second = world.nested(first, "b")
    third = world.nested(second, "a", "n")
    assert third.started
    fourth = world.nested(third, "a")
    assert fourth.started
    outsider = world.send("a")
    for call in (fourth, third, second):
        world.done(call)
        assert not outsider.started
    world.done(first)
    assert outsider.started
    assert world.dispatcher.counters.deadlocks == 0


def test_a_reentrant_agent_does_not_run_two_calls_at_once() -> None:
    world = World()
    world.agent("a", "Again")
    outer = world.running("a")
    own = world.later(outer, "a", "n")
    assert own.state is State.QUEUED, "its agent is at work"
    world.wait(outer, own)
    assert own.started, "now its agent waits for it"
    world.done(own)
    assert world.resumes(outer) == [None]


def test_a_stranger_may_not_enter_a_reentrant_agent() -> None:
    world = World()
    world.agent("a", "Again")
    world.agent("b", "Again")
    left, right = world.running("a"), world.running("b")
    world.nested(left, "b", "n")
    assert isinstance(world.nested(right, "a", "n").error, errors.DeadlockError)


def test_a_chain_that_does_not_have_the_turn_may_not_re_enter() -> None:
    world = World()
    world.agent("a", "Again")
    world.agent("b")
    beside = world.running("a", "progress")
    middle = world.nested(beside, "b")
    stranger = world.running("a")
    world.nested(stranger, "b", "n")
    assert isinstance(world.nested(middle, "a", "n").error, errors.DeadlockError)


def test_a_reentrant_call_that_was_parked_is_let_in_when_its_arguments_are_there() -> None:
    world = World()
    world.agent("a", "Again")
    world.agent("b")
    outer, argument = world.running("a"), world.running("b")
    inner = world.nested(outer, "a", "n", deps=[argument])
    assert inner.state is State.PARKED
    world.done(argument)
    assert inner.started


def test_all_that_must_re_enter_is_let_in() -> None:
    world = World()
    world.agent("a", "Again")
    outer = world.running("a")
    own = [world.later(outer, "a", "n") for _ in range(3)]
    world.wait(outer, *own)
    assert [call.started for call in own] == [True] * 3
    for call in own:
        world.done(call)
    assert world.resumes(outer) == [None]


def test_a_reentrant_call_does_not_need_another_of_the_agents_turns() -> None:
    world = World()
    world.agent("a", "PairAgain")
    first, second = world.running("a"), world.running("a")
    inner, other = world.nested(first, "a", "n"), world.nested(second, "a", "n")
    assert inner.state is State.QUEUED, "the second may end"
    assert other.started or inner.started, "now neither may"
    world.finish()
    assert all(call.value == "ok" for call in (first, second, inner, other))
    world.assert_idle()


def test_a_reentrant_agent_that_rejects_when_busy_takes_its_own_chain() -> None:
    world = World()
    world.agent("a", "PickyAgain")
    world.agent("b")
    outer = world.running("a")
    assert isinstance(world.send("a").error, errors.HostBusy)
    assert world.nested(outer, "a", "n").started
    argument = world.running("b")
    parked = world.later(argument, "a", deps=[argument])
    world.done(argument)
    assert isinstance(parked.error, errors.HostBusy), "not of its chain"


def test_the_chain_of_a_call_that_has_returned_goes_on_with_its_children() -> None:
    world = World()
    world.agent("a", "Again")
    world.agents("b", "c")
    outer = world.running("a")
    middle = world.nested(outer, "b")
    child = world.later(middle, "c")
    world.done(middle)
    assert child.t.parent is outer.t
    world.wait(outer, child)
    assert world.nested(child, "a", "n").started, "the caller of its caller waits for it"


# ---------------------------------------------------------------- chains through other hosts


def test_a_chain_that_comes_back_through_another_host_is_a_deadlock() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    world.wait_outside(outer, "there-1")
    back = world.send("b", chain=[outer.task_id, "there-1"])
    assert back.started
    refused = world.nested(back, "a", "n")
    assert isinstance(refused.error, errors.DeadlockError)
    direct = world.send("a", "n", chain=[outer.task_id, "there-1"])
    assert_deadlock(direct.error, "a.n", "a.m", "other hosts", "a.n")
    world.done(back)
    world.wait_over(outer)
    world.done(outer)
    world.assert_idle()


def test_a_call_that_names_another_users_call_as_its_chain_is_not_let_into_its_turn() -> None:
    world = World()
    world.agent("a", "Again")
    outer = world.running("a")
    world.wait_outside(outer, "there-1")
    elsewhere = World().dispatcher.seals.seal([outer.task_id])
    for forged in (f"{outer.task_id}!", f"{outer.task_id}!{'0' * 16}", *elsewhere):
        back = world.send("a", "n", chain=[forged])
        assert back.state is State.QUEUED, "it waits for its turn, as any other call does"
        assert back.t.came_by == ()
        assert not outer.t.returns
    assert len(world.reports) == 3
    assert world.reports[0].why == f"{outer.task_id} has not made a.n"
    assert world.reports[0].peer is world.client


def test_what_has_no_seal_is_not_passed_on_with_ours() -> None:
    world = World()
    world.agent("a")
    call = Call(1, 0, 0, "a", "m", [], {"chain": ["client-99", "there-1!seal"]}, (b"",))
    world.see(world.dispatcher.on_call(world.client, call, world.now))
    (ticket,) = world.started[-1:]
    assert world.dispatcher.seals.seal([*ticket.chain, ticket.task_id])[0] == "there-1!seal"
    assert ticket.came_by == ("there-1",)


def test_a_call_from_another_host_that_its_chain_does_not_wait_for_just_queues() -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    back = world.send("a", "n", chain=[outer.task_id, "there-1"])
    assert back.state is State.QUEUED, "the chain may go on without it"
    world.wait_outside(outer, "there-2")
    assert world.resumes(outer) == []
    world.wait_over(outer)
    world.done(outer)
    assert back.started


@pytest.mark.parametrize("known", [True, False])
def test_waiting_for_a_chain_that_has_come_back_already_is_a_deadlock(known: bool) -> None:
    world = World()
    world.agent("a")
    outer = world.running("a")
    back = world.send("a", "n", chain=[outer.task_id, "there-1"])
    world.wait_outside(outer, *(["there-1"] if known else []))
    (error,) = world.resumes(outer)
    assert_deadlock(error, "a.m", "other hosts", "a.n", "a.m")
    assert outer.t.slot
    world.done(outer)
    assert back.started


def test_a_coroutine_may_await_other_hosts_and_this_one_at_once() -> None:
    world = World()
    world.agents("a", "b")
    coroutine = world.running("a", "co")
    here = world.later(coroutine, "b")
    for task_id in ("there-1", "there-2"):
        assert world.await_outside(coroutine, task_id) == []
    world.wait(coroutine, here)
    world.done(here)
    assert coroutine.state is State.WAITING, "for the other hosts"
    unawait = world.dispatcher.on_unawait_outside
    assert unawait(coroutine.t, "there-1") == []
    assert coroutine.state is State.WAITING
    assert coroutine.t.outside == {"there-2"}
    unawait(coroutine.t, "there-1")
    unawait(coroutine.t, "there-2")
    assert coroutine.state is State.RUNNING
    world.done(coroutine)
    world.assert_idle()


def test_a_coroutine_whose_chain_has_come_back_to_it_is_a_deadlock_of_that_wait_alone() -> None:
    world = World()
    world.agent("a")
    coroutine = world.running("a", "co")
    world.await_outside(coroutine, "there-2")
    back = world.send("a", "n", chain=[coroutine.task_id, "there-1"])
    assert back.state is State.QUEUED
    world.await_outside(coroutine, "there-1")
    (error,) = world.resumes(coroutine)
    assert_deadlock(error, "a.co", "other hosts", "a.n", "a.co")
    assert coroutine.t.outside == {"there-2"}
    direct = world.send("a", "n", chain=[coroutine.task_id, "there-2"])
    assert_deadlock(direct.error, "a.n", "a.co", "other hosts", "a.n")
    world.cancel(coroutine)
    world.await_outside(coroutine, "there-3")
    assert isinstance(world.resumes(coroutine)[1], errors.CallCancelled)
    world.done(coroutine)
    assert back.started


def test_a_chain_that_comes_back_to_a_reentrant_agent_is_let_in() -> None:
    world = World()
    world.agent("a", "Again")
    outer = world.running("a")
    world.wait_outside(outer, "there-1")
    back = world.send("a", "n", chain=[outer.task_id, "there-1"])
    assert back.started
    assert back.t.came_by == (outer.task_id, "there-1")
    world.done(back)
    assert not outer.t.returns


def test_a_call_tells_other_hosts_the_nearest_links_of_its_chain() -> None:
    world = World()
    call = None
    for number in range(300):
        world.agent(f"a{number}")
        call = world.running("a0", chain=["far-1"]) if call is None else world.nested(call, f"a{number}")
    assert call is not None
    assert len(call.t.chain) == messages.MAX_CHAIN - 1, "with its own id it is a chain of the length allowed"
    ids = [call.t.task_id]
    ticket = call.t
    while ticket.parent is not None:
        ticket = ticket.parent
        ids.append(ticket.task_id)
    assert call.t.chain == tuple(reversed(ids[1 : messages.MAX_CHAIN]))


# ---------------------------------------------------------------- parked: unfinished results as arguments


def test_a_parked_call_holds_no_turn_and_no_slot() -> None:
    world = World(capacity=2)
    world.agents("a", "b")
    argument = world.running("b")
    parked = world.send("a", deps=[argument])
    assert parked.state is State.PARKED
    assert world.send("a").started


def test_a_result_that_is_named_twice_is_waited_for_once() -> None:
    world = World()
    world.agents("a", "b")
    argument = world.running("b")
    parked = world.send("a", deps=[argument, argument])
    world.done(argument)
    assert parked.started


def test_an_argument_that_failed_fails_the_call_with_its_own_error() -> None:
    world = World()
    world.agents(*"abc")
    argument, other = world.running("b"), world.running("c")
    parked = world.send("a", deps=[argument, other])
    world.done(argument, failed(KeyError("nope"), call_id=argument.task_id))
    assert isinstance(parked.error, KeyError)
    assert isinstance(parked.error, errors.AgentCallError)
    assert parked.error.call_id == argument.task_id, "it names the call that failed"
    world.done(other)
    assert not parked.started
    world.assert_idle()


def test_an_argument_that_is_finished_comes_from_the_store() -> None:
    world = World()
    world.agent("a")
    parked = world.send("a", deps=["old-1", "old-2"])
    assert parked.state is State.PARKED
    first, second = world.lookups
    world.dep(first, ok(1))
    world.dep(first, ok(1))
    assert not parked.started
    world.dep(second, ok(2))
    assert parked.started
    assert parked.t.dep_replies == {"old-1": ok(1), "old-2": ok(2)}


def test_an_argument_that_nobody_knows_fails_the_call() -> None:
    world = World()
    world.agent("a")
    parked = world.send("a", deps=["old-1"])
    unknown = errors.UnknownTask("old-1")
    world.dep(world.lookups[0], messages.Reply(messages.Code.HOST_ERROR, (codec.pack(errors.describe(unknown)),)))
    assert isinstance(parked.error, errors.UnknownTask)
    world.dep(world.lookups[0], ok())
    world.assert_idle()


def test_a_call_that_names_itself_as_an_argument_is_looked_up_like_any_unknown_one() -> None:
    world = World()
    world.agent("a")
    own = world.send("a", deps=["client-2"])
    assert own.task_id == "client-2"
    assert [lookup.task_id for lookup in world.lookups] == ["client-2"]


def test_a_parked_call_that_ended_leaves_nothing_at_its_arguments() -> None:
    world = World()
    world.agents("a", "b")
    argument = world.running("b")
    for _ in range(10):
        world.cancel(world.send("a", deps=[argument]))
    assert not argument.t.dependents


def test_a_chain_of_10000_parked_calls_fails_and_succeeds_without_recursion() -> None:
    world = World(max_calls=20_000, max_calls_per_client=20_000)
    world.agent("a", "Wide")
    for reply in (failed(ValueError("no")), ok()):
        first = world.running("a", "co")
        chain = [first]
        for _ in range(10_000):
            chain.append(world.send("a", "co", deps=chain[-1:]))
        world.done(first, reply)
        if not reply.code:
            for call in chain[1:]:
                world.done(call)
        assert all(bool(call.error) == bool(reply.code) for call in chain)
    world.assert_idle()


# ---------------------------------------------------------------- deadlines


def end_of(call: Sent) -> str:
    assert isinstance(call.error, errors.CallTimeout)
    return str(call.error)


def test_a_deadline_that_passes_in_the_queue_says_behind_how_many_and_the_call_never_runs() -> None:
    world = World()
    world.agent("a")
    holder = world.running("a")
    ahead = [world.send("a"), world.send("a")]
    late = world.send("a", timeout=4.8)
    world.sleep(5)
    assert end_of(late) == "a.m timed out after 4.8 s: queued 4.8 s behind 3 calls, never started"
    world.done(holder)
    for call in ahead:
        world.done(call)
    assert not late.started
    world.assert_idle()


@pytest.mark.parametrize(("how", "text"), [("cancel", "was cancelled"), ("time out", "timed out")])
def test_what_queues_behind_a_call_that_has_ended_and_still_runs_says_so(how: str, text: str) -> None:
    world = World()
    world.agent("a")
    holder = world.running("a", "n", timeout=1)
    late, later = world.send("a", timeout=4.8), world.send("a", timeout=4.8)
    world.cancel(holder) if how == "cancel" else world.sleep(1)
    assert left_over(late.t.agent) == f"a.n {text} and still runs"
    world.sleep(5)
    assert f"behind 1 call (a.n {text} and still runs), never started" in end_of(late)
    assert f"(a.n {text} and still runs)" in end_of(later)
    world.done(holder)
    assert left_over(late.t.agent) == ""
    world.assert_idle()


def test_several_calls_that_have_ended_and_still_run_are_counted() -> None:
    world = World()
    world.agent("a", "Pair")
    holders = [world.running("a"), world.running("a")]
    late = world.send("a", timeout=1)
    for holder in holders:
        world.cancel(holder)
    world.sleep(1)
    assert "behind 2 calls (a.m was cancelled and still runs, and 1 more like it), never started" in end_of(late)
    for holder in holders:
        world.done(holder)
    world.assert_idle()


def test_what_waits_for_a_slot_says_that_calls_which_have_ended_still_run() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    holder = world.running("a")
    late = world.send("b", timeout=1)
    world.cancel(holder)
    world.sleep(1)
    assert "for one of 1 worker slots (calls that have ended and still run: 1), never started" in end_of(late)
    world.done(holder)
    world.assert_idle()


@pytest.mark.parametrize(
    ("before", "text"),
    [(0, "behind 1 call,"), (98, "behind 99 calls,"), (100, "behind 101 calls,"), (101, "behind more than 101 calls,")],
)
def test_the_calls_ahead_are_counted_within_reason(before: int, text: str) -> None:
    world = World()
    world.agent("a")
    world.running("a")
    gone = world.send("a")
    for _ in range(before):
        world.send("a")
    late = world.send("a", timeout=1)
    world.cancel(gone)
    world.sleep(1)
    assert text in end_of(late)


def test_a_deadline_that_passes_for_want_of_a_slot_says_so() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    busy = world.running("a")
    late = world.send("b", timeout=2)
    world.sleep(2)
    assert end_of(late) == "b.m timed out after 2 s: queued 2 s for one of 1 worker slots, never started"
    world.done(busy)
    assert not late.started
    assert world.send("b").started, "its turn was free"


def test_a_deadline_that_passes_before_the_arguments_are_there_says_so() -> None:
    world = World()
    world.agents("a", "b")
    argument = world.running("b")
    late = world.send("a", deps=[argument], timeout=2)
    world.sleep(2)
    assert end_of(late) == "a.m timed out after 2 s: parked 2 s for 1 unfinished arguments, never started"
    world.done(argument)
    assert not late.started


def test_a_deadline_that_passes_while_the_code_runs_answers_the_caller_and_frees_turn_and_slot_once() -> None:
    world = World(capacity=1)
    world.agent("a")
    late = world.running("a", timeout=3)
    following = world.send("a")
    world.sleep(1)
    assert world.sleep(2)
    assert end_of(late) == "a.m timed out after 3 s: running 3 s"
    assert world.interrupted == [late.t]
    assert not following.started, "the object is still in use"
    assert world.dispatcher.running == 1
    world.done(late, ok("too late"))
    assert len(late.replies) == 1
    assert following.started
    assert world.dispatcher.running == 1
    assert world.see(world.dispatcher.on_done(late.t, ok(), world.now)) == []
    assert world.dispatcher.running == 1
    world.done(following)
    world.assert_idle()


def test_a_deadline_that_passes_while_the_code_waits_wakes_it_with_the_error_and_ends_what_it_called() -> None:
    world = World(capacity=1)
    world.agents(*"abc")
    outer = world.running("a", timeout=2)
    middle = world.nested(outer, "b", timeout=60)
    inner = world.nested(middle, "c")
    assert inner.t.deadline == middle.t.deadline == outer.t.deadline
    world.sleep(2)
    assert end_of(outer) == "a.m timed out after 2 s: running 2 s, waiting for b.m"
    for nested in (middle, inner):
        assert "its caller a.m has ended (a.m timed out after 2 s" in end_of(nested)
    assert world.interrupted == [outer.t, middle.t, inner.t]
    assert world.resumes(outer) == [], "the slot is still with the innermost"
    world.done(inner)
    assert isinstance(world.resumes(outer)[0], errors.CallTimeout)
    world.done(outer)
    assert isinstance(world.resumes(middle)[0], errors.CallTimeout)
    world.done(middle)
    world.assert_idle()


def test_a_nested_call_has_no_more_time_than_its_caller() -> None:
    world = World()
    world.agents(*"abcd")
    outer = world.running("a", timeout=10)
    world.sleep(4)
    assert world.later(outer, "b").t.deadline == outer.t.deadline
    assert world.later(outer, "c", timeout=60).t.deadline == outer.t.deadline
    assert world.later(outer, "d", timeout=1).t.deadline == world.now + 1
    free = world.send("d")
    assert free.t.deadline is None


def test_code_whose_time_is_over_may_neither_call_nor_wait() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a", timeout=1)
    other = world.running("b")
    world.sleep(1)
    refused = world.nested(outer, "b", "progress")
    assert isinstance(refused.error, errors.CallTimeout)
    asked = world.later(outer, "b", "progress")
    assert isinstance(asked.error, errors.CallTimeout)
    assert "b.progress: its caller has ended" in str(asked.error)
    assert world.resumes(outer) == [None]
    world.wait(outer, other)
    assert isinstance(world.resumes(outer)[1], errors.CallTimeout)
    world.wait_outside(outer)
    assert isinstance(world.resumes(outer)[2], errors.CallTimeout)
    assert outer.t.slot


def test_a_call_that_arrives_after_its_callers_deadline_is_refused() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a", timeout=1)
    world.now += 2
    late = world.nested(outer, "b")
    assert isinstance(late.error, errors.CallTimeout)
    assert not late.started


def test_calls_without_a_deadline_have_no_timer() -> None:
    world = World()
    world.agent("a")
    world.send("a")
    assert world.dispatcher.timers.due == math.inf


def test_timers_of_calls_that_are_over_do_not_pile_up() -> None:
    world = World(max_calls_per_client=100_000)
    world.agent("a")
    longest = 0
    for _ in range(10_000):
        world.done(world.send("a", timeout=300))
        longest = max(longest, len(world.dispatcher.timers))
    assert longest <= 1100
    world.running("a", timeout=300)
    for _ in range(5_000):
        world.cancel(world.send("a", timeout=300))
    assert len(world.dispatcher.timers) <= 1100


def test_a_thousand_calls_that_time_out_together_are_answered_in_one_tick() -> None:
    world = World()
    world.agent("a")
    world.running("a")
    calls = [world.send("a", timeout=1) for _ in range(1000)]
    world.now += 1
    world.see(world.dispatcher.on_tick(world.now))
    assert all(isinstance(call.error, errors.CallTimeout) for call in calls)
    assert world.dispatcher.counters.timed_out == 1000


# ---------------------------------------------------------------- cancel


def test_a_queued_call_that_is_cancelled_never_runs_and_those_behind_it_move_up() -> None:
    world = World()
    world.agent("a")
    holder, second, third = (world.send("a") for _ in range(3))
    world.cancel(second)
    assert isinstance(second.error, errors.CallCancelled)
    assert str(second.error) == "a.m was cancelled: queued 0 s behind 1 call, never started"
    world.done(holder)
    assert third.started
    world.done(third)
    assert not second.started
    world.assert_idle()


def test_a_call_that_waits_for_a_slot_is_cancelled_and_gives_its_turn_up() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    busy = world.running("a")
    ready, queued = world.send("b"), world.send("b", "n")
    world.cancel(ready)
    assert isinstance(ready.error, errors.CallCancelled)
    world.done(busy)
    assert queued.started
    assert not ready.started


def test_a_parked_call_is_cancelled_and_its_argument_goes_on() -> None:
    world = World()
    world.agents("a", "b")
    argument = world.running("b")
    parked = world.send("a", deps=[argument])
    world.cancel(parked)
    assert isinstance(parked.error, errors.CallCancelled)
    world.done(argument)
    assert argument.value == "ok"
    assert not parked.started


def test_a_running_call_that_is_cancelled_is_answered_and_told_and_freed_when_it_returns() -> None:
    world = World()
    world.agent("a")
    running, queued = world.send("a"), world.send("a")
    world.sleep(1.5)
    world.cancel(running)
    assert str(running.error) == "a.m was cancelled: running 1.5 s"
    assert world.interrupted == [running.t]
    world.cancel(running)
    assert len(world.interrupted) == 1
    assert world.dispatcher.counters.cancelled == 1
    assert not queued.started
    world.done(running)
    assert queued.started


def test_a_cancel_reaches_the_calls_that_the_call_has_made() -> None:
    world = World(capacity=5)
    world.agents(*"abcde")
    root = world.running("a")
    asked = [world.later(root, name) for name in "bcdb"]
    child = world.nested(root, "e")
    grandchild = world.nested(child, "a", "progress")
    world.nested(grandchild, "nobody")
    world.running("a", "progress")
    world.cancel(root)
    for call in (root, *asked, child, grandchild):
        assert isinstance(call.error, errors.CallCancelled)
    assert world.resumes(root) == [], "no slot is free"
    world.finish()
    assert [type(error) for error in world.resumes(root)] == [errors.CallCancelled]
    world.assert_idle()


def test_a_cancel_alone_leaves_the_calls_that_the_call_has_made() -> None:
    world = World()
    world.agents("a", "b", "c")
    root = world.running("a")
    asked, child = world.later(root, "b"), world.nested(root, "c")
    world.see(world.dispatcher.on_cancel(root.peer, root.call_id, "", world.now, alone=True))
    assert isinstance(root.error, errors.CallCancelled)
    assert isinstance(world.resumes(root)[0], errors.CallCancelled)
    assert world.interrupted == [root.t]
    world.finish()
    assert asked.value == child.value == "ok"
    world.assert_idle()


def test_a_cancel_leaves_the_calls_that_others_have_made() -> None:
    world = World()
    world.agents("a", "b")
    root, other = world.running("a"), world.running("b")
    world.wait(root, other)
    world.cancel(root)
    assert isinstance(world.resumes(root)[0], errors.CallCancelled)
    assert not other.answered


def test_a_cancel_of_a_chain_of_10000_coroutines_needs_no_recursion() -> None:
    world = World(max_calls=20_000)
    world.agent("w", "Wide")
    root = call = world.running("w", "co")
    chain = [root]
    for _ in range(10_000):
        call = world.later(call, "w", "co")
        world.wait(chain[-1], call)
        chain.append(call)
    world.cancel(root)
    assert len(world.interrupted) == 10_001
    assert len(str(chain[-1].error)) < 300
    for call in chain:
        world.done(call)
    world.assert_idle()


def test_a_waiter_gets_the_cancelled_result_of_what_it_waited_for() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a")
    inner = world.nested(outer, "b")
    world.cancel(inner, by_task_id=True, peer=world.client)
    assert isinstance(inner.error, errors.CallCancelled)
    assert world.resumes(outer) == [None]
    assert not outer.answered


def test_anybody_may_cancel_by_task_id_and_only_the_owner_by_call_id() -> None:
    world = World()
    world.agent("a")
    first, second = world.running("a"), world.send("a")
    stranger = Peer("stranger")
    world.cancel(second, peer=stranger)
    assert not second.answered
    world.cancel(second, peer=stranger, by_task_id=True)
    assert isinstance(second.error, errors.CallCancelled)
    world.done(first)
    world.assert_idle()


def test_a_cancel_of_what_is_over_changes_nothing() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    world.done(call)
    assert world.cancel(call) == []
    assert world.cancel(call, by_task_id=True) == []
    assert world.dispatcher.counters.cancelled == 0


@pytest.mark.parametrize("by_task_id", [False, True])
def test_a_cancel_that_arrives_before_its_call_still_wins(by_task_id: bool) -> None:
    world = World()
    world.agent("a")
    early = Sent(world, world.client, 77, None)
    stranger = Peer("stranger")
    assert world.cancel(early, by_task_id=by_task_id, peer=stranger if by_task_id else world.client) == []
    call = world.send("a", call_id=77, flags=Flag.DETACHED)
    assert isinstance(call.error, errors.CallCancelled)
    assert not call.started
    assert world.kept[call.task_id].code, "who fetches it learns that it was cancelled"
    assert world.send("a", call_id=78).started


def test_an_early_cancel_makes_no_agent() -> None:
    world = World()
    world.cancel(Sent(world, world.client, 77, None))
    options: dict[str, Any] = {"class": "Plain", "id": "b"}
    made = world.send("", "create_agent", call_id=77, **options)
    assert isinstance(made.error, errors.CallCancelled)
    assert world.dispatcher.agents == {}


def test_early_cancels_are_remembered_within_bounds() -> None:
    world = World()
    world.agent("a", "Wide")
    count = admission.MAX_EARLY_CANCELS
    for call_id in range(100, 100 + count + 1):
        world.cancel(Sent(world, world.client, call_id, None))
    assert len(world.dispatcher.admission.early_cancels) == count
    assert world.send("a", "co", call_id=100).started, "the oldest was forgotten"
    assert isinstance(world.send("a", "co", call_id=101).error, errors.CallCancelled)


def test_a_call_that_never_started_ends_no_matter_how_often_it_is_retried() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    world.running("a")
    for _ in range(2_000):
        for agent in ("a", "b"):
            world.cancel(world.send(agent))
    record = world.dispatcher.agents["a"]
    assert record.queued == 0
    assert world.dispatcher.calls.slots.ready == 0


# ---------------------------------------------------------------- peers that go and come back


def test_the_plain_calls_of_a_peer_that_is_gone_end_and_its_detached_ones_go_on() -> None:
    world = World()
    world.agents("a", "b")
    gone = Peer("gone")
    running = world.running("a", peer=gone)
    queued = world.send("a", peer=gone)
    detached = world.running("b", peer=gone, flags=Flag.DETACHED)
    later = world.send("b", peer=gone, flags=Flag.DETACHED)
    other = world.send("a")
    world.detach(gone)
    assert world.interrupted == [running.t]
    assert world.answers.get((gone, queued.call_id), []) == []
    world.done(running)
    assert other.started
    assert not queued.started
    world.done(detached)
    world.done(later)
    assert world.kept.keys() == {detached.task_id, later.task_id}
    assert not any(peer is gone for peer, _ in world.answers if world.answers[peer, _])
    world.done(other)
    world.assert_idle()
    assert gone.calls == {}


def test_a_peer_that_goes_takes_its_fetches_along() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    gone = Peer("gone")
    world.fetch(call.task_id, peer=gone)
    world.detach(gone)
    assert not call.t.fetches
    assert world.sleep(60) == []
    world.done(call)
    assert all(peer is not gone for peer, _ in world.answers)
    world.assert_idle()


def test_an_open_call_that_comes_again_is_answered_once() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    again = world.send("a", call_id=call.call_id)
    assert again.ticket is call.ticket
    world.done(call)
    assert len(call.replies) == 1
    assert world.dispatcher.counters.accepted == 2
    world.assert_idle()


def test_an_open_call_that_comes_again_from_its_returned_peer_is_answered_there() -> None:
    world = World()
    world.agent("a")
    old, new = Peer("same"), Peer("same")
    call = world.running("a", peer=old, flags=Flag.DETACHED)
    refused = world.send("a", peer=new, call_id=call.call_id)
    assert isinstance(refused.error, errors.RemoteProtocolError), "two peers of one name, both alive"
    world.answers.clear()
    world.detach(old)
    again = world.send("a", peer=new, call_id=call.call_id)
    assert again.ticket is call.ticket
    world.done(call)
    assert again.value == "ok"
    assert not world.answers[old, call.call_id]
    assert (old.calls, new.calls) == ({}, {})
    world.assert_idle()


# ---------------------------------------------------------------- fetch and keep


def test_a_detached_result_is_kept_and_answered_and_so_is_its_error() -> None:
    world = World()
    world.agents("a")
    for reply in (ok(1), failed(ValueError("no"))):
        call = world.running("a", flags=Flag.DETACHED)
        effects = world.done(call, reply)
        assert world.kept[call.task_id] == reply
        assert [type(effect).__name__ for effect in effects] == ["Keep", "Answer"], "kept before anybody can ask"
    plain = world.running("a")
    world.done(plain)
    assert plain.task_id not in world.kept
    late = world.send("a", flags=Flag.DETACHED, timeout=1)
    world.sleep(1)
    assert world.kept[late.task_id].code


def test_a_fetch_of_an_unfinished_call_is_answered_when_it_ends() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    fetches = [world.fetch(call.task_id), world.fetch(call.task_id, peer=Peer("other"))]
    world.done(call, ok(7))
    assert [fetch.value for fetch in fetches] == [7, 7]
    assert world.pendings == []
    world.assert_idle()


def test_a_fetch_whose_time_is_over_is_told_that_the_call_is_pending() -> None:
    world = World(max_timeout_seconds=5)
    world.agent("a")
    call = world.running("a")
    short, long = world.fetch(call.task_id, 2), world.fetch(call.task_id, 1e9)
    world.sleep(2)
    assert world.pendings == [(world.client, short.call_id)]
    world.sleep(2.9)
    assert len(world.pendings) == 1
    world.sleep(0.2)
    assert world.pendings[1:] == [(world.client, long.call_id)], "none may wait longer in the host"
    assert not call.t.fetches
    world.done(call)
    assert not short.answered
    world.assert_idle()


def test_a_fetch_that_will_not_wait_is_told_at_once() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    fetch = world.fetch(call.task_id, 0)
    assert world.pendings == [(world.client, fetch.call_id)]


def test_a_fetch_of_anything_else_goes_to_the_store() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    world.done(call)
    fetches = [world.fetch(call.task_id), world.fetch("nobody-1")]
    assert [(lookup.call_id, lookup.task_id, lookup.ticket) for lookup in world.lookups] == [
        (fetches[0].call_id, call.task_id, None), (fetches[1].call_id, "nobody-1", None),
    ]  # fmt: skip


def test_a_fetch_that_is_cancelled_is_forgotten() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    fetch = world.fetch(call.task_id)
    world.cancel(fetch)
    assert world.sleep(60) == []
    world.done(call)
    assert not fetch.answered
    world.assert_idle()


def test_a_fetch_that_comes_twice_is_answered_once() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    fetch = world.fetch(call.task_id)
    world.see(world.dispatcher.on_fetch(world.client, fetch.call_id, call.task_id, 60.0, world.now))
    world.done(call)
    assert fetch.answered
    world.assert_idle()


# ---------------------------------------------------------------- a store that hosts share


def test_a_shared_store_is_told_of_calls_that_leave_a_result_and_a_local_one_of_none() -> None:
    for pool_type in ("redis", "local"):
        world = World(pool_type=pool_type)
        world.agent("a")
        world.done(world.running("a"))
        kept = world.running("a", flags=Flag.DETACHED)
        assert world.begun == ([kept.task_id] if pool_type == "redis" else [])
        world.done(kept)
        assert list(world.kept) == [kept.task_id]


def test_a_fetch_of_what_another_host_may_have_waits_for_the_word_of_the_shared_store() -> None:
    world = World(pool_type="redis", max_timeout_seconds=5)
    done, pending, late = (world.fetch(f"far-{number}", 60.0) for number in range(3))
    assert all(3.7 < lookup.timeout_s <= 5 for lookup in world.lookups), "not all of them at the same moment"
    fetches = [lookup.fetch for lookup in world.lookups if lookup.fetch is not None]
    assert len(fetches) == 3
    world.see(world.dispatcher.on_found(fetches[0], ok(7)))
    world.see(world.dispatcher.on_found(fetches[1], None))
    assert done.value == 7
    assert world.pendings == [(world.client, pending.call_id)]
    world.sleep(60)
    assert world.pendings[1:] == [(world.client, late.call_id)], "a store that never answers keeps nobody"
    world.see(world.dispatcher.on_found(fetches[2], ok(8)))
    assert not late.answered
    assert not world.client.fetches


def test_fetches_that_wait_for_the_shared_store_are_limited_cancelled_and_forgotten_with_their_peer() -> None:
    world = World(pool_type="redis", max_calls_per_client=2)
    first, _ = world.fetch("far-1"), world.fetch("far-2")
    assert isinstance(world.fetch("far-3").error, errors.HostBusy)
    world.cancel(first)
    gone = Peer("gone")
    world.fetch("far-4", peer=gone)
    world.detach(gone)
    for lookup in world.lookups:
        assert lookup.fetch is not None
        world.see(world.dispatcher.on_found(lookup.fetch, ok()))
    assert [peer for peer, _ in world.answers if peer is gone] == []
    assert not first.answered
    assert not world.client.fetches


def test_a_full_store_refuses_calls_that_would_leave_a_result_and_no_others() -> None:
    world = World(pool_type="redis", capacity=8)
    world.agent("a", "Wide")
    world.dispatcher.admission.on_store_full("there is no room")
    refused = world.send("a", flags=Flag.DETACHED)
    assert isinstance(refused.error, errors.StoreFull)
    assert not world.begun
    world.done(world.running("a"))
    world.dispatcher.admission.on_store_full("")
    world.done(world.running("a", flags=Flag.DETACHED))
    world.assert_idle()


# ---------------------------------------------------------------- limits


def test_the_host_the_client_and_the_mailbox_have_limits_that_free_themselves() -> None:
    world = World(max_calls=6, max_calls_per_client=4, max_mailbox=2)
    world.agents("a", "b")
    other = Peer("other")
    first = world.running("a")
    world.send("a")
    world.send("a")
    mailbox = world.send("a")
    assert isinstance(mailbox.error, errors.HostBusy)
    assert "the mailbox of a: 2 calls are queued, limit 2 (max_mailbox)" in str(mailbox.error)
    assert mailbox.error.retry_after > 0
    assert world.send("a", "progress").started, "which does not queue"
    client = world.send("b")
    assert isinstance(client.error, errors.HostBusy)
    assert "max_calls_per_client" in str(client.error)
    assert world.send("b", peer=other).started
    assert world.nested(first, "b", "progress").started
    host = world.send("b", "progress", peer=other)
    assert isinstance(host.error, errors.HostBusy)
    assert "(max_calls)" in str(host.error)
    assert world.dispatcher.counters.refused == 3
    world.finish()
    assert world.send("a", peer=other).started


def test_the_mailbox_is_limited_while_the_agent_is_being_made_and_for_parked_calls() -> None:
    world = World(max_mailbox=2)
    made = world.create("a")
    world.send("a")
    world.send("a", "progress")
    assert isinstance(world.send("a", "progress").error, errors.HostBusy)
    world.done(made)
    world.agent("b")
    argument = world.running("b")
    world.send("a")
    world.send("a")
    parked = world.send("a", deps=[argument])
    assert isinstance(parked.error, errors.HostBusy), "already on arrival"


def test_parked_calls_that_find_the_mailbox_full_are_refused_one_by_one() -> None:
    world = World(max_mailbox=2)
    world.agents("a", "b")
    argument, holder = world.running("b"), world.running("a")
    parked = [world.send("a", deps=[argument]) for _ in range(4)]
    world.done(argument)
    assert [call.answered for call in parked] == [False, False, True, True]
    assert isinstance(parked[3].error, errors.HostBusy)
    world.done(holder)
    world.finish()
    world.assert_idle()


def test_the_hosts_own_calls_count_only_for_the_host() -> None:
    world = World(max_calls_per_client=1)
    world.agent("a", "Wide")
    outer = world.running("a", "co")
    assert all(world.later(outer, "a", "co").started for _ in range(10))
    assert isinstance(world.send("a", "co").error, errors.HostBusy)


def test_fetches_are_limited_per_client() -> None:
    world = World(max_calls_per_client=2)
    world.agent("a")
    call = world.running("a")
    world.fetch(call.task_id)
    world.fetch(call.task_id)
    assert isinstance(world.fetch(call.task_id).error, errors.HostBusy)
    assert world.fetch(call.task_id, peer=Peer("other")).error is None


# ---------------------------------------------------------------- drain


def test_an_idle_host_is_drained_at_once() -> None:
    world = World()
    world.agent("a")
    world.drain()
    assert world.drained == [0]


def test_a_draining_host_takes_no_new_calls_finishes_the_accepted_and_allows_what_those_call() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    running, queued = world.running("a"), world.send("a")
    world.drain()
    assert world.dispatcher.draining
    new = world.send("b")
    assert isinstance(new.error, errors.HostStopping)
    nested = world.nested(running, "b")
    assert nested.started
    world.done(nested)
    world.done(running)
    assert queued.started
    assert world.drained == []
    world.done(queued)
    assert world.drained == [0]
    assert all(call.value == "ok" for call in (running, queued, nested))
    world.assert_idle()


def test_a_drain_whose_grace_is_over_answers_everybody_once_and_lets_every_waiting_thread_go() -> None:
    world = World(capacity=2)
    world.agents(*"abcde")
    stuck = world.running("a")
    outer = world.running("b")
    inner = world.nested(outer, "c")
    outside = world.send("d")
    calls = [stuck, outer, inner, outside, world.send("a"), world.send("e", deps=[stuck]), world.send("e")]
    fetch = world.fetch(stuck.task_id)
    world.drain(3)
    assert world.dispatcher.timers.due == world.now + 3
    world.sleep(3)
    for call in (*calls, fetch):
        assert isinstance(call.error, errors.HostStopping), call.task_id
    assert "the host stopped: a.m was running 3 s" in str(stuck.error)
    assert "queued 3 s behind 1 call" in str(calls[4].error)
    assert len(world.resumes(outer)) == 1, "though no slot is free"
    assert isinstance(world.resumes(outer)[0], errors.HostStopping)
    assert world.drained == [7]
    assert set(world.interrupted) == {stuck.t, outer.t, inner.t}


def test_a_drained_host_is_silent_but_for_refusals() -> None:
    world = World()
    world.agents("a", "b")
    stuck = world.running("a")
    beside = world.running("a", "progress")
    other = world.send("a")
    world.remove("a")
    world.fetch(stuck.task_id)
    world.drain(0)
    assert world.drained == [2]
    assert other.answered
    assert world.done(stuck) == []
    assert world.see(world.dispatcher.on_tick(world.now + 100)) == []
    assert world.drain() == []
    assert world.detach(world.client) == []
    world.wait(stuck, "x-1")
    assert isinstance(world.resumes(stuck)[0], errors.HostStopping)
    assert world.cancel(stuck) == []
    assert isinstance(world.send("b", peer=Peer("other")).error, errors.HostStopping)
    assert isinstance(world.fetch("x-1", peer=Peer("other")).error, errors.HostStopping)
    refused = world.nested(beside, "b")
    assert isinstance(refused.error, errors.HostStopping)
    assert world.resumes(beside) == [None]
    world.wait(beside, "x-1")
    world.wait_outside(beside)
    assert [type(error) for error in world.resumes(beside)[1:]] == [errors.HostStopping] * 2
    assert world.done(beside) == []
    assert world.remove("b") == []


def test_a_drain_waits_for_code_whose_caller_was_answered_already() -> None:
    world = World()
    world.agent("a")
    late = world.running("a", timeout=1)
    world.sleep(1)
    assert late.answered
    world.drain(10)
    assert world.drained == []
    world.done(late)
    assert world.drained == [0]


def test_a_second_drain_may_only_shorten_the_first() -> None:
    world = World()
    world.agent("a")
    world.running("a")
    world.drain(10)
    world.drain(20)
    assert world.dispatcher.timers.due == world.now + 10
    world.drain(1)
    world.sleep(1)
    assert world.drained == [1]


def test_a_drain_ends_with_the_cancel_of_the_last_call() -> None:
    world = World()
    world.agents("a", "b")
    holder = world.running("a")
    queued = world.send("a")
    world.drain()
    world.done(holder)
    assert world.drained == []
    world.cancel(queued)
    assert world.drained == []
    world.done(queued)
    assert world.drained == [0]


# ---------------------------------------------------------------- cost and memory


def test_a_call_whose_caller_left_it_behind_is_a_call_of_nobody() -> None:
    world = World()
    world.agents("a", "b")
    outer = world.running("a", timeout=5)
    world.done(outer)
    orphan = world.later(outer, "b")
    assert orphan.started
    assert orphan.t.parent is None
    world.wait(outer, orphan)
    assert isinstance(world.resumes(outer)[0], errors.LocalProtocolError)


def test_a_call_that_always_leaves_its_successor_behind_keeps_nothing_of_the_past() -> None:
    world = World()
    world.agent("a")
    call = world.running("a")
    first = weakref_of(call)
    for _ in range(100):
        following = world.later(call, "a")
        world.done(call)
        call = following
        assert call.t.chain == ()
    world.started.clear()
    world.ever_started.clear()
    world.resumed.clear()
    gc.collect()
    assert first() is None


def weakref_of(call: Sent) -> Callable[[], object]:
    """A look at whether a ticket is still there: it has no room for a weak reference, its context has."""

    class Context:
        pass

    context = Context()
    call.t.context = context  # type: ignore[assignment]
    return weakref.ref(context)


def test_a_finished_call_is_freed_without_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        before = tickets()  # of other tests, whatever keeps them
        world = World()
        world.agent("a")
        for _ in range(3):
            call = world.send("a", timeout=None)
            call.t.context = Cycle(call.t)  # type: ignore[assignment]
            world.done(call)
        world.started.clear()
        world.ever_started.clear()
        del call
        assert tickets() == before
    finally:
        gc.enable()


def tickets() -> int:
    return sum(type(thing) is Ticket for thing in gc.get_objects())


class Cycle:
    """Points back at its ticket, as a call's context does."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket


def per_item(work: Callable[[int], None], small: int, large: int) -> float:
    """How much more one item costs in a large batch than in a small one."""
    costs = []
    for size in (small, large):
        best = float("inf")
        for _ in range(3):
            began = time.thread_time()  # of the processor: others that use it do not count
            work(size)
            best = min(best, time.thread_time() - began)
        costs.append(best / size)
    return costs[1] / costs[0]


def spawn_children(count: int) -> None:
    world = World(max_calls=100_000)
    world.agent("w", "Wide")
    root = world.running("w", "co")
    children = [world.later(root, "w", "co") for _ in range(count)]
    for child in children:
        world.wait(root, child)
    for child in children:
        world.dispatcher.on_done(child.t, ok(), world.now)


def queue_and_cancel(count: int) -> None:
    world = World(max_calls=100_000, max_calls_per_client=100_000, max_mailbox=100_000)
    world.agent("a")
    world.running("a")
    calls = [world.send("a") for _ in range(count)]
    for call in calls[::2] + calls[1::2]:
        world.dispatcher.on_cancel(world.client, call.call_id, "", world.now)


def wait_for_one(count: int) -> None:
    world = World(max_calls=100_000, max_calls_per_client=100_000)
    world.agent("w", "Wide")
    target = world.running("w", "co")
    waiters = [world.running("w", "co") for _ in range(count)]
    for waiter in waiters:
        world.wait(waiter, target)
    for waiter in waiters:
        world.dispatcher.on_unwait(waiter.t, [target.task_id])
    for waiter in waiters:
        world.dispatcher.on_done(waiter.t, ok(), world.now)


@pytest.mark.parametrize("work", [spawn_children, queue_and_cancel, wait_for_one])
def test_one_call_among_thousands_costs_what_it_costs_among_hundreds(work: Callable[[int], None]) -> None:
    # 1 if the work grows with the number, 16 if with its square; caches that others empty may make it 3.
    assert per_item(work, 500, 8_000) < 10


def test_the_text_of_a_dispatcher_says_how_busy_it_is() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    world.running("a")
    world.send("a")
    world.send("b")
    assert repr(world.dispatcher) == "<Dispatcher [Calls: 3 open, 1 running, 0 waiting, 1 queued, 1 ready | Agents: 2]>"


def test_effects_of_one_event_come_in_an_order_that_can_be_carried_out() -> None:
    world = World(capacity=1)
    world.agents("a", "b")
    outer = world.running("a")
    inner = world.nested(outer, "b")
    effects = world.done(inner)
    kinds = [type(effect) for effect in effects]
    assert kinds.index(Answer) < kinds.index(Resume), "the reply is there when its reader goes on"
