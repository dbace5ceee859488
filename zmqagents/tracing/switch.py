"""Whether calls are traced in this process: `active`, and the two functions that say so.

`active` is None until `instrument`, and read in the way of every call; all else about tracing is behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra

if TYPE_CHECKING:
    from .hosts import Failure, HostTraces
    from .spans import ClientCall, Tracing

__all__ = ["active", "current_ids", "fetch", "host_traces", "instrument", "note_resent", "request", "uninstrument"]

active: Tracing | None = None


def instrument(
    tracer_provider: Any = None, meter_provider: Any = None, *, metrics: bool = False, async_links: bool = False
) -> None:
    """Trace the calls of this process, and of the hosts that it launches from now on, by OpenTelemetry.

    ``tracer_provider``: where the spans go; None: OpenTelemetry's global one. ``metrics`` records
    ``rpc.client.call.duration`` with ``meter_provider`` (None: the global one). ``async_links``: a call whose result is
    taken later begins a trace of its own on its host, linked to the span in which it was made.
    Raises MissingExtra without the extra ``otel``. A second call replaces what the first has said.
    """
    global active
    try:
        from .spans import Tracing
    except ImportError as exc:
        raise MissingExtra(f"traces need OpenTelemetry: pip install 'zmqagents[otel]' ({exc})") from exc
    active = Tracing(tracer_provider, meter_provider, metrics=metrics, async_links=async_links)


def uninstrument() -> None:
    """Trace no further call of this process. Calls that are open are traced to their end."""
    global active
    if active is not None:
        active.end()
    active = None


def current_ids() -> dict[str, str]:
    """``trace_id`` and ``span_id`` of the span that is current here, for a log line; {} without one."""
    return {} if active is None else active.current_ids()


def request(op: str, address: str, options: dict[str, Any] | None) -> AbstractContextManager[dict[str, Any] | None]:
    """A span, if calls are traced, around the request ``op`` to the host at ``address``; gives the options to send."""
    return contextlib.nullcontext(options) if active is None else active.request(op, address, options)


def fetch(task_id: str, address: str) -> ClientCall | None:
    """The span, if calls are traced, of asking the host at ``address`` for a result."""
    return None if active is None else active.fetch(task_id, address)


def note_resent(options: dict[str, Any] | None) -> None:
    """The call with these options is sent again, for its connection has broken."""
    if active is not None and options is not None and "traceparent" in options:
        active.note_resent(options["traceparent"])


def host_traces(
    server_id: str, address: Callable[[], str], clock: Callable[[], float], read_error: Failure, *, is_member: bool
) -> HostTraces | None:
    """The traces of a host in this process; None if calls are not traced. See `HostTraces`."""
    if active is None:
        return None
    from .hosts import HostTraces

    return HostTraces(active, server_id, address, clock, read_error, is_member=is_member)
