"""Takes the states of agents of a cluster where their code runs, and hands them to the router thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...agents.state import Reminder, Snapshot
from ...checks import CLUSTER
from ...cluster.activations import MAX_STATE_BYTES
from ...codec import pack, unpack
from ...errors import RemoteProtocolError

__all__ = ["ClusterKeeper", "packed", "unpacked"]

MAX_BYTES = 2 * MAX_STATE_BYTES


class ClusterKeeper:
    """The `Keeper` of a member. `open` says who takes the states."""

    def __init__(self) -> None:
        self._take: Callable[[str, Snapshot, object], None] = _lose
        self._remind: Callable[[str, Reminder, object], None] = _lose
        self._given: dict[str, Snapshot] = {}

    def open(
        self, take: Callable[[str, Snapshot, object], None], remind: Callable[[str, Reminder, object], None]
    ) -> None:
        """Have ``take`` called with each state, by the thread that has saved it and before the end of its call.

        ``remind`` is called in the same way with each reminder, before the state that it goes with.
        """
        self._take = take
        self._remind = remind

    def keeps(self, agent_id: str) -> bool:
        """Agents of the host alone live and end with it."""
        return agent_id.startswith(CLUSTER)

    def keep(self, agent_id: str, snapshot: Snapshot, of: object = None) -> None:
        """Take the state of an agent of the cluster."""
        if self.keeps(agent_id):
            self._take(agent_id, snapshot, of)

    def remind(self, reminder: Reminder, ticket: Any) -> None:
        """Keep a reminder with the state of the turn that runs. Raises HostBusy."""
        self._remind(ticket.agent.agent_id, reminder, ticket.agent)

    def give(self, agent_id: str, snapshot: Snapshot) -> None:
        """The state that an agent has, which is about to be made here."""
        self._given[agent_id] = snapshot

    def last(self, agent_id: str) -> Snapshot | None:
        """What `give` has given; once."""
        return self._given.pop(agent_id, None)

    def forget(self, agent_id: str) -> None:
        """Nothing is kept here."""


def packed(frames: Sequence[bytes | memoryview | bytearray]) -> bytes:
    """Frames as one value for Redis."""
    return pack([bytes(frame) for frame in frames])


def unpacked(data: bytes) -> tuple[bytes, ...]:
    """The reverse of `packed`; RemoteProtocolError for anything else."""
    parts = unpack(data, max_bytes=MAX_BYTES)
    if not isinstance(parts, (list, tuple)) or not parts or not all(isinstance(part, bytes) for part in parts):
        raise RemoteProtocolError("what the record of an agent keeps is not as a host has written it")
    return tuple(parts)


def _lose(agent_id: str, what: object, of: object) -> None:
    """Nobody takes it: the host has not begun."""
