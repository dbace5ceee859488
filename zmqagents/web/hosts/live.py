"""The live stream: what a host does, told to every page that is open, once a second.

The host is asked for its figures while somebody reads a stream, and otherwise never. All readers get the same text; one
that is slow gets the newest when it is ready for it, and what came between is left out. No byte is sent for a call:
rates and quantiles come from counters.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

from ...telemetry.rates import Row, rows_between
from .series import Series, point_between, short
from .watcher import Watcher

__all__ = ["EVERY_S", "SILENT_S", "Live", "Reader", "Run", "told_of"]

Run = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]

EVERY_S = 1.0
SILENT_S = 0.9  # a host that has not answered for so long is shown as lost: within two seconds of its death
METHODS = 20  # of a tick, the busiest ones
CLASSES = 50
LATE_S = 3 * EVERY_S  # two answers further apart are not compared


class Live:
    """For the event loop. ``watcher`` asks the host, in threads; ``run`` gives it one, by default the loop's."""

    def __init__(self, watcher: Watcher, run: Run = asyncio.to_thread) -> None:
        self._run = run
        self.series = Series()
        self._watcher = watcher
        self._readers: set[Reader] = set()
        self._asking: asyncio.Task[None] | None = None
        self._answer: asyncio.Task[dict[str, Any] | None] | None = None  # that is waited for
        self._figures: Mapping[str, Any] | None = None  # the last that came
        self._before: Mapping[str, Any] | None = None
        self._at = 0.0  # when they came, in seconds since 1970
        self._up = False
        self._point: Mapping[str, float] = {}

    def __repr__(self) -> str:
        return f"<Live [{len(self._readers)} readers, the host is {'up' if self._up else 'down'}]>"

    @property
    def figures(self) -> Mapping[str, Any] | None:
        """The last figures of the host; None if it has not answered yet."""
        return self._figures

    @property
    def seen(self) -> float | None:
        """When its last figures came, in seconds since 1970."""
        return round(self._at, 3) or None

    @property
    def point(self) -> Mapping[str, float]:
        """What lies between its last two figures, as `series.point_between` tells it."""
        return self._point

    @property
    def up(self) -> bool:
        """Whether the host has answered when it was last asked."""
        return self._up

    async def stream(self, may_read: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events for one reader, as long as ``may_read``."""
        reader = Reader()
        self._readers.add(reader)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        elif self._at:
            reader.put(self.tick())
        try:
            async for text in reader.events(may_read):
                yield text
        finally:
            self._readers.discard(reader)

    async def look(self) -> None:
        """Ask the host now, for a page without a stream; while there is a stream, its last answer will do."""
        if not self._readers:
            await self.take()

    async def _ask(self) -> None:
        while self._readers:
            began = time.monotonic()
            await self.take()
            text = self.tick()
            for reader in self._readers:
                reader.put(text)
            await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))

    async def take(self) -> None:
        """Ask the host, and wait for `SILENT_S` at most."""
        answer = self._answer = self._answer or asyncio.ensure_future(self._run(self._watcher.figures))
        done, _ = await asyncio.wait([answer], timeout=SILENT_S)
        if done and self._answer is not answer:
            return  # another one that waited has taken them
        figures = None
        if done:
            figures, self._answer = answer.result(), None
        self._up = figures is not None
        if figures is not None:
            self._before = self._figures if self._at and time.time() - self._at < LATE_S else None
            before, self._figures, self._at = self._before, figures, time.time()
            comparable = before is not None and before["started"] == figures["started"]
            self._point = point_between(before, figures) if before is not None and comparable else {}
            self.series.add(figures)

    def tick(self) -> str:
        """What every reader is told, as one line of JSON."""
        return json.dumps({"at": round(time.time(), 3), "hosts": [self.host()]}, separators=(",", ":"))

    def host(self) -> dict[str, Any]:
        """The host as it was last seen; ``up`` says whether it answers now."""
        seen = {"id": self._watcher.name, "up": self._up, "seen": self.seen}
        now, before = self._figures, self._before
        if now is None:
            return seen
        found = rows_between(before, now)
        agents = sorted(now["agents"].items(), key=lambda pair: -pair[1])
        taken = (
            "version", "python", "pid", "started", "uptime_s", "capacity", "workers", "calls", "oldest_s", "streams",
            "longest_mailbox", "queued_bytes", "queued_limit_bytes", "store", "store_limit_bytes", "loop_tasks",
            "loop_lag_s", "children", "child_restarts", "clients", "resident_bytes", "cpu_s", "open_fds", "draining",
            "refused", "limits", "auth_failures",
        )  # fmt: skip
        return {
            **seen, **{name: now[name] for name in taken if name in now}, "agents": dict(agents[:CLASSES]),
            "agents_total": sum(now["agents"].values()), "methods_total": len(found),
            "methods": [told_of(row) for row in found[:METHODS]],
            "point": {name: short(value) for name, value in self._point.items()},
        }  # fmt: skip


class Reader:
    """A slot for the newest text, for one who reads a stream of server-sent events."""

    def __init__(self) -> None:
        self._there = asyncio.Event()
        self._text = ""

    def put(self, text: str) -> None:
        """This is the newest."""
        self._text = text
        self._there.set()

    async def take(self) -> str:
        """The newest, when there is one that was not taken."""
        await self._there.wait()
        self._there.clear()
        return self._text

    async def events(self, may_read: Callable[[], bool]) -> AsyncIterator[str]:
        """Server-sent events, as long as ``may_read``."""
        yield "retry: 1000\n\n"
        while may_read():
            yield f"data: {await self.take()}\n\n"


def told_of(row: Row) -> dict[str, Any]:
    """The figures of a method, as pages read them."""
    names = ("class", "method", "per_s", "failed_per_s", "p50_s", "p99_s", "queued_p99_s", "total")
    return dict(zip(names, map(short, row), strict=True))
