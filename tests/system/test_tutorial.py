"""The tutorial, typed line by line: each command of its pages gives what the page says."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import ROOT, environment, eventually
from typed import path_with_commands

pytestmark = pytest.mark.program

PAGE = (ROOT / "docs" / "tutorial.rst").read_text(encoding="utf-8")


@pytest.fixture
def typed(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has only what the tutorial installs, and no other host."""
    path = path_with_commands(tmp_path)
    return environment(PYTHONPATH=str(ROOT), PATH=path, ZMQAGENTS_RUNTIME=str(tmp_path / "run"))


def run(command: str, cwd: Path, typed: dict[str, str]) -> str:
    assert command in PAGE, "the tutorial says something else"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=cwd, env=typed, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def started(command: str, cwd: Path, typed: dict[str, str]) -> Iterator[None]:
    assert command in PAGE, "the tutorial says something else"
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"], cwd=cwd, env=typed, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()


def test_what_the_tutorial_types_gives_what_it_says(tmp_path: Path, typed: dict[str, str]) -> None:
    run("as_server init first", tmp_path, typed)
    first = tmp_path / "first"
    with started("as_server start", first, typed):
        said = run("python use.py", first, typed)
        assert said == "value: 2\nmeanwhile: [2, 3, 4]\nlater: 2\n"
        assert "".join(f"    {line}\n" for line in said.splitlines()) in PAGE
        assert run("as_server call counter add 40", first, typed) == "42\n"
        assert "add(n: int = 1)" in run("as_server describe counter", first, typed)
        assert "running" in run("as_server status", first, typed)
    for name in ("words.py", "report.py", "use_report.py"):
        assert f"../examples/tutorial/{name}" in PAGE
        shutil.copy(ROOT / "examples" / "tutorial" / name, first)
    with started("as_server start --reload words:Words --agent 'words=words:Words(least=4)'", first, typed):
        read = run('as_server call words read "a router routes, a dealer deals"', first, typed)
        longest = run("as_server call words longest", first, typed)
        assert (read, longest) == ("4\n", "router\n")
        assert f"    {read}    {longest}" in PAGE
        run("as_server stop", first, typed)
    with started("as_server start words:Words report:Report", first, typed):
        said = run("python use_report.py", first, typed)
        assert said == "dealer: 1, deals: 1, router: 1, routes: 1\n"
        assert f"    {said}" in PAGE
    assert eventually(lambda: not list((tmp_path / "run").glob("*.ipc")), 20)
