"""The pages that are made from the source are up to date, and what a page points to is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from zmqagents.telemetry.lines import FIELDS
from zmqagents.telemetry.meters import ATTRIBUTE, EDGES_S, OTHER, Outcome
from zmqagents.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SCRIPTS = ["draw_architecture.py", "write_wire.py"]
PAGES = [ROOT / "README.rst", ROOT / ".github" / "SECURITY.md", *sorted(DOCS.rglob("*.rst"))]


def run(script: str, *arguments: str, root: Path = ROOT, seed: str = "0") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(root / "docs" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its pages in another place, to be changed there."""
    for name in ("docs", "zmqagents"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.program
@pytest.mark.parametrize("seed", ["1", "2"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_makes_is_up_to_date_whatever_the_order_of_sets(script: str, seed: str) -> None:
    result = run(script, "--check", seed=seed)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), "run `make docs`"


@pytest.mark.program
def test_a_new_import_is_missed_in_the_drawing_until_it_is_drawn_again(copy: Path) -> None:
    (copy / "zmqagents" / "newcomer.py").write_text('"""Comes late."""\nfrom .errors import ConfigError\n')
    missed = run("draw_architecture.py", "--check", root=copy)
    assert missed.returncode == 1
    assert "docs/architecture.svg is not up to date: run `make docs`" in missed.stdout
    assert run("draw_architecture.py", root=copy).returncode == 0
    assert run("draw_architecture.py", "--check", root=copy).returncode == 0
    assert ">newcomer</text>" in (copy / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert "Comes late. Imports: errors." in (copy / "docs" / "architecture.rst").read_text(encoding="utf-8")


@pytest.mark.program
def test_rooms_that_import_each_other_are_drawn_with_a_red_arrow(copy: Path) -> None:
    assert "#d02020" not in (copy / "docs" / "architecture.svg").read_text(encoding="utf-8")
    (copy / "zmqagents" / "one.py").write_text("from . import two\n")
    (copy / "zmqagents" / "two.py").write_text("def later():\n    import zmqagents.one\n")
    assert run("draw_architecture.py", root=copy).returncode == 0
    assert (copy / "docs" / "architecture.svg").read_text(encoding="utf-8").count("#d02020") == 2


def test_the_drawing_shows_each_room_once() -> None:
    drawn = [
        text.text for text in ElementTree.parse(DOCS / "architecture.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    rooms = {path.stem for path in (ROOT / "zmqagents").glob("[!_]*.py")}
    rooms |= {path.parent.name for path in (ROOT / "zmqagents").glob("*/__init__.py")}
    assert sorted(text for text in drawn if text in rooms) == sorted(rooms)


@pytest.mark.program
@pytest.mark.parametrize(
    ("now", "then"), [("    BUSY = 3", "    BUSY = 4"), ("MAX_DEPS = 4096", "MAX_DEPS = 2 * 4096"), ("QQI", "QIQ")]
)
def test_a_change_of_the_protocol_is_missed_in_its_page(copy: Path, now: str, then: str) -> None:
    [module] = [path for path in (copy / "zmqagents").rglob("*.py") if "\nclass Kind(" in path.read_text()]
    text = module.read_text()
    assert now in text
    module.write_text(text.replace(now, then))
    missed = run("write_wire.py", "--check", root=copy)
    assert (missed.returncode, missed.stdout) == (1, "docs/wire.rst is not up to date: run `make docs`\n")


@pytest.mark.program
def test_a_kind_that_the_table_lacks_is_named(copy: Path) -> None:
    [module] = [path for path in (copy / "zmqagents").rglob("*.py") if "\nclass Kind(" in path.read_text()]
    module.write_text(module.read_text().replace("    BYE = 6\n", "    BYE = 6\n    SHRUG = 19\n"))
    result = run("write_wire.py", "--check", root=copy)
    assert result.returncode != 0
    assert result.stderr == "the docstring's table and the class Kind differ in ``SHRUG``\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    from_the_top = re.findall(r"\b((?:docs|packaging|examples|benchmarks|\.github)/[\w./-]*\w)", text)
    beside_it = re.findall(r"^\.\. (?:image|include):: (\S+)", text, re.MULTILINE) + re.findall(r"`__? <(\S+)>", text)
    missing = [name for name in from_the_top if not (ROOT / name).exists()]
    missing += [name for name in beside_it if "://" not in name and not (page.parent / name).exists()]
    assert missing == []


def test_every_decision_is_in_the_index_and_is_short() -> None:
    index = (DOCS / "decisions" / "README.rst").read_text(encoding="utf-8")
    pages = sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.rst"))
    assert re.findall(r"^\| ``([\w-]+\.rst)``", index, re.MULTILINE) == pages
    for name in pages:
        assert len((DOCS / "decisions" / name).read_text(encoding="utf-8").splitlines()) <= 40


def test_every_metric_and_every_field_of_a_log_line_is_in_its_page() -> None:
    text = (DOCS / "seeing.rst").read_text(encoding="utf-8")
    for metric in METRICS:
        labels = ", ".join(f"``{label}``" for label in metric.labels) or "–"
        assert f"   * - ``{metric.name}`` ({metric.kind})\n     - {labels}\n     - {metric.help}\n" in text
    assert set(re.findall(r"\* - ``(zmqagents_\w+)``", text)) == {metric.name for metric in METRICS}
    for name in (*FIELDS, *(outcome.name.lower() for outcome in Outcome), OTHER, ATTRIBUTE):
        assert f"``{name}``" in text, name
    edges = re.search(r"the edges ([\d., and]+) ms, ([\d, and]+) s", text)
    assert edges is not None
    milliseconds, seconds = (re.findall(r"[\d.]+", group) for group in edges.groups())
    assert [float(edge) / 1000 for edge in milliseconds] + [float(edge) for edge in seconds] == list(EDGES_S)
