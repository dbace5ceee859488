"""From single measurements to what people read: medians over the rounds, spreads, ratios, ✓ and ✗, comparisons."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .budgets import ANY_PEER, BUDGETS, CASES, Budget
from .driver import FLOORS, OURS, PEERS

Measurement = dict[str, Any]

REGRESSION = 0.15  # more than that worse, and beyond the noise, is a regression


class Key(NamedTuple):
    """One series of figures, one for each round."""

    case: str
    mode: str
    transport: str
    point: int | None
    figure: str
    subject: str


Series = dict[Key, dict[int, float]]


class Value(NamedTuple):
    """The median over the rounds, and (third quartile − first quartile) / median."""

    median: float
    spread: float


def value_of(figures: Iterable[float]) -> Value:
    found = list(figures)
    median = statistics.median(found)
    if len(found) < 2 or not median:
        return Value(median, 0.0)
    first, _, third = statistics.quantiles(found, n=4, method="inclusive")
    return Value(median, (third - first) / abs(median))


def series_of(measurements: Iterable[Measurement]) -> Series:
    """All series, in the order of their first appearance."""
    found: Series = {}
    for one in measurements:
        for figure, value in one["figures"].items():
            key = Key(one["case"], one["mode"], one["transport"], one.get("point"), figure, one["subject"])
            found.setdefault(key, {})[one["round"]] = value
    return found


def ratio_of(series: Series, key: Key, over: str) -> Value | None:
    """``key`` over the same figure of the subject ``over``, each in its round; None where that was not measured."""
    under = series.get(key._replace(subject=over))
    pairs = [(value, under[number]) for number, value in series[key].items() if under and number in under]
    return value_of(ours / floor for ours, floor in pairs) if pairs else None


def more_is_better(figure: str) -> bool:
    return figure.endswith("_per_s") or figure == "least_served_ratio"


def shown(value: float) -> str:
    """A number with three or four digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# ---------------------------------------------------------------- verdicts


class Verdict(NamedTuple):
    """How one budget stands."""

    budget: Budget
    over: str  # the subject that it was divided by, "" if none
    figure: float  # ours, not divided
    value: Value

    @property
    def mark(self) -> str:
        """✓ or ✗, with a star where the "reach for" is reached; in brackets where it is not judged."""
        star = " ★" if self.budget.is_reached(self.value.median) else ""
        mark = ("✓" if self.budget.holds(self.value.median) else "✗") + star
        return f"({mark})" if self.budget.beside else mark


def verdicts(series: Series) -> Iterator[Verdict]:
    """The budgets for which there are figures."""
    for budget in BUDGETS:
        key = Key(budget.case, budget.mode, budget.transport, budget.point, budget.figure, OURS)
        if key not in series:
            continue
        over = best_peer(series, key) if budget.over == ANY_PEER else budget.over
        value = ratio_of(series, key, over) if over else value_of(series[key].values())
        if value is not None and (over or not budget.over):
            yield Verdict(budget, over, statistics.median(series[key].values()), value)


def best_peer(series: Series, key: Key) -> str:
    """The peer that does best at one figure; "" if none was measured."""
    medians = {
        name: statistics.median(series[theirs].values())
        for name in PEERS
        if (theirs := key._replace(subject=name)) in series
    }
    choose: Callable[..., str] = max if more_is_better(key.figure) else min
    return choose(medians, key=lambda name: medians[name]) if medians else ""


# ---------------------------------------------------------------- tables

Table = list[list[str]]  # the first line has the titles


def verdict_table(found: Iterable[Verdict]) -> Table:
    lines = [["", "budget", "ours", "over", "ratio", "spread", "at least", "reach for", ""]]
    for verdict in found:
        budget, over, figure, value = verdict
        ratio = shown(value.median) if over else ""
        bounds = f"{budget.sign} {budget.limit:,}", f"{budget.sign} {budget.reach:,}"
        lines.append(
            [
                budget.name or budget.case,
                budget.what,
                shown(figure),
                over,
                ratio,
                f"{value.spread:.0%}",
                *bounds,
                verdict.mark,
            ]
        )
    return lines


def figure_table(series: Series) -> Table:
    """Every figure of every subject, with its ratios to the floors."""
    lines = [["", "figure", "mode", "over", "point", "subject", "median", "spread", "× echo", "× workers"]]
    for key in sorted(series, key=lambda key: (list(CASES).index(key.case), key[4], key[1:4])):
        value = value_of(series[key].values())
        ratios = [ratio_of(series, key, floor) for floor in ("echo", "workers")]
        lines.append([
            key.case, key.figure, key.mode, key.transport, "" if key.point is None else f"{key.point:,}", key.subject,
            shown(value.median), f"{value.spread:.0%}", *("" if r is None else shown(r.median) for r in ratios),
        ])  # fmt: skip
    return lines


