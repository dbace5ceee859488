"""The spans that a client makes of its calls, by the conventions of OpenTelemetry for RPC.

A call is one span of the kind CLIENT, from the encoding of its arguments to its value. Its name and ``rpc.method`` are
``module.Class/method``, those of a request to the host ``zmqagents/create_agent`` and the like. In a span that is not
sampled no span is made: the call carries the context of the outer one. `ClientCall` is one call, sampled or not.

Names of attributes are written out: those in OpenTelemetry's package for Python are older ones.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    get_current_span,
)

from ..errors import AgentCallError, CallError, HostBusy, HostLost
from ..version import __version__
from .context import MAX_STATE_CHARS, SAMPLED, Parent, to_text

__all__ = ["SYSTEM", "ClientCall", "Tracing", "context_of", "ids_of", "options_of", "place_of", "set_failed"]

SCHEMA = "https://opentelemetry.io/schemas/1.45.0"
SYSTEM = "zmqagents"
TRACED_REQUESTS = frozenset({"create_agent", "delete_agent", "delete_all_agent", "stop"})
MAX_KNOWN = 4096  # calls of this process whose spans a `get_result` can be linked to
EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)  # of the conventions


@functools.lru_cache(maxsize=4096)
def _about(name: str, address: str) -> dict[str, Any]:
    return {"rpc.system.name": SYSTEM, "rpc.method": name, **place_of(address)}


@functools.lru_cache(maxsize=1024)
def place_of(address: str) -> dict[str, str | int]:
    """The attributes that say where a host is, of ``host:port`` or ``ipc:/path``."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        return {"server.address": host, "server.port": int(port)}
    return {"server.address": address.partition(":")[2] or address}


def set_failed(span: Any, kind: str, message: str, stack: str, code: str) -> None:
    """Note on ``span`` that the call has failed."""
    span.set_attribute("error.type", kind)
    if code:
        span.set_attribute("rpc.status_code", code)
    event = {"exception.type": kind, "exception.message": message}
    span.add_event("exception", {**event, "exception.stacktrace": stack} if stack else event)
    span.set_status(Status(StatusCode.ERROR, message))


