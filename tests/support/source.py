"""What the syntax trees of the package say: imports, classes, the attributes that their classes name."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zmqagents"
Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Module:
    """A file of the package, and what its syntax tree says."""

    def __init__(self, name: str, source: str, *, is_package: bool = False) -> None:
        self.name, self.home = name, name.partition(".")[0]
        tree = ast.parse(source)
        self.docstring = ast.get_docstring(tree) or ""
        self.nodes = list(ast.walk(tree))
        from_here = [node for node in self.nodes if isinstance(node, ast.ImportFrom) and node.level]
        self.bound = {alias.asname or alias.name for node in from_here for alias in node.names}
        self.classes = [node for node in self.nodes if isinstance(node, ast.ClassDef)]
        self.attributes = {name for cls in self.classes for name in {*declared(cls), *set_on_self(cls)}}
        parts = ["zmqagents", *name.split(".")] if name != "__init__" else ["zmqagents"]
        self._package = parts if is_package or name == "__init__" else parts[:-1]

    def imports(self) -> Iterator[str]:
        """Full dotted names, ``from x import y`` as ``x.y``; also by `import_module`."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = self._package[: len(self._package) - node.level + 1] if node.level else []
                yield from (".".join([*origin, *filter(None, [node.module]), alias.name]) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from (str(name.value) for name in node.args[:1] if isinstance(name, ast.Constant))


def lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def declared(cls: ast.ClassDef) -> set[str]:
    """The names that are bound in the class's body, and the texts there: those of ``__slots__``."""
    body = [node for part in cls.body if not isinstance(part, Function) for node in ast.walk(part)]
    found = {node.name for node in cls.body if isinstance(node, Function)}
    found |= {node.id for node in body if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return found | {str(node.value) for node in body if isinstance(node, ast.Constant)}


def set_on_self(cls: ast.ClassDef) -> set[str]:
    nodes = [node for node in ast.walk(cls) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
    return {node.attr for node in nodes if ast.unparse(node.value) == "self"}


def has_slots(cls: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__" for node in cls.body)


def read(path: Path) -> Module:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    is_package = parts[-1] == "__init__" and len(parts) > 1
    return Module(".".join(parts[:-1] if is_package else parts), path.read_text("utf-8"), is_package=is_package)


@functools.cache
def modules() -> dict[str, Module]:
    """All of the package, by their names. Called in tests and not at their import: it takes a second."""
    return {module.name: module for module in map(read, sorted(PACKAGE.rglob("*.py")))}


def owners(modules: list[Module]) -> dict[str, set[str]]:
    """Each attribute that a class names, and the packages of those classes."""
    names = {name for module in modules for name in module.attributes}
    return {name: {module.home for module in modules if name in module.attributes} for name in names}


def circle(modules: list[Module]) -> list[str]:
    """The modules of a circle of imports, the first one again at the end; or nothing."""
    names = {module.name for module in modules}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        for parts in (name.split(".")[1:] for name in module.imports() if name.startswith("zmqagents.")):
            while parts and ".".join(parts) not in names:
                parts.pop()
            graph[module.name] |= {".".join(parts)} - {"", module.name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        return list(exc.args[1])
    return []
