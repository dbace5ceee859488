"""Methods that never look whether anybody still waits, and whose class allows that they are interrupted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import client_of, host, within
from hosts import eventually
from zmqagents import (
    AgentBase,
    CallCancelled,
    CallTimeout,
    RpcAgentServerLauncher,
    RpcClient,
    async_func,
    concurrent,
    interruptible,
)

pytestmark = pytest.mark.timeout(60)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):  # the net of somebody who wants no trouble
            sum(range(1000))


class Deaf(AgentBase):
    """Never asks whether it was cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.cleaned = 0

    @interruptible
    @async_func
    def spin(self) -> None:
        self.began += 1
        try:
            spin(1e6)
        finally:
            self.cleaned += 1

    @async_func
    def plain_spin(self, seconds: float) -> float:
        self.began += 1
        spin(seconds)
        return seconds

    @interruptible
    def short(self, value: Any) -> Any:
        return value

    @concurrent
    def counts(self) -> tuple[int, int]:
        return self.began, self.cleaned

    @concurrent
    def threads(self) -> int:
        return threading.active_count()


@interruptible
class AllDeaf(Deaf):
    @async_func
    def spin_too(self) -> None:
        self.began += 1
        spin(1e6)


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Deaf, AllDeaf, capacity=2, grace_s=0.2) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        yield client


def has_begun(deaf: Any, times: int) -> bool:
    return eventually(lambda: deaf.counts()[0] == times, 10)


def test_a_method_that_ignores_its_cancel_is_interrupted_and_its_agent_serves_again(client: RpcClient) -> None:
    deaf: Any = client.create_agent(Deaf)
    for turn in range(1, 4):  # with two workers: each thread is of use afterwards
        result = deaf.spin()
        assert has_begun(deaf, turn)
        result.cancel()
        with within(5):
            assert deaf.short(turn) == turn
        assert deaf.counts() == (turn, turn)


def test_a_deadline_interrupts_as_well(client: RpcClient) -> None:
    deaf: Any = client.create_agent(Deaf)
    with pytest.raises((CallTimeout, CallCancelled)), within(3):
        deaf.spin(timeout=0.2).result()
    with within(5):
        assert deaf.short(1) == 1


def test_a_class_may_say_so_for_all_its_methods(client: RpcClient) -> None:
    deaf: Any = client.create_agent(AllDeaf)
    result = deaf.spin_too()
    assert has_begun(deaf, 1)
    result.cancel()
    with within(5):
        assert deaf.short(1) == 1


def test_a_method_without_the_mark_goes_on_to_its_end(client: RpcClient) -> None:
    deaf: Any = client.create_agent(Deaf)
    result = deaf.plain_spin(0.6)
    assert has_begun(deaf, 1)
    start = time.monotonic()
    result.cancel()
    assert deaf.short(1) == 1
    assert time.monotonic() - start > 0.2


def test_calls_that_are_cancelled_just_as_they_end_harm_no_other(client: RpcClient) -> None:
    """The exception must not hit the host's own code, nor the next call of the same thread."""
    deaf: Any = client.create_agent(Deaf)
    for value in range(300):
        result = deaf.short.aio(value)
        time.sleep(value % 7 * 0.0002)
        result.cancel()
        assert deaf.short(value) == value
    assert client.is_alive()
