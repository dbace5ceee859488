"""One function for each case: it sets up a cluster, does what the case is about, and gives the figures.

Each takes its `Sizes`, ``quick`` ones for a look. Series for charts are figures that are lists.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

import zmqagents.errors

from . import calls
from .load import Called, Load, failed, p99, read
from .world import Look, Transport, free_port, quantile, world

__all__ = ["CASES", "QUICK", "Figures", "Sizes"]

Figures = dict[str, Any]
RATE = 500.0
BESIDE_RATE = 200.0
BEFORE_S = 4.0  # calls at a rate, before anything is done to them
SAMPLE_S = 0.1  # a point of a chart
MIB = 1 << 20


class Sizes(NamedTuple):
    """How much of everything."""

    agents: int = 10_000
    made: int = 6_000
    calls: int = 1_000
    rounds: int = 7
    clients: int = 200
    upgraded: int = 600
    hosts: int = 100
    simulated: int = 100_000
    after_s: float = 6.0


QUICK = Sizes(600, 1_000, 200, 3, 40, 60, 20, 4_000, 4.0)


def activation(transport: Transport, sizes: Sizes) -> Figures:
    """Agents made by their first calls as fast as it goes: on one host, then on three."""
    rates, shares = [], []
    for hosts in (1, 3):
        with world(transport) as found:
            found.start_all(hosts)
            found.fill("Echo", "warm", 200)
            before = found.redis_seconds()
            took = found.fill("Echo", "a", sizes.made, clients=2)
            rates.append(sizes.made / took)
            shares.append((found.redis_seconds() - before) / took)
    return {
        "one_per_s": rates[0], "three_per_s": rates[1], "three_of_one": rates[1] / rates[0], "redis_share": max(shares)
    }  # fmt: skip


def blocking(transport: Transport, sizes: Sizes) -> Figures:
    """Blocking calls by each way."""
    with world(transport) as found:
        found.start_all(3)
        return dict(calls.measure(found, sizes.calls, sizes.rounds, sizes.calls))


def drain(transport: Transport, sizes: Sizes) -> Figures:
    """One of three hosts gives a third of the agents away under calls."""
    with world(transport) as found:
        found.start_all(3)
        found.fill("Account", "a", sizes.agents, clients=2)
        leaving = found.hosts[1]
        count = sum(home == leaving.name for home in found.homes().values())
        with Load(found, sizes.agents, RATE) as load:
            time.sleep(BEFORE_S)
            begin = time.monotonic()
            status = leaving.stop()
            end = time.monotonic()
            time.sleep(1.0)
            done = load.end()
    return {
        "agents": count, "took_s": end - begin, "agents_per_s": count / (end - begin), "status": status,
        "failed": len([call for call in done if call.error]), "errors": dict(failed(done)),
        "before_p99_ms": p99(done, 0, begin), "p99_ms": p99(done, begin, end + 1.0), "calls": len(done),
    }  # fmt: skip


def upgrade(transport: Transport, sizes: Sizes) -> Figures:
    """All hosts exchanged: for what reads version 2 and writes 1, then for what writes 2, and back in two steps."""
    steps = (("2", "1"), ("2", "2"), ("2", "1"))
    statuses, stops = [], []
    ports = [free_port() for _ in range(4)]  # one more than hosts: a new one comes before an old one goes
    with world(transport) as found:
        for each in ports[:3]:
            found.start("--port", str(each))
        found.wait_for(3)
        found.fill("Account", "a", sizes.upgraded)
        seeds = ",".join(f"127.0.0.1:{port}" for port in ports)
        with Load(found, sizes.upgraded, RATE, seeds=seeds) as load:
            time.sleep(1.0)
            for version, writes in steps:
                for old in found.hosts[-3:]:
                    port = str(ports[len(found.hosts) % 4])
                    found.start("--port", port, BENCH_STATE_VERSION=version, BENCH_STATE_WRITES=writes)
                    began = time.monotonic()
                    statuses.append(old.stop())
                    stops.append(round(time.monotonic() - began, 2))
            done = load.end()
    return {
        "failed": len([call for call in done if call.error]) + sum(map(bool, statuses)), "errors": dict(failed(done)),
        "exchanged": len(statuses), "stops_s": stops,
        "p99_ms": p99(done), "worst_ms": max(call.ms for call in done), "calls": len(done),
    }  # fmt: skip


def kill(transport: Transport, sizes: Sizes, *words: str) -> Figures:
    """A host of three is killed under calls; with ``--restart`` it is started again at once."""
    with world(transport) as found:
        found.start_all(3, *words)
        found.fill("Account", "a", sizes.agents, clients=2)
        homes, victim = found.homes(), found.hosts[1]
        with found.looked_at() as looks, Load(found, sizes.agents, RATE, timeout_s=10.0) as load:
            time.sleep(BEFORE_S)
            killed = time.monotonic()
            victim.kill()
            time.sleep(found.lease_s + sizes.after_s)
            done = load.end()
        orphans = {number for number in range(sizes.agents) if homes[f"Account/a-{number}"] == victim.name}
        lease_s = found.lease_s
    end = killed + lease_s + sizes.after_s
    theirs = [call for call in done if call.agent in orphans]
    others = [call for call in done if call.agent not in orphans]
    # Calls that came after the death and had to wait for a new home: all of them are answered then.
    waited = [call.end - killed for call in theirs if call.due >= killed and call.ms > 250]
    back_s = max(waited, default=0.0)
    return {
        "back_s": back_s, "back_beyond_lease_s": back_s - lease_s, "latest_s": max(call.ms for call in done) / 1e3 - 10,
        "others_before_ms": p99(others, 0, killed), "others_after_ms": p99(others, killed, end),
        "others_ratio": p99(others, killed, end) / p99(others, killed - BEFORE_S, killed),
        "lost": failed(done).get("CallLost", 0), "errors": dict(failed(done)), "untyped": untyped(done),
        "calls": len(done), "chart": chart(done, orphans, killed), "redis": redis_chart(looks, killed),
    }  # fmt: skip


def kill_again(transport: Transport, sizes: Sizes) -> Figures:
    """With ``--restart``."""
    return kill(transport, sizes, "--restart")


def come_back(transport: Transport, sizes: Sizes) -> Figures:
    """Clients that all asked one host come back by the others when it has died, beside a client that asked those."""
    agents = min(sizes.agents, 3000)
    with world(transport) as found:
        found.start_all(3)
        found.fill("Account", "a", agents, clients=2)
        homes, victim = found.homes(), found.hosts[0]
        folder = found.home / "crowd"
        folder.mkdir()
        crowd = found.program("crowd", found.addresses, str(sizes.clients), str(agents), "1.0", str(folder))
        assert crowd.stdout is not None
        crowd.stdout.readline()
        seeds = ",".join(host.address for host in found.hosts[1:])
        with found.looked_at() as looks, Load(found, agents, BESIDE_RATE, seeds=seeds) as load:
            time.sleep(BEFORE_S)
            killed = time.monotonic()
            victim.kill()
            time.sleep(found.lease_s + sizes.after_s)
            beside = load.end()
        crowd.communicate()
        clients = [read(file) for file in folder.iterdir()]
        orphans = {number for number in range(agents) if homes[f"Account/a-{number}"] == victim.name}
    done = [call for calls in clients for call in calls]
    others = [call for call in beside if call.agent not in orphans]
    before = quantile([look.commands_per_s for look in looks if killed - BEFORE_S + 1 < look.at < killed], 0.5)
    later = [[call.end for call in calls if call.end > killed and not call.error] for calls in clients]
    back_s = max(min(ends, default=math.inf) for ends in later) - killed
    return {
        "others_before_ms": p99(others, 0, killed), "others_after_ms": p99(others, killed),
        "others_ratio": p99(others, killed) / p99(others, 0, killed), "errors": dict(failed(done)),
        "back_s": back_s, "untyped": untyped([*done, *beside]), "calls": len(done) + len(beside),
        "status": crowd.returncode, "before_per_s": before, "peak_per_s": peak(looks, killed),
        "peak_ratio": peak(looks, killed) / before, "chart": chart(beside, orphans, killed),
        "redis": redis_chart(looks, killed),
    }  # fmt: skip


def hundred(transport: Transport, sizes: Sizes) -> Figures:
    """Many hosts, most of them simulated, and many agents."""
    with world(transport, lease_s=15.0) as found:
        whole = found.start()
        with found.cluster() as cluster:
            cluster.hosts()
            process = psutil.Process(whole.pid)
            time.sleep(1.0)
            before = process.memory_info().rss
            url, numbers = f"unix://{found.socket}", (sizes.hosts, sizes.simulated, 15.0)
            simulated = found.program("simulated", url, "bench", *map(str, numbers))
            assert simulated.stdout is not None
            told: Figures = json.loads(simulated.stdout.readline())
            members = len(cluster.hosts())
            after = process.memory_info().rss
            keys = int(found.client.info("memory")["used_memory"])
        simulated.send_signal(signal.SIGKILL)
        simulated.communicate()
    return {**told, "members": members, "more_mib": (after - before) / MIB, "redis_mib": keys / MIB}


# ---------------------------------------------------------------- what is made of calls and looks


def untyped(done: list[Called]) -> int:
    """Calls that ended in an error that is none of the package's."""
    return sum(bool(call.error) and not hasattr(zmqagents.errors, call.error) for call in done)


