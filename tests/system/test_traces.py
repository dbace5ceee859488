"""Traces of calls: one trace goes from a program through hosts and their processes, and arrives at a collector."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

import zmqagents
from hosts import eventually, free_port, output_of
from redis_server import NO_SERVER, running_redis
from relay import Relay
from span_collector import Collector, Seen, collecting
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, agent, async_func, errors, stream_func
from zmqagents.tracing.instrumentor import ZmqAgentsInstrumentor

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

    async def ids(self) -> tuple[str, str]:
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"


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
    given: dict[str, Any] = {"custom_agent_classes": [Adder, Outer], "local_mode": True, "capacity": 4}
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


def test_a_span_of_a_host_goes_from_acceptance_to_answer_and_says_how_long_the_call_queued(
    collector: Collector, tracer: trace.Tracer
) -> None:
    with host(server_id="h") as client:
        adder: Any = client.create_agent(Adder, agent_id="a1")
        first, second = adder.later(1, 0.3), adder.later(2)
        assert [first.result(), second.result()] == [1, 2]
        port = int(client.address.rpartition(":")[2])
    spans = collector.wait_for(lambda spans: sum(span.name.endswith("Adder/later") for span in spans) == 4)
    queued = next(s for s in spans if s.kind == "SERVER" and s.attributes["zmqagents.task.id"] == second.task_id)
    assert queued.events["zmqagents.started"]["zmqagents.queue.seconds"] >= 0.2
    assert (queued.end_ns - queued.start_ns) / 1e9 >= 0.2
    name = f"{Adder.__module__}.Adder/later"
    about = {"rpc.system.name": "zmqagents", "rpc.method": name, "server.address": "localhost", "server.port": port}
    ids = {"zmqagents.agent.id": "a1", "zmqagents.task.id": second.task_id}
    assert (queued.name, queued.attributes) == (name, about | ids)
    called = next(span for span in spans if span.id == queued.parent)
    assert (called.kind, called.name) == ("CLIENT", name)
    assert called.attributes == about | {"zmqagents.task.id": second.task_id}
    assert called.start_ns < queued.start_ns
    made = collector.one("zmqagents/create_agent", "SERVER")
    assert made.parent == collector.one("zmqagents/create_agent", "CLIENT").id


def test_a_failure_is_on_both_spans_with_the_type_of_the_error(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        with pytest.raises(errors.AgentCallError, match="no sum"):
            adder.fail()
    for kind in ("CLIENT", "SERVER"):
        span = collector.one("Adder/fail", kind)
        assert span.failed
        assert (span.attributes["error.type"], span.attributes["rpc.status_code"]) == ("ValueError", "AGENT_ERROR")
        assert span.events["exception"]["exception.message"] == "no sum"
        assert "raise ValueError" in span.events["exception"]["exception.stacktrace"]


def test_a_call_that_is_refused_has_a_span_of_the_host_that_says_why(
    collector: Collector, tracer: trace.Tracer
) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        client.delete_agent(adder.agent_id)
        with pytest.raises(errors.UnknownAgent):
            adder.add(1, 2)
    called, refused = collector.one("Adder/add", "CLIENT"), collector.one("_OTHER", "SERVER")
    assert refused.parent == called.id
    assert refused.attributes["error.type"] == called.attributes["error.type"] == "UnknownAgent"


def test_spans_of_a_stream_last_until_its_end_and_count_its_items(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        assert list(adder.count(40)) == list(range(40))
        with adder.count(1000) as stream:
            assert next(stream) == 0
    spans = collector.wait_for(lambda spans: sum(span.name.endswith("Adder/count") for span in spans) == 4)
    whole, cut = (
        [span for span in spans if span.name.endswith("Adder/count") and span.trace == first.trace]
        for first in sorted((s for s in spans if s.name.endswith("Adder/count") and not s.parent),
                            key=lambda span: span.start_ns)
    )  # fmt: skip
    assert [span.attributes["zmqagents.stream.items"] for span in whole] == [40, 40]
    assert all("zmqagents.first_item" in span.events for span in whole + cut)
    assert all(1 <= span.attributes["zmqagents.stream.items"] < 1000 for span in cut)
    assert {span.kind for span in cut} == {"CLIENT", "SERVER"}


def test_a_call_is_linked_to_those_whose_results_are_among_its_arguments(
    collector: Collector, tracer: trace.Tracer
) -> None:
    with host() as client:
        one: Any = client.create_agent(Adder)
        other: Any = client.create_agent(Adder)
        first = one.later(7, 0.2)
        second = other.later(first)
        assert second.result() == 7
    spans = collector.wait_for(lambda spans: sum(s.name.endswith("Adder/later") for s in spans) == 4)
    servers = {s.attributes["zmqagents.task.id"]: s for s in spans if s.kind == "SERVER" and "later" in s.name}
    parked = servers[second.task_id]
    assert parked.links == [(servers[first.task_id].id, {"zmqagents.link": "argument"})]
    assert {"zmqagents.unparked", "zmqagents.started"} <= set(parked.events)


def test_code_on_the_event_loop_is_in_the_span_of_its_call(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        trace_id, span_id = adder.ids().result()
    server = collector.one("Adder/ids", "SERVER")
    assert (server.trace, server.id) == (trace_id, span_id)


def test_where_the_caller_samples_nothing_no_span_is_made_and_the_trace_is_known_all_the_same(
    collector: Collector,
) -> None:
    with instrumented(collector.url, sampler=ParentBased(ALWAYS_OFF)) as tracer, host() as client:
        adder: Any = client.create_agent(Adder)
        with tracer.start_as_current_span("work") as span:
            trace_id, _ = adder.ids().result()
            assert trace_id == f"{span.get_span_context().trace_id:032x}"
        adder.add(1, 2)
    assert collector.spans == []


def test_a_call_that_is_sent_again_has_one_span_at_each_end(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder, agent_id="a")
        with Relay(int(client.address.rpartition(":")[2])) as relay, relay.client(20) as remote:
            result = remote.get_agent("a").later(3, 0.3)
            result.task_id  # noqa: B018  # it is sent
            assert eventually(lambda: client.get_server_info()["running"] == 1, 10)
            relay.cut()
            assert result.result(20) == 3
        assert adder.add(1, 1) == 2
    spans = collector.wait_for(lambda spans: sum(span.name.endswith("Adder/later") for span in spans) >= 2)
    assert sorted(span.kind for span in spans if span.name.endswith("Adder/later")) == ["CLIENT", "SERVER"]
    assert "zmqagents.resent" in collector.one("Adder/later", "CLIENT").events


def test_a_result_that_nobody_waited_for_has_a_span_that_says_so(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        with RpcClient("localhost", int(client.address.rpartition(":")[2]), transport="tcp") as other:
            result = other.get_agent(adder.agent_id).later(1, 0.5)
            assert eventually(lambda: client.get_server_info()["running"] == 1, 10)
        with pytest.raises(errors.HostLost):
            result.result()
        assert client.get_result(result.task_id, 10).result() == 1
    assert "zmqagents.detached" in collector.one("Adder/later", "CLIENT").events
    fetched = collector.one("zmqagents/get_result", "CLIENT")
    assert [span_id for span_id, _ in fetched.links] == [collector.one("Adder/later", "CLIENT").id]


def test_a_result_taken_later_may_begin_a_trace_of_its_own(collector: Collector, tracer: trace.Tracer) -> None:
    zmqagents.instrument(trace_provider_of(tracer), async_links=True)
    with host() as client:
        adder: Any = client.create_agent(Adder)
        assert adder.later(1).result() == 1
        assert adder.add(1, 1) == 2
    client_span, server = (collector.one("Adder/later", kind) for kind in ("CLIENT", "SERVER"))
    assert server.parent == ""
    assert server.trace != client_span.trace
    assert server.links == [(client_span.id, {"zmqagents.link": "call"})]
    assert collector.one("Adder/add", "SERVER").parent == collector.one("Adder/add", "CLIENT").id


def trace_provider_of(tracer: trace.Tracer) -> TracerProvider:
    from zmqagents.tracing import switch

    assert switch.active is not None
    provider = switch.active.provider
    assert isinstance(provider, TracerProvider)
    return provider


def test_questions_about_a_host_make_no_spans(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder: Any = client.create_agent(Adder)
        client.get_health(20.0)
        client.get_metrics()
        with pytest.raises(errors.UnknownMethod):  # it has none, says a call that looked
            client.get_agent_memory(adder.agent_id)
        with pytest.raises(errors.UnknownAgent):
            client.get_agent_memory("nobody")
        adder.add(1, 2)
    collector.one("Adder/add", "SERVER")
    assert {span.name.rpartition(".")[2] for span in collector.spans} == {"zmqagents/create_agent", "Adder/add"}


def test_a_host_whose_collector_is_away_works_and_stops_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with RpcAgentServerLauncher(custom_agent_classes=[Adder], local_mode=True, otel=True) as launcher:
        with RpcClient("localhost", launcher.port) as client:
            adder: Any = client.create_agent(Adder)
            assert [adder.add(number, 1) for number in range(20)] == list(range(1, 21))
        began = time.monotonic()
        launcher.shutdown(0.0)
        assert time.monotonic() - began < 10, "1 s for what is not exported, and what a stop takes"


def test_a_fork_of_a_program_sets_the_sdk_up_after_the_fork(collector: Collector) -> None:
    source = """
