"""The messages of agent frameworks arrive as themselves: with their package trusted, and in annotated methods.

`make test-frameworks` runs this with the frameworks themselves; a package that is not installed is skipped.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import GenericAlias
from typing import Any

import pytest

from actors import client_of, host
from registrations import forgotten
from zmqagents import AgentBase, RpcClient, SerializationError, codec
from zmqagents.codec.forms import Scope

pytestmark = pytest.mark.frameworks

NOW = dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc)


# ---------------------------------------------------------------- what is sent: the package, the annotation, the values


def langchain_messages() -> tuple[str, Any, list[Any]]:
    messages = pytest.importorskip("langchain_core.messages")
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    # By BaseMessage alone a host would know only the messages whose modules it has imported.
    return "langchain_core", GenericAlias(list, (messages.AnyMessage | messages.RemoveMessage,)), [[
        messages.SystemMessage("be brief"), messages.HumanMessage("hi", additional_kwargs={"k": (1, 2)}),
        messages.HumanMessage([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]),
        messages.AIMessage("", tool_calls=[call], usage_metadata={"input_tokens": 1, "output_tokens": 2,
                                                                 "total_tokens": 3}),
        messages.ToolMessage("3", tool_call_id="c1", artifact={"raw": b"\xff"}, status="error"),
        messages.AIMessageChunk("part", id="m1"), messages.RemoveMessage(id="m1"),
    ]]  # fmt: skip


def langgraph_commands() -> tuple[str, Any, list[Any]]:
    types = pytest.importorskip("langgraph.types")
    messages = pytest.importorskip("langchain_core.messages")
    return "langgraph", types.Command | messages.HumanMessage, [
        types.Command(resume="yes"), types.Command(resume={"i1": True}), types.Command(goto="node", graph="PARENT"),
        types.Command(update={"messages": [messages.HumanMessage("hi")]}, goto=["a", "b"]),
    ]  # fmt: skip


def langgraph_interrupts() -> tuple[str, Any, list[Any]]:
    types = pytest.importorskip("langgraph.types")
    return "langgraph", types.Interrupt, [types.Interrupt(value={"question": "go on?"}, id="i1")]


def pydantic_ai_history() -> tuple[str, Any, list[Any]]:
    messages = pytest.importorskip("pydantic_ai.messages")
    return "pydantic_ai", GenericAlias(list, (messages.ModelMessage,)), [[
        messages.ModelRequest(parts=[
            messages.SystemPromptPart("be brief", timestamp=NOW), messages.UserPromptPart("hi", timestamp=NOW),
            messages.UserPromptPart(["look", messages.BinaryContent(b"\xff", media_type="image/png"),
                                     messages.ImageUrl("https://a.b/c.png")], timestamp=NOW),
            messages.ToolReturnPart("add", 3, "c1", timestamp=NOW),
        ], instructions="short"),
        messages.ModelResponse(parts=[
            messages.TextPart("hello"), messages.ThinkingPart("hm"), messages.ToolCallPart("add", {"a": 1}, "c1"),
        ], model_name="m", timestamp=NOW),
    ]]  # fmt: skip


def pydantic_ai_deferred() -> tuple[str, Any, list[Any]]:
    tools = pytest.importorskip("pydantic_ai.tools")
    messages = pytest.importorskip("pydantic_ai.messages")
    part = messages.ToolCallPart("delete", {"path": "x"}, "c1")
    return "pydantic_ai", tools.DeferredToolResults | tools.DeferredToolRequests, [
        tools.DeferredToolResults(approvals={"c1": True, "c2": tools.ToolDenied("no")}, calls={"c3": [1, 2]}),
        tools.DeferredToolRequests(approvals=[part], calls=[part]),
    ]  # fmt: skip


def google_contents() -> tuple[str, Any, list[Any]]:
    types = pytest.importorskip("google.genai.types")
    call = types.FunctionCall(id="c1", name="add", args={"a": 1})
    answer = types.FunctionResponse(id="c1", name="add", response={"result": 3})
    return "google.genai", types.Content, [
        types.Content(role="user", parts=[types.Part(text="hi"), types.Part.from_bytes(data=b"\xff", mime_type="a/b")]),
        types.Content(role="model", parts=[types.Part(function_call=call)]),
        types.Content(role="user", parts=[types.Part(function_response=answer)]),
    ]  # fmt: skip


def autogen_messages() -> tuple[str, Any, list[Any]]:
    messages = pytest.importorskip("autogen_agentchat.messages")
    models = pytest.importorskip("autogen_core.models")
    text = messages.TextMessage(content="hi", source="user", created_at=NOW, metadata={"k": "v"})
    usage = models.RequestUsage(prompt_tokens=1, completion_tokens=2)
    return "autogen_agentchat autogen_core", messages.BaseChatMessage, [
        text, messages.StopMessage(content="done", source="a", models_usage=usage),
        messages.HandoffMessage(content="you", source="a", target="b", context=[
            models.UserMessage(content="x", source="u"), models.AssistantMessage(content="y", source="a")]),
    ]  # fmt: skip


def autogen_results() -> tuple[str, Any, list[Any]]:
    messages = pytest.importorskip("autogen_agentchat.messages")
    base = pytest.importorskip("autogen_agentchat.base")
    core = pytest.importorskip("autogen_core")
    call = core.FunctionCall(id="c1", name="add", arguments="{}")
    return "autogen_agentchat autogen_core", base.TaskResult, [
        base.TaskResult(messages=[
            messages.TextMessage(content="hi", source="user"),
            messages.ToolCallRequestEvent(content=[call], source="a"),
            messages.ThoughtEvent(content="hm", source="a"),
        ], stop_reason="done"),
    ]  # fmt: skip


def agentscope_messages() -> tuple[str, Any, list[Any]]:
    message = pytest.importorskip("agentscope.message")
    blocks = [message.TextBlock(text="hi"), message.ToolCallBlock(id="c1", name="add", input="{}")]
    return "agentscope", message.Msg, [
        message.Msg(name="bob", content=[message.TextBlock(text="hi")], role="user"),
        message.Msg(name="ann", content=blocks, role="assistant", metadata={"k": (1,)}),
    ]  # fmt: skip


Family = Callable[[], tuple[str, Any, list[Any]]]
FAMILIES: list[Family] = [
    langchain_messages, langgraph_commands, langgraph_interrupts, pydantic_ai_history, pydantic_ai_deferred,
    google_contents, autogen_messages, autogen_results, agentscope_messages,
]  # fmt: skip
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def assert_same(got: Any, sent: Any) -> None:
    assert type(got) is type(sent)
    assert got == sent
    assert repr(got) == repr(sent)  # the types at every depth


# ---------------------------------------------------------------- without sockets


@each_family
def test_a_message_of_a_trusted_package_arrives_as_itself(family: Family) -> None:
    packages, _, values = family()
    scope = Scope(trusted=(*packages.split(), "langchain_core"))
    for sent in values:
        for value in (sent, [{"k": sent}]):
            encoded = codec.encode(value)
            assert_same(codec.decode(encoded.payload, encoded.buffers, scope=scope), value)


@each_family
def test_a_message_that_a_parameter_is_annotated_with_arrives_as_itself(family: Family) -> None:
    _, hint, values = family()

    def method(self: Any, value: Any) -> Any:
        raise NotImplementedError

    method.__annotations__ = {"value": hint}
    scope = Scope(expected=codec.expected_by(method))
    for sent in values:
        encoded = codec.encode_call((sent,), {})
        args, _ = codec.decode_call(encoded.payload, encoded.buffers, scope=scope)
        assert_same(args[0], sent)


@each_family
def test_a_message_that_nobody_knows_is_refused_with_the_remedy(family: Family) -> None:
    _, _, values = family()
    for sent in values:
        encoded = codec.encode_call((sent,), {})
        with pytest.raises(SerializationError, match=r"annotate the parameter or result with .*\(--types"):
            codec.decode_call(encoded.payload, encoded.buffers)


class Errand:
    """No class of a kind that the codec knows, as `langgraph.types.Send`, which the adapter registers."""

    def __init__(self, node: str, arg: Any) -> None:
        self.node = node
        self.arg = arg

    def __eq__(self, other: object) -> bool:
        return type(other) is Errand and vars(other) == vars(self)

    def __repr__(self) -> str:
        return f"Errand({self.node!r}, {self.arg!r})"


def test_a_plain_class_inside_a_message_is_refused_until_it_is_registered() -> None:
    types = pytest.importorskip("langgraph.types")
    sent = types.Command(goto=[Errand("a", {"x": 1})])
    with pytest.raises(SerializationError, match=r"goto\[0\]: test_messages.Errand has no msgpack form"):
        codec.encode(sent)
    with forgotten():
        codec.register_type(Errand)
        encoded = codec.encode(sent)
        assert_same(codec.decode(encoded.payload, scope=Scope(trusted=("langgraph",))), sent)


# ---------------------------------------------------------------- through a host


def agent_that_takes(hint: Any) -> type[AgentBase]:
    class Taker(AgentBase):
        def back(self, value: Any) -> Any:
            return value

        def take(self, value: Any) -> Any:
            return value

        def each(self, value: Any) -> Iterator[Any]:
            yield from [value, value]

        def kind(self, value: Any) -> str:
            return type(value).__name__

    Taker.take.__annotations__ = {"value": hint, "return": hint}
    return Taker


@contextmanager
def taker_on_host(hint: Any, **settings: Any) -> Iterator[tuple[RpcClient, Any]]:
    cls = agent_that_takes(hint)
    with host(cls, **settings) as launcher, client_of(launcher, types=settings.get("types", ())) as client:
        yield client, client.create_agent(cls)


@pytest.mark.program
@each_family
def test_a_message_goes_to_a_host_and_back_with_its_package_trusted(family: Family) -> None:
    packages, hint, values = family()
    with taker_on_host(hint, types=(*packages.split(), "langchain_core")) as (_, taker):
        for sent in values:
            assert_same(taker.back(sent), sent)
            assert taker.kind(sent) == type(sent).__name__
            for got in taker.each(sent):
                assert_same(got, sent)


@pytest.mark.program
@each_family
def test_a_message_goes_to_an_annotated_method_and_back_without_trust(family: Family) -> None:
    _, hint, values = family()
    with taker_on_host(hint) as (_, taker):
        for sent in values:
            assert_same(taker.take(sent), sent)
        with pytest.raises(SerializationError, match="--types"):
            taker.kind(values[0])


@pytest.mark.program
def test_a_graph_that_was_interrupted_goes_on_with_the_command_of_a_caller() -> None:
    graphs = pytest.importorskip("langgraph.graph")
    types = pytest.importorskip("langgraph.types")
    memory = pytest.importorskip("langgraph.checkpoint.memory")

    class Asker(AgentBase):
        def __init__(self) -> None:
            super().__init__()
            graph = graphs.StateGraph(dict)
            graph.add_node("ask", lambda state: {"answer": types.interrupt("go on?")})
            graph.add_edge(graphs.START, "ask")
            self.graph = graph.compile(checkpointer=memory.InMemorySaver())

        def run(self, command: Any) -> Any:
            return self.graph.invoke(command, {"configurable": {"thread_id": "1"}})

    with host(Asker, types=("langgraph",)) as launcher, client_of(launcher, types=("langgraph",)) as client:
        asker = client.create_agent(Asker)
        assert [each.value for each in asker.run({"question": 1})["__interrupt__"]] == ["go on?"]
        assert asker.run(types.Command(resume="yes")) == {"answer": "yes"}
