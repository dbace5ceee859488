"""The gateway as a whole: the routes of all doors, what they share, and its lifetime."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

from starlette.routing import BaseRoute, Route

from ... import errors
from ..doors import Doors
from .json_door import JsonDoor
from .openai_door import OpenAIDoor
from .shared import Shared

__all__ = ["DOORS", "MAX_BODY_BYTES", "TIMEOUT_S", "Gateway", "installed"]

DOORS = ("json", "openai", "mcp", "a2a")
MAX_BODY_BYTES = 4 << 20
TIMEOUT_S = 300.0


class Gateway:
    """``doors``: which ways in there are. Other parameters as of `Shared`.

    MissingExtra: the library of a door is not installed.
    """

    def __init__(
        self, connections: Doors, ids: Collection[str], *, doors: Collection[str] = DOORS,
        timeout_s: float | None = TIMEOUT_S, max_bytes: int = MAX_BODY_BYTES, files: bool = False,
    ) -> None:  # fmt: skip
        self._shared = shared = Shared(connections, ids, timeout_s=timeout_s, max_bytes=max_bytes, files=files)
        self.routes: list[BaseRoute] = []
        self._lives: list[Callable[[], AbstractAsyncContextManager[None]]] = []
        if "json" in doors:
            self.routes += JsonDoor(shared).routes()
        if "openai" in doors:
            self.routes += OpenAIDoor(shared).routes()
        if "mcp" in doors:
            self._add(_loaded("mcp", lambda: _import_mcp(shared)))
        if "a2a" in doors:
            self._add(_loaded("a2a", lambda: _import_a2a(shared)))

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The time in which it serves."""
        async with AsyncExitStack() as stack:
            for life in self._lives:
                await stack.enter_async_context(life())
            yield

    def _add(self, door: Door) -> None:
        self.routes += door.routes()
        self._lives.append(door.life)


class Door(Protocol):
    """A door that has a lifetime."""

    def routes(self) -> list[Route]:
        """Its routes."""

    def life(self) -> AbstractAsyncContextManager[None]:
        """The time in which it serves."""


_LIBRARIES = {"mcp": "mcp_types", "a2a": "a2a"}  # of `mcp` the releases that the gateway needs have it


def installed(door: str) -> bool:
    """Whether the library of a door is there."""
    return door not in _LIBRARIES or importlib.util.find_spec(_LIBRARIES[door]) is not None


def _import_mcp(shared: Shared) -> Door:
    from .mcp_door import McpDoor  # here: the library takes a second to load

    return McpDoor(shared)


def _import_a2a(shared: Shared) -> Door:
    from .a2a_door import A2ADoor  # here, as above

    return A2ADoor(shared)


def _loaded(extra: str, load: Callable[[], Door]) -> Door:
    try:
        return load()
    except ImportError as exc:
        raise errors.MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[web,{extra}]'") from exc
