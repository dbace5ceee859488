"""The gateway as a whole: the routes of all doors, what they share, and its lifetime."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.requests import Request
from starlette.routing import BaseRoute

from .calls import Asker, Doors
from .json_door import JsonDoor
from .openai_door import OpenAIDoor
from .shared import Shared

__all__ = ["DOORS", "MAX_BODY_BYTES", "TIMEOUT_S", "Gateway"]

DOORS = ("json", "openai", "mcp", "a2a")
MAX_BODY_BYTES = 4 << 20
TIMEOUT_S = 300.0


class Gateway:
    """``doors``: which ways in there are. ``url``: where programs reach it, as cards of A2A say.

    Other parameters as of `Shared`. MissingExtra: the library of a door is not installed.
    """

    def __init__(
        self, connections: Doors, who: Callable[[Request], Asker], ids: Collection[str], *,
        doors: Collection[str] = DOORS, url: str = "", timeout_s: float = TIMEOUT_S, max_bytes: int = MAX_BODY_BYTES,
        files: bool = False,
    ) -> None:  # fmt: skip
        self._shared = shared = Shared(connections, who, ids, timeout_s=timeout_s, max_bytes=max_bytes, files=files)
        self.routes: list[BaseRoute] = []
        self._lives: list[Callable[[], object]] = []
        if "json" in doors:
            self.routes += JsonDoor(shared).routes()
        if "openai" in doors:
            self.routes += OpenAIDoor(shared).routes()

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The time in which it serves."""
        async with AsyncExitStack():
            yield
