"""A program: one host of a cluster whose agents count, which writes down each count that it was told is kept.

    ledger_writer.py URL SECONDS LEASE_S AGENTS START FILE [without ...]

FILE gets a line ``agent epoch count`` for each. ``without``: "fence", "lease": what is left out, as a control.
"""

from __future__ import annotations

import queue
import random
import sys
import time
from pathlib import Path
from typing import Any

from zmqagents.cluster.activations import Activated, Dropped, Elsewhere, Gone, Readiness, Removed, Renew, Taken
from zmqagents.cluster.lease import Admission, boot_time
from zmqagents.cluster.member import Died, HostEffect, Member
from zmqagents.cluster.placement import MemberInfo
from zmqagents.cluster.steward import Event, Identity, Steward
from zmqagents.store.cluster import ClusterRecords
from zmqagents.store.cluster_scripts import ClusterScripts, cluster_scripts
from zmqagents.store.scripts import Script

NAMESPACE = "ledger"
UNDER_WAY = 32
FENCE = (
    "if not is_mine(r[1], r[2]) then return {'fenced', r[1] or '', r[2] or '0'} end",
    "if kept > rev then return {'taken'} end",
    "if kept < rev and ARGV[7] ~= '1' then return {'behind', kept} end",
)


def unfenced() -> ClusterScripts:
    """Scripts that take every save."""
    scripts = cluster_scripts()
    text = scripts.save.text
    for part in FENCE:
        assert part in text
        text = text.replace(part, "")
    return scripts._replace(save=Script(text, ""))


class Writer:
    """The host."""

    def __init__(self, url: str, lease_s: float, agents: int, start: str, file: Path, without: list[str]) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.names = [f"Account/{number}" for number in range(agents)]
        self.counts: dict[str, int] = {}
        self.under_way = 0
        self.checks_lease = "lease" not in without
        self.ledger = file.open("a", buffering=1)
        scripts = unfenced() if "fence" in without else None
        identity = Identity(f"w{start}", start, "key", lease_s)
        steward = Steward(lambda: ClusterRecords(url, NAMESPACE, scripts=scripts), identity, self.deliver)
        self.member = Member(steward, identity, MemberInfo("", "nowhere:1", classes={"Account": 1}))
        self.chance = random.Random()

    def deliver(self, events: Any) -> None:
        for event in events:
            self.inbox.put(event)

    def run(self, seconds: float) -> None:
        self.member.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.take_events(0.0 if self.work() else 0.002)
        for name in self.member.activations:
            if self.member.activations.readiness(name) is Readiness.READY:
                self.do(self.member.carry(self.member.activations.release(name)))
        end = time.monotonic() + 3
        while len(self.member.activations) and time.monotonic() < end:
            self.take_events(0.01)
        self.member.close()

    def work(self) -> bool:
        """Count once more in some agent; False if it cannot be done now."""
        if self.checks_lease and self.member.lease.admits(boot_time()) is not Admission.START:
            return False
        activations, name = self.member.activations, self.chance.choice(self.names)
        readiness = activations.readiness(name)
        if readiness is Readiness.ABSENT:
            self.do(self.member.carry(activations.activate(name, "Account", 1)))
        if readiness is not Readiness.READY or self.under_way >= UNDER_WAY:
            return False
        if self.chance.random() < 0.01:
            self.do(self.member.carry(activations.release(name)))
            return True
        self.counts[name] += 1
        call = f"{name} {activations.epoch(name)} {self.counts[name]}"
        self.under_way += 1
        self.do(self.member.carry(activations.save(name, str(self.counts[name]).encode(), 1, call)))
        return True

    def take_events(self, pause_s: float) -> None:
        try:
            event = self.inbox.get(timeout=pause_s) if pause_s else self.inbox.get_nowait()
            while True:
                self.do(self.member.on_event(event))
                event = self.inbox.get_nowait()
        except queue.Empty:
            pass

    def do(self, effects: list[HostEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Activated):
                self.counts[effect.name] = int(effect.mine.state or b"0")
                self.do(self.member.carry(self.member.activations.started(effect.name)))
            elif isinstance(effect, Taken):
                self.under_way -= len(effect.calls)
                self.ledger.write("".join(f"{call}\n" for call in effect.calls))
            elif isinstance(effect, Dropped):
                self.under_way -= len(effect.lost)
                self.counts.pop(effect.name, None)
            elif isinstance(effect, (Gone, Removed, Elsewhere)):
                self.counts.pop(effect.name, None)
            elif isinstance(effect, Renew):
                state = str(self.counts[effect.name]).encode()
                self.do(self.member.carry(self.member.activations.save(effect.name, state, 1)))
            elif isinstance(effect, Died):
                self.do(self.member.leave_dead())


if __name__ == "__main__":
    url, seconds, lease_s, agents, start, file, *without = sys.argv[1:]
    Writer(url, float(lease_s), int(agents), start, Path(file), without).run(float(seconds))
