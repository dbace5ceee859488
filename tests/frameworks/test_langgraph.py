"""Graphs of langgraph and runnables of langchain as agents of a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import fake_words
from adapted import check_cancel, check_first_before_last, hosted
from zmqagents import RpcClient
from zmqagents.errors import AgentCallError, UnknownMethod

pytest.importorskip("langgraph")
pytest.importorskip("langchain")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, Interrupt, StateSnapshot, interrupt

from fake_langchain import FakeModel, langchain_model
from zmqagents.adapters.langchain import RunnableAgent
from zmqagents.adapters.langgraph import GraphAgent

pytestmark = [pytest.mark.frameworks, pytest.mark.program]


@tool
def shout(word: str) -> str:
    """Say it loudly."""
    return word.upper()


@tool
def ask_person(word: str) -> str:
    """Ask a person."""
    return f"a person who says {interrupt({'question': word})}"


def graph() -> Any:
    """A model and its tools, with memory."""
    model = FakeModel().bind_tools([])

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    async def ask_other(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        other = config["configurable"]["other"]
        return {"messages": [await other.reply(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode([shout, ask_person]))
    builder.add_node("other", ask_other)
    builder.add_conditional_edges(
        START, lambda state, config: "other" if "other" in config["configurable"] else "think"
    )
    builder.add_conditional_edges("think", tools_condition)
    builder.add_edge("tools", "think")
    return builder.compile(checkpointer=InMemorySaver(), name="grapher")


@asynccontextmanager
async def in_a_file(path: str) -> AsyncIterator[Any]:
    """A graph whose memory is opened on the event loop, and closed with the agent."""
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        builder = StateGraph(MessagesState)
        builder.add_node("think", lambda state: {"messages": [AIMessage(f"{len(state['messages'])} so far")]})
        builder.add_edge(START, "think")
        yield builder.compile(checkpointer=saver)


def chain() -> Any:
    return ChatPromptTemplate.from_messages([("placeholder", "{messages}")]) | FakeModel()


def ready_made() -> Any:
    return create_agent(FakeModel(), tools=[shout], name="ready")


@pytest.fixture(scope="module")
def client() -> Iterator[RpcClient]:
    with hosted(known=[in_a_file], graph=graph, chain=chain, model=langchain_model, ready=ready_made) as client:
        yield client


@pytest.fixture(scope="module")
def agent(client: RpcClient) -> Any:
    """Its messages are known by the annotations of its adapter, here and there."""
    return client.get_agent("graph", GraphAgent)


def test_a_graph_answers_with_a_message(agent: Any) -> None:
    answer = agent.reply("hello", "t1").result()
    assert type(answer) is AIMessage
    assert answer.text == "you said hello"


def test_messages_go_in_and_out_as_themselves(agent: Any) -> None:
    sent = [HumanMessage("before", id="m1", additional_kwargs={"k": (1, 2)}), AIMessage("yes"), HumanMessage("now")]
    state = agent.invoke({"messages": sent}, {"configurable": {"thread_id": "t2"}}).result()
    assert [type(each) for each in state["messages"]] == [HumanMessage, AIMessage, HumanMessage, AIMessage]
    assert state["messages"][0] == sent[0]
    assert agent.reply(state["messages"], "t3").result().text == "you said you said now"


def test_the_first_token_comes_before_the_last_is_made(agent: Any, tmp_path: Path) -> None:
    check_first_before_last(lambda prompt: agent.tokens(prompt, "t4"), tmp_path / "a")
    config = {"configurable": {"thread_id": "t5"}}
    check_first_before_last(
        lambda prompt: agent.stream({"messages": [HumanMessage(prompt)]}, config, stream_mode="messages"),
        tmp_path / "b", lambda item: str(item[0].text),
    )  # fmt: skip


def test_each_stream_mode_gives_what_langgraph_gives(agent: Any) -> None:
    given = {"messages": [HumanMessage("call shout hey")]}
    updates = list(agent.stream(given, {"configurable": {"thread_id": "t6"}}))
    assert [next(iter(update)) for update in updates] == ["think", "tools", "think"]
    states = list(agent.stream(given, {"configurable": {"thread_id": "t7"}}, stream_mode="values"))
    assert [len(state["messages"]) for state in states] == [1, 2, 3, 4]
    both = list(agent.stream(given, {"configurable": {"thread_id": "t8"}}, stream_mode=["updates", "custom"]))
    assert {mode for mode, _ in both} == {"updates"}


def test_a_tool_is_called(agent: Any) -> None:
    assert agent.reply("call shout hey", "t9").result().text == "shout gave HEY"
    snapshot = agent.get_state("t9").result()
    assert type(snapshot) is StateSnapshot
    kinds = [type(each) for each in snapshot.values["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]


def test_a_graph_that_asks_a_person_goes_on_with_the_answer(agent: Any) -> None:
    asked = agent.reply("call ask_person really?", "t10").result()
    assert [type(each) for each in asked] == [Interrupt]
    assert asked[0].value == {"question": "really?"}
    assert agent.get_state("t10").result().interrupts == tuple(asked)
    assert agent.resume("no", "t10").result().text == "ask_person gave a person who says no"


def test_a_command_of_the_caller_does_the_same(agent: Any) -> None:
    config = {"configurable": {"thread_id": "t11"}}
    (asked,) = agent.reply("call ask_person sure?", "t11").result()
    state = agent.invoke(Command(resume={asked.id: "yes"}), config).result()
    assert state["messages"][-1].text == "ask_person gave a person who says yes"


def test_the_state_of_a_thread_can_be_changed(agent: Any) -> None:
    agent.reply("one", "t12").result()
    agent.update_state("t12", {"messages": [HumanMessage("two")]}, as_node="think").result()
    assert [each.text for each in agent.get_state("t12").result().values["messages"]] == ["one", "you said one", "two"]


def test_a_cancelled_run_leaves_the_graph_free(agent: Any, tmp_path: Path) -> None:
    check_cancel(lambda p: agent.reply(p, "t13"), lambda p: agent.reply(p, "t14").result(), tmp_path / "a")


def test_a_stream_that_nobody_reads_any_more_ends_the_run(agent: Any, tmp_path: Path) -> None:
    with agent.tokens(f"wait {tmp_path / 'a'}", "t15") as stream:
        assert next(stream) == fake_words.FIRST
    assert agent.reply("free", "t16").result().text == "you said free"


def test_one_graph_asks_another_agent(client: RpcClient, agent: Any) -> None:
    config = {"configurable": {"thread_id": "t17", "other": client.get_agent("model")}}
    state = agent.invoke({"messages": [HumanMessage("pass it on")]}, config).result()
    assert state["messages"][-1].text == "you said pass it on"


def test_a_memory_in_a_database_lives_as_long_as_its_agent(client: RpcClient, tmp_path: Path) -> None:
    for before in (1, 3):
        agent: Any = client.create_agent(in_a_file, str(tmp_path / "memory.db"))
        assert agent.reply("hello", "t1").result().text == f"{before} so far"
        client.delete_agent(agent.agent_id)


def test_an_error_in_a_node_comes_to_the_caller(agent: Any) -> None:
    with pytest.raises(AgentCallError, match="thread_id"):
        agent.reply("no thread").result()


def test_a_chain_gives_and_streams_messages(client: RpcClient, tmp_path: Path) -> None:
    chain: Any = client.get_agent("chain", RunnableAgent)
    given = {"messages": [HumanMessage("hello")]}
    assert chain.invoke(given).result().text == chain.reply(given).result().text
    assert type(chain.invoke(given).result()) is AIMessage
    assert [each.text for each in chain.batch([given, given]).result()] == ["you said hello"] * 2
    assert all(type(each) is AIMessageChunk for each in chain.stream(given))
    check_first_before_last(lambda p: chain.tokens({"messages": [HumanMessage(p)]}), tmp_path / "a")


def test_a_cancelled_model_is_free(client: RpcClient, tmp_path: Path) -> None:
    model: Any = client.get_agent("model", RunnableAgent)
    check_cancel(model.reply, lambda p: model.reply(p).result(), tmp_path / "a")


def test_an_agent_of_langchain_is_a_graph(client: RpcClient, tmp_path: Path) -> None:
    ready: Any = client.get_agent("ready", GraphAgent)
    assert ready.reply("call shout hey").result().text == "shout gave HEY"
    check_first_before_last(ready.tokens, tmp_path / "a")


def test_what_is_not_offered_is_not_there(agent: Any) -> None:
    with pytest.raises(UnknownMethod):
        agent.aget_state_history("t1")
