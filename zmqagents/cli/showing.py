"""The options of ``web`` that say what its gateway shows, and the gateway that they describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..config import MEBIBYTE
from .options import as_seconds, megabytes, option

if TYPE_CHECKING:
    from ..web.doors import Doors
    from ..web.gateway.gateway import Gateway

__all__ = ["Shown", "shown"]

F = TypeVar("F", bound=Callable[..., Any])
WAYS = ("json", "openai", "mcp", "a2a")


class Shown(NamedTuple):
    """What the options say."""

    ids: tuple[str, ...]
    ways: tuple[str, ...]
    max_body: int
    timeout_s: float | None
    files: bool

    def gateway(self, doors: Doors) -> Gateway:
        """The gateway. Without ``--door`` it has all ways in whose libraries are installed; MissingExtra."""
        from ..web.gateway.gateway import Gateway, installed

        return Gateway(
            doors, self.ids, doors=self.ways or [way for way in WAYS if installed(way)], max_bytes=self.max_body,
            timeout_s=self.timeout_s, files=self.files,
        )  # fmt: skip


def shown(function: F) -> F:
    """The options, which are the parameter ``shown``, a `Shown`."""

    def gathered(*args: Any, **given: Any) -> Any:
        given["shown"] = Shown(
            given.pop("expose"), given.pop("door"), given.pop("max_body_mb"), given.pop("call_timeout"),
            given.pop("expose_files"),
        )  # fmt: skip
        return function(*args, **given)

    gathered.__doc__ = function.__doc__
    gathered.__dict__.update(vars(function))
    found: Any = gathered
    for add in (
        option(
            "--expose-files", is_flag=True,
            help="Show the files below the file roots of the host, too, as resources of MCP.",
        ),
        option(
            "--call-timeout", default="300", show_default=True, metavar="SECONDS", callback=as_seconds,
            help="Deadline of a call by way of the gateway in seconds, or none.",
        ),
        option(
            "--max-body-mb", type=megabytes, default=4 * MEBIBYTE, show_default="4", metavar="MIB",
            help="Largest body of a request to the gateway; larger ones are refused.",
        ),
        option(
            "--door", multiple=True, type=click.Choice(WAYS),
            help="A way in at the gateway; may be given several times; default: all whose libraries are installed.",
        ),
        option(
            "--expose", multiple=True, metavar="ID",
            help="An agent that the gateway shows, beside those of classes under @agent(expose=True); may be given "
            "several times.",
        ),
    ):  # fmt: skip
        found = add(found)
    return found  # type: ignore[no-any-return]
