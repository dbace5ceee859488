"""Agents whose code never comes back, at places where the host itself might have to wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from actors import Desk, client_of, host, within
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient

pytestmark = pytest.mark.timeout(60)

FOR_EVER_S = 1e6


class Clinging(AgentBase):
    """Takes its time to go."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def greet(self) -> str:
        return "hello"

    def __del__(self) -> None:
        time.sleep(self.seconds)


@pytest.fixture
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Desk, Clinging, capacity=2, grace_s=0.5) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        client.is_alive()
        yield client


def test_a_finalizer_that_hangs_holds_up_nobody_else(client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    for _ in range(4):  # more than the host has workers
        agent = client.create_agent(Clinging, FOR_EVER_S)
        assert agent.greet() == "hello"
        with within(2):
            client.delete_agent(agent.agent_id)
            assert client.is_alive()
            assert desk.echo("served") == "served"


def test_agents_whose_finalizers_hang_do_not_keep_their_host(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    for _ in range(3):
        client.create_agent(Clinging, FOR_EVER_S).greet()
    client.delete_agent(client.create_agent(Clinging, FOR_EVER_S).agent_id)
    with within(0.5 + 2):
        server.shutdown(0.5)
    assert not server.is_running
