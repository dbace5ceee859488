"""Crews and agents of crewai as agents.

Their runs are coroutines, whose steps crewai runs in threads of its own. A run that is cancelled ends at once for its
agent; a step that blocks goes on in its thread to its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from crewai import Agent, Crew, Task
from crewai.crews.crew_output import CrewOutput
from crewai.lite_agent_output import LiteAgentOutput
from crewai.types.streaming import StreamChunk

from ..agents.base import AgentBase

__all__ = ["CrewAgent"]

Given: TypeAlias = str | list[dict[str, Any]] | dict[str, Any]


class CrewAgent(AgentBase):
    """A crew, or one agent. A crew takes its inputs, a text being the input ``message``; an agent a text or messages.

    The pieces of what an agent says are those of a crew of that agent alone.
    """

    def __init__(self, crew: Any) -> None:
        self._agent = crew if isinstance(crew, Agent) else None  # agents of other libraries may know no `akickoff`
        name = crew.name if isinstance(crew, Crew) else crew.role
        if not isinstance(crew, Crew):
            task = Task(description="{message}", expected_output="an answer", agent=crew)
            crew = Crew(agents=[crew], tasks=[task])
        super().__init__(name)
        self._crew = crew.model_copy(update={"stream": False})
        self._streaming = crew.model_copy(update={"stream": True})

    async def reply(self, given: Given) -> str:
        """The text of the answer."""
        return str((await self.run(given)).raw)

    async def run(self, given: Given) -> CrewOutput | LiteAgentOutput:
        """All that comes of a run; that of an agent has its messages."""
        if self._agent is not None and not isinstance(given, dict):
            return await self._agent.akickoff(given)
        return await self._crew.akickoff(inputs=_inputs(given))

    async def tokens(self, given: Given) -> AsyncIterator[str]:
        """What the models say, piece by piece: of models that stream."""
        async for chunk in self.events(given):
            if chunk.content:
                yield chunk.content

    async def events(self, given: Given) -> AsyncIterator[StreamChunk]:
        """What the models say and which tools they call, piece by piece."""
        stream = await self._streaming.akickoff(inputs=_inputs(given))
        try:
            async for chunk in stream:
                yield chunk
        finally:
            await stream.aclose()


def _inputs(given: Given) -> dict[str, Any]:
    return given if isinstance(given, dict) else {"message": given}
