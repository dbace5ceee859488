"""Requests: their path and body, how large they may be, and whether their sender is still there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import BadArguments, respond

__all__ = ["APART_BYTES", "Gone", "Limited", "object_of", "path_of", "while_there"]

APART_BYTES = 65_536  # what is longer is parsed in another thread, so that no other request waits for it

T = TypeVar("T")


class Gone(Exception):
    """The sender of a request has hung up."""


class Limited:
    """An application whose requests have bodies of at most ``max_bytes``; longer ones are answered 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or int(told) > self._max_bytes:
            await respond(self._refusal())(scope, receive, send)
            return
        taken, begun = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise self._refusal()
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except HTTPException as exc:
            if begun or exc.status_code != 413:
                raise
            await respond(exc)(scope, receive, send)

    def _refusal(self) -> HTTPException:
        return HTTPException(413, f"the body of a request has at most {self._max_bytes:,} bytes here")


async def object_of(request: Request) -> tuple[dict[str, Any], int]:
    """The object of JSON in the body of a request, {} for no body; and the size of the body in bytes.

    BadArguments, HTTPException: it is none.
    """
    body = await request.body()
    if not body.strip():
        return {}, 0
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, "the body of a request is JSON: say content-type: application/json")
    try:
        found = json.loads(body) if len(body) < APART_BYTES else await asyncio.to_thread(json.loads, body)
    except (RecursionError, ValueError) as exc:
        raise HTTPException(400, f"the body of the request is no JSON: {exc!s:.200}") from exc
    if not isinstance(found, dict):
        raise BadArguments("the body of a request is an object of JSON")
    return found, len(body)


def path_of(request: Request) -> str:
    """The path as it was sent: an id may have a slash, written as %2F."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return raw.partition(b"?")[0].decode("latin-1")


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What ``work`` gives. It is cancelled when the sender of ``request`` hangs up, and Gone is raised.

    The body of the request was read.
    """

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.wait([task, gone])
