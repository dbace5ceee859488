"""No update is lost while hosts stop for a while and are killed: three processes, a real Redis, and what each was told.

See `ledgers` for what a lost update is. The control, in which saves are not fenced and nobody looks at its lease, loses
some.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ledger_writer
from ledgers import Found, judged
from redis_server import RedisServer, running_redis
from relay import Relay
from scale import linux_only, pick
from zmqagents.store.cluster import ClusterRecords

pytestmark = [pytest.mark.program, pytest.mark.timeout(pick(240, 900)), linux_only("CLOCK_BOOTTIME")]

ROOT = Path(__file__).parents[2]
LEASE_S, AGENTS, WRITERS = 1.0, 40, 3
SECONDS, CONTROL_SECONDS = pick(12.0, 240.0), pick(12.0, 30.0)


class Writers:
    """The processes, which are started again when they are killed."""

    def __init__(self, url: str, place: Path, seconds: float, without: tuple[str, ...]) -> None:
        self.url, self.place, self.without = url, place, without
        self.end = time.monotonic() + seconds
        self.starts: list[str] = []
        self.running = [self.start() for _ in range(WRITERS)]
        self.stops = self.kills = 0

    def start(self) -> subprocess.Popen[bytes]:
        self.starts.append(secrets.token_hex(6))
        arguments = [
            self.url, str(max(1.0, self.end - time.monotonic())), str(LEASE_S), str(AGENTS), self.starts[-1],
            str(self.place / self.starts[-1]), *self.without,
        ]  # fmt: skip
        program = [sys.executable, ledger_writer.__file__, *arguments]
        return subprocess.Popen(program, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def disturb(self, chance: random.Random) -> None:
        """Stop one of them for a while, or kill it."""
        index = chance.randrange(WRITERS)
        if chance.random() < 0.2 and self.end - time.monotonic() > 4:
            self.running[index].kill()
            self.running[index].wait()
            self.running[index] = self.start()
            self.kills += 1
        else:
            self.running[index].send_signal(signal.SIGSTOP)
            time.sleep(LEASE_S * chance.choice([0.1, 0.5, 1.2, 1.6, 2.2, 3.0, 3.0]))
            self.running[index].send_signal(signal.SIGCONT)
            self.stops += 1
        time.sleep(0.2)

    def close(self) -> None:
        for process in self.running:
            process.send_signal(signal.SIGCONT)
            try:
                process.wait(20)
            finally:
                process.kill()
                process.wait()


def played(server: RedisServer, place: Path, seconds: float, *without: str, url: str = "") -> Found:
    """Let the writers work for a while, and look at their ledgers. ``url``: another way to the same Redis."""
    place.mkdir()
    with server.client as client:
        client.flushdb()
    writers = Writers(url or server.url, place, seconds, without)
    chance = random.Random(7)
    try:
        while time.monotonic() < writers.end - 4 * LEASE_S:
            writers.disturb(chance)
    finally:
        writers.close()
    assert writers.stops > 0
    records = ClusterRecords(server.url, ledger_writer.NAMESPACE)
    with server.client as client:
        kept = {
            f"Account/{number}": int(client.hget(records.key_of(f"Account/{number}"), "st") or 0)
            for number in range(AGENTS)
        }
    records.close()
    found = judged(place, kept)
    print(f"{found[:3]}, {writers.stops} stops, {writers.kills} kills, without {without}")
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of these tests alone: they empty it."""
    with running_redis() as server:
        yield server


def test_no_update_is_lost_while_writers_are_stopped_and_killed(server: RedisServer, tmp_path: Path) -> None:
    found = played(server, tmp_path / "ledger", SECONDS)
    assert found.counts > 20 * SECONDS
    assert (found.lost, found.older) == (0, 0)


def test_no_update_is_lost_over_lines_that_break_and_hold_answers_back(server: RedisServer, tmp_path: Path) -> None:
    with Relay(server.port) as relay, relay.trouble(3, 0.4) as troubles:
        found = played(server, tmp_path / "ledger", SECONDS, url=f"redis://127.0.0.1:{relay.port}")
    assert len(troubles) > SECONDS / 4
    assert found.counts > 5 * SECONDS
    assert (found.lost, found.older) == (0, 0)


def test_the_control_without_the_fence_loses_updates(server: RedisServer, tmp_path: Path) -> None:
    """Somebody must be stopped for longer than a busy machine makes the others wait, so it may take some rounds."""
    rounds = [played(server, tmp_path / "0", CONTROL_SECONDS, "fence", "lease")]
    while not rounds[-1].lost and len(rounds) < 6:
        rounds.append(played(server, tmp_path / str(len(rounds)), CONTROL_SECONDS, "fence", "lease"))
    assert rounds[-1].lost > 0, rounds
