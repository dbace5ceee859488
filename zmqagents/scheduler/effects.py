"""What the dispatcher wants to be done: the effects, which its events give back.

An effect is plain data. The broker carries the effects out one after the other, in the order in which it gets them,
and tells of what comes of them by a new event. So the dispatcher needs no socket, no thread and no store, and a test
sees each of its decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..errors import ZmqAgentsError
from ..wire.messages import Reply
from .records import AgentRecord, ParkedFetch, Peer, Ticket


class Start(NamedTuple):
    """Run the ticket: on the event loop if ``ticket.on_loop``, else in a worker thread."""

    ticket: Ticket


class GoOn(NamedTuple):
    """Run the rest of the ticket on the event loop: its code has left its worker thread."""

    ticket: Ticket


class Answer(NamedTuple):
    """Send ``reply`` to the peer's call ``call_id``."""

    peer: Peer
    call_id: int
    reply: Reply


class Pending(NamedTuple):
    """Tell the peer that its FETCH found the call still unfinished."""

    peer: Peer
    call_id: int


class Begin(NamedTuple):
    """Tell the shared store that the call is accepted and its result will be kept."""

    task_id: str


class Keep(NamedTuple):
    """Put ``reply`` into the store."""

    task_id: str
    reply: Reply


class Lookup(NamedTuple):
    """Ask the store for ``task_id``.

    The answer goes to ``on_dep`` if ``ticket`` is set, to ``on_found`` if ``fetch`` is, else to the peer, or to
    ``on_unknown`` if the store does not know the task. ``timeout_s`` is how long the peer would wait.
    """

    peer: Peer
    call_id: int
    task_id: str
    ticket: Ticket | None = None
    fetch: ParkedFetch | None = None
    timeout_s: float = 0.0


class Resume(NamedTuple):
    """Let the waiting code of ``ticket`` go on; with ``error`` its wait has failed.

    A thread gets exactly one for each wait. A coroutine gets one only with an error, for the wait just begun: its
    results reach it by themselves.
    """

    ticket: Ticket
    error: ZmqAgentsError | None = None


class Interrupt(NamedTuple):
    """Set ``current_call().cancelled`` of the running ticket; cancel its task if it is on the loop.

    ``alone``: the calls that it awaits are not cancelled with it.
    """

    ticket: Ticket
    alone: bool = False


class Ended(NamedTuple):
    """The hooks of a deleted agent have run, or never will; ``reply`` says how that ended."""

    agent: AgentRecord
    reply: Reply


class Removed(NamedTuple):
    """The agent is deleted and the last of its calls has returned: drop the object."""

    agent: AgentRecord


class Report(NamedTuple):
    """Log what was refused of a client's call: something of this ``kind``, and ``why``."""

    peer: Peer
    kind: str
    why: str


class Drained(NamedTuple):
    """Nothing is left to do after `Dispatcher.on_drain`; ``cut`` calls were answered unfinished.

    ``unended``: how many agents there are whose hooks have not run to their end.
    """

    cut: int
    unended: int = 0


Effect = (
    Start | GoOn | Answer | Pending | Begin | Keep | Lookup | Resume | Interrupt | Ended | Removed | Report | Drained
)


def refusal_of(ticket: Ticket, effects: Iterable[Effect]) -> ZmqAgentsError | None:
    """Why the wait that ``ticket`` has just begun is refused, None if it is not; ``effects`` are those of the wait."""
    return next((e.error for e in effects if isinstance(e, Resume) and e.ticket is ticket), None)
