"""The options of ``web`` that say what its gateway shows, and the gateway that they describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..config import MEBIBYTE
from .options import as_seconds, megabytes, option

if TYPE_CHECKING:
    from ..web.gateway.gateway import Gateway
    from ..web.hosts.doors import Doors

__all__ = ["Shown", "shown"]

F = TypeVar("F", bound=Callable[..., Any])
PROTOCOLS = ("json", "openai", "mcp", "a2a")


class Shown(NamedTuple):
    """What the options say."""

    ids: tuple[str, ...]
    protocols: tuple[str, ...]
    max_body: int
    timeout_s: float | None
    files: bool

    def gateway(self, doors: Doors) -> Gateway:
        """The gateway. Without ``--protocol`` it has all ways in whose libraries are installed; MissingExtra."""
        from ..web.gateway.gateway import Gateway, installed

        spoken = self.protocols or [each for each in PROTOCOLS if installed(each)]
        return Gateway(
            doors, self.ids, protocols=spoken, max_bytes=self.max_body, timeout_s=self.timeout_s, files=self.files
        )


def shown(function: F) -> F:
    """The options, which are the parameter ``shown``, a `Shown`."""

    def gathered(*args: Any, **given: Any) -> Any:
        given["shown"] = Shown(
            given.pop("expose"), given.pop("protocol"), given.pop("max_body_mb"), given.pop("call_timeout"),
            given.pop("expose_files"),
        )  # fmt: skip
        return function(*args, **given)

    gathered.__name__, gathered.__doc__ = function.__name__, function.__doc__  # the name is the verb's in older clicks
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
            "--protocol", multiple=True, type=click.Choice(PROTOCOLS),
            help="What the gateway speaks; may be given several times; default: all whose libraries are installed.",
        ),
        option(
            "--expose", multiple=True, metavar="ID",
            help="An agent that the gateway shows, beside those of classes under @agent(expose=True); may be given "
            "several times.",
        ),
    ):  # fmt: skip
        found = add(found)
    return found  # type: ignore[no-any-return]
