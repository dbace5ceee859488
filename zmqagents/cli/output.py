"""What is printed: values and tables to stdout, messages to stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from .values import json_line, plain

__all__ = ["say", "show", "show_facts", "show_rows", "show_table"]


def show(value: Any, as_json: bool) -> None:
    """Print a value: one line of JSON, or for the eye a text as it is and the rest as indented JSON."""
    if as_json:
        click.echo(json_line(plain(value)))
    elif isinstance(value, str):
        click.echo(value)
    else:
        click.echo(json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=2))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print chosen fields of ``rows`` under their names; numbers to the right."""
    cells = [list(columns), *([str(row.get(name, "")) for name in columns] for row in rows)]
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
        click.echo(f"{name:<{width}}  {value}".rstrip())


def say(message: str) -> None:
    """A message to the user: stderr."""
    click.echo(message, err=True)
