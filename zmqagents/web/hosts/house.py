"""What a web process shows: `OneHost` is a single host; the hosts of a cluster are `cluster.fleet.Fleet`.

A request says by ``?host=ID`` which host it is about; without it the first one is meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request

from .doors import Doors
from .live import Live
from .watcher import Watcher

__all__ = ["House", "OneHost", "Place", "host_of"]


class Place(NamedTuple):
    """One host: what it last told, and the connections to it in the names of users."""

    live: Live
    doors: Doors


class House(Protocol):
    """See the module's docstring. For the event loop."""

    doors: Doors  # to whichever host takes calls, for the gateway

    @property
    def name(self) -> str:
        """For people: the id of the host, or the name of the cluster."""

    @property
    def cluster(self) -> str | None:
        """The name of the cluster, None for a single host."""

    async def place(self, host: str) -> Place:
        """The host of this id, "": the first one. HTTPException if there is none."""

    async def look(self, host: str) -> None:
        """See to it that what is known of the host is of now."""

    def told(self) -> list[dict[str, Any]]:
        """All hosts, as they were last seen."""

    def stream(self, may_read: Callable[[], bool], host: str) -> AsyncIterator[str]:
        """Server-sent events for one reader, as long as ``may_read``."""

    async def figures(self) -> list[tuple[str, Mapping[str, Any] | None]]:
        """The figures of each host by its id, None for one that does not answer."""

    async def not_live(self) -> list[str]:
        """Why nothing answers; empty if something has within `watcher.LIVE_S`."""

    async def not_ready(self) -> list[str]:
        """Why no calls can be taken now; empty if they can."""

    def close(self) -> None:
        """Close the connections."""


def host_of(request: Request) -> str:
    """The host that a request is about."""
    return request.query_params.get("host", "")


class OneHost:
    """A `House` of one host. ``watcher`` asks it, ``doors`` lead to it."""

    cluster = None

    def __init__(self, watcher: Watcher, doors: Doors) -> None:
        self.doors = doors
        self._watcher = watcher
        self._live = Live(watcher)

    def __repr__(self) -> str:
        return f"<OneHost {self.name}>"

    @property
    def name(self) -> str:
        """The id of the host, as it last said."""
        return self._watcher.name

    async def place(self, host: str) -> Place:
        """The host. HTTPException: another one is asked for."""
        if host not in ("", self.name):
            raise HTTPException(404, f"there is no host {host!r} here, but {self.name}")
        return Place(self._live, self.doors)

    async def look(self, host: str) -> None:
        """Ask the host now, unless somebody reads the stream."""
        await self._live.look()

    def told(self) -> list[dict[str, Any]]:
        """The host, as it was last seen."""
        return [self._live.host()]

    def stream(self, may_read: Callable[[], bool], host: str) -> AsyncIterator[str]:
        """Server-sent events for one reader."""
        return self._live.stream(may_read)

    async def figures(self) -> list[tuple[str, Mapping[str, Any] | None]]:
        """The figures of the host."""
        found = await asyncio.to_thread(self._watcher.figures)
        if found is not None:
            self._live.series.add(found)  # so the charts know the time in which only Prometheus has looked
        return [(self.name, found)]

    async def not_live(self) -> list[str]:
        """Why the host does not live."""
        return await asyncio.to_thread(self._watcher.not_live)

    async def not_ready(self) -> list[str]:
        """Why the host takes no calls."""
        return await asyncio.to_thread(self._watcher.not_ready)

    def close(self) -> None:
        """Close the connections."""
        self._watcher.close()
        self.doors.close()
