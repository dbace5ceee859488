"""MCP both ways in one program: an agent that uses a server of MCP, and is one itself to others.

The agent adds numbers by the tool of a server that it starts, which is mcp_tools.py. The gateway of a web process shows
the agent as the tools ``calculator.reply`` and ``calculator.tools``, and a client of MCP calls these. Needs the extras
``mcp`` and ``web``.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from zmqagents import AgentBase, RpcAgentServerLauncher
from zmqagents.adapters.mcp import McpServer

SERVER = Path(__file__).with_name("mcp_tools.py")


class Calculator(AgentBase):
    """Adds numbers by a tool."""

    async def __aenter__(self) -> Calculator:
        self.server = await McpServer([sys.executable, str(SERVER)]).__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.server.__aexit__(*error)

    async def tools(self) -> list[str]:
        """The names of the tools that it uses."""
        return [tool["name"] for tool in await self.server.tools()]

    async def reply(self, numbers: list[int]) -> int:
        """The sum of numbers."""
        total = 0
        for number in numbers:
            total = await self.server.call("add", a=total, b=number)
        return total


async def ask(url: str, token: str) -> None:
    """Call the agent by the tools that it is to others."""
    import httpx2

    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as http,
        McpServer(f"{url}/mcp", http_client=http) as gateway,
    ):
        print("the agent's tools:", *(tool["name"] for tool in await gateway.tools()))
        print("the tools that it uses:", await gateway.call("calculator.tools"))
        print("1 + 2 + 3 =", await gateway.call("calculator.reply", numbers=[1, 2, 3]))


def main() -> None:
    """Host the agent, show it, and ask it."""
    agents = {"calculator": Calculator}
    with RpcAgentServerLauncher(agents=agents, local_mode=True) as host:
        as_server = [sys.executable, "-m", "zmqagents"]
        token = subprocess.run([*as_server, "keys", "token"], check=True, capture_output=True, text=True).stdout.strip()
        command = [*as_server, "web", "--listen", "127.0.0.1:0", "--port", str(host.port), "--expose", "calculator"]
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as web:
            assert web.stdout is not None
            asyncio.run(ask(json.loads(web.stdout.readline())["url"], token))
            web.terminate()


if __name__ == "__main__":
    main()
