"""The figures of a host: the answer to the management request ``metrics``, from which `telemetry.metrics` is made.

What is counted is counted where it happens; all else is read off the records when somebody asks. The router thread only
takes down which records there are, in `take`: that costs a copy of the table of open calls, and nothing for a
method or an agent. The rest is done in the thread that answers.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...execution.threads import WorkerPool
from ...members.members import Members
from ...process import descriptors
from ...process.memory import resident_bytes
from ...scheduler.calls import Calls
from ...scheduler.dispatcher import Dispatcher
from ...scheduler.records import State, Ticket
from ...telemetry.meters import EDGES_S
from ...telemetry.program import lines_dropped
from ...version import __version__
from ...wire.messages import Flag
from ..clients import Clients
from ..results import Results

if TYPE_CHECKING:
    from ..listening import Listening

__all__ = ["take"]


def take(
    dispatcher: Dispatcher, pool: WorkerPool, results: Results, members: Members, clients: Clients,
    listening: Listening, clock: Callable[[], float], began: float, started: float,
) -> Callable[[], dict[str, Any]]:  # fmt: skip
    """The router thread's part; what it gives tells the figures, in any thread.

    ``clock`` is the host's, ``began`` its time when the host has started, ``started`` the same since the epoch.
    """
    config, calls = dispatcher.config, dispatcher.calls
    tickets = list(dispatcher.tasks.values())
    running, blocked, now = dispatcher.running, dispatcher.blocked, clock()
    numbers = {
        "server_id": config.server_id, "version": __version__, "python": ".".join(map(str, sys.version_info[:3])),
        "pid": os.getpid(), "started": round(started, 3), "uptime_s": round(now - began, 3),
        "edges_s": list(EDGES_S), "refused": dict(calls.meters.refused), "limits": dispatcher.shares.refused(),
        "queued_bytes": dispatcher.queued_bytes, "queued_limit_bytes": config.max_queued_bytes,
        "streams_waiting": len(calls.starving), "capacity": config.capacity,
        "workers": {"busy": running, "waiting": blocked, "idle": max(0, pool.size - running - blocked)},
        "loop_tasks": pool.loop.tasks, "loop_lag_s": pool.loop.lag_s(), "children": members.processes,
        "child_restarts": members.restarts, **clients.figures(), **listening.figures(),
        "store_limit_bytes": config.max_pool_bytes, "draining": int(dispatcher.draining),
        "cluster": None if members.room is None else members.room.metrics(),
    }  # fmt: skip

    def told() -> dict[str, Any]:
        return {
            **numbers, **_of_calls(tickets, now), "methods": _of_methods(calls),
            "agents": calls.meters.agents(), "store": results.figures(), "cpu_s": time.process_time(),
            "resident_bytes": resident_bytes(), "open_fds": descriptors.in_use(),
            "log_lines_dropped": lines_dropped(),
        }  # fmt: skip

    return told


def _of_methods(calls: Calls) -> list[dict[str, Any]]:
    """What is counted by method; where calls are traced, with a trace for each bucket of the durations."""
    methods, traces = calls.meters.told(), calls.traces
    if traces is None:
        return methods
    for each in methods:
        each["took"]["examples"] = {
            str(place): list(example) for place, example in traces.examples(each["class"], each["method"]).items()
        }
    return methods


def _of_calls(tickets: list[Ticket], now: float) -> dict[str, Any]:
    """What the open calls tell; they go on meanwhile, so each field is read once."""
    states = Counter(ticket.state for ticket in tickets)
    mailboxes = Counter(ticket.agent.agent_id for ticket in tickets if ticket.state is State.QUEUED)
    return {
        "calls": {state.name.lower(): states[state] for state in State if state is not State.DONE},
        "oldest_s": round(max(0.0, now - tickets[0].accepted), 3) if tickets else 0.0,
        "longest_mailbox": max(mailboxes.values(), default=0),
        "streams": sum(1 for ticket in tickets if ticket.flags & Flag.STREAM),
    }  # fmt: skip
