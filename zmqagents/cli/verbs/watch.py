"""Watch a host: whether it is well, its log lines, its figures as they change."""

from __future__ import annotations

import itertools
import time
from typing import Any

import click

from ... import errors
from ...config import MEBIBYTE
from ...telemetry.lines import text_of
from ...telemetry.rates import Row, rows_between
from ..command import Verb
from ..options import as_json, as_seconds, on_host, option
from ..output import say, show, visible
from ..where import open_client

__all__ = ["health", "logs", "top"]

LIVE_S = 30.0  # a host whose router thread has not turned for so long is not alive
READY_S = 1.0
NOT_READY = 7  # the exit code
FOLLOW_S = 0.5  # how often `logs --follow` asks
SHOWN_LINES = 100


@click.command(cls=Verb)
@option("--ready", is_flag=True, help="Ask whether it can take calls now, not only whether it lives.")
@option(
    "--timeout", metavar="SECONDS", callback=as_seconds,
    help=f"How long it may take to answer; default: {LIVE_S:g}, with --ready {READY_S:g}.",
)  # fmt: skip
@on_host
@as_json
def health(ready: bool, timeout: float | None, as_json: bool, **where: Any) -> int:
    """Show whether a host is well. Exit code 0 if it is, 4 if it does not answer, 7 if it is not ready.

    A host lives if its router thread answers within 30 seconds, whatever the answer is. It is ready if a call that does
    nothing goes through dispatch and store within a second. It is not while it stops, while the store is away, or while
    dispatch is stuck; the reasons go to stderr.
    """
    limit_s = timeout or (READY_S if ready else LIVE_S)
    name, reasons = "the host", []
    with open_client(**where) as client:
        try:
            told = client.get_health(limit_s)
            name, reasons = told["server_id"], told["reasons"]
        except errors.HostStopping:
            reasons = ["it is stopping and takes no new calls"]
        except errors.HostBusy as exc:
            reasons = [str(exc)]
        except errors.CallTimeout as exc:
            if not ready:
                raise errors.HostUnreachable(f"the host has answered nothing for {limit_s:g} s") from exc
            reasons = [f"dispatch or the store is stuck: a call that does nothing has not ended within {limit_s:g} s"]
    if as_json:
        show({"live": True, "ready": not reasons, "reasons": reasons}, True)
    elif not (ready and reasons):
        click.echo(f"{name} {'is ready' if ready else 'lives'}")
    if not ready or not reasons:
        return 0
    if not as_json:
        say("\n".join(f"{name} is not ready: {reason}" for reason in reasons))
    return NOT_READY


@click.command(cls=Verb)
@option("--follow", "-f", is_flag=True, help="Go on with the lines that come, until Ctrl-C.")
@option("--agent", metavar="AGENT", help="Only lines about this agent.")
@option(
    "--lines", type=click.IntRange(0, 1000), default=SHOWN_LINES, show_default=True, help="Of those that there are."
)  # fmt: skip
@on_host
@as_json
def logs(follow: bool, agent: str | None, lines: int, as_json: bool, **where: Any) -> None:
    """Print the latest log lines of a host: its own from level info on, and what agents have printed and logged."""
    with open_client(**where) as client:
        page = client.get_log(-lines or -1, agent)
        if not lines:
            page["lines"] = []
        for number in itertools.count():
            if page["left_out"] and number:
                say(f"{page['left_out']} lines were too many at once, and are left out")
            for line in page["lines"]:
                show(line, True) if as_json else click.echo(visible(text_of(line), "\n\t"))
            if not page["more"]:
                if not follow:
                    return
                time.sleep(FOLLOW_S)
            page = client.get_log(page["next"], agent)


@click.command(cls=Verb)
@option(
    "--interval", type=click.FloatRange(0.1, 60.0), default=1.0, show_default=True, help="Seconds between two looks."
)
@option("--count", type=click.IntRange(0), default=0, show_default=True, help="How many looks; 0: until Ctrl-C.")
@option("--rows", type=click.IntRange(1), default=20, show_default=True, help="Methods shown, the busiest ones.")
@on_host
def top(interval: float, count: int, rows: int, **where: Any) -> None:
    """Show the figures of a host as they change: calls a second by method, how long they take, what waits."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as exc:
        raise errors.MissingExtra("it needs rich: pip install 'zmqagents[top]'") from exc
    console = Console()
    with open_client(**where) as client, Live(console=console, auto_refresh=False) as live:
        before: dict[str, Any] | None = None
        for number in itertools.count(1):
            figures = client.get_metrics()
            live.update(_screen(before, figures, rows), refresh=True)
            before = figures
            if number == count:
                return
            time.sleep(interval)


def _screen(before: dict[str, Any] | None, now: dict[str, Any], most: int) -> Any:
    """Facts about the host, and a table of its methods."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = rows_between(before, now)
    table = Table("method", box=None, padding=(0, 2, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in found[:most]:
        table.add_row(
            Text(visible(f"{row.class_name.rpartition(':')[2]}.{row.method}")), f"{row.per_s:,.1f}",
            f"{row.failed_per_s:,.1f}", *map(_milliseconds, (row.p50_s, row.p99_s, row.queued_p99_s)), f"{row.total:,}",
        )  # fmt: skip
    return Group(*(Text(visible(line)) for line in _facts(found, now)), Text(""), table)


_COLUMNS = ("calls/s", "failed/s", "p50 ms", "p99 ms", "queue p99 ms", "calls")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.2f}"


def _facts(found: list[Row], now: dict[str, Any]) -> list[str]:
    calls, workers, store, mib = now["calls"], now["workers"], now["store"], MEBIBYTE
    draining = ", draining" if now["draining"] else ""
    bytes_in, bytes_out = (sum(door[key] for door in now["doors"].values()) for key in ("received_bytes", "sent_bytes"))
    late = "" if now["loop_lag_s"] is None else f", {now['loop_lag_s'] * 1000:.1f} ms late"
    per_s, failed_per_s = sum(row.per_s for row in found), sum(row.failed_per_s for row in found)
    facts = {
        now["server_id"]: f"zmqagents {now['version']}, pid {now['pid']}, up {now['uptime_s']:,.0f} s{draining}",
        "calls": f"{per_s:,.1f}/s, {failed_per_s:,.1f}/s failed; {sum(now['refused'].values()):,} refused so far",
        "open": ", ".join(f"{n:,} {state}" for state, n in calls.items()) + f"; oldest {now['oldest_s']:,.1f} s",
        "workers": f"{workers['busy']} of {now['capacity']} busy, {workers['waiting']} waiting",
        "loop": f"{now['loop_tasks']} coroutines{late}",
        "agents": f"{sum(now['agents'].values()):,}; the fullest mailbox has {now['longest_mailbox']:,} calls",
        "children": f"{now['children']}, {now['child_restarts']} restarts",
        "clients": f"{now['clients']['connected']:,}, {now['clients']['lost']} lost",
        "bytes": f"{bytes_in / mib:,.1f} MiB in, {bytes_out / mib:,.1f} MiB out",
        "store": f"{store['done']:,} results, {store['bytes'] / mib:,.1f} MiB, {store.get('state', 'up')}",
        "process": f"{now['resident_bytes'] / mib:,.0f} MiB, {now['cpu_s']:,.1f} s CPU, {now['open_fds']} descriptors",
    }  # fmt: skip
    width = max(map(len, facts))
    return [f"{name:<{width}}  {value}" for name, value in facts.items()]
