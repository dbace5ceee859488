"""Methods as tools of the Model Context Protocol, by the official client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import mcp
import mcp_types as types
import pytest
from mcp.client.streamable_http import streamable_http_client

from gateway_world import World, gateway, in_loop, web_process

pytestmark = [pytest.mark.program, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    (directory / "notes.txt").write_text("some text ü")
    (directory / "raw.bin").write_bytes(b"\xff\x00")
    (directory / "large.bin").write_bytes(bytes(5_000_000))
    return directory


@pytest.fixture(scope="module")
def world(files: Path) -> Iterator[World]:
    with gateway("--expose-files", file_roots=[str(files)]) as world:
        yield world


@contextlib.asynccontextmanager
async def session(world: World, token: str | None = None) -> AsyncIterator[Any]:
    headers = {"authorization": f"Bearer {world.token if token is None else token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        mcp.Client(streamable_http_client(f"{world.url}/mcp", http_client=http)) as client,
    ):
        yield client


@in_loop
async def test_methods_are_listed_with_their_schemas(world: World) -> None:
    async with session(world) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {"shop.add", "shop.ticks", "talker.reply", "other_caller.post"} <= tools.keys()
    assert not {"hidden.add", "shop._private"} & tools.keys()
    add = tools["shop.add"]
    assert add.description == "The sum of two numbers."
    assert add.input_schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer", "default": 1}}
    assert add.annotations.idempotent_hint is True


@in_loop
async def test_tools_are_called_and_fail(world: World) -> None:
    async with session(world) as client:
        answer = await client.call_tool("shop.add", {"a": 2, "b": 3})
        assert (answer.structured_content, answer.content[0].text, answer.is_error) == ({"result": 5}, "5", False)
        answer = await client.call_tool("shop.order", {"order": {"item": "pen"}})
        assert answer.structured_content == {"result": "Order: 1 pen, SMALL"}
        for name, arguments, text in (
            ("shop.fail", {}, "ValueError: no such thing"),
            ("shop.add", {"a": "x"}, "BadArguments: arguments['a']: 'x' is not of type 'integer'"),
            ("hidden.add", {"a": 1, "b": 1}, "NotShown: no tool 'hidden.add' is shown here"),
        ):
            answer = await client.call_tool(name, arguments)
            assert (answer.is_error, answer.content[0].text) == (True, text)


@in_loop
async def test_the_items_of_a_generator_are_progress(world: World) -> None:
    seen: list[tuple[float, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, message))

    async with session(world) as client:
        answer = await client.call_tool("shop.ticks", {"count": 3}, progress_callback=note)
    assert answer.structured_content == {"result": [0, 1, 2]}
    assert seen == [(1, "0"), (2, "1"), (3, "2")]


@pytest.mark.parametrize(("tool", "arguments"), [("slow", {}), ("ticks", {"count": 10_000, "pause": 0.1})])
@in_loop
async def test_a_request_that_is_cancelled_cancels_the_call(world: World, tool: str, arguments: dict[str, Any]) -> None:
    before = await asyncio.to_thread(world.call, "shop", "cancelled")
    begun = await asyncio.to_thread(world.call, "shop", "begun")
    async with session(world) as client:
        asked = asyncio.ensure_future(client.call_tool(f"shop.{tool}", arguments))
        assert await asyncio.to_thread(world.becomes, "shop", "begun", begun[1] + 1)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(world.becomes, "shop", "cancelled", before[1] + 1)


@contextlib.asynccontextmanager
async def old_session(world: World) -> AsyncIterator[Any]:
    """A client that begins with a handshake, as the protocols before 2026's do."""
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {world.token}"}, timeout=60) as http,
        streamable_http_client(f"{world.url}/mcp", http_client=http) as streams,
        mcp.ClientSession(streams[0], streams[1]) as client,
    ):
        await client.initialize()
        yield client


@pytest.mark.parametrize(("tool", "arguments"), [("slow", {}), ("ticks", {"count": 10_000, "pause": 0.1})])
@in_loop
async def test_an_older_client_cancels_its_own_call_and_no_other(
    world: World, tool: str, arguments: dict[str, Any]
) -> None:
    before = await asyncio.to_thread(world.call, "shop", "cancelled")
    begun = await asyncio.to_thread(world.call, "shop", "begun")
    async with old_session(world) as client, old_session(world) as other:
        asked = asyncio.ensure_future(client.call_tool(f"shop.{tool}", arguments))
        assert await asyncio.to_thread(world.becomes, "shop", "begun", begun[1] + 1)
        for request_id in range(10):  # the ids of both clients are the same
            note = types.CancelledNotification(params=types.CancelledNotificationParams(request_id=request_id))
            await other.send_notification(note)
        assert (await other.call_tool("talker.reply", {"text": "x"})).is_error is False
        assert len(await asyncio.to_thread(world.client.get_call_list)) == 1
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(world.becomes, "shop", "cancelled", before[1] + 1)


@in_loop
async def test_two_hundred_calls_at_once(world: World) -> None:
    async with session(world) as client:
        found = await asyncio.gather(*(client.call_tool("shop.add", {"a": n, "b": n}) for n in range(200)))
    assert [each.structured_content["result"] for each in found] == [2 * n for n in range(200)]


@in_loop
async def test_a_wrong_token_opens_no_session(world: World) -> None:
    with pytest.raises(Exception, match=r"401|Unauthorized|unhandled errors"):
        async with session(world, "wrong") as client:
            await client.list_tools()


@in_loop
async def test_files_of_the_host_are_resources(world: World, files: Path) -> None:
    async with session(world) as client:
        (template,) = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "file:///{+path}"
        read = await client.read_resource(f"file://{files}/notes.txt")
        assert read.contents[0].text == "some text ü"
        read = await client.read_resource(f"file://{files}/raw.bin")
        assert read.contents[0].blob == "/wA="
        for path in (f"{files}/large.bin", f"{files}/nothing", "/etc/passwd"):
            with pytest.raises(mcp.MCPError):
                await client.read_resource(f"file://{path}")


@in_loop
async def test_files_are_shown_only_where_that_was_said(world: World) -> None:
    with web_process(world.host_port) as url:
        async with session(World(world.launcher, world.client, url, world.token)) as client:
            with pytest.raises(mcp.MCPError):
                await client.list_resource_templates()
