"""What a user installs, and what a developer types first."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import zmqagents

ROOT = Path(__file__).parents[2]
SOURCES = ("LICENSE", "README.rst", "pyproject.toml", "setup.cfg")

INFO = f"zmqagents-{zmqagents.__version__}.dist-info"

config = configparser.ConfigParser()
config.read(ROOT / "setup.cfg", encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the wheel, name → text. It is built from a copy: building leaves files in the source tree."""
    copy = tmp_path_factory.mktemp("source with a space")
    shutil.copytree(ROOT / "zmqagents", copy / "zmqagents", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests", "benchmarks"):  # they must not come along
        (copy / name).mkdir()
        (copy / name / "__init__.py").touch()
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "out", "."]
    result = subprocess.run([sys.executable, *command], cwd=copy, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    [path] = (copy / "out").iterdir()
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_wheel_holds_the_package_with_its_types_and_nothing_else(wheel: dict[str, str]) -> None:
    assert {name.partition("/")[0] for name in wheel} == {"zmqagents", INFO}
    assert "zmqagents/py.typed" in wheel
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "zmqagents").rglob("*.py")}
    assert {name for name in wheel if name.endswith(".py")} == modules


def test_the_wheel_says_what_it_is(wheel: dict[str, str]) -> None:
    metadata = HeaderParser().parsestr(wheel[f"{INFO}/METADATA"])
    assert metadata["Name"] == "zmqagents"
    assert metadata["Version"] == zmqagents.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (metadata["License"], metadata["License-Expression"])
    assert str(metadata.get_payload()).startswith("zmqagents\n=====")
    assert "Apache License" in next(text for name, text in wheel.items() if name.endswith("/LICENSE"))


def test_the_wheel_installs_the_command(wheel: dict[str, str]) -> None:
    points = [line for line in wheel[f"{INFO}/entry_points.txt"].splitlines() if line]
    assert points[:2] == ["[console_scripts]", "as_server = zmqagents.cli:main"]
    tracing = "zmqagents = zmqagents.tracing.instrumentor:ZmqAgentsInstrumentor"
    assert points[2:] == ["[opentelemetry_instrumentor]", tracing]


def test_the_command_that_is_installed_can_be_loaded() -> None:
    [entry] = importlib.metadata.entry_points(group="console_scripts", name="as_server")
    assert callable(entry.load())


def test_what_the_shortest_script_needs_comes_without_any_extra(wheel: dict[str, str]) -> None:
    required = HeaderParser().parsestr(wheel[f"{INFO}/METADATA"]).get_all("Requires-Dist") or []
    base = {re.split(r"[<>=; ]", line)[0] for line in required if "extra ==" not in line}
    assert base == {"cachetools", "click", "cloudpickle", "msgpack", "pyzmq", "redis", "tomli"}


def test_the_extra_all_has_every_extra_of_a_running_program_and_no_tool_of_ours() -> None:
    extras = config["options.extras_require"]
    [parts] = re.findall(r"zmqagents\[(.*)\]", extras["all"])
    tools = {"all", "benchmarks", "docs", "lint", "test", "test-crewai", "test-values", "test-frameworks", "test-web"}
    assert set(parts.split(",")) == set(extras) - tools


def test_each_extra_that_an_error_or_a_page_names_is_there() -> None:
    pages = [*(ROOT / "zmqagents").rglob("*.py"), *(ROOT / "docs").rglob("*.rst"), *(ROOT / "examples").rglob("*.*"),
             ROOT / "README.rst"]  # fmt: skip
    named = {name for page in pages if page.suffix in (".py", ".rst")
             for found in re.findall(r"zmqagents\[([\w,-]+)\]", page.read_text(encoding="utf-8"))
             for name in found.split(",")}  # fmt: skip
    assert named <= set(config["options.extras_require"])
    assert "models" in named


def test_every_requirement_of_a_user_has_a_lower_bound() -> None:
    result = subprocess.run([sys.executable, ROOT / ".ci" / "lowest.py"], capture_output=True, text=True, check=True)
    assert {line.partition("==")[0] for line in result.stdout.splitlines()} == {
        "a2a-sdk", "cachetools", "click", "cloudpickle", "hdrhistogram", "jsonschema", "mcp", "msgpack", "numpy",
        "openai", "opentelemetry-api", "opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation",
        "opentelemetry-sdk", "prometheus-client", "pyzmq", "redis", "rich", "starlette", "tomli", "uvicorn",
    }  # fmt: skip


def test_the_versions_that_are_promised_are_those_that_are_tested() -> None:
    promised = re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"])
    [tested] = re.findall(r"^VERSIONS = (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert tested.split()[: len(promised)] == promised  # a newer one is tried where it is there
    assert config["options"]["python_requires"] == f">={promised[0]}"
    assert config["mypy"]["python_version"] == promised[0]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r'"([\d.]+|lowest)"', re.findall(r"python: \[(.*)\]", workflow)[0]) == [*promised, "lowest"]


def make(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | (environment or {}), capture_output=True, text=True)


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def venv(directory: Path, python: Path | str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``.ci/venv`` for a new environment, with ``python`` as $PYTHON and ``path`` instead of $PATH."""
    environment = os.environ | {"PYTHON": str(python)}
    if path:
        environment |= {"PATH": os.pathsep.join(map(str, path)), "PYENV_ROOT": str(directory / "none")}
    command = ["/bin/sh", ".ci/venv", str(directory / "venv"), "test"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_an_interpreter_that_is_too_old_is_refused_in_one_line(tmp_path: Path) -> None:
    old = executable(tmp_path / "python3", "#!/bin/sh\nexit 1\n")  # what the version check of an old one ends in
    result = venv(tmp_path, old)
    assert result.returncode == 3
    assert result.stderr == f"PYTHON={old} is not a working Python >= 3.10.\n"
    assert not (tmp_path / "venv").exists()


def test_a_machine_without_python_is_told_so_in_one_line(tmp_path: Path) -> None:
    result = venv(tmp_path, "", tmp_path)
    assert result.returncode == 3
    assert result.stderr.startswith("Python >= 3.10 was not found")
    assert result.stderr.count("\n") == 1


def test_a_python_without_venv_is_told_which_package_to_install(tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError('as Debian has it without python3-venv')")
    python = executable(tmp_path / "python3", f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    result = venv(tmp_path, python)
    assert result.returncode == 4
    assert "apt install python3-venv" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_version_that_this_machine_lacks_is_said_and_not_skipped_in_silence() -> None:
    result = make("test-all", "VERSIONS=3.1")
    assert "3.1: NOT TESTED, no such Python on this machine" in result.stdout
    assert "Python 3.1 was not found" in result.stderr
    assert result.returncode != 0  # nothing at all was tested


TARGETS = ["demo", "test", "test-3.10", "lint", "release", "docs", "bench", "coverage", "clean"]


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target_and_help_names_it(target: str) -> None:
    assert make("--dry-run", target).returncode == 0
    assert f"make {target.replace('3.10', '3.12')} " in make("help").stdout


def test_the_licence_is_the_apache_licence_in_full() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert text.rstrip().endswith("limitations under the License.")
