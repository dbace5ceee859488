"""Pictures of one run for the documentation: SVG, drawn by matplotlib.

latency.svg      how blocking calls are distributed (B1), pinned and free
clients.svg      calls per second against the number of clients at once (B3)
sizes.svg        bytes per second against the size of the value (B4a), there and back, there, and back
cost.svg         what a call costs against agents, stored results and clients (B8)
attacks.svg      calls of one user beside the attacks of another (`attacks`)
soak.svg         memory and latency over time (`soak`)
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no display is needed

from matplotlib import pyplot
from matplotlib.axes import Axes

from . import report
from .driver import FLOORS, OURS, PEERS
from .loops import SHARES

WIDTH, HEIGHT = 9.0, 3.6  # inches
GREYS = ("black", "dimgrey", "darkgrey", "lightgrey", "grey")
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive")

pyplot.rcParams.update({
    "svg.hashsalt": "zmqagents",  # the same figures give the same file
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
})  # fmt: skip


def draw(measurements: list[report.Measurement], directory: Path) -> list[Path]:
    """Draw what there are figures for; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    series = report.series_of(measurements)
    drawn = [
        latency(measurements, directory), clients(series, directory), sizes(series, directory), cost(series, directory)
    ]  # fmt: skip
    return [path for path in drawn if path is not None]


def latency(measurements: list[report.Measurement], directory: Path) -> Path | None:
    """Percentile by percentile: the median over the rounds."""
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for one in measurements:
        if one["case"] == "B1" and one["transport"] == "ipc" and "curve" in one:
            curves.setdefault((one["mode"], one["subject"]), []).append(one["curve"])
    modes = [mode for mode in ("pinned", "free") if any(key[0] == mode for key in curves)]
    if not modes:
        return None
    figure, places = pyplot.subplots(1, len(modes), figsize=(WIDTH, HEIGHT), sharey=True, squeeze=False)
    for place, mode in zip(places[0], modes, strict=True):
        for (found, subject), rounds in curves.items():
            if found == mode:
                line = [statistics.median(values) for values in zip(*rounds, strict=True)]
                place.plot(SHARES, line, label=subject, **style(subject))
        place.set(title=f"blocking calls, {mode}", xlabel="share of the calls", yscale="log", xscale="logit")
        place.set_xticks([0.01, 0.1, 0.5, 0.9, 0.99, 0.999], ["1 %", "10 %", "50 %", "90 %", "99 %", "99.9 %"])
        place.minorticks_off()
    places[0][0].set_ylabel("µs at most")
    places[0][0].yaxis.set_major_formatter("{x:,.0f}")
    return finish(figure, places[0][-1], directory / "latency.svg")


def clients(series: report.Series, directory: Path) -> Path | None:
    """One panel: processes that call at the same time."""
    lines = points_of(series, "B3", "calls_per_s", mode="free", transport="ipc")
    if not lines:
        return None
    figure, place = pyplot.subplots(figsize=(WIDTH / 1.6, HEIGHT))
    for subject, points in lines.items():
        place.plot(list(points), list(points.values()), marker="o", markersize=3, label=subject, **style(subject))
    ticks = sorted({point for points in lines.values() for point in points})
    place.set(xlabel="clients at once", ylabel="calls per second", xscale="log")
    place.set_xticks(ticks, [str(tick) for tick in ticks])
    place.minorticks_off()
    place.set_ylim(bottom=0)
    return finish(figure, place, directory / "clients.svg")


def sizes(series: report.Series, directory: Path) -> Path | None:
    """A panel for each direction; of ours the dotted lines are other kinds of values than bytes."""
    if not points_of(series, "B4a", "echo_mb_per_s"):
        return None
    figure, places = pyplot.subplots(1, 3, figsize=(WIDTH, HEIGHT), sharey=True)
    for place, way in zip(places, ("echo", "send", "receive"), strict=True):
        for subject, points in points_of(series, "B4a", f"{way}_mb_per_s").items():
            place.plot(list(points), list(points.values()), marker="o", markersize=3, label=subject, **style(subject))
        for kind, dots in (("bytearray", ":"), ("numpy", "-.")):
            points = points_of(series, "B4a", f"{way}_{kind}_mb_per_s").get(OURS, {})
            if points:
                label = f"{OURS}, {kind}"
                place.plot(list(points), list(points.values()), label=label, **style(OURS) | {"linestyle": dots})
        ticks = sorted({point for points in points_of(series, "B4a", f"{way}_mb_per_s").values() for point in points})
        place.set(title=way, xlabel="size of the value", xscale="log", yscale="log")
        place.set_xticks(ticks, [f"{tick} KiB" if tick < 1024 else f"{tick >> 10} MiB" for tick in ticks], rotation=45)
        place.minorticks_off()
    places[0].set_ylabel("MB/s")
    places[0].yaxis.set_major_formatter("{x:,.0f}")
    return finish(figure, places[0], directory / "sizes.svg")


