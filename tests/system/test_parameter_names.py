"""Parameters of an agent's own constructor that have the names of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from actors import client_on_host
from zmqagents import AgentBase, RpcClient, agent


class Wanting(AgentBase):
    def __init__(self, agent_id: Any = None, agent_options: Any = None, cls_or_name: Any = None) -> None:
        super().__init__()
        self.got = [agent_id, agent_options, cls_or_name]


@agent
class Own:
    def agent_id(self) -> str:
        return "mine"


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Wanting, Own) as client:
        client.is_alive()
        yield client


def test_a_constructor_gets_its_own_parameters_of_our_names(client: RpcClient) -> None:
    made = client.create_agent(Wanting, agent_id="x", agent_options={"a": 1}, cls_or_name=2)
    assert made.got == ["x", {"a": 1}, 2]
    named = client.make_agent(Wanting, (), {"agent_id": "x"}, agent_id="named")
    assert (named.got[0], named.agent_id) == ("x", "named")


def test_an_agent_made_elsewhere_gets_its_own_parameters_of_our_names(client: RpcClient) -> None:
    port = int(client.address.rpartition(":")[2])
    for name in ("agent_id", "agent_options", "cls_or_name"):
        assert {"a": 1} in Wanting(**{name: {"a": 1}}).to_dist("localhost", port).got


def test_a_plain_class_may_have_a_method_of_our_name(client: RpcClient) -> None:
    assert client.create_agent(Own).agent_id() == "mine"