import json, test_traces
from zmqagents import RpcAgentServerLauncher, RpcClient
given = {"custom_agent_classes": [test_traces.Adder], "local_mode": True, "otel": True}
with RpcAgentServerLauncher(start_method="fork", **given) as launcher:
    with RpcClient("localhost", launcher.port) as client:
        print(json.dumps(client.create_agent(test_traces.Adder).add(1, 2)))
"""
    assert output_of(source) == 3
    server = collector.one("Adder/add", "SERVER")
    assert server.parent == ""  # the program itself traces nothing


def test_the_clients_duration_is_a_histogram_where_that_is_asked_for(tracer: trace.Tracer) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    zmqagents.instrument(trace_provider_of(tracer), meters, metrics=True)
    with host() as client:
        adder: Any = client.create_agent(Adder)
        for _ in range(3):
            adder.add(1, 2)
        with pytest.raises(errors.AgentCallError):
            adder.fail()
        data = reader.get_metrics_data()
    meters.shutdown()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points: dict[Any, Any] = {dict(point.attributes or {})["rpc.method"]: point for point in metric.data.data_points}
    assert (metric.name, metric.unit) == ("rpc.client.call.duration", "s")
    assert points[f"{Adder.__module__}.Adder/add"].count == 3
    assert points[f"{Adder.__module__}.Adder/fail"].attributes["error.type"] == "ValueError"


def test_opentelemetrys_own_tools_find_the_switch(collector: Collector) -> None:
    (point,) = entry_points(group="opentelemetry_instrumentor", name="zmqagents")
    assert point.load() is ZmqAgentsInstrumentor
    provider = TracerProvider()
    ZmqAgentsInstrumentor().instrument(tracer_provider=provider)
    try:
        from zmqagents.tracing import switch

        assert switch.active is not None
    finally:
        ZmqAgentsInstrumentor().uninstrument()
        provider.shutdown()
    assert switch.active is None


def test_log_lines_and_the_list_of_calls_have_the_ids_of_the_trace(
    collector: Collector, tracer: trace.Tracer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talk.py").write_text(TALKER)
    monkeypatch.setenv("AS_SERVER_OTEL", "1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop,team=blue")
    command = [sys.executable, "-m", "zmqagents"]
    options = ["talk:Talker", "--local-mode", "--json", "--log-format", "json", "--log-level", "info"]
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen([*command, "start", *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=err)
    try:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        with RpcClient("localhost", port) as client:
            talker: Any = client.create_agent("talk:Talker")
            with tracer.start_as_current_span("work") as span, pytest.raises(errors.AgentCallError):
                talker.say_and_fail()
            with tracer.start_as_current_span("work"):
                asleep = talker.sleep()
            shown = subprocess.run([*command, "calls", "--json", "--port", str(port)], capture_output=True, check=True)
            (row,) = [row for row in json.loads(shown.stdout) if row["method"] == "sleep"]
            assert asleep.result() is None
    finally:
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout is not None
        process.stdout.close()
    trace_id = f"{span.get_span_context().trace_id:032x}"
    server = collector.one("Talker/say_and_fail", "SERVER")
    lines = [json.loads(line) for line in (tmp_path / "err").read_text().splitlines()]
    for logger in ("mine", "zmqagents.output", "zmqagents.calls"):
        (line,) = [line for line in lines if line["logger"] == logger]
        assert (line["trace_id"], line["span_id"]) == (trace_id, server.id)
    assert row["trace_id"] == collector.one("Talker/sleep", "SERVER").trace
    assert (server.service["service.name"], server.service["team"]) == ("shop", "blue")


TALKER = """
import logging
import time

