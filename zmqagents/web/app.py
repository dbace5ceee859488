"""The routes of the web process.

    /metrics     the figures of the host; ``zmqagents_host_up 0`` and no others if it does not answer
    /livez       200 if the host has answered anything within 30 s, else 503
    /readyz      200 if a call that does nothing goes through dispatch and store within 1 s, else 503
    /api/...     see `api`; needs a token
    / and other  the page, which is an empty shell without a token
    and those of the gateway, see `gateway`

The bodies of /livez and /readyz are ``ok`` or the reasons, one a line. These three need no token where this machine
alone is served; where others are, /metrics needs one, and the reasons are told to those with one. The host is asked
when somebody asks, and otherwise never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..security.keys import KeyStore
from . import files
from .access import Access, is_stranger, need
from .api import Api
from .cluster_pages import ClusterPages
from .exposition import encode
from .gateway.failures import respond
from .gateway.gateway import Gateway
from .guard import Guard
from .hosts.fleet import Fleet
from .hosts.house import House

__all__ = ["LOOPBACK", "Parts", "build"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Parts(NamedTuple):
    """What the application is made of."""

    house: House
    access: Access
    store: KeyStore


def build(
    parts: Parts, port: int, gateway: Gateway | None = None, *, names: Collection[str] = (), is_open: bool = False
) -> Starlette:
    """The application, for requests to a name in `LOOPBACK` or ``names`` at ``port``.

    ``is_open``: others than this machine may come, by TLS: then /metrics needs a token, and without one /livez and
    /readyz tell no reasons.
    The routes of a ``gateway`` are behind the same `Guard`, and find with `principal_of` for whom a request is.
    """
    cookie = f"za_session_{port}"  # a browser knows cookies by name and address alone, whatever the port
    if is_open:
        cookie = f"__Host-{cookie}"  # which a browser takes by TLS alone, and from this very name
    api = Api(parts.access, parts.house, parts.store, cookie, secure=is_open)
    more = ClusterPages(parts.house).routes() if isinstance(parts.house, Fleet) else []
    return Starlette(
        routes=[
            *(gateway.routes if gateway else ()), *_for_machines(parts.house, is_open), *api.routes, *more,
            *files.routes(),
        ],
        middleware=[Middleware(Guard, access=parts.access, names=(*LOOPBACK, *names), cookie=cookie)],
        exception_handlers={HTTPException: _tell}, lifespan=None if gateway is None else lambda _: gateway.life(),
    )  # fmt: skip


def _for_machines(house: House, is_open: bool) -> list[Route]:
    async def metrics(request: Request) -> Response:
        if is_open:
            need(request, "admin", "view")
        accept = request.headers.get("accept", "")
        body, content_type = await asyncio.to_thread(encode, await house.figures(), accept)
        return Response(body, headers={"content-type": content_type})

    def told(ask: Callable[[], Awaitable[list[str]]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            reasons = await ask()
            text = "\n".join(" ".join(reason.split()) for reason in reasons) or "ok"
            if is_open and reasons and is_stranger(request):
                text = "no"
            return PlainTextResponse(f"{text}\n", 503 if reasons else 200)

        return answer

    return [
        Route("/metrics", metrics), Route("/livez", told(house.not_live)), Route("/readyz", told(house.not_ready)),
    ]  # fmt: skip


async def _tell(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if request.url.path.startswith(("/agents/", "/offers")):  # the gateway's, whose programs read errors of one form
        return respond(exc)
    return JSONResponse({"error": exc.detail}, exc.status_code, exc.headers)
