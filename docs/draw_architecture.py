"""Draw ``docs/architecture.svg`` from the imports of the package, and list the same in ``docs/architecture.rst``.

A *room* is a folder of the package, or a module that lies beside the folders. Every import counts, also one inside a
function or under ``TYPE_CHECKING``. A room stands above all rooms that it imports. Rooms that import each other would
stand side by side, with red arrows. An arrow is left out where a longer way says the same. Only the standard library.

    python docs/draw_architecture.py [--check]
"""

from __future__ import annotations

import ast
import itertools
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pages import DOCS, PACKAGE, fill, settle

Graph = dict[str, set[str]]

TOWERS = ("client", "broker")  # the rooms at the top of the two towers
COLOURS = {"client": "#cfe3f7", "broker": "#fbdcc0", "both": "#e6e6e6", "neither": "#dff0d4"}
MEANING = {
    "client": "the caller's tower",
    "broker": "the host's tower",
    "both": "needed by both",
    "neither": "needed by neither",
}
HEIGHT, GAP, FLOOR, LETTER, MARGIN = 30, 18, 74, 8, 24
SWEEPS = 24


# ---------------------------------------------------------------- what there is


def rooms() -> dict[str, list[Path]]:
    """The rooms by name, each with its files. The package's own ``__init__`` and ``__main__`` are its doors."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("__"):
            found[path.stem] = [path]
        elif (path / "__init__.py").is_file():
            found[path.name] = sorted(path.rglob("*.py"))
    return found


def imported(path: Path) -> Iterator[str]:
    """The names, from the top of the package on, that a file imports from the package: ``wire.messages.Kind``."""
    here = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: Iterable[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = here[: len(here) - node.level + 1] if node.level else []
            names = [".".join([*origin, *filter(None, [node.module]), alias.name]) for alias in node.names]
        yield from (name.partition(".")[2] for name in names if name.partition(".")[0] == PACKAGE.name)


def arrows(files: Mapping[str, list[Path]]) -> Graph:
    """Each room, and the others that it imports."""
    graph: Graph = {}
    for room, paths in files.items():
        tops = {name.partition(".")[0] for path in paths for name in imported(path)}
        graph[room] = {top for top in tops if top in files and top != room}
    return graph


def reach(graph: Graph) -> Graph:
    """Each room, and all that it needs by any way."""
    found: Graph = {}
    for room in graph:
        seen: set[str] = set()
        pending = [room]
        while pending:
            for other in graph[pending.pop()] - seen:
                seen.add(other)
                pending.append(other)
        found[room] = seen
    return found


def floors(graph: Graph, below: Graph) -> dict[str, int]:
    """The floor of each room: one above the highest of those that it imports, and with those that import it back."""
    found: dict[str, int] = {}

    def floor_of(room: str) -> int:
        if room not in found:
            circle = {room} | {other for other in below[room] if room in below[other]}
            lower = set().union(*(graph[member] for member in circle)) - circle
            found.update(dict.fromkeys(circle, 1 + max(map(floor_of, lower), default=-1)))
        return found[room]

    for room in graph:
        floor_of(room)
    return found


def tower_of(room: str, below: Graph) -> str:
    """The tower that a package belongs to, by the packages that import it."""
    needed_by = [top for top in TOWERS if top == room or room in below.get(top, ())]
    return "neither" if not needed_by else needed_by[0] if len(needed_by) == 1 else "both"


def drawn(graph: Graph, below: Graph) -> list[tuple[str, str]]:
    """The arrows that no longer way makes superfluous. Those of a circle are all drawn."""
    found = []
    for room in sorted(graph):
        ways = {third for third in graph[room] if room not in below[third]}
        for other in sorted(graph[room]):
            if room in below[other] or not any(other in below[third] for third in ways - {other}):
                found.append((room, other))
    return found


# ---------------------------------------------------------------- where it stands


class Knot(NamedTuple):
    """A room, or the place on a floor where an arrow passes on its way down; the number tells arrows apart."""

    name: str
    arrow: int = -1


class Plan:
    """Floors with knots in their order, and the middle of each knot in x."""

    def __init__(self, floor: Mapping[str, int], edges: list[tuple[str, str]], first: Mapping[str, str]) -> None:
        self.floors: list[list[Knot]] = [[] for _ in range(1 + max(floor.values()))]
        for room in sorted(floor, key=lambda room: (first[room] == "broker", first[room] == "both", room)):
            self.floors[floor[room]].append(Knot(room))
        self.ways: list[list[Knot]] = []
        self._near: dict[Knot, list[Knot]] = {}
        for number, (top, bottom) in enumerate(edges):
            passed = range(floor[top] - 1, floor[bottom], -1)
            for level in passed:
                self.floors[level].append(Knot(f"{bottom}@{level}", number))
            way = [Knot(top), *(Knot(f"{bottom}@{level}", number) for level in passed), Knot(bottom)]
            self.ways.append(way)
            for upper, lower in itertools.pairwise(way):
                self._near.setdefault(upper, []).append(lower)
                self._near.setdefault(lower, []).append(upper)
        self.x: dict[Knot, float] = {}
        self._arrange()

    def _arrange(self) -> None:
        """Order each floor by the middle of what each knot is tied to, up and down in turn; then move it there."""
        for floor in self.floors:
            self.x.update(zip(floor, spread([width(knot) for knot in floor], [0.0] * len(floor)), strict=True))
        for sweep in range(SWEEPS):
            for floor in self.floors if sweep % 2 else reversed(self.floors):
                wanted = {knot: self._middle(knot) for knot in floor}
                if sweep < SWEEPS - 6:  # at the end only the places change
                    floor.sort(key=lambda knot: (wanted[knot], knot))
                places = spread([width(knot) for knot in floor], [wanted[knot] for knot in floor])
                self.x.update(zip(floor, places, strict=True))
        left = min(self.x[knot] - width(knot) / 2 for knot in self.x) - MARGIN
        self.x = {knot: x - left for knot, x in self.x.items()}

    def _middle(self, knot: Knot) -> float:
        near = self._near.get(knot)
        return self.x[knot] if not near else round(math.fsum(self.x[other] for other in near) / len(near), 1)


def width(knot: Knot) -> int:
    """How much room a knot takes: its name, or an arrow's breadth."""
    return 2 if knot.arrow >= 0 else LETTER * len(knot.name) + 26


