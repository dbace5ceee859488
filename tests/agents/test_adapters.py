"""What is hosted for the object of a factory, without any framework: those have tests of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zmqagents import AgentBase
from zmqagents.adapters import ADAPTERS, adapt

ROOT = Path(__file__).parents[2]


class Plain:
    """No framework's."""


class Runnable:
    """Of a package that has the name of a framework's class."""


def test_an_object_of_no_framework_is_hosted_itself() -> None:
    objects: list[Any] = [Plain(), Runnable(), {"a": 1}, AgentBase()]
    for each in objects:
        assert adapt(each) is each


def test_each_adapter_names_a_module_that_is_there() -> None:
    for _, _, module, _ in ADAPTERS:
        assert (ROOT / "zmqagents" / "adapters" / f"{module}.py").is_file()


@pytest.mark.program
@pytest.mark.parametrize("module", ["zmqagents", "zmqagents.adapters", "zmqagents.server.serve"])
def test_no_framework_is_imported_before_it_is_used(module: str) -> None:
    packages = {package.partition(".")[0] for package, _, _, _ in ADAPTERS} | {"mcp", "pydantic"}
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert not packages & set(done.stdout.split())


@pytest.mark.program
def test_without_the_library_of_mcp_the_extra_is_named() -> None:
    program = "import sys; sys.modules['mcp'] = None; import zmqagents.adapters.mcp"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.stderr.splitlines()[-1] == (
        "zmqagents.errors.MissingExtra: mcp is missing: pip install 'zmqagents[mcp]'"
    )
