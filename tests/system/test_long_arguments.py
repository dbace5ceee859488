"""Long arguments of one user are read one after the other, and never wait for each other without end."""

from __future__ import annotations

import threading

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, client_of, host, within
from zmqagents.codec import SHORT_BYTES
from zmqagents.execution import turns
from zmqagents.execution.turns import turn_of

pytestmark = pytest.mark.timeout(60)
LONG = list(range(SHORT_BYTES))  # takes more than a byte for each


def test_one_thread_at_a_time_has_the_turn_of_a_user() -> None:
    reading = threading.Lock()
    inside: list[int] = []
    most: list[int] = []

    def read() -> None:
        for _ in range(100):
            with turn_of(reading):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 800


def test_a_thread_that_gets_no_turn_goes_on_without_and_takes_none_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_WAIT_S", 0.01)
    reading = threading.Lock()
    with turn_of(reading):
        with turn_of(reading):
            pass
        assert reading.locked()
    assert not reading.locked()


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
