"""A host of three is killed under load: each call ends in time, nothing that was acknowledged is lost."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from typing import Any

import pytest

from cluster_hosts import Account, hosts_on
from hosts import eventually
from redis_server import running_redis
from scale import linux_only, pick
from zmqagents import Cluster
from zmqagents.errors import CallLost, CallTimeout, ZmqAgentsError

pytestmark = [pytest.mark.program, pytest.mark.timeout(300), linux_only("CLOCK_BOOTTIME")]

AGENTS, THREADS = pick((40, 6), (400, 12))
LEASE_S, DEADLINE_S, LOAD_S = 2.0, 6.0, pick(4.0, 20.0)


class Load:
    """Threads that add 1 to agents, each to its own, until told to stop; what they were answered."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.answers: dict[str, list[int]] = defaultdict(list)  # the balances that were told, by agent
        self.unknown: Counter[str] = Counter()  # calls that nobody knows the end of
        self.errors: Counter[str] = Counter()
        self.surprises: list[BaseException] = []
        self.longest_s = 0.0
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        names = [f"load-{n}" for n in range(number, AGENTS, THREADS)]
        agents: dict[str, Any] = {name: self.cluster.get_agent(name, cls=Account) for name in names}
        while not self._is_over.is_set():
            for name, agent in agents.items():
                begun = time.monotonic()
                try:
                    self.answers[name].append(agent.add(1, timeout=DEADLINE_S))
                except (CallLost, CallTimeout) as exc:
                    self.unknown[name] += 1
                    self.errors[type(exc).__name__] += 1
                except ZmqAgentsError as exc:
                    self.errors[type(exc).__name__] += 1
                except BaseException as exc:
                    self.surprises.append(exc)
                self.longest_s = max(self.longest_s, time.monotonic() - begun)

    @property
    def count(self) -> int:
        return sum(map(len, self.answers.values()))


def test_a_host_is_killed_under_load_and_no_acknowledged_call_is_lost() -> None:
    with running_redis() as redis, hosts_on(redis, 3, lease_s=LEASE_S) as hosts:
        seeds = ",".join(f"127.0.0.1:{launcher.port}" for launcher in hosts.launchers)
        with Cluster(seeds) as cluster:
            with Load(cluster) as load:
                assert eventually(lambda: load.count > 10 * AGENTS, 60)
                homes = {name: hosts.home_of(f"Account/{name}") for name in list(load.answers)}
                assert set(homes.values()) == {0, 1, 2}
                hosts.kill(0)
                killed = time.monotonic()
                orphans = {name: len(load.answers[name]) for name, home in homes.items() if home == 0}
                assert eventually(
                    lambda: all(len(load.answers[name]) > before for name, before in orphans.items()), 60
                ), load.errors
                back_s = time.monotonic() - killed
                time.sleep(LOAD_S)  # the load itself, not a wait for something
            assert load.surprises == []
            assert load.longest_s < DEADLINE_S + 1
            assert set(load.errors) <= {"CallLost", "CallTimeout"}, load.errors
            for name, told in load.answers.items():
                assert told == sorted(set(told)), f"{name}: an answer came twice, or a change was taken back"
                agent: Any = cluster.get_agent(name, cls=Account)
                balance = agent.balance(timeout=20)
                assert len(told) <= balance <= len(told) + load.unknown[name], name
                assert told[-1] <= balance
            print(f"{load.count} calls, {dict(load.errors)}; the dead host's agents answered after {back_s:.2f} s")
