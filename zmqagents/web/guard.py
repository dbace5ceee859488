"""What every request passes first: whose name it uses, where it comes from, for whom it is.

A browser can be made to send requests here by any page that it shows. So

    another name than ours       400: a site whose name leads to this machine reads nothing
    POST from another site       403, by the headers that a page cannot forge; never by what a browser says it is
    ``/api/`` without a token    401, whatever lies there

Answers forbid the page to load or run what does not come from here, and others to frame it or to keep a copy. This is
plain ASGI, so that streams and disconnects pass as they are.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Access, Principal

__all__ = ["Guard"]

SAFE = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin", "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}  # fmt: skip


class Guard:
    """Wraps ``app``. ``names``: those under which this process is asked. ``cookie``: the name of its cookie.

    ``scope["state"]["principal"]`` is the `Principal` of a request, None for nobody; ``ask_again`` finds that anew, for
    what goes on for long.
    """

    def __init__(self, app: ASGIApp, access: Access, names: Collection[str], cookie: str) -> None:
        self._app = app
        self._access = access
        self._names = frozenset(names)
        self._cookie = cookie

    def __repr__(self) -> str:
        return f"<Guard of {', '.join(sorted(self._names))}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        principal = self._principal(headers)
        state = scope.setdefault("state", {})
        state["principal"], state["ask_again"] = principal, lambda: self._principal(headers)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope, headers, principal)
        await (refusal or self._app)(scope, receive, send_guarded)

    def _principal(self, headers: Headers) -> Principal | None:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._access.of_token(token.strip())
        session = cookie_parser(headers.get("cookie", "")).get(self._cookie)
        return self._access.of_session(session) if session else None

    def _refusal(self, scope: Scope, headers: Headers, principal: Principal | None) -> JSONResponse | None:
        if _name_of(headers.get("host", "")) not in self._names:
            return _refuse(400, "this is no name of this service")
        if scope["method"] not in SAFE:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if site not in (None, "same-origin", "none") or not self._is_ours(origin, headers.get("host", "")):
                return _refuse(403, "the request comes from another site")
        path = scope["path"]
        if principal is None and path.startswith("/api/") and path != "/api/session":
            answer = _refuse(401, "a token is needed: the link of the start line, or Authorization: Bearer TOKEN")
            answer.headers["www-authenticate"] = "Bearer"
            return answer
        return None

    def _is_ours(self, origin: str | None, host: str) -> bool:
        return origin is None or origin in (f"http://{host}", f"https://{host}")


def _name_of(host: str) -> str:
    """A Host header without its port; that of IPv6 is in brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)
