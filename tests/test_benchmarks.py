"""The benchmark harness: the arithmetic on figures made up for it, and a short run of the real floors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.__main__ import parse
from benchmarks.rounds import Options

ROOT = Path(__file__).parents[1]


def lat(number: int, subject: str, p50_us: float) -> dict[str, Any]:
    where = {"mode": "pinned", "transport": "ipc", "subject": subject, "bench": "lat", "round": number}
    return where | {"p50_us": p50_us, "p99_us": 2 * p50_us}


def p50_row(measurements: list[dict[str, Any]], subject: str) -> report.Row:
    [row] = [row for row in report.rows(measurements) if (row.subject, row.figure) == (subject, "p50_us")]
    return row


def test_a_ratio_is_taken_within_its_round() -> None:
    # The machine is four times slower in the last round: the ratio of the medians would be 200 / 50.
    measured = [lat(0, "echo", 50), lat(0, "zmqagents", 100), lat(1, "echo", 50), lat(1, "zmqagents", 200)]
    measured += [lat(2, "echo", 200), lat(2, "zmqagents", 400)]
    row = p50_row(measured, "zmqagents")
    assert (row.median, row.spread) == (200, 1.5)
    assert row.to_echo == 2.0
    assert row.to_workers is None


def test_a_missed_budget_is_called_missed_and_a_kept_one_not() -> None:
    def verdict(ours_us: float) -> str:
        [line] = report.verdicts(report.rows([lat(0, "echo", 50), lat(0, "zmqagents", ours_us)]))
        return line

    assert verdict(149).endswith("2.98 (budget ≤ 3.0, hoped for ≤ 1.3) holds")
    assert verdict(151).endswith("3.02 (budget ≤ 3.0, hoped for ≤ 1.3) MISSED")


def test_the_options_reach_the_measuring_process_unchanged() -> None:
    options = Options(only=("thr",), transports=("tcp",), rounds=3, core=1)
    assert Options.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    "wrong", [["--only", "lot"], ["--subjects", "echo,eco"], ["--modes", "fixed"], ["--rounds", "0"]]
)
def test_a_misspelt_name_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(wrong)
    assert error.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def benchmark(kept: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """A quick run: what it kept, and what it printed."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(kept), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(kept.read_text()), result.stdout


def assert_plausible(measurements: list[dict[str, Any]]) -> None:
    assert all(0 < one["p50_us"] <= one["p99_us"] < 1e6 for one in measurements if one["bench"] == "lat")
    assert all(one["calls_per_s"] > 100 for one in measurements if one["bench"] == "thr")


def test_both_floors_are_measured_in_every_mode_and_over_both_transports(tmp_path: Path) -> None:
    run, printed = benchmark(tmp_path / "run.json", "--rounds", "2", "--subjects", "echo,workers")
    modes = {"pinned", "free"} if hasattr(os, "sched_setaffinity") else {"free"}
    seen = {(one["mode"], one["transport"], one["subject"], one["bench"]) for one in run["measurements"]}
    assert len(seen) == len(modes) * 2 * 2 * 2
    assert {one["round"] for one in run["measurements"]} == {0, 1}
    assert_plausible(run["measurements"])
    assert run["machine"]["libzmq"]
    assert "× workers" in printed


def test_ours_is_measured_against_the_floors_and_judged_by_the_budgets(tmp_path: Path) -> None:
    run, printed = benchmark(tmp_path / "run.json", "--rounds", "1", "--modes", "free", "--transports", "ipc")
    assert {one["subject"] for one in run["measurements"]} == {"echo", "workers", "zmqagents"}
    assert_plausible(run["measurements"])
    assert "sync call p50 / echo, free: " in printed
    assert "pipelined calls/s / workers, free: " in printed