def spread(widths: list[int], wanted: list[float]) -> list[float]:
    """Places in the order given, without overlap and as near to the wanted ones as that allows.

    Least squares, by pooling adjacent violators.
    """
    offsets = [0.0]
    for before, after in itertools.pairwise(widths):
        offsets.append(offsets[-1] + (before + after) / 2 + GAP)
    blocks: list[list[float]] = []  # of wanted places less offsets, each block at the mean of its own
    for place, offset in zip(wanted, offsets, strict=False):
        blocks.append([place - offset])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    starts = [_mean(block) for block in blocks for _ in block]
    return [start + offset for start, offset in zip(starts, offsets, strict=False)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)  # exact, so that every version of Python draws the same


# ---------------------------------------------------------------- the drawing and the list


def drawing(files: Mapping[str, list[Path]], graph: Graph, below: Graph) -> str:
    """The picture as SVG."""
    floor = floors(graph, below)
    edges = drawn(graph, below)
    towers = {room: tower_of(room, below) for room in graph}
    plan = Plan(floor, [edge for edge in edges if floor[edge[0]] != floor[edge[1]]], towers)
    top = len(plan.floors) - 1
    rooms_at = {room: (plan.x[Knot(room)], MARGIN + (top - floor[room]) * FLOOR) for room in graph}
    legend, legend_width = _legend(MARGIN * 2 + top * FLOOR + HEIGHT + 10)
    wide = MARGIN + max(legend_width, *(plan.x[knot] + width(knot) / 2 for knot in plan.x))
    high = MARGIN * 2 + top * FLOOR + HEIGHT + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}" width="{wide:.0f}" height="{high}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>',
        f'<rect width="{wide:.0f}" height="{high}" fill="#ffffff"/>',
    ]
    lines += [_curve([(plan.x[knot], _level(knot, floor)) for knot in way], top) for way in plan.ways]
    lines += [_circle(rooms_at[one], rooms_at[other]) for one, other in edges if floor[one] == floor[other]]
    for room, (x, y) in rooms_at.items():
        folder = files[room][0].name == "__init__.py"
        lines += _box(room, x, y, COLOURS[towers[room]], folder)
    return "\n".join([*lines, *legend, "</svg>", ""])


