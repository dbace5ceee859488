"""The examples that speak HTTP: the page to talk to an agent, and MCP both ways in one program."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway_world import World, gateway
from hosts import ROOT

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with gateway("--protocol", "openai", "--protocol", "json") as world:
        yield world


def test_the_page_passes_on_what_the_agent_says_and_keeps_the_token(world: World) -> None:
    command = [sys.executable, str(EXAMPLES / "gateway" / "chat_page.py"), world.url, world.token, "talker", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        assert program.stdout is not None
        try:
            place = program.stdout.readline().strip().removeprefix("http://")
            connection = http.client.HTTPConnection(place, timeout=60)
            connection.request("GET", "/")
            page = connection.getresponse().read().decode()
            assert "<form>" in page
            assert world.token not in page
            body = json.dumps({"text": "one two"})
            connection.request("POST", "/ask", body, {"origin": f"http://{place}"})
            assert connection.getresponse().read() == b"one two "
            connection.request("POST", "/ask", body, {"origin": "http://evil.example"})
            assert connection.getresponse().status == 403
            connection.close()
        finally:
            program.kill()


def test_a_door_that_was_not_asked_for_is_closed(world: World) -> None:
    assert world.call("shop", "add", a=1) == (200, 2)
    assert world.ask("POST", "/mcp", {})[0] == 404
    assert world.ask("GET", "/a2a/shop/.well-known/agent-card.json")[0] == 404


def test_one_program_uses_a_server_of_mcp_and_is_one(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "mcp_both_ways.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "the agent's tools: calculator.reply calculator.tools\nthe tools that it uses: ['add']\n1 + 2 + 3 = 6\n"
    )
