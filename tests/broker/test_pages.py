"""Pages of agents and of calls, the calls around one call, and the errors of late, on hosts without threads."""

from __future__ import annotations

import time
from typing import Any

import pytest

from world import Sent, World, failed
from zmqagents.broker.watching.call_log import CallLog
from zmqagents.broker.watching.error_log import MAX_GROUPS, ErrorLog
from zmqagents.broker.watching.pages import (
    MAX_AROUND,
    SCANNED,
    agents_page,
    calls_page,
    find_call,
    neighbours,
    oldest_waits,
)
from zmqagents.scheduler.records import Ticket


def agents(world: World, **options: Any) -> dict[str, Any]:
    return agents_page(list(world.dispatcher.agents.values()), options, world.now)


def calls(world: World, user: str | None = None, **options: Any) -> dict[str, Any]:
    return calls_page(list(world.dispatcher.tasks.values()), options, user, world.now)


def ids(page: dict[str, Any], name: str = "agents", key: str = "agent_id") -> list[str]:
    return [row[key] for row in page[name]]


def ticket_of(call: Sent) -> Ticket:
    assert call.ticket is not None
    return call.ticket


# ---------------------------------------------------------------- agents


def test_pages_together_have_every_agent_once_in_the_order_of_their_making() -> None:
    world = World()
    names = [f"a{number:03}" for number in range(105)]
    world.agents(*names)
    found: list[str] = []
    after: int | None = 0
    while after is not None:
        page = agents(world, after=after, most=20)
        assert page["total"] == 105
        found += ids(page)
        after = page["next"]
    assert found == names


def test_a_search_finds_one_of_ten_thousand_in_as_many_pages_as_it_has_to_look_at() -> None:
    world = World(max_agents=20_000)
    world.agents(*(f"agent-{number}" for number in range(10_000)))
    after, looked, found = 0, 0, []
    while after is not None:
        page = agents(world, query="AGENT-9876", after=after, most=50)
        looked += 1
        found += ids(page)
        after = page["next"]
    assert found == ["agent-9876"]
    assert looked == 10_000 // SCANNED
    assert agents(world, id="agent-3", most=1)["agents"][0]["agent_id"] == "agent-3"


def test_agents_are_sorted_by_what_they_do_the_most_first() -> None:
    world = World()
    world.agents("a", "b", "c")
    for name, count in (("b", 3), ("c", 1)):
        for _ in range(count):
            world.send(name)
    assert ids(agents(world, sort="calls", most=2)) == ["b", "c"]
    page = agents(world, sort="queued", most=1)
    assert (ids(page), page["next"]) == (["b"], 1)
    page = agents(world, sort="queued", most=2, after=page["next"])
    assert (set(ids(page)), page["next"]) == ({"a", "c"}, None)


@pytest.mark.parametrize("options", [
    {"most": 10**9}, {"most": -1}, {"most": "x"}, {"after": -5}, {"after": "x"}, {"after": 10**30}, {"sort": ["calls"]},
    {"query": 5}, {"class": 7}, {"sort": "calls", "after": 10**6},
])  # fmt: skip
def test_options_that_make_no_sense_give_a_page_of_bounded_length(options: dict[str, Any]) -> None:
    world = World()
    world.agents(*(f"a{number}" for number in range(300)))
    world.send("a1")
    assert len(agents(world, **options)["agents"]) <= 200
    assert len(calls(world, **options)["calls"]) <= 200


# ---------------------------------------------------------------- calls


def test_pages_of_calls_begin_with_the_oldest_and_miss_none_whatever_ends_between_them() -> None:
    world = World(capacity=1000)
    world.agents(*(f"a{number}" for number in range(30)))
    sent = []
    for number in range(30):
        world.now += 0.25 if number % 3 else 0.0  # several of one moment
        sent.append(world.send(f"a{number}"))
    first = calls(world, most=10, after=0.0)
    world.done(sent[0])
    world.done(sent[20])
    rest = calls(world, most=200, after=first["next"])
    found = ids(first, "calls", "task_id") + ids(rest, "calls", "task_id")
    assert found == [call.task_id for number, call in enumerate(sent) if number != 20]
    assert rest["next"] is None


