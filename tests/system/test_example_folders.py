"""Each folder of examples prints what its README says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hosts import ROOT, environment, output_of

pytestmark = pytest.mark.program

EXAMPLES = ROOT / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/README.rst"))
BY_THEMSELVES = [folder for folder in FOLDERS if (folder / "run.py").is_file() and folder.name != "two_machines"]


def promised(folder: Path) -> str:
    """The last block of a README: what the example prints."""
    blocks = re.findall(r"::\n\n((?:    .*\n)+)", (folder / "README.rst").read_text(encoding="utf-8"))
    return "".join(line[4:] + "\n" for line in blocks[-1].splitlines())


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    given = environment(PYTHONPATH=str(ROOT))
    command = [sys.executable, "-W", "error", "run.py"]
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize("folder", BY_THEMSELVES, ids=lambda folder: folder.name)
def test_an_example_prints_what_its_readme_says(folder: Path) -> None:
    done = run(folder)
    assert (done.stdout, done.stderr, done.returncode) == (promised(folder), "", 0)


def test_two_machines_call_each_other_with_their_keys() -> None:
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True).returncode != 0:
        pytest.skip("needs root and network namespaces")
    done = run(EXAMPLES / "two_machines")
    if "Operation not permitted" in done.stderr:
        pytest.skip("this machine allows no network namespaces")
    assert (done.stdout, done.stderr, done.returncode) == (promised(EXAMPLES / "two_machines"), "", 0)


def test_the_cells_of_the_notebook_run_and_give_what_the_readme_says() -> None:
    cells = json.loads((EXAMPLES / "notebook" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = [source.splitlines()[-1].partition("  #")[0] for source in code]
    told = ["\n".join(source.splitlines()[:-1]) for source in code]
    program = "import json\n" + "\n".join(f"{before}\nseen = {line}" + "\nsaid.append(repr(seen))"
                                          for before, line in zip(told, last, strict=True))  # fmt: skip
    values = output_of("said = []\n" + program + "\nprint(json.dumps(said))")
    assert values[0].startswith("<AgentProxy ")
    assert values[1:] == promised(EXAMPLES / "notebook").splitlines()


def test_every_folder_has_a_short_readme_and_is_in_the_list() -> None:
    listed = (EXAMPLES / "README.rst").read_text(encoding="utf-8")
    folders = sorted(
        path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name not in ("agents", "__pycache__")
    )
    assert [folder.name for folder in FOLDERS] == folders
    assert all(f"``{name}/``" in listed for name in folders)
    assert all(len((folder / "README.rst").read_text().splitlines()) <= 25 for folder in FOLDERS)
