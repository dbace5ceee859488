"""Agents of openai-agents as agents.

A history is the list of input items that ``to_input_list`` gives: plain dictionaries. A run that needs a person's
approval has an empty output and a ``state``, a text with which `OpenAIAgent.resume` goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeAlias, TypedDict

from agents import Agent, RunConfig, Runner, RunState
from agents.items import TResponseStreamEvent
from agents.memory import Session

from ..agents.base import AgentBase

__all__ = ["OpenAIAgent", "Run"]

Item: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | list[Item]
Event: TypeAlias = TResponseStreamEvent | Any


class Run(TypedDict):
    """What comes of a run: its output, the input items of the whole conversation, and what is to be approved."""

    output: Any
    history: list[Item]
    approvals: list[Item]
    state: str


class OpenAIAgent(AgentBase):
    """An agent of openai-agents. ``session`` keeps the conversation; without one the caller does.

    ``context`` is for its tools: it may be the proxy of another agent.
    """

    def __init__(self, agent: Agent, session: Session | None = None, run_config: RunConfig | None = None) -> None:
        super().__init__(agent.name)
        self._agent = agent
        self._more = {"session": session, "run_config": run_config}

    async def reply(self, prompt: Prompt, context: Any = None) -> Any:
        """The output of a run."""
        return (await Runner.run(self._agent, prompt, context=context, **self._more)).final_output

    async def run(self, prompt: Prompt, context: Any = None, **more: Any) -> Run:
        """The output of a run, and its history; ``more`` is what ``Runner.run`` takes."""
        return _run(await Runner.run(self._agent, prompt, context=context, **self._more, **more))

    async def resume(self, state: str, approved: Mapping[str, bool | str], context: Any = None) -> Run:
        """Go on with a run that waits for approvals.

        ``approved``: for the id of each call True, or False, or a text that says why not.
        """
        before = await RunState.from_string(self._agent, state, context_override=context)
        for item in before.get_interruptions():
            said = approved.get(_of_raw(item.raw_item)["call_id"], False)
            if said is True:
                before.approve(item)
            else:
                before.reject(item, rejection_message=said or None)
        return _run(await Runner.run(self._agent, before, **self._more))

    async def tokens(self, prompt: Prompt, context: Any = None) -> AsyncIterator[str]:
        """The text of the output, piece by piece."""
        async for event in self.events(prompt, context):
            if not isinstance(event, dict) and event.type == "response.output_text.delta":
                yield event.delta

    async def events(self, prompt: Prompt, context: Any = None) -> AsyncIterator[Event | Item | Run]:
        """The events of a run: those of the model as they are, others as ``{name: item}``, at last what `run` gives."""
        run = Runner.run_streamed(self._agent, prompt, context=context, **self._more)
        try:
            async for event in run.stream_events():
                if event.type == "raw_response_event":
                    yield event.data
                elif event.type == "run_item_stream_event":
                    yield {event.name: _of_raw(event.item.raw_item)}
            yield _run(run)
        finally:
            run.cancel()  # nothing if it has ended


def _run(result: Any) -> Run:
    waiting = result.interruptions
    return Run(
        output=result.final_output, history=result.to_input_list(),
        approvals=[_of_raw(item.raw_item) for item in waiting],
        state=result.to_state().to_string() if waiting else "",
    )  # fmt: skip


def _of_raw(item: Any) -> Item:
    found: Item = item if isinstance(item, dict) else item.model_dump(exclude_unset=True)
    return found
