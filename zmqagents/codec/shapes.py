"""How objects of a class become plain data, and how the class is made of them again.

A `Shape` takes an object apart: the first part is its *plain form*, which a receiver may ask for instead of the
object; further parts hold what the plain form lacks. `shape_of` finds the shape that a class brings along:

=======================  =====================  ===============================================
kind of class            plain form             made again by
=======================  =====================  ===============================================
enum                     the value              the member's name, whose value must be the same
namedtuple               a tuple                ``_make``
struct sequence          a tuple                the constructor (`time.struct_time`)
dataclass, attrs class   a dict of the fields   the constructor
pydantic model           a dict of the fields   its validator (`packages.pydantic_door`)
subclass of a builtin    a value of the base    `subclass_shape`
=======================  =====================  ===============================================

**What arrives is what was sent.** A constructor or validator checks what it is given, and may change it, too. An
object that would differ from the one that was sent is refused (`check_unchanged`), not delivered. Attributes that are
no fields travel, too, but for what a `functools.cached_property` has computed.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .forms import FLAT_TYPES, TEACH, NoForm, expect, items_of, name_of

__all__ = ["Changed", "Shape", "check_unchanged", "is_same", "shape_of", "state_shape", "subclass_shape"]


class Shape(NamedTuple):
    """``take`` gives the parts of an object, at least one, which can be sent; ``make`` makes it of them.

    Both may raise anything: the codec turns it into SerializationError or RemoteProtocolError.
    """

    take: Callable[[Any], tuple[Any, ...]]
    make: Callable[..., Any]


def shape_of(cls: Any, model_shape: Callable[[Any], Shape | None]) -> Shape | None:
    """The shape that ``cls`` brings along, None if it brings none; ``model_shape`` knows pydantic's models."""
    if issubclass(cls, enum.Enum):
        return _enum_shape(cls)
    model = model_shape(cls)
    if model is not None:
        return model
    if dataclasses.is_dataclass(cls):
        return _dataclass_shape(cls)
    if "__attrs_attrs__" in vars(cls) or hasattr(cls, "__attrs_attrs__"):
        return _attrs_shape(cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make"):
        return _namedtuple_shape(cls)
    if issubclass(cls, tuple) and hasattr(cls, "n_sequence_fields"):
        return _sequence_shape(cls)
    return None


class Changed(ValueError):
    """A constructor or validator has made something else of an object than was sent."""


def check_unchanged(name: str, made: Any, sent: Any) -> None:
    """Raise Changed if the constructor has made something else of the field ``name`` than was sent."""
    if not is_same(made, sent):
        raise Changed(
            f"the constructor changed {name} from {name_of(type(sent))} {_shown(sent)} to {name_of(type(made))} "
            f"{_shown(made)}; give register_type a to_data and a from_data"
        )


def _shown(value: Any) -> str:
    return repr(value)[:60] if type(value) in FLAT_TYPES else ""


def is_same(made: Any, sent: Any) -> bool:
    """Whether two values are equal and of the same type; NaN is the same as NaN."""
    if made is sent:
        return True
    if type(made) is not type(sent):
        return False
    if type(sent) in (list, tuple, collections.deque):
        return len(made) == len(sent) and all(map(is_same, made, sent))
    if type(sent) is dict:
        return len(made) == len(sent) and all(key in made and is_same(made[key], sent[key]) for key in sent)
    try:
        return _truth(made == sent) or _truth((made == sent) | ((made != made) & (sent != sent)))  # NaN is what it was
    except Exception:
        return False


def _truth(found: Any) -> bool:
    """Whether a comparison is true throughout: arrays and tables give one answer for each item."""
    while not isinstance(found, bool) and hasattr(found, "all"):
        found = found.all()
    return bool(found)


# ---------------------------------------------------------------- enums and namedtuples


def _enum_shape(cls: Any) -> Shape:
    numbers = [member.value for member in cls.__members__.values() if isinstance(member.value, int)]
    most_bits = max([64, *(number.bit_length() for number in numbers)])

    def take(member: Any) -> tuple[Any, ...]:
        value = member.value
        if member.name is None or member.name not in cls.__members__:  # a combination of flags
            return (value,)
        plain = type(value) in FLAT_TYPES or type(value) in (bytes, tuple)
        return (value, member.name) if plain else (member.name, member.name)

    def make(value: Any, name: Any = None) -> Any:
        if name is None:
            if type(value) not in FLAT_TYPES:
                raise ValueError(f"a member is named by its value, not by {name_of(type(value))}")
            # Python 3.10 looks at each bit of a flag by itself: half a minute for a number of a few kilobytes.
            if type(value) is int and value.bit_length() > most_bits:
                raise ValueError(f"a number of {value.bit_length()} bits for a flag of at most {most_bits}")
            return cls(value)
        member = cls.__members__[expect(str, name)]
        check_unchanged(name, member.value if value != name else value, value)
        return member

    return Shape(take, make)


def _namedtuple_shape(cls: Any) -> Shape:
    def take(value: Any) -> tuple[Any, ...]:
        _refuse_more(value, cls)
        return (tuple(value),)

    return Shape(take, lambda data: cls._make(items_of(data)))


def _sequence_shape(cls: Any) -> Shape:
    """A struct sequence holds a tuple, and under names also what is no item of it, the zone of a time say."""
    return Shape(
        lambda value: tuple(value.__reduce__()[1]),
        lambda items, more: cls(tuple(items_of(items)), expect(dict, more)),
    )


def _refuse_more(value: Any, cls: Any) -> None:
    more = sorted(vars(value)) if hasattr(value, "__dict__") else []
    if more:
        raise NoForm(f"this {name_of(cls)} holds more than its form: {', '.join(more)} ({TEACH})")


# ---------------------------------------------------------------- classes with fields


def _dataclass_shape(cls: Any) -> Shape:
    fields = dataclasses.fields(cls)
    if any(issubclass(cls, base) for base in (dict, list, str, bytes, int, float, set, tuple)):
        return _no_shape(f"{name_of(cls)} is a dataclass and a builtin in one ({TEACH})")
    names = [each.name for each in fields]
    late = frozenset(each.name for each in fields if not each.init)

    wanted = [name for name, each in getattr(cls, "__dataclass_fields__", {}).items()
              if each.name not in names and _is_init_var(each) and each.default is dataclasses.MISSING
              and each.default_factory is dataclasses.MISSING]  # fmt: skip
    if wanted:
        return _no_shape(f"making a {name_of(cls)} takes {', '.join(wanted)}, which the object has not kept ({TEACH})")
    return _fields_shape(cls, {name: name for name in names}, late)


def _is_init_var(each: Any) -> bool:
    return isinstance(each.type, dataclasses.InitVar) or str(each.type).startswith(("InitVar", "dataclasses.InitVar"))


def _no_shape(reason: str) -> Shape:
    def take(value: Any) -> tuple[Any, ...]:
        raise NoForm(reason)

    def make(*parts: Any) -> Any:
        raise TypeError(reason)

    return Shape(take, make)


def _attrs_shape(cls: Any) -> Shape:
    fields = cls.__attrs_attrs__
    late = frozenset(each.name for each in fields if not each.init)
    return _fields_shape(cls, {each.name: each.alias for each in fields}, late)


def _fields_shape(cls: Any, names: dict[str, str], late: frozenset[str]) -> Shape:
    """``names``: the parameter of the constructor for each field; ``late``: the fields that have none."""
    slots = frozenset(_slots_of(cls)) - names.keys()

    def take(value: Any) -> tuple[Any, ...]:
        plain = {name: getattr(value, name) for name in names}
        held = getattr(value, "__dict__", plain)
        more = {} if held.keys() <= names.keys() and not slots else _beyond(value, names)
        return (plain, more) if more else (plain,)

    def make(data: Any, more: Any = None) -> Any:
        value = cls(**{names[name]: item for name, item in expect(dict, data).items() if name not in late})
        for name, item in data.items():
            if name in late:
                object.__setattr__(value, name, item)  # frozen classes forbid the plain way
            else:
                check_unchanged(name, getattr(value, name), item)
        if more is not None:
            set_attributes(value, more)
        return value

    return Shape(take, make)


def _beyond(value: Any, names: Iterable[str]) -> dict[str, Any]:
    """The attributes of ``value`` that are neither fields nor what a cached property has computed."""
    held = attributes_of(value)
    for name in names:
        held.pop(name, None)
    return {name: item for name, item in held.items() if not _is_computed(type(value), name)}


def _is_computed(cls: type, name: str) -> bool:
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in cls.__mro__)


