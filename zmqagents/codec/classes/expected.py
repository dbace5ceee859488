"""The classes that annotations name.

A method that takes an `Order` and gives a ``list[Receipt]`` says which classes its callers send and get. The host
knows these classes for the arguments of that method, the client for its result: dataclasses, attrs classes, pydantic
models, enums, namedtuples and typed dictionaries, in containers and unions of any kind, the classes that annotate
their fields, and the subclasses that this process has loaded. What an annotation cannot be resolved to, a name that is
only imported for type checkers say, names no class.
"""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import enum
import functools
import inspect
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from ..forms import Known
from .names import Names

__all__ = ["Annotations", "Family", "resolved"]

MAX_CLASSES = 10_000  # of one family
MAX_PLACES = 256  # of the arguments that ``*args`` takes
_ANY_NAME = "**"
_RENEW_S = 1.0  # a family looks for new subclasses at most that often: a peer may send any number of names
_PLAIN = (dict, list, collections.abc.Mapping, collections.abc.MutableMapping, collections.abc.Sequence,
          collections.abc.MutableSequence)  # fmt: skip
_SCALARS = (Any, None, type(None), str, int, float, bool)
_ROOTS = frozenset({abc.ABC, enum.Enum, enum.IntEnum, enum.Flag, enum.IntFlag, typing.Generic})  # and all builtins
_ROOT_NAMES = frozenset({"pydantic.main:BaseModel", "typing:Protocol", "enum:StrEnum", "pydantic.root_model:RootModel"})

Making = Callable[[type], "Known | None"]  # what makes objects of a class, if anything can


class Family:
    """Classes, those that annotate their fields, and the loaded subclasses of all. Any thread may use it."""

    def __init__(self, hints: Iterable[tuple[Any, Mapping[str, Any]]], making: Making) -> None:
        """``hints``: annotations, each with the names that it may use."""
        self._hints = list(hints)
        self._making = making
        self._lock = threading.Lock()
        self._names: Names | None = None
        self._made_at = 0.0

    def find(self, name: str) -> Known | None:
        """The class of this name on the wire."""
        with self._lock:
            if self._names is None:
                self._renew()
            found = self._names.find(name) if self._names is not None else None
            if found is None and time.monotonic() - self._made_at > _RENEW_S:
                self._renew()
                found = self._names.find(name) if self._names is not None else None
            return found

    def classes(self) -> list[type]:
        """The classes, whether objects of them can be made or not."""
        return classes_of(self._hints)

    def _renew(self) -> None:
        names = Names()
        for cls in self.classes():
            known = self._making(cls)
            if known is not None:
                names.add(known)
        self._names, self._made_at = names, time.monotonic()


class Annotations:
    """The annotations of one method, as `forms.Expected`. Nothing is resolved before a name is asked for."""

    def __init__(
        self, method: Callable[..., Any], *others: Callable[..., Any], making: Making, of_result: bool = False,
        skip: int = 1,
    ) -> None:  # fmt: skip
        """``skip``: how many of the first parameters no caller gives, ``self`` say; ``others``: what ``method`` may
        call in its place, whose annotations name classes, too.
        """
        self._skip = skip
        self._method = inspect.unwrap(method)
        self._others = others
        self._making = making
        self._of_result = of_result

    @functools.cached_property
    def _family(self) -> Family:
        found: list[tuple[Any, Mapping[str, Any]]] = []
        for method in (self._method, *map(inspect.unwrap, self._others)):
            scope = getattr(method, "__globals__", {})
            hints = dict(getattr(method, "__annotations__", {}))
            result = hints.pop("return", None)
            found += [(hint, scope) for hint in ([result] if self._of_result else hints.values())]
        return Family(found, self._making)

    @functools.cached_property
    def _plain(self) -> frozenset[int | str]:
        scope = getattr(self._method, "__globals__", {})
        if self._of_result:
            hint = getattr(self._method, "__annotations__", {}).get("return")
            return frozenset({0} if _is_plain(hint, scope) else ())
        found: set[int | str] = set()
        try:
            parameters = list(inspect.signature(self._method).parameters.values())[self._skip :]
        except (TypeError, ValueError):  # a function in C
            return frozenset()
        for place, each in enumerate(parameters):
            if not _is_plain(each.annotation, scope):
                continue
            if each.kind is each.VAR_POSITIONAL:
                found |= set(range(place, MAX_PLACES))
            elif each.kind is each.VAR_KEYWORD:
                found.add(_ANY_NAME)
            else:
                found |= {place, each.name}
        return frozenset(found)

    def find(self, name: str) -> Known | None:
        return self._family.find(name)

    def classes(self) -> list[type]:
        """All that they name."""
        return self._family.classes()

    def takes_plain(self, place: int | str | None) -> bool:
        """``place``: the index of an argument, or its name; 0 of a result."""
        return place in self._plain or (type(place) is str and _ANY_NAME in self._plain)


