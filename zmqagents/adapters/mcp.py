"""Servers of MCP for agents: `McpServer`, opened when an agent starts and closed when it goes, in one task.

    class Researcher(AgentBase):
        async def __aenter__(self):
            self.files = await McpServer(["mcp-server-files", "/srv/papers"]).__aenter__()
            return self

        async def __aexit__(self, *error):
            await self.files.__aexit__(*error)

        async def reply(self, question):
            return await self.files.call("search", text=question)

An `McpServer` that a factory gives is an agent itself: its tools are called as ``agent.call("search", text=...)``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..agents.context import current_call
from ..errors import MissingExtra

try:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client
except ImportError as exc:
    raise MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[mcp]'") from exc

__all__ = ["McpServer", "ToolError"]


class ToolError(RuntimeError):
    """A tool says that it has failed, in its own words."""


class McpServer:
    """A server of MCP, an async context manager: the words of a command that is started, or the URL of one that runs.

    ``env``: environment variables of the command; ``http_client``: the HTTP client for a URL, with its headers.
    ``is_gateway``: the URL is that of a gateway to agents of the caller's own host (``as_server web``). Then a call
    that comes back to its caller is a ToolError that tells of the deadlock, see `CallContext.outgoing`. Other servers
    have no use for the ids of calls that this tells them.
    """

    def __init__(
        self, server: str | Sequence[str], *, env: Mapping[str, str] | None = None, http_client: Any = None,
        is_gateway: bool = False,
    ) -> None:  # fmt: skip
        self._server = server
        self._env = None if env is None else dict(env)
        self._http_client = http_client
        self._is_gateway = is_gateway
        self._stack = contextlib.AsyncExitStack()
        self._session: ClientSession | None = None

    async def __aenter__(self) -> McpServer:
        if isinstance(self._server, str):
            opened = streamable_http_client(self._server, http_client=self._http_client)
        else:
            command, *words = self._server
            opened = stdio_client(StdioServerParameters(command=command, args=words, env=self._env))
        try:
            read, write, *_ = await self._stack.enter_async_context(opened)
            session = await self._stack.enter_async_context(ClientSession(read, write))
            await session.initialize()
        except BaseException:
            await self._stack.aclose()
            raise
        self._session = session
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._session = None
        await self._stack.aclose()

    @property
    def session(self) -> ClientSession:
        """The session, for what this class has no method for. RuntimeError: the server is not entered."""
        if self._session is None:
            raise RuntimeError("the MCP server is not entered: use it in `async with`, or in the hooks of an agent")
        return self._session

    async def tools(self) -> list[dict[str, Any]]:
        """The tools of the server, each with its ``name``, ``description`` and ``inputSchema``."""
        return [_plain(tool) for tool in (await self.session.list_tools()).tools]

    async def call(self, tool: str, /, **arguments: Any) -> Any:
        """What a tool gives: its structured result, else its text, else the list of its contents.

        ToolError: it says that it has failed.
        """
        call = current_call() if self._is_gateway else None
        if call is None:
            result = _plain(await self.session.call_tool(tool, arguments))
        else:
            meta: Any
            async with call.outgoing() as meta:
                result = _plain(await self.session.call_tool(tool, arguments, meta=meta))
        contents = result.get("content") or []
        texts = [part["text"] for part in contents if part.get("type") == "text"]
        if result.get("isError"):
            raise ToolError("\n".join(texts) or f"{tool} has failed")
        structured = result.get("structuredContent")
        if structured is not None:
            return structured["result"] if structured.keys() == {"result"} else structured
        return "\n".join(texts) if len(texts) == len(contents) else contents

    async def read(self, uri: str) -> list[dict[str, Any]]:
        """The contents of a resource."""
        read: Any = self.session.read_resource  # whose annotation is another one in each version of mcp
        return [_plain(part) for part in (await read(uri)).contents]


def _plain(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return found
