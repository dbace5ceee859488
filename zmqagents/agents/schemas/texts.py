"""What an annotation says of which there is only the text: of agents that a factory makes in another process.

Nothing is looked up in the module that the text comes from: it knows Python's own types, and takes any other for `Any`.
"""

from __future__ import annotations

import ast
import collections.abc
import datetime
import decimal
import pathlib
import typing
import uuid
from typing import Any

__all__ = ["hint_of"]

_BUILTINS = (str, int, float, bool, bytes, list, dict, tuple, set, frozenset, object)
_OTHERS = (datetime.datetime, datetime.date, datetime.time, decimal.Decimal, uuid.UUID, pathlib.Path)
_TYPING = ("Any", "Optional", "Union", "Literal", "List", "Dict", "Tuple", "Set", "FrozenSet", "Annotated")
_ABSTRACT = (
    "Sequence", "MutableSequence", "Iterable", "Collection", "Mapping", "MutableMapping", "Iterator", "AsyncIterator",
    "AsyncIterable", "Generator", "AsyncGenerator", "Awaitable", "Coroutine",
)  # fmt: skip
_NAMES: dict[str, Any] = {
    **{cls.__name__: cls for cls in (*_BUILTINS, *_OTHERS)},
    **{name: getattr(typing, name) for name in _TYPING},
    **{name: getattr(collections.abc, name) for name in _ABSTRACT},
}


def hint_of(text: str) -> Any:
    """The annotation that ``text`` writes; `Any` for what is not known here."""
    try:
        return _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return Any


def _read(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant):
        return hint_of(node.value) if isinstance(node.value, str) else None if node.value is None else Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_read(node.left), _read(node.right)]  # noqa: UP007  # made of values
    if not isinstance(node, ast.Subscript):
        return _NAMES.get(ast.unparse(node).rpartition(".")[2], Any)
    origin = _read(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if origin is typing.Literal:
        return origin[tuple(ast.literal_eval(each) for each in inner)]
    if origin is Any or origin is object:
        return Any
    parts = tuple(... if ast.unparse(each) == "..." else _read(each) for each in inner)
    return origin[parts if len(parts) > 1 else parts[0]]
