"""Which member runs which agent.

`Directory` is the interface; `LocalDirectory` is that of one host's children, a dictionary. An agent's *epoch* is the
number of times that it was put somewhere: what was said of an earlier epoch is out of date.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Directory", "LocalDirectory", "Place"]

M = TypeVar("M")


class Place(Generic[M]):  # no NamedTuple: on Python 3.10 that cannot be generic
    """Where an agent is."""

    __slots__ = ("epoch", "member")

    def __init__(self, member: M, epoch: int) -> None:
        self.member = member
        self.epoch = epoch


class Directory(Protocol[M]):
    """Which member runs which agent. One thread at a time."""

    def find(self, agent_id: str) -> Place[M] | None:
        """Where an agent is; None: no member runs it."""

    def put(self, agent_id: str, member: M) -> Place[M]:
        """Note that ``member`` runs an agent from now on."""

    def drop(self, agent_id: str) -> None:
        """Forget an agent, if it is known."""


class LocalDirectory(Generic[M]):
    """The directory of one host's own agents."""

    def __init__(self) -> None:
        self._places: dict[str, Place[M]] = {}
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __repr__(self) -> str:
        return f"<LocalDirectory [{len(self._places)} agents]>"

    def find(self, agent_id: str) -> Place[M] | None:
        """Where an agent is; None: no member runs it."""
        return self._places.get(agent_id)

    def put(self, agent_id: str, member: M) -> Place[M]:
        """Note that ``member`` runs an agent from now on."""
        self._epoch += 1
        place = self._places[agent_id] = Place(member, self._epoch)
        return place

    def drop(self, agent_id: str) -> None:
        """Forget an agent, if it is known."""
        self._places.pop(agent_id, None)
