"""The fake chat model of langchain, which does what `fake_words` says; and it as an agent that others ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

import fake_words


class FakeModel(GenericFakeChatModel):
    """Does what the last message says."""

    messages: Iterator[Any] = iter(())

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    async def _astream(self, messages: list[BaseMessage], *args: Any, **options: Any) -> AsyncIterator[Any]:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            yield ChatGenerationChunk(message=AIMessageChunk(f"{last.name} gave {last.text}"))
        elif (call := fake_words.tool_call(last.text)) is not None:
            calls = [{"name": call.tool, "args": f'{{"word": "{call.argument}"}}', "id": "c1", "index": 0}]
            yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=calls))
        else:
            async for word in fake_words.words(last.text):
                yield ChatGenerationChunk(message=AIMessageChunk(word))

    async def _agenerate(self, *args: Any, **options: Any) -> ChatResult:
        whole: Any = None
        async for piece in self._astream(*args, **options):
            whole = piece.message if whole is None else whole + piece.message
        return ChatResult(generations=[ChatGeneration(message=AIMessage(whole.text, tool_calls=whole.tool_calls))])


def langchain_model() -> Any:
    """Makes an agent of it."""
    return FakeModel()


async def asked(other: Any, word: str) -> str:
    """What an agent of langchain answers, as text: for tools of other frameworks, on the host's event loop."""
    answer = await other.reply(word)
    return str(answer.text)
