"""Long arguments of one user are read one after the other, and never wait for each other without end."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, client_of, host, within
from hosts import eventually
from slow_values import SlowToRead
from zmqagents import AgentBase, CallTimeout, async_func, register_type
from zmqagents.codec import SHORT_BYTES
from zmqagents.execution.turns import turn_of
from zmqagents.scheduler import shares
from zmqagents.scheduler.shares import Turn

pytestmark = pytest.mark.timeout(60)


@dataclass
class Asking:
    """A value that calls ``latch.hold(answer)`` when it is made where it arrives."""

    latch: Any
    answer: Any


def _ask(data: list[Any]) -> Asking:
    latch, answer = data
    return Asking(latch, latch.hold(answer))


register_type(Asking, to_data=lambda value: [value.latch, value.answer], from_data=_ask)


class Talker(AgentBase):
    """Has coroutines of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self._notes = 0

    async def say(self, words: list[int]) -> AsyncIterator[int]:
        for word in words:
            yield word

    async def fail(self, words: list[int]) -> None:
        raise ValueError("no more")

    async def ask(self, other: Any, words: list[int]) -> list[int]:
        answer: list[int] = await other.soon(words)
        return answer

    @async_func
    def note(self, words: list[int]) -> None:
        self._notes += 1

    async def note_on_loop(self, words: list[int]) -> None:
        self._notes += 1

    def notes(self) -> int:
        return self._notes


LONG = list(range(SHORT_BYTES))  # takes more than a byte for each


def never() -> bool:
    return False


def test_one_thread_at_a_time_has_the_turn_of_a_user() -> None:
    turn = Turn()
    inside: list[int] = []
    most: list[int] = []

    def read() -> None:
        for _ in range(100):
            with turn_of(turn, never):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 800


def test_a_thread_that_keeps_the_turn_for_too_long_loses_it_to_one_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "TURN_S", 0.1)
    turn, first_may_go, second_may_go = Turn(), threading.Event(), threading.Event()
    order: list[str] = []

    def read(name: str, may_go: threading.Event) -> None:
        with turn_of(turn, never):
            order.append(name)
            may_go.wait(CALL_TIMEOUT_S)

    first = threading.Thread(target=read, args=("first", first_may_go))
    first.start()
    assert eventually(lambda: order == ["first"], CALL_TIMEOUT_S)
    second = threading.Thread(target=read, args=("second", second_may_go))
    second.start()
    assert eventually(lambda: order == ["first", "second"], CALL_TIMEOUT_S)
    monkeypatch.setattr(shares, "TURN_S", 1e6)
    third = threading.Thread(target=read, args=("third", second_may_go))
    third.start()
    first_may_go.set()
    first.join()  # what it gives back is no longer its own
    assert order == ["first", "second"]
    second_may_go.set()
    second.join()
    third.join()
    assert order == ["first", "second", "third"]


def test_a_thread_in_its_turn_does_not_wait_for_it_again() -> None:
    turn = Turn()
    with turn_of(turn, never), within(CALL_TIMEOUT_S / 2), turn_of(turn, never):
        pass


def test_a_thread_whose_call_is_over_waits_for_no_turn() -> None:
    turn = Turn()
    with turn_of(turn, never):
        waiting = threading.Thread(target=turn.take, args=(lambda: True,))
        waiting.start()
        waiting.join(CALL_TIMEOUT_S / 2)
        assert not waiting.is_alive()


def test_long_arguments_that_wait_for_a_result_of_another_host_keep_no_others_waiting() -> None:
    with host(Latch) as first, host(Desk) as second, client_of(first) as one, client_of(second) as two:
        latch = one.create_agent(Latch)
        waiting, free = two.create_agent(Desk), two.create_agent(Desk)
        late = latch.hold_async("come")
        assert latch.entered() == 1
        answer = waiting.later([LONG, late])
        with within(CALL_TIMEOUT_S / 2):
            for _ in range(20):
                assert free.echo(LONG) == LONG
        assert not answer.done()
        latch.release()
        assert answer.result() == [LONG, "come"]


def test_long_arguments_of_many_calls_arrive_as_they_were_sent() -> None:
    with host(Desk) as launcher, client_of(launcher) as client:
        desks = [client.create_agent(Desk) for _ in range(8)]
        answers = [(n, desks[n % 8].later([n, *LONG])) for n in range(64)]
        assert all(answer.result() == [n, *LONG] for n, answer in answers)


@pytest.mark.parametrize("isolation", ["thread", "pool"])
def test_coroutines_get_long_arguments_and_long_results_as_they_were_sent(isolation: str) -> None:
    with host(Desk, Talker, isolation=isolation) as launcher, client_of(launcher) as client:
        desk: Any = client.create_agent(Desk)
        talker: Any = client.create_agent(Talker)
        assert desk.soon(LONG).result() == LONG
        assert desk.at_once(LONG) == LONG
        assert desk.soon(desk.later(LONG)).result() == LONG
        assert list(talker.say(LONG)) == LONG
        assert talker.ask(desk, LONG).result() == LONG
        with pytest.raises(ValueError, match="no more"):
            talker.fail(LONG).result()


@pytest.mark.parametrize("method", ["note", "note_on_loop"])
@pytest.mark.parametrize("end", ["deadline", "cancel"])
def test_a_call_that_is_over_waits_for_no_turn_and_does_not_run(method: str, end: str) -> None:
    with host(Desk, Talker) as launcher, client_of(launcher) as client:
        desk, talker = client.create_agent(Desk), client.create_agent(Talker)
        reading = desk.later([LONG, SlowToRead(4.0)])
        assert eventually(lambda: client.get_server_info()["running"] == 1, CALL_TIMEOUT_S)
        waiting = getattr(talker, method).with_timeout(0.3 if end == "deadline" else None)(LONG)
        assert eventually(lambda: client.get_server_info()["running"] == 2, CALL_TIMEOUT_S)
        if end == "cancel":
            waiting.cancel()
        with pytest.raises(CallTimeout if end == "deadline" else CancelledError):
            waiting.result(2.0)
        assert talker.notes() == 0  # the agent's turn is free
        assert not reading.done()
        reading.result()
        assert talker.notes() == 0


def test_values_whose_making_calls_an_agent_keep_no_others_waiting() -> None:
    with host(Desk, Latch) as launcher, client_of(launcher) as client:
        desk, free, latch = client.create_agent(Desk), client.create_agent(Desk), client.create_agent(Latch)
        reading = desk.later([LONG, Asking(latch, LONG)])
        assert latch.entered() == 1
        with within(CALL_TIMEOUT_S / 4):
            for _ in range(20):
                assert free.echo(LONG) == LONG
        assert not reading.done()
        latch.release()
        assert reading.result()[1].answer == LONG
