"""Plain JSON over HTTP: ``POST /agents/ID/METHOD`` with an object of the arguments.

The answer is what the method gives, or, of a generator, server-sent events: each item a ``data:`` line of JSON, then
the event ``end``; an error on the way is the event ``error``. ``GET /offers`` and ``GET /offers/ID`` say what there is,
and ``/openapi.json`` says the same as OpenAPI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, unquote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ...version import __version__
from .bodies import object_of, path_of, while_there
from .failures import NotShown, failure
from .offers import Method, Offer
from .revival import dumps
from .shared import Shared

__all__ = ["JsonApi", "event"]

JSON = {"content-type": "application/json", "cache-control": "no-store"}
EVENTS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def event(data: Any, name: str = "") -> bytes:
    """One server-sent event."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + dumps(data) + b"\n\n"


class JsonApi:
    """The routes of plain JSON."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def routes(self) -> list[Route]:
        """All of them."""
        route = self._shared.route
        return [
            route("/openapi.json", self._openapi, ["GET"]), route("/offers", self._list, ["GET"]),
            route("/offers/{rest:path}", self._describe, ["GET"]), route("/agents/{rest:path}", self._call, ["POST"]),
        ]  # fmt: skip

    async def _list(self, request: Request) -> Response:
        who = self._shared.who(request)
        return _json([_row_of(offer) for offer in await self._shared.offers.all(who)])

    async def _describe(self, request: Request) -> Response:
        (agent_id,) = _places(request, 1)
        return _json(_row_of(await self._shared.offers.of(self._shared.who(request), agent_id)))

    async def _openapi(self, request: Request) -> Response:
        return _json(openapi(await self._shared.offers.all(self._shared.who(request))))

    async def _call(self, request: Request) -> Response:
        agent_id, name = _places(request, 2)
        shared, wish = self._shared, self._shared.wish(request)
        method = (await shared.offers.of(wish.who, agent_id)).method(name)
        args, kwargs = await method.prepared(*await object_of(request))
        if method.streams:
            return StreamingResponse(self._events(wish, agent_id, method, args, kwargs), headers=EVENTS,
                                     media_type="text/event-stream")  # fmt: skip
        value = await while_there(
            request, shared.calls.value(wish, agent_id, name, args, kwargs, again=method.idempotent)
        )
        return _json(value)

    async def _events(
        self, wish: Any, agent_id: str, method: Method, args: list[Any], kwargs: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        try:
            async with self._shared.calls.stream(wish, agent_id, method.name, args, kwargs) as items:
                async for item in items:
                    yield event(item)
        except Exception as exc:
            yield event(failure(exc)["error"], "error")
        else:
            yield event({}, "end")


def _json(value: Any) -> Response:
    return Response(dumps(value), headers=JSON)


def _places(request: Request, count: int) -> list[str]:
    """The parts of the path behind ``/agents/`` or ``/offers/``."""
    path = path_of(request)
    parts = path.split("/")[-count:]
    if path.count("/") != 1 + count or not all(parts):
        raise HTTPException(404, "a path is /offers/ID, or /agents/ID/METHOD for a call")
    try:
        return [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        raise NotShown("a path is UTF-8") from None


def _row_of(offer: Offer) -> dict[str, Any]:
    return {
        "agent_id": offer.agent_id, "class": offer.class_name, "doc": offer.doc,
        "methods": {
            name: {"doc": method.doc, "gives": method.returns, "arguments": method.arguments, "result": method.result}
            for name, method in offer.methods.items()
        },
    }  # fmt: skip


# ---------------------------------------------------------------- OpenAPI

_ERROR = {
    "type": "object", "required": ["error"],
    "properties": {
        "error": {
            "type": "object", "required": ["type", "message"],
            "properties": {name: {"type": "string"} for name in ("type", "message", "agent", "method")},
        }
    },
}  # fmt: skip
_FAILURES = {
    "400": "The body is no JSON.", "401": "No token, or a wrong one.", "403": "The role of the user does not suffice.",
    "404": "No such agent or method is shown.", "409": "The call was cancelled.", "413": "The body is too large.",
    "415": "The body is not said to be JSON.", "422": "The method takes no such arguments.",
    "500": "The agent has raised an exception.", "502": "The host does not answer.", "503": "The host is busy.",
    "504": "The call was not finished in time.", "508": "The call would wait for itself.",
}  # fmt: skip


def openapi(offers: list[Offer]) -> dict[str, Any]:
    """What ``offers`` offer, as OpenAPI 3.1."""
    paths = {
        f"/agents/{quote(offer.agent_id, safe='')}/{name}": {"post": _operation(offer, method)}
        for offer in offers
        for name, method in offer.methods.items()
    }
    return {
        "openapi": "3.1.0", "info": {"title": "Agents", "version": __version__}, "paths": paths,
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": {"Failure": _ERROR},
        },
    }  # fmt: skip


_EVENT = {
    "type": "object", "required": ["data"],
    "properties": {
        "event": {"enum": ["message", "end", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}  # fmt: skip


def _operation(offer: Offer, method: Method) -> dict[str, Any]:
    kind = "text/event-stream" if method.streams else "application/json"
    schema = {**_EVENT, "x-item": method.result} if method.streams else method.result
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    return {
        "operationId": f"{offer.agent_id}.{method.name}", "tags": [offer.agent_id],
        "summary": method.doc.partition("\n")[0], "description": method.doc,
        "requestBody": {
            "required": bool(method.arguments.get("required")),
            "content": {"application/json": {"schema": method.arguments}},
        },
        "responses": {
            "200": {"description": "What the method gives.", "content": {kind: {"schema": schema}}},
            **{status: {"description": text, "content": failed} for status, text in _FAILURES.items()},
        },
    }  # fmt: skip
