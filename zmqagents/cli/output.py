"""What is printed: values and tables to stdout, messages to stderr.

Names, texts and errors come from agents and from other callers, so they might be meant for the terminal rather than
for its user. What is not printable (escape sequences, newlines in a table, marks that turn the direction of writing)
is shown as an escape, ``\\x1b``. Only the text that a call gives is written as it is where stdout is no terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..telemetry.lines import visible
from .values import json_text

__all__ = ["say", "show", "show_facts", "show_rows", "show_table", "visible"]


def show(value: Any, as_json: bool) -> None:
    """Print a value: one line of JSON, or for the eye a text as it is and the rest as indented JSON."""
    if as_json:
        click.echo(json_text(value))
    elif isinstance(value, str):
        click.echo(visible(value, "\n\t") if sys.stdout.isatty() else value)
    else:
        click.echo(json_text(value, indent=2))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print chosen fields of ``rows`` under their names; numbers to the right."""
    cells = [list(columns), *([visible(str(row.get(name, ""))) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [bool(rows) and isinstance(rows[0].get(name), (int, float)) for name in columns]
    for line in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        click.echo("  ".join(padded).rstrip())


def show_rows(rows: list[dict[str, Any]], columns: Sequence[str], as_json: bool, if_none: str) -> None:
    if as_json:
        show(rows, True)
    elif rows:
        show_table(rows, columns)
    else:
        say(if_none)


def show_facts(facts: Mapping[str, str]) -> None:
    """Print ``name  value`` lines, the values below each other."""
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(visible(f"{name:<{width}}  {value}".rstrip()))


def say(message: str) -> None:
    """A message to the user: stderr."""
    click.echo(visible(message, "\n\t"), err=True)
