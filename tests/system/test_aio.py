"""asyncio on both sides: `AsyncRpcClient`, results that are awaited, and ``async def`` methods on the host's loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, CLASSES, Desk, Latch, Node, client_on_host, host, within
from zmqagents import (
    AgentBase,
    AgentExists,
    AgentProxy,
    AsyncRpcClient,
    BlockingCallError,
    CallLost,
    CallTimeout,
    ConfigError,
    DeadlockError,
    HostUnreachable,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
    UnknownClass,
    UnknownMethod,
    UnknownTask,
    as_completed,
    async_func,
    concurrent,
    current_call,
    deadline,
    sync_func,
    wait,
)

pytestmark = pytest.mark.timeout(60)


class Sleeper(AgentBase):
    """Most of it runs on the host's event loop."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.seen: list[Any] = []
        self._tasks: list[asyncio.Task[Any]] = []

    async def sleep(self, seconds: float) -> float:
        self.seen.append("begun")
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        return seconds

    @sync_func
    @concurrent
    async def wait_until_seen(self, what: str) -> bool:
        """Answers when ``what`` is among the things that were seen."""
        while what not in self.seen:
            await asyncio.sleep(0.001)
        return True

    async def ask(self, other: Any, method: str, *args: Any) -> Any:
        return await getattr(other, method)(*args)

    async def gather(self, others: list[Any]) -> list[Any]:
        return list(await asyncio.gather(*[other.sleep(0.05) for other in others]))

    async def give_up_on(self, other: Any) -> str:
        try:
            await asyncio.wait_for(other.sleep(CALL_TIMEOUT_S), 0.05)
        except asyncio.TimeoutError:
            return "given up"
        return "done"

    async def leave_a_task(self, other: Any) -> None:
        """A task that goes on when this call has returned."""

        async def later() -> None:
            await asyncio.sleep(0.05)
            self.seen.append(await other.soon("from the task"))

        self._tasks.append(asyncio.create_task(later()))

    def run_a_loop(self, other: Any) -> Any:
        """How plain methods use asynchronous libraries."""

        async def ask() -> list[Any]:
            return list(await asyncio.gather(other.soon(1), other.later(2)))

        return asyncio.run(ask())

    async def block(self, other: Any, how: str) -> Any:
        """What is awaited here runs on the same loop, so it cannot be there before it is blocked for."""
        ways: dict[str, Callable[[], Any]] = {
            "call": lambda: other.echo(1),
            "attribute": lambda: other.colour,
            "result": lambda: other.soon(1).result(),
            "item": lambda: other.soon([1])[0],
            "wait": lambda: wait([other.soon(1), other.soon(2)]),
            "as_completed": lambda: list(as_completed([other.soon(1)])),
            "stream": lambda: list(other.listed_on_loop(3)),
            "client": lambda: current_call().client().get_agent_list(),  # type: ignore[union-attr]
        }
        return ways[how]()