# ---------------------------------------------------------------- subclasses of builtins

_HEAP_TYPE = 1 << 9  # of type.__flags__: a class that was made at run time, so all that it holds can be seen
_TEXTUAL = (str, int, float, bytes, bytearray, complex, tuple, frozenset, set)
_GROWING: dict[type, Callable[[Any, Any], Any]] = {
    list: list.extend, dict: dict.update, collections.deque: collections.deque.extend, set: set.update,
}  # fmt: skip


def subclass_shape(cls: Any, base: Any) -> Shape | None:
    """The shape of a class that derives from the builtin ``base``: a value of the base, and the attributes.

    None: objects of the class may hold more than can be seen from here.
    """
    if not cls.__flags__ & _HEAP_TYPE or (base not in _TEXTUAL and base not in _GROWING):
        return None

    def take(value: Any) -> tuple[Any, ...]:
        more = attributes_of(value)
        plain = _as_base(base, value)
        return (plain, more) if more else (plain,)

    def make(data: Any, more: Any = None) -> Any:
        expect(base, data)
        if base in _GROWING:
            value = cls.__new__(cls)
            if base is collections.deque:
                collections.deque.__init__(value, (), data.maxlen)
            _GROWING[base](value, data)
        else:
            value = cls(data)
            if type(value) is not cls or _as_base(base, value) != data:
                raise Changed(f"the constructor changed the value; {TEACH}")
        set_attributes(value, {} if more is None else more)
        return value

    return Shape(take, make)


