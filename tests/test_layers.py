"""The structure, checked on the source: the order of the packages, and the few rules of the house.

Every import counts, also one inside a function or under ``TYPE_CHECKING``. A syntax tree has no types: an attribute
belongs to the packages with a class that names it, and may be set on an object of another package by none but them.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Iterator

import pytest

from source import PACKAGE, ROOT, Function, Module, circle, has_slots, lines, modules, owners, set_on_self

# From the ground up: a package imports those before it, and no other.
ORDER = [
    "version", "telemetry", "errors", "tracing", "checks", "config", "security", "codec", "agents", "discovery",
    "models", "process", "wire", "connection", "store", "cluster", "scheduler", "execution", "members", "broker",
    "client", "adapters", "server", "web", "compat", "__init__", "cli", "__main__",
]  # fmt: skip
# An import name, the name on the package index, and the only packages or modules that may import it.
DOORS = {
    "zmq": ("pyzmq", ("wire", "security")), "msgpack": ("msgpack", ("codec",)),
    "cloudpickle": ("cloudpickle", ("codec.pickling",)), "cachetools": ("cachetools", ("store.memory",)),
    "redis": ("redis", ("store.redis_client",)), "openai": ("openai", ("models.chat",)), "click": ("click", ("cli",)),
    "hdrh": ("hdrhistogram", ("client.loadgen",)), "numpy": ("numpy", ("codec.arrays", "codec.packages")),
    "tomli": ("tomli", ("cli.config_file",)), "rich": ("rich", ("client.many", "cli.verbs.watch")),
    "starlette": ("starlette", ("web",)), "uvicorn": ("uvicorn", ("web.serve",)),
    "prometheus_client": ("prometheus_client", ("web.exposition",)),
    "opentelemetry": ("opentelemetry", ("tracing",)), "jsonschema": ("jsonschema", ("web.gateway.offers",)),
}  # fmt: skip
# Those whose values the codec knows, and below those whose agents have an adapter; the package asks for none of them.
VALUES = {
    "ml_dtypes": ("ml_dtypes", ("codec.arrays",)), "pandas": ("pandas", ("codec.packages.pandas_door",)),
    "polars": ("polars", ("codec.packages.polars_door",)), "PIL": ("pillow", ("codec.packages.pillow_door",)),
    "pyarrow": ("pyarrow", ("codec.packages.pyarrow_door", "codec.packages.pandas_door")),
    "pydantic": ("pydantic", ("codec.packages.pydantic_door",)), "torch": ("torch", ("codec.packages.torch_door",)),
    "pydantic_core": ("pydantic", ("codec.packages.pydantic_door",)),
}  # fmt: skip
FRAMEWORKS = {
    "langgraph": ("", ("adapters.langgraph",)), "pydantic_ai": ("", ("adapters.pydantic_ai",)),
    "langchain_core": ("", ("adapters.langchain", "adapters.langgraph")), "google": ("", ("adapters.google_adk",)),
    "agents": ("", ("adapters.openai_agents",)), "agentscope": ("", ("adapters.agentscope",)),
    "autogen_agentchat": ("", ("adapters.autogen",)), "autogen_core": ("", ("adapters.autogen",)),
    "llama_index": ("", ("adapters.llama_index",)), "smolagents": ("", ("adapters.smolagents",)),
    "crewai": ("", ("adapters.crewai",)), "mcp": ("", ("adapters.mcp", "web.gateway.mcp_tools")),
    "mcp_types": ("", ("web.gateway.mcp_tools",)), "anyio": ("", ("web.gateway.mcp_tools",)),
    "a2a": ("", ("web.gateway.a2a_agents",)),
}  # fmt: skip
MAY_IMPORT = {name: doors for name, (_, doors) in (DOORS | VALUES | FRAMEWORKS).items()}
# For everybody, in spite of the underscore: what Python documents, two of named tuples, one of IPython.
PUBLIC = {"os._exit", "sys._current_frames", "asyncio._get_running_loop", "_replace", "_asdict", "_repr_html_"}
FOLDERS, FILES, MODULES_EACH, METHODS, CLASS_LINES, FUNCTION_LINES = 22, 7, 12, 45, 550, 60


def faults(module: Module, homes: dict[str, set[str]]) -> Iterator[str]:
    """Each breach of a rule; ``homes`` has the packages that each attribute belongs to."""
    for name in module.imports():
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0] if rest.partition(".")[0] in ORDER else "__init__"
        if top == "zmqagents" and other != module.home and ORDER.index(other) >= ORDER.index(module.home):
            yield f"imports {other}, which stands above it"
        if top == "zmqagents" and re.search(r"\._(?!_)", name):
            yield f"imports {name}, which is private"
        if top in MAY_IMPORT and not any(f"{module.name}.".startswith(f"{door}.") for door in MAY_IMPORT[top]):
            yield f"imports {top}, whose door is {' and '.join(MAY_IMPORT[top])}"
        if top not in {"zmqagents", *MAY_IMPORT, *sys.stdlib_module_names, "tomllib"}:  # 3.11 on
            yield f"imports {top}, which has no door"
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            text, name, others = ast.unparse(node), node.attr, homes.get(node.attr, {module.home})
            if re.match(r"_(?!_)", name) and not {name, text} & PUBLIC and name not in module.attributes:
                yield f"reads {text}, which is private"
            if isinstance(node.ctx, ast.Store) and module.home not in others and not hasattr(Exception, name):
                yield f"sets {text}, which belongs to {' and '.join(sorted(others))}"
            if isinstance(node.ctx, ast.Store) and text.split(".")[0] in module.bound:
                yield f"sets {text} of what it has imported"
        if isinstance(node, ast.Call) and re.search(r"post\(['\"]", ast.unparse(node)):
            yield f"has {ast.unparse(node)}, a method's name in a string"
        if isinstance(node, Function) and (count := lines(node)) > FUNCTION_LINES:
            yield f"{node.name} has {count} lines"
    for cls in module.classes:
        methods = sum(isinstance(node, Function) for node in cls.body)
        if methods > METHODS or lines(cls) > CLASS_LINES:
            yield f"{cls.name} has {methods} methods and {lines(cls)} lines"
        if (count := len(set_on_self(cls))) > (25 if cls.name == "Broker" else 29) and not has_slots(cls):
            yield f"{cls.name} has {count} attributes"  # of over 29 CPython finds each by a slower way
    if not module.docstring or "TODO" in module.docstring:
        yield "has no docstring"


def test_each_module_keeps_the_rules() -> None:
    homes = owners(list(modules().values()))
    found = {name: sorted(set(faults(module, homes))) for name, module in modules().items()}
    assert {name: broken for name, broken in found.items() if broken} == {}


BREACHES = [
    ("codec.plain", "from ..wire import messages", "imports wire, which stands above it"),
    ("wire.link", "def f():\n  from ..broker.leader import Leader", "imports broker, which stands above it"),
    ("client.rpc", "from zmqagents import RpcClient", "imports __init__, which stands above it"),
    ("store.base", "import redis.asyncio", "imports redis, whose door is store.redis_client"),
    ("wire.link", "n = importlib.import_module('torch.nn')", "imports torch, whose door is codec.packages.torch_door"),
    ("client.aio", "import requests", "imports requests, which has no door"),
    ("client.aio", "from .rpc import _ask", "imports zmqagents.client.rpc._ask, which is private"),
    ("client.aio", "client._link", "reads client._link, which is private"),
    ("broker.leader", "self.link.address = 1", "sets self.link.address, which belongs to wire"),
    ("broker.leader", "from ..wire import link\nlink.x = 1", "sets link.x of what it has imported"),
    ("broker.leader", "broker.post('stop', 1)", "has broker.post('stop', 1), a method's name in a string"),
    ("client.aio", "def f():\n" + "  x()\n" * 60, "f has 61 lines"),
    ("client.aio", "class C:\n" + "  def f(self): ...\n" * 46, "C has 46 methods and 47 lines"),
    ("client.aio", "class C:\n" + "  x = 1\n" * 550, "C has 0 methods and 551 lines"),
    ("a", "class A:\n def f(self): " + "".join(f"self.a{n} = " for n in range(30)) + "1", "A has 30 attributes"),
    ("b", "class Broker:\n " + "; ".join(f"self.a{n} = 1" for n in range(26)), "Broker has 26 attributes"),
    ("client.aio", '"""TODO."""', "has no docstring"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "fault"), BREACHES)
def test_a_broken_rule_is_found(name: str, source: str, fault: str) -> None:
    source = source if source.startswith('"') else f'"""What it is for."""\n{source}'
    assert list(faults(Module(name, source), {"address": {"wire"}})) == [fault]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(list(modules().values())) == []
    assert len(circle([Module("a", "from .b import c"), Module("b", "from . import a")])) == 3


def test_the_folders_are_few_and_small_and_say_what_they_may_import() -> None:
    folders = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert len([folder for folder in folders if folder.parent == PACKAGE]) <= FOLDERS
    assert len(list(PACKAGE.glob("*.py"))) <= FILES
    for folder in folders:
        assert len(list(folder.glob("*.py"))) - 1 <= MODULES_EACH, folder
        assert "ay import" in modules()[".".join(folder.relative_to(PACKAGE).parts)].docstring, folder


def test_what_setup_cfg_asks_for_is_what_has_a_door() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = config["options.extras_require"]
    asked = [config["options"]["install_requires"]]
    names = ("bench", "models", "numpy", "otel", "rich", "web")
    asked += [extras[name].replace("-client", "_client") for name in names]
    assert set(re.findall(r"^(\w+)", "\n".join(asked), re.M)) == {name for name, _ in DOORS.values()}
