"""The gateway as a whole: the routes of all protocols, what they share, and its lifetime."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

from starlette.routing import BaseRoute, Route

from ... import errors
from ..hosts.doors import Doors
from .json_api import JsonApi
from .openai_api import OpenAIApi
from .shared import Shared

__all__ = ["MAX_BODY_BYTES", "PROTOCOLS", "TIMEOUT_S", "Gateway", "installed"]

PROTOCOLS = ("json", "openai", "mcp", "a2a")
MAX_BODY_BYTES = 4 << 20
TIMEOUT_S = 300.0


class Gateway:
    """``protocols``: those that it speaks. Other parameters as of `Shared`.

    MissingExtra: the library of a protocol is not installed.
    """

    def __init__(
        self, connections: Doors, ids: Collection[str], *, protocols: Collection[str] = PROTOCOLS,
        timeout_s: float | None = TIMEOUT_S, max_bytes: int = MAX_BODY_BYTES, files: bool = False,
    ) -> None:  # fmt: skip
        self._shared = shared = Shared(connections, ids, timeout_s=timeout_s, max_bytes=max_bytes, files=files)
        self.routes: list[BaseRoute] = []
        self._lives: list[Callable[[], AbstractAsyncContextManager[None]]] = []
        if "json" in protocols:
            self.routes += JsonApi(shared).routes()
        if "openai" in protocols:
            self.routes += OpenAIApi(shared).routes()
        if "mcp" in protocols:
            self._add(_loaded("mcp", lambda: _import_mcp(shared)))
        if "a2a" in protocols:
            self._add(_loaded("a2a", lambda: _import_a2a(shared)))

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The time in which it serves."""
        async with AsyncExitStack() as stack:
            for life in self._lives:
                await stack.enter_async_context(life())
            yield

    def _add(self, part: Lasting) -> None:
        self.routes += part.routes()
        self._lives.append(part.life)


class Lasting(Protocol):
    """A protocol that has a lifetime."""

    def routes(self) -> list[Route]:
        """Its routes."""

    def life(self) -> AbstractAsyncContextManager[None]:
        """The time in which it serves."""


_LIBRARIES = {"mcp": "mcp_types", "a2a": "a2a"}  # of `mcp` the releases that the gateway needs have it


def installed(protocol: str) -> bool:
    """Whether the library of a protocol is there."""
    return protocol not in _LIBRARIES or importlib.util.find_spec(_LIBRARIES[protocol]) is not None


def _import_mcp(shared: Shared) -> Lasting:
    from .mcp_tools import McpTools  # here: the library takes a second to load

    return McpTools(shared)


def _import_a2a(shared: Shared) -> Lasting:
    from .a2a_agents import A2AAgents  # here, as above

    return A2AAgents(shared)


def _loaded(extra: str, load: Callable[[], Lasting]) -> Lasting:
    try:
        return load()
    except ImportError as exc:
        raise errors.MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[web,{extra}]'") from exc