from zmqagents import AgentBase, async_func


class Talker(AgentBase):
    def say_and_fail(self):
        print("about to fail")
        logging.getLogger("mine").warning("careful")
        raise LookupError("nothing")

    @async_func
    def sleep(self):
        time.sleep(1.5)
"""


def test_without_the_switch_nothing_of_opentelemetry_is_imported() -> None:
    source = """
import json, sys, lookout as off
from zmqagents import RpcAgentServerLauncher, RpcClient
with RpcAgentServerLauncher(custom_agent_classes=[off.Lookout], local_mode=True) as launcher:
    with RpcClient("localhost", launcher.port) as client:
        lookout = client.create_agent(off.Lookout)
        mine = sum(name.split(".")[0] == "opentelemetry" for name in sys.modules)
        print(json.dumps([mine, lookout.count("opentelemetry"), lookout.later("opentelemetry").result()]))
"""
    assert output_of(source) == [0, 0, 0]


def test_the_durations_of_calls_name_a_trace_in_each_bucket(collector: Collector, tracer: trace.Tracer) -> None:
    with host() as client:
        adder = client.create_agent(Adder)
        with tracer.start_as_current_span("work") as span:
            assert adder.add(1, 2) == 3

        def examples() -> dict[str, Any]:
            return next(each["took"]["examples"] for each in client.get_metrics()["methods"] if each["method"] == "add")

        assert eventually(lambda: bool(examples()), 20)
        [(trace_id, took_s, ended)] = examples().values()
        assert trace_id == f"{span.get_span_context().trace_id:032x}"
        assert 0 < took_s < 20
        assert abs(time.time() - ended) < 60
