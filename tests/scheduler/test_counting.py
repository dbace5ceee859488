"""What is counted of calls: each once, by how it ended, with the times it waited and ran."""

from __future__ import annotations

from typing import Any

import pytest

from world import World, failed
from zmqagents.broker.watching.call_log import CallLog
from zmqagents.codec import MAX_TEXT, pack
from zmqagents.errors import DeadlockError
from zmqagents.scheduler.calls import Observer
from zmqagents.scheduler.dispatcher import AgentRecord, Ticket
from zmqagents.telemetry.meters import ATTRIBUTE, Outcome
from zmqagents.wire.messages import Code, Flag, Op, Reply

PLAIN = "world:Plain"


@pytest.fixture
def world() -> World:
    world = World(capacity=4, max_mailbox=2)
    world.agent("a")
    return world


def told(world: World, method: str = "m") -> dict[str, Any]:
    (found,) = (each for each in world.dispatcher.calls.meters.told() if each["method"] == method)
    assert found["class"] == PLAIN
    assert sum(found["queued"]["counts"]) == sum(found["took"]["counts"]) == sum(found["ends"].values())
    return found


def ends(world: World, method: str = "m") -> dict[str, int]:
    return {name: count for name, count in told(world, method)["ends"].items() if count}


def test_a_call_that_queues_and_runs_counts_the_time_of_each(world: World) -> None:
    first, second = world.send("a"), world.send("a")
    world.now += 0.02
    world.done(first)
    world.now += 3.0
    world.done(second)
    found = told(world)
    assert ends(world) == {"ok": 2}
    assert found["queued"]["sum_s"] == pytest.approx(0.02)
    assert found["ran"]["sum_s"] == pytest.approx(3.02)
    assert found["took"]["sum_s"] == pytest.approx(3.04)


def test_each_end_counts_as_what_it_was(world: World) -> None:
    world.done(world.send("a"), failed(ValueError("no")))
    late, queued = world.send("a", timeout=1.0), world.send("a", timeout=1.0)
    world.sleep(1.5)
    assert (late.answered, queued.answered) == (True, True)
    world.done(late)
    cancelled = world.send("a")
    world.cancel(cancelled)
    world.done(cancelled)
    assert ends(world) == {"error": 1, "timeout": 2, "cancelled": 1}
    assert sum(told(world)["ran"]["counts"]) == 3, "one never began"
    world.assert_idle()


def test_a_deadlock_counts_as_one_and_not_as_an_error(world: World) -> None:
    world.agent("b")
    outer = world.running("a")
    inner = world.nested(outer, "a", "n")
    assert inner.answered
    assert ends(world, "n") == {"deadlock": 1}


def test_a_deadlock_of_many_calls_with_long_names_ends_as_any_other() -> None:
    world = World(capacity=301)
    names = [f"a{number}".ljust(MAX_TEXT, "x") for number in range(300)]
    world.agents(*names)
    call = world.running(names[0])
    for name in names[1:]:
        call = world.nested(call, name)
    inner = world.nested(call, names[0], "n")
    assert isinstance(inner.error, DeadlockError)
    assert len(inner.replies[0].body[0]) > 65_536, "more than what is read of other values"
    assert ends(world, "n") == {"deadlock": 1}


@pytest.mark.parametrize("body", [(), (b"",), (b"\xc1",), (b"\xc0",), (pack({"type": 5}),)])
@pytest.mark.parametrize("code", [Code.HOST_ERROR, Code.AGENT_ERROR])
def test_an_error_of_another_process_that_cannot_be_read_is_an_error(code: Code, body: tuple[bytes, ...]) -> None:
    world = World(observer=CallLog(lambda: 0.0))
    world.agent("a")
    call = world.send("a")
    world.done(call, Reply(code, body))
    assert call.replies == [Reply(code, body)]
    assert ends(world) == {"error": 1}
    world.assert_idle()


def test_reads_of_attributes_count_under_one_name_whatever_callers_ask_for(world: World) -> None:
    for name in ("one", "two"):
        world.done(world.send("a", name, flags=Flag.ATTRIBUTE))
    assert ends(world, ATTRIBUTE) == {"ok": 2}
    assert ends(world, Op.CREATE) == {"ok": 1}


def test_refusals_count_by_their_error_and_by_the_limit_that_was_met(world: World) -> None:
    world.send("a", "missing")
    calls = [world.send("a") for _ in range(4)]
    assert [call.is_busy or call.error is not None for call in calls] == [False, False, False, True]
    meters, shares = world.dispatcher.calls.meters, world.dispatcher.shares
    assert meters.refused == {"UnknownMethod": 1, "HostBusy": 1}
    assert {name: count for name, count in shares.refused().items() if count} == {"mailbox": 1}


def test_agents_are_counted_from_the_request_to_make_them_until_they_are_deleted(world: World) -> None:
    world.agent("b")
    assert world.dispatcher.calls.meters.agents() == {PLAIN: 2}
    world.remove("a")
    assert world.dispatcher.calls.meters.agents() == {PLAIN: 1}
    world.done(world.create("c"), failed(ValueError("no")))
    assert world.dispatcher.calls.meters.agents() == {PLAIN: 1}


class Seeing(Observer):
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def failed(self, ticket: Ticket, reply: Reply, outcome: Outcome) -> None:
        self.seen.append((ticket, reply, outcome))

    def made(self, record: AgentRecord) -> None:
        self.seen.append(("made", record.agent_id))

    def gone(self, record: AgentRecord) -> None:
        self.seen.append(("gone", record.agent_id))


def test_each_call_that_does_not_end_well_is_told_with_its_reply() -> None:
    observer = Seeing()
    world = World(observer=observer)
    world.agent("a")
    reply = failed(ValueError("no"))
    call = world.send("a")
    world.done(call, reply)
    world.done(world.send("a"))
    assert observer.seen == [("made", "a"), (call.ticket, reply, Outcome.ERROR)]


def test_an_agent_is_gone_when_its_last_call_has_returned() -> None:
    observer = Seeing()
    world = World(observer=observer)
    world.agent("a")
    call = world.send("a")
    world.remove("a")
    assert ("gone", "a") not in observer.seen
    world.done(call)
    world.done(world.create("b"), failed(ValueError("no")))
    assert [each for each in observer.seen if len(each) == 2] == [("made", "a"), ("gone", "a")]
