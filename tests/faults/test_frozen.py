"""Processes that stop and go on (SIGSTOP, SIGCONT), clocks that jump, calls that come twice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hosts
from actors import CLASSES, Desk, Latch, client_of, host, within
from raw_peer import RawPeer
from scale import pick, soak_only
from zmqagents import AgentBase, CallLost, CallTimeout, RpcAgentServerLauncher, RpcClient, async_func, concurrent
from zmqagents.wire.messages import Flag

pytestmark = pytest.mark.timeout(pick(60, 300))


class Clock(AgentBase):
    """Sets the wall clock of its host, as far as Python can see it."""

    def jump(self, seconds: float) -> float:
        now = time.time
        time.time = lambda: now() + seconds
        return time.time()

    def give(self, value: Any) -> Any:
        return value

    def reply(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @concurrent
    def here(self) -> bool:
        return True


class Counter(AgentBase):
    """Counts the calls whose code has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @async_func
    def nap(self) -> None:
        time.sleep(1.4)

    def bump(self) -> None:
        self.count += 1

    async def bump_soon(self) -> None:
        self.count += 1


@pytest.fixture
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Clock, capacity=4, max_expire_time=60) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server, timeout=30) as client:
        client.is_alive()
        yield client


@contextlib.contextmanager
def _frozen(launcher: RpcAgentServerLauncher) -> Iterator[None]:
    hosts.freeze(launcher.pid)
    try:
        yield
    finally:
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGCONT)


@pytest.fixture
def remote(server: RpcAgentServerLauncher, monkeypatch: pytest.MonkeyPatch) -> Iterator[RpcClient]:
    """A client as on another machine, which reads another clock."""
    monkeypatch.setattr("zmqagents.connection.session.clock_name", lambda: "")
    with client_of(server, transport="tcp") as remote:
        yield remote


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("seconds", [pick(1.0, 10.0)])
def test_calls_that_were_made_before_and_during_a_pause_of_the_host_give_their_values(
    server: RpcAgentServerLauncher, transport: Any, seconds: float
) -> None:
    with client_of(server, transport=transport, timeout=30) as client:
        desk, latch = client.create_agent(Desk), client.create_agent(Latch)
        before = [latch.hold_async(i) for i in range(10)]
        latch.entered()
        with _frozen(server):
            during = [desk.later(i) for i in range(1000)]
            time.sleep(seconds)
        assert [result.result() for result in during] == list(range(1000))
        latch.release()
        assert [result.result() for result in before] == list(range(10))


