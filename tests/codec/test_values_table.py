"""The table of ``docs/values.rst`` says what becomes of a value, and no value changes in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

import values_table
from values_table import COLUMNS, ERRORS, ROWS

PAGE = Path(__file__).parents[2] / "docs" / "values.rst"
DOCUMENTED = values_table.read_table(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ROWS)
def test_each_value_arrives_as_the_table_says(name: str) -> None:
    try:
        assert values_table.cells(name) == DOCUMENTED[name]
    except values_table.NotInstalled as exc:
        pytest.skip(f"{exc} is not installed")


def test_the_table_has_these_rows_and_an_explanation_of_each_entry() -> None:
    assert list(DOCUMENTED) == list(ROWS)
    page = PAGE.read_text(encoding="utf-8")
    for number, text in ERRORS.items():
        assert f"error {number}" in {entry for row in DOCUMENTED.values() for entry in row}
        assert " ".join(text.split()) in " ".join(page.replace("``", "").split())
    for name, row in DOCUMENTED.items():
        assert len(row) == len(COLUMNS)
        for column, entry in zip(COLUMNS, row, strict=True):
            is_asked_for = column == "plain_types" or name == "an exception of the program"
            assert entry == "equal" or entry.startswith("error ") or (entry.startswith("plain ") and is_asked_for)


def test_only_what_is_equal_arrives_at_a_private_host() -> None:
    at = COLUMNS.index("private host")
    assert {name for name, row in DOCUMENTED.items() if row[at] != "equal"} == {"a lock, an open file, a generator"}
