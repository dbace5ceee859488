"""Parameters of an agent's own constructor that have the names of ours."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest

from actors import Desk, client_on_host
from zmqagents import AgentBase, AsyncRpcClient, CallTimeout, ConfigError, RpcClient, agent


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


class Keywords(AgentBase):
    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def got(self) -> dict[str, Any]:
        return self._fields


class Field(AgentBase, pydantic.BaseModel):
    agent_options: dict[str, int] = {}

    def got(self) -> dict[str, int]:
        return self.agent_options


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Wanting, Own, Labelled, Desk, Keywords, Field) as client:
        client.is_alive()
        yield client


def test_a_constructor_gets_its_own_parameters_of_our_names(client: RpcClient) -> None:
    made = client.create_agent(Wanting, agent_id="x", agent_options={"a": 1}, cls_or_name=2)
    assert made.got == ["x", {"a": 1}, 2]
    named = client.make_agent(Wanting, (), {"agent_id": "x"}, agent_id="named")
    assert (named.got[0], named.agent_id) == ("x", "named")


def test_the_host_decides_by_the_constructor_of_a_class_that_is_named(client: RpcClient) -> None:
    name = f"{__name__}:Wanting"
    odd: Any = {"agent_id": [1], "agent_options": {"a": 1}}
    made = client.create_agent(name, **odd, cls_or_name=2)
    assert made.got == [[1], {"a": 1}, 2]
    named = client.options(agent_id="apart", max_concurrency=2).create_agent(name, agent_id="x")
    assert (named.got[0], named.agent_id) == ("x", "apart")
    ours = client.create_agent("Desk", "d", agent_id="named desk", agent_options={"max_concurrency": 3}, colour="red")
    assert (ours.agent_id, ours.name, ours.colour) == ("named desk", "d", "red")
    assert client.create_agent("Keywords", agent_id="named any", x=1).got() == {"x": 1}
    assert client.options().create_agent("Keywords", agent_id="his").got() == {"agent_id": "his"}


@pytest.mark.parametrize("cls", [Field, "Field"])
def test_a_field_of_an_agent_may_have_our_name(client: RpcClient, cls: Any) -> None:
    assert client.create_agent(cls, agent_options={"a": 1}).got() == {"a": 1}


@pytest.mark.parametrize(("given", "text"), [
    ({"agent_id": 7}, "agent_id: a name is a text, not 7"), ({"agent_id": ""}, "agent_id: names must not be empty"),
    ({"agent_options": {"a": 1}}, "agent_options are max_concurrency"), ({"agent_options": 7}, "agent_options are"),
])  # fmt: skip
def test_what_is_wrong_for_us_is_told_if_it_is_ours(client: RpcClient, given: dict[str, Any], text: str) -> None:
    for cls in (Desk, "Desk"):
        with pytest.raises(ConfigError, match=text):
            client.create_agent(cls, **given)


def test_a_class_that_is_named_gets_its_own_parameters_when_awaited(client: RpcClient) -> None:
    async def make() -> tuple[Any, Any]:
        async with AsyncRpcClient("localhost", int(client.address.rpartition(":")[2])) as other:
            wanting = await other.create_agent("Wanting", agent_id="w")
            keywords = await other.create_agent("Keywords", agent_id="k")
            return await wanting.got, keywords.agent_id

    assert asyncio.run(make()) == (["w", None, None], "k")


def test_options_say_the_deadline_of_the_calls(client: RpcClient) -> None:
    async def call() -> None:
        async with AsyncRpcClient("localhost", int(client.address.rpartition(":")[2])) as other:
            await (await other.options(timeout=2).create_agent(Desk)).nap(30)

    with pytest.raises(CallTimeout, match="nap"):
        asyncio.run(call())
    desk = client.options(timeout=2).create_agent(Desk)
    with pytest.raises(CallTimeout, match="nap"):
        desk.nap(30)
    with pytest.raises(ConfigError, match="timeout"):
        client.options(timeout="soon").create_agent(Desk)  # type: ignore[arg-type]


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
