"""A cluster: its hosts, where its agents are, moving them, what has happened, the form of its records."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...config import END_WAIT_S
from ..command import Verb
from ..options import as_json, as_seconds, on_host, option
from ..output import say, show, show_facts, show_rows, visible

if TYPE_CHECKING:
    from ...client.cluster.handle import Cluster
    from ...client.cluster.upgrading import Forms

__all__ = ["agents_of_cluster", "drain", "events", "hosts", "move", "upgrade", "where"]

NOT_READY = 7  # the exit code

FOLLOW_S = 0.5  # how often `events --follow` asks
LOOK_EVERY_S = 0.1  # how often `drain` looks whether the host has gone
ANSWER_S = 2.0  # for a host to agree that it will end
SHOWN_EVENTS = 100


def open_cluster(host: str, port: int | None, server_id: str | None) -> Cluster:
    """The cluster of the host that is meant; without one, that of the members which run on this machine.

    Raises HostUnreachable if there is none, UnknownCluster if that host is no member, UsageError for several clusters.
    """
    from ...client.cluster.handle import Cluster
    from ..where import locate

    if port and not server_id:
        return _entered(Cluster(f"{host}:{port}"))
    if server_id:
        found = locate(host, port, server_id)
        if found is None or found.port is None:
            raise errors.HostUnreachable(f"no host {server_id!r} of yours is running on this machine")
        return _entered(Cluster(f"{found.host}:{found.port}"))
    members = _members_at(host)
    if len(members) != 1:
        names = ", ".join(sorted(members)) or "none"
        if members:
            raise click.UsageError(f"hosts of several clusters are running: {names}; say which host with --port")
        raise errors.HostUnreachable(
            f"no member of a cluster is running on {host}: say which with --host and --port, or start one with "
            "as_server start --cluster NAME"
        )
    return _entered(Cluster(next(iter(members.values()))))


def _entered(cluster: Cluster) -> Cluster:
    try:
        cluster.link.settle()
    except BaseException:
        cluster.close()
        raise
    return cluster


def _members_at(host: str) -> dict[str, list[str]]:
    """The addresses of the members here, by the names of their clusters."""
    from ... import discovery
    from ...client.cluster.handle import Cluster

    found: dict[str, list[str]] = {}
    for record in discovery.hosts_at(host):
        if record.port is None:
            continue
        address = f"{record.host}:{record.port}"
        with Cluster(address) as cluster:
            try:
                found.setdefault(cluster.name, []).append(address)
            except (errors.ZmqAgentsError, ConnectionError):  # no member, or about to end
                continue
    return found


# ---------------------------------------------------------------- looking


@click.command(cls=Verb)
@on_host
@as_json
def hosts(as_json: bool, host: str, port: int | None, server_id: str | None) -> None:
    """List the hosts of a cluster: their states, agents and running calls, and what is left of their leases."""
    with open_cluster(host, port, server_id) as cluster:
        found: list[dict[str, Any]] = [dict(row) for row in cluster.hosts()]
    columns = (
        "server_id", "address", "state", "agents", "running", "lease", "claims", "fenced", "relayed", "version",
        "labels",
    )  # fmt: skip
    shown = found if as_json else [_shown_host(row) for row in found]
    show_rows(shown, columns, as_json, "no hosts")


def _shown_host(row: dict[str, Any]) -> dict[str, Any]:
    labels = ",".join(f"{name}={value}" for name, value in sorted(row["labels"].items()))
    running = f"{row['running']}/{row['capacity']}"
    counts = {name: row["figures"].get(name, 0) for name in ("claims", "fenced", "relayed")}
    return {**row, **counts, "running": running, "lease": f"{row['lease_left']:.0%}", "labels": labels}


@click.command(cls=Verb)
@click.argument("name")
@on_host
@as_json
def where(name: str, as_json: bool, host: str, port: int | None, server_id: str | None) -> None:
    """Show where the agent NAME, Class/key, of a cluster is, and its reminders.

    Nobody has it before its first call, and while it sleeps.
    """
    with open_cluster(host, port, server_id) as cluster:
        found: dict[str, Any] = dict(cluster.where(name))
    _show_place(found, as_json)


def _show_place(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(found, True)
        return
    place = f"{found['server_id']} at {found['address']}" if found["address"] else "nobody has it now"
    times = "once" if found["revision"] == 1 else f"{found['revision']} times"  # the first is that of a new agent
    saved = f"saved {times}" if found["revision"] else "not saved yet"
    state = saved if found["epoch"] else "its first call will make it"
    facts = {"agent": found["agent"], "host": place, "epoch": str(found["epoch"]), "state": state}
    for row in found.get("reminders", ()):  # a host of a former version tells of none
        when = f"in {row['due_s']:.1f} s" if row["due_s"] > 0 else f"late by {-row['due_s']:.1f} s"
        every = f", every {row['every_s']:g} s" if row["every_s"] else ""
        facts[f"reminder {row['name']}"] = f"{row['method']}() {when}{every}"
    show_facts(facts)


def agents_of_cluster(cluster_name: str, as_json: bool, where: dict[str, Any]) -> None:
    """``agents --cluster``: ``cluster_name`` is that of the cluster, "" for whichever it is."""
    with open_cluster(**where) as cluster:
        if cluster_name and cluster.name != cluster_name:
            raise errors.UnknownCluster(f"the hosts here are members of the cluster {cluster.name!r}")
        found = [dict(row) for row in cluster.agents()]
    show_rows(found, ("agent", "server_id", "address", "epoch"), as_json, "no agents")


@click.command(cls=Verb)
@option("--follow", "-f", is_flag=True, help="Go on with the events that come, until Ctrl-C.")
@option(
    "--lines", type=click.IntRange(0, 10_000), default=SHOWN_EVENTS, show_default=True, help="Of those that there are."
)  # fmt: skip
@on_host
@as_json
def events(
    follow: bool, lines: int, as_json: bool, host: str, port: int | None, server_id: str | None
) -> None:  # fmt: skip
    """Print what has happened to the hosts and agents of a cluster: who joined, died, drained, moved, was fenced."""
    with open_cluster(host, port, server_id) as cluster:
        found, after = _all_events(cluster)
        for event in found[-lines:] if lines else []:
            _show_event(event, as_json)
        while follow:
            time.sleep(FOLLOW_S)
            page = cluster.events(after)
            after = page["following"] or after
            for row in page["rows"]:
                _show_event(dict(row), as_json)


def _all_events(cluster: Cluster) -> tuple[list[dict[str, Any]], str]:
    found: list[dict[str, Any]] = []
    after = ""
    while (page := cluster.events(after))["rows"]:
        found += [dict(row) for row in page["rows"]]
        after = page["following"] or after
    return found, after


def _show_event(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show(row, True)
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time_s"]))
    click.echo(visible(f"{when}  {row['kind']:<8}  {row['what']}"))


# ---------------------------------------------------------------- moving


@click.command(cls=Verb)
@click.argument("name")
@click.argument("to", required=False, default="")
@on_host
@as_json
def move(name: str, to: str, as_json: bool, host: str, port: int | None, server_id: str | None) -> None:
    """Move the agent NAME, Class/key, to the host TO, a server id or an address; by default to any other one.

    Its state goes along, and its calls wait meanwhile.
    """
    with open_cluster(host, port, server_id) as cluster:
        found: dict[str, Any] = dict(cluster.move(name, to))
    _show_place(found, as_json)


@click.command(cls=Verb)
@click.argument("member", metavar="[HOST]", required=False, default="")
@option(
    "--grace", metavar="SECONDS", callback=as_seconds, help="How long calls may go on; default: the host's own grace."
)
@on_host
@as_json
def drain(
    member: str, grace: float | None, as_json: bool, host: str, port: int | None, server_id: str | None
) -> None:  # fmt: skip
    """Let a host of a cluster give its agents to the others, and end. Exit code 0 when it was empty in time, else 6.

    HOST is a server id or an address of hosts; by default the host that --port means.
    """
    with open_cluster(host, port, server_id) as cluster:
        row, is_last = _row_of(cluster, member or server_id or "", port)
        grace_s, begun = _ask_to_drain(cluster, row, grace), time.monotonic()
        name = f"{row['server_id']} at {row['address']}"
        if not as_json:
            say(f"waiting up to {grace_s:g} s for {name}")
        while _is_up(row) if is_last else _is_there(cluster, row):
            if time.monotonic() - begun > grace_s + END_WAIT_S:
                raise errors.CallTimeout(
                    f"{name} is still there {grace_s + END_WAIT_S:g} s after it was asked to drain"
                )
            time.sleep(LOOK_EVERY_S)
    took_s = time.monotonic() - begun
    if took_s > grace_s:
        raise errors.CallTimeout(f"{name} has ended, but {grace_s:g} s were too short: what still ran was cut off")
    show({"drained": row["server_id"], "seconds": round(took_s, 3)} if as_json else f"drained {name}", as_json)


def _row_of(cluster: Cluster, named: str, port: int | None) -> tuple[dict[str, Any], bool]:
    """The host, and whether it is the only one. Without a name the one that was asked, if that was said by ``port``."""
    found: list[dict[str, Any]] = [dict(row) for row in cluster.hosts()]
    fitting = [row for row in found if named in (row["server_id"], row["address"])] if named else found
    if port and not named:  # whoever is asked is the first, by whatever name it is known to the others
        fitting = [row for row in found[:1] if row["address"].endswith(f":{port}")]
    if len(fitting) == 1:
        return fitting[0], len(found) == 1
    names = ", ".join(f"{row['server_id']} at {row['address']}" for row in found)
    if not named:
        raise click.UsageError(f"say which host: {names}")
    raise click.UsageError(f"{named!r} is not one of the hosts of {cluster.name}: {names}")


def _ask_to_drain(cluster: Cluster, row: dict[str, Any], grace: float | None) -> float:
    """How many seconds the host has."""
    from ...client.proxy import request_body, value_of
    from ...wire.messages import Op

    link = cluster.link.connection_at(row["address"])
    body = request_body(link, Op.INFO, (), {})
    grace_s = grace
    if grace_s is None:
        info = value_of(link, link.call("", Op.INFO, body, timeout=ANSWER_S))
        grace_s = float(info["settings"]["grace_s"])
    options = {} if grace is None else {"grace_s": grace}
    value_of(link, link.call("", Op.DRAIN, body, options=options, timeout=ANSWER_S))
    return grace_s


def _is_there(cluster: Cluster, row: dict[str, Any]) -> bool:
    try:
        return any(other["incarnation"] == row["incarnation"] for other in cluster.hosts())
    except (errors.HostUnreachable, errors.HostStopping, errors.CallLost, errors.HostLost):
        return False  # it was the only one that is known here, and it does not answer any more


def _is_up(row: dict[str, Any]) -> bool:
    """The same for the last host of a cluster: no other one tells of its end, and a `Cluster` would wait for one."""
    from ...client.rpc import RpcClient

    name, _, port = row["address"].rpartition(":")
    try:
        with RpcClient(name, int(port)) as client:
            found: dict[str, Any] = client.get_server_info()
    except errors.HostStopping:
        return True
    except ConnectionError:
        return False
    return bool((found.get("cluster") or {}).get("incarnation") == row["incarnation"])


# ---------------------------------------------------------------- the form of the records


@click.command(cls=Verb)
@option("--dry-run", is_flag=True, help="Only show which form of records each host knows, and what would be done.")
@on_host
@as_json
def upgrade(dry_run: bool, as_json: bool, host: str, port: int | None, server_id: str | None) -> int:
    """Bring the records of a cluster's agents to the newest form that its hosts know: the end of a rolling upgrade.

    Exit code 0 when all have it, 7 if a host does not read it: nothing is changed then. Agents go on meanwhile. It may
    be interrupted and run again. There is no way back: hosts that know only the former form cannot join any more.
    """
    from ...client.cluster.upgrading import Upgrade, Upgraded, shown

    with open_cluster(host, port, server_id) as cluster:
        work, name = Upgrade(cluster, (lambda text: None) if as_json else say), cluster.name
        before = work.look()
        done = Upgraded(before) if dry_run else work.run()
    forms = done.forms
    if as_json:
        show({
            "cluster": name, "form": forms.form, "former": forms.former, "newest": forms.newest, "raised": done.raised,
            "seen": done.seen, "rewritten": done.rewritten, "hosts": forms.hosts,
            "lacking": [row["server_id"] for row in forms.lacking],
        }, True)  # fmt: skip
    elif dry_run:
        columns = ("server_id", "address", "state", "version", "reads", "writes")
        show_rows([{**row, "reads": _shown_forms(row["reads"])} for row in forms.hosts], columns, False, "no hosts")
    if forms.lacking:
        if not as_json:
            names = ", ".join(map(shown, forms.lacking))
            say(
                f"the records of {name} stay in form {forms.form}, for form {forms.newest} is not read by {names}: "
                "exchange these hosts for newer ones, then run as_server upgrade again"
            )
        return NOT_READY
    if not as_json:
        click.echo(visible(_outcome(name, before, done.forms, dry_run, done.seen, done.rewritten)))
    return 0


def _shown_forms(reads: list[int]) -> str:
    oldest, newest = reads
    return "?" if not newest else str(newest) if oldest == newest else f"{oldest} to {newest}"


def _outcome(name: str, before: Forms, after: Forms, dry_run: bool, seen: int, rewritten: int) -> str:
    if dry_run and before.is_done:
        return f"all records of {name} have form {before.form}, the newest that its hosts know: nothing to do"
    if dry_run:
        return (
            f"the records of {name} would be brought from form {before.former} to form {before.newest}; "
            "hosts that do not read that cannot join any more then"
        )
    if not after.is_done:
        return f"all records of {name} have form {after.former}; a newer host has joined meanwhile: run this again"
    return f"all records of {name} have form {after.form}: {seen:,} were looked at, {rewritten:,} rewritten"
