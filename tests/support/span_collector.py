"""A collector of spans: an HTTP server on loopback that takes OTLP as protobuf, as an exporter sends it."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT"}
WAIT_S = 30.0


@dataclass
class Seen:
    """One span as it came. ``service``: that of the process which made it; ``parent`` is "" for a root."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]]
    links: list[tuple[str, dict[str, Any]]]
    failed: bool
    service: dict[str, Any] = field(repr=False)


class Collector:
    """What has come. ``url`` is what exporters are told."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.requests = 0
        self.url = ""
        self.came = threading.Condition()

    def take(self, data: bytes) -> None:
        """One request of an exporter."""
        request = ExportTraceServiceRequest()
        request.ParseFromString(data)
        found = [
            _seen(span, _values(resource.resource.attributes))
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self.came:
            self.requests += 1
            self.spans += found
            self.came.notify_all()

    def wait_for(self, is_there: Callable[[list[Seen]], object]) -> list[Seen]:
        """The spans, as soon as ``is_there`` says that they are all there."""
        with self.came:
            assert self.came.wait_for(lambda: is_there(self.spans), WAIT_S), self.spans
            return list(self.spans)

    def one(self, name: str, kind: str) -> Seen:
        """The one span of this name, whose end may be awaited."""
        found = self.wait_for(lambda spans: any(_is(span, name, kind) for span in spans))
        (span,) = [span for span in found if _is(span, name, kind)]
        return span


def _is(span: Seen, name: str, kind: str) -> bool:
    return span.name.endswith(name) and span.kind == kind


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


def _seen(span: Any, service: dict[str, Any]) -> Seen:
    return Seen(
        span.name, KINDS[span.kind], span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, _values(span.attributes),
        {event.name: _values(event.attributes) for event in span.events},
        [(link.span_id.hex(), _values(link.attributes)) for link in span.links], span.status.code == 2, service,
    )  # fmt: skip


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
