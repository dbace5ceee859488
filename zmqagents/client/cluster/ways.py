"""Which host the calls to an agent go to: where it was last seen, else the host that is asked for everything.

All unanswered calls of one client to one agent go one way, by one connection, so that none overtakes another. So word
of a shorter way is followed by the first call that finds no other one unanswered.

A way is *over* when its host has failed, or goes. What it has not executed is sent again, by the next way, and so is
what comes later, in the order in which it was asked for: each waits in the line of the way that is over until all calls
that were sent that way are answered, or for `GATHER_S`: the host may have taken a long one before.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from ...cluster.cache import Homes
from ...connection.connection import Connection
from ...wire.messages import Home

__all__ = ["GATHER_S", "InLine", "Way", "Ways", "numbers"]

GATHER_S = 1.0
numbers: Iterator[int] = itertools.count(1)  # of calls, as they are asked for


class InLine(Protocol):
    """A call that waits for the next way. ``number``: its place among all of the program."""

    number: int

    def go(self, way: Way) -> None:
        """It is to be sent by this way, which counts it already. In the thread of `Retries`."""


class Way:
    """Where some calls to ``agent`` go: ``address``, "" for the host that is asked for everything."""

    __slots__ = (
        "_is_watched", "address", "agent", "connection", "due", "following", "is_over", "is_released", "line", "open",
    )  # fmt: skip

    def __init__(self, agent: str, address: str) -> None:
        self.agent = agent
        self.address = address
        self.connection: Connection | None = None  # once it is known
        self.open = 1
        self.is_over = self.is_released = False
        self.line: list[tuple[int, InLine]] | None = None  # a heap; None: nobody has waited in it
        self.due = 0.0  # when the next way may be taken
        self.following: Way | None = None
        self._is_watched = False

    def is_first_watch(self) -> bool:
        """True once: for who sees to it that the next way is taken in time."""
        is_first, self._is_watched = not self._is_watched, True
        return is_first


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

    def begin(self, agent: str) -> Way | None:
        """A call is about to be sent; `end` it. None: it has to `wait` for its way."""
        with self._lock:
            way = self._open.get(agent)
            if way is None:
                way = self._open[agent] = self._new(agent)
            elif way.is_over:
                return None
            else:
                way.open += 1
            return way

    def _new(self, agent: str) -> Way:
        home = self._homes.find(agent) if self._follows else None
        return Way(agent, home.address if home is not None else "")

    def keep(self, way: Way, connection: Connection) -> Connection:
        """The connection that all calls of this way take: ``connection``, if none was taken before."""
        with self._lock:
            if way.connection is None:
                way.connection = connection
            return way.connection

    def end(self, way: Way) -> bool:
        """The call has its answer, or will get none this way. True: what waits may `take_next`."""
        with self._lock:
            way.open -= 1
            return not way.open and self._is_free(way)

    def is_free(self, way: Way) -> bool:
        """The same, when all that waited for this way have taken it."""
        with self._lock:
            return self._is_free(way)

    def _is_free(self, way: Way) -> bool:
        if way.open or self._open.get(way.agent) is not way:
            return False
        if way.line:
            return not way.is_released
        del self._open[way.agent]
        return False

    # ------------------------------------------------------------ a way that is over

    def wait(self, agent: str, call: InLine) -> Way | None:
        """The way that is over, in whose line ``call`` waits from now on; None: there is none, `begin`."""
        with self._lock:
            way = self._open.get(agent)
            if way is None or not way.is_over:
                return None
            self._line_up(way, call)
            return way

    def wait_again(self, way: Way, call: InLine, due: float) -> bool:
        """A call of this way was not executed, and is to be sent again, not before ``due``. False: it need not wait.

        In either case it is to `end`.
        """
        with self._lock:
            latest = self._open.get(way.agent)
            if not way.is_over or way.is_released or latest is None or way not in (latest, latest.following):
                return False
            way.due = max(way.due, due)
            self._line_up(way, call)
            return True

    def _line_up(self, way: Way, call: InLine) -> None:
        if way.line is None:
            way.line = []
        heapq.heappush(way.line, (call.number, call))

    def pause_s(self, way: Way) -> float:
        """How long the next way is still not to be taken."""
        return max(0.0, way.due - time.monotonic())

    def take_next(self, way: Way) -> tuple[InLine, Way] | None:
        """The next call in the line of a way that is over, and the way that it takes; None: that was the last one."""
        with self._lock:
            if self._open.get(way.agent) is not way:
                return None
            way.is_released = True
            following = way.following
            if way.line:
                if following is None:
                    following = way.following = self._new(way.agent)
                else:
                    following.open += 1
                return heapq.heappop(way.line)[1], following
            if following is None or not (following.open or following.line):
                del self._open[way.agent]
            else:
                self._open[way.agent] = following
            return None

    # ------------------------------------------------------------ what is learnt

    def hinted(self, home: Home) -> None:
        """An agent is there."""
        if self._follows and home.address:
            with self._lock:
                self._homes.note(home.agent, home.address, home.epoch)

    def failed(self, way: Way) -> None:
        """The host of this way does not answer, or goes: no further call is to go there."""
        with self._lock:
            if way.address:
                self._homes.drop_all_at(way.address)
            others = self._open.values() if way.connection is not None else ()
            self._end_ways([way, *(each for each in others if each.connection is way.connection)])

    def misled(self, way: Way) -> None:
        """The host at this way's address does not have the agent, nor knows of it."""
        with self._lock:
            self._homes.drop(way.agent, way.address)
            self._end_ways([way])

    def _end_ways(self, ways: list[Way]) -> None:
        for way in ways:
            way.is_over = True
            if not way.agent and self._open.get("") is way:  # requests to any host have no order
                del self._open[""]
