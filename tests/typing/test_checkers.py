"""mypy and pyright, both strict, on what this package tells them; `make lint` runs this, where both are installed."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("pyright")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXAMPLES = [ROOT / "examples" / "index" / "demo.py", *sorted((ROOT / "examples" / "index" / "agents").glob("*.py"))]
LIMIT_S = 300

pytestmark = [pytest.mark.program, pytest.mark.timeout(2 * LIMIT_S)]

Errors = dict[tuple[str, int], str]  # by file and line


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(tmp_path: Path, *files: Path) -> Errors:
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nmypy_path = {ROOT}:{HERE}:{tmp_path}\nexplicit_package_bases = true\n")
    options = ["--strict", "--config-file", str(config), "--no-error-summary", "--show-absolute-path", "--no-pretty"]
    said = run("mypy", *options, "--cache-dir", str(tmp_path / "cache"), *map(str, files), cwd=tmp_path)
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", said, re.M)
    return {(Path(path).name, int(line)): text for path, line, text in found}


@functools.cache
def why_no_pyright() -> str:
    """The package fetches pyright itself at its first run; what it says where that cannot be had, else ""."""
    command = [sys.executable, "-m", "pyright", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason"])[-1]


def pyright(tmp_path: Path, *files: Path) -> Errors:
    if reason := why_no_pyright():
        pytest.skip(f"pyright cannot be started here: {reason}")
    config = tmp_path / "pyrightconfig.json"
    for file in files:  # pyright looks only at what lies beside its configuration
        if file.parent != tmp_path:
            shutil.copy(file, tmp_path / file.name)
    settings = {
        "include": [file.name for file in files], "extraPaths": [str(ROOT), str(HERE), str(tmp_path)],
        "typeCheckingMode": "strict", "pythonVersion": "3.10",
    }  # fmt: skip
    config.write_text(json.dumps(settings))
    options = ["--outputjson", "--pythonpath", sys.executable, "--project", str(config)]
    said = json.loads(run("pyright", *options, cwd=tmp_path))
    assert said["summary"]["filesAnalyzed"] == len(files)
    errors = [each for each in said["generalDiagnostics"] if each["severity"] == "error"]
    return {(Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"] for each in errors}


@pytest.fixture(params=[mypy, pyright])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Errors]:
    checker: Callable[..., Errors] = request.param
    return lambda *files: checker(tmp_path, *files)


def test_proxies_and_results_have_the_types_of_their_class(check: Callable[..., Errors]) -> None:
    assert check(HERE / "proxies.py") == {}


def test_each_of_thirty_mistakes_is_found_and_nothing_else(check: Callable[..., Errors]) -> None:
    path = HERE / "mistakes.py"
    wrong = [number for number, line in enumerate(path.read_text().splitlines(), 1) if "  # wrong" in line]
    assert len(wrong) == 31
    assert sorted(line for _, line in check(path)) == wrong


STATION = """
from __future__ import annotations

import datetime as dt
import enum
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

from zmqagents import AgentBase, async_func, method


class Unit(enum.Enum):
    CELSIUS = "C"


@dataclass
class Reading:
    degrees: float
    at: dt.datetime = field(default_factory=dt.datetime.now)
    unit: Unit = Unit.CELSIUS


class Place(NamedTuple):
    x: int
    y: int = 0


class Limits(TypedDict, total=False):
    low: float


class Station(AgentBase):
    kind: Literal["land", "sea"] = "land"

    def read(self, place: Place, limits: Limits | None = None) -> Reading:
        return Reading(1.0)

    @async_func
    def reply(self, question: str, *more: str, **options: int) -> dict[str, list[Reading]]:
        return {}

    @method
    async def watch(self) -> AsyncIterator[Reading]:
        yield Reading(1.0)

    def tell(self, other: Station, how: Callable[..., Any], many: Mapping) -> "dict | None":
        return None

    def untyped(self, a, b=3):
        return a
"""

PROGRAM = """
from typing_extensions import assert_type

from station_proxies import AsyncStationProxy, Limits, Place, Reading, StationProxy
from zmqagents import AsyncResult, AsyncRpcClient, RpcClient, Stream


def plain(client: RpcClient) -> None:
    station: StationProxy = client.create_agent("Station")
    assert_type(station.agent_id, str)
    assert_type(station.read(Place(1), Limits(low=2)), Reading)
    assert_type(station.read(Place(1, 2)).degrees, float)
    assert_type(station.reply("x", "y", z=1), AsyncResult[dict[str, list[Reading]]])
    assert_type(station.watch(), Stream[Reading])
    station.tell(station, print, {})
    station.raed(Place(1))  # wrong
    station.read(1)  # wrong


async def awaited(client: AsyncRpcClient) -> None:
    station: AsyncStationProxy = await client.create_agent("Station")
    assert_type(await station.read(Place(1)), Reading)
    async for reading in station.watch():
        assert_type(reading, Reading)
    station.read(Place(1)).degrees  # wrong
"""


def test_stubs_pass_and_let_a_typo_be_found(check: Callable[..., Errors], tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "station.py").write_text(STATION)
    run("zmqagents", "stubs", "--agent-dir", "agents", "-o", str(tmp_path), cwd=tmp_path)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    wrong = [("program.py", line) for line, text in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in text]
    assert sorted(check(tmp_path / "station_proxies.pyi", program)) == wrong


def test_the_examples_pass(check: Callable[..., Errors]) -> None:
    assert check(*EXAMPLES) == {}
