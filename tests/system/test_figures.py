"""The figures of a live host: what was done is what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func, current_call, errors, stream_func
from zmqagents.telemetry.meters import MAX_PAIRS
from zmqagents.telemetry.metrics import METRICS, samples

pytestmark = pytest.mark.timeout(120)
WAIT_S = 20.0


class Counted(AgentBase):
    def quick(self, value: Any) -> Any:
        return value

    def fail(self) -> None:
        raise ValueError("no")

    @async_func
    def long_word(self) -> Any:
        return type("A" * 100_000, (), {})()

    @async_func
    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    @async_func
    def hold(self, seconds: float) -> bool:
        call = current_call()
        assert call is not None
        return call.wait_cancelled(seconds)

    async def rest(self) -> str:
        return "rested"

    @stream_func
    def items(self, count: int) -> Iterator[int]:
        yield from range(count)


@pytest.fixture
def client() -> Iterator[RpcClient]:
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Counted], capacity=2, local_mode=True) as launcher,
        RpcClient("localhost", launcher.port) as client,
    ):
        yield client


def method(figures: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in figures["methods"] if each["method"] == name)
    assert found["class"].endswith(":Counted")
    counts = [sum(found[key]["counts"]) for key in ("queued", "took")]
    assert counts == [sum(found["ends"].values())] * 2, "nothing is counted twice or left out"
    return dict(found)


def test_every_call_counts_once_on_every_way_that_calls_take(client: RpcClient) -> None:
    agent = client.create_agent(Counted)
    for number in range(500):  # the first ones in workers, then by the router thread itself
        agent.quick(number)
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            agent.fail()
    naps = [agent.nap(0.2) for _ in range(3)]
    assert [nap.result() for nap in naps] == [0.2] * 3
    agent.rest().result()  # type: ignore[attr-defined]
    assert list(agent.items(5)) == list(range(5))
    figures = client.get_metrics()
    ends = {each["method"]: {k: v for k, v in each["ends"].items() if v} for each in figures["methods"]}
    assert ends == {
        "create_agent": {"ok": 1}, "quick": {"ok": 500}, "fail": {"error": 3}, "nap": {"ok": 3}, "rest": {"ok": 1},
        "items": {"ok": 1},
    }  # fmt: skip
    nap = method(figures, "nap")
    assert nap["ran"]["sum_s"] == pytest.approx(0.6, abs=0.5)
    assert nap["queued"]["sum_s"] >= 0.5, "the second and the third have waited for the first"
    assert nap["took"]["sum_s"] == pytest.approx(nap["queued"]["sum_s"] + nap["ran"]["sum_s"], abs=0.01)
    assert 0 < method(figures, "quick")["took"]["sum_s"] < 20
    assert sum(figures["calls"].values()) == 0
    assert figures["agents"] == {each["class"]: 1 for each in figures["methods"]}
    for key in ("received_bytes", "sent_bytes"):
        assert sum(door[key] for door in figures["doors"].values()) > 509 * 28, "each message has a header at least"


def test_an_error_that_is_longer_than_most_messages_ends_its_call_all_the_same(client: RpcClient) -> None:
    agent = client.create_agent(Counted)
    with pytest.raises(errors.SerializationError):
        agent.long_word().result(timeout=WAIT_S)
    assert method(client.get_metrics(), "long_word")["ends"]["error"] == 1


def test_what_is_going_on_shows_by_its_state(client: RpcClient) -> None:
    agents = [client.create_agent(Counted) for _ in range(2)]
    naps = [agent.hold(WAIT_S) for agent in agents for _ in range(3)]
    deadline = time.monotonic() + WAIT_S
    while (figures := client.get_metrics())["calls"]["running"] < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert figures["calls"] == {"parked": 0, "queued": 4, "ready": 0, "running": 2, "waiting": 0}
    assert (figures["workers"]["busy"], figures["longest_mailbox"]) == (2, 2)
    assert 0 <= figures["oldest_s"] < WAIT_S
    for nap in naps:
        nap.cancel()
    for nap in naps:
        with pytest.raises(CancelledError):
            nap.result()
    while method(figures := client.get_metrics(), "hold")["ends"]["cancelled"] < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (sum(figures["calls"].values()), figures["longest_mailbox"]) == (0, 0)


def test_a_live_host_has_every_metric_but_those_of_what_it_has_not(client: RpcClient) -> None:
    client.create_agent(Counted).rest().result()  # type: ignore[attr-defined]
    client.get_metrics()
    gone = client.create_agent(Counted, agent_id="gone")
    client.delete_agent("gone")
    with pytest.raises(errors.UnknownAgent):
        gone.quick(1)
    found = {sample.metric.name for sample in samples(client.get_metrics())}
    names = {metric.name for metric in METRICS}
    of_cluster = {name for name in names if name.startswith("zmqagents_cluster_")}
    assert names - found == {"zmqagents_store_round_trip_seconds", *of_cluster}, "there is no Redis, and no cluster"


METHODS = 1000
Wide = type("Wide", (AgentBase,), {f"m{number}": lambda self: None for number in range(METHODS)})


def test_a_scrape_of_a_host_with_a_thousand_methods_costs_its_router_thread_next_to_nothing() -> None:
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Wide], local_mode=True)
    here = threading.Thread(target=launcher.launch, kwargs={"in_subprocess": False})
    here.start()
    try:
        while not launcher.is_running or not launcher.port:
            time.sleep(0.01)
        with RpcClient("localhost", launcher.port) as client:
            wide = client.create_agent(Wide)
            for number in range(METHODS):
                getattr(wide, f"m{number}")()
            (router,) = (thread for thread in threading.enumerate() if thread.name == "zmqagents-router")
            assert router.ident is not None
            clock = time.pthread_getcpuclockid(router.ident)
            before, scrapes = time.clock_gettime(clock), 50
            for _ in range(scrapes):
                figures = client.get_metrics()
            spent_s = (time.clock_gettime(clock) - before) / scrapes
    finally:
        launcher.shutdown(0.0)
        here.join()
    ends = {each["method"]: each["ends"]["ok"] for each in figures["methods"]}
    assert len(ends) == MAX_PAIRS + 1
    assert sum(ends.values()) == METHODS + 1
    print(f"{spent_s * 1000:.2f} ms of the router thread for a scrape")
    assert spent_s < 0.01, "1 ms where nothing else runs"


def test_top_shows_what_a_host_does_and_ends_when_it_was_told(client: RpcClient) -> None:
    agent = client.create_agent(Counted)
    for number in range(50):
        agent.quick(number)
    command = [sys.executable, "-m", "zmqagents", "top", "--count", "2", "--interval", "0.2"]
    done = subprocess.run(
        [*command, "--port", client.address.rpartition(":")[2]], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"workers +\d+ of 2 busy", done.stdout)
    row = next(line for line in done.stdout.splitlines() if "Counted.quick" in line)
    assert row.split()[-1] == "50"


def test_top_without_rich_names_the_extra(client: RpcClient, tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ImportError('none here')")
    command = [sys.executable, "-m", "zmqagents", "top", "--port", client.address.rpartition(":")[2]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 2
    assert done.stderr == "as_server top: it needs rich: pip install 'zmqagents[top]'\n"
