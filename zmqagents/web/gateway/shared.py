"""What all protocols share: who asks, what is shown, how calls are made, and how an endpoint answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import errors
from ..access import Principal, need
from ..hosts.doors import Doors
from .bodies import Gone, Limited
from .calls import Calls, Wish, chain_in, timeout_in
from .failures import respond
from .offers import Offers

__all__ = ["Endpoint", "Shared"]

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


class Shared:
    """``ids``: the agents that are shown by their ids."""

    def __init__(
        self, doors: Doors, ids: Collection[str], *, timeout_s: float | None, max_bytes: int, files: bool
    ) -> None:
        self.calls = Calls(doors)
        self.offers = Offers(self.calls, ids)
        self.timeout_s = timeout_s
        self.max_bytes = max_bytes
        self.limits = [Middleware(Limited, max_bytes=max_bytes)]
        self.files = files

    def who(self, request: Request) -> Principal:
        """The user of a request. HTTPException: nobody, or one who may call no agent."""
        return need(request, "call", "admin")

    def wish(self, request: Request) -> Wish:
        """What goes with the calls of a request. HTTPException, BadArguments."""
        who, headers = self.who(request), request.headers
        return Wish(who, timeout_in(headers, self.timeout_s), chain_in(headers))

    def route(
        self, path: str, endpoint: Endpoint, methods: list[str],
        as_body: Callable[[BaseException], dict[str, Any]] | None = None,
    ) -> Route:  # fmt: skip
        """A route to ``endpoint``, whose errors become answers; ``as_body``: in the form of that protocol."""

        async def answer(request: Request) -> Response:
            try:
                return await endpoint(request)
            except Gone:
                return Response(status_code=499)  # nobody gets it
            except (errors.ZmqAgentsError, HTTPException) as exc:
                return respond(exc, None if as_body is None else as_body(exc))
            except Exception as exc:
                log.exception("%s %s failed", request.method, request.url.path)
                return respond(exc, None if as_body is None else as_body(exc))

        return Route(path, answer, methods=methods, middleware=self.limits)
