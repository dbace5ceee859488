"""Agents and teams of autogen-agentchat as agents.

They keep their history themselves. A team that has stopped for a person (a handoff to one) goes on with the person's
message as its next task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, TypeAlias

from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import BaseAgentEvent, BaseChatMessage, ModelClientStreamingChunkEvent
from autogen_core import CancellationToken

from ..agents.base import AgentBase

__all__ = ["AutogenAgent"]

Task: TypeAlias = str | BaseChatMessage | Sequence[BaseChatMessage] | None
_END = object()


class AutogenAgent(AgentBase):
    """An agent or a team of autogen-agentchat: what runs tasks."""

    def __init__(self, runner: Any) -> None:
        super().__init__(getattr(runner, "name", None))
        self._runner = runner

    async def reply(self, task: Task = None) -> BaseChatMessage:
        """The last message of a run."""
        return (await self.run(task)).messages[-1]

    async def run(self, task: Task = None) -> TaskResult:
        """All messages and events of a run, and why it has stopped."""
        last: Any = None
        async for item in self.events(task):
            last = item
        return last

    async def tokens(self, task: Task = None) -> AsyncIterator[str]:
        """The text that the models say, piece by piece: of agents with ``model_client_stream``."""
        async for item in self.events(task):
            if isinstance(item, ModelClientStreamingChunkEvent):
                yield item.content

    async def events(self, task: Task = None) -> AsyncIterator[BaseChatMessage | BaseAgentEvent | TaskResult]:
        """The messages and events of a run as they come, and at last what `run` gives."""
        token = CancellationToken()
        items = self._runner.run_stream(task=task, cancellation_token=token)
        try:
            while (item := await _next(items, token)) is not _END:
                yield item
        finally:
            token.cancel()
            await items.aclose()

    async def reset(self) -> None:
        """Forget the history."""
        if hasattr(self._runner, "reset"):
            await self._runner.reset()
        else:
            await self._runner.on_reset(CancellationToken())

    async def get_state(self) -> dict[str, Any]:
        """What the agent or team remembers."""
        return dict(await self._runner.save_state())

    async def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state`` that `get_state` gave."""
        await self._runner.load_state(state)


async def _next(items: AsyncGenerator[Any, None], token: CancellationToken) -> Any:
    """The next item of a run. If this is cancelled the token is first: a team waits for its agents, which know that."""
    step = asyncio.ensure_future(anext(items, _END))
    try:
        await asyncio.wait([step])
    except asyncio.CancelledError:
        token.cancel()
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            await step
        raise
    return step.result()
