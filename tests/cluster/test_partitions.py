"""Three machines whose cables are pulled: hosts stop, are killed and cut off, Redis is started anew; no count is lost.

The hosts speak TCP with CURVE to each other and to Redis' machine; see `net_hosts`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

import counting
from hosts import freeze
from ledgers import Found, judged
from net_hosts import NetHosts, net_hosts
from net_world import needs_network
from scale import linux_only, pick, soak_only

pytestmark = [pytest.mark.program, pytest.mark.timeout(pick(120, 2400)), linux_only("CLOCK_BOOTTIME")]

LEASE_S, AGENTS = 1.0, 40
SECONDS = float(os.environ.get("ZMQAGENTS_SECONDS", "1800"))
WORDS = ("counting:Counter", "--lease", str(LEASE_S), "--log-level", "off")
PARTS = (0.1, 0.5, 1.2, 1.6, 2.2, 3.0)  # of a lease, that a disturbance takes


def disturb(hosts: NetHosts, what: str, seconds: float, chance: random.Random) -> None:
    victim = chance.choice(hosts.numbers)
    if what == "cable":
        hosts.net.cut(victim)
        time.sleep(seconds)
        hosts.net.mend(victim)
    elif what == "stop":
        freeze(hosts.pid(victim))
        time.sleep(seconds)
        os.kill(hosts.pid(victim), signal.SIGCONT)
    elif what == "kill":
        hosts.kill(victim)
        time.sleep(seconds / 3)
        hosts.begin(victim)
        hosts.heard(victim)
    else:
        hosts.redis.stop() if what == "redis" else hosts.redis.kill()
        time.sleep(seconds / 3)
        hosts.redis.start()


def played(place: Path, seconds: float, troubles: tuple[str, ...]) -> tuple[Found, Counter[str]]:
    """Let clients have agents count while each of ``troubles`` comes in turn, again and again; what they were told."""
    place.mkdir()
    chance, done = random.Random(int(os.environ.get("ZMQAGENTS_SEED", "1"))), Counter[str]()
    with net_hosts(3, *WORDS) as hosts:
        words = counting.__file__, hosts.addresses, str(seconds), str(AGENTS), str(place)
        with hosts.program(*words) as clients:
            end = time.monotonic() + seconds
            while time.monotonic() < end - 3 * LEASE_S:
                what = troubles[done.total() % len(troubles)]
                disturb(hosts, what, LEASE_S * chance.choice(PARTS), chance)
                done[what] += 1
                time.sleep(chance.uniform(0.2, 1.0) * LEASE_S)
            told = json.loads(ended(clients))
    found = judged(place, told["kept"])
    print(f"{found.counts} counts, {found.lost} lost, {found.older} older; {dict(done)}")
    print(f"{sum(told['unsure'].values())} calls of which nobody knows the end, other errors: {told['errors']}")
    for name, kept in told["kept"].items():
        most = found.told[name] + told["unsure"].get(name, 0)
        assert found.told[name] <= kept <= most, f"{name}: a count that nobody asked for"
    return found, done


def ended(program: subprocess.Popen[str]) -> str:
    """What it has printed."""
    out, _ = program.communicate(timeout=90)
    assert program.returncode == 0
    return out


def test_hosts_that_are_cut_off_stopped_and_killed_lose_no_count(tmp_path: Path) -> None:
    needs_network()
    found, done = played(tmp_path / "ledger", 10.0, ("cable", "kill", "redis", "stop"))
    assert found.counts > 500
    assert (found.lost, found.older) == (0, 0)
    assert done["cable"] > 0


@soak_only
def test_half_an_hour_of_cables_kills_and_new_redis_loses_no_count(tmp_path: Path) -> None:
    needs_network()
    found, _ = played(tmp_path / "ledger", SECONDS, ("cable", "stop", "kill", "cable", "redis", "stop", "redis killed"))
    assert found.counts > SECONDS * 500_000 / 1800
    assert (found.lost, found.older) == (0, 0)
