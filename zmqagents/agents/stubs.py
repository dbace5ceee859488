"""Type stubs of proxies, for callers that do not have the agents' classes.

A type checker that sees the class of an agent knows its proxy, too. A client on another machine may not have the
class, and with `AsyncRpcClient` every method is awaited, which the class does not say. `stub_of` writes what such a
client needs: for each agent class ``Reader`` a class ``ReaderProxy`` and a class ``AsyncReaderProxy``.

The stub stands alone. It copies from the agents' source the types that the signatures name, with their imports, as far
as they can be had without the file: dataclasses, enums, typed dicts and aliases without their code, absolute imports.
Any other name becomes ``Any``. Nothing of the source is run.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .marks import Returns

__all__ = ["stub_of"]

_HEAD = '''"""Made by `as_server stubs`: what a type checker should know of these agents' proxies."""

from typing import Any as _Any

import zmqagents as _za
'''
# How many arguments the generic types take: bare, they fail the strict modes of type checkers. 0: any number.
_GENERIC = {
    "list": 1, "set": 1, "frozenset": 1, "type": 1, "deque": 1, "Iterator": 1, "Iterable": 1, "Sequence": 1, "List": 1,
    "AsyncIterator": 1, "dict": 2, "Mapping": 2, "Dict": 2, "tuple": 0, "Callable": 0,
}  # fmt: skip
_ITERATORS = {
    "Iterator", "Iterable", "Generator", "AsyncIterator", "AsyncIterable", "AsyncGenerator", "Sequence", "list",
}  # fmt: skip
_ALIASES = (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp)
_TYPE_MAKERS = {"TypeVar", "NewType", "NamedTuple", "namedtuple", "TypedDict", "ParamSpec", "Enum"}
_BUILTIN = {name for name in vars(builtins) if not name.startswith("_")}

Methods = Mapping[str, tuple[Returns, str]]  # by name: what callers get, and the signature as text


def stub_of(classes: Mapping[str, Methods], source: str = "") -> str:
    """The text of a stub module for agent classes, by their short names.

    ``source`` is the text of the file that defines them, "" if it is not to be had: then only types of Python itself
    are told. SyntaxError if it is no Python.
    """
    tree = ast.parse(source)
    names = _Names(tree, set(classes))
    bodies = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    made: list[str] = []
    for name, methods in classes.items():
        for is_awaited in (False, True):
            lines = _proxy_class(name, methods, bodies, names, is_awaited)
            made += map(names.awaited, lines) if is_awaited else lines
    return "\n".join([_HEAD, *names.copied(), *made]) + "\n"


# ---------------------------------------------------------------- one class


def _proxy_class(
    name: str, methods: Methods, bodies: Mapping[str, ast.ClassDef], names: _Names, is_awaited: bool
) -> Iterator[str]:
    yield f"\nclass {'Async' * is_awaited}{name}Proxy:"
    yield "    @property\n    def agent_id(self) -> str: ..."
    found = _members(name, bodies)
    for attribute, annotation in _attributes(found):
        kind = names.known(annotation)
        yield f"    @property\n    def {attribute}(self) -> {f'_za.AsyncResult[{kind}]' if is_awaited else kind}: ..."
    for method, (returns, signature) in methods.items():
        source = found.get("reply" if method == "__call__" and "__call__" not in found else method)
        function = source if isinstance(source, (ast.FunctionDef, ast.AsyncFunctionDef)) else _parsed(signature)
        result = _result(function, returns, names, is_awaited)
        yield f"    def {method}({_parameters(function, names)}) -> {result}: ..."


def _members(name: str, bodies: Mapping[str, ast.ClassDef]) -> dict[str, ast.stmt]:
    """What a class and its bases in the same file define, by name."""
    node = bodies.get(name)
    if node is None:
        return {}
    found: dict[str, ast.stmt] = {}
    others = {key: body for key, body in bodies.items() if key != name}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            found |= _members(base.id, others)
    for member in node.body:
        if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[member.name] = member
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            found[member.target.id] = member
    return found


def _attributes(members: Mapping[str, ast.stmt]) -> Iterator[tuple[str, ast.expr | None]]:
    """Public annotated attributes and properties: a caller may read them."""
    for name, member in members.items():
        if name.startswith("_"):
            continue
        if isinstance(member, ast.AnnAssign):
            yield name, member.annotation
        elif isinstance(member, ast.FunctionDef) and "property" in _decorators(member):
            yield name, member.returns


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [ast.unparse(each).rpartition(".")[2] for each in node.decorator_list]


def _parsed(signature: str) -> ast.FunctionDef:
    try:
        node = ast.parse(f"def f{signature}: ...").body[0]
    except (SyntaxError, ValueError):  # a default whose repr is no Python
        node = ast.parse("def f(self, *args, **kwargs): ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, names: _Names) -> str:
    given = function.args
    is_static = "staticmethod" in _decorators(function)
    positional = [*given.posonlyargs, *given.args]
    first_default = len(positional) - len(given.defaults)
    parts: list[str] = []
    for place, arg in enumerate(positional):
        parts.append(_parameter(arg, names, has_default=place >= first_default))
        if place + 1 == len(given.posonlyargs):
            parts.append("/")
    if given.vararg or given.kwonlyargs:
        parts.append(f"*{_parameter(given.vararg, names)}" if given.vararg else "*")
    parts += [
        _parameter(arg, names, has_default=default is not None)
        for arg, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    parts += [f"**{_parameter(given.kwarg, names)}"] if given.kwarg else []
    if not is_static and positional:
        parts = parts[1:]
        if parts[:1] == ["/"]:
            return ", ".join(["self", *parts]) if len(given.posonlyargs) > 1 else ", ".join(["self", *parts[1:]])
    return ", ".join(["self", *parts])


def _parameter(arg: ast.arg, names: _Names, *, has_default: bool = False) -> str:
    return f"{arg.arg}: {names.known(arg.annotation)}{' = ...' if has_default else ''}"


def _result(function: ast.FunctionDef | ast.AsyncFunctionDef, returns: Returns, names: _Names, is_awaited: bool) -> str:
    annotation = _as_expression(function.returns)
    if returns == "stream":
        item = None
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).rpartition(".")[2] in _ITERATORS:
            inner = annotation.slice
            item = inner.elts[0] if isinstance(inner, ast.Tuple) and inner.elts else inner
        return f"_za.Stream[{names.known(item)}]"
    value = names.known(annotation)
    return f"_za.AsyncResult[{value}]" if returns == "future" or is_awaited else value


# ---------------------------------------------------------------- the names of the file


def _as_expression(annotation: ast.expr | None) -> ast.expr | None:
    """An annotation; one that is a text is read."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return ast.parse(annotation.value, mode="eval").body
        except SyntaxError:
            return None
    return annotation


class _Names:
    """The types that a file's signatures may name; remembers those that were named, to copy their definitions."""

    def __init__(self, tree: ast.Module, agents: set[str]) -> None:
        self._agents = agents
        self._definitions: dict[str, ast.stmt] = {}
        self._named: dict[str, None] = {}
        for node in _top_level(tree.body):
            for name in _defined_by(node):
                self._definitions.setdefault(name, node)

    def known(self, annotation: ast.expr | None) -> str:
        """An annotation as the stub may write it."""
        node = _as_expression(annotation)
        return (
            "_Any" if node is None else ast.unparse(_Reader(self).visit(ast.parse(ast.unparse(node), mode="eval").body))
        )

    def awaited(self, line: str) -> str:
        """A line of an asynchronous proxy: what it takes and gives are such proxies, too."""
        return re.sub(rf"\b({'|'.join(self._agents)})Proxy\b", r"Async\1Proxy", line)

    def use(self, name: str) -> str | None:
        """The expression for a name that an annotation has; None: it cannot be had."""
        if name in self._agents:
            return f"{name}Proxy"
        if name in self._definitions:
            self._named[name] = None
            return name
        return name if name in _BUILTIN else None

    def copied(self) -> list[str]:
        """The definitions of all that was named, in the order of the file."""
        texts: dict[str, ast.stmt] = {}
        while len(texts) < len(self._named):
            for name in list(self._named):
                if name not in texts:
                    texts[name] = node = self._definitions[name]
                    for other in ast.walk(_without_code(node, self)):
                        if isinstance(other, ast.Name) and other.id in self._definitions:
                            self._named[other.id] = None
        nodes = dict.fromkeys(texts.values())
        kept = [node for node in self._definitions.values() if node in nodes]
        return [self._copy(node) for node in dict.fromkeys(kept)]

    def _copy(self, node: ast.stmt) -> str:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            aliases = [alias for alias in node.names if (alias.asname or alias.name.partition(".")[0]) in self._named]
            if isinstance(node, ast.ImportFrom):
                return ast.unparse(ast.ImportFrom(node.module, aliases, 0))
            return ast.unparse(ast.Import(aliases))
        return "\n" + ast.unparse(ast.fix_missing_locations(_without_code(node, self)))


class _Reader(ast.NodeTransformer):
    """Replaces what an annotation names and the stub cannot have by ``Any``."""

    def __init__(self, names: _Names) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.expr:
        known = self._names.use(node.id)
        if known is None:
            return ast.Name("_Any")
        most = _GENERIC.get(node.id)
        if most is None:
            return ast.Name(known)
        inside = {0: "..., _Any" if node.id == "Callable" else "_Any, ..."}.get(most, ", ".join(["_Any"] * most))
        return ast.parse(f"{known}[{inside}]", mode="eval").body

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        is_known = isinstance(root, ast.Name) and self._names.use(root.id) == root.id and root.id not in _BUILTIN
        return node if is_known else ast.Name("_Any")

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        outer = ast.unparse(node.value)
        if isinstance(node.value, ast.Name):
            known = self._names.use(node.value.id)
        else:
            known = ast.unparse(self.visit(node.value))
        if known in (None, "_Any"):
            return ast.Name("_Any")
        is_literal = outer.rpartition(".")[2] == "Literal"
        return ast.Subscript(ast.Name(str(known)), node.slice if is_literal else self.visit(node.slice), ast.Load())

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        inner = _as_expression(node)
        if inner is node:
            return node
        return ast.Name("_Any") if inner is None else self.visit(inner)


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if TYPE_CHECKING`` included."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _top_level(node.body)
        else:
            yield node


def _defined_by(node: ast.stmt) -> list[str]:
    """The names that a statement gives to types, if the stub can copy it."""
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        is_near = node.level or node.module == "__future__"  # a neighbour of the file, which the client lacks
        return [] if is_near else [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        is_alias = ast.unparse(node.annotation).rpartition(".")[2] == "TypeAlias"
        return [ast.unparse(node.target)] if is_alias else []
    if isinstance(node, ast.Assign):
        value = node.value
        makes = isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in _TYPE_MAKERS
        is_type = makes or isinstance(value, _ALIASES)
        return [target.id for target in node.targets if isinstance(target, ast.Name)] if is_type else []
    return [ast.unparse(node.name)] if hasattr(ast, "TypeAlias") and isinstance(node, ast.TypeAlias) else []


def _without_code(node: ast.stmt, names: _Names) -> Any:
    """A copy of a definition: a class keeps its fields, and its methods lose their bodies."""
    made = ast.parse(ast.unparse(node)).body[0]
    if isinstance(made, ast.ClassDef):
        body = [_member_without_code(member, names) for member in made.body]
        kept = [member for member in body if member is not None] or [ast.Expr(ast.Constant(...))]
        return ast.ClassDef(**{**dict(ast.iter_fields(made)), "body": kept})
    if isinstance(made, ast.AnnAssign):  # an alias, which may be a text
        value = ast.parse(names.known(made.value), mode="eval").body
        return ast.AnnAssign(made.target, made.annotation, value, made.simple)
    return made


def _member_without_code(member: ast.stmt, names: _Names) -> ast.stmt | None:
    if isinstance(member, ast.AnnAssign):
        kind = names.known(member.annotation)
        value = "" if member.value is None else " = ..."
        return ast.parse(f"{ast.unparse(member.target)}: {kind}{value}").body[0]
    if isinstance(member, ast.Assign):
        is_plain = isinstance(member.value, ast.Constant)
        return member if is_plain else ast.parse(f"{ast.unparse(member.targets[0])} = ...").body[0]
    if isinstance(member, (ast.FunctionDef, ast.AsyncFunctionDef)):
        marks = [each for each in _decorators(member) if each in ("property", "classmethod", "staticmethod")]
        is_async = "async " * isinstance(member, ast.AsyncFunctionDef)
        text = "".join(f"@{mark}\n" for mark in marks)
        parameters = _parameters(member, names)
        parameters = parameters.replace("self", "cls", 1) if "classmethod" in marks else parameters
        parameters = parameters.removeprefix("self").removeprefix(", ") if "staticmethod" in marks else parameters
        returned = "None" if member.name == "__init__" else names.known(member.returns)
        return ast.parse(f"{text}{is_async}def {member.name}({parameters}) -> {returned}: ...").body[0]
    return None
