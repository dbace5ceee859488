"""Agents of openai-agents as agents of a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted
from zmqagents import RpcClient

pytest.importorskip("agents")
pytest.importorskip("langchain_core")

from agents import (
    Agent,
    Model,
    ModelResponse,
    RunContextWrapper,
    SQLiteSession,
    Usage,
    function_tool,
    set_tracing_disabled,
)
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
)

import fake_langchain
from zmqagents.adapters.openai_agents import OpenAIAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


class FakeModel(Model):
    """openai-agents has no fake model of its own; this one does what it is told."""

    async def get_response(self, system_instructions: Any, input: Any, *args: Any, **more: Any) -> ModelResponse:
        async for event in self.stream_response(system_instructions, input):
            if isinstance(event, ResponseCompletedEvent):
                return ModelResponse(output=event.response.output, usage=Usage(), response_id=None)
        raise AssertionError("the model has no end")

    async def stream_response(
        self, system_instructions: Any, input: Any, *args: Any, **more: Any
    ) -> AsyncIterator[Any]:
        last = input if isinstance(input, str) else input[-1].get("content", input[-1])
        output: Any
        if isinstance(last, dict):
            name = next(item["name"] for item in reversed(input) if item.get("type") == "function_call")
            output = message(f"{name} gave {last['output']}")
        elif (call := fake_words.tool_call(last)) is not None:
            arguments = f'{{"word": "{call.argument}"}}'
            output = ResponseFunctionToolCall(type="function_call", name=call.tool, call_id="c1", arguments=arguments)
        else:
            text = ""
            async for word in fake_words.words(last):
                text += word
                yield ResponseTextDeltaEvent(
                    type="response.output_text.delta", delta=word, content_index=0, item_id="m1", output_index=0,
                    sequence_number=0, logprobs=[],
                )  # fmt: skip
            output = message(text)
        response = Response(
            id="r1", created_at=0, model="fake", object="response", output=[output], tool_choice="auto", tools=[],
            parallel_tool_calls=False,
        )  # fmt: skip
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=1)


def message(text: str) -> ResponseOutputMessage:
    content = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(id="m1", type="message", role="assistant", status="completed", content=[content])


@function_tool
def shout(word: str) -> str:
    return word.upper()


@function_tool(needs_approval=True)
def delete(word: str) -> str:
    return f"no more {word}"


@function_tool
async def ask_other(context: RunContextWrapper[Any], word: str) -> str:
    return await fake_langchain.asked(context.context, word)


def agent() -> Any:
    set_tracing_disabled(True)
    return Agent("open", instructions="be brief", model=FakeModel(), tools=[shout, delete, ask_other])


def with_session() -> OpenAIAgent:
    return OpenAIAgent(agent(), SQLiteSession("s1"))


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(open=agent, session=with_session, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module")
def open_(client: RpcClient) -> Any:
    return client.get_agent("open", OpenAIAgent)


def test_an_agent_replies(open_: Any) -> None:
    assert open_.reply("hello").result() == "you said hello"


def test_the_history_goes_out_and_in(open_: Any) -> None:
    first = open_.run("one").result()
    assert first["output"] == "you said one"
    asked = [*first["history"], {"role": "user", "content": "two"}]
    second = open_.run(asked).result()
    assert second["output"] == "you said two"
    assert second["history"][: len(asked)] == asked


def test_a_session_keeps_the_history(client: RpcClient) -> None:
    agent: Any = client.get_agent("session", OpenAIAgent)
    assert len(agent.run("one").result()["history"]) == 2
    agent.reply("two").result()
    (user,) = [item for item in agent.run("three").result()["history"] if item.get("content") == "three"]
    assert user["role"] == "user"


def test_the_first_token_comes_before_the_last_is_made(open_: Any, tmp_path: Path) -> None:
    check_first_before_last(open_.tokens, tmp_path / "a")


def test_events_come_without_the_agent(open_: Any) -> None:
    *events, last = open_.events("call shout hey")
    assert any(type(event) is ResponseCompletedEvent for event in events)
    names = [next(iter(event)) for event in events if isinstance(event, dict)]
    assert names == ["tool_called", "tool_output", "message_output_created"]
    assert last["output"] == "shout gave HEY"


def test_a_tool_is_called(open_: Any) -> None:
    assert open_.reply("call shout hey").result() == "shout gave HEY"


@pytest.mark.parametrize(("answer", "output"), [(True, "no more x"), ("never", "never")])
def test_a_tool_waits_for_the_approval_of_a_person(open_: Any, answer: Any, output: str) -> None:
    asked = open_.run("call delete x").result()
    assert [(call["name"], call["arguments"]) for call in asked["approvals"]] == [("delete", '{"word": "x"}')]
    done = open_.resume(asked["state"], {asked["approvals"][0]["call_id"]: answer}).result()
    assert done["output"] == f"delete gave {output}"
    assert not done["approvals"]


def test_a_cancelled_run_leaves_the_agent_free(open_: Any, tmp_path: Path) -> None:
    check_cancel(open_.reply, lambda prompt: open_.reply(prompt).result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_run(open_: Any, tmp_path: Path) -> None:
    with open_.tokens(f"wait {tmp_path / 'a'}") as items:
        assert next(items) == fake_words.FIRST
    assert open_.reply("free").result() == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient, open_: Any) -> None:
    assert open_.reply("call ask_other hey", client.get_agent("other")).result() == "ask_other gave you said hey"
