"""The structure, checked on the source: the order of the packages, and the few rules of the house.

Every import counts, also one inside a function or under ``TYPE_CHECKING``: a lazy import is still a dependency.
"""

from __future__ import annotations

import ast
import configparser
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zmqagents"

# From the ground up: a package imports those before it, and no other.
ORDER = [
    "version", "errors", "config", "security", "codec", "agents", "discovery", "models", "process", "wire", "store",
    "scheduler", "execution", "broker", "connection", "client", "server", "loadgen", "__init__", "cli", "__main__",
]  # fmt: skip
# An import name, the name on the package index, and the only package or module that may import it.
DOORS = {
    "zmq": ("pyzmq", ("wire", "security", "broker", "connection", "server.stop")),
    "msgpack": ("msgpack", ("codec",)),
    "numpy": ("numpy", ("codec.arrays", "codec.packages")),
    "cloudpickle": ("cloudpickle", ("codec.pickling",)),
    "cachetools": ("cachetools", ("store.memory",)),
    "redis": ("redis", ("store.redis",)),
    "openai": ("openai", ("models.chat",)),
    "click": ("click", ("cli",)),
    "hdrh": ("hdrhistogram", ("loadgen",)),
}
# Those whose values the codec knows; the package asks for none of them.
VALUES = {
    "ml_dtypes": ("ml_dtypes", ("codec.arrays",)),
    "pandas": ("pandas", ("codec.packages.pandas_door",)),
    "polars": ("polars", ("codec.packages.polars_door",)),
    "pyarrow": ("pyarrow", ("codec.packages.pyarrow_door", "codec.packages.pandas_door")),
    "PIL": ("pillow", ("codec.packages.pillow_door",)),
    "pydantic": ("pydantic", ("codec.packages.pydantic_door",)),
    "pydantic_core": ("pydantic", ("codec.packages.pydantic_door",)),
    "torch": ("torch", ("codec.packages.torch_door",)),
}
MAX_FOLDERS, MAX_MODULES = 16, 12  # of the package; in a folder


def doors(name: str) -> tuple[str, ...]:
    """The packages and modules that may import ``name``."""
    return (DOORS | VALUES)[name][1]


class Module:
    """A file of the package, and what its syntax tree says."""

    def __init__(self, name: str, source: str, *, is_package: bool = False) -> None:
        self.name = name
        self.home = name.partition(".")[0]
        self.tree = ast.parse(source)
        parts = ["zmqagents", *name.split(".")] if name != "__init__" else ["zmqagents"]
        self._package = parts if is_package or name == "__init__" else parts[:-1]

    def imports(self) -> Iterator[str]:
        """Full dotted names, ``from x import y`` as ``x.y``; also by `import_module`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self._package[: len(self._package) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                yield from (f"{origin}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))

    def faults(self) -> Iterator[str]:
        for name in self.imports():
            top, _, rest = name.partition(".")
            if top == "zmqagents":
                other = rest.partition(".")[0]
                other = other if other in ORDER else "__init__"
                if other != self.home and ORDER.index(other) >= ORDER.index(self.home):
                    yield f"{self.name} imports {other}, which stands above it"
            elif top in DOORS | VALUES and not any(f"{self.name}.".startswith(f"{door}.") for door in doors(top)):
                yield f"{self.name} imports {top}, whose door is {' and '.join(doors(top))}"
            elif top not in DOORS | VALUES and top not in sys.stdlib_module_names:
                yield f"{self.name} imports {top}, which has no door"


def _read(path: Path) -> Module:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    is_package = parts[-1] == "__init__" and len(parts) > 1
    name = ".".join(parts[:-1] if is_package else parts)
    return Module(name, path.read_text(encoding="utf-8"), is_package=is_package)


MODULES = {module.name: module for module in map(_read, sorted(PACKAGE.rglob("*.py")))}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_keeps_the_rules(name: str) -> None:
    assert sorted(set(MODULES[name].faults())) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("codec.types", "from ..wire import messages", "codec.types imports wire, which stands above it"),
        ("codec", "import zmqagents.wire.link", "codec imports wire, which stands above it"),
        (
            "wire.link",
            "def f():\n    from ..broker.leader import Leader",
            "wire.link imports broker, which stands above it",
        ),
        ("client.rpc", "from zmqagents import RpcClient", "client.rpc imports __init__, which stands above it"),
        ("store.base", "import redis.asyncio", "store.base imports redis, whose door is store.redis"),
        (
            "wire.link",
            "n = importlib.import_module('numpy.lib')",
            "wire.link imports numpy, whose door is codec.arrays and codec.packages",
        ),
        ("client.aio", "import requests", "client.aio imports requests, which has no door"),
    ],
)
def test_a_broken_rule_is_found(name: str, source: str, fault: str) -> None:
    assert list(Module(name, source).faults()) == [fault]


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES.values():
        for name in module.imports():
            parts = name.split(".")[1:] if name.startswith("zmqagents.") else []
            while parts and ".".join(parts) not in MODULES:
                parts.pop()
            if parts and ".".join(parts) != module.name:
                graph.setdefault(module.name, set()).add(".".join(parts))
    graphlib.TopologicalSorter(graph).prepare()


def test_the_folders_are_few_small_and_explained() -> None:
    folders = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert len([folder for folder in folders if folder.parent == PACKAGE]) <= MAX_FOLDERS
    for folder in folders:
        assert len(list(folder.glob("*.py"))) - 1 <= MAX_MODULES, folder
        assert "ay import" in (ast.get_docstring(MODULES[".".join(folder.relative_to(PACKAGE).parts)].tree) or ""), (
            folder
        )


def test_what_setup_cfg_asks_for_is_what_has_a_door() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = config["options"]["install_requires"].split()
    for extra in ("cloudpickle", "models", "numpy"):
        asked += config["options.extras_require"][extra].split()
    asked += [text for text in config["options.extras_require"]["bench"].split() if text.startswith("hdrhistogram")]
    assert {re.split(r"[>=<\[]", text)[0] for text in asked} == {distribution for distribution, _ in DOORS.values()}
