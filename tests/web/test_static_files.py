"""The files of the page: the libraries are as they were fetched, nothing leads elsewhere, and text is never markup."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from zmqagents.web.files import PLACE, routes

OURS = [path for path in sorted(PLACE.rglob("*")) if path.is_file() and path.parent.name != "vendor"]
VENDOR = PLACE / "vendor"
AS_MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|eval\(|new Function|srcdoc"
)
ELSEWHERE = re.compile(r"""(?:src|href|url|import|from|fetch)\s*[=(]?\s*["'(`]\s*(?:https?:)?//""")


def test_the_libraries_are_those_that_were_fetched() -> None:
    told = json.loads((VENDOR / "digests.json").read_text())
    expected = {name: digest for files in told.values() for name, digest in files.items()}
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir() if path.name not in ("digests.json", "LICENSES")
    }  # fmt: skip
    assert found == expected
    licences = (VENDOR / "LICENSES").read_text()
    assert [name for name in told if name not in licences] == []
    assert len(re.findall(r"(?i)permission is hereby granted|apache license", licences)) >= 4


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_text_of_others_is_never_made_into_markup(path: Path) -> None:
    assert AS_MARKUP.findall(path.read_text()) == []


@pytest.mark.parametrize("path", [*OURS, *VENDOR.glob("*.*js")], ids=lambda path: path.name)
def test_no_file_loads_anything_from_elsewhere(path: Path) -> None:
    text = path.read_text()
    assert ELSEWHERE.findall(text) == []
    assert re.findall(r"""(?:from|import)\s*["'](?![./])""", text) == [], "a bare name, which no browser finds"
    assert "sourceMappingURL" not in text


def test_every_file_that_a_page_imports_is_served() -> None:
    served = {route.path for route in routes()}
    for path in OURS:
        for name in re.findall(r"""from "(\.[^"]+)";""", path.read_text()):
            target = (path.parent / name).resolve().relative_to(PLACE.resolve())
            assert f"/static/{target.as_posix()}" in served
    shell = (PLACE / "index.html").read_text()
    for name in re.findall(r"""(?:src|href)="([^"]+)""", shell):
        assert name in served
    assert "<script>" not in shell
    assert " style=" not in shell
