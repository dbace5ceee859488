"""The page itself: files of this package, which are read once and served as they are.

Every page of the site is the same empty shell, which tells nothing; its script asks ``/api`` for what it shows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGES", "routes"]

PLACE = Path(__file__).parent / "static"
PAGES = (
    "", "cluster", "host", "agents", "agent", "calls", "call", "graph", "charts", "results", "logs", "errors", "keys",
)  # fmt: skip
KINDS = {
    ".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml",
    ".html": "text/html", "": "text/plain",
}  # fmt: skip


def routes() -> list[Route]:
    """The shell for every page, and the files that it loads."""
    shell = _file(PLACE / "index.html")
    found = [Route(f"/{page}", shell, methods=["GET"]) for page in PAGES]
    for path in sorted(PLACE.rglob("*")):
        if path.is_file() and path.suffix in KINDS and path.name != "index.html":
            name = path.relative_to(PLACE).as_posix()
            found.append(Route(f"/static/{name}", _file(path), methods=["GET"]))
    return [*found, Route("/favicon.ico", _file(PLACE / "icon.svg"), methods=["GET"])]


def _file(path: Path) -> Callable[[Request], Awaitable[Response]]:
    data, kind = path.read_bytes(), KINDS[path.suffix]

    async def answer(request: Request) -> Response:
        return Response(data, media_type=kind)

    return answer
