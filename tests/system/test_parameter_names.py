"""Parameters of an agent's own constructor that have the names of ours."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from actors import Desk, client_on_host
from zmqagents import AgentBase, AsyncRpcClient, RpcClient, agent


class Wanting(AgentBase):
    def __init__(self, agent_id: Any = None, agent_options: Any = None, cls_or_name: Any = None) -> None:
        super().__init__()
        self.got = [agent_id, agent_options, cls_or_name]


@agent
class Own:
    def agent_id(self) -> str:
        return "mine"


@agent
class Labelled:
    def __init__(self) -> None:
        self.agent_id = "customer-7"

    def reply(self, x: Any, **options: Any) -> Any:
        return [x, options]


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Wanting, Own, Labelled, Desk) as client:
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


def test_a_plain_class_may_have_an_attribute_of_our_name(client: RpcClient) -> None:
    made = client.create_agent(Labelled, agent_id="one")
    assert made.agent_id == "customer-7"
    assert client.get_agent("one").agent_id == "customer-7"
    assert pickle.loads(pickle.dumps(made)).agent_id == "customer-7"
    assert client.create_agent(Desk).echo(made).agent_id == "customer-7"
    assert "one" in repr(made)
    assert made.reply(1) == [1, {}]
    assert client.delete_agent("one")


def test_an_attribute_of_our_name_is_awaited_as_others_are(client: RpcClient) -> None:
    async def read() -> Any:
        async with AsyncRpcClient("localhost", int(client.address.rpartition(":")[2])) as other:
            return await (await other.create_agent(Labelled)).agent_id

    assert asyncio.run(read()) == "customer-7"


def test_a_deadline_is_said_apart_where_keyword_arguments_take_any_name(client: RpcClient) -> None:
    made = client.create_agent(Labelled)
    assert made.reply(1, timeout=5) == [1, {}]
    assert made.reply.with_timeout(5)(1, timeout=60) == [1, {"timeout": 60}]  # type: ignore[attr-defined]
    deaf: Any = client.create_agent(Desk).echo
    assert deaf.with_timeout(5)(1, timeout=60) == 1  # it takes none: the later deadline