def test_calls_are_found_by_state_agent_method_and_a_part_of_their_name() -> None:
    world = World()
    world.agents("alpha", "beta")
    running, queued = world.running("alpha"), world.send("alpha")
    other = world.running("beta", "n")

    def found(**options: Any) -> list[str]:
        return ids(calls(world, most=50, **options), "calls", "task_id")

    assert found(state="running") == [running.task_id, other.task_id]
    assert found(state="queued") == [queued.task_id]
    assert found(agent="beta") == found(method="n") == found(query="BETA.N") == [other.task_id]
    assert found(of_user="nobody") == []


def test_who_may_not_see_the_calls_of_others_finds_none_of_them() -> None:
    world = World()
    world.agent("a")
    world.send("a")
    assert calls(world, user="key:somebody", most=50)["calls"] == []


# ---------------------------------------------------------------- the calls around one


def test_around_a_call_are_those_it_waits_for_and_those_that_wait_for_it() -> None:
    world = World()
    world.agents("a", "b", "c", "far")
    outer = world.running("a")
    middle = world.nested(outer, "b")
    inner = world.nested(middle, "c")
    behind = world.send("a")
    alone = world.send("far")
    near = neighbours(ticket_of(middle))
    assert near[0] is middle.ticket
    assert set(near) == {outer.ticket, middle.ticket, inner.ticket}
    assert set(neighbours(ticket_of(behind))) == {behind.ticket, *near}
    assert neighbours(ticket_of(alone)) == [alone.ticket]
    assert set(oldest_waits(world.dispatcher.tasks.values())) == {*near, behind.ticket}


def test_the_calls_around_one_are_bounded() -> None:
    world = World(max_mailbox=10_000)
    world.agent("a")
    sent = [world.send("a") for _ in range(3 * MAX_AROUND)]
    assert len(neighbours(ticket_of(sent[-1]))) <= MAX_AROUND
    assert len(oldest_waits(world.dispatcher.tasks.values())) == MAX_AROUND


def test_a_call_is_found_by_its_id_and_by_the_shortened_one() -> None:
    world = World()
    world.agent("a")
    call = world.send("a")
    prefix = "mfzwizltoqqhk4tf"
    tasks = {f"{prefix}-{call.call_id}": ticket_of(call)}
    assert find_call(tasks, f"{prefix}-{call.call_id}", []) is call.ticket
    assert find_call(tasks, f"mfzw..-{call.call_id}", [prefix]) is call.ticket
    for wrong in ("mfzw..-99", "xxxx..-1", "..-1x", "", "mfzw"):
        assert find_call(tasks, wrong, [prefix]) is None


# ---------------------------------------------------------------- errors


def test_errors_of_one_kind_are_one_group_with_the_latest_of_them() -> None:
    log = CallLog(lambda: 0.0)
    world = World(observer=log)
    world.agent("a")
    for number in range(12):
        call = world.running("a")
        world.done(call, failed(ValueError(f"<b>{number}</b>")))
    call = world.running("a")
    world.done(call, failed(KeyError("k")))
    latest, former = log.errors.told()
    assert (latest["error"], latest["count"]) == ("KeyError", 1)
    assert (former["error"], former["count"], former["message"], former["method"]) == (
        "ValueError",
        12,
        "<b>11</b>",
        "m",
    )
    assert len(former["calls"]) == 5
    assert time.time() - 60 < former["first"] <= former["last"]


def test_a_flood_of_kinds_and_of_long_texts_takes_no_more_than_its_room() -> None:
    log = ErrorLog()
    for number in range(3 * MAX_GROUPS):
        data = {"message": "m" * 100_000, "traceback": "t" * 100_000 + "end"}
        log.note("c", f"m{number}", "E", "a", f"t-{number}", data)
    told = log.told()
    assert len(told) == MAX_GROUPS
    assert told[0]["method"] == f"m{3 * MAX_GROUPS - 1}"
    assert max(len(row["message"]) + len(row["traceback"]) for row in told) <= 8192
    assert told[0]["traceback"].endswith("end")