# What subjects are compared by, side by side: title, and where the figure is.
_COLUMNS: tuple[tuple[str, str, str, int | None, str], ...] = (
    ("sync p50 pinned, µs", "B1", "pinned", None, "p50_us"),
    ("sync p50 free, µs", "B1", "free", None, "p50_us"),
    ("pipelined, calls/s", "B2", "free", None, "calls_per_s"),
    ("8 clients, calls/s", "B3", "free", 8, "calls_per_s"),
    ("1 MiB, MB/s", "B4", "free", 1, "mb_per_s"),
    ("16 MiB, MB/s", "B4", "free", 16, "mb_per_s"),
    ("32 × sleep 0.5, s", "B5", "free", None, "wall_s"),
    ("after 6 s, ms late", "B6", "free", None, "median_delay_ms"),
)


def side_by_side(series: Series) -> Table:
    """A line for each subject, over the transport that it takes on one machine."""
    subjects = [name for name in (*FLOORS, OURS, *PEERS) if any(key.subject == name for key in series)]
    lines = [["subject", *(title for title, *_ in _COLUMNS)]]
    for name in subjects:
        keys = [Key(case, mode, "ipc", point, figure, name) for _, case, mode, point, figure in _COLUMNS]
        lines.append([name, *(shown(value_of(series[key].values()).median) if key in series else "–" for key in keys)])
    return lines


def memory(series: Series) -> Table:
    """What each agent, stored result and connected client takes on the host."""
    names = {"bytes_of_agents": "an agent", "bytes_of_results": "a stored result of 64 bytes",
             "bytes_of_clients": "a connected client"}  # fmt: skip
    found = {key.figure: value_of(values.values()).median for key, values in series.items() if key.figure in names}
    return [["what", "bytes"], *([text, f"{found[name]:,.0f}"] for name, text in names.items() if name in found)]


def plain(table: Table) -> Iterator[str]:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = [is_number(column[1:]) for column in zip(*table, strict=True)]
    for line in table:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        yield "  ".join(cells).rstrip()


def markdown(table: Table) -> Iterator[str]:
    """The table in Markdown."""
    right = [is_number(column[1:]) for column in zip(*table, strict=True)]
    yield "| " + " | ".join(table[0]) + " |"
    yield "|" + "|".join("--:" if r else "---" for r in right) + "|"
    for line in table[1:]:
        yield "| " + " | ".join(line) + " |"


def restructured(table: Table) -> Iterator[str]:
    """The table in reStructuredText; the first column may not be empty."""
    titles = [table[0][0] or "\\", *table[0][1:]]
    lines = [titles, *table[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    yield from (rule, rows[0], rule, *rows[1:], rule)


def is_number(cells: Sequence[str]) -> bool:
    """Whether a column is set to the right."""
    return all(not cell or cell[0].isdigit() or cell[0] == "-" for cell in cells)


def not_offered(measurements: Iterable[Measurement]) -> Iterator[str]:
    """Who was asked for what it does not have."""
    said = set()
    for one in measurements:
        line = f"{one['subject']} in {one['case']}: not measured, {one.get('not_offered')}"
        if one.get("not_offered") and line not in said:
            said.add(line)
            yield line


# ---------------------------------------------------------------- comparisons


class Change(NamedTuple):
    """One figure of ours, then and now; as a ratio to the case's floor where it has one."""

    key: Key
    over: str
    old: Value
    new: Value

    @property
    def relative(self) -> float:
        """The change relative to the old value, above zero if for the better."""
        change = self.new.median / self.old.median - 1
        return change if more_is_better(self.key.figure) else -change

    @property
    def is_beyond_noise(self) -> bool:
        return abs(self.relative) > max(self.old.spread, self.new.spread)

    @property
    def is_regression(self) -> bool:
        return self.relative < -REGRESSION and self.is_beyond_noise

    def __str__(self) -> str:
        where = " ".join(str(part) for part in self.key[:5] if part is not None)
        over = f" / {self.over}" if self.over else ""
        word = "REGRESSION" if self.is_regression else "better" if self.relative > 0 else "worse"
        noise = max(self.old.spread, self.new.spread)
        return (
            f"{where}{over}: {shown(self.old.median)} → {shown(self.new.median)}, "
            f"{abs(self.relative):.0%} {word} (noise {noise:.0%})"
        )


def changes(old: Series, new: Series) -> Iterator[Change]:
    """All figures of ours that are in both."""
    for key in new:
        if key.subject != OURS or key not in old:
            continue
        floor = CASES[key.case].floor
        then, now = ratio_of(old, key, floor), ratio_of(new, key, floor)
        if then is None or now is None:
            floor, then, now = "", value_of(old[key].values()), value_of(new[key].values())
        if then.median:
            yield Change(key, floor, then, now)
