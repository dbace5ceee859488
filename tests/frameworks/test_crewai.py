"""Crews and agents of crewai as agents of a host."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted, new_agent
from zmqagents import RpcClient

if importlib.util.find_spec("crewai") is not None:  # else other tests have this process
    os.environ.update(CREWAI_DISABLE_TELEMETRY="true", OTEL_SDK_DISABLED="true", CREWAI_TRACING_ENABLED="false")
pytest.importorskip("crewai")
pytest.importorskip("langchain_core")

from crewai import Agent, Crew, Task
from crewai.crews.crew_output import CrewOutput
from crewai.lite_agent_output import LiteAgentOutput
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from crewai.types.streaming import StreamChunk

import fake_langchain
from zmqagents.adapters.crewai import CrewAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


class FakeModel(BaseLLM):
    """crewai has no fake model of its own; this one does what it is told."""

    def call(self, messages: Any, *args: Any, **options: Any) -> str:
        text = "\n".join(str(message["content"]) for message in messages if message["role"] != "system")
        prompt = prompt_of(messages)
        call = fake_words.tool_call(prompt)
        if call is not None and "Observation:" in text:
            return answer(f"the tool gave {text.rpartition('Observation:')[2].strip().partition(chr(10))[0]}")
        if call is not None:
            return f'Thought: a tool\nAction: {call.tool}\nAction Input: {{"word": "{call.argument}"}}'
        words = []
        for word in fake_words.words_in_thread(prompt):
            words.append(word)
            self._emit_stream_chunk_event(chunk=word, from_task=options.get("from_task"),
                                          from_agent=options.get("from_agent"))  # fmt: skip
        return answer("".join(words))

    async def acall(self, *args: Any, **options: Any) -> str:
        return await asyncio.to_thread(self.call, *args, **options)


def prompt_of(messages: list[dict[str, Any]]) -> str:
    """What the user has said last: crewai says more around it, and after the result of a tool."""
    said = [str(message["content"]) for message in messages if message["role"] == "user"]
    text = next(each for each in reversed(said) if "Observation:" not in each and "tool result" not in each)
    return text.partition("Current Task:")[2].strip().partition("\n")[0].strip() or text


def answer(text: str) -> str:
    return f"Thought: I now can give a great answer\nFinal Answer: {text}"


@tool
def shout(word: str) -> str:
    """Say it loudly."""
    return word.upper()


def member(*tools: Any) -> Any:
    return Agent(role="crewman", goal="help", backstory="none", llm=FakeModel(model="fake"), tools=[shout, *tools])


def crew() -> Any:
    worker = member()
    return Crew(name="crew", agents=[worker], tasks=[Task(description="{message}", expected_output="x", agent=worker)])


def asks(other: Any) -> Any:
    @tool
    def ask_other(word: str) -> str:
        """Ask another agent."""
        return str(other.reply(word).result().text)

    return member(ask_other)


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[asks], crew=crew, member=member, other=fake_langchain.langchain_model) as client:
        yield client


@pytest.fixture(scope="module", params=["crew", "member"])
def agent(client: RpcClient, request: pytest.FixtureRequest) -> Any:
    return client.get_agent(request.param, CrewAgent)


def test_an_agent_answers(agent: Any) -> None:
    assert agent.reply("hello").result() == "you said hello"


def test_a_run_gives_what_crewai_gives(client: RpcClient) -> None:
    agent: Any = client.get_agent("crew", CrewAgent)
    output = agent.run({"message": "hello"}).result()
    assert type(output) is CrewOutput
    assert [task.raw for task in output.tasks_output] == ["you said hello"]


def test_the_history_goes_out_and_in(client: RpcClient) -> None:
    agent: Any = client.get_agent("member", CrewAgent)
    first = agent.run("one").result()
    assert type(first) is LiteAgentOutput
    history = [{"role": "user", "content": "one"}, {"role": "assistant", "content": first.raw}]
    second = agent.run([*history, {"role": "user", "content": "two"}]).result()
    assert second.raw == "you said two"
    assert {"one", first.raw} <= {message["content"] for message in second.messages}


def test_the_first_token_comes_before_the_last_is_made(agent: Any, tmp_path: Path) -> None:
    check_first_before_last(agent.tokens, tmp_path / "a")
    assert {type(chunk) for chunk in agent.events("hello")} == {StreamChunk}


def test_a_tool_is_called(agent: Any) -> None:
    assert agent.reply("call shout hey").result() == "the tool gave HEY"


def test_a_cancelled_run_leaves_the_agent_free(agent: Any, tmp_path: Path) -> None:
    check_cancel(agent.reply, lambda prompt: agent.reply(prompt).result(), tmp_path / "a")


def test_a_tool_asks_an_agent_of_another_framework(client: RpcClient) -> None:
    agent = new_agent(CrewAgent, client, asks, client.get_agent("other"))
    assert agent.reply("call ask_other hey").result() == "the tool gave you said hey"
