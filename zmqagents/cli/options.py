"""The options that several verbs share. Each may also come from the environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..config import DEFAULT_TIMEOUT_S, MEBIBYTE
from ..telemetry.settings import FORMATS
from . import completing
from .config_file import with_config

__all__ = [
    "any_address", "as_json", "as_seconds", "listen_address", "log_format", "megabytes", "of_values",
    "on_host", "option", "with_traceback", "within",
]  # fmt: skip

LOOPBACK = ("127.0.0.1", "localhost", "::1")
F = TypeVar("F", bound=Callable[..., Any])


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """A click option that may also come from the environment, as ``AS_SERVER_<OPTION>``."""
    words = names[0].partition("/")[0].lstrip("-").replace("-", "_")
    return click.option(*names, envvar=f"AS_SERVER_{words.upper()}", **attributes)


def as_seconds(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """The callback of options that are a number of seconds, 0 or more, or ``none`` for no limit."""
    if text is None or text.lower() == "none":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise click.BadParameter(f"{text!r} is not a number of seconds, 0 or more, or 'none'", ctx, param)
    return seconds


def megabytes(value: str | int) -> int:
    """The type of options that are a size: MiB on the command line, bytes inside (and so in the default)."""
    if isinstance(value, int):
        return value
    try:
        size = float(value) * MEBIBYTE
    except ValueError:
        size = math.nan
    if not 1 <= size < 2**60:
        raise click.BadParameter(f"{value!r} is not a number of MiB above 0")
    return int(size)


def listen_address(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, int] | None:
    """The callback of options that are ``[HOST:]PORT``, of this machine alone."""
    found = None if text is None else any_address(ctx, param, text)
    if found is not None and found[0] not in LOOPBACK:
        raise click.BadParameter(
            f"{found[0]!r} is not this machine alone: as_server web serves others, with its options for TLS", ctx, param
        )
    return found


def any_address(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, int]:
    """The callback of an option that is ``[HOST:]PORT``."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or (LOOPBACK[0] if ":" not in text else "")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is no HOST:PORT", ctx, param)
    return host, int(port)


def on_host(function: F) -> F:
    """The options that say which host is meant: ``host``, ``port`` and ``server_id``."""
    for add in (
        with_config("client"),
        option("--server-id", metavar="ID", shell_complete=completing.hosts, help="The host of this id here."),
        option(
            "--port", type=click.IntRange(0, 65535), shell_complete=completing.ports,
            help="Its TCP port; default: the one host that runs here.",
        ),
        option("--host", default="localhost", show_default=True, help="Where it is."),
    ):  # fmt: skip
        function = add(function)
    return function


def of_values(function: F) -> F:
    """The options that say which classes the values may have that come in: ``types`` and ``plain_types``."""
    for add in (
        option(
            "--plain-types/--no-plain-types", default=True, show_default=True,
            help="Print objects of other classes in their plain form; or refuse them.",
        ),
        option(
            "--types", multiple=True, metavar="PACKAGE",
            help="Package whose classes are taken as themselves; it may be imported. May be given several times.",
        ),
    ):  # fmt: skip
        function = add(function)
    return function


as_json = option("--json", "as_json", is_flag=True, help="One line of JSON.")

within = option(
    "--timeout",
    default=f"{DEFAULT_TIMEOUT_S:g}",
    show_default=True,
    metavar="SECONDS",
    callback=as_seconds,
    help="Deadline in seconds, or none.",
)

log_format = option(
    "--log-format", type=click.Choice(FORMATS), default="text", show_default=True,
    help="How log lines are written to stderr: for people, or one JSON object a line.",
)  # fmt: skip

with_traceback = option("--traceback", is_flag=True, help="Show the agent's traceback when it raises.")
