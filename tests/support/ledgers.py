"""What writers and clients were told of counts, against what is kept in the end.

Each agent counts. A count that two were told is kept, or one above what there is in the end, is a lost update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["Found", "judged"]


class Found(NamedTuple):
    """What the ledgers say: how many counts, how many of them lost, how many older epochs after newer ones."""

    counts: int
    lost: int
    older: int
    told: Counter[str]  # how many counts of each agent


def judged(place: Path, kept: Mapping[str, int]) -> Found:
    """Read all files of a folder, whose lines are ``agent epoch count``."""
    rows: list[tuple[str, int, int]] = []
    for file in place.iterdir():
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a process was killed while it wrote the last one
                agent, fence, number = line.split()
                rows.append((agent, int(number), int(fence)))
    times = Counter((name, count) for name, count, _ in rows)
    lost = sum(how_often - 1 for how_often in times.values())
    lost += sum(count > kept[name] for name, count in times)
    older = 0
    last: dict[str, int] = {}
    for name, _, epoch in sorted(rows):
        older += epoch < last.get(name, 0)
        last[name] = epoch
    return Found(len(rows), lost, older, Counter(name for name, _, _ in rows))
