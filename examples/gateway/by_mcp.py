"""A client of MCP at the gateway: python by_mcp.py URL TOKEN TOOL [name=value]..."""

from __future__ import annotations

import asyncio
import sys

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, token: str, tool: str, *given: str) -> None:
    """List the tools, and call one."""
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
    ):
        print("tools:", *(each.name for each in (await client.list_tools()).tools))
        answer = await client.call_tool(tool, dict(word.split("=", 1) for word in given))
        print(*(part.text for part in answer.content if part.type == "text"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
