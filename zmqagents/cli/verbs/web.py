"""``web``: figures and health of a host over HTTP."""

from __future__ import annotations

import click

from ... import errors
from ..command import Verb
from ..options import as_json, on_host, option
from ..output import show
from ..where import locate, open_client

__all__ = ["web"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TIMEOUT_S = 5.0  # of what the host is asked


def _address(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, int]:
    """The callback of ``--listen HOST:PORT``."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is no HOST:PORT", ctx, param)
    if host not in LOOPBACK:
        text = f"{host!r} is not this machine alone, and what is served needs no key yet: use {' or '.join(LOOPBACK)}"
        raise click.BadParameter(text, ctx, param)
    return host, int(port)


@click.command(cls=Verb)
@option(
    "--listen", default="127.0.0.1:8080", show_default=True, metavar="HOST:PORT", callback=_address,
    help="Where to serve; port 0: a free one, which is printed.",
)  # fmt: skip
@on_host
@as_json
def web(listen: tuple[str, int], as_json: bool, host: str, port: int | None, server_id: str | None) -> None:
    """Serve /metrics (for Prometheus), /livez and /readyz of a host until Ctrl-C.

    The host is asked when somebody asks, as any client does; it may come and go meanwhile. The three need no key, so
    they are served to this machine alone.
    """
    try:
        from ...web.serve import serve
        from ...web.watcher import Watcher
    except ImportError as exc:
        raise errors.MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[web]'") from exc
    record = locate(host, port, server_id)

    def ready(bound: int) -> None:
        name = f"[{listen[0]}]" if ":" in listen[0] else listen[0]
        url = f"http://{name}:{bound}"
        if as_json:
            show({"url": url}, True)
        else:
            click.echo(f"zmqagents web at {url}: /metrics /livez /readyz")

    watcher = Watcher(
        lambda: open_client(host, port, server_id, timeout=TIMEOUT_S),
        name=record.server_id if record is not None else f"{host}:{port}",
    )
    serve(watcher, *listen, ready)
