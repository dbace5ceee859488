"""Whether a host is well: the request ``health``, a call that does nothing but take the way of all calls.

It comes in by a listener, is accepted by the dispatcher and started, asks the store for a result that nobody has, comes
back through the inbox and is answered as any call is. It takes no worker, so it is answered however busy these are. A
host that is stopping refuses it as it refuses other calls, and one whose router thread or dispatcher is stuck leaves it
without an answer. So who asks learns

    that the host lives     from any answer at all
    that it is ready        from the answer's ``ready``; ``reasons`` says why not
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ...agents.options import AgentOptions
from ...agents.spec import ClassSpec, MethodSpec
from ...codec import pack
from ...scheduler.dispatcher import AgentRecord, Dispatcher, Ticket
from ...scheduler.effects import Effect
from ...wire.messages import Code, Op, Reply

if TYPE_CHECKING:
    from ..events import Post
    from ..results import Results

__all__ = ["Probe"]

_METHOD = MethodSpec(Op.HEALTH, "value", True, True, "()", "Does nothing, and tells that it could.")
_CLASS = ClassSpec("zmqagents.broker.watching.health:Probe", "Probe", "", AgentOptions())


class Probe:
    """The home (see `scheduler.records.Home`) of the one agent that answers ``health``; the agent is never listed.

    ``why_not``: what else speaks against sending calls to this host.
    """

    def __init__(
        self, dispatcher: Dispatcher, results: Results, post: Post, why_not: Callable[[], list[str]],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._dispatcher = dispatcher
        self._results = results
        self._post = post
        self._why_not = why_not
        self._clock = clock
        record = AgentRecord("host", _CLASS, _CLASS.options, 0.0)  # with meters of its own: they are no calls of agents
        record.live_at(self)
        dispatcher.admission.serve(record, _METHOD)

    @property
    def pid(self) -> int:
        """0: it has no process of its own."""
        return 0

    def __repr__(self) -> str:
        return f"<Probe of {self._dispatcher.config.server_id}>"

    def start(self, ticket: Ticket) -> None:
        """Ask the store, and answer when that has answered."""
        name = f"ready-{self._dispatcher.config.server_id}"
        self._results.probe(name, lambda trouble: self._post(self._on_asked, ticket, trouble), lambda: ticket.settled)

    def _on_asked(self, ticket: Ticket, trouble: str) -> list[Effect]:
        config = self._dispatcher.config
        reasons = [f"the store for results: {trouble}"] if trouble else []
        reasons += self._why_not()
        told = {"server_id": config.server_id, "ready": not reasons, "reasons": reasons}
        return self._dispatcher.on_done(ticket, Reply(Code.NONE, (pack(told),)), self._clock())

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """Nobody waits for ``ticket`` any more: the store has not answered in time."""
        self._post(self._on_asked, ticket, "no answer")

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """Do nothing: its agent lives as long as the host."""

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """Never happens: its agent has no code."""
        return []

    def saw(self, call_id: int) -> None:
        """Do nothing: its agent calls nobody."""
