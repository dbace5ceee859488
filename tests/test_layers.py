"""The structure, checked on the source: imports go down, and each third-party package has one door.

Every import counts, also one inside a function or under ``TYPE_CHECKING``: a lazy import is still a dependency.
A new module must be put on a line of `LAYERS`, a new third-party package must be given a door in `DOORS`.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zmqagents"

LAYERS: list[set[str]] = [
    {"errors", "agent", "pace"},
    {"codec", "loader", "trusted", "gate", "timers", "descriptors", "systemd"},
    {"frames", "config", "models", "endpoints", "files", "link", "msg", "zmtp", "unixwire"},
    {
        "tickets",
        "waits",
        "slots",
        "admission",
        "dispatcher",
        "host",
        "archive",
        "outlet",
        "store",
        "store.base",
        "store.memory",
        "store.redis",
        "store.scripts",
        "studio",
        "ledger",
        "outstanding",
    },
    {
        "broker",
        "management",
        "worker",
        "helm",
        "lane",
        "inside",
        "client",
        "channel",
        "carrier",
        "control",
        "security",
        "outbound",
        "sessions",
        "unixdoor",
        "routerdoor",
    },
    {"launcher", "children", "hosting", "supervisor", "result", "proxy", "aio"},
    {"loadgen", "cli.verbs", "cli.options", "cli.settings", "cli.where", "cli.values", "cli.output"},
    {"cli.start", "cli.host", "cli.calls", "cli.bench", "cli.keys", "cli.machine"},
    {"cli", "__main__"},
    {"__init__"},
]

# The imports along one line that are meant: (who, whom).
SIDEWAYS = {
    ("carrier", "security"),
    ("channel", "carrier"),
    ("zmtp", "frames"),
    ("agent", "errors"),
    ("loader", "trusted"),
    ("agent", "pace"),
    ("link", "frames"),
    ("waits", "tickets"),
    ("slots", "tickets"),
    ("admission", "tickets"),
    ("admission", "waits"),
    ("dispatcher", "tickets"),
    ("dispatcher", "waits"),
    ("dispatcher", "slots"),
    ("dispatcher", "admission"),
    ("host", "dispatcher"),
    ("outlet", "dispatcher"),
    ("archive", "store"),
    ("archive", "store.base"),
    ("store", "store.base"),
    ("store", "store.memory"),
    ("store", "store.redis"),
    ("store.memory", "store.base"),
    ("store.redis", "store.base"),
    ("store.redis", "store.scripts"),
    ("unixwire", "frames"),
    ("unixwire", "zmtp"),
    ("broker", "routerdoor"),
    ("broker", "unixdoor"),
    ("routerdoor", "outbound"),
    ("routerdoor", "security"),
    ("outbound", "unixdoor"),
    ("broker", "outbound"),
    ("broker", "sessions"),
    ("sessions", "outbound"),
    ("sessions", "security"),
    ("outbound", "security"),
    ("broker", "management"),
    ("management", "worker"),
    ("management", "security"),
    ("broker", "worker"),
    ("broker", "helm"),
    ("worker", "lane"),
    ("broker", "inside"),
    ("broker", "security"),
    ("client", "security"),
    ("client", "channel"),
    ("channel", "security"),
    ("hosting", "proxy"),
    ("proxy", "result"),
    ("aio", "proxy"),
    ("aio", "result"),
    ("launcher", "hosting"),
    ("launcher", "children"),
    ("launcher", "supervisor"),
    ("supervisor", "children"),
    ("supervisor", "hosting"),
    ("launcher", "proxy"),
    ("cli.settings", "cli.options"),
    ("cli.output", "cli.values"),
    ("__main__", "cli"),
}

# import name -> (name on the package index, the modules that may import it)
DOORS: dict[str, tuple[str, set[str]]] = {
    "msgpack": ("msgpack", {"codec"}),
    "numpy": ("numpy", {"codec"}),
    "cachetools": ("cachetools", {"store.memory"}),
    "redis": ("redis", {"store.redis"}),
    "zmq": ("pyzmq", LAYERS[4]),
    "openai": ("openai", {"models"}),
    "cloudpickle": ("cloudpickle", {"trusted"}),
    "click": ("click", {module for line in LAYERS for module in line if module.partition(".")[0] == "cli"}),
    "hdrh": ("hdrhistogram", {"loadgen"}),
}

# What a program that only calls agents must not pay for.
_HOST = (
    "broker sessions outbound ledger worker helm lane inside outlet hosting dispatcher tickets waits slots admission"
    " host store studio models cli supervisor descriptors"
)
OF_THE_HOST = {f"zmqagents.{name}" for name in _HOST.split()}
HEAVY = {"click", "redis", "cachetools", "numpy", "pydantic", "openai", "rich", "cloudpickle", "hdrh", "asyncio"}


def module_name(path: Path) -> str:
    """``zmqagents/store/base.py`` → ``store.base``; a package's ``__init__`` has the package's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Full dotted names of what ``source`` imports, ``from x import y`` as ``x.y``; also by `import_module`."""
    here = ["zmqagents", *(module.split(".") if module != "__init__" else [])]
    package = here if is_package else here[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def own_module(dotted: str) -> str:
    """The module of this package that an imported name lies in: the longest that exists, or ``__init__``."""
    parts = dotted.split(".")[1:]
    while parts and ".".join(parts) not in LINE_OF:
        parts.pop()
    return ".".join(parts) or "__init__"


LINE_OF = {module: line for line, modules in enumerate(LAYERS) for module in modules}


def faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What is wrong with the imports of one module, a sentence each."""
    found = set()
    for name in imports(source, module, is_package=is_package):
        top = name.partition(".")[0]
        if name == "zmqagents.__version__":  # a literal, set before anything else there
            continue
        if top == "zmqagents":
            other = own_module(name)
            if other != module and LINE_OF[other] >= LINE_OF[module] and (module, other) not in SIDEWAYS:
                found.add(f"{module} (L{LINE_OF[module]}) imports {other} (L{LINE_OF[other]})")
        elif top not in sys.stdlib_module_names:
            if top not in DOORS:
                found.add(f"{module} imports {top}, which has no door")
            elif module not in DOORS[top][1]:
                found.add(f"{module} imports {top}, whose door is {sorted(DOORS[top][1])}")
    return sorted(found)


