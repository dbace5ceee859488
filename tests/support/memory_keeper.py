"""A keeper of agents' states for hosts in the process of a test."""

from __future__ import annotations

import threading

from zmqagents.agents.state import Reminder, Snapshot
from zmqagents.errors import ConfigError


class MemoryKeeper:
    """A `Keeper` in the memory of this process, whose end it does not outlive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, Snapshot] = {}

    def __repr__(self) -> str:
        with self._lock:
            count = len(self._kept)
            size = sum(len(frame) for snapshot in self._kept.values() for frame in snapshot.frames)
        return f"<MemoryKeeper [{count} snapshots, {size} bytes]>"

    def keeps(self, agent_id: str) -> bool:
        """See `Keeper`."""
        return True

    def keep(self, agent_id: str, snapshot: Snapshot, of: object = None) -> None:
        """See `Keeper`."""
        with self._lock:
            kept = self._kept.get(agent_id)
            if kept is None or snapshot.number > kept.number:
                self._kept[agent_id] = snapshot

    def remind(self, reminder: Reminder, ticket: object) -> None:
        """See `Keeper`."""
        raise ConfigError(f"no reminders here: {reminder.name}")

    def last(self, agent_id: str) -> Snapshot | None:
        """See `Keeper`."""
        with self._lock:
            return self._kept.get(agent_id)

    def forget(self, agent_id: str) -> None:
        """See `Keeper`."""
        with self._lock:
            self._kept.pop(agent_id, None)
