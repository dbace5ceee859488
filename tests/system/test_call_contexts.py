"""Context variables: what one call sets, no other call sees, wherever the two run."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, client_on_host, is_router
from zmqagents import AgentBase, AgentProxy, RpcClient, async_func, concurrent, current_call
from zmqagents.agents.timing import LEAST_RUNS

pytestmark = pytest.mark.timeout(60)

SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
SEEN.set("by the program that started the host")


class Spy(AgentBase):
    """Sets a variable in every way in which an agent's code runs, and tells what it sees."""

    def __init__(self, leave: str = "") -> None:
        super().__init__()
        self.found = SEEN.get()
        self.released = asyncio.Event()
        self.called_back = threading.Event()
        if leave:
            SEEN.set(leave)

    def get(self) -> str:
        return SEEN.get()

    async def get_on_loop(self) -> str:
        return SEEN.get()

    @property
    def seen(self) -> str:
        return SEEN.get()

    def get_and_where(self) -> tuple[str, str]:
        return SEEN.get(), threading.current_thread().name

    def set(self) -> str:
        SEEN.set("set")
        return SEEN.get()

    @async_func
    def set_later(self) -> str:
        return self.set()

    async def set_on_loop(self) -> str:
        return self.set()

    @property
    def set_by_reading(self) -> str:
        return self.set()

    def fail(self) -> None:
        self.set()
        raise ValueError("after it was set")

    def round_to_two(self) -> str:
        """The digits of decimals are kept in such a variable."""
        decimal.getcontext().prec = 2
        return str(decimal.Decimal(2) / 3)

    def thirds(self) -> str:
        return str(decimal.Decimal(2) / 3)

    def count(self, n: int) -> Iterator[tuple[int, str]]:
        for i in range(n):
            SEEN.set(f"item {i}")
            yield i, SEEN.get()

    def before_and_after(self, n: int) -> Iterator[str]:
        SEEN.set("from the first step")
        for _ in range(n):
            yield SEEN.get()

    async def before_and_after_on_loop(self, n: int) -> AsyncIterator[str]:
        SEEN.set("from the first step")
        for _ in range(n):
            yield SEEN.get()

    def give_a_coroutine(self) -> Any:
        SEEN.set("by the method")

        async def rest() -> list[Any]:
            call = current_call()
            return [SEEN.get(), call and call.method]

        return rest()

    @concurrent
    async def hold(self) -> None:
        await self.released.wait()

    @concurrent
    async def release(self) -> None:
        self.released.set()

    def set_in_callback(self, other: Any) -> str:
        self.called_back.clear()
        other.hold().add_done_callback(self._set)
        other.release().result()
        assert self.called_back.wait(CALL_TIMEOUT_S)
        return SEEN.get()

    def _set(self, _: Any) -> None:
        self.called_back_with = SEEN.get()
        SEEN.set("by a callback")
        self.called_back.set()


@pytest.fixture(scope="module", params=["fast lane", "workers"])
def client(request: pytest.FixtureRequest) -> Iterator[RpcClient]:
    """A client of a host with one worker, which runs all that the router thread does not."""
    with client_on_host(Spy, capacity=1, fast_lane=request.param == "fast lane") as client:
        client.is_alive()
        yield client


@pytest.fixture
def spy(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Spy)
    return proxy


@pytest.fixture
def other(client: RpcClient) -> AgentProxy:
    proxy: Any = client.create_agent(Spy)
    return proxy


def all_that_is_seen(spy: AgentProxy) -> set[str]:
    return {spy.get(), spy.get_on_loop().result(CALL_TIMEOUT_S), spy.seen}


SETTERS: dict[str, Any] = {
    "a method": lambda spy: spy.set(),
    "an async_func method": lambda spy: spy.set_later().result(CALL_TIMEOUT_S),
    "a coroutine": lambda spy: spy.set_on_loop().result(CALL_TIMEOUT_S),
    "a property": lambda spy: spy.set_by_reading,
    "a generator": lambda spy: list(spy.before_and_after(3)),
    "an async generator": lambda spy: list(spy.before_and_after_on_loop(3)),
    "a method that gives a coroutine": lambda spy: spy.give_a_coroutine(),
}


