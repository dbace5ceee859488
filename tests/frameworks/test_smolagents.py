"""Agents of smolagents as agents of a host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from zmqagents import RpcClient

pytest.importorskip("smolagents")
pytest.importorskip("langchain_core")

from smolagents import ChatMessage, LogLevel, Model, ToolCallingAgent, tool
from smolagents.memory import ActionStep, FinalAnswerStep, TaskStep, ToolCall
from smolagents.models import (
    ChatMessageStreamDelta,
    ChatMessageToolCallFunction,
    ChatMessageToolCallStreamDelta,
    MessageRole,
    agglomerate_stream_deltas,
)

import fake_langchain
from zmqagents.adapters.smolagents import SmolAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


class FakeModel(Model):
    """Does what it is told: it says the words, and gives them as the final answer."""

    def generate_stream(self, messages: Any, **options: Any) -> Iterator[ChatMessageStreamDelta]:
        last = messages[-1]
        prompt = last.content[-1]["text"].removeprefix("New task:\n")
        call = fake_words.tool_call(prompt)
        if last.role == MessageRole.TOOL_RESPONSE:
            yield calls("final_answer", answer=f"the tool gave {prompt.removeprefix('Observation:').strip()}")
        elif call is not None:
            yield calls(call.tool, word=call.argument)
        else:
            said = ""
            for word in fake_words.words_in_thread(prompt):
                said += word
                yield ChatMessageStreamDelta(word)
            yield calls("final_answer", answer=said)

    def generate(self, messages: Any, **options: Any) -> ChatMessage:
        return agglomerate_stream_deltas(list(self.generate_stream(messages)))


def calls(name: str, **arguments: str) -> ChatMessageStreamDelta:
    function = ChatMessageToolCallFunction(json.dumps(arguments), name)
    return ChatMessageStreamDelta("", [ChatMessageToolCallStreamDelta(0, "c1", "function", function)])


@tool
def shout(word: str) -> str:
    """Say it loudly.

    Args:
        word: what is to be said
    """
    return word.upper()


def agent(*tools: Any) -> Any:
    return ToolCallingAgent(
        [shout, *tools], FakeModel(), name="smol", stream_outputs=True, verbosity_level=LogLevel.OFF
    )


def asks(other: Any) -> Any:
    @tool
    def ask_other(word: str) -> str:
        """Ask another agent.

        Args:
            word: what it is asked
        """
        return str(other.reply(word).result().text)

    return agent(ask_other)


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[agent, asks], smol=agent, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module")
def smol(client: RpcClient) -> Any:
    return client.get_agent("smol", SmolAgent)


def test_an_agent_answers(smol: Any) -> None:
    assert smol.reply("hello").result() == "you said hello"


def test_the_history_goes_out_and_in_as_steps(client: RpcClient, smol: Any) -> None:
    smol.reply("one").result()
    steps = smol.get_steps()
    assert [type(step) for step in steps] == [TaskStep, ActionStep]
    second = new_agent(SmolAgent, client, agent)
    second.set_steps(steps)
    second.reply("two", reset=False).result()
    assert [step.task for step in second.get_steps() if type(step) is TaskStep] == ["one", "two"]
    assert {type(message) for message in second.messages()} == {ChatMessage}


def test_the_first_token_comes_before_the_last_is_made(smol: Any, tmp_path: Path) -> None:
    check_first_before_last(smol.tokens, tmp_path / "a")


def test_a_tool_is_called_and_its_events_come_as_themselves(smol: Any) -> None:
    *events, last = smol.events("call shout hey")
    assert [event.name for event in events if type(event) is ToolCall] == ["shout", "final_answer"]
    assert next(event.observations for event in events if type(event) is ActionStep) == "HEY"
    assert type(last) is FinalAnswerStep
    assert last.output == "the tool gave HEY"


def test_a_cancelled_run_leaves_the_agent_free(smol: Any, tmp_path: Path) -> None:
    check_cancel(smol.reply, lambda prompt: smol.reply(prompt).result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_run(smol: Any, tmp_path: Path) -> None:
    """At the next token: a generator in a thread cannot be broken off before."""
    gate = tmp_path / "a"
    with smol.tokens(f"wait {gate}") as items:
        assert next(items) == fake_words.FIRST
    gate.touch()
    assert smol.reply("free").result() == "you said free"


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    agent = new_agent(SmolAgent, client, asks, client.get_agent("other"))
    assert agent.reply("call ask_other hey").result() == "the tool gave you said hey"
