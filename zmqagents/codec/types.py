"""Classes that go by their name: registered ones, enums, namedtuples, dataclasses and pydantic models.

An object goes as the name of its class and plain data. The receiver makes an object of a class that *it* registered.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import inspect
import sys
import weakref
from collections.abc import Callable
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple, TypeVar, overload

from .. import errors
from ..errors import ConfigError, RemoteProtocolError
from .arrays import numpy_reducer
from .builtin import BASES, REDUCERS, reduce_exception, reduce_ref
from .forms import FLAT_TYPES, MARK_OBJECT, MAX_NUMBER_BYTES, Decoding, Reducer, Withheld, expect, items_of

T = TypeVar("T", bound=type)


MAX_VALIDATED_ITEMS = 1 << 20  # of a range, or an array of empty rows, that pydantic gets: it may make a list of it


class _Shape(NamedTuple):
    """How objects of a class become plain data, and how the class is made of it again."""

    to_data: Callable[[Any], Any]
    from_data: Callable[[Any], Any]


_found: weakref.WeakKeyDictionary[type, Reducer | None] = weakref.WeakKeyDictionary()
_builders: dict[str, Callable[[Any], Any]] = {}


@overload
def register_type(cls: T, *, name: str | None = None, to_data: Callable[[Any], Any] | None = None,
                  from_data: Callable[[Any], Any] | None = None) -> T: ...  # fmt: skip
@overload
def register_type(cls: None = None, *, name: str | None = None, to_data: Callable[[Any], Any] | None = None,
                  from_data: Callable[[Any], Any] | None = None) -> Callable[[T], T]: ...  # fmt: skip
def register_type(
    cls: Any = None, *, name: str | None = None,
    to_data: Callable[[Any], Any] | None = None, from_data: Callable[[Any], Any] | None = None,
) -> Any:  # fmt: skip
    """Let ``cls`` arrive here as itself; also a decorator, with or without arguments.

    ``to_data`` gives a value that can be sent, ``from_data`` makes the object of it. Without them: an enum
    goes by its value, a namedtuple by its items; a class with ``to_dict`` and ``from_dict``, a pydantic
    model and a dataclass by their fields, and any other class by its attributes. Dataclasses and pydantic
    models are made by their constructor and validator, so what these check is checked. Enums, namedtuples
    and classes with fields can be sent by who has not registered them, but arrive so only where they are.

    ``name`` is ``module:Qualified.Name`` unless given; it must be the same on both sides. A second class of
    the same name takes the first one's place, as in a notebook cell run again. ConfigError: not a class, or
    one that has its own form.
    """
    if cls is None:
        return lambda target: register_type(target, name=name, to_data=to_data, from_data=from_data)
    if not isinstance(cls, type) or cls in REDUCERS or cls in (bool, NoneType, object, type):
        raise ConfigError(f"register_type takes a class that has no form of its own, not {cls!r}")
    if issubclass(cls, BaseException) and to_data is None and from_data is None:
        if name is not None:
            raise ConfigError(f"an exception goes by its own name: leave out name={name!r} for {cls.__name__}")
        return errors.register_exception(cls)
    shape = _shape_of(cls) or _Shape(_attributes_of, _maker_from_attributes(cls))
    wire_name = name or errors.type_name_of(cls)
    _builders[wire_name] = from_data or shape.from_data
    _found[cls] = _object_reducer(wire_name, to_data or shape.to_data)
    return cls


def _object_reducer(name: str, to_data: Callable[[Any], Any]) -> Reducer:
    return lambda _, value: [MARK_OBJECT, name, to_data(value)]


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class that is not in the table; found once. None: it has no form."""
    try:
        return _found[cls]
    except KeyError:
        reducer = _found[cls] = find_reducer(cls)
        return reducer


def find_reducer(cls: type) -> Reducer | None:
    if hasattr(cls, "__zmqagents_ref__"):  # asked of the class: a proxy would ask its agent
        return reduce_ref
    if hasattr(cls, "__zmqagents_withheld__"):  # the reason, in words
        return _withhold
    if issubclass(cls, BaseException):
        return reduce_exception
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(cls, (numpy.generic, numpy.ndarray)):
        return numpy_reducer(numpy, cls)
    shape = _shape_of(cls)
    if shape is not None:
        return _object_reducer(errors.type_name_of(cls), shape.to_data)
    return next((REDUCERS[base] for base in cls.__mro__ if base in BASES), None)


def _withhold(_: Any, value: Any) -> Any:
    raise Withheld(value.__zmqagents_withheld__)


