"""Many reminders on many agents: how late they come."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from cluster_hosts import hosts_on
from hosts import eventually
from redis_server import running_redis
from scale import linux_only, pick, soak_only
from zmqagents import AgentBase, Cluster
from zmqagents.agents.context import current_call

pytestmark = [soak_only, pytest.mark.program, pytest.mark.timeout(900), linux_only("CLOCK_BOOTTIME")]

AGENTS = int(os.environ.get("ZMQAGENTS_REMINDED", pick(2_000, 20_000)))
EVERY_S = float(os.environ.get("ZMQAGENTS_REMIND_EVERY_S", 20.0))
MEASURED_S = float(os.environ.get("ZMQAGENTS_REMIND_FOR_S", 30.0))
FOLDER = "ZMQAGENTS_LATE_FOLDER"  # where each host writes how late each tick was


class Beat(AgentBase):
    """Ticks, and writes down how late."""

    def __init__(self) -> None:
        self.first, self.ticks = 0.0, 0

    def save_state(self) -> list[float]:
        return [self.first, self.ticks]

    def load_state(self, state: list[float]) -> None:
        self.first, self.ticks = state[0], int(state[1])

    def begin(self, after: float) -> None:
        self.first = time.time() + after
        call = current_call()
        assert call is not None
        call.remind("beat", after=after, every=EVERY_S, method="tick")

    def tick(self) -> None:
        self.ticks += 1
        now = time.time()
        late_s = (now - self.first + EVERY_S / 2) % EVERY_S - EVERY_S / 2
        with open(f"{os.environ[FOLDER]}/{os.getpid()}", "a", encoding="ascii") as file:
            file.write(f"{now:.4f} {late_s:.4f}\n")


def begin_all(seeds: str) -> None:
    with Cluster(seeds) as cluster:

        def begin(share: int) -> None:
            for number in range(share, AGENTS, 8):
                cluster.get_agent(f"{number}", cls=Beat).begin(random.uniform(0.0, EVERY_S))

        threads = [threading.Thread(target=begin, args=(share,)) for share in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def lates(folder: Path, since: float) -> list[float]:
    rows = [line.split() for path in folder.iterdir() for line in path.read_text("ascii").splitlines()]
    return sorted(float(late_s) for now, late_s in rows if float(now) >= since)


def test_reminders_of_many_agents_come_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with running_redis(appendonly="yes") as redis, hosts_on(redis, 2, lease_s=15.0, classes=[Beat]) as hosts:
        begun = time.time()
        begin_all(",".join(f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers))
        made_s = time.time() - begun
        since = time.time()
        time.sleep(MEASURED_S)  # the load itself, not a wait for something
        found = lates(tmp_path, since)
        figures = [caller.status() for caller in hosts.callers]
        rate = len(found) / MEASURED_S
        p50, p99, worst = found[len(found) // 2], found[len(found) * 99 // 100], found[-1]
        print(
            f"\n{AGENTS} agents made and reminded in {made_s:.1f} s; {rate:.0f} ticks a second, "
            f"late {p50 * 1000:.0f} ms (p50), {p99 * 1000:.0f} ms (p99), {worst * 1000:.0f} ms at most; "
            f"counted as late {sum(each['reminders_late'] for each in figures)}, "
            f"round trip {[each['round_trip_ms'] for each in figures]} ms"
        )
        assert rate > 0.9 * AGENTS / EVERY_S, "some are lost, or far behind"
        assert p99 < 1.0
        assert eventually(lambda: sum(caller.status()["reminders"] for caller in hosts.callers) == AGENTS, 20)
