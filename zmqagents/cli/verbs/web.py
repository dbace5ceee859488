"""``web``: a page to look at a host, and its figures and health over HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...telemetry.settings import LogSettings
from ..command import Verb
from ..options import any_address, as_json, log_format, on_host, option
from ..output import show
from ..showing import Shown, shown
from ..values import json_line
from ..where import locate, open_client

if TYPE_CHECKING:
    from ...client.cluster.handle import Cluster
    from ...web.hosts.house import House
    from ...web.running import Running

__all__ = ["web"]

TIMEOUT_S = 5.0  # of what the host is asked


@click.command(cls=Verb)
@option(
    "--listen", default="127.0.0.1:8080", show_default=True, metavar="[HOST:]PORT", callback=any_address,
    help="Where to serve; port 0: a free one, which is printed. Beyond this machine it takes TLS.",
)  # fmt: skip
@option(
    "--host-name", multiple=True, metavar="NAME",
    help="A name under which others ask for the page, requests for any other are refused; may be given several times.",
)  # fmt: skip
@option("--certificate", metavar="FILE", type=click.Path(), help="Certificate for TLS, with those that have signed it.")
@option("--certificate-key", metavar="FILE", type=click.Path(), help="Its private key.")
@option("--behind-proxy", is_flag=True, help="A proxy in front of this process has the TLS.")
@option("--url", "show_url", is_flag=True, help="Print the link of the web process that runs, and end.")
@option(
    "--role", type=click.Choice(["admin", "view"]), default="admin", show_default=True,
    help="What the link that is printed lets its reader do: all that this user may, or look.",
)  # fmt: skip
@option(
    "--cluster", metavar="[NAME]", is_flag=False, flag_value="", default=None,
    help="Show all hosts of the cluster that the host belongs to; NAME says which it should be.",
)  # fmt: skip
@log_format
@option("--end-with-stdin", is_flag=True, help="End when stdin ends, as with the program that has started it.")
@on_host
@as_json
@shown
def web(
    listen: tuple[str, int], host_name: tuple[str, ...], certificate: str | None, certificate_key: str | None,
    behind_proxy: bool, show_url: bool, role: str, cluster: str | None, log_format: str, end_with_stdin: bool,
    as_json: bool, shown: Shown, **where: Any,
) -> None:  # fmt: skip
    """Serve a page that shows a host, and /metrics (for Prometheus), /livez and /readyz, until Ctrl-C.

    The link that is printed holds a token, which counts until the process ends; --url prints it again, with --role view
    one that only looks. Tokens of as_server keys token count as well. The page and its data are served to this machine
    alone, unless --listen says otherwise: then by TLS, and for the names of --host-name.

    The host is asked while somebody looks, as any client does; it may come and go meanwhile. With --cluster the page
    shows all hosts of a cluster, and where its agents are: the host that is meant is only the first one asked.

    \b
    as_server web --expose reader
    curl -H "Authorization: Bearer $(as_server keys token)" http://127.0.0.1:8080/agents/reader/reply --json '{...}'

    Agents that are named are offered to programs that are not Python: as JSON over HTTP, as models of OpenAI's chat
    completions, as tools of MCP, and to agents of A2A. docs/gateway.rst has them.
    """
    try:
        from ...web.access import Access
        from ...web.app import Parts
        from ...web.running import found
        from ...web.serve import Place, serve
    except ImportError as exc:
        raise errors.MissingExtra(f"{exc.name} is missing: pip install 'zmqagents[web]'") from exc
    from ...security.keys import KeyStore
    from ...telemetry.program import Program

    if show_url:
        _tell_again(found(), listen[1], role, as_json)
        return
    place = Place(*listen, host_name, certificate, certificate_key, behind_proxy)
    if place.mistake:
        raise click.UsageError(place.mistake)
    store, house = KeyStore.open(), _one_host(where) if cluster is None else _whole_cluster(cluster, where)
    parts = Parts(house, Access(store), store)
    program = Program.start(LogSettings(format=log_format), house.name, lambda: None)

    def ready(running: Running) -> None:
        if as_json:
            program.say_first(json_line({"url": running.url, "web": running.link(role)}))
            return
        text = f"zmqagents web at {running.url}: /metrics /livez /readyz, and the page {running.link(role)}"
        program.say_first(text)

    parent = sys.stdin.fileno() if end_with_stdin else None
    serve(parts, place, ready, parent=parent, gateway=shown.gateway(house.doors))


def _one_host(where: dict[str, Any]) -> House:
    from ...web.hosts.doors import Doors
    from ...web.hosts.house import OneHost
    from ...web.hosts.watcher import Watcher

    record = locate(**where)
    named = where["server_id"] or (f"{where['host']}:{where['port']}" if where["port"] else "the host")
    name = record.server_id if record is not None else named
    watcher = Watcher(lambda: open_client(**where, timeout=TIMEOUT_S), name=name)
    return OneHost(watcher, Doors(lambda acts_for: open_client(**where, timeout=TIMEOUT_S, acts_for=acts_for)))


def _whole_cluster(name: str, where: dict[str, Any]) -> House:
    from ...web.hosts.fleet import Fleet
    from ...web.hosts.roster import Roster
    from .cluster import open_cluster

    def opened() -> Cluster:
        try:
            return open_cluster(**where)
        except click.UsageError as exc:  # several clusters run here by now
            raise errors.HostUnreachable(exc.format_message()) from exc

    return Fleet(Roster(opened, name, TIMEOUT_S))


def _tell_again(running: list[Running], port: int, role: str, as_json: bool) -> None:
    """Print the link of the process that serves at ``port``, or of the only one."""
    at_port = [each for each in running if each.port == port]
    found = at_port if at_port else running
    if not found:
        raise errors.HostUnreachable("no web process of yours is running on this machine; as_server web runs one")
    if len(found) > 1:
        names = ", ".join(f"{each.url} of {each.host}" for each in found)
        raise click.UsageError(f"{len(found)} web processes are running: {names}; say which with --listen")
    url = found[0].link(role)
    show({"url": found[0].url, "web": url} if as_json else url, as_json)
