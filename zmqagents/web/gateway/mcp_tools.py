"""The Model Context Protocol, by streamable HTTP at ``/mcp``: each public method is the tool ``AGENT.METHOD``.

The items of a generator are told as progress while they come, and are the result together. Files of the host are
resources, if the gateway shows files. Each request stands for itself, for its own user.

**Cancelling.** A client of 2026's protocol ends the request that it gives up. One of an older protocol leaves it open
and sends a notification with its id, and ids are those of the client alone. So such a client is given a session, which
is a name and no more: what runs is known by the user, the session and the id.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ... import errors
from ...agents.context import CHAIN_HEADER
from ...version import __version__
from .calls import Wish, chain_in
from .failures import BadArguments, NotShown, respond, text_of, type_of
from .offers import Method, Offer
from .revival import plain
from .shared import Shared

__all__ = ["McpTools"]

MAX_NAME = 128  # characters of the name of a tool
SCHEME = "file"
SESSION, VERSION = "mcp-session-id", "mcp-protocol-version"
MAX_SESSION = 128  # characters of the id of a session, which a client may make up

Tools = dict[str, tuple[Offer, Method]]
Key = tuple[Any, ...]  # a request: its user, its session, its id


class McpTools:
    """The route ``/mcp``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        files: dict[str, Any] = {}
        if shared.files:
            files = {"on_list_resource_templates": self._list_files, "on_list_resources": self._list_resources,
                     "on_read_resource": self._read}  # fmt: skip
        server: Server[Any] = Server(
            "zmqagents", version=__version__, on_list_tools=self._list_tools, on_call_tool=self._call, **files
        )
        server.add_notification_handler("notifications/cancelled", types.CancelledNotificationParams, self._cancel)
        self._running: dict[Key, anyio.CancelScope] = {}
        self._manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=shared.max_bytes)
        self._app = StreamableHTTPASGIApp(self._manager)
        self._tools: tuple[list[Offer], Tools] = ([], {})

    def routes(self) -> list[Route]:
        """The one that there is."""
        return [Route("/mcp", _Entry(self._shared, self._app), middleware=self._shared.limits)]

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The time in which it serves."""
        async with self._manager.run():
            yield

    async def _named(self, wish: Wish) -> Tools:
        """The tools by their names."""
        offers = await self._shared.offers.all(wish.who)
        if self._tools[0] is not offers:
            self._tools = offers, _tools_of(offers)
        return self._tools[1]

    async def _list_tools(self, context: Any, _: Any) -> types.ListToolsResult:
        tools = await self._named(self._wish(context))
        return types.ListToolsResult(tools=[_tool(name, *found) for name, found in tools.items()])

    async def _call(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        answer = types.CallToolResult(content=[_text("CallCancelled: the request was cancelled")], is_error=True)
        with self._while_wanted(context):
            answer = await self._answer(context, params)
        return answer

    @contextmanager
    def _while_wanted(self, context: Any) -> Iterator[None]:
        """A block that ends early when its client says that it has cancelled the request."""
        key = self._key_of(context, context.request_id)
        with anyio.CancelScope() as scope:
            if key is not None:
                self._running[key] = scope
            try:
                yield
            finally:
                if key is not None and self._running.get(key) is scope:
                    del self._running[key]

    async def _cancel(self, context: Any, params: types.CancelledNotificationParams) -> None:
        scope = self._running.get(self._key_of(context, params.request_id) or ())
        if scope is not None:
            scope.cancel()

    def _key_of(self, context: Any, request_id: Any) -> Key | None:
        """How a request is known; None for one of no session."""
        session = context.request.headers.get(SESSION, "")
        return (self._wish(context).who, session[:MAX_SESSION], str(request_id)) if session else None

    async def _answer(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            wish = self._wish(context)
            found = (await self._named(wish)).get(params.name)
            if found is None:
                raise NotShown(f"no tool {params.name!r:.150} is shown here")
            offer, method = found
            args, kwargs = await method.prepared(params.arguments or {})
            if method.streams:
                return await self._items(context, wish, offer, method, args, kwargs)
            calls = self._shared.calls
            value = await calls.value(wish, offer.agent_id, method.name, args, kwargs, again=method.idempotent)
        except (errors.ZmqAgentsError, HTTPException) as exc:
            return types.CallToolResult(content=[_text(f"{type_of(exc)}: {text_of(exc)}")], is_error=True)
        return _result(plain(value))

    async def _items(
        self, context: Any, wish: Wish, offer: Offer, method: Method, args: list[Any], kwargs: dict[str, Any]
    ) -> types.CallToolResult:
        found, size = [], 0
        async with self._shared.calls.stream(wish, offer.agent_id, method.name, args, kwargs) as items:
            async for item in items:
                found.append(plain(item))
                text = _shown(found[-1])
                size += len(text)
                if size > self._shared.max_bytes:
                    raise BadArguments(f"{_whole_name(offer, method)} gives more than {self._shared.max_bytes:,} bytes")
                await context.session.report_progress(len(found), message=text)
        return _result(found)

    def _wish(self, context: Any) -> Wish:
        """What goes with the calls of a request. Its chain is in a header, or in what goes with the request."""
        request: Request = context.request
        wish = self._shared.wish(request)
        meta = context.meta if isinstance(context.meta, Mapping) else {}
        chain = meta.get(CHAIN_HEADER)
        return wish._replace(chain=chain_in({CHAIN_HEADER: chain})) if isinstance(chain, str) else wish

    # ------------------------------------------------------------ files

    async def _list_resources(self, context: Any, _: Any) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[])

    async def _list_files(self, context: Any, _: Any) -> types.ListResourceTemplatesResult:
        template = types.ResourceTemplate(
            name="files", uri_template=f"{SCHEME}:///{{+path}}", description="Files below the file roots of the host."
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def _read(self, context: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        place = urlsplit(params.uri)
        if place.scheme != SCHEME or place.netloc:
            raise ValueError(f"a file of the host is {SCHEME}:///PATH")
        data = await self._shared.calls.file(self._wish(context), unquote(place.path), self._shared.max_bytes)
        content: types.TextResourceContents | types.BlobResourceContents
        try:
            content = types.TextResourceContents(uri=params.uri, text=data.decode())
        except UnicodeDecodeError:
            content = types.BlobResourceContents(uri=params.uri, blob=base64.b64encode(data).decode())
        return types.ReadResourceResult(contents=[content])


class _Entry:
    """Lets those in who may come in, and gives those a session who begin as one does in a protocol before 2026's."""

    def __init__(self, shared: Shared, app: Any) -> None:
        self._shared = shared
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._shared.wish(Request(scope))
        except (errors.ZmqAgentsError, HTTPException) as exc:
            await respond(exc)(scope, receive, send)
            return
        given = Headers(scope=scope)
        if scope["method"] != "POST" and SESSION in given:  # GET wants to hear more of it, DELETE to end it
            refusal = HTTPException(405, "a session is only a name here", {"allow": "POST"})
            await respond(refusal)(scope, receive, send)
            return

        async def send_with_session(message: Message) -> None:
            if message["type"] == "http.response.start" and not {SESSION, VERSION} & set(given):
                MutableHeaders(scope=message)[SESSION] = secrets.token_urlsafe(16)
            await send(message)

        await self._app(scope, receive, send_with_session)


def _whole_name(offer: Offer, method: Method) -> str:
    """``AGENT.METHOD``."""
    return f"{offer.agent_id}.{method.name}"


def _tools_of(offers: list[Offer]) -> Tools:
    """The tools; of an id with other characters than names of tools have, those are replaced."""
    found: Tools = {}
    for offer in offers:
        for method in offer.methods.values():
            name = base = re.sub(r"[^A-Za-z0-9_.-]", "_", _whole_name(offer, method))[:MAX_NAME]
            number = 1
            while name in found:
                number += 1
                name = f"{base[: MAX_NAME - 8]}-{number}"
            found[name] = offer, method
    return found


def _tool(name: str, offer: Offer, method: Method) -> types.Tool:
    return types.Tool(
        name=name, description=method.doc or f"{method.name} of {offer.agent_id}", input_schema=method.arguments,
        annotations=types.ToolAnnotations(idempotent_hint=method.idempotent),
    )  # fmt: skip


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _shown(value: Any) -> str:
    """The text of a plain value."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _result(value: Any) -> types.CallToolResult:
    """A plain value as a result."""
    return types.CallToolResult(content=[_text(_shown(value))], structured_content={"result": value})
