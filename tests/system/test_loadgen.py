"""The load generator against real hosts: what it sends, what it counts, and that no stall of the host is hidden."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import client_of, host
from zmqagents import (
    AgentBase,
    AgentCallError,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownMethod,
    errors,
    idempotent,
)
from zmqagents.client import loadgen
from zmqagents.client.loadgen import Interval, Load, Summary

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "zmqagents", "bench"]


class Target(AgentBase):
    """Counts what it gets, and can be slow in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self.calls = 0

    def take(self, payload: bytes, *more: Any, **named: Any) -> None:
        self.calls += 1
        self.lengths.append(len(payload) + len(more) + len(named))

    def work(self, seconds: float) -> None:
        time.sleep(seconds)

    def stall_once(self, at_call: int, seconds: float) -> None:
        self.calls += 1
        if self.calls == at_call:
            time.sleep(seconds)

    def fail_sometimes(self) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            raise ValueError("even")

    def count(self) -> Iterator[int]:
        yield 1

    @idempotent
    def count_again(self) -> Iterator[int]:
        yield 1

    @idempotent
    def again(self) -> None:
        self.calls += 1


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Target) as launcher:
        yield launcher


@pytest.fixture
def agent(client: RpcClient) -> Iterator[Any]:
    made = client.create_agent(Target, agent_id="target")
    yield made
    client.delete_agent("target")


def put(client: RpcClient, method: str = "", **load: Any) -> Summary:
    chosen: dict[str, Any] = {"agent": "target", "method": method} if method else {}
    return loadgen.run(Load(client.address, **chosen, **{"rate": 100, "duration_s": 1.0, **load}))


def test_the_host_itself_is_asked_as_often_as_the_rate_says(client: RpcClient) -> None:
    seconds: list[tuple[float, int]] = []
    load = Load(client.address, clients=3, rate=200, duration_s=1.2)
    summary = loadgen.run(load, lambda at_s, interval: seconds.append((at_s, interval.sent)))
    assert (summary.total.sent, summary.total.answered) == (240, 240)
    assert not summary.total.errors
    assert summary.took_s >= 1.1
    assert sum(sent for _, sent in seconds) == 240
    assert seconds[0][0] == 1.0
    assert 0 < seconds[0][1] < 240  # a report while it ran


def test_an_agent_gets_the_payload_and_the_arguments_of_every_call(client: RpcClient, agent: Any) -> None:
    summary = put(
        client, "take", payload_bytes=50, args=[1, "two"], kwargs={"three": 3}, clients=2, rate=200, duration_s=0.5
    )
    assert summary.total.answered == 100
    assert agent.lengths == [53] * 102  # each client has made one to warm up


def test_a_stall_of_the_host_shows_in_all_the_calls_that_were_due_meanwhile(client: RpcClient, agent: Any) -> None:
    # A closed loop would have met the stall in one call of its hundred: a p90 of a millisecond or so.
    summary = put(client, "stall_once", args=[10, 1.0], rate=100, duration_s=1.5)
    assert summary.total.latency_ms(100) >= 900
    assert summary.total.latency_ms(90) >= 700  # of 150 calls 100 were due while it stood still
    assert summary.total.latency_ms(50) >= 200


def test_a_latency_counts_from_when_the_call_was_due_also_if_it_was_sent_later(client: RpcClient, agent: Any) -> None:
    load = Load(client.address, "target", "work", [0.0], rate=10, duration_s=0.1)
    made = loadgen.LoadClient(load, 0)
    reports: list[dict[str, Any]] = []
    made.run(time.monotonic() - 5.0, reports.append)  # the begin is long past: the generator is late
    total = Interval()
    for data in reports:
        total.add(Interval.from_json(data))
    assert (total.sent, total.answered) == (1, 1)
    assert total.behind_s >= 5.0
    assert total.latency_ms(50) >= 4_990


def test_calls_that_fail_are_counted_by_their_error_and_not_as_latencies(client: RpcClient, agent: Any) -> None:
    total = put(client, "fail_sometimes", rate=200, duration_s=0.5).total  # the first call, to warm up, is an odd one
    assert (total.sent, total.answered, dict(total.errors)) == (100, 50, {"ValueError": 50})