def chart(done: list[Called], orphans: set[int], killed: float) -> dict[str, list[list[float]]]:
    """For calls to the dead host's agents and to the others: second, p50 and longest in ms, of each `SAMPLE_S`."""
    found: dict[str, list[list[float]]] = {}
    for name, is_theirs in (("its agents", True), ("others", False)):
        pieces: dict[int, list[float]] = {}
        for call in done:
            if (call.agent in orphans) is is_theirs:
                pieces.setdefault(math.floor((call.due - killed) / SAMPLE_S), []).append(call.ms)
        found[name] = [[at * SAMPLE_S, quantile(ms, 0.5), max(ms)] for at, ms in sorted(pieces.items())]
    return found


def redis_chart(looks: list[Look], killed: float) -> list[list[float]]:
    """Second, commands a second, share of a core."""
    return [[look.at - killed, look.commands_per_s, look.share] for look in looks]


def peak(looks: list[Look], killed: float) -> float:
    """Commands a second in the busiest half second after the death."""
    rates = [look.commands_per_s for look in looks if look.at > killed]
    return max((sum(rates[at : at + 5]) / 5 for at in range(max(1, len(rates) - 4))), default=0.0)


CASES: dict[str, Callable[[Transport, Sizes], Figures]] = {
    "activation": activation,
    "calls": blocking,
    "drain": drain,
    "upgrade": upgrade,
    "kill": kill_again,
    "kill-lease": kill,
    "return": come_back,
    "hundred": hundred,
}
