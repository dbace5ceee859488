"""Pages that a script makes in part: the parts between ``.. begin NAME`` and ``.. end NAME``, and whole files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["DOCS", "PACKAGE", "fill", "settle", "table"]

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "zmqagents"


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """``page`` with each block between its two marks. SystemExit for a page without them."""
    for name, block in blocks.items():
        begin, end = f".. begin {name}\n", f".. end {name}\n"
        if begin not in page or end not in page:
            raise SystemExit(f"the page has no marks '.. begin {name}' and '.. end {name}'")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{block.strip()}\n\n{end}{rest.partition(end)[2]}"
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A simple table in reStructuredText; an empty first cell would continue the row above, so there is none."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join([rule, lines[0].rstrip(), rule, *(line.rstrip() for line in lines[1:]), rule])


def settle(description: str, files: Mapping[Path, str]) -> int:
    """Write ``files``; with ``--check`` only name those that are not up to date. The exit status: 1 for any."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    check = parser.parse_args().check
    status = 0
    for path, text in files.items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"docs/{path.name} is not up to date: run `make docs`")
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"docs/{path.name} written")
    return status
