"""One host: end it, look at it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...agents.context import Progress
from ...config import END_WAIT_S, BrokerConfig
from ..command import Verb
from ..options import as_json, as_seconds, on_host, option
from ..output import say, show, show_facts, show_rows, visible
from ..where import locate, open_client

if TYPE_CHECKING:
    from ...discovery import ConnectionFile

__all__ = ["agents", "calls", "children", "dump", "status", "stop"]

PATIENCE_S = 2.0  # for a host to agree that it will stop; less where its grace is short
NAMES_SHOWN = 10  # of the agents of one process
LOOK_EVERY_S = 0.02  # how often `stop` looks whether it has


@click.command(cls=Verb)
@on_host
@option(
    "--grace", metavar="SECONDS", callback=as_seconds, help="How long calls may go on; default: the host's own grace."
)
@as_json
def stop(grace: float | None, as_json: bool, host: str, port: int | None, server_id: str | None) -> None:
    """Stop a host and wait until it has ended.

    Where none is running that is said, and the exit code is 0 as well. A host on this machine that does not answer is
    ended by signals: SIGTERM, and 2 seconds after its grace SIGKILL. One that has agreed and does not end within its
    grace and 2 seconds is reported with exit code 6.
    """
    record = locate(host, port, server_id)
    if record is None and (not port or server_id):
        _tell(f"no host {server_id + ' ' if server_id else ''}of yours is running on this machine", False, as_json)
        return
    name = f"{record.server_id} at {record.host}:{record.port}" if record else f"{host}:{port}"
    given_s = record.grace_s if grace is None and record is not None else grace
    likely_s = BrokerConfig.grace_s if given_s is None else given_s
    end = time.monotonic() + likely_s + END_WAIT_S
    try:
        limit_s = _ask_to_stop(grace, host, port, server_id, record, min(PATIENCE_S, 0.5 + likely_s / 4))
    except errors.HostUnreachable:
        where = f"{record.host if record else host}:{record.port if record else port}"
        _tell(f"no host is running at {where}", False, as_json)
        return
    except (errors.HostStopping, errors.CallLost, errors.HostLost):  # it was about to end by itself
        limit_s = 0.0
    if limit_s is None:
        assert record is not None
        _see_it_die(record, end)
    elif not _wait_until_gone(record, host, port, limit_s + END_WAIT_S):
        pid = f" (pid {record.pid})" if record else ""
        raise errors.CallTimeout(f"{name}{pid} is still there {limit_s + END_WAIT_S:g} s after it was asked to stop")
    _tell(f"stopped {name}", True, as_json)


def _tell(text: str, was_there: bool, as_json: bool) -> None:
    show({"stopped": was_there, "message": text} if as_json else text, as_json)


def _say_why_it_takes_time(info: dict[str, Any], grace_s: float) -> None:
    if info["calls_open"] and grace_s > 0:
        calls = f"{info['calls_open']} call{'s' * (info['calls_open'] != 1)}"
        say(f"waiting up to {grace_s:g} s for {calls} of {info['server_id']}; as_server stop --grace 0 ends them now")


def _ask_to_stop(
    grace: float | None, host: str, port: int | None, server_id: str | None, record: ConnectionFile | None,
    patience_s: float,
) -> float | None:  # fmt: skip
    """Send the stop; how long the host may take for it, in seconds. None: it does not answer, and has got SIGTERM.

    It has ``patience_s`` to answer, which are part of its time.
    """
    from ...client.deadlines import deadline

    with open_client(host, port, server_id) as client:
        try:
            with contextlib.nullcontext() if record is None else deadline(patience_s):
                info = client.get_server_info()
                client.stop(grace)
        except (errors.HostUnreachable, errors.CallTimeout):
            if record is None or not record.is_live:
                raise
            _signal(record, signal.SIGTERM)  # here: to close the connection may take a second
            return None
        grace_s = float(info["settings"]["grace_s"]) if grace is None else grace
        _say_why_it_takes_time(info, grace_s)
        return grace_s


def _signal(record: ConnectionFile, number: signal.Signals) -> None:
    say(f"{record.server_id} does not answer: {number.name} to its process {record.pid}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, number)


def _see_it_die(record: ConnectionFile, end: float) -> None:
    """A host of this user on this machine has got SIGTERM, but took no request: at ``end`` it gets SIGKILL."""
    from ... import discovery

    if not _wait_until_gone(record, "", None, end - time.monotonic()):
        _signal(record, signal.SIGKILL)
        if not _wait_until_gone(record, "", None, END_WAIT_S):
            raise errors.CallTimeout(f"{record.server_id} (pid {record.pid}) is still there after SIGKILL")
    discovery.sweep()  # it could not do that itself


def _wait_until_gone(record: ConnectionFile | None, host: str, port: int | None, limit_s: float) -> bool:
    """Wait until a host of this machine has released its lock, or another host does not answer any more."""
    end = time.monotonic() + limit_s
    while _is_there(record, host, port):
        if time.monotonic() >= end:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


def _is_there(record: ConnectionFile | None, host: str, port: int | None) -> bool:
    if record is not None:
        return record.is_live
    with open_client(host, port, None) as client:
        return client.is_alive()


@click.command(cls=Verb)
@on_host
@as_json
def status(as_json: bool, **where: Any) -> None:
    """Show how a host is. Exit code 4 if it does not answer."""
    with open_client(**where) as client:
        info = client.get_server_info()
    if as_json:
        show(info, True)
        return
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in info["calls"].items())
    store = info["store"]
    show_facts({
        "host": f"{info['server_id']} at {info['host']}:{info['port']} (pid {info['pid']})",
        "version": f"{info['version']} on Python {info['python']}",
        "state": f"{info['state']} for {_duration(info['uptime_s'])}",
        "agents": f"{info['agents']}",
        **_children_facts(info["children"]),
        "classes": ", ".join(name.rpartition(":")[2] for name in info["classes"]) or "none",
        "models": ", ".join(info["models"]) or "none",
        "clients": f"{info['clients']}",
        "running": f"{info['running']} of {info['capacity']}, {info['waiting']} waiting",
        "calls": f"{info['calls_open']} open, {counts}",
        "results": f"{store['done']} kept in the {store['kind']} store, {store['bytes']} bytes",
        **_store_facts(store),
    })  # fmt: skip


def _children_facts(found: dict[str, Any]) -> dict[str, str]:
    if not found["processes"]:
        return {}
    names = ("silent", "agents", "calls", "crashes")
    counts = ", ".join(f"{found[name]} {name}" for name in names)
    return {"children": f"{found['processes']} processes, {counts}, {found['memory_mb']} MiB"}


def _store_facts(store: dict[str, Any]) -> dict[str, str]:
    facts = {
        "store": f"{store['pending']} pending, {store['hits']} found, {store['misses']} not found, "
        f"{store['expired']} expired, {store['evicted']} evicted, {store['refused']} too large"
    }
    if "url" in store:
        trouble = f": {store['trouble']}" if store["trouble"] else f", round trip {store['round_trip_ms']:g} ms"
        facts["redis"] = f"{store['url']} ({store['namespace']}) is {store['state']}{trouble}"
        facts["unwritten"] = f"{store['unwritten']} results, {store['unwritten_bytes']} bytes, {store['given_up']} lost"
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not minutes and not hours:
        return f"{seconds:.1f} s"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@click.command(cls=Verb)
@option(
    "--cluster", metavar="[NAME]", is_flag=False, flag_value="", default=None,
    help="List those of the host's whole cluster; NAME says which it should be.",
)  # fmt: skip
@on_host
@as_json
def agents(cluster: str | None, as_json: bool, **where: Any) -> None:
    """List the agents of a host."""
    if cluster is not None:
        from .cluster import agents_of_cluster

        agents_of_cluster(cluster, as_json, where)
        return
    with open_client(**where) as client:
        found = client.get_agent_list()
    columns = ["agent_id", "type", "calls", "running", "queued", "age_s"]
    _show_placed(found, columns, as_json, "no agents")


def _show_placed(rows: list[dict[str, Any]], columns: list[str], as_json: bool, if_none: str) -> None:
    """Show agents or calls; where any is in a child there is a column with the pid of that."""
    if not as_json and any(row.get("child") is not None for row in rows):
        rows = [{**row, "child": "host" if row["child"] is None else str(row["child"])} for row in rows]
        columns.append("child")
    show_rows(rows, columns, as_json, if_none)


@click.command(cls=Verb)
@on_host
@as_json
def calls(as_json: bool, **where: Any) -> None:
    """List the calls of a host that are not answered yet."""
    with open_client(**where) as client:
        found = client.get_call_list()
    columns = ["task_id", "agent", "method", "state", "age_s", "caller", "waits_for"]
    columns += [name for name in ("progress", "note") if any(call.get(name) for call in found)]
    if not as_json:
        found = [{**call, "waits_for": ", ".join(call["waits_for"]), "progress": _come(call)} for call in found]
    _show_placed(found, columns, as_json, "no open calls")


def _come(call: dict[str, Any]) -> str:
    """How far a call has come, as it has told."""
    told = call.get("progress")
    return str(Progress(*told)) if told else ""


@click.command(cls=Verb)
@on_host
@as_json
def dump(as_json: bool, **where: Any) -> None:
    """Show where the code of each open call is, and what it waits for: to see what is stuck."""
    with open_client(**where) as client:
        found = client.dump()
    if as_json or not found:
        show_rows(found, (), as_json, "no open calls")
        return
    for call in found:
        waits = ", ".join(call["waits_for"] + call["behind"])
        line = f"{call['task_id']}  {call['agent']}.{call['method']}  {call['state']} {call['age_s']} s"
        note = f", {call['note']}" if call["note"] else ""
        note += f", in child {call['child']}" if call.get("child") else ""
        click.echo(visible(f"{line}, by {call['caller']}" + (f", waits for {waits}" if waits else "") + note))
        click.echo(visible(call["stack"].rstrip(), "\n") + "\n" if call["stack"] else "")


@click.command(cls=Verb)
@option("--restart", "agent", metavar="AGENT", help="End the process of this agent and start it again.")
@on_host
@as_json
def children(agent: str | None, as_json: bool, **where: Any) -> None:
    """List the processes that run agents of a host, or restart one. SILENT_S: it lives, but does not answer.

    Code in C that keeps the interpreter lock of its process makes it silent; one that has ended is started again.
    """
    with open_client(**where) as client:
        if agent is not None:
            client.restart_child(agent)
            show({"restarted": agent} if as_json else f"restarted the process of {agent}", as_json)
            return
        found = client.get_child_list()
    columns = ("pid", "state", "isolation", "memory_mb", "silent_s", "calls", "crashes", "agents")
    shown = found if as_json else [{**row, "agents": _some_of(row["agents"])} for row in found]
    show_rows(shown, columns, as_json, "no processes beside the host's own")


def _some_of(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
