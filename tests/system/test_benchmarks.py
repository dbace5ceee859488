"""The benchmark harness: the arithmetic on figures made up for it, and short runs of real floors and a real host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import journeys, report, soak
from benchmarks.__main__ import FORMAT, main, parse, plans, renewed
from benchmarks.budgets import ANY_PEER, BUDGETS, CASES
from benchmarks.cases import Options, b16_crowd, in_turn
from benchmarks.driver import ENCRYPTED_PEERS, OURS, Process
from benchmarks.loops import NotOffered
from benchmarks.peers import tls

ROOT = Path(__file__).parents[2]
THOROUGH = bool(os.environ.get("ZMQAGENTS_THOROUGH"))


def measured(case: str, subject: str, values: list[float], figure: str, **where: Any) -> list[dict[str, Any]]:
    place = {"case": case, "mode": "pinned", "transport": "ipc", "subject": subject, **where}
    return [{**place, "round": number, "figures": {figure: value}} for number, value in enumerate(values)]


def p50(subject: str, values: list[float]) -> list[dict[str, Any]]:
    return measured("B1", subject, values, "p50_us")


def verdict_on(ours_us: float) -> report.Verdict:
    [verdict] = report.verdicts(report.series_of(p50("echo", [50]) + p50(OURS, [ours_us])))
    return verdict


# ---------------------------------------------------------------- figures


def test_a_ratio_is_taken_within_its_round() -> None:
    # The machine is four times slower in the last round: the ratio of the medians would be 200 / 50.
    series = report.series_of(p50("echo", [50, 50, 200]) + p50(OURS, [100, 200, 400]))
    [key] = [key for key in series if key.subject == OURS]
    assert report.value_of(series[key].values()).median == 200
    assert report.ratio_of(series, key, "echo") == report.Value(2.0, 0.5)  # 2, 4, 2
    assert report.ratio_of(series, key, "workers") is None


def test_one_outlier_among_the_rounds_is_no_spread() -> None:
    assert report.value_of([100, 100, 900, 100, 100]) == report.Value(100, 0.0)


def test_a_kept_budget_has_its_mark_and_a_missed_one_not() -> None:
    assert [verdict_on(us).mark for us in (49, 59, 61)] == ["✓ ★", "✓", "✗"]


def test_what_is_only_shown_beside_is_in_brackets() -> None:
    rates = {"workers": 100_000.0, OURS: 1.0}
    found = [one for name in rates for one in measured("B2", name, [rates[name]], "calls_per_s")]
    assert [verdict.mark for verdict in report.verdicts(report.series_of(found))] == ["(✗)"]


def test_ours_must_beat_the_best_of_the_peers() -> None:
    rates = {"rpyc": 9, "ray": 12, OURS: 10}
    found = [one for name in rates for one in measured("B2", name, [rates[name]], "calls_per_s", mode="free")]
    [verdict] = report.verdicts(report.series_of(found))
    assert (verdict.over, verdict.mark) == ("ray", "✗")


def test_every_budget_of_the_design_has_a_case_that_is_run_where_it_is_judged() -> None:
    assert (
        {budget.case for budget in BUDGETS}
        == set(CASES)
        == {"B4a", "B15", "B16", *(f"B{number}" for number in range(1, 15))}
    )
    for budget in BUDGETS:
        case = CASES[budget.case]
        assert budget.mode in case.modes
        assert budget.transport == "ipc" or case.every_transport
        assert budget.over in ("", ANY_PEER, *case.floors)


def test_the_tables_in_the_page_are_renewed_between_their_marks() -> None:
    page = (ROOT / "docs" / "performance.rst").read_text(encoding="utf-8")
    once = renewed(page, {"budgets": "BUDGETS", "peers": "PEERS", "machine": "-", "memory": "-"})
    assert once.count("BUDGETS") == once.count("PEERS") == 1
    assert renewed(once, {"budgets": "NEW"}).count("BUDGETS") == 0
    assert renewed(page, {}) == page
    with pytest.raises(SystemExit, match="no marks"):
        renewed("an empty page", {"budgets": ""})


def test_subjects_stand_side_by_side_with_a_dash_for_what_they_do_not_offer() -> None:
    series = report.series_of(p50("echo", [50]) + p50(OURS, [100]) + measured("B5", OURS, [0.5], "wall_s", mode="free"))
    lines = {line[0]: line[1:] for line in report.side_by_side(series)[1:]}
    assert lines["echo"][0] == "50.0"
    assert (lines[OURS][0], lines[OURS][-2], lines[OURS][-1]) == ("100", "0.50", "–")
    rst = list(report.restructured(report.side_by_side(series)))
    assert rst[0] == rst[2] == rst[-1]
    assert set(rst[0]) == {"=", " "}


# ---------------------------------------------------------------- then and now


def changes(old: list[float], new: list[float], figure: str = "wall_s") -> list[report.Change]:
    then, now = (report.series_of(measured("B5", OURS, values, figure)) for values in (old, new))
    return [change for change in report.changes(then, now) if change.is_beyond_noise]


def test_what_got_much_worse_is_a_regression_and_what_got_better_is_none() -> None:
    assert [change.is_regression for change in changes([1.0, 1.0, 1.0], [1.2, 1.2, 1.2])] == [True]
    assert [change.is_regression for change in changes([1.0, 1.0, 1.0], [1.1, 1.1, 1.1])] == [False]
    assert [change.is_regression for change in changes([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])] == [False]
    assert [change.is_regression for change in changes([9.0] * 3, [4.0] * 3, "made_per_s")] == [True]


def test_a_change_within_the_noise_is_not_told() -> None:
    assert changes([1.0, 1.0, 1.5, 1.5, 2.0], [1.9, 1.9, 1.9, 1.9, 1.9]) == []


def test_a_slower_machine_is_no_regression_where_there_is_a_floor() -> None:
    then = report.series_of(p50("echo", [50, 51, 50]) + p50(OURS, [100, 102, 100]))
    now = report.series_of(p50("echo", [100, 99, 100]) + p50(OURS, [200, 198, 200]))
    assert [change.is_beyond_noise for change in report.changes(then, now)] == [False]


def test_compare_exits_with_1_on_a_regression_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kept(name: str, wall_s: float) -> str:
        found = {"cpu": "x", "cores": 2, "python": "3", "revision": name}
        run = {"format": 1, "machine": found, "options": {}, "measurements": measured("B5", OURS, [wall_s], "wall_s")}
        (tmp_path / name).write_text(json.dumps(run))
        return str(tmp_path / name)

    before, after = kept("before", 0.5), kept("after", 0.7)
    assert main(["--load", after, "--compare", before]) == 1
    assert "B5 pinned ipc wall_s: 0.50 → 0.70, 40% REGRESSION" in capsys.readouterr().out
    assert main(["--load", before, "--compare", after]) == 0


# ---------------------------------------------------------------- the command


def test_the_options_reach_the_measuring_process_unchanged() -> None:
    options = Options(subjects=("echo",), transport="tcp", store="redis", rounds=3, quick=True, core=1)
    assert Options.from_json(options.to_json()) == options


def test_nobody_is_always_measured_first() -> None:
    assert {in_turn("abc", number)[0] for number in range(3)} == {"a", "b", "c"}


@pytest.mark.parametrize(
    "wrong",
    [["--only", "B99"], ["--subjects", "eco"], ["--modes", "fixed"], ["--rounds", "0"], ["--peers", "gprc"],
     ["--transport", "udp"], ["--store", "disk"]],
)  # fmt: skip
def test_a_misspelt_name_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parse(wrong)
    assert error.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_whole_run_measures_the_floors_over_every_transport_and_in_both_modes() -> None:
    todo = [plan for plan in plans(parse([])) if plan.case == "B2"]
    places = {(plan.mode, plan.options.transport) for plan in todo}
    assert places == {(mode, transport) for mode in ("pinned", "free") for transport in ("ipc", "tcp", "curve")}
    assert all({"echo", "workers", OURS} <= set(plan.options.subjects) for plan in todo)


def test_a_client_of_a_crowd_that_is_served_half_as_often_shows_in_the_figures() -> None:
    figures = b16_crowd.summary([[10.0] * 100, [10.0] * 100, [10.0] * 99 + [50.0], [20.0] * 50], seconds=2.0)
    assert figures["calls_per_s"] == 175
    assert (figures["p50_ms"], figures["longest_ms"]) == (10.0, 50.0)
    assert figures["least_served_ratio"] == pytest.approx(50 / 87.5)
    assert figures["most_served_ratio"] == pytest.approx(100 / 87.5)
    assert report.more_is_better("least_served_ratio")


def test_over_curve_the_peers_that_have_tls_are_measured_beside_ours() -> None:
    todo = plans(parse(["--only", "B1,B3", "--transport", "ipc,curve", "--peers", "all"]))
    found = {(plan.case, plan.mode, plan.options.subjects[-1]) for plan in todo if plan.options.transport == "curve"}
    peers = {(case, mode, subject) for case, mode, subject in found if subject != OURS}
    assert peers == {
        (case, mode, peer)
        for case, mode in (("B1", "pinned"), ("B1", "free"), ("B3", "free"))
        for peer in ENCRYPTED_PEERS
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="peers have their certificates from the program openssl")
def test_a_certificate_for_a_run_is_taken_by_both_sides_of_tls(tmp_path: Path) -> None:
    files = tls.make(str(tmp_path))
    sides = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        context = ssl.create_default_context(purpose, cafile=files.certificate)
        context.load_cert_chain(files.certificate, files.key)
        context.verify_mode = ssl.CERT_REQUIRED
        sides.append(context)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        server = pool.submit(sides[0].wrap_socket, ours, server_side=True)
        with sides[1].wrap_socket(theirs, server_hostname="127.0.0.1") as client, server.result(30) as accepted:
            client.sendall(b"there")
            assert accepted.recv(10) == b"there"


def test_a_peer_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for module in ("driver", "__main__"):
        monkeypatch.setattr(f"benchmarks.{module}.PEER_ENVIRONMENTS", tmp_path)
    (tmp_path / "ray.failed").write_text("ERROR: no matching distribution\n")
    assert main(["--only", "B7", "--peers", "ray,rpyc", "--subjects", "floors"]) == 0
    printed = capsys.readouterr().out
    assert "ray: not measured, ERROR: no matching distribution" in printed
    assert "rpyc: not measured, it is not installed (make bench-peers)" in printed


def test_after_ctrl_c_what_was_measured_is_told_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", "B7,B6", "--json", str(kept)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        while "measuring B6" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted in B6" in errors
    assert "B7" in printed
    assert {one["case"] for one in json.loads(kept.read_text())["measurements"]} == {"B7"}


# ---------------------------------------------------------------- soak


def samples(**columns: list[float]) -> list[dict[str, float]]:
    """Ten minutes, a sample each; what is not given is as it should be."""
    usual = {"answered": 100.0, "failed": 0.0, "p50_ms": 0.2, "p99_ms": 1.0, "rss_mib": 40.0}
    rows = [{"at_s": 60.0 * (number + 1), **usual} for number in range(10)]
    return [{**row, **{name: values[at] for name, values in columns.items()}} for at, row in enumerate(rows)]


def what_fails(found: list[dict[str, float]]) -> list[str]:
    return [name for name, (holds, _) in soak.verdicts(found).items() if not holds]


def test_a_soak_fails_by_memory_that_grows_latency_that_grows_and_any_error() -> None:
    assert what_fails(samples()) == []
    assert what_fails(samples(rss_mib=[40 + minute for minute in range(10)])) == ["memory is flat"]
    assert what_fails(samples(p99_ms=[1.0] * 5 + [2.5] * 5)) == ["p99 is flat"]
    assert what_fails(samples(p99_ms=[1.0] * 4 + [50.0] + [1.0] * 5)) == []  # one bad second
    assert what_fails(samples(failed=[0.0] * 9 + [1.0])) == ["no call failed"]


def test_a_short_soak_of_a_real_host_ends_well_and_draws_its_chart(tmp_path: Path) -> None:
    arguments = ["--minutes", "0.04", "--rate", "100", "--clients", "1", "--charts", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert "no call failed: 0 of 240" in done.stdout, done.stderr
    assert (tmp_path / "soak.svg").read_text().startswith("<?xml")


# ---------------------------------------------------------------- real runs


def benchmark(kept: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """A quick run: what it measured, and what it printed."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(kept), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(kept.read_text())["measurements"], result.stdout


