"""A long run at half of what the host can do: does memory stay, do latencies, does anything fail?

    python -m benchmarks.soak [--minutes 10] [--share 0.5] [--clients 4] [--json FILE] [--charts DIR]

First a host's capacity is measured: the highest rate at which the load generator, open loop, still has its answers
in time. Then ``share`` of it goes on for minutes. Each second gives a sample: answers, failures, p50 and p99
(from the moment when a call was due), memory of the host. Exit status 1 if a call failed, if memory after the first
minute grew by more than `MAX_GROWTH_MIB`, or if the second half's p99 is more than `MAX_P99_RATIO` times the first's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path

import psutil

from zmqagents.client import loadgen

from . import machine, ours
from .cases import Options

FIRST_RATE = 1_000.0
PROBE_S = 3.0
GOOD_P99_MS = 100.0  # a probe whose 99th percentile is beyond that, or that fails, is more than the host can do
STEP = 1.25
SETTLE_S = 60.0  # buffers and arenas have their size then
MAX_GROWTH_MIB = 5.0
MAX_P99_RATIO = 2.0
PAYLOAD_BYTES = 64

Sample = dict[str, float]


def capacity(load: loadgen.Load) -> float:
    """Calls per second that the host can answer in time; found by going up in steps."""
    rate, good = FIRST_RATE, 0.0
    while True:
        probe = loadgen.run(dataclasses.replace(load, rate=rate, duration_s=PROBE_S))
        kept_up = not probe.total.errors and probe.total.latency_ms(99) <= GOOD_P99_MS
        print(f"  {rate:,.0f} calls/s: p99 {probe.total.latency_ms(99):.1f} ms", file=sys.stderr)
        if not kept_up and good:
            return good
        good, rate = (rate, rate * STEP) if kept_up else (0.0, rate / 2)  # the first was too much: down first
        if rate < 1:
            raise RuntimeError("the host does not answer even one call a second in time")


def soak(load: loadgen.Load, pid: int) -> list[Sample]:
    """Run ``load`` and look at it and the process ``pid`` every second."""
    process = psutil.Process(pid)
    samples: list[Sample] = []

    def look(at_s: float, second: loadgen.Interval) -> None:
        if second.answered or second.errors:
            samples.append({
                "at_s": at_s, "answered": second.answered, "failed": sum(second.errors.values()),
                "p50_ms": second.latency_ms(50), "p99_ms": second.latency_ms(99),
                "rss_mib": process.memory_info().rss / (1 << 20),
            })  # fmt: skip

    loadgen.run(load, look)
    return samples


def verdicts(samples: list[Sample]) -> dict[str, tuple[bool, str]]:
    """What must hold, whether it does, and the figures that say so."""
    end = samples[-1]["at_s"]
    settled = [sample for sample in samples if sample["at_s"] >= min(SETTLE_S, end / 2)]
    first, second = settled[: len(settled) // 2] or settled, settled[len(settled) // 2 :]
    failed = int(sum(sample["failed"] for sample in samples))
    rss = [sample["rss_mib"] for sample in settled]
    grown = max(rss) - rss[0]
    before, after = (statistics.median(sample["p99_ms"] for sample in half) for half in (first, second))
    return {
        "no call failed": (not failed, f"{failed} of {int(sum(sample['answered'] for sample in samples)) + failed:,}"),
        "memory is flat": (grown <= MAX_GROWTH_MIB, f"{rss[0]:.1f} MiB, {grown:+.1f} MiB at most since it settled"),
        "p99 is flat": (
            after <= MAX_P99_RATIO * before,
            f"{before:.2f} ms in the first half, {after:.2f} in the second",
        ),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Half load for minutes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.5, help="of the capacity")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=float, help="calls per second, instead of a share of the measured capacity")
    parser.add_argument("--store", choices=["local", "redis"], default="local")
    parser.add_argument("--redis-url", default=Options().redis_url)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--charts", type=Path, metavar="DIR")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    facts = machine.describe()
    options = Options(store=given.store, redis_url=given.redis_url)
    with ours.own_keys(), ours.host(options, ours.Echo) as (server, client):
        client.create_agent(ours.Echo, agent_id="echo")
        load = loadgen.Load(client.address, "echo", "aecho", payload_bytes=PAYLOAD_BYTES, clients=given.clients)
        rate = given.rate or given.share * capacity(load)
        print(f"{rate:,.0f} calls/s for {given.minutes:g} minutes", file=sys.stderr)
        assert server.pid is not None
        samples = soak(dataclasses.replace(load, rate=rate, duration_s=given.minutes * 60), server.pid)
    print(*(f"{name}: {value}" for name, value in facts.items()), f"rate: {rate:,.0f} calls/s", "", sep="\n")
    found = verdicts(samples)
    for name, (holds, why) in found.items():
        print(f"{'✓' if holds else '✗'} {name}: {why}")
    if given.json:
        kept = {"machine": facts, "rate": rate, "minutes": given.minutes, "samples": samples}
        given.json.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    if given.charts:
        from . import charts

        charts.soak(samples, given.charts)
    return 0 if all(holds for holds, _ in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
