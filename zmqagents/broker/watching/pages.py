"""Agents and calls as pages of a list, by filter; and one call with those around it.

A host may have 100,000 of either, and a page shows fifty. So the router thread takes down which there are, and the rest
is done in the thread for lists, which looks at `SCANNED` records for one page: where these have too few that match, the
page says where to go on. A page begins behind the number of an agent, or behind the moment at which a call was
accepted, so what comes or goes between two pages moves nothing. Only what is sorted by something else has places.

The calls around one call, whichever waits for which, are found in the router thread, for they change; `MAX_AROUND` of
them at most.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ...scheduler.records import END, AgentRecord, State, Ticket, left_over
from ...security.roles import shortened
from ...security.zap import name_of
from ..listing import row_of

if TYPE_CHECKING:
    from ...tracing.hosts import HostTraces

__all__ = ["MAX_AROUND", "agents_page", "call_row", "calls_page", "find_call", "neighbours", "oldest_waits"]

MAX_ROWS = 200
SCANNED = 5_000
MAX_AROUND = 200
PAUSE_EVERY = 1_000  # records of a sort, after which other threads have their turn
_SORTS: dict[str, Callable[[AgentRecord], float]] = {
    "calls": lambda record: record.calls, "running": lambda record: len(record.holders),
    "queued": lambda record: record.queued, "age": lambda record: -record.created,
}  # fmt: skip


def most_of(options: Mapping[str, Any]) -> int:
    """How many rows a page is to have."""
    most = options.get("most")
    return min(most, MAX_ROWS) if type(most) is int and most > 0 else MAX_ROWS


def agents_page(records: Sequence[AgentRecord], options: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The page for the options ``query`` (a part of the id or of the class's name), ``class``, ``id``, ``sort``,
    ``after`` and ``most``.
    """
    most, after, sort = most_of(options), options.get("after"), _SORTS.get(str(options.get("sort")))
    after = after if type(after) is int and after > 0 else 0
    matches = _matcher(options)
    if sort is not None:
        found = heapq.nlargest(after + most + 1, _in_turns(records, matches), key=sort)[after:]
        return _page("agents", [row_of(each, now) for each in found[:most]], after + most, len(found) > most, records)
    start = bisect.bisect_right(records, after, key=attrgetter("number"))
    found, last = [], after
    end = min(len(records), start + SCANNED)
    for record in itertools.islice(records, start, end):
        last = record.number
        if matches(record):
            found.append(record)
            if len(found) == most:
                break
    more = bool(records) and last < records[-1].number
    return _page("agents", [row_of(each, now) for each in found], last, more, records)


def _matcher(options: Mapping[str, Any]) -> Callable[[AgentRecord], bool]:
    query, of_class, agent_id = (options.get(name) for name in ("query", "class", "id"))
    part = query.casefold() if isinstance(query, str) else ""

    def matches(record: AgentRecord) -> bool:
        if agent_id is not None and record.agent_id != agent_id:
            return False
        if of_class is not None and of_class not in (record.spec.name, record.spec.short):
            return False
        return part in record.agent_id.casefold() or part in record.spec.short.casefold()

    return matches


def _in_turns(records: Iterable[AgentRecord], matches: Callable[[AgentRecord], bool]) -> Iterator[AgentRecord]:
    """Those that match, with a pause now and then in which other threads run."""
    for number, record in enumerate(records, 1):
        if number % PAUSE_EVERY == 0:
            time.sleep(0.0005)
        if matches(record):
            yield record


def calls_page(
    tickets: Sequence[Ticket], options: Mapping[str, Any], user: str | None, now: float, traces: HostTraces | None
) -> dict[str, Any]:
    """The oldest calls first, of ``user`` (None: of all), by the options ``state``, ``agent``, ``method``, ``of_user``,
    ``query`` (a part of ``agent.method`` or of the user's name), ``after`` and ``most``.
    """
    most, after = most_of(options), options.get("after")
    start = bisect.bisect_right(tickets, after, key=attrgetter("accepted")) if type(after) is float else 0
    state, agent, method, of_user, query = (
        options.get(key) for key in ("state", "agent", "method", "of_user", "query")
    )
    part = query.casefold() if isinstance(query, str) else ""
    found: list[Ticket] = []
    last, seen = 0.0, 0
    for ticket in itertools.islice(tickets, start, None):
        if ticket.accepted > last and (seen >= SCANNED or len(found) >= most):  # those of one moment stay together
            break
        last, seen = ticket.accepted, seen + 1
        if (
            (user is None or ticket.owner == user) and (state is None or ticket.state.name.lower() == state)
            and (agent is None or ticket.agent.agent_id == agent) and (method is None or ticket.name == method)
            and (of_user is None or name_of(ticket.owner) == of_user)
            and (not part or part in ticket.label.casefold() or part in name_of(ticket.owner).casefold())
        ):  # fmt: skip
            found.append(ticket)
    return _page("calls", [call_row(each, now, traces) for each in found], last, start + seen < len(tickets), tickets)


