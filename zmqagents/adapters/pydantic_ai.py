"""Agents of pydantic-ai as agents.

A history is a list of ``ModelMessage``: what one run gives as ``messages`` the next one takes as ``history``. A run
that needs a person's approval ends with ``DeferredToolRequests`` as its output; the next one, with the history and
`DeferredToolResults`, goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias, TypedDict

from pydantic_ai import DeferredToolRequests, DeferredToolResults
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    UserContent,
)

from ..agents.base import AgentBase

__all__ = ["PydanticAgent", "Run"]

Prompt: TypeAlias = str | Sequence[UserContent] | None
History: TypeAlias = Sequence[ModelMessage] | None
Output: TypeAlias = DeferredToolRequests | Any


class Run(TypedDict):
    """What comes of a run: its output, and the messages of the whole conversation."""

    output: Output
    messages: list[ModelMessage]


class PydanticAgent(AgentBase):
    """An agent of pydantic-ai. ``deps`` is for its tools: it may be the proxy of another agent."""

    def __init__(self, agent: Any, name: str | None = None) -> None:
        super().__init__(name or agent.name)
        self._agent = agent

    async def reply(self, prompt: Prompt, history: History = None, deps: Any = None) -> Output:
        """The output of a run."""
        return (await self._agent.run(prompt, message_history=history, deps=deps)).output

    async def run(
        self, prompt: Prompt = None, history: History = None, deps: Any = None,
        deferred: DeferredToolResults | None = None, **more: Any,
    ) -> Run:  # fmt: skip
        """The output of a run, and its messages. ``deferred``: what a person says to the deferred requests."""
        return _run(
            await self._agent.run(
                prompt, message_history=history, deferred_tool_results=deferred, deps=deps, **more
            )
        )  # fmt: skip

    async def tokens(self, prompt: Prompt, history: History = None, deps: Any = None) -> AsyncIterator[str]:
        """The text of the output, piece by piece."""
        async for event in self.events(prompt, history, deps):
            if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                text = event.part.content
            elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                text = event.delta.content_delta
            else:
                text = ""
            if text:
                yield text

    async def events(
        self, prompt: Prompt = None, history: History = None, deps: Any = None,
        deferred: DeferredToolResults | None = None,
    ) -> AsyncIterator[AgentStreamEvent | Run]:  # fmt: skip
        """The events of a run, and as the last item what `run` gives."""
        async with self._agent.run_stream_events(
            prompt, message_history=history, deferred_tool_results=deferred, deps=deps
        ) as events:
            async for event in events:
                yield _run(event.result) if event.event_kind == "agent_run_result" else event


def _run(result: Any) -> Run:
    return Run(output=result.output, messages=result.all_messages())
