"""OpenTelemetry's SDK for a process that is a host, set up by the variables ``OTEL_*``.

Called in the process itself, and not before a fork of it: spans are exported by a thread. ``OTEL_SERVICE_NAME``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*`` and ``OTEL_EXPORTER_OTLP_*`` are the SDK's own
matter. ``OTEL_TRACES_EXPORTER`` is ``otlp`` (the default), ``console``, ``none`` or the name of any installed exporter,
several of them with commas; ``OTEL_EXPORTER_OTLP_PROTOCOL`` is ``http/protobuf`` here where nothing else is said.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from ..errors import ConfigError, MissingExtra
from . import switch

__all__ = ["begin", "flush"]

SERVICE = "zmqagents"
FLUSH_S = 1.0  # how long the end of a host waits for spans that are not exported; part of the 2 s after the grace
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def begin(server_id: str) -> None:
    """Trace the calls of this process. Where the program has set up an SDK, that stays. MissingExtra, ConfigError."""
    if switch.active is not None:  # a fork of a program that has instrumented
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise MissingExtra(f"traces need OpenTelemetry: pip install 'zmqagents[otel]' ({exc})") from exc
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        switch.instrument()
        return
    given: dict[str, str | int] = {"service.name": SERVICE, "service.instance.id": server_id}
    given["process.pid"] = os.getpid()
    said = Resource.create().attributes
    if os.environ.get("OTEL_SERVICE_NAME") or not str(said["service.name"]).startswith("unknown_service"):
        del given["service.name"]
    provider = TracerProvider(resource=Resource.create({**given}), shutdown_on_exit=False)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    switch.instrument(provider)


def flush() -> None:
    """Export what is not exported, for a moment: the process ends, and an exporter may wait for a dead collector."""
    tracing = switch.active
    flush = None if tracing is None else getattr(tracing.provider, "force_flush", None)
    if flush is None:
        return
    thread = threading.Thread(target=flush, name="zmqagents-spans", daemon=True)
    with contextlib.suppress(RuntimeError):  # no more threads
        thread.start()
        thread.join(FLUSH_S)


def _exporters() -> list[Any]:
    names = [name.strip() for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")]
    return [_exporter(name) for name in names if name not in ("", "none")]


def _exporter(name: str) -> Any:
    from importlib.metadata import entry_points  # here: hosts that are not traced need none

    if name == "otlp":
        variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        said = next((os.environ[variable] for variable in variables if os.environ.get(variable)), "http/protobuf")
        name = _PROTOCOLS.get(said, said)
    for point in entry_points(group="opentelemetry_traces_exporter", name=name):
        return point.load()()
    raise ConfigError(f"OTEL_TRACES_EXPORTER: no exporter {name!r} is installed")