@pytest.mark.parametrize("transport", ["ipc", "tcp", "curve"])
@pytest.mark.parametrize("name", ["echo", "workers", "tight", "raw"])
def test_a_floor_gives_back_what_it_gets_and_has_no_other_calls(name: str, transport: str) -> None:
    server = Process("serve", name, {"transport": transport})
    try:
        client = Process("client", name, server.hear())
        try:
            assert client.hear() == "connected"
            found = client.ask("lat", calls=50, payload_bytes=1000)
            assert 0 < found["p50_us"] <= found["p99_us"] < 1e7
            assert client.ask("thr", calls=500, in_flight=64, payload_bytes=10)["calls_per_s"] > 100
            with pytest.raises(NotOffered, match="an echo only"):
                client.ask("late", seconds=0.1)
        finally:
            client.close()
    finally:
        server.close()


def test_a_crowd_is_measured_with_the_cpu_time_of_both_sides(tmp_path: Path) -> None:
    found, _ = benchmark(tmp_path / "run.json", "--only", "B16", "--rounds", "1", "--transport", "curve")
    assert {one["subject"] for one in found} == {"echo", "workers", OURS}
    for one in found:
        assert 0 < one["figures"]["least_served_ratio"] <= 1 <= one["figures"]["most_served_ratio"]
        assert one["figures"]["server_us_per_call"] > 0 < one["figures"]["clients_us_per_call"]