@pytest.mark.parametrize("setter", SETTERS)
def test_what_a_call_sets_no_other_call_sees(spy: AgentProxy, other: AgentProxy, setter: str) -> None:
    for _ in range(3 * LEAST_RUNS):  # until short methods are run by the router thread, and somewhat longer
        assert SETTERS[setter](spy)
        assert all_that_is_seen(spy) == all_that_is_seen(other) == {"nothing"}


def test_what_a_call_that_fails_has_set_no_other_call_sees(spy: AgentProxy) -> None:
    for _ in range(LEAST_RUNS):
        with pytest.raises(ValueError, match="after it was set"):
            spy.fail()
        assert spy.get() == "nothing"


def test_what_a_constructor_sets_no_call_sees(client: RpcClient) -> None:
    for _ in range(3):
        assert all_that_is_seen(client.create_agent("Spy", "left behind")) == {"nothing"}
        assert client.create_agent("Spy").found == "nothing"


def test_the_digits_of_decimals_are_those_of_the_call(spy: AgentProxy, other: AgentProxy) -> None:
    for _ in range(3 * LEAST_RUNS):
        assert spy.round_to_two() == "0.67"
        assert spy.thirds() == other.thirds() == "0." + 27 * "6" + "7"


@pytest.mark.parametrize("method", ["before_and_after", "before_and_after_on_loop"])
def test_a_stream_keeps_its_context_for_all_its_items(spy: AgentProxy, other: AgentProxy, method: str) -> None:
    items = 200  # more than a window: it waits for its reader, and other calls run meanwhile
    with getattr(spy, method)(items) as stream:
        for item in stream:
            assert item == "from the first step"
            items -= 1
            if items % 50 == 0:
                assert all_that_is_seen(other) == {"nothing"}
    assert items == 0


def test_two_streams_have_a_context_each(client: RpcClient) -> None:
    one, two = client.create_agent("Spy"), client.create_agent("Spy")
    with one.count(150) as first, two.before_and_after(150) as second:
        for i, (mine, others) in enumerate(zip(first, second, strict=True)):
            assert (mine, others) == ((i, f"item {i}"), "from the first step")


def test_the_coroutine_that_a_method_gives_goes_on_in_its_context(spy: AgentProxy) -> None:
    assert spy.give_a_coroutine() == ["by the method", "give_a_coroutine"]


def test_a_done_callback_shares_its_variables_with_no_call(client: RpcClient, spy: AgentProxy) -> None:
    for _ in range(3):
        assert spy.set_in_callback(client.create_agent(Spy)) == "nothing"
        assert spy.called_back_with == "nothing"
        assert all_that_is_seen(spy) == {"nothing"}


def test_a_done_callback_of_a_program_shares_its_variables_with_none(client: RpcClient, spy: AgentProxy) -> None:
    SEEN.set("by this program")
    seen: list[str] = []

    def note(_: Any) -> None:
        seen.append(SEEN.get())
        SEEN.set("by a callback")

    for count in range(1, 20):
        holder: Any = client.create_agent(Spy)
        held = holder.hold()
        held.add_done_callback(note)
        holder.release()
        while len(seen) < count:
            assert spy.get() == "nothing"  # this thread leads the connection meanwhile, and runs the callback
    assert set(seen) == {"nothing"}
    assert SEEN.get() == "by this program"


def test_the_methods_above_ran_on_the_fast_lane_too(client: RpcClient, spy: AgentProxy, request: Any) -> None:
    places = {spy.get_and_where()[1] for _ in range(20 * LEAST_RUNS)}
    assert any(map(is_router, places)) == (request.node.callspec.params["client"] == "fast lane")
