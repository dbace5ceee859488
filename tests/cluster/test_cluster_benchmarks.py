"""The benchmarks of a cluster: their arithmetic, and one short run, in which no call may fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.cluster import bounds
from benchmarks.cluster.__main__ import main
from benchmarks.cluster.cases import CASES, chart, peak, untyped
from benchmarks.cluster.load import Called, failed, p99
from benchmarks.cluster.world import Look, quantile
from redis_server import NO_SERVER, binaries
from scale import linux_only

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]

CALLS = [Called(1, 10.0, 10.001, ""), Called(2, 10.5, 12.5, "CallLost"), Called(1, 11.0, 11.002, "KeyError")]


def test_each_bound_is_one_of_a_case() -> None:
    assert {bound.case for bound in bounds.BOUNDS} == set(CASES)
    assert len({(bound.case, bound.figure) for bound in bounds.BOUNDS}) == len(bounds.BOUNDS)


def test_a_bound_is_kept_or_missed_or_not_judged() -> None:
    found = bounds.lines({"drain": {"failed": 0, "agents_per_s": 299.0, "p99_ms": 101.0}, "upgrade": {"p99_ms": 7.25}})
    assert [(figure, limit, mark) for _, _, figure, limit, mark in found] == [
        ("299", "≥ 300", "✗"), ("0", "≤ 0", "✓"), ("101", "≤ 100", "✗"), ("7.25", "", ""),
    ]  # fmt: skip


def test_calls_count_from_when_they_were_due() -> None:
    assert round(p99(CALLS)) == 2000
    assert round(p99(CALLS, 10.9)) == 2
    assert failed(CALLS) == {"CallLost": 1, "KeyError": 1}
    assert untyped(CALLS) == 1
    assert quantile([], 0.5) == 0.0
    drawn = chart(CALLS, {2}, 10.0)
    assert [row[0] for row in drawn["its agents"]] == [0.5]
    assert [row[0] for row in drawn["others"]] == [0.0, 1.0]


def test_a_burst_of_commands_is_seen_only_after_the_death() -> None:
    looks = [Look(at / 10, 500.0 if at in (3, 12) else 100.0, 0.1) for at in range(30)]
    assert peak(looks, 1.0) == 180.0
    assert peak(looks, 1.5) == 100.0


@pytest.mark.skipif(not binaries(), reason=NO_SERVER)
def test_a_short_run_gives_a_table_and_no_call_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, page = tmp_path / "kept.json", tmp_path / "table.rst"
    main(["--quick", "--only", "drain", "--transport", "ipc", "--json", str(kept), "--table", str(page)])
    case = json.loads(kept.read_text(encoding="utf-8"))["cases"]["drain"]
    assert (case["failed"], case["status"], case["errors"]) == (0, 0, {})
    assert case["agents"] > 64
    assert "agents per second" in page.read_text(encoding="utf-8")
    assert "agents per second" in capsys.readouterr().out
