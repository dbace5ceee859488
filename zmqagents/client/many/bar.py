"""`progress`: wait for results, and show how many are there and how far the others have come.

In a notebook it is a bar in HTML, in a terminal one of rich (``pip install 'zmqagents[rich]'``) or else a line of text
that changes. Where stderr is no terminal nothing is shown.
"""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple, TextIO, TypeVar

from ... import errors
from ..result import AsyncResult
from ..waiting import as_completed

__all__ = ["progress"]

R = TypeVar("R")
WIDTH = 30  # signs of a bar of text
EVERY_S = 0.1  # how often the bar is drawn anew


class Seen(NamedTuple):
    """What a bar shows. ``come``: how many results are there, and the parts of others that have told how far they are.

    ``told``: what the one that has told something last, of those that came first, has told.
    """

    total: int
    done: int = 0
    failed: int = 0
    come: float = 0.0
    told: str = ""


Show = Callable[[Seen], None]


def progress(
    results: Iterable[AsyncResult[R]], text: str = "calls", *, timeout: float | None = None, file: TextIO | None = None
) -> list[AsyncResult[R]]:
    """Wait until all ``results`` are there, with a bar that says how many are, and return them in their order.

    A call that tells how far it has come (`CallContext.progress`) counts with the part that is done, and the bar shows
    the text. Failed ones count, too, and are counted apart; their errors are raised by `AsyncResult.result`.
    CallTimeout when ``timeout`` seconds are over before the last is there. ``file``: where the bar is drawn; default
    stderr.
    """
    everything = list(results)
    end = None if timeout is None else time.monotonic() + timeout
    coming = as_completed(everything)
    seen = Seen(len(coming))
    with _bar(text, seen.total, file if file is not None else sys.stderr) as show:
        show(seen)
        while coming:
            left_s = EVERY_S if end is None else min(EVERY_S, max(0.0, end - time.monotonic()))
            ended = coming.those_within(left_s)
            failed = sum(result.cancelled() or result.exception() is not None for result in ended)
            seen = _look(seen.total, seen.done + len(ended), seen.failed + failed, coming.pending)
            show(seen)
            if coming and end is not None and time.monotonic() >= end:
                raise errors.CallTimeout(f"{len(coming)} results were not finished within {timeout:.3g} s")
    return everything


def _look(total: int, done: int, failed: int, pending: Collection[AsyncResult[Any]]) -> Seen:
    come, told = float(done), ""
    for result in pending:
        heard = result.progress
        if heard is not None:
            come += heard.fraction or 0.0
            told = told or str(heard)
    return Seen(total, done, failed, come, told)


@contextlib.contextmanager
def _bar(text: str, total: int, file: TextIO | None) -> Iterator[Show]:
    if (display := _notebook()) is not None:
        yield _in_notebook(display, text, total)
    elif file is None or not file.isatty():  # None: a program without a console, such as one of pythonw
        yield lambda seen: None
    else:
        try:
            import rich.progress as drawing
        except ImportError:
            with _in_text(text, file) as show:
                yield show
        else:
            with _by_rich(drawing, text, total, file) as show:
                yield show


def _notebook() -> Any:
    """What displays HTML here, None outside a notebook."""
    shell = sys.modules.get("IPython.core.getipython")
    display = sys.modules.get("IPython.display")
    running = shell.get_ipython() if shell is not None else None
    return display if running is not None and getattr(running, "kernel", None) is not None else None


def _in_notebook(display: Any, text: str, total: int) -> Show:
    began = time.monotonic()
    handle = display.display(display.HTML(as_html(text, Seen(total), 0.0)), display_id=True)

    def show(seen: Seen) -> None:
        handle.update(display.HTML(as_html(text, seen, time.monotonic() - began)))

    return show


def as_html(text: str, seen: Seen, seconds: float) -> str:
    """The bar in HTML."""
    words = html.escape(_words(text, seen, seconds))
    come = f'value="{seen.come:.6g}" max="{max(seen.total, 1)}"'
    return f'<div><progress {come} style="width:20em"></progress> {words}</div>'


@contextlib.contextmanager
def _in_text(text: str, file: TextIO) -> Iterator[Show]:
    began, length = time.monotonic(), 0

    def show(seen: Seen) -> None:
        nonlocal length
        filled = int(WIDTH * seen.come / max(seen.total, 1))
        line = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {_words(text, seen, time.monotonic() - began)}"
        file.write(f"\r{line:<{length}}")
        file.flush()
        length = len(line)

    try:
        yield show
    finally:
        file.write("\n")


@contextlib.contextmanager
def _by_rich(drawing: Any, text: str, total: int, file: TextIO) -> Iterator[Show]:
    from rich.console import Console

    columns = (
        drawing.TextColumn("{task.description}", markup=False), drawing.BarColumn(),
        drawing.TextColumn("{task.fields[count]}", style="progress.download"), drawing.TimeElapsedColumn(),
        drawing.TextColumn("{task.fields[told]}", markup=False),
    )  # fmt: skip
    with drawing.Progress(*columns, console=Console(file=file)) as bars:
        task = bars.add_task(text, total=total, count=_count(Seen(total)), told="")

        def show(seen: Seen) -> None:
            bars.update(task, completed=seen.come, count=_count(seen), told=_printable(seen.told))

        yield show


def _count(seen: Seen) -> str:
    return f"{seen.done} of {seen.total}{f', {seen.failed} failed' if seen.failed else ''}"


def _words(text: str, seen: Seen, seconds: float) -> str:
    told = f", {_printable(seen.told)}" if seen.told else ""
    return f"{text}: {_count(seen)}, {seconds:.1f} s{told}"


def _printable(text: str) -> str:
    """``text`` without what would steer the terminal: it comes from agents."""
    return "".join(c if c.isprintable() else " " for c in text)
