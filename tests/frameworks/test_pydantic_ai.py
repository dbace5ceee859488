"""Agents of pydantic-ai as agents of a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted
from zmqagents import RpcClient

pytest.importorskip("pydantic_ai")
pytest.importorskip("langchain_core")

from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, RunContext, ToolDenied
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

import fake_langchain
from zmqagents.adapters.pydantic_ai import PydanticAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
    """The model: the function model of pydantic-ai, which does what it is told."""
    last = messages[-1].parts[-1]
    if isinstance(last, ToolReturnPart):
        yield f"{last.tool_name} gave {last.content}"
    elif isinstance(last, UserPromptPart) and (call := fake_words.tool_call(str(last.content))) is not None:
        yield {0: DeltaToolCall(call.tool, f'{{"word": "{call.argument}"}}', tool_call_id="c1")}
    elif isinstance(last, UserPromptPart):
        async for word in fake_words.words(str(last.content)):
            yield word


async def whole(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    items = [item async for item in stream(messages, info)]
    if isinstance(items[0], dict):
        return ModelResponse(parts=[ToolCallPart(items[0][0].name, items[0][0].json_args, "c1")])
    return ModelResponse(parts=[TextPart("".join(items))])


class Entered(FunctionToolset[Any]):
    """Tools that are there only while the agent is entered."""

    is_open = False

    async def __aenter__(self) -> Any:
        self.is_open = True
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> Any:
        self.is_open = False
        return await super().__aexit__(*error)


def agent() -> Any:
    tools = Entered(id="tools")
    made = Agent(FunctionModel(whole, stream_function=stream), name="py", output_type=[str, DeferredToolRequests],
                 toolsets=[tools])  # fmt: skip

    @tools.tool_plain
    def shout(word: str) -> str:
        return word.upper() if tools.is_open else "closed"

    @made.tool_plain(requires_approval=True)
    def delete(word: str) -> str:
        return f"no more {word}"

    @made.tool
    async def ask_other(context: RunContext[Any], word: str) -> str:
        return await fake_langchain.asked(context.deps, word)

    return made


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(py=agent, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module")
def py(client: RpcClient) -> Any:
    return client.get_agent("py", PydanticAgent)


def test_an_agent_replies(py: Any) -> None:
    assert py.reply("hello").result() == "you said hello"


def test_the_history_goes_out_and_in_as_messages(py: Any) -> None:
    first = py.run("one").result()
    assert first["output"] == "you said one"
    assert [type(each) for each in first["messages"]] == [ModelRequest, ModelResponse]
    second = py.run("two", first["messages"]).result()
    assert [type(each) for each in second["messages"]] == [ModelRequest, ModelResponse] * 2
    assert second["messages"][:2] == first["messages"]


def test_the_first_token_comes_before_the_last_is_made(py: Any, tmp_path: Path) -> None:
    check_first_before_last(py.tokens, tmp_path / "a")


def test_events_come_as_themselves_and_the_run_at_last(py: Any) -> None:
    *events, last = py.events("call shout hey")
    assert any(type(event) is FunctionToolCallEvent for event in events)
    assert last["output"] == "shout gave HEY"
    assert type(last["messages"][0]) is ModelRequest
    assert any(type(event) is PartDeltaEvent for event in py.events("some more words"))


def test_a_tool_is_called_and_the_agent_is_entered(py: Any) -> None:
    assert py.reply("call shout hey").result() == "shout gave HEY"


@pytest.mark.parametrize(("answer", "output"), [(True, "no more x"), (ToolDenied("never"), "never")])
def test_a_tool_waits_for_the_approval_of_a_person(py: Any, answer: Any, output: str) -> None:
    asked = py.run("call delete x").result()
    assert type(asked["output"]) is DeferredToolRequests
    (call,) = asked["output"].approvals
    results = DeferredToolResults(approvals={call.tool_call_id: answer})
    assert py.run(history=asked["messages"], deferred=results).result()["output"] == f"delete gave {output}"


def test_a_cancelled_run_leaves_the_agent_free(py: Any, tmp_path: Path) -> None:
    check_cancel(py.reply, lambda prompt: py.reply(prompt).result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_run(py: Any, tmp_path: Path) -> None:
    with py.tokens(f"wait {tmp_path / 'a'}") as items:
        assert next(items) == fake_words.FIRST
    assert py.reply("free").result() == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient, py: Any) -> None:
    assert py.reply("call ask_other hey", deps=client.get_agent("other")).result() == "ask_other gave you said hey"
