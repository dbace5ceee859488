"""Traces of calls: one trace goes from a program through hosts and their processes, and arrives at a collector."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import zmqagents
from hosts import environment, eventually
from redis_server import NO_SERVER, running_redis
from span_collector import Collector, Seen, collecting
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, agent, async_func, current_call, errors, stream_func

pytestmark = [pytest.mark.timeout(120), pytest.mark.program]


class Adder(AgentBase):
    def __init__(self, ready: Any = None) -> None:
        super().__init__()

    def add(self, left: int, right: int) -> int:
        return left + right

    @async_func
    def later(self, value: Any, seconds: float = 0.0) -> Any:
        time.sleep(seconds)
        return value

    def fail(self) -> None:
        raise ValueError("no sum")

    @stream_func
    def count(self, end: int) -> Iterator[int]:
        yield from range(end)

    async def ids(self) -> dict[str, str]:
        context = trace.get_current_span().get_span_context()
        return {"trace": f"{context.trace_id:032x}", "span": f"{context.span_id:016x}"}

    @async_func
    def hold(self, seconds: float) -> bool:
        call = current_call()
        assert call is not None
        return call.wait_cancelled(seconds)


@agent(isolation="process")
class Outer(AgentBase):
    def ask(self, inner: Any) -> str:
        result = inner.later(41)
        assert result.result() == 41
        return str(result.task_id)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the hosts of a test export to."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


@contextlib.contextmanager
def instrumented(url: str, **given: Any) -> Iterator[trace.Tracer]:
    """This process traces its calls, and exports them there."""
    provider = TracerProvider(resource=Resource.create({"service.name": "program"}), **given)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces"), schedule_delay_millis=50))
    zmqagents.instrument(provider)
    try:
        yield provider.get_tracer("tests")
    finally:
        zmqagents.uninstrument()
        provider.shutdown()


@pytest.fixture
def tracer(collector: Collector) -> Iterator[trace.Tracer]:
    with instrumented(collector.url) as tracer:
        yield tracer


@contextlib.contextmanager
def host(**settings: Any) -> Iterator[RpcClient]:
    given = {"custom_agent_classes": [Adder, Outer], "local_mode": True, "capacity": 4}
    with (
        RpcAgentServerLauncher(**(given | settings)) as launcher,
        RpcClient("localhost", launcher.port) as client,
    ):
        yield client


def names(spans: list[Seen]) -> set[tuple[str, str]]:
    return {(span.name.rpartition(".")[2], span.kind) for span in spans}


def test_one_trace_goes_through_a_host_its_process_another_host_and_redis(
    collector: Collector, tracer: trace.Tracer
) -> None:
    with running_redis() as redis:
        if redis is None:
            pytest.skip(NO_SERVER)
        shared = {"pool_type": "redis", "redis_url": redis.url}
        with host(server_id="one", **shared) as one, host(server_id="two", **shared) as two:
            outer, inner = one.create_agent(Outer), two.create_agent(Adder)
            with tracer.start_as_current_span("work"):
                task_id = outer.ask(inner)
                assert one.get_result(task_id, 10).result() == 41
    spans = collector.wait_for(
        lambda spans: {("work", "INTERNAL"), ("Outer/ask", "INTERNAL"), ("Adder/later", "SERVER")} <= names(spans)
    )
    root = collector.one("work", "INTERNAL")
    client, server, child = (collector.one("Outer/ask", kind) for kind in ("CLIENT", "SERVER", "INTERNAL"))
    nested, far = (collector.one("Adder/later", kind) for kind in ("CLIENT", "SERVER"))
    fetched = collector.one("zmqagents/get_result", "CLIENT")
    chain = [root, client, server, child, nested, far]
    assert [span.parent for span in chain] == ["", *(span.id for span in chain[:-1])]
    assert {span.trace for span in [*chain, fetched]} == {root.trace}
    assert fetched.parent == root.id
    assert fetched.attributes["zmqagents.task.id"] == task_id == far.attributes["zmqagents.task.id"]
    assert [span.service["service.instance.id"] for span in (server, far)] == ["one", "two"]
    assert len({span.service["process.pid"] for span in (server, child, far)}) == 3
    assert client.service["service.name"] == "program"
    assert server.service["service.name"] == child.service["service.name"] == "zmqagents"
    assert root.start_ns <= client.start_ns <= client.end_ns <= root.end_ns
    assert len(spans) >= len(chain)
