"""The reference leaves nothing out, and what the pages say of the code is so."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click
import pytest

import reference_tables
import zmqagents
from zmqagents import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TABLES = reference_tables.option_tables()
VERBS = dict(reference_tables.verbs())


def rows(verb: str) -> str:
    """The section of one verb."""
    section = re.search(
        rf"^{re.escape(verb)}\n-+\n(.*?)(?=^as_server [\w ]+\n-+\n|\Z)", TABLES, re.MULTILINE | re.DOTALL
    )
    return section[1] if section else ""


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_of_every_verb_is_in_the_reference_with_its_variable(verb: str) -> None:
    options = [param for param in VERBS[verb].params if isinstance(param, click.Option)]
    section = rows(verb)
    for option in options:
        assert f"``{option.opts[0]}``" in section
        assert option.help
        assert not option.envvar or f"``{option.envvar}``" in section
    assert section


def test_a_default_is_the_one_of_the_code() -> None:
    start = rows("as_server start")
    assert "- ``--capacity``\n     - ``AS_SERVER_CAPACITY``\n     - ``32``" in start
    assert "- ``--max-message-mb``\n     - ``AS_SERVER_MAX_MESSAGE_MB``\n     - ``256``" in start


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "api.rst").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:class|function):: zmqagents\.(\w+)$", page, re.MULTILINE)
    assert set(named) == set(zmqagents.__all__) - set(errors.__all__) - {"__version__"}
    for name, kind in re.findall(r"^\.\. auto(?=(?:class|function):: zmqagents\.(\w+)$)(\w+)", page, re.MULTILINE):
        assert (kind == "class") is inspect.isclass(getattr(zmqagents, name))


def test_every_error_is_in_the_reference_with_its_exit_code() -> None:
    table = reference_tables.error_table()
    kinds = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
    assert re.findall(r"^\.\. _error-(\w+):$", table, re.MULTILINE) == kinds
    assert "exit code 6 of ``as_server``" in table[table.index("_error-CallTimeout") :][:300]


SOURCE = " ".join(
    " ".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8")).split())
    for folder in (ROOT / "zmqagents", Path(click.__file__).parent)
    for path in folder.rglob("*.py")
)


def test_each_text_of_the_troubleshooting_page_is_one_that_the_code_says() -> None:
    page = (DOCS / "troubleshooting.rst").read_text(encoding="utf-8")
    texts = re.findall(r"^   \* - ``(.*)``$", page, re.MULTILINE)
    assert len(texts) >= 20
    assert [text for text in texts if text not in SOURCE] == []


def test_each_exit_code_of_the_page_is_one_of_the_help() -> None:
    page = (DOCS / "reference" / "exit_codes.rst").read_text(encoding="utf-8")
    told = " ".join((VERBS["as_server start"].help or "").split()) + str(sys.modules["zmqagents.cli"].__doc__)
    assert all(re.search(rf"\b{code}\b", told) for code in re.findall(r"^(\d+) ", page, re.MULTILINE))


def test_the_readme_is_short_and_begins_with_what_to_type() -> None:
    lines = (ROOT / "README.rst").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert any("make demo" in line for line in lines[:20])
    assert any("make test" in line for line in lines[:20])


def test_no_word_in_a_table_is_taken_for_a_link() -> None:
    cells = [re.sub("``.*?``", "", line) for line in TABLES.splitlines() if re.match(r"   [* ] - ", line)]
    assert [cell for cell in cells if re.search(r"\w_(?!\w)", cell)] == []
