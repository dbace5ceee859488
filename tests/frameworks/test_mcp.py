"""Agents that use MCP servers, which live as long as they do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapted import hosted
from hosts import eventually
from zmqagents import RpcClient

pytest.importorskip("mcp")

from examples import mcp_tools
from zmqagents.adapters.mcp import McpServer

pytestmark = [pytest.mark.frameworks, pytest.mark.program]

PROGRAM = """
try:
    from mcp.server import MCPServer as Server
except ImportError:
    from mcp.server.fastmcp import FastMCP as Server

server = Server("test")

@server.tool()
def fail(why: str) -> str:
    raise ValueError(why)

@server.tool()
def both(a: int) -> dict[str, int]:
    return {"a": a, "b": a + 1}

@server.resource("note://one")
def note() -> str:
    return "a note"

server.run()
"""


def calculator() -> Any:
    return mcp_tools.Calculator()


def server(path: str) -> McpServer:
    """The server itself as an agent."""
    return McpServer([sys.executable, path])


@pytest.fixture
def client() -> Iterator[RpcClient]:
    with hosted(known=[calculator, server, mcp_tools.Calculator], grace_s=20.0) as client:  # a server ends within 4 s
        yield client


def programs(host: int, of: str) -> list[int]:
    """The processes below a host's that run the program ``of``; other tests may run it, too."""
    found = []
    for process in psutil.Process(host).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if of in process.cmdline()[1:2]:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("maker", [calculator, mcp_tools.Calculator])
def test_an_agent_calls_the_tools_of_its_server_which_ends_with_it(client: RpcClient, maker: Any) -> None:
    agent: Any = client.create_agent(maker)
    assert agent.tools().result() == ["add"]
    assert agent.reply(1, 2, 3).result() == 6
    host = client.get_server_info()["pid"]
    assert programs(host, mcp_tools.__file__)
    client.delete_agent(agent.agent_id)
    assert eventually(lambda: not programs(host, mcp_tools.__file__), 10)


def test_a_server_is_an_agent_itself(client: RpcClient, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    agent: Any = client.create_agent(server, str(program))
    assert [tool["name"] for tool in agent.tools().result()] == ["fail", "both"]
    assert agent.call("both", a=1).result() == {"a": 1, "b": 2}
    assert agent.read("note://one").result()[0]["text"] == "a note"
    with pytest.raises(RuntimeError, match="fail"):
        agent.call("fail", why="not today").result()
    client.delete_agent(agent.agent_id)