def _is_plain(hint: Any, scope: Mapping[str, Any]) -> bool:
    """Whether ``hint`` asks for a dict or list of plain data: ``dict``, ``list[Any]``, ``dict[str, int] | None``."""
    hint = resolved(hint, scope)
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    kinds = [typing.get_origin(part) or part for part in parts]
    return any(kind in _PLAIN for kind in kinds) and all(_holds_plain(part, scope) for part in parts)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _holds_plain(hint: Any, scope: Mapping[str, Any]) -> bool:
    hint = resolved(hint, scope)
    kind = typing.get_origin(hint) or hint
    return (kind in _PLAIN or kind in _SCALARS or _is_union(hint)) and all(
        _holds_plain(part, scope) for part in typing.get_args(hint)
    )


# ---------------------------------------------------------------- from annotations to classes


def classes_of(hints: Iterable[tuple[Any, Mapping[str, Any]]]) -> list[type]:
    """The classes in ``hints``, those in the annotations of their fields, and their subclasses."""
    found: dict[type, None] = {}
    pending = [cls for hint, scope in hints for cls in _named(hint, scope)]
    while pending and len(found) < MAX_CLASSES:
        cls = pending.pop()
        if cls in found or _is_root(cls):
            continue
        found[cls] = None
        for hint, scope in _fields_of(cls):
            pending += _named(hint, scope)
        pending += type.__subclasses__(cls)
    return list(found)


def _is_root(cls: type) -> bool:
    """Whether so much derives from ``cls`` that its name says nothing."""
    return cls in _ROOTS or f"{cls.__module__}:{cls.__qualname__}" in _ROOT_NAMES or cls.__module__ == "builtins"


def _named(hint: Any, scope: Mapping[str, Any], depth: int = 0) -> Iterator[type]:
    """The classes that stand in one annotation."""
    hint = resolved(hint, scope)
    if depth > 32 or hint is None:
        return
    if isinstance(hint, type) and not typing.get_args(hint):
        yield hint
        return
    if isinstance(hint, type):  # a generic alias of a builtin
        yield from ()
    if isinstance(hint, typing.TypeVar):
        for bound in (hint.__bound__, *hint.__constraints__):
            yield from _named(bound, scope, depth + 1)
    value = getattr(hint, "__value__", None)  # of ``type Name = ...``
    if value is not None and type(hint).__name__ == "TypeAliasType":
        yield from _named(value, scope, depth + 1)
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        for each in typing.get_args(hint):
            yield type(each)
        return
    if isinstance(origin, type):
        yield origin
    for part in typing.get_args(hint):
        for each in part if isinstance(part, list) else (part,):  # the parameters of a Callable
            yield from _named(each, scope, depth + 1)


def resolved(hint: Any, scope: Mapping[str, Any], otherwise: Callable[[str], Any] = lambda _: None) -> Any:
    """What an annotation that is text, as with ``from __future__ import annotations``, says in its module.

    ``otherwise`` is asked what a text says that uses a name which is only there for type checkers.
    """
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if not isinstance(hint, str):
        return hint
    try:
        holder = SimpleNamespace(__annotations__={"hint": hint})
        return typing.get_type_hints(holder, dict(scope), include_extras=True)["hint"]
    except Exception:
        return otherwise(hint)


def _fields_of(cls: type) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The annotations of the fields of ``cls``, as `classes_of` takes them."""
    model = cls.__dict__.get("__pydantic_fields__")
    for each in model.values() if isinstance(model, dict) else ():
        yield each.annotation, {}
    has_fields = dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__") or hasattr(cls, "_fields")
    if not has_fields and not hasattr(cls, "__total__") and model is None:
        return
    for base in cls.__mro__:
        module = sys.modules.get(base.__module__)
        scope = {**(vars(module) if module is not None else {}), base.__name__: base}
        for hint in _own_annotations(base).values():
            yield hint, scope


def _own_annotations(cls: type) -> dict[str, Any]:
    try:
        return dict(inspect.get_annotations(cls))
    except Exception:  # from Python 3.14 on they are made when they are asked for
        return {}