def test_ours_is_measured_against_the_floors_and_judged_by_the_budgets(tmp_path: Path) -> None:
    found, printed = benchmark(
        tmp_path / "run.json", "--only", "B1,B5,B12", "--rounds", "1", "--modes", "free", "--markdown",
        str(tmp_path / "run.md"), "--charts", str(tmp_path),
    )  # fmt: skip
    subjects = {case: {one["subject"] for one in found if one["case"] == case} for case in ("B1", "B5")}
    assert subjects["B1"] == {"echo", "workers", OURS}
    assert subjects["B5"] == {OURS}
    assert all(value > 0 for one in found for value in one["figures"].values())
    for budget in ("sync call p50, free", "results collected per second"):
        assert budget in printed
    assert (tmp_path / "latency.svg").read_text().startswith("<?xml")
    assert "| B5 | 32 agents × sleep(0.5), s |" in (tmp_path / "run.md").read_text()


def test_the_chart_of_sizes_is_drawn_from_a_run_that_was_kept(tmp_path: Path) -> None:
    found = [
        one
        for subject, rate in (("pipe", 4000.0), (OURS, 2000.0), ("pyro5", 1000.0))
        for way in ("echo", "send", "receive", "echo_numpy")
        for size in (64, 1024)
        for one in measured("B4a", subject, [rate], f"{way}_mb_per_s", mode="free", point=size)
    ]
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps({"format": FORMAT, "machine": {}, "options": {}, "measurements": found}))
    command = [sys.executable, "-m", "benchmarks", "--load", str(kept), "--charts", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["sizes.svg"]


@pytest.mark.skipif(not THOROUGH, reason="takes two minutes; ZMQAGENTS_THOROUGH=1")
@pytest.mark.timeout(600)
def test_a_quick_run_of_everything_has_a_figure_for_each_budget(tmp_path: Path) -> None:
    found, _ = benchmark(tmp_path / "run.json", "--rounds", "1", "--transport", "ipc,curve")
    judged = {verdict.budget for verdict in report.verdicts(report.series_of(found))}
    optional = {budget for budget in BUDGETS if budget.case == "B15"}  # of packages that are in no benchmark's needs
    assert judged - optional == {budget for budget in BUDGETS if budget.over != ANY_PEER} - optional


def test_a_run_over_tcp_with_keys_leaves_the_users_key_store_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZMQAGENTS_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    found, _ = benchmark(
        tmp_path / "run.json",
        "--only",
        "B1",
        "--modes",
        "free",
        "--rounds",
        "1",
        "--transport",
        "curve",
        "--subjects",
        OURS,
    )
    assert {(one["subject"], one["transport"]) for one in found} == {(OURS, "curve")}
    assert not (tmp_path / "config").exists()


# ---------------------------------------------------------------- journeys


def test_a_change_is_a_call_to_another_file_and_a_crossing_one_from_another(tmp_path: Path) -> None:
    sources = {
        "low.py": "def first(): pass\ndef second(): pass\n",
        "high.py": "import low\ndef go():\n    low.first()\n    low.second()\n    here()\ndef here(): low.first()\n",
    }
    for name, source in sources.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    watched = (
        "import sys, json; from benchmarks import journeys; sys.path.insert(0, sys.argv[1]); import high\n"
        "watcher = journeys.Watcher(sys.argv[1] + '/')\n"
        "watcher.install(); watcher.begin(); high.go(); sys.setprofile(None)\n"
        "print(json.dumps(watcher.end()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", watched, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, check=True, timeout=60
    )
    files, changes, crossings, steps = json.loads(done.stdout)
    # go, low.first (changed, crossed), low.second (crossed), here (changed), low.first (changed, crossed)
    assert (files, changes, crossings) == (2, 3, 3)
    assert [step[1:] for step in steps] == [
        ["high.py:go", "low.py:first", True, True],
        ["high.py:go", "low.py:second", False, True],
        ["high.py:go", "high.py:here", True, False],
        ["high.py:here", "low.py:first", True, True],
    ]


def test_a_journey_is_watched_in_the_client_and_in_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert journeys.main(["--detail", "sync call", "--runs", "1", "--programs", "1"]) == 0
    told = capsys.readouterr().out
    for side in ("client", "host"):
        [line] = [line for line in told.splitlines() if line.startswith(f"{side}: ") and "(*)" in line]
        files, changes, crossings = (int(word) for word in line.split() if word.isdecimal())
        assert files > 5
        assert changes > files
        assert crossings > files
