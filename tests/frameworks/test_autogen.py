"""Agents and teams of autogen-agentchat as agents of a host."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from zmqagents import RpcClient

pytest.importorskip("autogen_agentchat")
pytest.importorskip("langchain_core")

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Handoff, TaskResult
from autogen_agentchat.conditions import HandoffTermination, TextMessageTermination
from autogen_agentchat.messages import HandoffMessage, TextMessage, ToolCallExecutionEvent, ToolCallSummaryMessage
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import FunctionCall
from autogen_core.models import ChatCompletionClient, CreateResult, FunctionExecutionResultMessage, RequestUsage

import fake_langchain
from zmqagents.adapters.autogen import AutogenAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]
agent_of = functools.partial(new_agent, AutogenAgent)


class FakeModel(ChatCompletionClient):
    """Does what it is told; the fake model of autogen is in a package of its own and cannot wait."""

    component_type = "model"

    async def create(self, messages: Any, **options: Any) -> CreateResult:
        *_, last = [item async for item in self.create_stream(messages)]
        assert isinstance(last, CreateResult)
        return last

    async def create_stream(
        self, messages: Any, cancellation_token: Any = None, **options: Any
    ) -> AsyncIterator[str | CreateResult]:
        last = messages[-1]
        content: Any
        if isinstance(last, FunctionExecutionResultMessage):
            content = f"{last.content[0].name} gave {last.content[0].content}"
        elif (call := fake_words.tool_call(last.content)) is not None:
            argument = f'{{"word": "{call.argument}"}}' if call.argument else "{}"
            content = [FunctionCall(id="c1", name=call.tool, arguments=argument)]
        else:
            content = ""
            words = fake_words.words(last.content)
            while True:
                step = asyncio.ensure_future(anext(words, ""))
                if cancellation_token is not None:  # as the clients of autogen do
                    cancellation_token.link_future(step)
                if not (word := await step):
                    break
                content += word
                yield word
        yield CreateResult(finish_reason="stop", content=content, usage=self.actual_usage(), cached=False)

    async def close(self) -> None:
        pass

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(prompt_tokens=0, completion_tokens=0)

    total_usage = actual_usage

    def count_tokens(self, messages: Any, **options: Any) -> int:
        return 0

    remaining_tokens = count_tokens

    @property
    def capabilities(self) -> Any:
        return self.model_info

    @property
    def model_info(self) -> Any:
        return {"vision": False, "function_calling": True, "json_output": False, "family": "unknown",
                "structured_output": False}  # fmt: skip


async def shout(word: str) -> str:
    return word.upper()


def agent(*tools: Any, **options: Any) -> Any:
    return AssistantAgent(
        "auto", FakeModel(), tools=[shout, *tools], model_client_stream=True, reflect_on_tool_use=False, **options
    )


def asks(other: Any) -> Any:
    async def ask_other(word: str) -> str:
        return await fake_langchain.asked(other, word)

    return agent(ask_other)


def team() -> Any:
    """An agent that hands over to a person, and with the person's answer goes on."""
    member = agent(handoffs=[Handoff(target="user", message="what do you say?")])
    return RoundRobinGroupChat(
        [member], termination_condition=HandoffTermination("user") | TextMessageTermination("auto")
    )  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[agent, asks, team], other=fake_langchain.langchain_model) as client:
        yield client


def test_an_agent_answers_with_a_message(client: RpcClient) -> None:
    answer = agent_of(client, agent).reply("hello").result()
    assert type(answer) is TextMessage
    assert (answer.source, answer.content) == ("auto", "you said hello")
    message = TextMessage(content="hi", source="ann")
    result = agent_of(client, agent).run([message]).result()
    assert type(result) is TaskResult
    assert result.messages[0] == message
    assert result.messages[-1].content == "you said hi"


def test_the_history_goes_out_and_in(client: RpcClient) -> None:
    first, second = agent_of(client, agent), agent_of(client, agent)
    first.reply("one").result()
    second.set_state(first.get_state().result()).result()
    second.reply("two").result()
    texts = [each["content"] for each in second.get_state().result()["llm_context"]["messages"]]
    assert texts == ["one", "you said one", "two", "you said two"]
    second.reset().result()
    assert not second.get_state().result()["llm_context"]["messages"]


def test_the_first_token_comes_before_the_last_is_made(client: RpcClient, tmp_path: Path) -> None:
    check_first_before_last(agent_of(client, agent).tokens, tmp_path / "a")
    check_first_before_last(agent_of(client, team).tokens, tmp_path / "b")


def test_a_tool_is_called_and_its_events_come_as_themselves(client: RpcClient) -> None:
    *events, last = agent_of(client, agent).events("call shout hey")
    assert any(type(event) is ToolCallExecutionEvent for event in events)
    assert type(last) is TaskResult
    assert type(last.messages[-1]) is ToolCallSummaryMessage
    assert last.messages[-1].content == "HEY"


def test_a_team_hands_over_to_a_person_and_goes_on_with_the_answer(client: RpcClient) -> None:
    agent = agent_of(client, team)
    asked = agent.run("call transfer_to_user").result()
    assert type(asked.messages[-1]) is HandoffMessage
    assert asked.messages[-1].content == "what do you say?"
    said = HandoffMessage(source="user", target="auto", content="go on")
    done = agent.run(said).result()
    assert done.messages[-1].content == "you said go on"


@pytest.mark.parametrize("factory", [agent, team])
def test_a_cancelled_run_leaves_the_agent_free(client: RpcClient, tmp_path: Path, factory: Any) -> None:
    agent = agent_of(client, factory)
    check_cancel(agent.reply, lambda prompt: agent.reply(prompt).result(), tmp_path / "a")


@pytest.mark.parametrize("factory", [agent, team])
def test_a_stream_that_nobody_reads_any_more_ends_the_run(client: RpcClient, tmp_path: Path, factory: Any) -> None:
    agent = agent_of(client, factory)
    with agent.tokens(f"wait {tmp_path / 'a'}") as items:
        assert next(items) == fake_words.FIRST
    assert agent.reply("free").result().content == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    assert (
        agent_of(client, asks, client.get_agent("other")).reply("call ask_other hey").result().content == "you said hey"
    )
