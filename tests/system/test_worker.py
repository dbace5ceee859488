"""Where calls run: how many at once, in which threads, and how those end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, Node, client_of, client_on_host, within
from hosts import eventually
from scale import LATE_S
from zmqagents import (
    AgentBase,
    AsyncResult,
    CallContext,
    HostBusy,
    LaunchError,
    RpcAgentServerLauncher,
    RpcClient,
    async_func,
    current_call,
    sync_func,
)
from zmqagents import concurrent as beside
from zmqagents.config import BrokerConfig
from zmqagents.execution.gate import Gate, thread_gate
from zmqagents.server.serve import serve
from zmqagents.store.memory import MemoryStore
from zmqagents.wire.messages import STREAM_WINDOW

pytestmark = pytest.mark.timeout(60)


async def until_cancelled() -> None:
    LATE.inside.set()
    try:
        await asyncio.sleep(CALL_TIMEOUT_S)
    finally:
        LATE.seen.append(asyncio.CancelledError)


class Sleeper(AgentBase):
    @async_func
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return time.time()

    async def nap_on_loop(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return time.time()

    async def leave_a_task(self) -> None:
        self.left = asyncio.create_task(until_cancelled())

    def give_a_coroutine(self) -> Any:
        return until_cancelled()

    async def stubborn(self) -> str:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        return "to the end"


class Place(AgentBase):
    """Tells in which thread its methods run."""

    def thread(self) -> str:
        return threading.current_thread().name

    @sync_func
    async def loop_thread(self) -> str:
        return threading.current_thread().name

    @sync_func
    async def loop_id(self) -> int:
        return id(asyncio.get_running_loop())

    @beside
    def call_names(self) -> list[Any]:
        call = current_call()
        assert call is not None
        return [call.agent, call.method, call.call_id, call.cancelled, call.remaining() is not None]

    def public_names_of_call(self) -> list[str]:
        return [name for name in dir(current_call()) if not name.startswith("_")]

    def contexts_of_one_call_are_equal(self) -> list[bool]:
        first, second = current_call(), current_call()
        return [first == second, hash(first) == hash(second), first != CallContext, repr(first) == repr(second)]

    @sync_func
    async def call_names_on_loop(self) -> list[Any]:
        await asyncio.sleep(0)
        return self.call_names()

    def count_threads(self) -> int:
        return len([thread for thread in threading.enumerate() if thread.name.startswith("zmqagents-worker")])

    def burn(self, seconds: float) -> int:
        end, turns = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            turns += 1
        return turns

    @async_func
    def burn_later(self, seconds: float) -> int:
        return self.burn(seconds)

    def own_client(self, agent_id: str) -> Any:
        """Uses its host as a client does."""
        call = current_call()
        assert call is not None
        return call.client().get_agent(agent_id).echo("through its own host")

    def late(self) -> Iterator[int]:
        """Has used up its credit when it comes back from something that it cannot be called away from."""
        try:
            yield from range(STREAM_WINDOW - 1)
            LATE.inside.set()
            LATE.go_on.wait(CALL_TIMEOUT_S)
            yield from range(2)
        except BaseException as exc:
            LATE.seen.append(type(exc))
            raise

    def own_results(self, times: int) -> list[int]:
        """Asks its host for what only a thread of the host's can answer."""
        call = current_call()
        assert call is not None
        return [len(call.client().get_result_list()) for _ in range(times)]

    def ask(self, desk: Any) -> int:
        return int(desk.bump())

    def ask_by_a_loop_of_its_own(self, desk: Any) -> int:
        async def ask() -> int:
            return int(await desk.plus.aio(await desk.bump.aio()))

        return asyncio.run(ask())

    def make_another(self) -> Any:
        call = current_call()
        assert call is not None
        return call.client().create_agent("Desk")


