"""Whatever a family of values holds, each arrives equal and of the same type, by every way that a value can take."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import enum
import io
import ipaddress
import math
import pathlib
import re
import sys
import time
import types as types_module
import uuid
import zoneinfo
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anything import HASHABLE, TEXTS, VALUES
from scale import pick
from travelling import KNOWN_BY, every_way, found_by

law = settings(deadline=None, max_examples=pick(25, 60))


# ---------------------------------------------------------------- the standard library

SMALL = VALUES.filter(lambda value: len(repr(value)) < 4_000)  # what an exception takes along whatever its size
NUMBERS = st.integers(-(2**70), 2**70)
FACTORIES = st.sampled_from([None, list, dict, set, int, float, str, tuple, collections.Counter])
PATTERNS = st.from_regex(r"\A[a-z.]{0,8}(\[[a-f]+\][*+?]?)?(\(x\|y\))?\Z")
ZONES = st.sampled_from(["Europe/Paris", "UTC", "Asia/Kathmandu"]).map(zoneinfo.ZoneInfo) | st.builds(
    dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)), st.text(max_size=5)
)
ADDRESSES = st.ip_addresses()


def moved(items: list[tuple[Any, Any]], last: int) -> collections.OrderedDict[Any, Any]:
    """An OrderedDict whose order is not that in which it was filled."""
    made = collections.OrderedDict(items)
    if made:
        made.move_to_end(list(made)[last % len(made)], last=bool(last % 2))
    return made


def stream(data: bytes, place: int) -> io.BytesIO:
    made = io.BytesIO(data)
    made.seek(place)
    return made


NAMED_ZONES = st.builds(dt.timezone, st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)), st.text())
STANDARD: dict[str, st.SearchStrategy[Any]] = {
    "any": VALUES,
    "OrderedDict": st.builds(moved, st.lists(st.tuples(HASHABLE, VALUES), max_size=4), st.integers(0, 9)),
    "Counter": st.dictionaries(HASHABLE, NUMBERS | st.fractions(), max_size=4).map(collections.Counter),
    "defaultdict": st.builds(collections.defaultdict, FACTORIES, st.dictionaries(HASHABLE, VALUES, max_size=3)),
    "deque": st.builds(collections.deque, st.lists(VALUES, max_size=4), st.none() | st.integers(0, 6)),
    "slice": st.builds(slice, VALUES, VALUES, VALUES),
    "SimpleNamespace": st.dictionaries(st.text(), VALUES, max_size=3).map(
        lambda found: types_module.SimpleNamespace(**found)
    ),
    "Pattern": st.builds(re.compile, PATTERNS, st.sampled_from([0, re.I, re.M | re.S, re.A, re.X])),
    "Pattern of bytes": st.builds(lambda text: re.compile(text.encode(), re.I), PATTERNS),
    "ZoneInfo": ZONES,
    "datetime in a named zone": st.datetimes(timezones=NAMED_ZONES),
    "time in a named zone": st.times(timezones=NAMED_ZONES),
    "UUID": st.builds(lambda number, safe: uuid.UUID(int=number, is_safe=safe), st.integers(0, 2**128 - 1),
                      st.sampled_from(uuid.SafeUUID)),
    "address": ADDRESSES,
    "network": st.builds(
        lambda address, bits: ipaddress.ip_network((address, bits), strict=False), ADDRESSES, st.integers(0, 32)
    ),
    "interface": st.builds(
        lambda address, bits: ipaddress.ip_interface((address, bits)), ADDRESSES, st.integers(0, 32)
    ),
    "array": st.one_of(
        *(st.builds(array.array, st.just(code), st.lists(st.integers(-128 if code.islower() else 0, 127), max_size=5))
          for code in "bBhHiIlLqQ"),
        st.lists(st.floats(allow_nan=False, width=32), max_size=5).map(lambda found: array.array("f", found)),
        *((TEXTS.map(lambda text: array.array("u", text)),) if sys.version_info < (3, 13) else ()),  # deprecated then
    ),
    "PurePath": TEXTS.map(lambda text: pathlib.PurePosixPath(text.replace("\0", ""))),
    "PureWindowsPath": TEXTS.map(lambda text: pathlib.PureWindowsPath(text.replace("\0", ""))),
    "struct_time": st.floats(0, 2**31).map(time.localtime) | st.floats(0, 2**31).map(time.gmtime),
}  # fmt: skip


@pytest.mark.parametrize("family", STANDARD)
@law
@given(data=st.data())
def test_any_value_of_the_standard_library_arrives_as_it_was_sent(family: str, data: Any) -> None:
    every_way(data.draw(STANDARD[family]))


@law
@given(st.binary(max_size=40), st.integers(0, 60))
def test_a_stream_of_bytes_arrives_with_its_place(data: bytes, place: int) -> None:
    def check(got: io.BytesIO, sent: io.BytesIO) -> None:
        assert (type(got), got.getvalue(), got.tell()) == (io.BytesIO, sent.getvalue(), sent.tell())

    every_way(stream(data, place), check)


@law
@given(hnp.arrays(st.sampled_from(["u1", "i2", "i4", "f4", "f8", "?"]), hnp.array_shapes(min_dims=0)))
def test_a_view_of_memory_arrives_with_format_and_shape(found: Any) -> None:
    def check(got: memoryview, sent: memoryview) -> None:
        assert (type(got), got.format, got.shape) == (memoryview, sent.format, sent.shape)
        assert got.tobytes() == sent.tobytes()

    every_way(memoryview(found), check)


@law
@given(st.sampled_from([OSError, KeyError, UnicodeDecodeError, StopIteration, TypeError]), st.lists(SMALL, max_size=3))
def test_an_exception_arrives_with_its_arguments_attributes_and_cause(cls: Any, args: list[Any]) -> None:
    if cls is UnicodeDecodeError:
        args = ["utf-8", b"abc", 0, 1, "why"]
    sent = cls(*args)
    sent.__cause__ = ValueError(*args)
    sent.more = [*args]

    def check(got: Any, sent: Any) -> None:
        assert type(got) is type(sent)
        assert found_by(got.args) == found_by(sent.args)
        assert found_by(got.more) == found_by(sent.more)
        assert type(got.__cause__) is ValueError
        assert found_by(got.__cause__.args) == found_by(tuple(args))

    every_way(sent, check)


# ---------------------------------------------------------------- enums


class Colour(enum.Enum):
    RED = "r"
    CRIMSON = "r"  # noqa: PIE796 - another name of RED
    PAIR = (1, 2.5)
    LIST = [1, 2]
    NAN = math.nan
    NONE = None
    TRUE = True
    TWO = 2


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 2**70


class Word(str, enum.Enum):
    A = "a"
    B = "A"


class Bits(enum.Flag):
    A = 1
    B = 2
    C = 8


class Mask(enum.IntFlag):
    A = 1
    B = 6


class Planet(enum.Enum):
    EARTH = (5.97e24, 6.4e6)

    def __init__(self, mass: float, radius: float) -> None:
        self.mass = mass


ENUMS = st.sampled_from([*Colour, *Level, *Word, *Planet]) | st.builds(
    lambda cls, bits: cls(bits), st.just(Bits), st.sampled_from([0, 1, 2, 3, 8, 9, 10, 11])
) | st.integers(0, 2**40).map(Mask)  # fmt: skip


@law
@given(ENUMS, st.sampled_from(KNOWN_BY))
def test_any_enum_arrives_as_its_member(member: Any, way: Any) -> None:
    def check(got: Any, sent: Any) -> None:
        assert type(got) is type(sent)
        assert got is sent or (got == sent and isinstance(sent, enum.Flag))

    every_way(member, check, known=way)


# ---------------------------------------------------------------- namedtuples, dataclasses and other fields


class Point(NamedTuple):
    x: Any
    y: Any = None


Renamed = collections.namedtuple("Renamed", ["class", "a"], rename=True)


class Sub(Point):
    __slots__ = ()


@dataclasses.dataclass
class Plain:
    a: Any
    b: list[Any] = dataclasses.field(default_factory=list)
    made: Any = dataclasses.field(default=0, init=False)
    unseen: Any = dataclasses.field(default=0, compare=False, repr=False)

    @cached_property
    def size(self) -> int:
        return len(self.b)


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any = dataclasses.field(default=1, kw_only=True)
    made: Any = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any
    b: Any = 1


@dataclasses.dataclass
class Child(Plain):
    child: Any = None
    _hidden: Any = None


X = TypeVar("X")


@dataclasses.dataclass
class Box(Generic[X]):
    item: X


@dataclasses.dataclass
class Counted:
    a: Any

    def __post_init__(self) -> None:
        self.calls = 0  # no field


def with_attributes(value: Any, **attributes: Any) -> Any:
    for name, item in attributes.items():
        object.__setattr__(value, name, item)
    return value


def dataclasses_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.tuples(inner, inner).map(Point._make), st.tuples(inner, inner).map(Renamed._make), inner.map(Sub),
        st.builds(lambda made, a, b, unseen: with_attributes(Plain(a, b, unseen=unseen), made=made),
                  inner, inner, st.lists(inner, max_size=2), inner),
        st.builds(lambda made, a, b: with_attributes(Frozen(a, b=b), made=made), inner, inner, inner),
        st.builds(lambda *both: Slotted(*both), inner, inner), inner.map(Box),
        st.builds(lambda a, child, hidden: Child(a, child=child, _hidden=hidden), inner, inner, inner),
        st.builds(lambda a, calls, more: with_attributes(Counted(a), calls=calls, more=more), inner, inner, inner),
    )  # fmt: skip


RECORDS = st.recursive(
    VALUES | ENUMS.filter(lambda member: member is not Colour.NAN), dataclasses_of, max_leaves=4
).filter(lambda value: not isinstance(value, (int, str, bytes)))


@law
@given(RECORDS, st.sampled_from(KNOWN_BY))
def test_any_namedtuple_and_dataclass_arrives_with_all_fields(value: Any, way: Any) -> None:
    every_way(value, known=way)


def test_what_a_cached_property_has_computed_does_not_travel() -> None:
    sent = Plain(1, [1, 2])
    assert sent.size == 2

    def check(got: Plain, sent: Plain) -> None:
        assert got == sent
        assert "size" not in vars(got)

    every_way(sent, check)


# ---------------------------------------------------------------- subclasses of builtins


class MyInt(int):
    pass


class MyText(str):
    pass


class MyBytes(bytes):
    pass


class MyList(list):  # type: ignore[type-arg]
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


class MySet(set):  # type: ignore[type-arg]
    pass


class MyTuple(tuple):  # type: ignore[type-arg]
    pass


class MyDeque(collections.deque):  # type: ignore[type-arg]
    pass


class MyFloat(float):
    pass


class MyComplex(complex):
    pass


class MyOrdered(collections.OrderedDict):  # type: ignore[type-arg]
    pass


class MyDefault(collections.defaultdict):  # type: ignore[type-arg]
    pass


SUBCLASSED = st.one_of(
    NUMBERS.map(MyInt), TEXTS.map(MyText), st.binary().map(MyBytes), st.lists(VALUES, max_size=3).map(MyList),
    st.dictionaries(HASHABLE, VALUES, max_size=3).map(MyDict), st.lists(VALUES, max_size=3).map(MyTuple),
    st.sets(HASHABLE, max_size=3).map(MySet), st.floats(allow_nan=False).map(MyFloat),
    st.builds(MyDeque, st.lists(VALUES, max_size=3), st.none() | st.integers(0, 5)),
    st.complex_numbers(allow_nan=False).map(MyComplex),
)  # fmt: skip


@law
@given(SUBCLASSED, VALUES, st.booleans(), st.sampled_from(KNOWN_BY))
def test_a_subclass_of_a_builtin_arrives_as_one_with_its_attributes(
    value: Any, more: Any, has_more: bool, way: Any
) -> None:
    if has_more:
        value.more = more
    every_way(value, known=way)


@pytest.mark.parametrize(
    "value",
    [
        MyDeque([1], 3), MyOrdered(a=1), MyDefault(list, {"a": [1]}), with_attributes(collections.OrderedDict(), a=1),
        with_attributes(collections.Counter(), a=1), type("Aware", (dt.datetime,), {})(2024, 1, 1),
        type("Late", (dt.timedelta,), {})(1), type("Money", (Decimal,), {})(1), type("Namespace", (
            types_module.SimpleNamespace,), {})(a=1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_holds_more_than_its_form_arrives_whole_or_is_refused(value: Any) -> None:
    every_way(value, may_refuse=True)


# ---------------------------------------------------------------- pydantic


class Shape(pydantic.BaseModel):
    name: str = ""


class Circle(Shape):
    r: float = 1.0


class Square(Shape):
    side: int = 1


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    shape: Shape = Shape()
    shapes: list[Shape] = []
    table: dict[str, Shape] = {}
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")] = Cat()
    either: int | str | float = 0
    any: Any = None
    left_out: int = pydantic.Field(default=7, exclude=True)
    aliased: int = pydantic.Field(default=1, alias="Aliased")
    when: dt.datetime | None = None
    url: pydantic.HttpUrl | None = None
    data: bytes = b""
    money: Decimal = Decimal(0)
    pair: tuple[int, str] = (0, "")
    words: frozenset[str] = frozenset()
    colour: Colour = Colour.RED
    inner: Model | None = None
    later: dt.timedelta = dt.timedelta()
    _private: Any = pydantic.PrivateAttr(default=1)

    @pydantic.field_serializer("when")
    def _when(self, value: Any) -> Any:
        return "hidden"


class Lax(pydantic.BaseModel):
    """Pydantic validates neither defaults nor what is assigned, so a field may hold what its type does not say."""

    model_config = pydantic.ConfigDict(use_enum_values=True)
    name: str = None  # type: ignore[assignment]
    colour: Colour = Colour.RED
    words: list[str] = ()  # type: ignore[assignment]


def lax(name: str | None, colour: Colour | None, is_assigned: bool) -> Any:
    given: dict[str, Any] = {"name": name, "colour": None if is_assigned else colour}
    made = Lax(**{key: item for key, item in given.items() if item is not None})
    if is_assigned and colour is not None:
        made.colour = colour
    return made


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    a: Any = None


class Root(pydantic.RootModel[list[Shape]]):
    pass


class Held(pydantic.BaseModel, Generic[X]):
    item: X


HeldInt = Held[int]

SHAPES = st.one_of(
    st.builds(Shape, name=st.text()), st.builds(Circle, r=st.floats(allow_nan=False)), st.builds(Square, side=NUMBERS)
)
UTC = st.datetimes(timezones=st.just(dt.timezone.utc)) | st.datetimes()


def models_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = {
        "shape": SHAPES, "shapes": st.lists(SHAPES, max_size=2),
        "table": st.dictionaries(st.text(), SHAPES, max_size=2),
        "pet": st.builds(Cat) | st.builds(Dog, lives=st.integers()), "any": inner, "left_out": NUMBERS,
        "either": NUMBERS | st.text() | st.floats(allow_nan=False), "Aliased": NUMBERS, "when": st.none() | UTC,
        "url": st.sampled_from([None, "http://a.b/c?d=e", "https://é.example/"]), "data": st.binary(),
        "money": st.decimals(allow_nan=False, allow_infinity=False), "pair": st.tuples(NUMBERS, st.text()),
        "words": st.frozensets(st.text(), max_size=3), "colour": st.sampled_from([Colour.RED, Colour.TWO]),
        "later": st.timedeltas(),
    }  # fmt: skip
    return st.one_of(
        st.builds(lambda private, found: with_private(Model(**found), private), inner,
                  st.fixed_dictionaries({}, optional=fields)),
        st.dictionaries(st.sampled_from(["a", "b", "naïve"]), inner, max_size=3).map(lambda found: Open(**found)),
        st.lists(SHAPES, max_size=3).map(Root), st.builds(HeldInt, item=NUMBERS),
        st.builds(lax, st.none() | st.text(), st.sampled_from([None, Colour.RED, Colour.TWO]), st.booleans()),
    )  # fmt: skip


def with_private(model: Model, private: Any) -> Model:
    model._private = private
    return model


# The validator may make a list of a range or an int of a Decimal, so that long ones are refused in a model.
BOUNDED = VALUES.filter(lambda value: "range(" not in repr(value) and "Decimal(" not in repr(value))
MODELS = st.recursive(BOUNDED, models_of, max_leaves=3).filter(lambda value: isinstance(value, pydantic.BaseModel))


def check_model(got: Any, sent: Any) -> None:
    assert type(got) is type(sent)
    assert got.model_fields_set == sent.model_fields_set
    assert found_by(vars(got)) == found_by(vars(sent))
    assert found_by(got.__pydantic_extra__) == found_by(sent.__pydantic_extra__)
    assert found_by(got.__pydantic_private__) == found_by(sent.__pydantic_private__)


@law
@given(MODELS, st.sampled_from(KNOWN_BY))
def test_any_model_arrives_with_subclasses_excluded_private_and_extra_fields(value: Any, way: Any) -> None:
    every_way(value, check_model, known=way)


# ---------------------------------------------------------------- numpy

DTYPES: st.SearchStrategy[Any] = st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes(max_size=3, allow_subarrays=True),
    hnp.nested_dtypes(max_leaves=4))  # fmt: skip
SHAPES_OF_ARRAYS = hnp.array_shapes(min_dims=0, min_side=0, max_side=4)


def check_array(got: Any, sent: Any) -> None:
    assert type(got) is type(sent)
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    assert got.tobytes() == sent.tobytes()
    assert got.flags.writeable


@law
@given(hnp.arrays(DTYPES, SHAPES_OF_ARRAYS))
def test_any_array_arrives_with_type_and_bytes_whatever_its_strides(found: Any) -> None:
    assume(found.dtype.itemsize)
    for sent in (found, found.T, found[::-1] if found.ndim else found, found[..., ::2] if found.ndim else found):
        every_way(sent, check_array)


@law
@given(hnp.arrays(hnp.array_dtypes(min_size=2, max_size=4), hnp.array_shapes(max_dims=1)), st.data())
def test_any_choice_and_order_of_fields_of_a_structured_array_arrives(found: Any, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(found.dtype.names), min_size=1, unique=True))
    assume(found.dtype.itemsize)
    sent = found[names]

    def check(got: Any, sent: Any) -> None:
        assert (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape)
        assert all(got[name].tobytes() == sent[name].tobytes() for name in names)

    every_way(sent, check)


@law
@given(st.lists(VALUES, max_size=6), st.booleans())
def test_any_array_of_objects_arrives_with_each_object(items: list[Any], is_square: bool) -> None:
    sent: Any = np.empty(len(items), object)
    for index, item in enumerate(items):
        sent[index] = item
    if is_square and len(items) % 2 == 0:
        sent = sent.reshape(2, -1)

    def check(got: Any, sent: Any) -> None:
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert found_by(got.tolist()) == found_by(sent.tolist())

    every_way(sent, check)


@law
@given(hnp.arrays(st.sampled_from(["i4", "f8", "c16", "U3", "M8[ns]"]), hnp.array_shapes(max_side=3)), st.data())
def test_any_masked_array_arrives_with_mask_and_fill(found: Any, data: Any) -> None:
    mask = data.draw(st.just(np.ma.nomask) | hnp.arrays("?", found.shape))
    sent = np.ma.masked_array(found, mask, hard_mask=data.draw(st.booleans()))

    def check(got: Any, sent: Any) -> None:
        assert (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape)
        assert got.data.tobytes() == sent.data.tobytes()
        assert np.array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(sent))
        assert (got.mask is np.ma.nomask) == (sent.mask is np.ma.nomask)
        assert (repr(got.fill_value), got.hardmask) == (repr(sent.fill_value), sent.hardmask)

    every_way(sent, check)


@law
@given(hnp.arrays(DTYPES, 1))
def test_any_scalar_of_numpy_keeps_its_type(found: Any) -> None:
    assume(found.dtype.itemsize)
    sent = found[0]

    def check(got: Any, sent: Any) -> None:
        assert type(got) is type(sent)
        assert got.dtype == sent.dtype
        assert got.tobytes() == sent.tobytes()

    every_way(sent, check)
