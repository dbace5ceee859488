"""The schemas of a method: of its arguments, as one object, and of its result or the items of its stream."""

from __future__ import annotations

import ast
import collections.abc
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from ...codec.classes.expected import resolved
from ..base import AgentBase
from ..spec import ClassSpec, MethodSpec, annotated, spec_of
from .hints import ITEMS, JSON, schema_of
from .texts import hint_of

__all__ = ["offered"]

_AWAITED = (collections.abc.Awaitable, collections.abc.Coroutine)
_EMPTY = inspect.Parameter.empty
_NO_DOC = inspect.getdoc(AgentBase.reply)  # what a subclass that writes no text for its reply inherits


def offered(spec: ClassSpec, cls: type | None) -> dict[str, dict[str, Any]]:
    """What JSON programs need to know of each method of ``spec``. ``cls``: the class of the agent if it is here.

    For each name: returns ("value", "future", "stream"), idempotent, doc, arguments and result (schemas), positional
    (names of arguments that have no keyword, in their order), rest (the name of ``*args``, "" if there is none).
    """
    left_out = {"__call__"} if "reply" in spec.methods else set()  # which is another name of it
    if _is_unwritten(spec.methods.get("reply")):
        left_out.add("reply")
    return {name: _offered(method, cls) for name, method in spec.methods.items() if name not in left_out}


def _is_unwritten(method: MethodSpec | None) -> bool:
    """Whether this is the ``reply`` of `AgentBase`, which says only that there is none."""
    base = spec_of(AgentBase).methods["reply"]
    return method is not None and (method.signature, method.doc) == (base.signature, base.doc)


def _offered(method: MethodSpec, cls: type | None) -> dict[str, Any]:
    parameters, returned, scope = _signature(method, cls)
    properties: dict[str, Any] = {}
    found: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    required, positional, rest = [], [], ""
    for each in parameters:
        hint = Any if each.annotation is _EMPTY else each.annotation
        if each.kind is each.VAR_KEYWORD:
            found["additionalProperties"] = schema_of(hint, scope) or True
            continue
        schema = schema_of(hint, scope)
        if each.kind is each.VAR_POSITIONAL:
            rest, schema = each.name, {"type": "array", **({"items": schema} if schema else {})}
        elif each.default is _EMPTY:
            required.append(each.name)
        elif isinstance(each.default, JSON):
            schema["default"] = each.default
        if each.kind is each.POSITIONAL_ONLY:
            positional.append(each.name)
        properties[each.name] = schema
    if rest:  # what stands before it must have no keyword either
        before = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        positional += before
    if required:
        found["required"] = required
    doc = "" if method.doc == _NO_DOC else method.doc
    return {
        "returns": method.returns, "idempotent": method.idempotent, "doc": doc, "arguments": found,
        "result": schema_of(_unwrapped(returned, scope, method.returns), scope), "positional": positional, "rest": rest,
    }  # fmt: skip


def _signature(method: MethodSpec, cls: type | None) -> tuple[list[inspect.Parameter], Any, Mapping[str, Any]]:
    """The parameters that callers give, the annotation of the result, and the names that annotations may use."""
    if cls is not None:
        try:
            functions, skip = annotated(cls, method.name)
            signature = inspect.signature(functions[0])
        except (AttributeError, TypeError, ValueError):
            pass
        else:
            scope = getattr(inspect.unwrap(functions[0]), "__globals__", {})
            return list(signature.parameters.values())[skip:], signature.return_annotation, scope
    return (*_from_text(method.signature or "(self, *args, **kwargs)"), {})


def _from_text(text: str) -> tuple[list[inspect.Parameter], Any]:
    try:
        statement = ast.parse(f"def f{text}: ...").body[0]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _from_text("(self, *args, **kwargs)")
    assert isinstance(statement, ast.FunctionDef)
    given, kinds = statement.args, inspect.Parameter
    positional = [(each, kinds.POSITIONAL_ONLY) for each in given.posonlyargs]
    rows: list[tuple[ast.arg, Any]] = [*positional, *((each, kinds.POSITIONAL_OR_KEYWORD) for each in given.args)]
    defaults = [_EMPTY] * (len(rows) - len(given.defaults)) + [*map(_value_of, given.defaults)]
    found = [
        kinds(arg.arg, kind, default=default, annotation=_note(arg))
        for (arg, kind), default in zip(rows, defaults, strict=True)
    ]
    if given.vararg:
        found.append(kinds(given.vararg.arg, kinds.VAR_POSITIONAL, annotation=_note(given.vararg)))
    for arg, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        default = _EMPTY if value is None else _value_of(value)
        found.append(kinds(arg.arg, kinds.KEYWORD_ONLY, default=default, annotation=_note(arg)))
    if given.kwarg:
        found.append(kinds(given.kwarg.arg, kinds.VAR_KEYWORD, annotation=_note(given.kwarg)))
    returned = Any if statement.returns is None else hint_of(ast.unparse(statement.returns))
    return (found[1:] if found and found[0].name in ("self", "cls") else found), returned


def _note(arg: ast.arg) -> Any:
    return Any if arg.annotation is None else hint_of(ast.unparse(arg.annotation))


def _value_of(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ...  # there is a default, and no JSON for it


def _unwrapped(hint: Any, scope: Mapping[str, Any], returns: str) -> Any:
    """What a caller gets: the value that is awaited, the item of a stream."""
    if hint is _EMPTY:
        return Any
    hint = resolved(hint, scope, hint_of)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in _AWAITED and parts:
        return parts[-1]
    if returns == "stream":
        return parts[0] if parts and (origin in ITEMS or origin in (list, tuple)) else Any
    return hint