class _Late:
    """Between a test and an agent of the same process."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.seen: list[type[BaseException]] = []


LATE = _Late()


@contextmanager
def host_here(*classes: type, **settings: Any) -> Iterator[RpcClient]:
    """A client, connected, of a host in this process."""
    server = RpcAgentServerLauncher(custom_agent_classes=[*classes], local_mode=True, grace_s=0.2, **settings)
    thread = threading.Thread(target=server.launch, kwargs={"in_subprocess": False})
    thread.start()
    try:
        while not server.is_running:
            assert thread.is_alive()
        with client_of(server) as client:
            client.is_alive()
            yield client
    finally:
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Place, Sleeper, Desk, Latch, Node, capacity=4) as client:
        client.is_alive()
        yield client


def test_32_agents_that_sleep_half_a_second_take_half_a_second() -> None:
    with client_on_host(Sleeper, capacity=32) as client:
        agents = [client.create_agent(Sleeper) for _ in range(32)]
        start = time.time()
        results = [agent.nap(0.5) for agent in agents]
        ends = [result.result() for result in results]
        assert max(ends) - start < 0.75  # at the agents: what the tests' own machine does is not measured


def test_no_more_agents_run_at_once_than_the_capacity_says() -> None:
    with client_on_host(Sleeper, capacity=4) as client:
        agents = [client.create_agent(Sleeper) for _ in range(16)]
        start = time.time()
        ends = [result.result() for result in [agent.nap(0.1) for agent in agents]]
        assert max(ends) - start >= 0.4
        assert client.get_server_info()["worker_threads"] <= 4


def test_coroutines_need_no_worker() -> None:
    with client_on_host(Sleeper, capacity=1) as client:
        agents: Any = [client.create_agent(Sleeper) for _ in range(500)]
        start = time.monotonic()
        results = [agent.nap_on_loop(0.5) for agent in agents]
        assert all(result.result() for result in results)
        assert time.monotonic() - start < 2
        assert client.get_server_info()["worker_threads"] <= 1


def test_stand_ins_come_with_the_waits_and_go_with_them() -> None:
    with client_on_host(Place, Node, capacity=1) as client:
        nodes = [client.create_agent(Node) for _ in range(30)]
        assert nodes[0].down(nodes[1:]) == 30
        place = client.create_agent(Place)
        for _ in range(50):  # a stand-in ends when it comes back and finds others idle
            if place.count_threads() <= 2:
                break
        assert place.count_threads() <= 2
        info = client.get_server_info()
        assert (info["waiting"], info["running"]) == (0, 0)


def test_methods_run_in_workers_and_coroutines_on_the_one_loop(client: RpcClient) -> None:
    one, two = client.create_agent(Place), client.create_agent(Place)
    assert one.thread().startswith("zmqagents-worker")
    assert one.loop_thread() == two.loop_thread() == "zmqagents-loop"
    assert one.loop_id() == two.loop_id()


def test_a_call_knows_who_and_what_it_is(client: RpcClient) -> None:
    place = client.create_agent(Place)
    for method in ("call_names", "call_names_on_loop"):
        agent_id, name, call_id, cancelled, has_deadline = getattr(place, method)()
        assert (agent_id, name, cancelled, has_deadline) == (place.agent_id, method, False, True)
        assert call_id
    assert current_call() is None


def test_an_agent_sees_of_its_call_what_is_meant_for_agents_and_nothing_of_the_hosts_records(client: RpcClient) -> None:
    assert client.create_agent(Place).public_names_of_call() == [
        "agent", "call_id", "cancel_reminder", "cancelled", "check", "client", "deadline", "fence", "method",
        "outgoing", "progress", "remaining", "remind", "save", "wait_cancelled",
    ]  # fmt: skip


def test_it_makes_no_difference_how_often_an_agent_asks_for_its_call(client: RpcClient) -> None:
    assert client.create_agent(Place).contexts_of_one_call_are_equal() == [True] * 4


def test_an_agent_may_use_its_own_host_as_a_client_does(client: RpcClient) -> None:
    place, desk = client.create_agent(Place), client.create_agent(Desk)
    assert place.own_client(desk.agent_id) == "through its own host"
    made = place.make_another()
    assert made.echo(1) == 1
    assert client.get_agent(made.agent_id) == made


def test_an_agent_may_make_others_on_one_slot() -> None:
    with client_on_host(Place, Desk, capacity=1) as client:
        assert client.create_agent("Place").make_another(timeout=3).echo(1, timeout=3) == 1


def test_an_agent_waits_for_what_its_host_must_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = MemoryStore.entries

    def slowly(self: MemoryStore, most: int) -> Any:
        time.sleep(0.005)  # as a store elsewhere takes
        return entries(self, most)

    monkeypatch.setattr(MemoryStore, "entries", slowly)
    with host_here(Place, Desk, capacity=1) as client:
        place = client.create_agent(Place)
        assert place.own_results(20) == [0] * 20
        client.create_agent(Desk).later(1).result()
        assert place.own_results(1) == [1]
        info = client.get_server_info()
        assert (info["waiting"], info["calls_open"]) == (0, 0)


@pytest.mark.parametrize("method", ["ask", "ask_by_a_loop_of_its_own"])
def test_a_call_of_another_host_that_was_carried_out_is_never_said_to_be_refused(method: str) -> None:
    with client_on_host(Place, capacity=1, max_threads=1) as narrow, client_on_host(Desk) as elsewhere:
        desk = elsewhere.create_agent(Desk)
        assert getattr(narrow.create_agent(Place), method)(desk) == 1  # there may be no stand-in, so it keeps its slot
        assert desk.count == 1
        info = narrow.get_server_info()
        assert (info["running"], info["waiting"]) == (0, 0)


def test_the_host_answers_while_its_workers_compute(client: RpcClient) -> None:
    burning = [client.create_agent(Place).burn_later(0.6) for _ in range(4)]
    late = []
    for _ in range(20):
        start = time.monotonic()
        client.get_server_info()
        late.append(time.monotonic() - start)
    assert sorted(late)[15] < 0.1
    assert all(result.result() > 0 for result in burning)


def test_a_thread_of_an_agent_keeps_no_result_alive(client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    process = psutil.Process(client.get_server_info()["pid"])
    for _ in range(3):
        desk.make_bytes(50_000_000)
    assert desk.echo(1) == 1
    before = process.memory_info().rss
    for _ in range(10):
        desk.make_bytes(50_000_000)
    assert desk.echo(1) == 1
    assert process.memory_info().rss - before < 60_000_000


def test_a_host_ends_although_a_method_never_returns() -> None:
    with client_on_host(Sleeper, grace_s=0.1) as client:
        agent: Any = client.create_agent(Sleeper)
        stuck: Any = [agent.nap(1e6), client.create_agent(Sleeper).nap_on_loop(1e6)]
        while client.get_server_info()["calls_open"] < 2:
            pass
        start = time.monotonic()
    assert time.monotonic() - start < 0.1 + 2 + LATE_S
    assert all(isinstance(result.exception(0), ConnectionError) for result in stuck)


def test_a_coroutine_that_swallows_its_cancellation_is_answered_all_the_same(client: RpcClient) -> None:
    sleeper: Any = client.create_agent(Sleeper)
    result = sleeper.stubborn()
    result.cancel()
    assert result.cancelled()
    with within(1):
        assert sleeper.nap_on_loop(0).result()  # its turn is free again


# ---------------------------------------------------------------- the end of a host in this process


@pytest.mark.parametrize("comes_back", ["while the host closes", "when it has ended"])
def test_code_that_comes_back_after_the_end_does_not_wait_for_a_host_that_is_no_more(
    comes_back: str, caplog: pytest.LogCaptureFixture
) -> None:
    LATE.__init__()  # type: ignore[misc]
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(host_here(Place))
        stream = client.create_agent(Place).late()
        assert LATE.inside.wait(5)
        client.stop(grace_s=0.0)
        with pytest.raises(ConnectionError):
            list(stream)
        if comes_back == "while the host closes":
            LATE.go_on.set()
            stack.close()
            assert "threads did not end" not in caplog.text
    LATE.go_on.set()
    assert eventually(lambda: LATE.seen == [GeneratorExit], 5)  # its items lead nowhere


@pytest.mark.parametrize("how", ["leave_a_task", "give_a_coroutine"])
def test_what_is_on_the_loop_at_the_end_is_cancelled_whoever_has_put_it_there(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    LATE.__init__()  # type: ignore[misc]
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as thread:
        client = stack.enter_context(host_here(Sleeper))
        call = thread.submit(getattr(client.create_agent(Sleeper), how))
        assert LATE.inside.wait(5)
        stack.close()
        assert "threads did not end" not in caplog.text
        assert LATE.seen == [asyncio.CancelledError]
        assert isinstance(call.result() if how == "leave_a_task" else call.exception(), (AsyncResult, ConnectionError))


# ---------------------------------------------------------------- no more threads


@contextmanager
def no_more_threads() -> Iterator[None]:
    """Nothing in this process can start a thread: there is no room for so large a stack."""
    before = threading.stack_size(1 << 47)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_call_for_which_there_is_no_thread_is_refused_and_leaves_its_agent_free() -> None:
    with host_here(Desk, Sleeper) as client:
        one, two = client.create_agent(Sleeper), client.create_agent(Desk)
        busy = one.nap(0.3)  # in the thread that has made them
        with no_more_threads(), within(3):
            with pytest.raises(HostBusy, match="cannot start a thread"):
                two.echo(1)
            with pytest.raises(HostBusy, match="cannot start a thread"):
                two.at_once(1)  # on the loop, which has no thread yet
        assert busy.result()
        assert (two.echo(2), two.at_once(3)) == (2, 3)
        assert client.get_server_info()["running"] == 0


def test_a_host_that_cannot_start_its_router_thread_fails_and_leaves_nothing() -> None:
    with contextlib.ExitStack() as stack, pytest.raises(LaunchError, match="router thread"), within(5):
        serve(
            BrokerConfig(local_mode=True), [Desk], lambda bound: None,
            started=lambda broker: stack.enter_context(no_more_threads()),
        )  # fmt: skip


# ---------------------------------------------------------------- gates


def test_a_gate_lets_one_wait_through_for_each_opening() -> None:
    gate = Gate()
    assert not gate.wait(0.01)
    gate.open()
    assert gate.wait(1)
    assert not gate.wait(0)


def test_a_gate_may_be_opened_with_an_error_for_the_one_who_waits() -> None:
    from zmqagents import CallCancelled

    gate = Gate()
    gate.open(CallCancelled("told"))
    with pytest.raises(CallCancelled, match="told"):
        gate.wait(1)
    gate.open()
    assert gate.wait(1)  # the error was for one wait only


def test_each_thread_has_a_gate_of_its_own() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(thread_gate).result()
        assert pool.submit(thread_gate).result() is other
    assert thread_gate() is thread_gate()
    assert thread_gate() is not other
    assert thread_gate().begin() < thread_gate().begin()