class ClientCall:
    """One call of this process. ``options`` are what it carries beside its own, None: nothing.

    ``span`` is None if it is not sampled; then nothing need be told of its end, unless that is ``awaited`` for the
    histogram. Any thread; `end` or `fail` counts once.
    """

    __slots__ = ("_began_s", "_over", "_tracing", "about", "awaited", "options", "span")

    def __init__(self, tracing: Tracing, span: Any, options: dict[str, Any] | None, about: dict[str, Any]) -> None:
        self.span = span
        self.options = options
        self.about = about
        self._tracing = tracing
        self.awaited = span is not None or tracing.durations is not None
        self._began_s = time.perf_counter()
        self._over = False

    def event(self, name: str) -> None:
        """Note that something has happened now."""
        if self.span is not None:
            self.span.add_event(name)

    def with_options(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        """``options`` of the call together with its own."""
        return {**options, **self.options} if options and self.options else options or self.options

    def end(self, **attributes: Any) -> None:
        """It has ended well."""
        if self.awaited and not self._over:
            self._over = True
            if self.span is not None:
                self.span.set_attributes(attributes)
            self._tracing.over(self, time.perf_counter() - self._began_s, "")

    def fail(self, error: BaseException) -> None:
        """It has ended in ``error``."""
        if self._over or not self.awaited:
            return
        self._over = True
        kind = _kind_of(error)
        if self.span is not None:
            message, stack = str(error), ""
            if isinstance(error, AgentCallError):
                message, stack = error.message, error.remote_traceback
            set_failed(self.span, kind, message, stack, _code_of(error))
        self._tracing.over(self, time.perf_counter() - self._began_s, kind)

    def end_as(self, error: BaseException | None, **attributes: Any) -> None:
        """It has ended, in ``error`` if there is one."""
        if error is None:
            self.end(**attributes)
            return
        if self.span is not None and not self._over:
            self.span.set_attributes(attributes)
        self.fail(error)

    def end_with(self, result: Future[Any]) -> None:
        """Its result is there, or there will be none."""
        try:
            error = Future.exception(result, 0)  # which does not count as a look at it
        except CancelledError as exc:
            error = exc
        if isinstance(error, HostLost):
            self.event("zmqagents.detached")
        self.end_as(error)

    def note_task(self, task_id: str) -> None:
        """Its result may be asked for by its task id."""
        self._tracing.note_task(self, task_id)

    def __enter__(self) -> ClientCall:
        """It ends with the block."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end_as(error)


def _kind_of(error: BaseException) -> str:
    if isinstance(error, AgentCallError) and error.type_name:
        return error.type_name.removeprefix("builtins:").replace(":", ".")
    return type(error).__name__


def _code_of(error: BaseException) -> str:
    if isinstance(error, AgentCallError):
        return "AGENT_ERROR"
    return "BUSY" if isinstance(error, HostBusy) else "HOST_ERROR" if isinstance(error, CallError) else ""


class Tracing:
    """What `switch.active` is while calls are traced. Any thread."""

    def __init__(self, tracer_provider: Any, meter_provider: Any, *, metrics: bool, async_links: bool) -> None:
        self.is_on = True
        self.provider = tracer_provider or trace.get_tracer_provider()
        self.tracer = trace.get_tracer(SYSTEM, __version__, tracer_provider, SCHEMA)
        self._async_links = async_links
        self.durations = _histogram(meter_provider) if metrics else None
        self._open: dict[str, Any] = {}  # spans of calls, by their ``traceparent``
        self._known: OrderedDict[str, SpanContext] = OrderedDict()  # by task id

    def __repr__(self) -> str:
        return f"<Tracing [{len(self._open)} open calls]>"

    def end(self) -> None:
        """No further call is traced."""
        self.is_on = False

    def begin(self, name: str, address: str, *, later: bool = False, links: Any = ()) -> ClientCall:
        """A call of this thread or coroutine begins; ``later``: its result is taken later."""
        about = _about(name, address)
        key = "tracelink" if later and self._async_links else "traceparent"
        outer = get_current_span()
        if outer is not INVALID_SPAN:
            current = outer.get_span_context()
            if current.is_valid and not current.trace_flags & SAMPLED:
                return ClientCall(self, None, options_of(current, key), about)
        span = self.tracer.start_span(name, None, SpanKind.CLIENT, about, links)
        context = span.get_span_context()
        if not context.is_valid:  # OpenTelemetry without an SDK
            return ClientCall(self, None, None, about)
        options = options_of(context, key)
        if type(span) is NonRecordingSpan or not span.is_recording():
            return ClientCall(self, None, options, about)
        self._open[options[key]] = span
        return ClientCall(self, span, options, about)

    def over(self, call: ClientCall, seconds: float, error: str) -> None:
        """For `ClientCall`: it has ended."""
        if call.span is not None:
            if call.options is not None:
                self._open.pop(call.options.get("traceparent") or call.options.get("tracelink", ""), None)
            call.span.end()
        if self.durations is not None:
            self.durations.record(seconds, {**call.about, "error.type": error} if error else call.about)

    def note_task(self, call: ClientCall, task_id: str) -> None:
        """Remember the span of a call whose result may be asked for by its task id."""
        if call.span is not None and call.options is not None:
            call.span.set_attribute("zmqagents.task.id", task_id)
            self._known[task_id] = call.span.get_span_context()
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)

    def fetch(self, task_id: str, address: str) -> ClientCall:
        """The result of a call is asked for by its task id."""
        known = self._known.get(task_id)
        call = self.begin(f"{SYSTEM}/get_result", address, links=[trace.Link(known)] if known is not None else ())
        if call.span is not None:
            call.span.set_attribute("zmqagents.task.id", task_id)
        return call

    def note_resent(self, traceparent: str) -> None:
        """The call that carries ``traceparent`` is sent again."""
        span = self._open.get(traceparent)
        if span is not None:
            span.add_event("zmqagents.resent")

    @contextmanager
    def request(self, op: str, address: str, options: dict[str, Any] | None) -> Iterator[dict[str, Any] | None]:
        """See `switch.request`. Questions about the host get no span: a page asks some of them every second."""
        if op not in TRACED_REQUESTS:
            yield options
            return
        with self.begin(f"{SYSTEM}/{op}", address) as call:
            yield call.with_options(options)

    def current_ids(self) -> dict[str, str]:
        """See `switch.current_ids`."""
        context = get_current_span().get_span_context()
        return ids_of(context) if context.is_valid else {}


def ids_of(context: SpanContext | Parent) -> dict[str, str]:
    """The ids of a span as logs show them."""
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def context_of(parent: Parent) -> SpanContext:
    """The context of a span in another process."""
    state = TraceState.from_header([parent.state]) if parent.state else None
    return SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.flags), state)


def options_of(context: SpanContext, key: str = "traceparent") -> dict[str, Any]:
    """The options of a call that is made in the span of ``context``, or with ``tracelink`` linked to it."""
    options = {key: to_text(context.trace_id, context.span_id, context.trace_flags)}
    if context.trace_state:
        state = context.trace_state.to_header()
        if len(state) <= MAX_STATE_CHARS:
            options["tracestate"] = state
    return options


def _histogram(meter_provider: Any) -> Any:
    meter = metrics.get_meter(SYSTEM, __version__, meter_provider, SCHEMA)
    text = "Duration of calls, from the encoding of the arguments to the value."
    name = "rpc.client.call.duration"
    return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=EDGES_S)
