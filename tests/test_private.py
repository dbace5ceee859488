"""No test reads what is private in the package, so that a private name may change without a change of the tests."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from source import ROOT, Function, Module, modules

# Public in spite of the underscore: of `os`, `sys`, `asyncio` and named tuples; `_private` is of models in tests, and
# the last four are of AgentScope, whose agents use them.
PUBLIC = {"_exit", "_current_frames", "_get_running_loop", "_replace", "_asdict", "_fields", "_make", "_private",
          "_oid", "_ready", "_check_created", "_fetch_result"}  # fmt: skip
OUTSIDE = {"os", "sys", "multiprocessing"}  # whose privates are not the package's
IS_PRIVATE = re.compile(r"_(?!_)\w")


def named(module: Module) -> Iterator[str]:
    """What the module's syntax tree calls its classes, functions, variables and attributes."""
    for node in module.nodes:
        if isinstance(node, (ast.ClassDef, *Function)):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


@functools.cache
def private() -> set[str]:
    """The private names of the package."""
    return {name for module in modules().values() for name in named(module) if IS_PRIVATE.match(name)} - PUBLIC


def peeks(test: Module) -> Iterator[str]:
    """The private names of the package that a test reads, imports, or gives to getattr, setattr or a patch."""
    for node in test.nodes:
        if isinstance(node, ast.Attribute):
            owner, names = ast.unparse(node.value), {node.attr}
        elif isinstance(node, ast.ImportFrom):
            owner, names = node.module or "", {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and re.search(r"[gs]etattr$|patch$", ast.unparse(node.func)):
            owner, texts = (
                ast.unparse(node.args[0]),
                [part.value for part in node.args if isinstance(part, ast.Constant)],
            )
            names = {str(text).rpartition(".")[2] for text in texts}
        else:
            continue
        if owner not in ("self", "cls") and owner.partition(".")[0] not in OUTSIDE:
            yield from names & private()


def test_no_test_reads_what_is_private() -> None:
    paths = sorted((ROOT / "tests").rglob("*.py"))
    found = {path.relative_to(ROOT): set(peeks(Module("tests", path.read_text("utf-8")))) for path in paths}
    assert {str(path): sorted(names) for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "leader._token",
        "agent._za_link",
        "from zmqagents.broker.leader import _leaders",
        "monkeypatch.setattr(Leader, '_live', 1)",
        "patch('zmqagents.broker.leader.Leader._live')",
        "getattr(leader, '_live')",
    ],
)
def test_a_private_name_in_a_test_is_found(source: str) -> None:
    assert len(list(peeks(Module("tests", source)))) == 1