def _page(name: str, rows: list[dict[str, Any]], following: float, more: bool, of: Sequence[object]) -> dict[str, Any]:
    return {name: rows, "next": following if more else None, "total": len(of)}


def call_row(ticket: Ticket, now: float, traces: HostTraces | None) -> dict[str, Any]:
    """What a list says of one call. Any thread: each field is read once, for the call goes on meanwhile."""
    parent, deadline, context, started = ticket.parent, ticket.deadline, ticket.context, ticket.started
    if ticket.op == END:
        caller = "the host"
    else:
        caller = f"client {ticket.peer.prefix}" if parent is None else f"{parent.agent.agent_id}.{parent.name}"
    waits_for, deps = list(ticket.waits_for or ()), list(ticket.deps or ())
    told = context.told if context is not None else None
    return {
        "task_id": ticket.task_id, "agent": ticket.agent.agent_id, "method": ticket.name, "caller": caller,
        "state": ticket.state.name.lower(), "age_s": round(now - ticket.accepted, 3), "child": ticket.agent.child,
        "time_left_s": None if deadline is None else round(deadline - now, 3),
        "waits_for": [target.task_id for target in waits_for] + sorted(deps), "note": _note(ticket),
        "trace_id": None if traces is None else traces.ids(ticket).get("trace_id"),
        "progress": None if told is None else list(told.progress),
        "class": ticket.agent.spec.name, "user": name_of(ticket.owner),
        "parent": None if parent is None else parent.task_id,
        "arguments_bytes": sum(map(len, ticket.body)),
        "queued_s": None if context is None else round(max(0.0, started - ticket.accepted), 6),
    }  # fmt: skip


def _note(ticket: Ticket) -> str:
    """What a row of a call says beside its state; "" for most. Names no task id: who has it may read the result."""
    if ticket.settled:
        return "has ended and still runs"
    left = left_over(ticket.agent) if ticket.state is State.QUEUED else ""
    return f"behind {left}" if left else ""


def find_call(tasks: Mapping[str, Ticket], task_id: str, prefixes: Iterable[str]) -> Ticket | None:
    """The open call of an id, or of one that `shortened` gives; ``prefixes`` are those of the clients."""
    found = tasks.get(task_id)
    first, dots, number = task_id.partition("..-")
    if found is not None or not dots:
        return found
    for prefix in prefixes:
        if prefix.startswith(first) and (found := tasks.get(f"{prefix}-{number}")) is not None:
            return found
    oldest = itertools.islice(tasks.values(), SCANNED)  # its client may have gone
    return next((ticket for ticket in oldest if shortened(ticket.task_id) == task_id), None)


def neighbours(ticket: Ticket, most: int = MAX_AROUND) -> list[Ticket]:
    """``ticket`` first, then the calls that it waits for, that wait for it, or that are in one chain with it, the
    nearest first. For the router thread.
    """
    found, left = {ticket: None}, deque([ticket])
    while left and len(found) < most:
        for other in _beside(left.popleft()):
            if other not in found and len(found) < most:
                found[other] = None
                left.append(other)
    return list(found)


def oldest_waits(tickets: Iterable[Ticket], most: int = MAX_AROUND) -> list[Ticket]:
    """The oldest calls of which one waits for another, with those. For the router thread."""
    found: dict[Ticket, None] = {}
    for ticket in itertools.islice(tickets, SCANNED):
        if len(found) >= most:
            break
        waits = _waits(ticket)
        if waits:
            found.update(dict.fromkeys([ticket, *waits]))
    return list(found)[:most]


def _beside(ticket: Ticket) -> Iterator[Ticket]:
    yield from _waits(ticket)
    for row in (ticket.waiters, ticket.dependents, ticket.spawned):
        yield from itertools.islice(row or (), MAX_AROUND)
    if ticket.parent is not None:
        yield ticket.parent


def _waits(ticket: Ticket) -> list[Ticket]:
    """What a call waits for: calls of its code, arguments, and for the turn."""
    deps = [dep for dep in (ticket.deps or {}).values() if dep is not None]
    holders = ticket.agent.holders[:MAX_AROUND] if ticket.state is State.QUEUED else []
    return [*itertools.islice(ticket.waits_for or (), MAX_AROUND), *deps[:MAX_AROUND], *holders]
