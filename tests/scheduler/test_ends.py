"""The end of agents whose class has hooks for it: one more call, after all others and beside none."""

from __future__ import annotations

from typing import Any

import pytest

from world import Sent, World, failed
from zmqagents import errors
from zmqagents.scheduler.records import END, State, Ticket
from zmqagents.wire.messages import Op


def end_of(world: World) -> Ticket:
    """The one end that there is."""
    (ticket,) = [ticket for ticket in (*world.dispatcher.tasks.values(), *world.started) if ticket.op == END]
    return ticket


def started_end(world: World) -> Ticket:
    (ticket,) = [ticket for ticket in world.started if ticket.op == END]
    return ticket


def has_begun(world: World) -> bool:
    return any(ticket.op == END for ticket in world.started)


def test_an_idle_agent_ends_at_once_and_is_dropped_when_its_hook_has_run() -> None:
    world = World(capacity=1)
    record = world.agent("a", "Ending")
    world.remove("a")
    end = started_end(world)
    assert (end.state, end.label, end.turn, world.removed) == (State.RUNNING, "a.on_stop", True, [])
    world.done(end)
    assert [(each.agent, each.reply.code) for each in world.ended] == [(record, 0)]
    assert world.removed == [record]
    assert world.answers[end.peer, end.call_id] == [], "the host asked for it, and needs no answer"
    world.assert_idle()


def test_an_agent_without_hooks_has_no_end() -> None:
    world = World()
    record = world.agent("a")
    world.remove("a")
    assert (record.end, world.removed, world.ended) == (None, [record], [])


@pytest.mark.parametrize("cls", ["Ending", "PairEnding"])
def test_the_end_comes_after_all_calls_that_run_and_none_comes_after_it(cls: str) -> None:
    world = World()
    world.agent("a", cls)
    running = [world.running("a") for _ in range(2 if cls == "PairEnding" else 1)]
    beside = world.running("a", "progress")
    queued = [world.send("a"), world.send("a", "co")]
    argument = world.running(world.agent("b").agent_id)
    parked = world.send("a", deps=[argument])
    world.remove("a")
    assert all(isinstance(call.error, errors.AgentDeleted) for call in queued)
    for call in [*running, beside]:
        assert not has_begun(world)
        world.done(call)
        assert call.value == "ok"
    end = started_end(world)
    world.done(argument)
    assert isinstance(parked.error, errors.AgentDeleted)
    assert world.removed == []
    world.done(end)
    assert len(world.removed) == len(world.ended) == 1
    world.assert_idle()


def test_the_end_needs_a_slot_unless_it_is_async() -> None:
    for cls, waits in (("Ending", True), ("PairEnding", False)):
        world = World(capacity=1)
        world.agents("b")
        world.agent("a", cls)
        running = world.running("b")
        world.remove("a")
        assert has_begun(world) is not waits
        world.done(running)
        world.done(started_end(world))
        world.assert_idle()


def test_seated_calls_that_have_not_started_do_not_hold_the_end_up() -> None:
    world = World(capacity=1)
    world.agents("b")
    world.agent("a", "PairEnding")
    running = world.running("b")
    ready = [world.send("a"), world.send("a"), world.send("a", "progress")]
    assert {call.state for call in ready} == {State.READY}
    world.remove("a")
    assert all(isinstance(call.error, errors.AgentDeleted) for call in ready)
    assert len([ticket for ticket in world.started if ticket.op == END]) == 1
    world.done(running)
    world.done(started_end(world))
    world.assert_idle()


def test_an_agent_that_is_deleted_while_it_is_made_ends_if_it_was_made() -> None:
    for is_made in (True, False):
        world = World()
        making = world.create("a", "Ending")
        world.remove("a")
        assert not has_begun(world)
        world.done(making, None if is_made else failed(KeyError("x")))
        assert has_begun(world) is is_made
        if is_made:
            world.done(started_end(world))
        assert (len(world.ended), len(world.removed)) == (1, 1)
        world.assert_idle()


def test_an_agent_that_could_not_be_made_has_no_end() -> None:
    world = World()
    world.done(world.create("a", "Ending"), failed(KeyError("x")))
    assert (world.ended, has_begun(world), len(world.removed)) == ([], False, 1)
    world.assert_idle()


def test_an_agent_that_was_made_too_late_ends_at_once() -> None:
    world = World()
    making = world.create("a", "Ending", timeout=1.0)
    world.sleep(2)
    assert isinstance(making.error, errors.CallTimeout)
    world.done(making)
    world.done(started_end(world))
    assert "a" not in world.dispatcher.agents
    assert len(world.removed) == 1
    world.assert_idle()


