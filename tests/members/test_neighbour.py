"""The connection of one member to another, driven as the router thread does it: to a real host, by ipc and by TCP."""

from __future__ import annotations

import heapq
import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from actors import Desk, Latch, Node, client_of, host
from relay import Relay
from zmqagents import (
    AgentProxy,
    CallLost,
    HostStopping,
    HostUnreachable,
    RpcAgentServerLauncher,
    RpcClient,
    codec,
)
from zmqagents.connection import session
from zmqagents.connection.requests import Call
from zmqagents.members.peers.neighbour import Neighbour
from zmqagents.scheduler.records import Alarm
from zmqagents.wire.messages import STREAM_WINDOW, Flag, Reply
from zmqagents.wire.poller import new_poller

pytestmark = pytest.mark.timeout(120)

WAYS = ["ipc", "curve"]


class Loop:
    """As much of a router thread as a neighbour needs: a poller, alarms, and what is to be done later."""

    def __init__(self) -> None:
        self.poller: Any = new_poller()
        self.beside: dict[int, Callable[[int, int], object]] = {}
        self.turns = 0
        self._steps: deque[Callable[[], None]] = deque()
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()

    def later(self, step: Callable[[], None]) -> None:
        self._steps.append(step)

    def alarm(self, delay_s: float, alarm: Alarm) -> None:
        heapq.heappush(self._alarms, (time.monotonic() + delay_s, next(self._numbers), alarm))

    def turn(self, most_s: float) -> None:
        """One turn; it waits ``most_s`` at most."""
        self.turns += 1
        for _ in range(len(self._steps)):
            self._steps.popleft()()
        while self._alarms and self._alarms[0][0] <= time.monotonic():
            alarm = heapq.heappop(self._alarms)[2]
            if not alarm.settled:
                alarm.settled = True
                alarm.ring(time.monotonic())
        due = self._alarms[0][0] - time.monotonic() if self._alarms else most_s
        for fd, events in self.poller.poll(0 if self._steps else max(0.0, min(due, most_s)), 64):
            self.beside[fd](fd, events)

    def until(self, happened: Callable[[], object], within_s: float = 30) -> None:
        end = time.monotonic() + within_s
        while not happened():
            assert time.monotonic() < end, "it has not come"
            self.turn(end - time.monotonic())


class Answers:
    """A `Sink` that keeps what comes."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.errors: list[Exception] = []
        self.items: list[Any] = []

    def deliver(self, reply: Reply | None) -> None:
        assert reply is not None
        self.replies.append(reply)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)

    def chunk(self, item: Reply) -> None:
        self.items.append(value_of(item))

    @property
    def is_over(self) -> bool:
        return bool(self.replies or self.errors)

    @property
    def value(self) -> Any:
        assert not self.errors, self.errors
        assert len(self.replies) == 1
        assert not self.replies[0].code, self.replies
        return value_of(self.replies[0])


def value_of(reply: Reply) -> Any:
    payload, *buffers = reply.body
    return codec.decode(bytes(payload), buffers)


def call(proxy: AgentProxy, method: str, *args: Any, flags: int = 0) -> Call:
    return Call(proxy.agent_id, method, codec.encode_call(args, {}), flags, {}, None, None)


def port_of(server: RpcAgentServerLauncher) -> int:
    assert server.port is not None
    return server.port


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    assert not loop.beside, "a descriptor is still polled"
    loop.poller.close()


@pytest.fixture(params=WAYS)
def port(request: pytest.FixtureRequest, server: RpcAgentServerLauncher) -> Iterator[int]:
    """That of the host itself, whose Unix socket is found by it, or of a relay, which is no host's."""
    if request.param == "ipc":
        yield port_of(server)
        return
    with Relay(port_of(server)) as relay:
        yield relay.port


@pytest.fixture
def near(port: int, loop: Loop) -> Iterator[Neighbour]:
    neighbour = Neighbour(f"127.0.0.1:{port}", loop)
    yield neighbour
    neighbour.close(HostStopping("the test is over"))


def asked(near: Neighbour, calls: Sequence[Call]) -> list[Answers]:
    sinks = [Answers() for _ in calls]
    for each, sink in zip(calls, sinks, strict=True):
        near.ask(each, sink)
    return sinks


