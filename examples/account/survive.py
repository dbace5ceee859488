"""Accounts that survive ``kill -9`` of their host under load, with a live picture of who holds what.

``python survive.py redis://localhost:6379``: three hosts are started here, and one of them is killed.
"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from zmqagents import CallLost, CallTimeout, Cluster

AGENTS = Path(__file__).parent / "agents"
ACCOUNTS, THREADS, LEASE_S = 12, 4, 2.0


class Clerks:
    """Threads that add one cent at a time, each to its own accounts."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.told: Counter[str] = Counter()  # cents of which a clerk was told that they are there
        self.unknown: Counter[str] = Counter()  # of which nobody knows: the host has died meanwhile
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(THREADS)]

    def work(self, number: int) -> None:
        names = [f"account-{n}" for n in range(number, ACCOUNTS, THREADS)]
        while not self.is_over.is_set():
            for name in names:
                account: Any = self.cluster.get_agent(name, cls="Account")
                try:
                    account.add(1, timeout=10)
                    self.told[name] += 1
                except (CallLost, CallTimeout):
                    self.unknown[name] += 1


def start_host(redis_url: str) -> tuple[subprocess.Popen[str], str, str]:
    """The process of a host, its id and its address."""
    command = [sys.executable, "-m", "zmqagents", "start", "--cluster", "shop", "--redis-url", redis_url]
    command += ["--agent-dir", str(AGENTS), "--local-mode", "--lease", str(LEASE_S), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = json.loads(process.stdout.readline())
    return process, said["server_id"], f"{said['host']}:{said['port']}"


def draw(cluster: Cluster, clerks: Clerks) -> Counter[str]:
    """One line of the picture: a mark for each account, behind the host that has it. How many each has."""
    held = Counter(row["server_id"] or "nobody" for row in cluster.agents("Account/"))
    shown = "   ".join(f"{name} {'#' * count:<{ACCOUNTS}}" for name, count in sorted(held.items()))
    print(f"{sum(clerks.told.values()):>7,} calls   {shown}")
    return held


def main(redis_url: str) -> None:
    hosts = [start_host(redis_url) for _ in range(3)]
    try:
        with Cluster([address for _, _, address in hosts]) as cluster:
            clerks = Clerks(cluster)
            for thread in clerks.threads:
                thread.start()
            for _ in range(4):
                time.sleep(0.5)
                held = draw(cluster, clerks)
            victim = max(hosts, key=lambda host: held[host[1]])
            victim[0].kill()
            print(f"kill -9 {victim[1]}, which had {held[victim[1]]} accounts")
            end = time.monotonic() + 10 * LEASE_S
            while draw(cluster, clerks)[victim[1]] and time.monotonic() < end:
                time.sleep(0.5)
            clerks.is_over.set()
            for thread in clerks.threads:
                thread.join()
            kept = {name: cluster.get_agent(name, cls="Account").balance() for name in clerks.told}
            lost = sum(clerks.told[name] > cents for name, cents in kept.items())
            extra = sum(cents > clerks.told[name] + clerks.unknown[name] for name, cents in kept.items())
            print(f"calls that nobody knows the end of: {sum(clerks.unknown.values())}")
            print(f"accounts that have less than was told: {lost}, more than was asked for: {extra}")
    finally:
        for process, _, _ in hosts:
            process.terminate()
        for process, _, _ in hosts:
            process.communicate()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379")
