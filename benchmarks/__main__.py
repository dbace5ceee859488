"""The command ``python -m benchmarks``: measure in each mode, print the table, keep the figures."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from . import report
from .rounds import BENCHMARKS, Options

MODES = ("pinned", "free")


def chosen(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. Wrong names end in argparse's own message and exit status 2."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against bare pyzmq.")
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds")
    parser.add_argument("--only", type=chosen, default=default.only, help=f"of {','.join(BENCHMARKS)}")
    parser.add_argument("--subjects", type=chosen, default=default.subjects, help=f"of {','.join(default.subjects)}")
    parser.add_argument("--transports", type=chosen, default=default.transports, help="of ipc,tcp")
    parser.add_argument("--modes", type=chosen, default=MODES, help="of pinned,free")
    parser.add_argument("--rounds", type=int, help=f"default {default.rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there")
    options = parser.parse_args(arguments)
    known = (
        ("only", BENCHMARKS), ("subjects", default.subjects), ("transports", default.transports), ("modes", MODES),
    )  # fmt: skip
    for name, names in known:
        for value in getattr(options, name):
            if value not in names:
                parser.error(f"--{name}: {value!r} is not one of {', '.join(names)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds: at least 1, not {options.rounds}")
    return options


def measure(options: Options, mode: str) -> list[report.Measurement]:
    """All rounds in one mode, in a process of its own."""
    if mode == "pinned":
        if not hasattr(os, "sched_setaffinity"):
            print("pinned: this system cannot bind a process to a core, left out", file=sys.stderr)
            return []
        options = dataclasses.replace(options, core=max(os.sched_getaffinity(0)))
    print(f"measuring, {mode}:", file=sys.stderr)
    command = [sys.executable, "-m", "benchmarks.rounds", options.to_json()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [{"mode": mode, **one} for one in json.loads(done.stdout)]


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: measured, whatever the figures; 1: a subject failed."""
    given = parse(arguments)
    options = Options(only=given.only, subjects=given.subjects, transports=given.transports)
    if given.quick:
        options = dataclasses.replace(options, rounds=5, lat_calls=300, thr_calls=4_000)
    if given.rounds:
        options = dataclasses.replace(options, rounds=given.rounds)
    machine = report.machine()
    try:
        measurements = [one for mode in given.modes for one in measure(options, mode)]
    except subprocess.CalledProcessError as exc:
        print(f"the measuring process failed with exit status {exc.returncode}", file=sys.stderr)
        return 1
    found = report.rows(measurements)
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    print(f"options: {options.to_json()}", "", *report.table(found), "", *report.verdicts(found), sep="\n")
    if given.json:
        kept = {"machine": machine, "options": dataclasses.asdict(options), "measurements": measurements}
        given.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
