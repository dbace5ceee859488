"""Agents of google-adk as agents.

Each conversation is a session, which has an id. A run that needs a person's confirmation ends with a function call of
``adk_request_confirmation``; the next message answers it with a ``FunctionResponse``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from google.adk.agents import BaseAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.events import Event
from google.adk.runners import InMemoryRunner
from google.genai import types

from ..agents.base import AgentBase

__all__ = ["AdkAgent"]

Given: TypeAlias = str | types.Content
_SSE = RunConfig(streaming_mode=StreamingMode.SSE)


class AdkAgent(AgentBase):
    """An agent of google-adk, or a runner that has one. A text stands for a message of the user."""

    def __init__(self, agent: Any) -> None:
        self._runner = InMemoryRunner(agent) if isinstance(agent, BaseAgent) else agent
        super().__init__(self._runner.agent.name)

    async def reply(self, message: Given, session: str = "main", user: str = "user") -> types.Content | None:
        """The content of the last event of a run: the answer, or the function call that asks for something."""
        last = None
        async for event in self.events(message, session, user, stream=False):
            last = event.content or last
        return last

    async def tokens(self, message: Given, session: str = "main", user: str = "user") -> AsyncIterator[str]:
        """The text of the answer, piece by piece."""
        async for event in self.events(message, session, user):
            if event.partial and event.content is not None:
                for part in event.content.parts or ():
                    if part.text and not part.thought:
                        yield part.text

    async def events(
        self, message: Given, session: str = "main", user: str = "user", *, stream: bool = True
    ) -> AsyncIterator[Event]:
        """The events of a run. ``stream``: those of the pieces of what the model says, too."""
        await self._session(session, user)
        items = self._runner.run_async(
            user_id=user, session_id=session, new_message=_content(message), run_config=_SSE if stream else RunConfig()
        )
        try:
            async for event in items:
                yield event
        finally:
            await items.aclose()

    async def history(self, session: str = "main", user: str = "user") -> list[Event]:
        """The events of a session so far."""
        return list((await self._session(session, user)).events)

    async def add_history(self, events: list[Event], session: str = "main", user: str = "user") -> None:
        """Append ``events``, of another session say."""
        kept = await self._session(session, user)
        for event in events:
            await self._runner.session_service.append_event(kept, event)

    async def _session(self, session: str, user: str) -> Any:
        where = {"app_name": self._runner.app_name, "user_id": user, "session_id": session}
        sessions = self._runner.session_service
        return await sessions.get_session(**where) or await sessions.create_session(**where)

    async def on_stop(self) -> None:
        """Close the runner."""
        await self._runner.close()


def _content(message: Given) -> types.Content:
    if isinstance(message, str):
        return types.Content(role="user", parts=[types.Part(text=message)])
    return message
