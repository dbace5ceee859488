"""Which host the calls to an agent go to: where it was last seen, else the host that is asked for everything.

All unanswered calls of one client to one agent go one way, so that none overtakes another. So word of a shorter way is
followed by the first call that finds no other one unanswered. A host that has failed is taken by no new call.
"""

from __future__ import annotations

import threading

from ...cluster.cache import Homes
from ...wire.messages import Home

__all__ = ["Way", "Ways"]


class Way:
    """Where some calls to ``agent`` go: ``address``, "" for the host that is asked for everything."""

    __slots__ = ("address", "agent", "open")

    def __init__(self, agent: str, address: str) -> None:
        self.agent = agent
        self.address = address
        self.open = 1


class Ways:
    """See the module's docstring. ``follows`` False: no call goes a shorter way. Any thread."""

    def __init__(self, *, follows: bool = True) -> None:
        self._follows = follows
        self._lock = threading.Lock()
        self._homes = Homes()
        self._open: dict[str, Way] = {}

    def __repr__(self) -> str:
        return f"<Ways to {len(self._open)} agents, {self._homes!r}>"

    def renew_lock(self) -> None:
        """In a forked child: a thread that is not here may hold it."""
        self._lock = threading.Lock()

    def begin(self, agent: str) -> Way:
        """A call is about to be sent; `end` it."""
        with self._lock:
            way = self._open.get(agent)
            if way is not None:
                way.open += 1
                return way
            home = self._homes.find(agent) if self._follows else None
            way = self._open[agent] = Way(agent, home.address if home is not None else "")
            return way

    def end(self, way: Way) -> None:
        """The call has its answer, or will get none this way."""
        with self._lock:
            way.open -= 1
            if not way.open and self._open.get(way.agent) is way:
                del self._open[way.agent]

    def hinted(self, home: Home) -> None:
        """An agent is there."""
        if self._follows and home.address:
            with self._lock:
                self._homes.note(home.agent, home.address, home.epoch)

    def failed(self, address: str) -> None:
        """The host at ``address`` does not answer, or goes: no further call is to go there."""
        with self._lock:
            self._homes.drop_all_at(address)
            for agent, way in list(self._open.items()):
                if way.address == address:
                    del self._open[agent]

    def misled(self, way: Way) -> None:
        """The host at this way's address does not have the agent, nor knows of it."""
        with self._lock:
            self._homes.drop(way.agent, way.address)
            if self._open.get(way.agent) is way:
                del self._open[way.agent]
