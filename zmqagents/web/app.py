"""The routes of the web process. They say what is so at that moment, and nothing is asked of the host otherwise.

    /metrics   the figures of the host; ``zmqagents_host_up 0`` and no others if it does not answer
    /livez     200 if the host has answered anything within 30 s, else 503
    /readyz    200 if a call that does nothing goes through dispatch and store within 1 s, else 503

The bodies of the last two are ``ok`` or the reasons, one a line. A request for another name than this machine's is 400,
so that no page of another site can read these by a name that leads here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .exposition import encode
from .watcher import Watcher

__all__ = ["build"]

LOOPBACK = ["127.0.0.1", "localhost", "[::1]", "::1"]


def build(watcher: Watcher) -> Starlette:
    """The application, for requests to a name in `LOOPBACK`."""

    async def metrics(request: Request) -> Response:
        def page() -> tuple[bytes, str]:
            figures = watcher.figures()
            return encode(watcher.name, figures, request.headers.get("accept", ""))

        body, content_type = await asyncio.to_thread(page)
        return Response(body, headers={"content-type": content_type, "cache-control": "no-store"})

    def told(ask: Callable[[], list[str]]) -> Callable[[Request], object]:
        async def answer(request: Request) -> Response:
            reasons = await asyncio.to_thread(ask)
            text = "\n".join(" ".join(reason.split()) for reason in reasons) or "ok"
            return PlainTextResponse(f"{text}\n", 503 if reasons else 200, headers={"cache-control": "no-store"})

        return answer

    routes = [
        Route("/metrics", metrics), Route("/livez", told(watcher.not_live)), Route("/readyz", told(watcher.not_ready)),
    ]  # fmt: skip
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)])
