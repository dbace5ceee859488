"""Agents of llama-index as agents of a host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from hosts import eventually
from zmqagents import RpcClient

pytest.importorskip("llama_index.core")
pytest.importorskip("langchain_core")

from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

import fake_langchain
from zmqagents.adapters.llama_index import LlamaAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


class FakeModel(MockFunctionCallingLLM):
    """The mock model of llama-index, which does what it is told."""

    async def astream_chat_with_tools(self, tools: Any, chat_history: Any = None, **more: Any) -> Any:
        return self._pieces(chat_history)

    async def _pieces(self, messages: list[Any]) -> AsyncIterator[ChatResponse]:
        last = messages[-1]
        text = last.content or ""
        call = fake_words.tool_call(text)
        if last.role == "tool":
            answer = ChatMessage(role="assistant", content=f"the tool gave {text}")
            yield ChatResponse(message=answer, delta=answer.content)
        elif call is not None:
            answer = ChatMessage(role="assistant", content="", additional_kwargs={"call": [call.tool, call.argument]})
            yield ChatResponse(message=answer, delta="")
        else:
            said = ""
            async for word in fake_words.words(text):
                said += word
                yield ChatResponse(message=ChatMessage(role="assistant", content=said), delta=word)

    def get_tool_calls_from_response(self, response: Any, **more: Any) -> list[ToolSelection]:
        call = response.message.additional_kwargs.get("call")
        return [] if call is None else [ToolSelection(tool_id="c1", tool_name=call[0], tool_kwargs={"word": call[1]})]


def shout(word: str) -> str:
    """Say it loudly."""
    return word.upper()


async def ask_person(ctx: Context, word: str) -> str:
    """Ask a person."""
    event = InputRequiredEvent(prefix=word)
    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=event, waiter_id=word)
    return f"a person who says {answer.response}"


ask_person.__annotations__["ctx"] = Context  # llama-index reads it as it stands, which is text in this module


def agent(*tools: Any) -> Any:
    return FunctionAgent(name="llama", llm=FakeModel(), tools=[shout, ask_person, *tools], system_prompt="be brief")


class Counted(LlamaAgent):
    """Tells how many tasks run on the event loop."""

    async def tasks(self) -> int:
        return len(asyncio.all_tasks())


def counted() -> LlamaAgent:
    return Counted(agent())


def asks(other: Any) -> Any:
    async def ask_other(word: str) -> str:
        """Ask another agent."""
        return await fake_langchain.asked(other, word)

    return agent(ask_other)


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[asks, counted], llama=agent, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module")
def llama(client: RpcClient) -> Any:
    return client.get_agent("llama", LlamaAgent)


def test_an_agent_answers_with_a_message(llama: Any) -> None:
    answer = llama.reply("hello").result()
    assert type(answer) is ChatMessage
    assert answer.content == "you said hello"
    assert llama.reply(ChatMessage(role="user", content="hi")).result().content == "you said hi"


def test_the_history_goes_in_and_out_as_messages(llama: Any) -> None:
    history = [ChatMessage(role="user", content="one"), llama.reply("one").result()]
    result = llama.run("two", history).result()
    assert type(result) is AgentOutput
    assert result.response.content == "you said two"
    setup = next(event for event in llama.events("two", history) if hasattr(event, "input"))
    assert [each.content for each in setup.input] == ["be brief", "one", "you said one", "two"]


def test_the_first_token_comes_before_the_last_is_made(llama: Any, tmp_path: Path) -> None:
    check_first_before_last(llama.tokens, tmp_path / "a")


def test_a_tool_is_called_and_its_events_come_as_themselves(llama: Any) -> None:
    *events, last = llama.events("call shout hey")
    assert {AgentStream, ToolCallResult} <= {type(event) for event in events}
    assert type(last) is AgentOutput
    assert last.response.content == "the tool gave HEY"


def test_a_run_that_asks_a_person_goes_on_with_the_answer(llama: Any) -> None:
    asked = llama.reply("call ask_person really?").result()
    assert type(asked) is InputRequiredEvent
    assert asked.prefix == "really?"
    assert llama.respond("no").result().response.content == "the tool gave a person who says no"
    with pytest.raises(ValueError, match="no run waits"):
        llama.respond("no").result()


def test_a_run_that_asks_ends_when_a_later_one_asks(client: RpcClient) -> None:
    """`LlamaAgent.respond` can no longer reach it."""
    agent = new_agent(Counted, client, counted)
    agent.reply("call ask_person one").result()
    before = agent.tasks().result()
    for word in ("two", "three"):
        assert agent.reply(f"call ask_person {word}").result().prefix == word
    assert eventually(lambda: agent.tasks().result() <= before, 20)
    assert agent.respond("no").result().response.content == "the tool gave a person who says no"


def test_a_cancelled_run_leaves_the_agent_free(llama: Any, tmp_path: Path) -> None:
    check_cancel(llama.reply, lambda prompt: llama.reply(prompt).result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_run(llama: Any, tmp_path: Path) -> None:
    with llama.tokens(f"wait {tmp_path / 'a'}") as items:
        assert next(items) == fake_words.FIRST
    assert llama.reply("free").result().content == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    agent = new_agent(LlamaAgent, client, asks, client.get_agent("other"))
    assert agent.reply("call ask_other hey").result().content == "the tool gave you said hey"
