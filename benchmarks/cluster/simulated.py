"""100 hosts of one cluster: their parts that speak to Redis are real, and run in one process; one more host is whole.

    python -m benchmarks.cluster.simulated URL CLUSTER HOSTS AGENTS SECONDS

Each member beats as a host does. They place the agents by turns, each by what its last beat has told it, and those that
were chosen claim them. It prints how many agents each has, and what Redis has taken of a core for beats alone.
"""

from __future__ import annotations

import json
import queue
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import redis

from zmqagents.cluster.activations import Activated
from zmqagents.cluster.member import HostEffect, Member
from zmqagents.cluster.placement import MemberInfo
from zmqagents.cluster.steward import Event, Identity, Steward
from zmqagents.store.cluster import ClusterRecords

LEASE_S = 15.0
CLS = "Sim"  # a class that the real host does not have
AT_ONCE = 2000  # agents on their way
PER_S = 5000  # agents that are placed


class Simulated:
    """One member without an agent's code."""

    def __init__(self, url: str, namespace: str, number: int, fingerprint: str) -> None:
        identity = Identity(f"sim{number}", f"sim{number}", fingerprint, LEASE_S)
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.info = MemberInfo("", f"127.0.0.1:{20000 + number}", classes={CLS: 1})
        steward = Steward(lambda: ClusterRecords(url, namespace), identity, self._deliver)
        self.member = Member(steward, identity, self.info)
        self.claimed = 0

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self.inbox.put(event)

    def take_events(self) -> int:
        """How many agents have become its own."""
        before = self.claimed
        while not self.inbox.empty():
            self._do(self.member.on_event(self.inbox.get()))
        return self.claimed - before

    def _do(self, effects: list[HostEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Activated):
                self.claimed += 1
                self._do(self.member.carry(self.member.activations.started(effect.name)))

    def claim(self, name: str) -> None:
        """Ask Redis for an agent."""
        self._do(self.member.carry(self.member.activations.activate(name, CLS, 1)))

    def describe(self) -> None:
        """Its load, with the next beat."""
        self.member.describe(replace(self.info, load=float(len(self.member.activations))))


def place(members: list[Simulated], agents: int) -> None:
    """Place and claim them."""
    by_address = {each.info.address: each for each in members}
    made = claimed = 0
    began = time.monotonic()
    while claimed < agents:
        due = (time.monotonic() - began) * PER_S
        while made < min(agents, due) and made - claimed < AT_ONCE:
            chosen = members[made % len(members)].member.placement.choose(CLS, 1)
            if chosen is None:
                break
            by_address[chosen.address].claim(f"{CLS}/{made}")
            made += 1
        time.sleep(0.005)
        claimed += sum(each.take_events() for each in members)
        for each in members:
            each.describe()


def attend(members: list[Simulated], seconds: float) -> None:
    """Let them beat."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        for each in members:
            each.take_events()


def main(url: str, namespace: str, hosts: int, agents: int, seconds: float) -> None:
    """The program."""
    client = redis.Redis.from_url(url, decode_responses=True)
    fingerprint = str(client.get(f"za:{{{namespace}}}:id"))  # of the whole host, which has joined before
    members = [Simulated(url, namespace, number, fingerprint) for number in range(hosts)]
    for each in members:
        each.member.start()
        time.sleep(LEASE_S / 4 / hosts)  # their beats are spread, as those of hosts are
    server = psutil.Process(client.info("server")["process_id"])
    attend(members, LEASE_S / 3)  # until each has heard of all
    began = time.monotonic()
    place(members, agents)
    placed_s = time.monotonic() - began
    fullest = Counter({each.info.address: len(each.member.activations) for each in members})
    before, began = server.cpu_times(), time.monotonic()
    attend(members, seconds)
    after, took = server.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - before.user - before.system) / took
    told: dict[str, Any] = {
        "redis_share": share, "placed_s": placed_s, "unevenness": max(fullest.values()) / (agents / hosts) - 1,
        "least": min(fullest.values()), "most": max(fullest.values()),
    }  # fmt: skip
    print(json.dumps(told), flush=True)
    sys.stdin.read()  # until the whole host was looked at
    client.close()


if __name__ == "__main__":
    url, namespace, *numbers = sys.argv[1:]
    main(url, namespace, int(numbers[0]), int(numbers[1]), float(numbers[2]))
