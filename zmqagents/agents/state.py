"""What is kept of an agent's state, so that the agent can be made again.

A `Snapshot` is what ``save_state`` gave, packed. A `Keeper` takes snapshots and gives the last one of an agent back. A
host has a keeper only where somebody can make its agents again after it: that of a child is its parent. An agent of a
host without a keeper is never asked for its state.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

__all__ = ["Keeper", "Reminder", "Snapshot"]

MAX_STATE_BYTES = 1_048_576  # of one agent, packed


class Snapshot(NamedTuple):
    """The state of an agent at one moment.

    ``number`` rises with the moments at which ``save_state`` was called, on one host; ``version`` is the
    ``state_version`` of the class; ``frames`` are the codec's payload and buffers.
    """

    number: int
    version: int
    frames: tuple[bytes, ...]


class Reminder(NamedTuple):
    """What the code of an agent wants to be called for: its ``method``, with the arguments in ``frames``.

    In ``after_s``, and every ``every_s`` then; 0: that once. ``method`` "": the reminder of this name is cancelled.
    """

    name: str
    after_s: float
    every_s: float
    method: str
    frames: tuple[bytes, ...]


class Keeper(Protocol):
    """Keeps the last snapshot of each agent. Any thread may call it; no method may block for long."""

    def keeps(self, agent_id: str) -> bool:
        """Whether it takes the states of this agent: others are not asked for theirs."""

    def keep(self, agent_id: str, snapshot: Snapshot, of: object = None) -> None:
        """Take a snapshot, inside the turn of the call that may have changed the agent.

        ``of``: the record of the agent on this host, which may have had another agent of that id before.
        A snapshot whose number is lower than that of the one that is kept came late, and is dropped.
        """

    def remind(self, reminder: Reminder, ticket: Any) -> None:
        """Keep a reminder with the state of the turn that runs, which ``ticket`` has. Raises HostBusy."""

    def last(self, agent_id: str) -> Snapshot | None:
        """The last snapshot of an agent that is to be made again; None: it starts afresh."""

    def forget(self, agent_id: str) -> None:
        """The agent was deleted."""
