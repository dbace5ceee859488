"""What a look at a result does: a name that it does not have, a listing, a task, a failure that nobody sees."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, within
from zmqagents import AgentProxy, AsyncResult, AsyncRpcClient, RpcAgentServerLauncher, RpcClient, as_completed

LOG = "zmqagents.client.result"


@pytest.fixture
def held(latch: AgentProxy) -> AsyncResult[Any]:
    """The result of a call that has begun and does not end by itself."""
    result: AsyncResult[Any] = latch.hold_async([1, 2, 3])
    latch.entered()
    return result


@pytest.mark.parametrize("name", ["index", "reslt", "shape", "_repr_html_", "__array__", "chunk", "deliver"])
def test_a_name_that_a_result_does_not_have_is_an_attribute_error_at_once(held: AsyncResult[Any], name: str) -> None:
    with within(0.5):
        assert not hasattr(held, name)
        with pytest.raises(AttributeError, match=f"no attribute '{name}'") as caught:
            getattr(held, name)
    assert name.startswith("_") or f".value.{name}" in str(caught.value)


def test_reading_all_that_a_result_lists_does_not_wait(held: AsyncResult[Any]) -> None:
    with within(0.5):
        assert dict(inspect.getmembers(held))["task_id"] == held.task_id
        assert repr(held).startswith("<AsyncResult")
    assert dir(held) == sorted(name for name in dir(held) if not name.startswith("_"))
    assert set(dir(held)) > {"result", "exception", "cancel", "done", "task_id"}


def test_the_value_of_a_result_is_waited_for(latch: AgentProxy, held: AsyncResult[Any]) -> None:
    latch.release()
    assert held.value == [1, 2, 3]
    assert held.value.index(3) == 2


def test_the_value_of_a_failed_result_is_its_error(desk: AgentProxy) -> None:
    with pytest.raises(TypeError):
        _ = desk.plus(1, "x").value


# ---------------------------------------------------------------- tasks


def run(launcher: RpcAgentServerLauncher, main: Callable[[Any], Any]) -> Any:
    async def with_desk() -> Any:
        async with AsyncRpcClient(launcher.host, launcher.port) as client:
            return await asyncio.wait_for(main(await client.create_agent(Desk)), CALL_TIMEOUT_S)

    return asyncio.run(with_desk())


def test_a_result_can_be_made_a_task(server: RpcAgentServerLauncher) -> None:
    async def main(desk: Any) -> Any:
        task = asyncio.create_task(desk.echo(1))
        failing = asyncio.create_task(desk.add(1, "x"))
        with pytest.raises(TypeError):
            await failing
        return await task

    assert run(server, main) == 1


def test_a_result_may_be_in_several_tasks_and_awaited_beside_them(server: RpcAgentServerLauncher) -> None:
    async def main(desk: Any) -> Any:
        result = desk.nap(0.05)
        tasks = [asyncio.create_task(result), asyncio.create_task(result)]
        return await asyncio.gather(result, *tasks, desk.echo(2), asyncio.ensure_future(result))

    assert run(server, main) == [0.05, 0.05, 0.05, 2, 0.05]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups are new in Python 3.11")
def test_a_task_group_takes_results(server: RpcAgentServerLauncher) -> None:
    async def main(desk: Any) -> Any:
        async with vars(asyncio)["TaskGroup"]() as group:
            tasks = [group.create_task(desk.echo(number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert run(server, main) == [0, 1, 2]


@pytest.mark.parametrize("begun", [True, False])
def test_a_task_that_is_cancelled_cancels_its_call(server: RpcAgentServerLauncher, begun: bool) -> None:
    async def main(desk: Any) -> Any:
        result = desk.nap(60)
        task = asyncio.create_task(result)
        if begun:
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return result.cancelled()

    assert run(server, main) is True


# ---------------------------------------------------------------- several


def test_as_completed_says_how_many_are_to_come(desk: AgentProxy) -> None:
    coming = as_completed([desk.later(number) for number in range(3)], timeout=CALL_TIMEOUT_S)
    assert len(coming) == 3
    assert next(coming).result() in range(3)
    assert len(coming) == 2
    assert len(list(coming)) == 2
    assert len(coming) == 0


# ---------------------------------------------------------------- failures that nobody sees


def failed(desk: AgentProxy) -> AsyncResult[Any]:
    result: AsyncResult[Any] = desk.plus(1, "x")
    with within(CALL_TIMEOUT_S):
        while not result.done():
            pass
    return result


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    gc.collect()
    return [record.getMessage() for record in caplog.records if record.name == LOG]


def test_a_failure_that_nobody_has_looked_at_is_told_once_in_the_log(
    desk: AgentProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, LOG):
        result = failed(desk)
        assert lines(caplog) == []
        del result
        assert lines(caplog) == [f"{desk.agent_id}.plus failed, and nobody has looked at its result"]
        assert "unsupported operand" in caplog.text


def _read(result: AsyncResult[Any]) -> None:
    with pytest.raises(TypeError):
        result.result()


def _await(result: AsyncResult[Any]) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await result

    asyncio.run(main())


@pytest.mark.parametrize("look", [_read, _await, AsyncResult.exception, pickle.dumps])
def test_a_failure_that_somebody_has_looked_at_or_passed_on_is_not_told(
    desk: AgentProxy, caplog: pytest.LogCaptureFixture, look: Callable[[AsyncResult[Any]], object]
) -> None:
    with caplog.at_level(logging.ERROR, LOG):
        look(failed(desk))
        assert lines(caplog) == []


def test_a_result_that_is_passed_on_before_it_fails_is_not_told(
    client: RpcClient, desk: AgentProxy, caplog: pytest.LogCaptureFixture
) -> None:
    latch: Any = client.create_agent(Latch)
    with caplog.at_level(logging.ERROR, LOG):
        failing = desk.plus(latch.hold_async(1), "x")
        depending = desk.later(failing)
        del failing
        latch.release()
        assert isinstance(depending.exception(CALL_TIMEOUT_S), TypeError)
        del depending
        assert lines(caplog) == []


def test_a_cancelled_result_is_not_told(held: AsyncResult[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, LOG):
        held.cancel()
        del held
        assert lines(caplog) == []