def test_every_module_has_its_line() -> None:
    assert set(MODULES) <= set(LINE_OF), "put the new module on a line of LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_and_through_the_doors(module: str) -> None:
    path = MODULES[module]
    assert faults(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("codec", "from .frames import Call", "codec (L1) imports frames (L2)"),
        ("codec", "from . import frames", "codec (L1) imports frames (L2)"),
        ("codec", "import zmqagents.frames", "codec (L1) imports frames (L2)"),
        ("errors", "def later():\n    from zmqagents.agent import agent", "errors (L0) imports agent (L0)"),
        (
            "worker",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .broker import Broker",
            "worker (L4) imports broker (L4)",
        ),
        ("store.base", "from .memory import MemoryStore", "store.base (L3) imports store.memory (L3)"),
        ("store.base", "from ..client import Client", "store.base (L3) imports client (L4)"),
        ("client", "from zmqagents import RpcClient", "client (L4) imports __init__ (L9)"),
        ("dispatcher", "import zmq.utils.z85", "dispatcher imports zmq, whose door is " + str(sorted(LAYERS[4]))),
        ("frames", "numpy = importlib.import_module('numpy.lib')", "frames imports numpy, whose door is ['codec']"),
        ("client", "import requests", "client imports requests, which has no door"),
    ],
)
def test_a_wrong_import_is_found_wherever_it_stands(module: str, source: str, fault: str) -> None:
    assert faults(module, source) == [fault]


def test_what_is_allowed_is_not_reported() -> None:
    assert faults("broker", "import queue, zmq\nfrom . import __version__, codec\nfrom .worker import Pool") == []
    assert faults("store", "from .memory import MemoryStore\nfrom ..errors import X", is_package=True) == []


def test_psutil_and_other_tools_of_the_tests_are_not_needed_by_users() -> None:
    assert DOORS.keys().isdisjoint({"psutil", "pytest", "hypothesis", "rich", "pydantic"})


def test_what_setup_cfg_asks_for_is_what_has_a_door() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = config["options"]["install_requires"].split()
    for extra in ("cloudpickle", "models", "numpy"):
        asked += config["options.extras_require"][extra].split()
    asked += [text for text in config["options.extras_require"]["bench"].split() if text.startswith("hdrhistogram")]
    assert {re.split(r"[>=<\[]", text)[0] for text in asked} == {distribution for distribution, _ in DOORS.values()}


@pytest.mark.parametrize("module", ["client", "proxy"])
def test_a_client_loads_no_broker_no_store_and_nothing_heavy(module: str) -> None:
    script = f"import json, sys, zmqagents.{module}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout))
    assert f"zmqagents.{module}" in loaded
    assert loaded & (OF_THE_HOST | HEAVY) == set()
