"""Log lines about agents and calls: one when an agent is made and when it is gone, one warning for each failing call.

The warning has the type and the message of the error, the ids of the call and the traceback of the agent's code. A call
that was cancelled, or refused at a limit, is no failure, nor is one that the end of its agent or host cuts off. In a
flood there are ten lines of each class, method and type of error at once and then one a second, with a count of those
that were left out; counters are never limited. A program that has set up no logging gets none of these lines: the
errors reach the callers.

All of this belongs to the router thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ...scheduler.calls import Observer
from ...scheduler.records import END, AgentRecord, Ticket
from ...security.zap import name_of
from ...telemetry.lines import RateLimit, fields_of
from ...telemetry.meters import Outcome
from ...wire.messages import Reply, read_error
from .error_log import ErrorLog

__all__ = ["CallLog"]

log = logging.getLogger("zmqagents.calls")
log.addHandler(logging.NullHandler())  # else Python prints warnings to stderr where nobody has set up logging
agents_log = logging.getLogger("zmqagents.agents")

MESSAGE_CHARS = 500
FAILURES = {Outcome.ERROR, Outcome.TIMEOUT, Outcome.DEADLOCK, Outcome.LOST}
ENDS = {"HostStopping", "AgentDeleted", "HostLost"}  # of the host or the agent, which have lines of their own


class CallLog(Observer):
    """See the module's docstring."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limit = RateLimit()
        self.errors = ErrorLog()

    def __repr__(self) -> str:
        return f"<CallLog {self._limit!r}>"

    def failed(self, ticket: Ticket, reply: Reply, outcome: Outcome) -> None:
        if outcome not in FAILURES or ticket.op == END:
            return
        kind, data = read_error(reply)
        spec = ticket.agent.spec
        if outcome is Outcome.LOST and kind in ENDS:
            return
        self.errors.note(spec.name, ticket.name, kind, ticket.agent.agent_id, ticket.task_id, data)
        if not log.isEnabledFor(logging.WARNING):
            return
        left_out = self._limit.take((spec.name, ticket.name, kind), self._clock())
        if left_out is None:
            return
        text = " ".join(str(data.get("message", "")).split())[:MESSAGE_CHARS]
        more = f" ({left_out} like it left out)" if left_out else ""
        ids = fields_of(
            agent=ticket.agent.agent_id, class_=spec.name, method=ticket.name, task_id=ticket.task_id,
            user=name_of(ticket.owner),
        )  # fmt: skip
        trace = {"remote_traceback": str(data.get("traceback", ""))}
        log.warning("%s failed: %s: %s%s", ticket.label, kind, text, more, extra={**ids, **trace})

    def made(self, record: AgentRecord) -> None:
        _tell_of(record, "%s is made")

    def gone(self, record: AgentRecord) -> None:
        _tell_of(record, "%s is gone")


def _tell_of(record: AgentRecord, text: str) -> None:
    if agents_log.isEnabledFor(logging.INFO):
        ids: dict[str, Any] = {"agent": record.agent_id, "class": record.spec.name, "user": name_of(record.owner)}
        agents_log.info(text, record.agent_id, extra=fields_of(**ids))
