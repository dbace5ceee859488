"""An agent that uses the tools of an MCP server, which it starts and ends with itself. Needs the extra ``mcp``.

python examples/mcp_tools.py serves the tools alone; agents={"c": Calculator} of a launcher hosts the agent.
"""

from __future__ import annotations

import sys
from typing import Any

from zmqagents import AgentBase


class Calculator(AgentBase):
    """Adds numbers by the tool ``add`` of an MCP server: of this file, run as a program."""

    async def __aenter__(self) -> Calculator:
        from zmqagents.adapters.mcp import McpServer

        self.server = await McpServer([sys.executable, __file__]).__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.server.__aexit__(*error)

    async def tools(self) -> list[str]:
        """The names of the tools."""
        return [tool["name"] for tool in await self.server.tools()]

    async def reply(self, *numbers: int) -> int:
        """The sum of ``numbers``."""
        total = 0
        for number in numbers:
            total = await self.server.call("add", a=total, b=number)
        return total


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


if __name__ == "__main__":
    try:
        from mcp.server import MCPServer as Server  # mcp 2
    except ImportError:
        from mcp.server.fastmcp import FastMCP as Server  # type: ignore[attr-defined, no-redef]
    server = Server("calculator")
    server.tool()(add)
    server.run()
