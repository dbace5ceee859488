"""The spans of a host, without one: made by what its dispatcher tells."""

from __future__ import annotations

import contextvars

import pytest
from opentelemetry.sdk.trace import TracerProvider

from world import Plain, World, failed
from zmqagents.agents.spec import spec_of
from zmqagents.scheduler.calls import Observer
from zmqagents.scheduler.dispatcher import Ticket
from zmqagents.telemetry.meters import Outcome
from zmqagents.tracing.hosts import HostTraces
from zmqagents.tracing.spans import Tracing
from zmqagents.wire.messages import Call, Reply, read_error


class Listener(Observer):
    """Takes down which ids are known of a call when its failure is told, as `CallLog` writes them."""

    def __init__(self, traces: HostTraces) -> None:
        self.traces = traces
        self.ids: list[dict[str, str]] = []

    def failed(self, ticket: Ticket, reply: Reply, outcome: Outcome) -> None:
        self.ids.append(self.traces.ids(ticket))


@pytest.mark.parametrize("is_short", [False, True])
def test_the_failure_of_a_call_is_told_while_its_ids_are_known(monkeypatch: pytest.MonkeyPatch, is_short: bool) -> None:
    tracing = Tracing(TracerProvider(), None, metrics=False, async_links=False)
    traces = HostTraces(tracing, "world", lambda: "localhost:1", lambda: 1000.0, read_error, is_member=False)
    listener = Listener(traces)
    world = World(observer=listener, traces=traces)
    world.agent("a")
    if is_short:
        monkeypatch.setattr(spec_of(Plain).methods["m"].pace, "quick", True)
        call = Call(100, 0, 5000, "a", "m", (), {}, (b"body",))
        ticket = world.dispatcher.start_short(world.client, call, world.now)
        assert ticket is not None
        contextvars.Context().run(traces.begin, ticket)
        world.dispatcher.end_short(ticket, failed(ValueError("no")), world.now)
    else:
        sent = world.running("a")
        contextvars.Context().run(traces.begin, sent.t)
        world.done(sent, failed(ValueError("no")))
    (ids,) = listener.ids
    assert ids.keys() == {"trace_id", "span_id"}