def test_calls_are_answered_each_by_its_own_answer(near: Neighbour, loop: Loop, desk: AgentProxy) -> None:
    sinks = asked(near, [call(desk, "echo", number) for number in range(1000)])
    loop.until(lambda: all(sink.is_over for sink in sinks))
    assert [sink.value for sink in sinks] == list(range(1000))


def test_one_call_after_the_other_is_answered(near: Neighbour, loop: Loop, desk: AgentProxy) -> None:
    for number in range(300):
        assert await_answer(near, loop, call(desk, "echo", number)) == number


def test_large_values_go_there_and_back_whole(near: Neighbour, loop: Loop, desk: AgentProxy) -> None:
    sizes = [0, 1, 65_536, 1 << 20, 5_000_000, 300_000, 7] * 3
    data = [bytes([number]) * size for number, size in enumerate(sizes)]
    sinks = asked(near, [call(desk, "echo", each) for each in data])
    loop.until(lambda: all(sink.is_over for sink in sinks))
    for sink, each in zip(sinks, data, strict=True):
        assert bytes(sink.value) == each


def test_a_neighbour_that_has_nothing_to_do_does_not_keep_the_loop_awake(
    near: Neighbour, loop: Loop, desk: AgentProxy
) -> None:
    await_answer(near, loop, call(desk, "echo", 1))
    before, end = loop.turns, time.monotonic() + 2
    while time.monotonic() < end:
        loop.turn(end - time.monotonic())
    assert loop.turns - before < 20  # the reply is acknowledged, and some alarms ring too early


def test_the_items_of_a_stream_come_in_order_and_more_than_its_window(
    near: Neighbour, loop: Loop, client: RpcClient
) -> None:
    count, sink = 3 * STREAM_WINDOW, Answers()
    node: Any = client.create_agent(Node)
    call_id = near.ask(call(node, "numbers", count, flags=Flag.STREAM), sink)
    granted = 0
    while not sink.is_over:
        loop.turn(20)
        if len(sink.items) > granted:
            near.grant(call_id, len(sink.items) - granted)
            granted = len(sink.items)
    assert not sink.errors
    assert sink.items == list(range(count))


def test_a_call_that_nobody_waits_for_is_cancelled(near: Neighbour, loop: Loop, latch: Any) -> None:
    held = Answers()
    call_id = near.ask(call(latch, "hold_until_cancelled"), held)
    await_answer(near, loop, call(latch, "entered"))
    near.cancel(call_id, alone=False)
    await_answer(near, loop, call(latch, "cancel_seen"))
    loop.until(lambda: held.is_over)


def await_answer(near: Neighbour, loop: Loop, asked: Call) -> Any:
    sink = Answers()
    near.ask(asked, sink)
    loop.until(lambda: sink.is_over)
    return sink.value


def test_what_is_open_when_it_is_closed_fails_with_what_is_told(
    near: Neighbour, loop: Loop, desk: AgentProxy, latch: Any
) -> None:
    held, unsent = Answers(), Answers()
    await_answer(near, loop, call(desk, "echo", 1))
    near.ask(call(latch, "hold"), held)
    await_answer(near, loop, call(latch, "entered"))
    near.ask(call(desk, "echo", 2), unsent)
    near.close(CallLost("declared dead"))
    assert not near.is_open
    assert [type(error) for error in held.errors] == [CallLost]
    assert len(unsent.errors) == 1
    assert isinstance(unsent.errors[0], (CallLost, HostUnreachable))
    assert not loop.beside
    late = Answers()
    near.ask(call(desk, "echo", 3), late)
    loop.until(lambda: late.is_over, 5)
    assert late.errors


