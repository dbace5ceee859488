"""The command ``python -m benchmarks.cluster``: run the cases, print how the bounds stand, keep the figures.

Exit status 0: all bounds hold, 1: one does not, or a case failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from .. import machine, report
from . import bounds
from .cases import CASES, QUICK, Sizes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="What a cluster does.")
    parser.add_argument("--quick", action="store_true", help="small numbers: a look, not a judgement")
    parser.add_argument("--only", help="of " + ",".join(CASES))
    parser.add_argument("--transport", choices=["curve", "ipc"], default="curve")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures; those of other cases stay there")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the figures as a table for the documentation")
    parser.add_argument("--charts", type=Path, metavar="DIR")
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing: report what --json wrote")
    given = parser.parse_args(arguments)
    given.only = given.only.split(",") if given.only else list(CASES)
    if unknown := set(given.only) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}")
    return given


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The figures by case, and whether all cases have come to their end."""
    found, is_whole = {}, True
    for name in given.only:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        try:
            found[name] = CASES[name](given.transport, QUICK if given.quick else Sizes())
        except Exception:
            traceback.print_exc()
            is_whole = False
            continue
        figures = {key: value for key, value in found[name].items() if key not in ("chart", "redis")}
        print(json.dumps(figures), file=sys.stderr, flush=True)
    return found, is_whole


def table(found: dict[str, Any]) -> report.Table:
    """A line for each bound."""
    rows = [[what, figure, limit, mark] for _, what, figure, limit, mark in bounds.lines(found)]
    return [["what", "figure", "bound", ""], *rows]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    given = parse(arguments)
    run: dict[str, Any] = {"machine": machine.describe(), "cases": {}}
    if given.load or (given.json and given.json.exists()):
        run = json.loads((given.load or given.json).read_text(encoding="utf-8"))
    is_whole = True
    if not given.load:
        found, is_whole = measure(given)
        run["machine"] = machine.describe()
        run["cases"] |= found
    print(*(f"{name}: {value}" for name, value in run["machine"].items()), "", sep="\n")
    print(*report.plain(table(run["cases"])), sep="\n")
    if given.json and not given.load:
        given.json.write_text(json.dumps(run) + "\n", encoding="utf-8")
    if given.table:
        given.table.write_text("\n".join(report.restructured(table(run["cases"]))) + "\n", encoding="utf-8")
    if given.charts:
        from . import pictures

        pictures.draw(run["cases"], given.charts)
    return 0 if is_whole and all(mark != "✗" for *_, mark in bounds.lines(run["cases"])) else 1


if __name__ == "__main__":
    sys.exit(main())
