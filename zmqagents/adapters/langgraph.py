"""Compiled graphs of langgraph as agents.

A graph with a checkpointer remembers its *threads*, conversations that have an id. One that has stopped to ask a person
(``interrupt``) goes on with `GraphAgent.resume`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langgraph.types import Command, Interrupt, Send, StateSnapshot

from ..agents.base import AgentBase
from ..codec import register_type
from .langchain import Given, as_messages, text_of

__all__ = ["GraphAgent"]

register_type(Send, to_data=lambda send: (send.node, send.arg), from_data=lambda data: Send(*data))

State: TypeAlias = Given | Command | Interrupt | StateSnapshot
Config = dict[str, Any] | None


class GraphAgent(AgentBase):
    """A compiled graph. ``thread``: the id of a conversation, for a graph with a checkpointer."""

    def __init__(self, graph: Any, name: str | None = None) -> None:
        super().__init__(name or graph.get_name())
        self._graph = graph

    async def reply(self, message: Given, thread: str | None = None) -> State:
        """Answer a text, a message or several: the last message, or the list of interrupts if the graph has stopped.

        For graphs whose state has ``messages``.
        """
        return _answer(await self._graph.ainvoke({"messages": as_messages(message)}, _config(thread)))

    async def resume(self, value: Any, thread: str, interrupt_id: str | None = None) -> State:
        """Go on where the graph has stopped, with the answer ``value``; what `reply` gives."""
        command = Command(resume=value if interrupt_id is None else {interrupt_id: value})
        return _answer(await self._graph.ainvoke(command, _config(thread)))

    async def tokens(self, message: Given, thread: str | None = None) -> AsyncIterator[str]:
        """The text of the answer, piece by piece, as the models of the graph make it."""
        given = {"messages": as_messages(message)}
        async for item, _ in self._graph.astream(given, _config(thread), stream_mode="messages"):
            if isinstance(item, (AIMessage, AIMessageChunk)) and (text := text_of(item)):
                yield text

    async def invoke(self, value: State, config: Config = None, **more: Any) -> State:
        """The state of the graph after a run with the input ``value``, or with a `Command`; as ``ainvoke``."""
        return await self._graph.ainvoke(value, config, **more)

    async def stream(
        self, value: State, config: Config = None, *, stream_mode: str | Sequence[str] = "updates", **more: Any
    ) -> AsyncIterator[State]:
        """What happens in a run, as ``astream`` gives it in this mode."""
        async for item in self._graph.astream(value, config, stream_mode=stream_mode, **more):
            yield item

    async def get_state(self, config: str | dict[str, Any]) -> State:
        """The state of a thread, by its id or a config."""
        return await self._graph.aget_state(_config(config) if isinstance(config, str) else config)

    async def update_state(
        self, config: str | dict[str, Any], values: State, as_node: str | None = None
    ) -> dict[str, Any]:
        """Change the state of a thread; the config of the new one."""
        where = _config(config) if isinstance(config, str) else config
        changed: dict[str, Any] = await self._graph.aupdate_state(where, values, as_node)
        return changed


def _config(thread: str | None) -> Config:
    return None if thread is None else {"configurable": {"thread_id": thread}}


def _answer(state: Any) -> Any:
    interrupts = state.get("__interrupt__")
    if interrupts:
        return list(interrupts)
    messages: list[BaseMessage] = state["messages"]
    return messages[-1]
