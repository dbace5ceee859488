"""One host: end it, look at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ... import errors
from ...config import END_WAIT_S
from ..command import Verb
from ..options import as_json, as_seconds, on_host, option
from ..output import show, show_facts, show_rows
from ..where import locate, open_client

if TYPE_CHECKING:
    from ...discovery import ConnectionFile

__all__ = ["agents", "calls", "dump", "status", "stop"]

LOOK_EVERY_S = 0.02  # how often `stop` looks whether it has


@click.command(cls=Verb)
@on_host
@option(
    "--grace", metavar="SECONDS", callback=as_seconds, help="How long calls may go on; default: the host's own grace."
)
def stop(grace: float | None, host: str, port: int | None, server_id: str | None) -> None:
    """Stop a host and wait until it has ended.

    Where none is running that is said, and the exit code is 0 as well. A host that does not end within its grace
    and 2 seconds is reported with exit code 6.
    """
    record = locate(host, port, server_id)
    if record is None and (not port or server_id):
        click.echo(f"no host {server_id + ' ' if server_id else ''}of yours is running on this machine")
        return
    name = f"{record.server_id} at {record.host}:{record.port}" if record else f"{host}:{port}"
    try:
        limit_s = _ask_to_stop(grace, host, port, server_id)
    except errors.HostUnreachable:
        if record is not None and record.is_live:
            raise errors.HostUnreachable(f"{name} does not answer; its process is {record.pid}") from None
        click.echo(f"no host is running at {record.host if record else host}:{record.port if record else port}")
        return
    except (errors.HostStopping, errors.CallLost, errors.HostLost):  # it was about to end by itself
        limit_s = 0.0
    if not _wait_until_gone(record, host, port, limit_s + END_WAIT_S):
        pid = f" (pid {record.pid})" if record else ""
        raise errors.CallTimeout(f"{name}{pid} is still there {limit_s + END_WAIT_S:g} s after it was asked to stop")
    click.echo(f"stopped {name}")


def _ask_to_stop(grace: float | None, host: str, port: int | None, server_id: str | None) -> float:
    """Send the stop; how long the host may take for it, in seconds."""
    with open_client(host, port, server_id) as client:
        settings = client.get_server_info()["settings"]
        client.stop(grace)
        return float(settings["grace_s"]) if grace is None else grace


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
        "classes": ", ".join(name.rpartition(":")[2] for name in info["classes"]) or "none",
        "models": ", ".join(info["models"]) or "none",
        "clients": f"{info['clients']}",
        "running": f"{info['running']} of {info['capacity']}, {info['waiting']} waiting",
        "calls": f"{info['calls_open']} open, {counts}",
        "results": f"{store['done']} kept in the {store['kind']} store, {store['bytes']} bytes",
        **_store_facts(store),
    })  # fmt: skip


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
@on_host
@as_json
def agents(as_json: bool, **where: Any) -> None:
    """List the agents of a host."""
    with open_client(**where) as client:
        found = client.get_agent_list()
    show_rows(found, ("agent_id", "type", "calls", "running", "queued", "age_s"), as_json, "no agents")


@click.command(cls=Verb)
@on_host
@as_json
def calls(as_json: bool, **where: Any) -> None:
    """List the calls of a host that are not answered yet."""
    with open_client(**where) as client:
        found = client.get_call_list()
    columns = ["task_id", "agent", "method", "state", "age_s", "caller", "waits_for"]
    columns += ["note"] if any(call["note"] for call in found) else []
    show_rows(found, columns, as_json, "no open calls")


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
        click.echo(f"{line}, by {call['caller']}" + (f", waits for {waits}" if waits else "") + note)
        click.echo(call["stack"].rstrip() + "\n" if call["stack"] else "")
