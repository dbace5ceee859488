"""What is the constructor's and what is the host's when an agent is made; methods of proxies that travel."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Desk, client_on_host
from zmqagents import AgentBase, AsyncRpcClient, ConfigError, RpcClient, errors
from zmqagents.client.proxy import method_of


class Badge(AgentBase):
    """Has parameters of its own that are called like those of `create_agent`."""

    def __init__(self, agent_id: str = "none", *, agent_options: Any = None, max_concurrency: int = 0) -> None:
        super().__init__()
        self.shown = [agent_id, agent_options, max_concurrency]

    def show(self) -> list[Any]:
        return self.shown

    def apply(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def kind(self, value: Any) -> str:
        return type(value).__name__


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with client_on_host(Badge, Desk, capacity=4) as client:
        client.is_alive()  # connected: the connection is no test's own
        yield client


def test_options_said_apart_leave_every_keyword_to_the_constructor(client: RpcClient) -> None:
    maker = client.options(agent_id="b1", max_concurrency=4)
    badge = maker.create_agent(Badge, "mine", agent_options=[1], max_concurrency=7)
    assert badge.show() == ["mine", [1], 7]
    assert [each["agent_id"] for each in client.get_agent_list()] == ["b1"]
    assert client.delete_agent("b1")


def test_options_work_with_the_name_of_a_class_too(client: RpcClient) -> None:
    badge = client.options(agent_id="b2").create_agent("Badge", agent_id="mine")
    assert badge.show() == ["mine", None, 0]
    assert badge.agent_id == "b2"


def test_options_that_no_agent_can_have_are_refused(client: RpcClient) -> None:
    with pytest.raises(ConfigError, match="max_concurrency"):
        client.options(max_concurrency=0).create_agent(Badge)
    with pytest.raises(ConfigError, match="agent_id"):
        client.options(agent_id="").create_agent(Badge)


def test_a_constructor_gets_the_keywords_that_it_has_as_parameters(client: RpcClient) -> None:
    badge = client.create_agent(Badge, agent_id="mine", agent_options={"a": 1})
    assert badge.show() == ["mine", {"a": 1}, 0]


def test_an_asyncio_client_says_options_apart_too(client: RpcClient) -> None:
    host, _, port = client.address.rpartition(":")

    async def main() -> Any:
        async with AsyncRpcClient(host, int(port)) as mine:
            badge = await mine.options(agent_id="b3", reentrant=True).create_agent(Badge, "mine", max_concurrency=3)
            return badge.agent_id, await badge.show()

    assert asyncio.run(asyncio.wait_for(main(), CALL_TIMEOUT_S)) == ("b3", ["mine", None, 3])


# ---------------------------------------------------------------- methods of proxies


def test_a_method_of_a_proxy_arrives_as_a_method_of_the_same_agent(client: RpcClient) -> None:
    badge: Any = client.create_agent(Badge)
    desk: Any = client.create_agent(Desk)
    assert badge.kind(desk.echo) == "RemoteMethod"
    assert badge.apply(desk.echo, [1]) == [1]
    assert desk.echo({"m": [desk.bump]}) == {"m": [desk.bump]}
    assert desk.echo(desk.bump)() == 1
    assert desk.echo(desk.later)(5).result() == 5


def test_a_method_that_an_asyncio_client_gets_is_awaited(client: RpcClient) -> None:
    host, _, port = client.address.rpartition(":")

    async def main() -> Any:
        async with AsyncRpcClient(host, int(port)) as mine:
            desk = await mine.create_agent(Desk)
            echo = await desk.echo(desk.echo)
            return await echo(3)

    assert asyncio.run(asyncio.wait_for(main(), CALL_TIMEOUT_S)) == 3


def test_a_pickled_or_copied_method_is_the_same_method(client: RpcClient) -> None:
    desk: Any = client.create_agent(Desk)
    for again in (pickle.loads(pickle.dumps(desk.echo)), copy.deepcopy(desk.echo), copy.copy(desk.echo)):
        assert again == desk.echo
        assert hash(again) == hash(desk.echo)
        assert again(1) == 1
    assert desk.echo != desk.bump
    assert desk.echo != client.create_agent(Desk).echo


@pytest.mark.parametrize("data", [None, [], ["x", "echo"], [1, 2, 3]])
def test_what_is_no_method_is_refused(data: Any) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        method_of(data)


def test_a_name_that_the_agent_does_not_have_is_refused(client: RpcClient) -> None:
    desk: Any = client.create_agent(Desk)
    with pytest.raises(errors.RemoteProtocolError):
        method_of([desk.echo.agent, "bump"])
