"""``bench``: how much a host can take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ..command import DashVerb
from ..options import as_json, on_host, option
from ..output import say, show, show_facts
from ..values import read_arguments
from ..where import open_client

if TYPE_CHECKING:
    from ...client.loadgen import Interval

__all__ = ["bench"]


@click.command(cls=DashVerb)
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@on_host
@option("--agent", metavar="ID", help="The agent to call; default: the host itself is asked.")
@option("--method", default="__call__", show_default=True, metavar="NAME", help="Its method; ARGS as for call.")
@option("--clients", type=click.IntRange(1, 512), default=4, show_default=True, help="Processes that send.")
@option("--rate", type=float, default=100.0, show_default=True, help="Calls per second, all together.")
@option("--payload", type=click.IntRange(0), default=0, metavar="BYTES", help="A first argument of so many bytes.")
@option("--duration", type=float, default=10.0, show_default=True, metavar="SECONDS", help="How long to send.")
@option("--timeout", type=float, default=10.0, show_default=True, metavar="SECONDS", help="Deadline of a call.")
@as_json
def bench(
    arguments: tuple[str, ...], agent: str | None, method: str, clients: int, rate: float, payload: int,
    duration: float, timeout: float, as_json: bool, host: str, port: int | None, server_id: str | None,
) -> int:  # fmt: skip
    """Send calls to a host at a fixed rate and show how long the answers take.

    Calls are sent by a schedule, however slow the answers are, and a latency counts from the moment when its call was
    due: a host that stalls cannot hide it. Exit code 1 if a call failed.

    \b
    as_server bench --rate 1000 --duration 30
    as_server bench --agent reader --method search --clients 8 --rate 200 '"zip"' k=3
    """
    from ...client import loadgen

    args, kwargs = read_arguments(arguments)
    with open_client(host, port, server_id) as client:
        address = client.address
    load = loadgen.Load(
        address, agent, method, args, kwargs, payload, clients=clients, rate=rate, duration_s=duration,
        timeout_s=timeout,
    )  # fmt: skip
    summary = loadgen.run(load, _tell_second if sys.stderr.isatty() else None)
    if as_json:
        show(summary.to_json(), True)
    else:
        _show_load(summary.to_json())
    return 1 if summary.total.errors else 0


def _tell_second(at_s: float, second: Interval) -> None:
    failed = sum(second.errors.values())
    latency = f"p50 {second.latency_ms(50):.2f} ms  p99 {second.latency_ms(99):.2f} ms"
    say(f"{at_s:4.0f} s  {second.answered:>6,} answers  {latency}  {failed} failed")


def _show_load(summary: dict[str, Any]) -> None:
    load, latency = summary["load"], summary["latency_ms"]
    asked = f"{load['agent']}.{load['method']}" if load["agent"] else "the host itself"
    failed = ", ".join(f"{count:,} {name}" for name, count in summary["errors"].items()) or "none"
    show_facts({
        "target": f"{asked} at {load['address']}",
        "load": f"{load['rate']:,g} calls/s from {load['clients']} clients for {load['duration_s']:g} s",
        "sent": f"{summary['sent']:,} calls, {summary['per_s']:,.1f}/s; {summary['answered']:,} answered",
        "failed": failed,
        "latency": "  ".join(f"{name} {value:.2f}" for name, value in latency.items()) + "  ms",
    })  # fmt: skip
    if summary["behind_ms"] > max(latency["p99"], 10.0):
        say(f"the generator itself was up to {summary['behind_ms']:.0f} ms behind its schedule: try more clients")
