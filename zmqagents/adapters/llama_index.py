"""Agents and workflows of llama-index as agents.

A run that needs a person's word stops with an ``InputRequiredEvent``; `LlamaAgent.respond` goes on with the last one
that has. An earlier one ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from llama_index.core.agent.workflow import AgentOutput, AgentStream
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.workflow import Event, HumanResponseEvent, InputRequiredEvent, StopEvent

from ..agents.base import AgentBase

__all__ = ["LlamaAgent"]

History: TypeAlias = list[ChatMessage] | None
Result: TypeAlias = AgentOutput | InputRequiredEvent | Any


class LlamaAgent(AgentBase):
    """An agent, an ``AgentWorkflow`` or another workflow of llama-index. Each run has its history from its caller."""

    def __init__(self, workflow: Any) -> None:
        super().__init__(getattr(workflow, "name", None))
        self._workflow = workflow
        self._asking: Any = None  # the run that waits for a person

    async def reply(self, message: str | ChatMessage, history: History = None) -> ChatMessage | Result:
        """The answer of a run, or the event that asks a person."""
        result = await self.run(message, history)
        return result.response if isinstance(result, AgentOutput) else result

    async def run(self, message: str | ChatMessage | None = None, history: History = None, **more: Any) -> Result:
        """What a run gives, or the event that asks a person; ``more`` is for the start event of a workflow."""
        return await _last(self._follow(self._begin(message, history, more)))

    async def respond(self, answer: str | HumanResponseEvent) -> Result:
        """Go on with the run that has asked a person; what `run` gives."""
        run, self._asking = self._asking, None
        if run is None:
            raise ValueError("no run waits for an answer")
        run.ctx.send_event(HumanResponseEvent(response=answer) if isinstance(answer, str) else answer)
        return await _last(self._follow(run))

    async def tokens(self, message: str | ChatMessage, history: History = None) -> AsyncIterator[str]:
        """The text of the answer, piece by piece."""
        async for event in self.events(message, history):
            if isinstance(event, AgentStream) and event.delta:
                yield event.delta

    async def events(
        self, message: str | ChatMessage | None = None, history: History = None, **more: Any
    ) -> AsyncIterator[Event | Result]:
        """The events of a run, and at last what `run` gives."""
        items = self._follow(self._begin(message, history, more))
        try:
            async for event in items:
                yield event
        finally:
            await items.aclose()

    def _begin(self, message: Any, history: History, more: dict[str, Any]) -> Any:
        given = {"user_msg": message, "chat_history": history}
        return self._workflow.run(**{name: value for name, value in given.items() if value is not None}, **more)

    async def _follow(self, run: Any) -> Any:
        events = run.stream_events()
        try:
            async for event in events:
                if isinstance(event, StopEvent):
                    break
                yield _sendable(event)
                if isinstance(event, InputRequiredEvent):
                    await self._break_off()
                    self._asking = run
                    return
            yield _sendable(await run)
        finally:
            await events.aclose()
            if self._asking is not run:
                await run.cancel_run()

    async def on_stop(self) -> None:
        """Break off the run that waits for a person."""
        await self._break_off()

    async def _break_off(self) -> None:
        if self._asking is not None:
            await self._asking.cancel_run()


def _sendable(event: Any) -> Any:
    """``event`` without what the model's own package has said, and with tool calls of the class that it declares."""
    if isinstance(event, AgentOutput):
        calls = [ToolSelection(tool_id=c.tool_id, tool_name=c.tool_name, tool_kwargs=c.tool_kwargs)
                 for c in event.tool_calls]  # fmt: skip
        return event.model_copy(update={"tool_calls": calls, "raw": None})
    return event.model_copy(update={"raw": None}) if isinstance(event, AgentStream) else event


async def _last(items: Any) -> Any:
    try:
        *_, last = [item async for item in items]
        return last
    finally:
        await items.aclose()