def test_a_method_that_may_run_twice_runs_once_for_each_call(client: RpcClient, agent: Any) -> None:
    summary = put(client, "again", rate=50, duration_s=0.2)
    assert (summary.total.answered, agent.calls) == (10, 11), "one was to warm up"


def test_more_than_the_host_can_do_ends_in_timeouts_and_the_run_ends(client: RpcClient, agent: Any) -> None:
    started = time.monotonic()
    total = put(client, "work", args=[0.2], rate=50, duration_s=0.5, timeout_s=0.7).total
    assert total.answered + sum(total.errors.values()) == total.sent == 25
    assert set(total.errors) == {"CallTimeout"}
    assert time.monotonic() - started < 20


def test_what_cannot_be_called_is_said_before_anything_is_sent(client: RpcClient, agent: Any) -> None:
    with pytest.raises(UnknownMethod, match="target has no public method 'nothing'"):
        put(client, "nothing")
    for stream in ("count", "count_again"):
        with pytest.raises(errors.ConfigError, match=f"{stream} gives a stream"):
            put(client, stream)
    with pytest.raises(AgentCallError, match="missing 1 required"):
        put(client, "work")
    with pytest.raises(errors.UnknownAgent):
        loadgen.run(Load(client.address, "nobody"))
    with pytest.raises(errors.ConfigError, match="rate must be more than 0"):
        put(client, rate=0)
    with pytest.raises(errors.ConfigError, match="name an agent"):
        put(client, payload_bytes=1)


def test_a_host_that_is_not_there_is_said() -> None:
    with host(Target) as gone, client_of(gone) as client:
        address = client.address
    with pytest.raises(errors.HostUnreachable):
        loadgen.run(Load(address))


def test_a_host_that_dies_meanwhile_costs_its_calls_and_not_the_run() -> None:
    with host(Target, grace_s=0.0) as server, client_of(server) as client:
        told: list[int] = []

        def kill(at_s: float, interval: Interval) -> None:
            if not told:
                client.stop(0.0)
            told.append(interval.answered)

        total = loadgen.run(Load(client.address, rate=100, duration_s=1.5), kill).total
    assert told[0] > 20  # of 100, on a busy machine
    assert total.sent == 150
    assert total.answered + sum(total.errors.values()) == 150
    assert total.errors
    assert all(issubclass(getattr(errors, name), ConnectionError) for name in total.errors)


# ---------------------------------------------------------------- the shell


def shell(server: RpcAgentServerLauncher, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "--port", str(server.port), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == expect, done.stderr
    return done


def test_the_shell_shows_percentiles_and_gives_the_histogram_as_json(
    server: RpcAgentServerLauncher, client: RpcClient, agent: Any
) -> None:
    options = ["--agent", "target", "--method", "take", "--payload", "10", "--rate", "50", "--duration", "1"]
    data = json.loads(shell(server, *options, "--clients", "2", "--json", "more").stdout)
    assert (data["sent"], data["answered"], data["errors"]) == (50, 50, {})
    latency = data["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99.9"] <= latency["max"]
    assert Interval.from_json({"hdr": data["hdr"], "errors": {}, "sent": 50, "behind_s": 0.0}).latency_ms(
        50
    ) == pytest.approx(latency["p50"])
    assert agent.lengths[-1] == 11

    printed = shell(server, "--rate", "20", "--duration", "0.5").stdout
    assert "the host itself at localhost:" in printed
    assert "10 calls, 20.0/s; 10 answered" in printed


def test_the_shell_exits_with_1_if_calls_have_failed(server: RpcAgentServerLauncher, agent: Any) -> None:
    options = ["--agent", "target", "--method", "fail_sometimes", "--rate", "20", "--duration", "0.5"]
    options += ["--clients", "1"]  # which makes one call to warm up, an odd one
    assert "5 ValueError" in shell(server, *options, expect=1).stdout


def test_without_the_histogram_package_the_extra_is_named(server: RpcAgentServerLauncher, tmp_path: Path) -> None:
    (tmp_path / "hdrh.py").write_text("raise ImportError('not installed')")
    blocked = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from zmqagents import cli; cli.main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", blocked, "bench", "--port", str(server.port)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'zmqagents[bench]'" in done.stderr
    assert "Traceback" not in done.stderr
