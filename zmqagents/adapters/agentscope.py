"""Agents of AgentScope 2 as agents.

A reply that needs a person's word, or that of another program, is the event that asks for it; the next call of
`ScopeAgent.reply` answers with ``UserConfirmResultEvent`` or ``ExternalExecutionResultEvent``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

from agentscope.event import (
    AgentEvent,
    ExternalExecutionResultEvent,
    RequireExternalExecutionEvent,
    RequireUserConfirmEvent,
    TextBlockDeltaEvent,
    UserConfirmResultEvent,
    UserInterruptEvent,
)
from agentscope.message import Msg, UserMsg
from agentscope.state import AgentState

from ..agents.base import AgentBase

__all__ = ["ScopeAgent"]

Answer: TypeAlias = UserConfirmResultEvent | UserInterruptEvent | ExternalExecutionResultEvent
Given: TypeAlias = str | Msg | list[Msg] | Answer | None
_ASKS = (RequireUserConfirmEvent, RequireExternalExecutionEvent)


class ScopeAgent(AgentBase):
    """An agent of AgentScope 2, which keeps its context itself. A text stands for a message of the user."""

    def __init__(self, agent: Any) -> None:
        super().__init__(agent.name)
        self._agent = agent

    async def reply(self, message: Given = None) -> Msg | RequireUserConfirmEvent | RequireExternalExecutionEvent:
        """The answer, or the event that asks for something."""
        last: Any = None
        async for item in self.events(message):
            if isinstance(item, Msg) or (isinstance(item, _ASKS) and item.tool_calls):
                last = item if last is None or isinstance(last, Msg) else last
        return last

    async def observe(self, message: str | Msg | list[Msg]) -> None:
        """Take a message into the context without an answer."""
        await self._agent.observe(_message(message))

    async def tokens(self, message: Given = None) -> AsyncIterator[str]:
        """The text of the answer, piece by piece."""
        async for item in self.events(message):
            if isinstance(item, TextBlockDeltaEvent):
                yield item.delta

    async def events(self, message: Given = None) -> AsyncIterator[AgentEvent | Msg]:
        """The events of a reply, and the answer as the last item."""
        items = self._agent.reply_stream(_message(message), yield_final_msg=True)
        async for item in items:
            yield item

    @property
    def state(self) -> AgentState:
        """What the agent remembers."""
        return self._agent.state

    async def set_state(self, state: AgentState) -> None:
        """Have the agent go on from the ``state`` of an earlier one."""
        self._agent.state = state


def _message(given: Any) -> Any:
    return UserMsg("user", given) if isinstance(given, str) else given