def _as_base(base: Any, value: Any) -> Any:
    """``value`` as an object of exactly ``base``, whatever the subclass has overridden."""
    if base is dict:
        return dict(dict.items(value))
    if base is str:
        return str.__str__(value)
    if base in (int, float):
        return int.__index__(value) if base is int else float.__float__(value)
    if base is complex:
        return complex(complex.real.__get__(value), complex.imag.__get__(value))
    if base is collections.deque:
        return collections.deque(collections.deque.__iter__(value), value.maxlen)
    if base in (bytes, bytearray):
        return base(memoryview(value))
    return base(base.__iter__(value))


# ---------------------------------------------------------------- any registered class


def state_shape(cls: Any) -> Shape:
    """The shape of a class that was registered without more: its attributes, as copying an object sees them."""

    def take(value: Any) -> tuple[Any, ...]:
        reduced = value.__reduce_ex__(2)
        plain = type(reduced) is tuple and len(reduced) >= 2 and reduced[1] == (cls,)
        if not plain or any(part is not None for part in reduced[3:]):
            raise NoForm(f"a {name_of(cls)} holds more than its attributes ({TEACH})")
        return (attributes_of(value),)

    def make(data: Any) -> Any:
        value = cls.__new__(cls)
        set_attributes(value, data)
        return value

    return Shape(take, make)


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes that ``value`` holds itself, those in slots among them."""
    found = dict(getattr(value, "__dict__", {}))
    for name in _slots_of(type(value)):
        if hasattr(value, name):
            found[name] = getattr(value, name)
    return found


def _slots_of(cls: type) -> list[str]:
    """The slots of a class and its bases, by the names that they go by."""
    found = []
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{base.__name__.lstrip('_')}{name}"
            if not name.startswith("__"):
                found.append(name)
    return found


def set_attributes(value: Any, data: Any) -> None:
    """Set what `attributes_of` gave, past any ``__setattr__`` of the class."""
    for name, item in expect(dict, data).items():
        if type(name) is not str or name.startswith("__"):
            raise ValueError(f"attribute {name!r}")
        object.__setattr__(value, name, item)