def cost(series: report.Series, directory: Path) -> Path | None:
    """Three panels with one axis: flat is good."""
    curves = [("agents", "agents on the host"), ("results", "stored results"), ("clients", "connected clients")]
    lines = [points_of(series, "B8", f"{name}_cost_us").get(OURS, {}) for name, _ in curves]
    if not all(lines):
        return None
    figure, places = pyplot.subplots(1, len(curves), figsize=(WIDTH, HEIGHT * 0.8), sharey=True)
    for place, (_, label), points in zip(places, curves, lines, strict=True):
        place.plot(list(points), list(points.values()), marker="o", markersize=3, **style(OURS))
        place.set_xscale("symlog")
        place.set_xticks(list(points), [f"{point:,}" for point in points])
        place.minorticks_off()
        place.set_xlabel(label)
    places[0].set_ylabel("median of a blocking call, µs")
    places[0].set_ylim(bottom=0)
    return finish(figure, None, directory / "cost.svg")


def soak(samples: list[dict[str, float]], directory: Path) -> Path:
    """Memory and latency over the minutes of a soak; see `soak`."""
    directory.mkdir(parents=True, exist_ok=True)
    minutes = [sample["at_s"] / 60 for sample in samples]
    figure, places = pyplot.subplots(2, 1, figsize=(WIDTH, HEIGHT * 1.4), sharex=True)
    places[0].plot(minutes, [sample["rss_mib"] for sample in samples], **style(OURS))
    places[0].set(ylabel="memory of the host, MiB", ylim=(0, 1.3 * max(sample["rss_mib"] for sample in samples)))
    for name in ("p50_ms", "p99_ms"):
        places[1].plot(minutes, [sample[name] for sample in samples], label=name.partition("_")[0])
    places[1].set(ylabel="latency, ms", xlabel="minutes", yscale="log")
    return finish(figure, places[1], directory / "soak.svg")


def attacks(found: Sequence[Mapping[str, Any]], directory: Path) -> Path:
    """A row for each attack: from the median of the other user's calls to their 99th percentile."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = list(reversed(found))
    figure, place = pyplot.subplots(figsize=(WIDTH, 0.28 * len(rows) + 1))
    for kind, shift, colour in (("plain", 0.15, "tab:red"), ("nested", -0.15, "tab:blue")):
        heights = [row + shift for row in range(len(rows))]
        p50, p99 = ([each[f"{kind}_{name}_ms"] for each in rows] for name in ("p50", "p99"))
        place.hlines(heights, p50, p99, color=colour, linewidth=1.5)
        place.plot(p50, heights, "|", color=colour)
        place.plot(p99, heights, "o", markersize=3.5, color=colour, label=f"{kind} calls: p50 to p99")
    place.axvline(50, color="grey", linestyle="--", linewidth=1)
    place.set_yticks(range(len(rows)), [each["attack"] for each in rows])
    place.set(xlabel="ms", xscale="log")
    return finish(figure, place, directory / "attacks.svg")


def points_of(series: report.Series, case: str, figure: str, **where: str) -> dict[str, dict[int, float]]:
    """For each subject the medians of one figure by point."""
    found: dict[str, dict[int, float]] = {}
    for key, values in series.items():
        fits = key.case == case and key.figure == figure and all(getattr(key, name) == v for name, v in where.items())
        if fits and key.point is not None:
            found.setdefault(key.subject, {})[key.point] = statistics.median(values.values())
    return {subject: dict(sorted(points.items())) for subject, points in found.items()}


def style(subject: str) -> dict[str, Any]:
    """Ours stands out; floors are grey and dashed; each has its colour in every picture."""
    if subject == OURS:
        return {"color": "tab:red", "linewidth": 2, "zorder": 3}
    if subject in FLOORS:
        return {"color": GREYS[FLOORS.index(subject)], "linewidth": 1, "linestyle": "--"}
    return {"color": COLOURS[PEERS.index(subject)], "linewidth": 1}


def finish(figure: Any, legend: Axes | None, path: Path) -> Path:
    if legend is not None:
        legend.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
