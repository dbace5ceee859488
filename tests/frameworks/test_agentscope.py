"""Agents of AgentScope 2 as agents of a host."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from zmqagents import RpcClient

pytest.importorskip("agentscope.event")
pytest.importorskip("langchain_core")

from agentscope.agent import Agent
from agentscope.credential import CredentialBase
from agentscope.event import ConfirmResult, RequireUserConfirmEvent, TextBlockDeltaEvent, UserConfirmResultEvent
from agentscope.formatter import OpenAIChatFormatter
from agentscope.message import Msg, TextBlock, ToolCallBlock, ToolResultBlock, UserMsg
from agentscope.model import ChatModelBase, ChatResponse
from agentscope.permission import PermissionContext, PermissionMode
from agentscope.state import AgentState
from agentscope.tool import FunctionTool, Toolkit

import fake_langchain
from zmqagents.adapters.agentscope import ScopeAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]
agent_of = functools.partial(new_agent, ScopeAgent)


class FakeModel(ChatModelBase):
    """AgentScope has no fake model of its own; this one does what it is told."""

    def __init__(self) -> None:
        super().__init__(CredentialBase(), "fake", self.Parameters())
        self.formatter = OpenAIChatFormatter()

    async def _call_api(self, model_name: str, messages: list[Msg], *args: Any, **more: Any) -> Any:
        return self._pieces(messages)

    async def _pieces(self, messages: list[Msg]) -> AsyncIterator[ChatResponse]:
        results = [block for block in messages[-1].content if isinstance(block, ToolResultBlock)]
        prompt = next(m for m in reversed(messages) if m.role == "user").get_text_content() or ""
        prompt = prompt.split("\n")[0]
        call = fake_words.tool_call(prompt)
        if results:
            output: Any = results[-1].output
            text = output if isinstance(output, str) else output[0].text
            yield ChatResponse([TextBlock(text=f"{results[-1].name} gave {text}", id="b1")], is_last=False)
        elif call is not None:
            block = ToolCallBlock(id="c1", name=call.tool, input=f'{{"word": "{call.argument}"}}')
            yield ChatResponse([block], is_last=False)
        else:
            async for word in fake_words.words(prompt):
                yield ChatResponse([TextBlock(text=word, id="b1")], is_last=False)


def shout(word: str) -> str:
    """Say it loudly."""
    return word.upper()


def made(mode: PermissionMode) -> Any:
    tools = Toolkit([FunctionTool(shout)])
    state = AgentState(permission_context=PermissionContext(mode=mode))
    return Agent("scope", "be brief", FakeModel(), tools, state=state)


def free() -> Any:
    return made(PermissionMode.BYPASS)


def careful() -> Any:
    return made(PermissionMode.DEFAULT)


def asks(other: Any) -> Any:
    """An agent with a tool that asks the agent ``other``."""

    async def ask_other(word: str) -> str:
        """Ask another agent."""
        return await fake_langchain.asked(other, word)

    state = AgentState(permission_context=PermissionContext(mode=PermissionMode.BYPASS))
    return Agent("asks", "be brief", FakeModel(), Toolkit([FunctionTool(ask_other)]), state=state)


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[free, careful, asks], other=fake_langchain.langchain_model) as client:
        yield client


def test_an_agent_answers_with_a_message(client: RpcClient) -> None:
    answer = agent_of(client, free).reply(UserMsg("ann", "hello")).result()
    assert type(answer) is Msg
    assert answer.get_text_content() == "you said hello"
    assert agent_of(client, free).reply("hello").result().get_text_content() == "you said hello"


def test_the_history_goes_out_and_in_as_it_is(client: RpcClient) -> None:
    first = agent_of(client, free)
    first.reply("one").result()
    first.observe(UserMsg("bob", "by the way")).result()
    state = first.state
    assert type(state) is AgentState
    assert [each.get_text_content() for each in state.context] == ["one", "you said one", "by the way"]
    second = agent_of(client, free)
    second.set_state(state).result()
    second.reply("two").result()
    assert [each.name for each in second.state.context] == ["user", "scope", "bob", "user", "scope"]
    assert second.state.context[:3] == state.context


def test_the_first_token_comes_before_the_last_is_made(client: RpcClient, tmp_path: Path) -> None:
    check_first_before_last(agent_of(client, free).tokens, tmp_path / "a")


def test_events_come_as_themselves_and_the_answer_at_last(client: RpcClient) -> None:
    *events, last = agent_of(client, free).events("hello you")
    assert "".join(event.delta for event in events if type(event) is TextBlockDeltaEvent) == "you said hello you"
    assert type(last) is Msg


def test_a_tool_is_called(client: RpcClient) -> None:
    answer = agent_of(client, free).reply("call shout hey").result()
    assert answer.get_text_content() == "shout gave HEY"


@pytest.mark.parametrize(("answer", "text"), [(True, "shout gave HEY"), (False, "shout gave ")])
def test_a_tool_waits_for_the_word_of_a_person(client: RpcClient, answer: bool, text: str) -> None:
    agent = agent_of(client, careful)
    asked = agent.reply("call shout hey").result()
    assert type(asked) is RequireUserConfirmEvent
    said = [ConfirmResult(confirmed=answer, tool_call=call) for call in asked.tool_calls]
    done = agent.reply(UserConfirmResultEvent(reply_id=asked.reply_id, confirm_results=said)).result()
    assert text in done.get_text_content()
    assert ("HEY" in done.get_text_content()) is answer


def test_a_cancelled_reply_leaves_the_agent_free(client: RpcClient, tmp_path: Path) -> None:
    agent = agent_of(client, free)
    check_cancel(agent.reply, lambda prompt: agent.reply(prompt).result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_reply(client: RpcClient, tmp_path: Path) -> None:
    agent = agent_of(client, free)
    with agent.tokens(f"wait {tmp_path / 'a'}") as items:
        assert next(items) == fake_words.FIRST
    assert agent.reply("free").result().get_text_content() == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    answer = agent_of(client, asks, client.get_agent("other")).reply("call ask_other hey").result()
    assert answer.get_text_content() == "ask_other gave you said hey"
