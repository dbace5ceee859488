"""Agents of smolagents as agents.

They block, so they run in worker threads, and a run that is cancelled is broken off at the next step of its Python
code (`interruptible`). The agent keeps its memory: a run with ``reset=False`` goes on from it. What its console prints
is on the host's stdout, unless the agent is made with ``verbosity_level=LogLevel.OFF``.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, TypeAlias

from smolagents import ChatMessage, ChatMessageStreamDelta
from smolagents.agent_types import AgentType
from smolagents.memory import ActionStep, FinalAnswerStep, PlanningStep, TaskStep, ToolCall

from ..agents.base import AgentBase
from ..agents.marks import async_func, interruptible

__all__ = ["SmolAgent"]

Step: TypeAlias = TaskStep | ActionStep | PlanningStep


class SmolAgent(AgentBase):
    """An agent of smolagents: a ``CodeAgent`` or a ``ToolCallingAgent``."""

    def __init__(self, agent: Any) -> None:
        super().__init__(agent.name)
        self._agent = agent

    @async_func
    @interruptible
    def reply(self, task: str, *, reset: bool = True, **more: Any) -> Any:
        """The final answer to a task; ``more`` is what ``run`` takes (images, additional_args, max_steps)."""
        return _raw(self._agent.run(task, reset=reset, **{**more, "stream": False, "return_full_result": False}))

    def tokens(self, task: str, *, reset: bool = True, **more: Any) -> Iterator[str]:
        """What the model says, piece by piece: of agents with ``stream_outputs``."""
        for item in self.events(task, reset=reset, **more):
            if isinstance(item, ChatMessageStreamDelta) and item.content:
                yield item.content

    def events(
        self, task: str, *, reset: bool = True, **more: Any
    ) -> Iterator[ChatMessageStreamDelta | ToolCall | ActionStep | PlanningStep | FinalAnswerStep]:
        """What happens in a run, and at last its final answer."""
        items = self._agent.run(task, reset=reset, **{**more, "stream": True})
        try:
            for item in items:
                if isinstance(item, (ActionStep, PlanningStep, FinalAnswerStep)):
                    yield _sendable(item)
                elif isinstance(item, (ChatMessageStreamDelta, ToolCall)):
                    yield item
        finally:
            with contextlib.suppress(RuntimeError):  # it has one step more to give when it is closed
                items.close()

    def get_steps(self) -> list[Step]:
        """What the agent remembers."""
        return [_sendable(step) for step in self._agent.memory.steps]

    def set_steps(self, steps: list[Step]) -> None:
        """Have the agent remember ``steps``, of another one say; a run with ``reset=False`` goes on from there."""
        self._agent.memory.steps[:] = steps

    def messages(self) -> list[ChatMessage]:
        """What the agent remembers, as its model gets it."""
        return list(self._agent.write_memory_to_messages())


def _raw(answer: Any) -> Any:
    """A final answer as what it is: a text, an image."""
    while isinstance(answer, AgentType):  # smolagents may have wrapped it twice
        answer = answer.to_raw()
    return answer


def _sendable(step: Any) -> Any:
    """``step`` without what the model was asked, and its package has said; an error is told as an observation."""
    if isinstance(step, ActionStep):
        told = [step.observations, str(step.error) if step.error else None]
        output = step.model_output_message and dataclasses.replace(step.model_output_message, raw=None)
        return dataclasses.replace(
            step, model_input_messages=None, model_output_message=output, error=None,
            action_output=_raw(step.action_output),
            observations="\n".join(text for text in told if text) or None,
        )  # fmt: skip
    if isinstance(step, FinalAnswerStep):
        return FinalAnswerStep(_raw(step.output))
    if isinstance(step, PlanningStep):
        output = dataclasses.replace(step.model_output_message, raw=None)
        return dataclasses.replace(step, model_input_messages=[], model_output_message=output)
    return step