def test_a_host_that_is_not_there_is_told_soon_and_found_when_it_is(loop: Loop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    near = Neighbour(f"127.0.0.1:{port}", loop)
    try:
        sink = Answers()
        near.ask(Call("a", "m", codec.encode_call((), {}), 0, {}, None, None), sink)
        loop.until(lambda: sink.is_over, 10)
        assert [type(error) for error in sink.errors] == [HostUnreachable]
        with host(capacity=2, port=port) as launcher, client_of(launcher) as client:
            made: Any = client.create_agent(Desk)
            assert await_answer(near, loop, call(made, "echo", 5)) == 5
    finally:
        near.close(HostStopping("the test is over"))


@pytest.mark.parametrize("way_there", WAYS)
def test_what_a_busy_host_refuses_is_asked_again(way_there: str, loop: Loop) -> None:
    with host(capacity=4, max_calls=2) as launcher, client_of(launcher) as client, Relay(port_of(launcher)) as relay:
        latch: Any = client.create_agent(Latch)
        desk: Any = client.create_agent(Desk)
        near = Neighbour(f"127.0.0.1:{port_of(launcher) if way_there == 'ipc' else relay.port}", loop)
        try:
            held = [Answers(), Answers()]
            ids = [near.ask(call(latch, "hold_until_cancelled"), sink) for sink in held]
            late = Answers()
            near.ask(call(desk, "echo", 7), late)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                loop.turn(end - time.monotonic())
            assert not late.is_over, "the host was not busy"
            for call_id in ids:
                near.cancel(call_id, alone=False)
            loop.until(lambda: late.is_over and all(sink.is_over for sink in held), 4)  # before the next ping
            assert late.value == 7
        finally:
            near.close(HostStopping("the test is over"))


# ---------------------------------------------------------------- broken connections, by TCP


@pytest.fixture
def relay(server: RpcAgentServerLauncher) -> Iterator[Relay]:
    with Relay(port_of(server)) as relay:
        yield relay


@pytest.fixture
def far(relay: Relay, loop: Loop) -> Iterator[Neighbour]:
    neighbour = Neighbour(f"127.0.0.1:{relay.port}", loop)
    yield neighbour
    neighbour.close(HostStopping("the test is over"))


@pytest.mark.parametrize("how", ["cut", "reset", "cut, the host does not notice"])
def test_a_call_runs_once_and_is_answered_over_a_connection_that_breaks(
    how: str, far: Neighbour, relay: Relay, loop: Loop, desk: Any, latch: Any
) -> None:
    held = Answers()
    far.ask(call(latch, "hold"), held)
    await_answer(far, loop, call(latch, "entered"))
    counted = await_answer(far, loop, call(desk, "bump"))
    if how == "reset":
        relay.reset()
    else:
        relay.cut(host_too=how == "cut")
    assert await_answer(far, loop, call(desk, "bump")) == counted + 1
    latch.release()
    loop.until(lambda: held.is_over)
    assert not held.errors
    assert relay.connections >= 2


def test_a_connection_that_dies_without_a_word_is_noticed_and_made_again(
    far: Neighbour, relay: Relay, loop: Loop, desk: AgentProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "DEAD_S", 1.5)
    monkeypatch.setattr(session, "PING_BUSY_S", 0.5)
    second = Answers()
    await_answer(far, loop, call(desk, "echo", 1))
    relay.hold_replies()
    far.ask(call(desk, "echo", 2, flags=Flag.IDEMPOTENT), second)
    loop.until(lambda: relay.connections >= 2 or second.is_over, 60)
    relay.cut()
    relay.let_go()
    loop.until(lambda: second.is_over, 60)
    assert second.value == 2


def test_what_a_host_has_said_before_it_ended_counts_also_if_its_end_is_heard_of_first(loop: Loop) -> None:
    with host(Desk, grace_s=0.0) as server, client_of(server) as client:
        proxy: Any = client.create_agent(Desk)
        neighbour = Neighbour(f"127.0.0.1:{port_of(server)}", loop)
        answered, unread, unanswered = Answers(), Answers(), Answers()
        neighbour.ask(call(proxy, "echo", 1), answered)
        loop.until(lambda: answered.is_over)
        neighbour.ask(call(proxy, "echo", 2), unread)
        loop.turn(0.0)  # it is sent
        assert proxy.echo(3) == 3  # and answered, if not read: the agent has one turn
        server.shutdown()
        neighbour.ask(call(proxy, "echo", 4), unanswered)  # when nobody is there
        neighbour.hear_out()
        neighbour.close(CallLost("it is dead"))
        loop.until(lambda: unread.is_over and unanswered.is_over)
        assert unread.value == 2
        (error,) = unanswered.errors
        assert isinstance(error, HostStopping)