@pytest.mark.parametrize("way", ["ipc", "tcp", "tcp from another machine"])
def test_calls_whose_deadline_passes_in_the_pause_are_told_in_time_and_do_not_run(
    server: RpcAgentServerLauncher, client: RpcClient, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way not in ("ipc", "tcp"):  # which reads another clock
        monkeypatch.setattr("zmqagents.connection.session.clock_name", lambda: "")
    desk = client.create_agent(Desk)
    with client_of(server, transport=way[:3]) as other:
        late = other.get_agent(desk.agent_id)
        assert late.bump() == 1
        with _frozen(server):
            results = [late.bump.aio(timeout=0.5) for _ in range(200)]
            outcomes = [result.exception(5) for result in results]
            time.sleep(1.0)
        assert {type(outcome) for outcome in outcomes} == {CallTimeout}
        assert late.bump() == 2
    assert desk.count == 2


@pytest.mark.parametrize(("timeout", "pause_s"), [(0.25, 0.5), (0.9, 1.1)])
def test_however_long_the_pause_and_whenever_it_begins_no_call_runs_that_is_over(
    server: RpcAgentServerLauncher, remote: RpcClient, timeout: float, pause_s: float
) -> None:
    late: Any = remote.create_agent(Desk)
    for turn in range(1, 3):
        assert late.bump(timeout=20) == turn
        time.sleep(0.03 * turn)  # at other moments of the router's wait
        with _frozen(server):
            results = [late.bump.aio(timeout=timeout) for _ in range(20)]
            began = time.monotonic()
            assert {type(result.exception(5)) for result in results} == {CallTimeout}
            time.sleep(max(0.0, began + pause_s - time.monotonic()))
    assert late.bump(timeout=20) == 3


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("method", ["bump", "bump_soon"])
def test_calls_that_queue_when_the_pause_begins_and_are_over_at_its_end_do_not_run(transport: Any, method: str) -> None:
    with host(Counter, capacity=32) as launcher, client_of(launcher, transport=transport) as client:
        counters = [client.create_agent(Counter) for _ in range(20)]
        naps = [counter.nap() for counter in counters]
        late = [getattr(counter, method).aio(timeout=1.6) for counter in counters for _ in range(4)]
        with client_of(launcher) as other:
            assert hosts.eventually(lambda: other.get_server_info()["calls_open"] == len(naps + late), 1.0)
        with _frozen(launcher):
            assert {type(result.exception(5)) for result in late} == {CallTimeout}
            time.sleep(0.3)
        for nap in naps:
            nap.result()
        assert [counter.count for counter in counters] == [0] * 20


def test_a_call_that_is_sent_right_after_a_pause_runs(server: RpcAgentServerLauncher, remote: RpcClient) -> None:
    late: Any = remote.create_agent(Desk)
    for count in range(1, 4):
        with _frozen(server):
            time.sleep(1.5)
        assert late.bump(timeout=1) == count


def test_a_deadline_of_many_days_is_no_deadline_in_the_past(client: RpcClient) -> None:
    desk: Any = client.create_agent(Desk)
    assert desk.bump(timeout=60 * 86_400) == 1


@soak_only
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_host_that_is_frozen_for_longer_than_the_ping_limit_is_given_up_and_found_again(
    server: RpcAgentServerLauncher, transport: Any
) -> None:
    with client_of(server, transport=transport, timeout=60) as client:
        latch, desk = client.create_agent(Latch), client.create_agent(Desk)
        result = latch.hold_async("kept")
        latch.entered()
        with _frozen(server), within(20):
            assert isinstance(result.exception(), CallLost)
        assert hosts.eventually(client.is_alive, 10)
        latch.release()
        assert client.get_result(result.task_id).result(10) == "kept"
        assert desk.bump() == 1


CALLER = """
import json, sys
from zmqagents import RpcClient
client = RpcClient("localhost", int(sys.argv[1]), transport=sys.argv[3] or None, timeout=30)
node = client.get_agent(sys.argv[2])
stream = iter(node.numbers(10_000))
print(json.dumps(next(stream)), flush=True)
print(json.dumps([sum(stream), node.value(), [r.result() for r in [node.leaf() for _ in range(100)]]]), flush=True)
client.close()
"""


@pytest.mark.parametrize("transport", ["", "tcp"])
def test_a_client_that_is_stopped_in_a_stream_goes_on_where_it_was(
    server: RpcAgentServerLauncher, client: RpcClient, transport: str
) -> None:
    from actors import Node

    node, desk = client.create_agent(Node), client.create_agent(Desk)
    with hosts.started(CALLER, str(server.port), node.agent_id, transport) as program:
        assert hosts.told(program) == 0
        hosts.freeze(program.pid)
        with within(pick(3, 12)):
            time.sleep(pick(1.5, 10))
            assert desk.echo("served") == "served"
        program.send_signal(signal.SIGCONT)
        assert hosts.told(program) == [sum(range(10_000)), "value", [1] * 100]


@pytest.mark.parametrize("seconds", [86_400.0 * 365, -86_400.0 * 365])
def test_a_jump_of_the_hosts_wall_clock_ends_no_deadline_and_no_result(
    server: RpcAgentServerLauncher, client: RpcClient, seconds: float
) -> None:
    clock, latch = client.create_agent("Clock"), client.create_agent("Latch")
    kept, held, napping = clock.give.aio(1), latch.hold_async("held"), clock(0.5)
    latch.entered()
    assert kept.result() == 1
    done = client.get_agent(clock.agent_id)(0)
    assert done.result() == 0
    clock.jump(seconds)
    assert napping.result() == 0.5
    assert client.get_result(done.task_id).result() == 0  # kept for 60 s
    with pytest.raises(CallTimeout), within(3):
        latch.hold_beside(timeout=0.5)
    assert client.get_server_info()["uptime_s"] >= 0
    latch.release()
    assert held.result() == "held"
    with client_of(server, transport="tcp") as remote:  # keys are looked at by their times
        assert remote.is_alive()


@pytest.mark.parametrize("seconds", [86_400.0 * 365, -86_400.0 * 365])
def test_a_jump_of_the_clients_wall_clock_ends_no_deadline(
    server: RpcAgentServerLauncher, client: RpcClient, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    latch: Any = client.create_agent(Latch)
    held = latch.hold_async("held")
    latch.entered()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    with pytest.raises(CallTimeout), within(3):
        latch.hold_beside(timeout=0.5)
    latch.release()
    assert held.result() == "held"


def test_a_peer_that_sends_one_call_twice_has_it_run_once(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk, latch = client.create_agent(Desk), client.create_agent(Latch)
    with RawPeer(server) as peer:
        peer.hello()
        for _ in range(50):
            peer.call(1, latch.agent_id, "hold", "once")
        peer.call(2, desk.agent_id, "bump")
        peer.answer_to(2)  # all before it have come while the call was open
        latch.entered()
        latch.release()
        peer.answer_to(1)
        assert latch.entered() == 1


def test_a_peer_that_sends_a_call_again_after_its_end_gets_the_same_answer(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    desk = client.create_agent(Desk)
    with RawPeer(server) as peer:
        peer.hello()
        answers = []
        for flags in (0, Flag.RESENT):
            peer.call(1, desk.agent_id, "bump", flags=flags)
            answers.append(peer.answer_to(1)[1])
        assert desk.count == 1
        assert answers[0] == answers[1]


def test_a_pause_of_every_client_thread_but_the_io_thread_loses_nothing(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """A done-callback that sleeps holds the thread that brings the replies: they wait, in order."""
    desk = client.create_agent(Desk)
    seen: list[int] = []
    held = threading.Event()
    first = desk.later(0)
    first.add_done_callback(lambda _: held.wait(pick(0.5, 8)))
    results = [desk.later(i) for i in range(1, 2000)]
    for result in results:
        result.add_done_callback(lambda result: seen.append(result.result()))
    assert [result.result() for result in results] == list(range(1, 2000))
    assert seen == list(range(1, 2000))


def test_a_host_with_no_client_at_its_port_sleeps() -> None:
    """With one it looks ten times a second, for it is to notice that it was frozen."""
    with host(Clock) as launcher, client_of(launcher) as client:
        client.is_alive()
        time.sleep(0.5)
        before = _switches(launcher.pid)
        time.sleep(3.0)
        asleep = _switches(launcher.pid) - before
        with client_of(launcher, transport="tcp") as distant:
            distant.is_alive()
            before = _switches(launcher.pid)
            time.sleep(3.0)
            assert _switches(launcher.pid) - before > asleep + 15
    assert asleep < 30


def _switches(pid: int | None) -> int:
    """How often the threads of a process have waited."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):
            found += int(status.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return found
