"""Watch a host: whether it is well, its log lines, its figures as they change."""

from __future__ import annotations

from typing import Any

import click

from ... import errors
from ..command import Verb
from ..options import as_json, as_seconds, on_host, option
from ..output import say, show
from ..where import open_client

__all__ = ["health"]

LIVE_S = 30.0  # a host whose router thread has not turned for so long is not alive
READY_S = 1.0
NOT_READY = 7  # the exit code


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