class Shelf(Desk):
    def listed(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def listed_on_loop(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    def neighbour(self, other: Any) -> Any:
        return [other]

    @async_func
    def itself(self) -> Any:
        return self


class Traveller(AgentBase):
    """Agents of two hosts that call each other."""

    async def out(self, far: Any, home: Any) -> Any:
        return await far.back(home)

    async def back(self, home: Any) -> Any:
        return await home.here()

    async def here(self) -> str:
        return "here"

    async def out_to_plain(self, far: Any, home: Any) -> Any:
        return await far.plain_back.aio(home)

    def plain_back(self, home: Any) -> Any:
        return home.here().result()

    async def hand_on(self, far: Any, x: Any) -> Any:
        return await far.take(far.take(x), far)

    async def take(self, x: Any, also: Any = None) -> Any:
        return x


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Sleeper, Shelf, capacity=1) as launcher:
        yield launcher


@pytest.fixture
def sleeper(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Sleeper)
    return proxy


@pytest.fixture
def shelf(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Shelf)
    return proxy


@asynccontextmanager
async def async_client(server: RpcAgentServerLauncher, **options: Any) -> AsyncIterator[AsyncRpcClient]:
    options.setdefault("timeout", CALL_TIMEOUT_S)
    async with AsyncRpcClient(server.host, server.port, **options) as client:
        yield client


# ---------------------------------------------------------------- the client


def test_each_method_of_a_proxy_is_awaited(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            shelf = await client.create_agent(Shelf, "s", colour="red")
            assert await shelf.echo(1) == 1
            assert await shelf.reply([2]) == [2]
            assert await shelf([3]) == [3]
            assert await shelf.soon(4) == 4
            assert await shelf.at_once(5) == 5
            assert await shelf.colour == "red"
            assert [i async for i in shelf.listed(3)] == [0, 1, 2]
            assert [i async for i in shelf.listed_on_loop(3)] == [0, 1, 2]
            assert list(await asyncio.gather(shelf.echo(6), shelf.soon(7), shelf.colour)) == [6, 7, "red"]

    asyncio.run(use())


def test_agents_are_made_found_listed_asked_and_deleted(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            options = {"max_concurrency": 2}
            shelf = await client.create_agent("Shelf", colour="red", agent_id="a1", agent_options=options)
            assert await (await client.get_agent("a1")).colour == "red"
            assert await client.get_agent("a1") == shelf
            assert await client.get_agent_memory("a1") == ["hello", {"n": 1}]
            assert "a1" in [agent["agent_id"] for agent in await client.get_agent_list()]
            with pytest.raises(AgentExists):
                await client.create_agent(Shelf, agent_id="a1")
            with pytest.raises(UnknownClass, match="Shelf"):
                await client.create_agent("Nobody")
            with pytest.raises(TypeError, match="nonsense"):
                await client.create_agent(Shelf, nonsense=1)
            with pytest.raises(ConfigError):
                await client.create_agent(Shelf, agent_options={"nonsense": 1})
            assert await client.delete_agent("a1") is True
            for request in (client.get_agent, client.delete_agent, client.get_agent_memory):
                with pytest.raises(UnknownAgent):
                    await request("a1")
            with pytest.raises(UnknownAgent):
                await shelf.echo(1)

    asyncio.run(use())


def test_the_host_is_asked_and_configured(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            assert await client.is_alive()
            assert (await client.get_server_info())["server_id"] == server.server_id
            latch = await client.create_agent(Latch)
            running = latch.hold_async(7)
            await latch.entered()
            (call,) = [call for call in await client.get_call_list() if call["task_id"] == running.task_id]
            assert (call["state"], call["method"]) == ("running", "hold_async")
            (row,) = [row for row in await client.dump() if row["task_id"] == running.task_id]
            assert "self._open.wait" in row["stack"]
            again = client.get_result(running.task_id)
            with pytest.raises(CallTimeout):
                await client.get_result(running.task_id, timeout=0.05)
            await latch.release()
            assert await again == await running == 7
            with pytest.raises(UnknownTask):
                await client.get_result("nobody-1")
            config = {"config_name": "c", "model_type": "openai_chat", "model_name": "m", "api_key": "k"}
            assert await client.set_model_configs(config)
            assert "c" in (await client.get_server_info())["models"]

    asyncio.run(use())


def test_delete_all_and_stop_do_what_they_say() -> None:
    async def use(server: RpcAgentServerLauncher) -> None:
        async with async_client(server) as client:
            await client.create_agent(Desk)
            assert await client.delete_all_agent() is True
            assert await client.get_agent_list() == []
            assert await client.stop(grace_s=0.1) is True
            await asyncio.to_thread(server.wait_until_terminate)
            assert await client.is_alive() is False
            with pytest.raises(HostUnreachable):
                await client.get_server_info()

    with host() as server:
        asyncio.run(use(server))


def test_a_host_that_is_not_there_is_told_at_once() -> None:
    async def use() -> None:
        async with AsyncRpcClient("localhost", 1) as client:
            with within(1.0), pytest.raises(HostUnreachable):
                await client.create_agent(Desk)

    asyncio.run(use())


def test_a_host_that_dies_is_told_to_everyone_who_awaits() -> None:
    async def use(server: RpcAgentServerLauncher) -> None:
        async with async_client(server) as client:
            latches = [await client.create_agent(Latch) for _ in range(5)]
            results = [latch.sleep_for_ever() for latch in latches]
            await asyncio.gather(*[latch.entered() for latch in latches])
            os.kill((await client.get_server_info())["pid"], signal.SIGKILL)
            with within(1.0):
                outcomes = await asyncio.gather(*results, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {CallLost}

    with host() as server:
        asyncio.run(use(server))


def test_a_client_serves_several_loops_one_after_another(server: RpcAgentServerLauncher) -> None:
    client = AsyncRpcClient(server.host, server.port)

    async def begin() -> tuple[AgentProxy, Any]:
        desk = await client.create_agent(Desk)
        return desk, desk.soon("made in the first loop")

    async def end() -> tuple[Any, Any]:
        return await result, await desk.echo(2)

    desk, result = asyncio.run(begin())
    assert asyncio.run(end()) == ("made in the first loop", 2)
    asyncio.run(client.close())


def test_the_loop_turns_while_requests_are_out(server: RpcAgentServerLauncher) -> None:
    async def use() -> float:
        async with async_client(server) as client:
            latch = await client.create_agent(Latch)
            running = latch.hold_async()
            await latch.entered()
            start = time.monotonic()
            requests = [
                asyncio.ensure_future(request) for request in (latch.mark(1), client.create_agent(Desk), latch.marks)
            ]
            await asyncio.sleep(0.05)
            lag = time.monotonic() - start
            await latch.release()
            await asyncio.gather(running, *requests)
            return lag

    assert asyncio.run(use()) < 0.5


def test_timeouts_and_deadlines_hold_for_awaited_calls_too(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            latch = await client.create_agent(Latch)
            with within(1.3), pytest.raises(CallTimeout, match="running"):
                await latch.hold(timeout=0.3)
            with within(1.3), pytest.raises(CallTimeout), deadline(0.3):
                await latch.hold_async()
            with within(1.3), pytest.raises(CallTimeout):
                await latch.hold_async.with_timeout(0.3)()
            await latch.release()

    asyncio.run(use())


def test_awaited_methods_show_their_signature_and_unknown_ones_are_named(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            desk = await client.create_agent(Desk)
            assert list(inspect.signature(desk.echo).parameters) == ["x"]
            assert desk.echo.__doc__ == "Give ``x`` back, while the caller waits."
            with pytest.raises(UnknownMethod, match="echo"):
                await desk.no_such_attribute
            with pytest.raises((UnknownMethod, TypeError)):
                await desk.no_such_method(1)

    asyncio.run(use())


def test_a_proxy_that_came_as_a_value_is_awaited_too(server: RpcAgentServerLauncher) -> None:
    async def use() -> None:
        async with async_client(server) as client:
            shelf, desk = await client.create_agent(Shelf), await client.create_agent(Desk)
            (neighbour,) = await shelf.neighbour(desk)
            assert neighbour == desk
            assert await neighbour.echo(1) == 1

    asyncio.run(use())


# ---------------------------------------------------------------- results that are awaited


@pytest.mark.parametrize("method", ["echo", "later", "soon"])
@pytest.mark.parametrize("finished", [True, False])
def test_an_awaited_calls_result_may_be_an_argument(
    server: RpcAgentServerLauncher, method: str, finished: bool
) -> None:
    async def use() -> Any:
        async with async_client(server) as client:
            desk, other = await client.create_agent(Desk), await client.create_agent(Desk)
            result = getattr(desk, method)(40)
            if finished:
                await result
            return await other.plus(result, 2)

    assert asyncio.run(use()) == 42


def test_one_result_is_awaited_by_many_tasks_and_many_loops(client: RpcClient) -> None:
    latch = client.create_agent(Latch)
    result = latch.hold_async("value")
    latch.entered()

    async def waiter() -> Any:
        return await result

    async def waiters() -> list[Any]:
        return list(await asyncio.gather(*[asyncio.create_task(waiter()) for _ in range(3)], result))

    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(asyncio.run(waiters()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # most of them wait by now; those that come late must get it as well
    latch.release()
    for thread in threads:
        thread.join(CALL_TIMEOUT_S)
    assert seen == [["value"] * 4] * 3


def test_a_wait_for_that_gives_up_cancels_the_call_on_the_host(sleeper: AgentProxy) -> None:
    async def use() -> float:
        result = sleeper.sleep(CALL_TIMEOUT_S)
        assert await sleeper.wait_until_seen.aio("begun")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(result, 0.05)
        start = time.monotonic()
        assert await sleeper.wait_until_seen.aio("cancelled")
        assert result.cancelled()
        return time.monotonic() - start

    assert asyncio.run(use()) <= 0.2


def test_a_shielded_result_outlives_its_awaiter(sleeper: AgentProxy) -> None:
    async def use() -> Any:
        result = sleeper.sleep(0.2)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(result), 0.02)
        return await result

    assert asyncio.run(use()) == 0.2


def test_asyncios_own_functions_take_results(client: RpcClient) -> None:
    desk = client.create_agent(Desk)

    async def use() -> None:
        assert await asyncio.gather(*[desk.soon(i) for i in range(10)]) == list(range(10))
        assert await asyncio.wrap_future(desk.later(1)) == 1
        first_done = asyncio.as_completed([desk.soon(i) for i in range(10)])
        assert sorted([await each for each in first_done]) == list(range(10))
        tasks = [asyncio.ensure_future(desk.soon(i)) for i in range(10)]
        done, pending = await asyncio.wait(tasks, timeout=CALL_TIMEOUT_S)
        assert (len(done), len(pending)) == (10, 0)

    asyncio.run(use())


def test_results_enter_the_loop_in_batches(client: RpcClient) -> None:
    sleepers = [client.create_agent(Sleeper) for _ in range(500)]

    async def use() -> int:
        loop = asyncio.get_running_loop()
        wake_ups = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal wake_ups
            wake_ups += 1
            return call_soon_threadsafe(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment]
        assert await asyncio.gather(*[sleeper.sleep(0.2) for sleeper in sleepers]) == [0.2] * 500
        return wake_ups

    assert asyncio.run(use()) < 400  # 500 without batches; fewer the busier the loop is


# ---------------------------------------------------------------- async def methods


def test_1000_sleeping_coroutines_need_no_worker(client: RpcClient) -> None:
    sleepers = [client.create_agent(Sleeper) for _ in range(1000)]

    async def use() -> list[float]:
        return list(await asyncio.gather(*[sleeper.sleep(0.5) for sleeper in sleepers]))

    with within(3.0):
        assert asyncio.run(use()) == [0.5] * 1000
    assert client.get_server_info()["worker_threads"] <= 1


def test_a_coroutine_gathers_the_results_of_others(client: RpcClient, sleeper: AgentProxy) -> None:
    others = [client.create_agent(Sleeper) for _ in range(20)]
    with within(1.0):
        assert sleeper.gather(others).result() == [0.05] * 20


def test_a_coroutine_that_gives_up_cancels_what_it_awaited(client: RpcClient, sleeper: AgentProxy) -> None:
    other = client.create_agent(Sleeper)
    assert sleeper.give_up_on(other).result() == "given up"
    with within(1.0):
        assert other.wait_until_seen("cancelled")


@pytest.mark.parametrize("how", ["call", "attribute", "result", "item", "wait", "as_completed", "stream", "client"])
def test_blocking_in_a_coroutine_is_an_error_and_not_a_standstill(
    sleeper: AgentProxy, shelf: AgentProxy, how: str
) -> None:
    with within(1.0), pytest.raises(BlockingCallError, match="await"):
        sleeper.block(shelf, how).result()
    assert sleeper.sleep(0).result() == 0


def test_a_task_that_a_call_has_left_behind_may_call_and_await(sleeper: AgentProxy, shelf: AgentProxy) -> None:
    sleeper.leave_a_task(shelf).result()
    with within(1.0):
        assert sleeper.wait_until_seen("from the task")


def test_a_plain_method_may_run_a_loop_of_its_own_on_one_slot(sleeper: AgentProxy, shelf: AgentProxy) -> None:
    assert sleeper.run_a_loop(shelf, timeout=2.0) == [1, 2]


def test_a_coroutine_that_calls_in_a_circle_is_a_deadlock(client: RpcClient, sleeper: AgentProxy) -> None:
    node = client.create_agent(Node)
    with within(1.0), pytest.raises(DeadlockError, match=f"{sleeper.agent_id}.*{sleeper.agent_id}"):
        sleeper.ask(node, "ask_on_loop", sleeper, "sleep", 0).result()


# ---------------------------------------------------------------- coroutines of two hosts


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[tuple[AgentProxy, AgentProxy, AgentProxy]]:
    """Two agents of one host and one of another; each host has one slot."""
    with client_on_host(Traveller, capacity=1) as here, client_on_host(Traveller, capacity=1) as there:
        yield here.create_agent("Traveller"), here.create_agent("Traveller"), there.create_agent("Traveller")


Hosts = tuple[AgentProxy, AgentProxy, AgentProxy]


@pytest.mark.parametrize("method", ["out", "out_to_plain"])
def test_coroutines_call_from_host_to_host_and_back(two_hosts: Hosts, method: str) -> None:
    here, neighbour, there = two_hosts
    assert getattr(here, method)(there, neighbour).result() == "here"


@pytest.mark.parametrize("method", ["out", "out_to_plain"])
def test_a_circle_of_coroutines_over_two_hosts_is_a_deadlock(two_hosts: Hosts, method: str) -> None:
    here, _, there = two_hosts
    with within(1.0), pytest.raises(DeadlockError, match=here.agent_id):
        getattr(here, method)(there, here).result()


def test_a_coroutine_hands_on_results_and_proxies_of_another_host() -> None:
    with client_on_host(Traveller) as here, client_on_host(Traveller) as there:  # new ones: no connection is open yet
        result: Any = here.create_agent(Traveller).hand_on(there.create_agent(Traveller), "far")
        assert result.result() == "far"
