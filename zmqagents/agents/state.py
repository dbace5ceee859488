"""What is kept of an agent's state, so that the agent can be made again.

A `Snapshot` is what ``save_state`` gave, packed. A `Keeper` takes snapshots and gives the last one of an agent back. A
host has a keeper only where somebody can make its agents again after it: that of a child is its parent. An agent of a
host without a keeper is never asked for its state.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

__all__ = ["Keeper", "MemoryKeeper", "Snapshot"]

MAX_STATE_BYTES = 1_048_576  # of one agent, packed


class Snapshot(NamedTuple):
    """The state of an agent at one moment.

    ``number`` rises with the moments at which ``save_state`` was called, on one host; ``version`` is the
    ``state_version`` of the class; ``frames`` are the codec's payload and buffers.
    """

    number: int
    version: int
    frames: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the packed state."""
        return sum(map(len, self.frames))


class Keeper(Protocol):
    """Keeps the last snapshot of each agent. Any thread may call it; no method may block for long."""

    def keep(self, agent_id: str, snapshot: Snapshot) -> None:
        """Take a snapshot, inside the turn of the call that may have changed the agent.

        A snapshot whose number is lower than that of the one that is kept came late, and is dropped.
        """

    def last(self, agent_id: str) -> Snapshot | None:
        """The last snapshot of an agent that is to be made again; None: it starts afresh."""

    def forget(self, agent_id: str) -> None:
        """The agent was deleted."""


class MemoryKeeper:
    """A `Keeper` in the memory of this process, whose end it does not outlive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Snapshot] = {}

    def __repr__(self) -> str:
        with self._lock:
            count, size = len(self._kept), sum(snapshot.size for snapshot in self._kept.values())
        return f"<MemoryKeeper [{count} snapshots, {size} bytes]>"

    def keep(self, agent_id: str, snapshot: Snapshot) -> None:
        """See `Keeper`."""
        with self._lock:
            kept = self._kept.get(agent_id)
            if kept is None or snapshot.number > kept.number:
                self._kept[agent_id] = snapshot

    def last(self, agent_id: str) -> Snapshot | None:
        """See `Keeper`."""
        with self._lock:
            return self._kept.get(agent_id)

    def forget(self, agent_id: str) -> None:
        """See `Keeper`."""
        with self._lock:
            self._kept.pop(agent_id, None)
