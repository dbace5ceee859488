"""The spans that a host makes of the calls that it runs.

A call is one span of the kind SERVER, from its acceptance to its answer, under the client's span. What happens to it is
told by events: ``zmqagents.unparked`` (the results among its arguments are there), ``zmqagents.started`` (with
``zmqagents.queue.seconds``), ``zmqagents.first_item`` of a stream. The calls whose results are among its arguments are
linked. A call to an agent in a process of its own has a span of the kind INTERNAL there, under that of its host.

The span is made where the code begins, in the thread that runs it, and dated back: so the router thread pays only for
its end. A call that never begins has its span made at its end.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import attach
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, set_span_in_context

from ..telemetry.meters import ATTRIBUTE, EDGES_S, MAX_PAIRS
from .context import ATTRIBUTES, SAMPLED, Parent, name_of, parent_in
from .spans import SYSTEM, Tracing, context_of, ids_of, options_of, place_of, set_failed

__all__ = ["Accepted", "HostTraces"]

# Requests that run as calls and have no span: probes ask some of them every second, and no client asks for the end.
UNTRACED = frozenset({"end_agent", "get_agent_memory", "health"})
MAX_ENDED = 4096  # calls that later ones may have among their arguments
CODES = {1: "AGENT_ERROR", 3: "BUSY"}  # every other is HOST_ERROR: see `wire.messages.Code`
ATTRIBUTE_OP = "attribute"
Example = tuple[str, float, float]  # a trace id, how long that call took, and when it ended, in seconds since 1970
Failure = Callable[[Any], tuple[str, Mapping[str, Any]]]


class Accepted(Protocol):
    """What is looked at of a call that a host has accepted: `scheduler.records.Ticket`."""

    task_id: str
    name: str
    op: str
    agent: Any
    accepted: float
    started: float
    settled: bool
    dep_replies: Any
    context: Any


class _Open:
    """A call that is not answered. ``span`` is None before its code begins, and if it is not sampled."""

    __slots__ = ("begun", "parent", "span", "unparked")

    def __init__(self, parent: Parent | None) -> None:
        self.parent = parent
        self.span: Any = None
        self.begun = False
        self.unparked = 0.0


class HostTraces:
    """The traces of one host. ``address`` tells where it is, ``read_error`` what is in a reply that is an error.

    ``is_member``: it runs agents of another host. `begin` is called by the thread that runs the code, everything else
    by the router thread.
    """

    def __init__(
        self, tracing: Tracing, server_id: str, address: Callable[[], str], clock: Callable[[], float],
        read_error: Failure, *, is_member: bool,
    ) -> None:  # fmt: skip
        self._tracing = tracing
        self._server_id = server_id
        self._address = address
        self._clock = clock
        self._read_error = read_error
        self._is_member = is_member
        self._kind = SpanKind.INTERNAL if is_member else SpanKind.SERVER
        self._open: dict[Any, _Open] = {}
        self._ended: OrderedDict[str, SpanContext] = OrderedDict()  # of calls that have ended, by task id
        self._examples: dict[tuple[str, str], dict[int, Example]] = {}

    def __repr__(self) -> str:
        return f"<HostTraces of {self._server_id} [{len(self._open)} calls]>"

    # ------------------------------------------------------------ the router thread

    def accepted(self, ticket: Accepted, options: Mapping[str, Any]) -> None:
        """A call was accepted that carries something."""
        parent = parent_in(options)
        if parent is not None:
            self._open[ticket] = _Open(parent)

    def refused(self, options: Mapping[str, Any], class_name: str, method: str, error: Exception) -> None:
        """A call was not accepted."""
        parent = parent_in(options)
        if not self._tracing.is_on or self._is_member or (parent is None and not class_name):
            return
        if parent is None or parent.flags & SAMPLED:
            span = self._span(parent, name_of(class_name, method), {}, time.time_ns())
            set_failed(span, type(error).__name__, str(error), "", "HOST_ERROR")
            span.end()

    def unparked(self, ticket: Accepted, now: float) -> None:
        """The results among the arguments of a call are all there."""
        opened = self._open.get(ticket)
        if opened is None:
            opened = self._open[ticket] = _Open(None)
        opened.unparked = now

    def forwarded(self, ticket: Accepted) -> dict[str, Any]:
        """A call is sent to the process that runs its code; the options that it carries for that."""
        opened = self._begin(ticket)
        if opened is None:
            return {}
        if opened.span is not None:
            return options_of(opened.span.get_span_context())
        return {} if opened.parent is None else options_of(context_of(opened.parent))

    def first_item(self, ticket: Accepted) -> None:
        """The first item of a stream is about to be sent."""
        opened = self._open.get(ticket)
        if opened is not None and opened.span is not None:
            opened.span.add_event("zmqagents.first_item")

    def ended(self, ticket: Accepted, reply: Any) -> None:
        """A call is answered by ``reply``, or not at all where that is None."""
        opened = self._open.get(ticket)
        if opened is None or not opened.begun:
            opened = self._begin(ticket, is_over=True)
        self._open.pop(ticket, None)
        if opened is None or opened.span is None:
            return
        span = opened.span
        if reply is not None and reply.code:
            kind, data = self._read_error(reply)
            code = CODES.get(reply.code, "HOST_ERROR")
            set_failed(span, kind, str(data.get("message", "")), str(data.get("traceback", "")), code)
        sender = None if ticket.context is None else ticket.context.sender
        if sender is not None:
            span.set_attribute("zmqagents.stream.items", sender.items)
        self._ended[ticket.task_id] = context = span.get_span_context()
        self._note_example(ticket, f"{context.trace_id:032x}")
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        span.end()

    def ids(self, ticket: Accepted) -> dict[str, str]:
        """``trace_id`` and ``span_id`` of a call that is not answered, as far as they are known."""
        opened = self._open.get(ticket)
        if opened is None:
            return {}
        if opened.span is not None:
            return ids_of(opened.span.get_span_context())
        return {} if opened.parent is None or opened.parent.links else ids_of(opened.parent)

    def _note_example(self, ticket: Accepted, trace_id: str) -> None:
        took_s, method = self._clock() - ticket.accepted, ATTRIBUTE if ticket.op == ATTRIBUTE_OP else ticket.name
        rows = self._examples.get((ticket.agent.spec.name, method))
        if rows is None:
            if len(self._examples) >= MAX_PAIRS:
                return
            rows = self._examples[ticket.agent.spec.name, method] = {}
        rows[bisect_left(EDGES_S, took_s)] = (trace_id, took_s, time.time())

    def examples(self, class_name: str, method: str) -> dict[int, Example]:
        """The latest sampled call of a method in each bucket of its durations, by the bucket. Any thread."""
        return self._examples.get((class_name, method), {}).copy()

    # ------------------------------------------------------------ the thread that runs the code

    def begin(self, ticket: Accepted) -> None:
        """The code of a call begins, in a new `contextvars.Context`: what it calls is in the span of the call."""
        opened = self._begin(ticket)
        if opened is None:
            return
        if ticket.settled:  # its end has come before, and found nothing
            self._open.pop(ticket, None)
        if opened.span is not None:
            attach(set_span_in_context(opened.span))
        elif opened.parent is not None and not opened.parent.links:
            attach(set_span_in_context(NonRecordingSpan(context_of(opened.parent))))

    # ------------------------------------------------------------ both

    def _begin(self, ticket: Accepted, *, is_over: bool = False) -> _Open | None:
        """Make the span of a call, if it is sampled. ``is_over``: its code has not begun, and never will."""
        opened = self._open.get(ticket)
        if not self._tracing.is_on or ticket.op in UNTRACED or (self._is_member and opened is None):
            return opened
        if opened is None:
            opened = _Open(None)
            if not is_over:
                self._open[ticket] = opened
        if opened.begun:
            return opened
        opened.begun = True
        parent = opened.parent
        if parent is not None and not parent.flags & SAMPLED:
            return opened
        began_ns = time.time_ns() - int((self._clock() - ticket.accepted) * 1e9)
        about = {"zmqagents.agent.id": ticket.agent.agent_id, "zmqagents.task.id": ticket.task_id}
        if self._is_member:
            about["zmqagents.child"] = self._server_id
        span = self._span(parent, _name(ticket), about, began_ns, self._links(ticket))
        if not span.is_recording():
            context = span.get_span_context()
            opened.parent = Parent(context.trace_id, context.span_id, 0) if context.is_valid else None
            return opened
        opened.span = span
        if opened.unparked:
            span.add_event("zmqagents.unparked", None, began_ns + int((opened.unparked - ticket.accepted) * 1e9))
        if not is_over:
            queued_s = ticket.started - ticket.accepted
            span.add_event("zmqagents.started", {"zmqagents.queue.seconds": queued_s})
        return opened

    def _span(self, parent: Parent | None, name: str, about: dict[str, Any], began_ns: int, links: Any = ()) -> Any:
        about = {"rpc.system.name": SYSTEM, "rpc.method": name, **place_of(self._address()), **about}
        under = trace.INVALID_SPAN
        if parent is not None and parent.links:
            links = [*links, Link(context_of(parent), {"zmqagents.link": "call"})]
        elif parent is not None:
            under = NonRecordingSpan(context_of(parent))
        tracer = self._tracing.tracer
        return tracer.start_span(name, set_span_in_context(under), self._kind, about, links, began_ns)

    def _links(self, ticket: Accepted) -> list[Link]:
        found = (self._ended.get(task_id) for task_id in ticket.dep_replies or ())
        return [Link(context, {"zmqagents.link": "argument"}) for context in found if context is not None]


def _name(ticket: Accepted) -> str:
    """``module.Class/method``; names of attributes are chosen by callers, and so are none."""
    if ticket.op == ATTRIBUTE_OP:
        return name_of(ticket.agent.spec.name, ATTRIBUTES)
    return f"{SYSTEM}/{ticket.op}" if ticket.op else name_of(ticket.agent.spec.name, ticket.name)