def test_the_rest_of_a_creation_needs_no_slot() -> None:
    world = World(capacity=1)
    world.agents("b")
    making = world.create("a", "PairEnding")
    waiting = world.send("b")
    assert not waiting.started
    world.see(world.dispatcher.on_go_to_loop(making.t, world.now))
    assert world.gone_on == [making.t]
    assert waiting.started
    early = world.send("a")
    assert early.state is State.QUEUED, "the agent is not made yet"
    world.done(waiting)
    world.done(making)
    assert early.started
    world.done(early)
    world.assert_idle()


def test_an_agent_that_ends_counts_for_its_maker_until_it_has_ended() -> None:
    world = World(max_agents=2)
    for agent_id in ("a", "b"):
        world.agent(agent_id, "Ending")
    world.remove("a")
    assert world.client.account.agents == 2
    refused = world.create("c", "Ending")
    assert isinstance(refused.error, errors.HostBusy)
    world.done(started_end(world))
    assert world.client.account.agents == 1
    world.agent("c", "Ending")


def test_the_name_of_an_agent_that_ends_is_free() -> None:
    world = World()
    world.agent("a", "Ending")
    world.remove("a")
    assert world.create("a", "Ending").started


def test_an_end_that_is_cancelled_before_it_begins_is_left_out() -> None:
    world = World()
    world.agent("a", "Ending")
    running = world.running("a")
    world.remove("a")
    end = end_of(world)
    world.see(world.dispatcher.on_cancel(world.client, 0, end.task_id, world.now))
    world.done(running)
    assert not has_begun(world)
    assert (len(world.removed), len(world.ended)) == (1, 1)
    world.assert_idle()


# ---------------------------------------------------------------- deadlocks


def test_a_call_that_waits_for_the_end_of_the_agent_that_waits_for_it_is_a_deadlock() -> None:
    world = World()
    world.agent("a", "Ending")
    world.agents("b")
    deleting = world.running("b")
    busy = world.running("a")
    world.remove("a")
    world.wait(deleting, end_of(world).task_id)
    back = world.nested(busy, "b")
    assert isinstance(world.resumes(busy)[0] or back.error, errors.DeadlockError)
    world.done(busy)
    world.done(started_end(world))
    assert world.resumes(deleting) == [None]


# ---------------------------------------------------------------- the end of the host


def test_a_drain_ends_the_agents_when_the_calls_are_over() -> None:
    world = World()
    world.agent("a", "Ending")
    world.agents("b")
    running = world.running("b")
    world.drain(10)
    assert not has_begun(world)
    nested = world.nested(running, "a")
    assert nested.started, "it is there as long as any call may need it"
    world.done(nested)
    world.done(running)
    assert (has_begun(world), world.drained) == (True, [])
    world.done(started_end(world))
    assert (world.drained, world.unended) == ([0], [0])
    world.assert_idle()


def test_an_idle_host_ends_its_agents_before_it_stops() -> None:
    world = World()
    world.agent("a", "Ending")
    world.drain(10)
    assert world.drained == []
    world.done(started_end(world))
    assert world.drained == [0]


def test_an_agent_has_a_moment_to_end_after_the_grace_and_no_more() -> None:
    world = World()
    world.agent("a", "Ending")
    world.agent("b", "Ending")
    stuck = world.running("b")
    world.drain(3)
    world.sleep(3)
    assert isinstance(stuck.error, errors.HostStopping)
    end = started_end(world)
    assert end.agent.agent_id == "a"
    assert world.drained == []
    world.sleep(0.4)
    assert world.drained == []
    world.sleep(0.2)
    assert world.interrupted[-1] is end
    assert (world.drained, world.unended) == ([1], [2])
    assert world.done(end) == world.done(stuck) == []


def test_a_second_stop_may_cut_the_end_short() -> None:
    world = World()
    world.agent("a", "Ending")
    world.drain(0)
    assert world.drained == []
    world.drain(0)
    assert (world.drained, world.unended) == ([0], [1])


def test_an_agent_made_by_the_end_of_another_one_ends_too() -> None:
    world = World()
    world.agent("a", "Ending")
    world.drain(10)
    end = started_end(world)
    by_end = Sent(world, end.peer, end.call_id, end)
    options: dict[str, Any] = {"id": "b", "class": "Ending"}
    made = world.send("", Op.CREATE, parent=by_end, **options)
    world.done(made)
    world.done(end)
    assert world.drained == []
    (other,) = [ticket for ticket in world.started if ticket.op == END and ticket is not end]
    world.done(other)
    assert world.drained == [0]
    world.assert_idle()
