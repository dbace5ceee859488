"""Charts of one run: SVG, as those of `benchmarks.charts`.

cluster-kill.svg     calls a host's death, until its agents answer again: started again at once, and by the lease
cluster-return.svg   Redis and the calls of 200 clients whose host dies
cluster-ledger.svg   counts that clients of test_partitions.py were told, while hosts, cables and Redis fail

    python -m benchmarks.cluster.pictures LEDGER FILE    the last one, of the folder ``ledger`` that the test leaves
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from ..charts import HEIGHT, WIDTH, finish

__all__ = ["draw", "draw_ledger"]

BIN_S = 30
COLOURS = {"its agents": "tab:red", "others": "tab:blue"}


def draw(found: dict[str, Any], directory: Path) -> list[Path]:
    """Draw what there are figures for; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    deaths = {title: found[name] for name, title in (("kill", "started again at once"), ("kill-lease", "nobody tells"))
              if "chart" in found.get(name, ())}  # fmt: skip
    if deaths:
        figure, places = pyplot.subplots(1, len(deaths), figsize=(WIDTH, HEIGHT), sharey=True, squeeze=False)
        for place, (title, case) in zip(places[0], deaths.items(), strict=True):
            waits(place, case)
            place.set_title(title)
        places[0][0].set_ylabel("a call took, ms")
        drawn.append(finish(figure, places[0][-1], directory / "cluster-kill.svg"))
    if "chart" in found.get("return", ()):
        figure, (above, below) = pyplot.subplots(2, 1, figsize=(WIDTH, HEIGHT * 1.4), sharex=True)
        times, rates, _ = zip(*found["return"]["redis"], strict=True)
        above.plot(times, rates, color="tab:green", linewidth=1)
        above.set(ylabel="commands of Redis, 1/s", ylim=(0, None))
        waits(below, found["return"])
        below.set_ylabel("a call took, ms")
        drawn.append(finish(figure, below, directory / "cluster-return.svg"))
    return drawn


def waits(place: Any, case: dict[str, Any]) -> None:
    """Calls by the second in which they were due: the median, and a point for the longest."""
    for name, rows in case["chart"].items():
        times, middle, longest = zip(*rows, strict=True)
        place.plot(times, middle, color=COLOURS[name], linewidth=1, label=f"{name}: p50")
        place.plot(times, longest, ".", color=COLOURS[name], markersize=2, label=f"{name}: longest")
    place.axvline(0, color="grey", linestyle="--", linewidth=1)
    place.set(xlabel="seconds after the host was killed", yscale="log")
    place.yaxis.set_major_formatter("{x:,g}")


def draw_ledger(ledger: Path, file: Path) -> Path:
    """Counts a second, and activations, over time. An epoch is the time when its activation began, in microseconds: a
    count was told between the latest epoch that its client had met and the next one.
    """
    counts, activations = Counter[int](), set[tuple[str, int]]()
    for client in ledger.iterdir():
        latest = 0
        with client.open(encoding="utf-8") as lines:
            for agent, epoch, _ in map(str.split, lines):
                latest = max(latest, int(epoch))
                counts[latest // (BIN_S * 1_000_000)] += 1
                activations.add((agent, int(epoch)))
    moved = Counter(epoch // (BIN_S * 1_000_000) for _, epoch in activations)
    bins = range(min(counts), max(counts))  # but the last, which is no whole one
    minutes = [(each - min(counts)) * BIN_S / 60 for each in bins]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(WIDTH, HEIGHT * 1.2), sharex=True)
    above.plot(minutes, [counts[each] / BIN_S for each in bins], color="tab:blue", linewidth=1)
    above.set(ylabel="counts told, 1/s", ylim=(0, None))
    below.plot(minutes, [moved[each] / BIN_S for each in bins], color="tab:red", linewidth=1)
    below.set(ylabel="agents with a new home, 1/s", ylim=(0, None), xlabel="minutes")
    return finish(figure, None, file)


if __name__ == "__main__":
    draw_ledger(*map(Path, sys.argv[1:3]))
