"""A connection that breaks costs neither a call nor a result, and makes nothing run twice."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import hosts
from actors import Latch, client_of, host, within
from hosts import meanwhile
from raw_peer import ipc_path
from relay import Relay
from zmqagents import (
    AgentBase,
    AgentProxy,
    CallLost,
    HostLost,
    RpcAgentServerLauncher,
    RpcClient,
    async_func,
    idempotent,
)
from zmqagents import concurrent as beside
from zmqagents.wire.link import Waiter

pytestmark = pytest.mark.timeout(60)


class Counting(AgentBase):
    """Knows how often each call ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[int] = Counter()

    def count(self, number: int) -> int:
        self.ran[number] += 1
        return number

    @async_func
    def count_later(self, number: int) -> int:
        return self.count(number)

    @beside
    def ledger(self) -> dict[int, int]:
        return dict(self.ran)

    @idempotent
    def read(self) -> int:
        return os.getpid()

    def numbers(self, how_many: int) -> Iterator[int]:
        yield from range(how_many)

    async def numbers_on_loop(self, how_many: int) -> AsyncIterator[int]:
        for number in range(how_many):
            yield number


@pytest.fixture
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Counting, Latch, capacity=8) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture(params=["tcp", "ipc"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.WAY", request.param)


WAY = ""


@contextlib.contextmanager
def through_a_relay(server: RpcAgentServerLauncher) -> Iterator[tuple[Relay, RpcClient]]:
    with Relay(ipc_path(server) if WAY == "ipc" else server.port or 0) as relay, relay.client(20) as remote:
        yield relay, remote


def test_a_call_that_runs_when_the_connection_is_cut_is_answered_over_the_next(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    latch = client.create_agent(Latch)
    with through_a_relay(server) as (relay, remote), concurrent.futures.ThreadPoolExecutor(1) as thread:
        far = remote.get_agent(latch.agent_id)
        blocked, later = thread.submit(far.hold, "blocked"), far.mark_later("later")
        latch.entered()
        relay.cut()
        latch.release()
        with within(5):
            assert (blocked.result(), later.result(5)) == ("blocked", "later")
        assert client.get_result(later.task_id).result(5) == "later"


def test_a_reply_that_was_on_its_way_when_the_connection_was_cut_comes_again(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    counting = client.create_agent(Counting)
    with through_a_relay(server) as (relay, remote):
        far = remote.get_agent(counting.agent_id)
        relay.hold_replies()
        result = far.count_later(1)
        while counting.ledger() != {1: 1}:
            pass
        relay.cut()
        with within(5):
            assert result.result(5) == 1
        assert counting.ledger() == {1: 1}


def test_a_host_that_has_forgotten_the_client_is_asked_for_the_results_it_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zmqagents.connection.session.DEAD_HOST_S", 20.0)  # a busy machine may take its time
    with host(Counting, Latch, resume_s=0.1) as forgetful, client_of(forgetful) as near:
        latch = near.create_agent(Latch)
        with through_a_relay(forgetful) as (relay, remote):
            far = remote.get_agent(latch.agent_id)
            kept, plain = far.hold_async("kept"), Waiter()
            latch.entered()
            lost = threading.Thread(target=_call, args=(far, "mark", plain))
            lost.start()
            while near.get_server_info()["calls_open"] < 2:
                pass
            relay.refuse()
            relay.cut()
            while (info := near.get_server_info())["clients"] > 1 or info["clients_lost"]:
                pass
            relay.accept()
            lost.join()
            with pytest.raises(CallLost, match="knows no more"):
                plain.wait(5)
            latch.release()
            assert kept.result(5) == "kept"


def _call(agent: AgentProxy, method: str, waiter: Any) -> None:
    try:
        getattr(agent, method)(0)
    except Exception as exc:
        waiter.fail(exc)


def test_a_stream_whose_connection_is_cut_goes_on_at_the_next_item(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    counting = client.create_agent(Counting)
    with through_a_relay(server) as (relay, remote):
        items = remote.get_agent(counting.agent_id).numbers(100)
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        relay.cut()
        with within(5):
            assert list(items) == list(range(5, 100))


def test_a_stream_ends_in_an_error_where_the_host_has_forgotten_its_client() -> None:
    with host(Counting, resume_s=0.1) as forgetful, client_of(forgetful) as near:
        counting = near.create_agent(Counting)
        with through_a_relay(forgetful) as (relay, remote):
            items = remote.get_agent(counting.agent_id).numbers(1_000_000)
            assert next(items) == 0
            relay.refuse()
            relay.cut()
            with within(5):
                while (info := near.get_server_info())["running"] or info["clients"] > 1 or info["clients_lost"]:
                    pass
            relay.accept()
            with within(5), pytest.raises(CallLost):
                list(items)


@contextlib.contextmanager
def cut_again_and_again(relay: Relay) -> Iterator[None]:
    def cut(is_over: threading.Event) -> None:
        while not is_over.wait(random.uniform(0.02, 0.15)):
            relay.cut()

    with meanwhile(cut):
        yield


STREAM_ITEMS, STREAMS = int(os.environ.get("ZMQAGENTS_CUT_ITEMS", "10000")), 8
CUTS = 6


def test_streams_over_a_connection_that_is_cut_again_and_again_lose_no_item_and_double_none(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    each = STREAM_ITEMS // STREAMS
    agent_ids = [client.create_agent(Counting).agent_id for _ in range(STREAMS)]
    with through_a_relay(server) as (relay, remote):
        agents: list[Any] = [remote.get_agent(agent_id) for agent_id in agent_ids]
        with cut_again_and_again(relay), concurrent.futures.ThreadPoolExecutor(STREAMS) as threads:
            while relay.connections < CUTS:  # they may be read between two cuts
                read: list[list[int]] = list(threads.map(list, [agent.numbers(each) for agent in agents]))
                assert read == [list(range(each))] * STREAMS


def test_streams_read_on_an_event_loop_survive_the_same(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    each = STREAM_ITEMS // STREAMS
    agent_ids = [client.create_agent(Counting).agent_id for _ in range(STREAMS)]

    async def read(relay: Relay) -> None:
        async with relay.async_client(20) as remote:
            agents: list[Any] = [await remote.get_agent(agent_id) for agent_id in agent_ids]

            async def items(agent: Any) -> list[int]:
                return [item async for item in agent.numbers_on_loop(each)]

            with cut_again_and_again(relay):
                while relay.connections < CUTS:
                    assert await asyncio.gather(*map(items, agents)) == [list(range(each))] * STREAMS

    with Relay(ipc_path(server) if WAY == "ipc" else server.port or 0) as relay:
        asyncio.run(read(relay))


def test_calls_over_a_connection_that_is_cut_again_and_again_run_once_and_are_answered(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    counting = client.create_agent(Counting)
    calls = int(os.environ.get("ZMQAGENTS_CUT_CALLS", "2000"))
    with through_a_relay(server) as (relay, remote):
        far = remote.get_agent(counting.agent_id)
        with cut_again_and_again(relay):
            results = [far.count_later(number) for number in range(calls // 2)]
            assert [far.count(number) for number in range(calls // 2, calls)] == list(range(calls // 2, calls))
            assert [result.result(30) for result in results] == list(range(calls // 2))
    assert counting.ledger() == dict.fromkeys(range(calls), 1)


def test_what_is_not_idempotent_is_lost_soon_after_a_crash(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    latch = client.create_agent(Latch)
    results = [latch.hold_async(number) for number in range(200)]
    latch.entered()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    with within(1.5):  # 0.45 s, and a busy machine
        outcomes = [result.exception(5) for result in results]
    assert {type(outcome) for outcome in outcomes} <= {CallLost, HostLost}


def test_an_idempotent_call_is_sent_again_to_the_host_that_takes_the_place_of_a_crashed_one() -> None:
    with host(Counting, Latch, port=hosts.free_port()) as first, client_of(first, transport="tcp") as client:
        counting = client.create_agent(Counting, agent_id="the counting one")
        assert counting.read() == first.pid
        latch = client.create_agent(Latch)
        behind = latch.hold_async()
        latch.entered()
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            again = thread.submit(counting.read)
            with host(Counting, port=first.port) as second, client_of(second, transport="ipc") as other:
                other.create_agent(Counting, agent_id="the counting one")
                with within(5):
                    assert again.result(10) == second.pid
                assert isinstance(behind.exception(5), CallLost)
