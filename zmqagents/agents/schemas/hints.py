"""The JSON schema of an annotation.

Containers, unions, literals and ``Annotated`` are followed, and so are the fields of dataclasses, attrs classes,
pydantic models, namedtuples and typed dictionaries. Each schema is whole: it refers to no other. Of what is not known
it asks nothing. Where JSON has no such value, ``x-python`` names what the value becomes on its way to an agent: bytes
of base64, say, or an object of the class ``module:Name``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import pathlib
import sys
import types
import typing
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from ...codec.classes.expected import resolved
from ...codec.classes.names import wire_name
from .texts import hint_of

__all__ = ["ITEMS", "JSON", "MARK", "schema_of"]

MARK = "x-python"
MAX_DEPTH = 12
JSON = (str, int, float, bool, type(None))
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: {"type": "integer"}, None: {"type": "null"},
    type(None): {"type": "null"}, float: {"type": "number", MARK: "float"},
    bytes: {"type": "string", "contentEncoding": "base64", "pattern": _BASE64, MARK: "bytes"},
    datetime.datetime: {"type": "string", "format": "date-time", MARK: "datetime"},
    datetime.date: {"type": "string", "format": "date", MARK: "date"},
    datetime.time: {"type": "string", "format": "time", MARK: "time"},
    uuid.UUID: {"type": "string", "format": "uuid", MARK: "uuid"},
    decimal.Decimal: {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", MARK: "decimal"},
    pathlib.Path: {"type": "string", MARK: "path"},
    dict: {"type": "object"}, list: {"type": "array"}, tuple: {"type": "array", MARK: "tuple"},
    set: {"type": "array", MARK: "set"}, frozenset: {"type": "array", MARK: "frozenset"},
}  # fmt: skip
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_LISTS = (
    list, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Iterable,
    collections.abc.Collection,
)  # fmt: skip
ITEMS = (
    collections.abc.Iterator, collections.abc.AsyncIterator, collections.abc.Iterable, collections.abc.AsyncIterable,
    collections.abc.Generator, collections.abc.AsyncGenerator,
)  # fmt: skip


def schema_of(hint: Any, scope: Mapping[str, Any] | None = None, within: tuple[Any, ...] = ()) -> dict[str, Any]:
    """The schema of ``hint``, which may use the names of ``scope``; ``within``: the classes around it."""
    scope = scope or {}
    hint = resolved(hint, scope, hint_of)
    if len(within) > MAX_DEPTH:
        return {}
    simple = _SIMPLE.get(hint) if _has_hash(hint) else None
    if simple is not None:
        return dict(simple)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or type(hint).__name__ == "TypeAliasType":
        return schema_of(parts[0] if parts else hint.__value__, scope, (*within, None))
    if origin is typing.Union or isinstance(hint, types.UnionType):
        return _union([schema_of(part, scope, (*within, None)) for part in parts])
    if origin is typing.Literal:
        values = [part.value if isinstance(part, enum.Enum) else part for part in parts]
        return {"enum": values} if all(isinstance(value, JSON) for value in values) else {}
    if origin is not None:
        return _of_container(origin, parts, scope, (*within, None))
    if _has_hash(hint) and hint in _MAPPINGS:
        return {"type": "object"}
    if isinstance(hint, type) and hint not in within:
        return _of_class(hint, within)
    return {}


def _has_hash(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:  # a literal list, say
        return False
    return True


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One that takes what any of ``schemas`` takes: an int is a number anyway."""
    if {} in schemas:
        return {}
    different = [each for number, each in enumerate(schemas) if each not in schemas[:number]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _of_container(
    origin: Any, parts: tuple[Any, ...], scope: Mapping[str, Any], within: tuple[Any, ...]
) -> dict[str, Any]:
    if origin in _MAPPINGS:
        values = schema_of(parts[1], scope, within) if len(parts) == 2 else {}
        return {"type": "object", **({"additionalProperties": values} if values else {})}
    if origin is tuple and parts and parts[-1] is not ...:
        items = [schema_of(part, scope, within) for part in parts]
        return {**_row(items), MARK: "tuple"}
    if origin in (tuple, set, frozenset) or origin in _LISTS:
        items_schema = schema_of(parts[0], scope, within) if parts else {}
        return {**_SIMPLE.get(origin, _SIMPLE[list]), **({"items": items_schema} if items_schema else {})}
    return schema_of(origin, scope, within) if isinstance(origin, type) else {}


def _row(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}


# ---------------------------------------------------------------- classes


@dataclasses.dataclass
class _Field:
    name: str
    hint: Any
    scope: Mapping[str, Any]
    required: bool
    default: Any = inspect.Parameter.empty


def _of_class(cls: type, within: tuple[Any, ...]) -> dict[str, Any]:
    mark = {"title": cls.__name__, MARK: wire_name(cls)}
    if issubclass(cls, enum.Enum):
        values = [member.value for member in cls]
        return {"enum": values, **mark} if all(isinstance(value, JSON) for value in values) else {}
    if typing.is_typeddict(cls):
        named = [_item_of(cls, name, hint) for name, hint in inspect.get_annotations(cls).items()]
        return {"title": cls.__name__, **_of_fields(named, (*within, cls))}
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        hints = inspect.get_annotations(cls)
        items = [schema_of(hints.get(name, Any), _module_of(cls), (*within, cls)) for name in cls._fields]
        return {**_row(items), **mark}
    fields = _fields_of(cls)
    return {} if fields is None else {**_of_fields(fields, (*within, cls)), **mark}


def _item_of(cls: type, name: str, hint: Any) -> _Field:
    """An item of a typed dictionary. Of annotations that are text the class itself knows not which are required."""
    scope = _module_of(cls)
    hint = resolved(hint, scope, hint_of)
    marked = str(typing.get_origin(hint)).rpartition(".")[2]  # of `typing`, or before 3.11 of another module
    if marked in ("Required", "NotRequired"):
        return _Field(name, typing.get_args(hint)[0], scope, marked == "Required")
    required: Iterable[str] = getattr(cls, "__required_keys__", ())
    return _Field(name, hint, scope, name in required)


def _of_fields(fields: list[_Field], within: tuple[Any, ...]) -> dict[str, Any]:
    properties = {}
    for each in fields:
        properties[each.name] = schema_of(each.hint, each.scope, within)
        if isinstance(each.default, JSON):
            properties[each.name]["default"] = each.default
    required = [each.name for each in fields if each.required]
    return {
        "type": "object", "properties": properties, **({"required": required} if required else {}),
        "additionalProperties": False,
    }  # fmt: skip


def _fields_of(cls: Any) -> list[_Field] | None:
    """The fields of a class that objects are made of by their fields; None for any other class."""
    missing = inspect.Parameter.empty
    model = cls.__dict__.get("__pydantic_fields__")
    if isinstance(model, dict):
        if "root" in model:  # whose plain form is no map of fields
            return None
        return [_Field(name, each.annotation, {}, each.is_required()) for name, each in model.items()]
    scopes = {name: _module_of(base) for base in reversed(cls.__mro__) for name in inspect.get_annotations(base)}
    if dataclasses.is_dataclass(cls):
        found = []
        for each in dataclasses.fields(cls):
            is_given = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            default = missing if each.default is dataclasses.MISSING else each.default
            if each.init:
                found.append(_Field(each.name, each.type, scopes.get(each.name, {}), is_given, default))
        return found
    attributes = getattr(cls, "__attrs_attrs__", None)
    if attributes is None:
        return None
    return [
        _Field(
            each.name,
            Any if each.type is None else each.type,
            scopes.get(each.name, {}),
            _is_nothing(each.default),
        )
        for each in attributes
        if each.init
    ]


def _is_nothing(default: Any) -> bool:
    """Whether a field of an attrs class has no default; attrs itself need not be there."""
    return type(default).__name__ == "_Nothing"


def _module_of(cls: type) -> dict[str, Any]:
    module = sys.modules.get(cls.__module__)
    return {**(vars(module) if module is not None else {}), cls.__name__: cls}
