"""A bug of the package that one message meets: the host serves the others on. `Broken` puts such a bug into one."""

from __future__ import annotations

import os
from typing import Any

import pytest

from actors import client_of, host, within
from hosts import eventually
from zmqagents import AgentBase
from zmqagents.broker.broker import MAX_FAILURES
from zmqagents.wire.unix_listener import UnixListener

pytestmark = pytest.mark.timeout(60)


class Broken(AgentBase):
    """Breaks the router loop of its own host."""

    def fail(self, times: int) -> None:
        """The next ``times`` turns that read messages raise instead."""
        read, left = UnixListener.read, times

        def raises(listener: UnixListener, limit: int, now: float, end: float) -> None:
            nonlocal left
            if not left:
                UnixListener.read = read  # type: ignore[method-assign]
                read(listener, limit, now, end)
                return
            left -= 1
            raise ZeroDivisionError("a bug")

        UnixListener.read = raises  # type: ignore[method-assign, assignment]

    def echo(self, value: Any) -> Any:
        return value


@pytest.mark.parametrize("times", [1, MAX_FAILURES])
def test_a_router_loop_that_fails_begins_anew_and_nothing_is_lost(times: int) -> None:
    with host(Broken, isolation="thread") as server, client_of(server, transport="ipc") as client:
        agent: Any = client.create_agent(Broken)
        with within(10):
            agent.fail(times)
            assert [agent.echo(number) for number in range(20)] == list(range(20))
        assert server.is_running


def test_a_router_loop_that_fails_in_every_turn_ends_the_host_which_says_why() -> None:
    with host(Broken, isolation="thread") as server, client_of(server, transport="ipc") as client:
        agent: Any = client.create_agent(Broken)
        agent.fail(MAX_FAILURES + 1)
        lost = agent.echo.aio(1, timeout=10)
        assert isinstance(lost.exception(20), ConnectionError)
        assert eventually(lambda: not server.is_running, 10)
        assert not os.path.exists(server.ipc or "")
