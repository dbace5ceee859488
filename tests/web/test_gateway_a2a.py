"""Agents of the Agent2Agent protocol, by the official client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.helpers import get_artifact_text, get_data_parts, new_data_message, new_text_message
from a2a.types import a2a_pb2 as proto

from gateway_world import World, gateway, in_loop

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]
USER = proto.Role.ROLE_USER
State = proto.TaskState


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway() as world:
        yield world


@contextlib.asynccontextmanager
async def agent(world: World, agent_id: str, *, streaming: bool = True, token: str | None = None) -> AsyncIterator[Any]:
    headers = {"authorization": f"Bearer {world.token if token is None else token}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        card = await A2ACardResolver(http, f"{world.url}/a2a/{agent_id}").get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http, streaming=streaming)).create(card)
        yield client


def asking(message: Any, *, at_once: bool = False) -> Any:
    configuration = proto.SendMessageConfiguration(return_immediately=at_once)
    return proto.SendMessageRequest(message=message, configuration=configuration)


async def last_task(client: Any, request: Any) -> Any:
    task = None
    async for response in client.send_message(request):
        if response.HasField("task"):
            task = response.task
    return task


@in_loop
async def test_the_card_of_an_agent_says_what_it_can(world: World) -> None:
    async with httpx.AsyncClient(headers=world.bearer) as http:
        card = await A2ACardResolver(http, f"{world.url}/a2a/shop").get_agent_card()
    assert (card.name, card.description) == ("shop", "Sells things.")
    assert {skill.id: skill.description for skill in card.skills}["add"] == "The sum of two numbers."
    assert card.capabilities.streaming
    assert card.supported_interfaces[0].url == f"{world.url}/a2a/shop"
    assert card.security_schemes["bearer"].http_auth_security_scheme.scheme == "bearer"


@in_loop
async def test_a_message_is_answered_by_a_task(world: World) -> None:
    async with agent(world, "talker", streaming=False) as client:
        task = await last_task(client, asking(new_text_message("hello there", role=USER)))
    assert task.status.state == State.TASK_STATE_COMPLETED
    assert [get_artifact_text(each, "") for each in task.artifacts] == ["hello there "]


@in_loop
async def test_an_answer_comes_piece_by_piece(world: World) -> None:
    pieces, states = [], []
    async with agent(world, "talker") as client:
        async for response in client.send_message(asking(new_text_message("one two", role=USER))):
            if response.HasField("artifact_update"):
                pieces.append(get_artifact_text(response.artifact_update.artifact))
            if response.HasField("status_update"):
                states.append(response.status_update.status.state)
    assert pieces == ["one ", "two "]
    assert states == [State.TASK_STATE_WORKING, State.TASK_STATE_COMPLETED]


@in_loop
async def test_a_data_part_calls_a_method(world: World) -> None:
    async with agent(world, "shop", streaming=False) as client:
        order = {"method": "add", "arguments": {"a": 2, "b": 3}}
        task = await last_task(client, asking(new_data_message(order, role=USER)))
        assert [get_data_parts(each.parts) for each in task.artifacts] == [[5]]
        task = await last_task(
            client, asking(new_data_message({"method": "ticks", "arguments": {"count": 2}}, role=USER))
        )
        assert [get_data_parts(each.parts) for each in task.artifacts] == [[0], [1]]
        task = await last_task(client, asking(new_data_message({"method": "fail"}, role=USER)))
    assert task.status.state == State.TASK_STATE_FAILED
    assert task.status.message.parts[0].text == "ValueError: no such thing"


@in_loop
async def test_a_task_goes_on_by_itself_and_is_cancelled_when_that_is_asked(world: World) -> None:
    before = (await asyncio.to_thread(world.call, "slow", "ended"))[1]
    async with agent(world, "slow", streaming=False) as client:
        task = await last_task(client, asking(new_text_message("go", role=USER), at_once=True))
        while not any(row["state"] == "running" for row in await asyncio.to_thread(world.client.get_call_list)):
            await asyncio.sleep(0.01)
        seen = await client.get_task(proto.GetTaskRequest(id=task.id))
        assert seen.status.state in (State.TASK_STATE_SUBMITTED, State.TASK_STATE_WORKING)
        seen = await client.cancel_task(proto.CancelTaskRequest(id=task.id))
        assert seen.status.state == State.TASK_STATE_CANCELED
    assert await asyncio.to_thread(world.becomes, "slow", "ended", before + 1)


@in_loop
async def test_two_hundred_messages_at_once(world: World) -> None:
    async with agent(world, "listener", streaming=False) as client:
        tasks = await asyncio.gather(
            *(last_task(client, asking(new_text_message(f"{number}", role=USER))) for number in range(200))
        )
    assert [get_artifact_text(task.artifacts[0]) for task in tasks] == ["user"] * 200


@in_loop
async def test_nobody_without_a_token_and_no_agent_that_is_not_shown(world: World) -> None:
    for agent_id, token in (("talker", "wrong"), ("hidden", None)):
        with pytest.raises(A2AClientError, match="401" if token else "404"):
            async with agent(world, agent_id, token=token):
                pass
