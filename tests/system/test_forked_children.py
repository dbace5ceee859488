"""Processes that an agent forks: the host's handlers of signals are about the host, and not theirs."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from hosts import MODES, running
from zmqagents import AgentProxy


@pytest.fixture(scope="module", params=MODES)
def forker(request: pytest.FixtureRequest) -> Iterator[AgentProxy]:
    with running(request.param) as host, host.client() as client:
        yield client.create_agent("Forker")


def test_a_process_that_an_agent_forks_ends_by_sigterm(forker: AgentProxy) -> None:
    assert forker.end_one(signal.SIGTERM) == -signal.SIGTERM
    assert forker.end_a_bare_fork() == -signal.SIGTERM


def test_a_process_that_an_agent_forks_ends_by_sigint(forker: AgentProxy) -> None:
    assert forker.end_one(signal.SIGINT) in (1, -signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fork_that_only_computes_ends_by_a_signal_whichever_thread_forked(forker: AgentProxy, number: int) -> None:
    ended = (1, -number) if number == signal.SIGINT else (-number,)  # 1: by KeyboardInterrupt
    assert forker.end_a_busy_fork(number) in ended
    assert forker.end_a_busy_fork_with_a_terminal(number) in ended
    assert forker.end_a_busy_fork_of_the_loop(number).result(timeout=60) in ended


def test_pools_of_forked_processes_end_one_after_another(forker: AgentProxy) -> None:
    assert forker.pools(10, timeout=60) == 10
