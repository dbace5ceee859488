"""Watch a host: whether it is well, its log lines, its figures as they change."""

from __future__ import annotations

import itertools
import time
from typing import Any

import click

from ... import errors
from ...telemetry.lines import text_of
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
def top() -> None:
    """Show the figures of a host as they change."""
