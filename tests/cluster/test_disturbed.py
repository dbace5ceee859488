"""Hosts are killed, stand still, are cut off from Redis and give agents away while clients count: none is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from cluster_hosts import CHILDREN_TOO, Hosts, hosts_on
from hosts import eventually, freeze
from redis_server import RedisServer, running_redis
from scale import linux_only, pick
from zmqagents.errors import CallLost, CallTimeout, HostUnreachable, ZmqAgentsError
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(pick(240, 1500)), linux_only("CLOCK_BOOTTIME")]

LEASE_S, AGENTS, SECONDS = 1.0, 12, pick(20.0, 900.0)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis(appendonly="yes") as server:
        yield server


class Counting:
    """Clients that add 1 to agents, each agent one client's, at whatever host; and what they were told."""

    def __init__(self, hosts: Hosts, end: float) -> None:
        self.told: dict[str, list[int]] = {f"Account/counted-{number}": [] for number in range(AGENTS)}
        self.unsure: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._hosts, self._end = hosts, end
        self._threads = [
            threading.Thread(target=self._count, args=(list(self.told)[index::4], index)) for index in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _count(self, names: list[str], index: int) -> None:
        chance = random.Random(index)
        while time.monotonic() < self._end:
            for name in names:
                try:
                    self.told[name].append(chance.choice(self._hosts.callers).call(name, "add", 1, timeout=10))
                except (CallLost, CallTimeout) as exc:
                    self.unsure[name] += 1
                    self.errors[type(exc).__name__] += 1
                except HostUnreachable:  # nothing was sent
                    time.sleep(0.05)
                except ZmqAgentsError as exc:  # nothing was executed
                    self.errors[f"{type(exc).__name__}: {exc}"[:80]] += 1

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def disturb(hosts: Hosts, chance: random.Random) -> str:
    victim = chance.randrange(len(hosts.launchers))
    pid = hosts.launchers[victim].pid
    kinds = ["kill", "freeze", "freeze", "move", "move", "move", "redis"]
    what = chance.choice([*kinds, "child", "child"] if hosts.has_children else kinds)
    if what == "kill":
        hosts.kill(victim)
    elif what == "freeze" and pid:
        with contextlib.suppress(Exception):  # it has just ended
            freeze(pid)
            time.sleep(chance.uniform(0.1, 2.5) * LEASE_S)
            os.kill(pid, signal.SIGCONT)
    elif what == "child" and pid:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children():
                child.kill()
    elif what == "move":
        with contextlib.suppress(ZmqAgentsError, ConnectionError):
            name = f"cluster:shop/Account/counted-{chance.randrange(AGENTS)}"
            hosts.callers[victim].ask("", Op.MOVE, id=name, timeout=5)
    else:
        with hosts.redis.frozen():
            time.sleep(chance.uniform(0.1, 1.5) * LEASE_S)
    return what


@CHILDREN_TOO
def test_no_count_that_was_told_is_lost_or_told_twice(redis: RedisServer) -> None:
    seed = int(os.environ.get("ZMQAGENTS_SEED", "1"))
    chance = random.Random(seed)
    with hosts_on(redis, 3, lease_s=LEASE_S, restart=True) as hosts:
        end = time.monotonic() + SECONDS
        counting, done = Counting(hosts, end), Counter[str]()
        while time.monotonic() < end - 3:
            done[disturb(hosts, chance)] += 1
            time.sleep(chance.uniform(0.1, 1.0))
        counting.join()
        assert eventually(lambda: len({c.status()["members"] for c in hosts.callers}) == 1, 30)
        for name, counts in counting.told.items():
            assert counts == sorted(set(counts)), f"{name} went back, or told one twice"
            balance = hosts.callers[0].sure(name, "balance")
            assert (counts[-1] if counts else 0) <= balance <= len(counts) + counting.unsure[name]
        print(sum(map(len, counting.told.values())), "counts told;", dict(done), dict(counting.errors))
        assert sum(map(len, counting.told.values())) > 20 * SECONDS
