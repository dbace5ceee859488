"""Agents of google-adk as agents of a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from zmqagents import RpcClient

pytest.importorskip("google.adk")
pytest.importorskip("langchain_core")

from google.adk.agents import LlmAgent
from google.adk.events import Event
from google.adk.models import BaseLlm, LlmResponse
from google.adk.tools import FunctionTool
from google.genai import types

import fake_langchain
from zmqagents.adapters.google_adk import AdkAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


def content(*parts: types.Part, role: str = "model") -> types.Content:
    return types.Content(role=role, parts=list(parts))


class FakeModel(BaseLlm):
    """google-adk has no fake model of its own; this one does what it is told."""

    model: str = "fake"

    async def generate_content_async(self, request: Any, stream: bool = False) -> AsyncIterator[LlmResponse]:
        last = request.contents[-1].parts[-1]
        if last.function_response is not None:
            given = last.function_response
            text = f"{given.name} gave {given.response.get('result') or given.response.get('error')}"
            yield LlmResponse(content=content(types.Part(text=text)))
        elif (call := fake_words.tool_call(last.text)) is not None:
            called = types.FunctionCall(name=call.tool, args={"word": call.argument})
            yield LlmResponse(content=content(types.Part(function_call=called)))
        else:
            text = ""
            async for word in fake_words.words(last.text):
                text += word
                if stream:
                    yield LlmResponse(content=content(types.Part(text=word)), partial=True)
            yield LlmResponse(content=content(types.Part(text=text)))


def shout(word: str) -> str:
    """Say it loudly."""
    return word.upper()


def delete(word: str) -> str:
    """Delete it."""
    return f"no more {word}"


def agent(*tools: Any) -> Any:
    known = [FunctionTool(shout), FunctionTool(delete, require_confirmation=True), *tools]
    return LlmAgent(name="adk", model=FakeModel(), instruction="be brief", tools=known)


def asks(other: Any) -> Any:
    async def ask_other(word: str) -> str:
        """Ask another agent."""
        return await fake_langchain.asked(other, word)

    return agent(FunctionTool(ask_other))


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[asks], adk=agent, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module")
def adk(client: RpcClient) -> Any:
    return client.get_agent("adk", AdkAgent)


def text_of(answer: Any) -> str:
    assert type(answer) is types.Content
    return "".join(part.text or "" for part in answer.parts)


def test_an_agent_answers_with_its_content(adk: Any) -> None:
    assert text_of(adk.reply("hello").result()) == "you said hello"
    assert text_of(adk.reply(content(types.Part(text="hi"), role="user"), "s1").result()) == "you said hi"


def test_the_history_goes_out_and_in_as_events(adk: Any) -> None:
    adk.reply("one", "s2").result()
    events = adk.history("s2").result()
    assert [type(event) for event in events] == [Event, Event]
    adk.add_history(events, "s3").result()
    adk.reply("two", "s3").result()
    texts = [text_of(event.content) for event in adk.history("s3").result()]
    assert texts == ["one", "you said one", "two", "you said two"]


def test_the_first_token_comes_before_the_last_is_made(adk: Any, tmp_path: Path) -> None:
    check_first_before_last(lambda prompt: adk.tokens(prompt, "s4"), tmp_path / "a")


def test_a_tool_is_called_and_its_events_come_as_themselves(adk: Any) -> None:
    events = list(adk.events("call shout hey", "s5"))
    assert {type(event) for event in events} == {Event}
    assert [call.name for event in events for call in event.get_function_calls()] == ["shout"]
    assert text_of(events[-1].content) == "shout gave HEY"


@pytest.mark.parametrize(("answer", "text"), [(True, "delete gave no more x"), (False, "delete gave ")])
def test_a_tool_waits_for_the_confirmation_of_a_person(adk: Any, answer: bool, text: str) -> None:
    session = f"s6-{answer}"
    adk.reply("call delete x", session).result()
    calls = [call for event in adk.history(session).result() for call in event.get_function_calls()]
    (asked,) = [call for call in calls if call.name == "adk_request_confirmation"]
    said = types.FunctionResponse(id=asked.id, name=asked.name, response={"confirmed": answer})
    done = text_of(adk.reply(content(types.Part(function_response=said), role="user"), session).result())
    assert text in done
    assert ("no more" in done) is answer


def test_a_cancelled_run_leaves_the_agent_free(adk: Any, tmp_path: Path) -> None:
    check_cancel(
        lambda prompt: adk.reply(prompt, "s7"), lambda prompt: adk.reply(prompt, "s8").result(), tmp_path / "a"
    )  # fmt: skip


def test_a_stream_that_nobody_reads_any_more_ends_the_run(adk: Any, tmp_path: Path) -> None:
    with adk.tokens(f"wait {tmp_path / 'a'}", "s9") as items:
        assert next(items) == fake_words.FIRST
    assert text_of(adk.reply("free", "s10").result()) == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    agent = new_agent(AdkAgent, client, asks, client.get_agent("other"))
    assert text_of(agent.reply("call ask_other hey").result()) == "ask_other gave you said hey"