def _shape_of(cls: Any) -> _Shape | None:
    """The form that a class brings along, None if it brings none."""
    if issubclass(cls, enum.Enum):
        return _Shape(lambda member: member.value, _maker_of_flags(cls) if issubclass(cls, enum.Flag) else cls)
    if callable(getattr(cls, "to_dict", None)) and callable(getattr(cls, "from_dict", None)):
        # Before pydantic's own methods: a model with an __init__ of its own may refuse its own dump.
        return _Shape(lambda value: value.to_dict(), cls.from_dict)
    if callable(getattr(cls, "model_dump", None)) and callable(getattr(cls, "model_validate", None)):
        return _pydantic_shape(cls)
    if dataclasses.is_dataclass(cls):
        names = [each.name for each in dataclasses.fields(cls)]
        return _Shape(lambda value: {name: getattr(value, name) for name in names}, _maker_from_fields(cls))
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        return _Shape(lambda value: tuple(value), lambda data: cls._make(items_of(data)))
    return None


def _maker_of_flags(cls: Any) -> Callable[[Any], Any]:
    most_bits = max([64, *(member.value.bit_length() for member in cls.__members__.values())])

    def make(data: Any) -> Any:
        # Python 3.10 looks at each bit by itself: half a minute for a number of a few kilobytes.
        if isinstance(data, int) and data.bit_length() > most_bits:
            raise RemoteProtocolError(f"a number of {data.bit_length()} bits for a flag of at most {most_bits}")
        return cls(data)

    return make


def _pydantic_shape(cls: Any) -> _Shape:
    # mode="json" would turn bytes and the like into text; this one leaves them for us. Fields go by name;
    # a pydantic older than 2.11 takes them so only if they have no alias, or with populate_by_name.
    dump: dict[str, Any] = {"mode": "python", "round_trip": True, "warnings": False}
    if "serialize_as_any" in inspect.signature(cls.model_dump).parameters:  # from pydantic 2.7 on
        dump["serialize_as_any"] = True  # a field that holds a subclass keeps what the subclass adds
    by_name = "by_name" in inspect.signature(cls.model_validate).parameters  # from pydantic 2.11 on
    load: dict[str, Any] = {"by_name": True} if by_name else {}

    def make(data: Any) -> Any:
        _check_effort([[data]])
        return cls.model_validate(data, **load)

    return _Shape(lambda value: value.model_dump(**dump), make)


_CONTAINERS = frozenset({list, dict, tuple, set, frozenset, collections.deque})


def _check_effort(pending: list[Any]) -> None:
    """Refuse what pydantic, which converts by itself, would make large: 10**999999999 of a Decimal, a list of a range.

    ``pending``: containers of what is looked at, at every depth.
    """
    while pending:
        box = pending.pop()
        items = (*box, *box.values()) if type(box) is dict else box
        for kind in set(map(type, items)) - FLAT_TYPES:
            if kind in _CONTAINERS:
                pending += [item for item in items if type(item) is kind]
            elif any(type(item) is kind and _would_grow(item) for item in items):
                raise RemoteProtocolError(f"a {kind.__name__} too large for a field of another type")


def _would_grow(item: Any) -> bool:
    kind = type(item)
    if kind is Decimal:
        return bool(item.is_finite() and abs(item.adjusted()) > MAX_NUMBER_BYTES)
    if kind is range:
        return bool(item != item[:MAX_VALIDATED_ITEMS])
    # An array of 2**40 empty rows takes no memory.
    return kind.__name__ == "ndarray" and not item.size and bool(max(item.shape) > MAX_VALIDATED_ITEMS)


def _maker_from_fields(cls: Any) -> Callable[[Any], Any]:
    later = {each.name for each in dataclasses.fields(cls) if not each.init}

    def make(data: Any) -> Any:
        expect(dict, data)
        value = cls(**{name: item for name, item in data.items() if name not in later})
        for name in later & data.keys():
            object.__setattr__(value, name, data[name])  # frozen dataclasses forbid the plain way
        return value

    return make


def _attributes_of(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            if not name.startswith("__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def _maker_from_attributes(cls: Any) -> Callable[[Any], Any]:
    def make(data: Any) -> Any:
        value = cls.__new__(cls)
        for name, item in expect(dict, data).items():
            if name.startswith("__"):
                raise ValueError(f"attribute {name!r}")
            object.__setattr__(value, name, item)
        return value

    return make


def read_object(_: Decoding, name: Any, data: Any) -> Any:
    build = _builders.get(expect(str, name))
    if build is None:
        return data
    try:
        return build(data)
    except Exception as exc:
        text = errors.safe_text(exc)
        raise RemoteProtocolError(f"cannot make a {name} of its data: {type(exc).__name__}: {text}") from exc
