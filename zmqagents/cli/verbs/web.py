"""``web``: a page to look at a host, and its figures and health over HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...telemetry.settings import LogSettings
from ..command import Verb
from ..options import as_json, log_format, on_host, option
from ..output import show
from ..showing import Shown, shown
from ..values import json_line
from ..where import locate, open_client

if TYPE_CHECKING:
    from ...web.running import Running

__all__ = ["listen_address", "web"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 5.0  # of what the host is asked


def listen_address(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, int] | None:
    """The callback of options that are ``[HOST:]PORT``, of this machine alone."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or (LOOPBACK[0] if ":" not in text else "")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is no HOST:PORT", ctx, param)
    if host not in LOOPBACK:
        text = f"{host!r} is not this machine alone, and nothing here is encrypted: use {' or '.join(LOOPBACK)}"
        raise click.BadParameter(text, ctx, param)
    return host, int(port)


@click.command(cls=Verb)
@option(
    "--listen", default="127.0.0.1:8080", show_default=True, metavar="[HOST:]PORT", callback=listen_address,
    help="Where to serve; port 0: a free one, which is printed.",
)  # fmt: skip
@option("--url", "show_url", is_flag=True, help="Print the link of the web process that runs, and end.")
@option(
    "--role", type=click.Choice(["admin", "view"]), default="admin", show_default=True,
    help="What the link that is printed lets its reader do: all that this user may, or look.",
)  # fmt: skip
@log_format
@option("--end-with-stdin", is_flag=True, help="End when stdin ends, as with the program that has started it.")
@on_host
@as_json
@shown
def web(
    listen: tuple[str, int], show_url: bool, role: str, log_format: str, end_with_stdin: bool, as_json: bool,
    shown: Shown, **where: Any,
) -> None:  # fmt: skip
    """Serve a page that shows a host, and /metrics (for Prometheus), /livez and /readyz, until Ctrl-C.

    The link that is printed holds a token, which counts until the process ends; --url prints it again, with --role view
    one that only looks. Tokens of as_server keys token count as well. The page and its data are served to this machine
    alone. The host is asked while somebody looks, as any client does; it may come and go meanwhile.

    \b
    as_server web --expose reader
    curl -H "Authorization: Bearer $(as_server keys token)" http://127.0.0.1:8080/agents/reader/reply --json '{...}'

    Agents that are named are offered to programs that are not Python: as JSON over HTTP, as models of OpenAI's chat
    completions, as tools of MCP, and to agents of A2A. docs/gateway.rst has them.
    """
    try:
        from ...web.access import Access
        from ...web.app import Parts
        from ...web.doors import Doors
        from ...web.running import found
        from ...web.serve import serve
        from ...web.watcher import Watcher
    except ImportError as exc:
        raise errors.MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[web]'") from exc
    from ...security.keys import KeyStore
    from ...telemetry.program import Program

    if show_url:
        _tell_again(found(), listen[1], role, as_json)
        return
    record, store = locate(**where), KeyStore.open()
    named = where["server_id"] or (f"{where['host']}:{where['port']}" if where["port"] else "the host")
    name = record.server_id if record is not None else named
    parts = Parts(
        Watcher(lambda: open_client(**where, timeout=TIMEOUT_S), name=name), Access(store),
        Doors(lambda acts_for: open_client(**where, timeout=TIMEOUT_S, acts_for=acts_for)), store,
    )  # fmt: skip

    program = Program.start(LogSettings(format=log_format), name, lambda: None)

    def ready(running: Running) -> None:
        if as_json:
            program.say_first(json_line({"url": running.url, "web": running.link(role)}))
            return
        text = f"zmqagents web at {running.url}: /metrics /livez /readyz, and the page {running.link(role)}"
        program.say_first(text)

    serve(
        parts, *listen, ready, parent=sys.stdin.fileno() if end_with_stdin else None, gateway=shown.gateway(parts.doors)
    )


def _tell_again(running: list[Running], port: int, role: str, as_json: bool) -> None:
    """Print the link of the process that serves at ``port``, or of the only one."""
    at_port = [each for each in running if each.url.endswith(f":{port}")]
    found = at_port if at_port else running
    if not found:
        raise errors.HostUnreachable("no web process of yours is running on this machine; as_server web runs one")
    if len(found) > 1:
        names = ", ".join(f"{each.url} of {each.host}" for each in found)
        raise click.UsageError(f"{len(found)} web processes are running: {names}; say which with --listen")
    url = found[0].link(role)
    show({"url": found[0].url, "web": url} if as_json else url, as_json)
