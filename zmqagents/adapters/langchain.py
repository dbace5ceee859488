"""Runnables of langchain as agents: chat models, chains, retrievers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.messages import AnyMessage, BaseMessage, HumanMessage
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue

from ..agents.base import AgentBase

__all__ = ["RunnableAgent"]

Given: TypeAlias = AnyMessage | BaseMessage | ChatPromptValue | StringPromptValue | Document | Any


class RunnableAgent(AgentBase):
    """A runnable: its inputs and outputs are messages, documents, and whatever else can be sent."""

    def __init__(self, runnable: Any, name: str | None = None) -> None:
        super().__init__(name or runnable.get_name())
        self._runnable = runnable

    async def reply(self, message: Given, config: dict[str, Any] | None = None) -> Given:
        """The same as `invoke`."""
        return await self._runnable.ainvoke(message, config)

    async def invoke(self, value: Given, config: dict[str, Any] | None = None) -> Given:
        """What the runnable gives for ``value``: of a chat model a message."""
        return await self._runnable.ainvoke(value, config)

    async def batch(self, values: list[Given], config: dict[str, Any] | None = None) -> list[Given]:
        """What it gives for each of ``values``, which it works on at the same time."""
        found: list[Given] = await self._runnable.abatch(values, config)
        return found

    async def stream(self, value: Given, config: dict[str, Any] | None = None) -> AsyncIterator[Given]:
        """What it gives for ``value``, piece by piece: of a chat model the chunks of a message."""
        async for item in self._runnable.astream(value, config):
            yield item

    async def tokens(self, value: Given, config: dict[str, Any] | None = None) -> AsyncIterator[str]:
        """The text of what it gives, piece by piece."""
        async for item in self._runnable.astream(value, config):
            text = text_of(item)
            if text:
                yield text


def text_of(item: Any) -> str:
    """The text of a message, of one piece of it, or of what is text itself."""
    text: Any = item.text if isinstance(item, BaseMessage) else item
    return str(text) if isinstance(text, str) else ""


def as_messages(message: Given) -> list[Any]:
    """What a person says, as messages."""
    if isinstance(message, str):
        return [HumanMessage(message)]
    return message if isinstance(message, list) else [message]
