"""Where agents were last seen: at a client, and at a host that passes calls on.

It may be wrong at any time, and nothing depends on it but the length of the way: who is asked in vain says where the
agent is. An entry gives way to one of a higher epoch only, since word of an earlier home may come late. An entry that
has proved wrong is dropped whatever its epoch is: Redis may have lost the latest one.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MAX_HOMES", "Home", "Homes"]

MAX_HOMES = 65_536  # some 20 MiB of names, addresses and entries


class Home(NamedTuple):
    """The address of the host that runs an agent, and the epoch of its activation there."""

    address: str
    epoch: int


class Homes:
    """The homes of at most ``most`` agents; the one that was noted first goes first. For one thread."""

    def __init__(self, most: int = MAX_HOMES) -> None:
        self._most = most
        self._homes: dict[str, Home] = {}
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._homes)

    def __repr__(self) -> str:
        return f"<Homes [{len(self)} of {self._most}] {self.hits} hits, {self.misses} misses>"

    def __contains__(self, name: object) -> bool:
        return name in self._homes  # this look is not counted

    def find(self, name: str) -> Home | None:
        """Where the agent is, as far as is known."""
        home = self._homes.get(name)
        if home is None:
            self.misses += 1
        else:
            self.hits += 1
        return home

    def note(self, name: str, address: str, epoch: int) -> bool:
        """Take note of a home; False if a later one is known."""
        known = self._homes.get(name)
        if known is not None:
            if epoch <= known.epoch:
                return False
            del self._homes[name]
        elif len(self._homes) >= self._most:
            del self._homes[next(iter(self._homes))]
        self._homes[name] = Home(address, epoch)
        return True

    def drop(self, name: str, address: str) -> bool:
        """The agent is not at ``address``; True if it was thought to be."""
        known = self._homes.get(name)
        if known is None or known.address != address:
            return False
        del self._homes[name]
        return True

    def forget(self, name: str) -> None:
        """The agent is at this very host."""
        self._homes.pop(name, None)

    def drop_all_at(self, address: str) -> int:
        """The host at ``address`` is gone; how many agents were thought to be there."""
        gone = [name for name, home in self._homes.items() if home.address == address]
        for name in gone:
            del self._homes[name]
        return len(gone)
