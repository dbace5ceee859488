"""The command ``python -m benchmarks``: run the cases, print how the budgets stand, keep the figures.

Exit status 0: measured, whatever the figures; 1: a case failed, or ``--compare`` found a regression; 2: usage.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import machine, ours, report
from .budgets import CASES, MODES, TRANSPORTS, Mode
from .cases import Options
from .driver import ENCRYPTED_PEERS, OURS, PEER_ENVIRONMENTS, PEERS, python_of

ROUNDS, QUICK_ROUNDS = 7, 3
FORMAT = 1  # of the JSON file


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Wrong names end in argparse's own message and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against bare pyzmq.")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, fewer rounds: a look, not a judgement")
    parser.add_argument("--only", type=_list(CASES), default=list(CASES), metavar="B1,B4", help="these cases")
    parser.add_argument("--modes", type=_list(MODES), default=list(MODES), help="of pinned,free")
    parser.add_argument("--transport", type=_list(TRANSPORTS), help="of ipc,tcp,curve; default: all, quick: ipc")
    parser.add_argument("--rounds", type=_count, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--subjects", type=_list([OURS, "floors"]), default=[OURS, "floors"])
    parser.add_argument("--peers", type=_peers, default=[], help="all, or of " + ",".join(PEERS))
    parser.add_argument("--store", choices=["local", "redis"], default="local", help="where our host keeps results")
    parser.add_argument("--redis-url", default=Options().redis_url)
    parser.add_argument("--all-figures", action="store_true", help="print every figure, not the budgets alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument("--charts", type=Path, metavar="DIR", help="draw charts there")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables into this page, between its marks")
    parser.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="say what has changed since; 1 if for the worse"
    )
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing: report what --json wrote")
    return parser.parse_args(arguments)


def _list(names: Any) -> Callable[[str], list[str]]:
    def chosen(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(names)}")
        return found

    return chosen


def _peers(text: str) -> list[str]:
    return list(PEERS) if text == "all" else _list(PEERS)(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {text}")
    return int(text)


# ---------------------------------------------------------------- measuring


class Plan(NamedTuple):
    """One run of a case."""

    case: str
    mode: Mode
    options: Options


def plans(given: argparse.Namespace) -> list[Plan]:
    """All runs, in order."""
    transports = given.transport or (["ipc"] if given.quick else list(TRANSPORTS))
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    base = Options(store=given.store, redis_url=given.redis_url, rounds=rounds, quick=given.quick)
    pinned = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    found = []
    for name in given.only:
        case = CASES[name]
        floors = case.floors if "floors" in given.subjects else ()
        ours = (OURS,) if OURS in given.subjects else ()
        for mode in [mode for mode in case.modes if mode in given.modes]:
            for number, transport in enumerate(transports if case.every_transport else transports[:1]):
                core = pinned if mode == "pinned" else None
                options = dataclasses.replace(base, subjects=(*floors, *ours), transport=transport, core=core)
                if options.subjects and (ours or case.floors):
                    found.append(Plan(name, mode, options))
                if mode == "free" or name == "B1":
                    peers = ENCRYPTED_PEERS if transport == "curve" else case.peers if not number else ()
                    found += peer_plans(name, mode, options, [peer for peer in peers if peer in given.peers])
    return found


def peer_plans(name: str, mode: Mode, options: Options, peers: list[str]) -> Iterator[Plan]:
    """Each peer takes turns with ours and the floor, but not with other peers: some of them are never quite idle.

    Over ipc means the fastest way that a peer has on one machine, over curve its TLS.
    """
    floor = (CASES[name].floor,) if CASES[name].floor and options.subjects else ()
    for number, peer in enumerate(peers, 1):
        subjects = (*floor, OURS, peer)
        yield Plan(name, mode, dataclasses.replace(options, subjects=subjects, first_round=number * options.rounds))


def measure(plan: Plan) -> Iterator[list[report.Measurement]]:
    """Run one case as a process of its own: the measurements of each round."""
    script = f"benchmarks.cases.{CASES[plan.case].script}"
    command = [sys.executable, "-m", script, plan.options.to_json()]
    where = {"case": plan.case, "mode": plan.mode, "transport": plan.options.transport}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield [{**where, **one} for one in json.loads(line)]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def measure_all(given: argparse.Namespace) -> tuple[list[report.Measurement], list[str]]:
    """All measurements, and what failed. After Ctrl-C, those until then."""
    found: list[report.Measurement] = []
    failed: list[str] = []
    todo = plans(given)
    label = "the first case"
    try:
        with progress(sum(plan.options.rounds for plan in todo)) as step:
            for plan in todo:
                label = f"{plan.case} {plan.mode} {plan.options.transport}"
                step(label, 0)
                try:
                    for measurements in measure(plan):
                        found += measurements
                        step(label, 1)
                except subprocess.CalledProcessError as exc:
                    failed.append(f"{label} failed with exit status {exc.returncode}, see its messages above")
    except KeyboardInterrupt:
        failed.append(f"interrupted in {label}: only what was measured until then is told")
    return found, failed


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar on a terminal (package rich), else a line for each case on standard error."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        Progress = None  # type: ignore[assignment, misc]
    if Progress is None or not sys.stderr.isatty():
        yield lambda label, rounds: None if rounds else print(f"measuring {label}", file=sys.stderr)
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda label, rounds: bar.update(task, description=label, advance=rounds)


# ---------------------------------------------------------------- reporting


def take(given: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """A run as the JSON file has it, measured or loaded, and what failed."""
    if given.load:
        return load(given.load), []
    run: dict[str, Any] = {"format": FORMAT, "machine": machine.describe()}
    options = vars(given).items()
    run["options"] = {name: value for name, value in options if not isinstance(value, Path) and value is not None}
    missing = {name: why_missing(name) for name in given.peers if not os.path.exists(python_of(name))}
    given.peers = [name for name in given.peers if name not in missing]
    run["machine"] |= machine.peers(given.peers)
    with ours.own_keys():
        run["measurements"], failed = measure_all(given)
    run["missing_peers"] = missing
    return run, failed


def why_missing(peer: str) -> str:
    """Why there is no environment for a peer."""
    try:
        return (PEER_ENVIRONMENTS / f"{peer}.failed").read_text(encoding="utf-8").strip()
    except OSError:
        return "it is not installed (make bench-peers)"


def load(path: Path) -> dict[str, Any]:
    """What ``--json`` wrote; exits with status 2 if it is no such file."""
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if run["format"] == FORMAT:
            return run
        reason = f"format {run['format']}, not {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as exc:
        reason = f"{exc}"
    print(f"{path}: not a file that --json wrote: {reason}", file=sys.stderr)
    raise SystemExit(2)


def tell(run: dict[str, Any], given: argparse.Namespace) -> None:
    """Print the tables, and write them where it is asked for."""
    series = report.series_of(run["measurements"])
    verdicts, figures = report.verdict_table(report.verdicts(series)), report.figure_table(series)
    facts = [*(f"{name}: {value}" for name, value in run["machine"].items()), f"options: {json.dumps(run['options'])}"]
    print(*facts, "", *report.plain(verdicts), sep="\n")
    if given.all_figures or given.subjects != [OURS, "floors"] or given.peers:
        print("", *report.plain(figures), sep="\n")
    absent = [f"{name}: not measured, {why}" for name, why in run.get("missing_peers", {}).items()]
    absent += report.not_offered(run["measurements"])
    print("", *absent, sep="\n", end="\n" if absent else "")
    if given.markdown:
        text = [
            *(f"* {fact}" for fact in facts),
            "",
            *report.markdown(verdicts),
            "",
            *report.markdown(figures),
            "",
            *(f"* {line}" for line in absent),
            "",
        ]
        given.markdown.write_text("\n".join(text), encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(run) + "\n", encoding="utf-8")
    if given.page:
        has_peers = any(key.subject in PEERS for key in series)  # else the page keeps those of an earlier run
        peers = report.side_by_side(series) if has_peers else []
        tables = {"budgets": verdicts, "peers": peers, "memory": report.memory(series)}
        blocks = {name: "\n".join(report.restructured(table)) for name, table in tables.items() if len(table) > 1}
        blocks["machine"] = "\n".join(f":{name}: {value}" for name, value in run["machine"].items())
        given.page.write_text(renewed(given.page.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    if given.charts:
        from . import charts  # matplotlib takes a second to import

        charts.draw(run["measurements"], given.charts)


def renewed(page: str, blocks: dict[str, str]) -> str:
    """``page`` with each block in place of what stands between ``.. begin NAME`` and ``.. end NAME``."""
    for name, block in blocks.items():
        begin, end = f".. begin {name}\n", f".. end {name}\n"
        if begin not in page or end not in page:
            raise SystemExit(f"the page has no marks '.. begin {name}' and '.. end {name}'")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{block}\n\n{end}{rest.partition(end)[2]}"
    return page


def compare(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Print what has changed beyond the noise; True if something got much worse."""
    found = list(report.changes(report.series_of(old["measurements"]), report.series_of(new["measurements"])))
    beyond = sorted((change for change in found if change.is_beyond_noise), key=lambda change: change.relative)
    print(f"compared with {old['machine']['revision']}: {len(found)} figures, {len(beyond)} changed beyond the noise")
    for name in ("cpu", "cores", "python"):
        if old["machine"][name] != new["machine"][name]:
            print(f"NOTE: another {name} then: {old['machine'][name]}; figures that are no ratios cannot be compared")
    print(*beyond, sep="\n")
    return any(change.is_regression for change in beyond)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    old = load(given.compare) if given.compare else None
    run, failed = take(given)
    tell(run, given)
    is_worse = old is not None and compare(old, run)
    print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
    return 1 if failed or is_worse else 0


if __name__ == "__main__":
    sys.exit(main())