def _level(knot: Knot, floor: Mapping[str, int]) -> int:
    return floor[knot.name] if knot.arrow < 0 else int(knot.name.rpartition("@")[2])


def _curve(points: list[tuple[float, int]], top: int) -> str:
    """An arrow from the foot of the first point to the head of the last, straight down through those between."""
    parts = []
    for number, (x, level) in enumerate(points):
        y = MARGIN + (top - level) * FLOOR
        if not number:
            parts.append(f"M{x:.0f},{y + HEIGHT}")
        else:
            before, under = points[number - 1][0], y - FLOOR + HEIGHT
            bend = (under + y) / 2
            parts.append(f"C{before:.0f},{bend:.0f} {x:.0f},{bend:.0f} {x:.0f},{y - 1}")
            if number < len(points) - 1:
                parts.append(f"V{y + HEIGHT}")
    return f'<path d="{" ".join(parts)}" fill="none" stroke="#777" stroke-width="1.2" marker-end="url(#a)"/>'


def _circle(start: tuple[float, float], end: tuple[float, float]) -> str:
    bend = start[1] - 24
    return (
        f'<path d="M{start[0]:.0f},{start[1]:.0f} C{start[0]:.0f},{bend:.0f} {end[0]:.0f},{bend:.0f} '
        f'{end[0]:.0f},{end[1]:.0f}" fill="none" stroke="#d02020" stroke-width="1.6" marker-end="url(#a)"/>'
    )


def _box(room: str, x: float, y: float, colour: str, folder: bool) -> list[str]:
    wide = width(Knot(room))
    dashes = "" if folder else ' stroke-dasharray="4 3"'
    return [
        f'<rect x="{x - wide / 2:.0f}" y="{y:.0f}" width="{wide}" height="{HEIGHT}" rx="6" fill="{colour}" '
        f'stroke="#555"{dashes}/>',
        f'<text x="{x:.0f}" y="{y + 20:.0f}" text-anchor="middle">{room}</text>',
    ]


def _legend(y: int) -> tuple[list[str], int]:
    lines = []
    x = MARGIN
    for tower, words in MEANING.items():
        lines.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" fill="{COLOURS[tower]}" stroke="#555"/>')
        lines.append(f'<text x="{x + 20}" y="{y}" font-size="12">{words}</text>')
        x += 40 + 7 * len(words)
    return lines, x


def listing(files: Mapping[str, list[Path]], graph: Graph, below: Graph) -> str:
    """The rooms from the top floor down: what each is for, in the words of its docstring, and what it imports."""
    floor = floors(graph, below)
    lines = []
    for room in sorted(graph, key=lambda room: (-floor[room], room)):
        path = files[room][0]
        name = f"{room}/" if path.name == "__init__.py" else f"{room}.py"
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "No docstring."
        sentence = re.match(r".*?[.?!](?=\s|$)|.*", " ".join(docstring.split("\n\n")[0].split()))
        assert sentence is not None
        words = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", sentence[0])
        needs = ", ".join(sorted(graph[room])) or "nothing of the package"
        lines += [f"``{name}``", textwrap.indent(textwrap.fill(f"{words} Imports: {needs}.", 116), "    ")]
    return "\n".join(lines)


def main() -> int:
    files = rooms()
    graph = arrows(files)
    below = reach(graph)
    page = DOCS / "architecture.rst"
    text = fill(page.read_text(encoding="utf-8"), {"rooms": listing(files, graph, below)})
    made = {DOCS / "architecture.svg": drawing(files, graph, below), page: text}
    return settle("Draw docs/architecture.svg from the imports, and list them in docs/architecture.rst.", made)


if __name__ == "__main__":
    sys.exit(main())
