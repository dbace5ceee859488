"""`progress`: wait for results, and show how many are there.

In a notebook it is a bar in HTML, in a terminal one of rich (``pip install 'zmqagents[rich]'``) or else a line of text
that changes. Where stderr is no terminal nothing is shown.
"""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from ..result import AsyncResult
from ..waiting import as_completed

__all__ = ["progress"]

R = TypeVar("R")
Show = Callable[[int, int], None]  # how many are there and have failed
WIDTH = 30  # signs of a bar of text


def progress(
    results: Iterable[AsyncResult[R]], text: str = "calls", *, timeout: float | None = None, file: TextIO | None = None
) -> list[AsyncResult[R]]:
    """Wait until all ``results`` are there, with a bar that says how many are, and return them in their order.

    Failed ones count, too, and are counted apart; their errors are raised by `AsyncResult.result`. CallTimeout when
    ``timeout`` seconds are over before the last is there. ``file``: where the bar is drawn; default stderr.
    """
    everything = list(results)
    done = failed = 0
    with _bar(text, len(everything), file if file is not None else sys.stderr) as show:
        show(0, 0)
        for result in as_completed(everything, timeout):
            done += 1
            failed += result.cancelled() or result.exception() is not None
            show(done, failed)
    return everything


@contextlib.contextmanager
def _bar(text: str, total: int, file: TextIO) -> Iterator[Show]:
    if (display := _notebook()) is not None:
        yield _in_notebook(display, text, total)
    elif not file.isatty():
        yield lambda done, failed: None
    else:
        try:
            import rich.progress as drawing
        except ImportError:
            with _in_text(text, total, file) as show:
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
    handle = display.display(display.HTML(as_html(text, 0, 0, total, 0.0)), display_id=True)

    def show(done: int, failed: int) -> None:
        handle.update(display.HTML(as_html(text, done, failed, total, time.monotonic() - began)))

    return show


def as_html(text: str, done: int, failed: int, total: int, seconds: float) -> str:
    """The bar in HTML."""
    words = html.escape(_words(text, done, failed, total, seconds))
    return f'<div><progress value="{done}" max="{max(total, 1)}" style="width:20em"></progress> {words}</div>'


@contextlib.contextmanager
def _in_text(text: str, total: int, file: TextIO) -> Iterator[Show]:
    began = time.monotonic()

    def show(done: int, failed: int) -> None:
        filled = WIDTH * done // max(total, 1)
        words = _words(text, done, failed, total, time.monotonic() - began)
        file.write(f"\r[{'#' * filled}{'.' * (WIDTH - filled)}] {words}")
        file.flush()

    try:
        yield show
    finally:
        file.write("\n")


@contextlib.contextmanager
def _by_rich(drawing: Any, text: str, total: int, file: TextIO) -> Iterator[Show]:
    from rich.console import Console

    columns = (
        drawing.TextColumn("{task.description}"), drawing.BarColumn(), drawing.MofNCompleteColumn(),
        drawing.TextColumn("{task.fields[failed]}"), drawing.TimeElapsedColumn(),
    )  # fmt: skip
    with drawing.Progress(*columns, console=Console(file=file)) as bars:
        task = bars.add_task(text, total=total, failed="")

        def show(done: int, failed: int) -> None:
            bars.update(task, completed=done, failed=f"{failed} failed" if failed else "")

        yield show


def _words(text: str, done: int, failed: int, total: int, seconds: float) -> str:
    return f"{text}: {done} of {total}{f', {failed} failed' if failed else ''}, {seconds:.1f} s"
