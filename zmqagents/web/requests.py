"""What requests to ``/api`` bring, and what errors of a host become."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from .. import errors

__all__ = ["SEARCH_S", "body_of", "failure_of", "id_of", "most_of", "number_of", "whole_of"]

SEARCH_S = 2.0  # how long a search goes on for one page
MOST_ROWS = 200
MAX_BODY_BYTES = 16_384
STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (errors.PermissionRefused, 403), (errors.UnknownAgent, 404), (errors.UnknownTask, 404), (errors.ConfigError, 400),
    (errors.HostBusy, 503), (ConnectionError, 503), (TimeoutError, 503),
)  # fmt: skip


def failure_of(error: Exception) -> JSONResponse:
    """The answer for an error of a host."""
    status = next((code for kind, code in STATUSES if isinstance(error, kind)), 500)
    return JSONResponse({"error": str(error), "kind": type(error).__name__}, status)


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings. HTTPException if it is none."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the body must be JSON")
    data = b""
    try:
        async for part in request.stream():
            data += part
            if len(data) > MAX_BODY_BYTES:
                raise HTTPException(413, "the body is too long")
    except ClientDisconnect as exc:
        raise HTTPException(400, "the body has no end") from exc
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError) as exc:
        raise HTTPException(400, "the body is no JSON") from exc
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return body


def id_of(body: Mapping[str, Any]) -> str:
    """What an action is about. HTTPException if the body does not say so."""
    found = body.get("id")
    if not isinstance(found, str) or not found:
        raise HTTPException(400, "the body must have an id")
    return found


def whole_of(text: str | None, *, low: int = 0) -> int:
    """A whole number in a query, by default 0. HTTPException for what is none."""
    try:
        return max(low, min(int(text or 0), 1 << 53))
    except ValueError as exc:
        raise HTTPException(400, f"{text!r} is no whole number") from exc


def number_of(text: str | None) -> float:
    """A number in a query, by default 0. HTTPException for what is none."""
    try:
        return float(text or 0.0)
    except ValueError as exc:
        raise HTTPException(400, f"{text!r} is no number") from exc


def most_of(query: Mapping[str, str]) -> int:
    """How many rows a page is to have."""
    return max(1, min(whole_of(query.get("most")) or 50, MOST_ROWS))
