"""How far a call has come: its code tells, and its caller, another one and the shell can see it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from actors import host
from hosts import as_server, eventually
from zmqagents import (
    AgentBase,
    AsyncRpcClient,
    CallTimeout,
    Progress,
    RpcAgentServerLauncher,
    RpcClient,
    async_func,
    concurrent,
    current_call,
    progress,
)

pytestmark = pytest.mark.program
WITHIN_S = 10.0


class Trainer(AgentBase):
    """Tells how far it is, and stays there until `go_on`."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self.held = threading.Event()

    @async_func
    def train(self, *told: Any) -> str:
        call = current_call()
        assert call is not None
        for each in told:
            call.progress(*each)
        assert self.held.wait(WITHIN_S)
        self.held.clear()
        return "trained"

    async def read(self, done: float, total: float) -> str:
        call = current_call()
        assert call is not None
        call.progress(done, total)
        while not self.held.is_set():
            await asyncio.sleep(0.01)
        return "read"

    @concurrent
    def go_on(self) -> None:
        self.held.set()

    def quiet(self) -> None:
        """Tell nothing."""

    @async_func
    def odd(self, *told: Any) -> None:
        call = current_call()
        assert call is not None
        call.progress(*told)

    def train_other(self, other: Any) -> tuple[float, float | None, str]:
        result = other.train((3, 4, "elsewhere"))
        assert eventually(lambda: result.progress is not None, WITHIN_S)
        other.go_on()
        assert result.result() == "trained"
        seen: Progress = result.progress
        return seen.done, seen.total, seen.text


@pytest.fixture(scope="module", params=["thread", "pool"])
def server(request: pytest.FixtureRequest) -> Iterator[RpcAgentServerLauncher]:
    with host(Trainer, isolation=request.param) as launched:
        yield launched


@pytest.fixture
def trainer(client: RpcClient) -> Any:
    return client.create_agent(Trainer)


def told(result: Any, expected: Progress | None) -> bool:
    return eventually(lambda: result.progress == expected, WITHIN_S)


def test_a_result_shows_what_its_call_has_told_last(trainer: Any) -> None:
    result = trainer.train((1, 10), (2, 10, "epoch 2"), (2.5, 10, "epoch 2, half"))
    assert told(result, Progress(2.5, 10, "epoch 2, half"))  # the last one, however quick they came
    assert result.progress.fraction == 0.25
    assert str(result.progress) == "2.5 of 10 epoch 2, half"
    trainer.go_on()
    assert result.result() == "trained"
    assert result.progress == Progress(2.5, 10, "epoch 2, half")


def test_a_coroutine_tells_and_an_asyncio_caller_sees_it(server: RpcAgentServerLauncher) -> None:
    async def main() -> Progress | None:
        async with AsyncRpcClient(server.host, server.port) as client:
            trainer = await client.create_agent(Trainer)
            result = trainer.read(1, 3)
            while result.progress is None:
                await asyncio.sleep(0.01)
            await trainer.go_on()
            assert await result == "read"
            seen: Progress | None = result.progress
            return seen

    assert asyncio.run(asyncio.wait_for(main(), WITHIN_S)) == Progress(1, 3)


def test_a_result_that_was_found_by_its_id_hears_what_is_told_from_then_on(client: RpcClient, trainer: Any) -> None:
    first, second = trainer.train(), trainer.train((1, 2, "now"))
    watched = client.get_result(second.task_id)
    client.get_call_list()  # the host knows by now that somebody watches
    trainer.go_on()  # the second call begins only now
    assert first.result() == "trained"
    assert told(second, Progress(1, 2, "now"))
    assert told(watched, Progress(1, 2, "now"))
    trainer.go_on()
    assert watched.result() == "trained"
    assert first.progress is None


def test_an_agent_sees_how_far_the_call_that_it_has_made_is(client: RpcClient, trainer: Any) -> None:
    assert tuple(client.create_agent(Trainer).train_other(trainer)) == (3, 4, "elsewhere")


def test_the_list_of_calls_shows_it(server: RpcAgentServerLauncher, client: RpcClient, trainer: Any) -> None:
    result = trainer.train((3, 4, "packing"))
    assert told(result, Progress(3, 4, "packing"))
    (call,) = client.get_call_list()
    assert call["progress"] == [3, 4, "packing"]
    assert "3 of 4 packing" in as_server("calls", port=server.port).stdout
    trainer.go_on()
    result.result()
    trainer.quiet()
    assert client.get_call_list() == []


def test_a_bar_moves_with_calls_that_are_under_way(trainer: Any) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if "1 of 2 halfway" in text:
                trainer.go_on.send()
            return super().write(text)

    screen = Screen()
    progress([trainer.train((1, 2, "halfway"))], "training", timeout=WITHIN_S, file=screen)
    assert "1 of 1" in screen.getvalue()


def test_a_bar_ends_with_its_time(trainer: Any) -> None:
    with pytest.raises(CallTimeout, match=r"1 results were not finished within 0\.05 s"):
        progress([trainer.train()], timeout=0.05)
    trainer.go_on()


@pytest.mark.parametrize(
    ("told", "error"),
    [(("x",), ValueError), ((float("nan"),), ValueError), ((1, float("inf")), ValueError), ((10**400,), ValueError),
     ((1, 2, 3), TypeError), (([],), TypeError)],
)  # fmt: skip
def test_what_is_no_progress_is_refused(trainer: Any, told: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        trainer.odd(*told).result()


def test_a_long_text_is_cut_and_numbers_of_any_size_arrive(trainer: Any) -> None:
    seen = trainer.train((10**30, None, "x" * 1000))
    assert told(seen, Progress(1e30, None, "x" * 200))
    assert seen.progress.fraction is None
    trainer.go_on()
