"""Saving the state of one agent: its ``save_state`` is called, and what it gives is packed for a `Keeper`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Awaitable
from typing import Any

from ... import codec, errors
from ...agents.state import MAX_STATE_BYTES, Keeper, Snapshot
from ...scheduler.records import AgentRecord

__all__ = ["StateSaver", "check_saves"]


class StateSaver:
    """Saves the state of agents in ``keeper``. Any thread that runs agents' code."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self._numbers = itertools.count(1)

    def save(self, record: AgentRecord) -> Awaitable[None] | None:
        """Save the state of an agent; what is to be awaited for that if ``save_state`` is async, else None.

        Raises what ``save_state`` raises, SerializationError and MessageTooLarge.
        """
        number = next(self._numbers)
        value = record.instance.save_state()
        if inspect.isawaitable(value):
            return self._save_later(record, number, value)
        self._keep(record, number, value)
        return None

    async def _save_later(self, record: AgentRecord, number: int, value: Awaitable[Any]) -> None:
        self._keep(record, number, await value)

    def _keep(self, record: AgentRecord, number: int, value: Any) -> None:
        what = f"the state of {record.agent_id}: "
        encoded = codec.encode(value, root="state", max_bytes=MAX_STATE_BYTES, what=what)
        frames = (encoded.payload, *map(bytes, encoded.buffers))  # copies: the agent goes on changing its arrays
        self.keeper.keep(record.agent_id, Snapshot(number, record.spec.hooks.state_writes, frames), record)


def check_saves(record: AgentRecord) -> None:
    """Raise ConfigError if the agent is none whose state is saved."""
    if record.options.persist is None:
        raise errors.ConfigError(
            f"{record.agent_id} ({record.spec.short}) has no state to save: it needs save_state, load_state and persist"
        )
