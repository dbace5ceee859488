"""One value of each kind, and what becomes of it at each kind of receiver: the table of ``docs/values.rst``."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import importlib
import io
import ipaddress
import pathlib
import re
import threading
import time
import types as types_module
import uuid
import zoneinfo
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import pydantic

from registrations import forgotten
from travelling import found_by, received
from zmqagents import SerializationError, codec
from zmqagents.codec import pickling
from zmqagents.codec.forms import Scope

COLUMNS = ["as is", "annotated", "registered", "trusted", "private host", "plain_types"]


class Colour(enum.Enum):
    RED = "r"


class Word(str, enum.Enum):
    YES = "yes"


class Level(enum.IntEnum):
    LOW = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Spot(NamedTuple):
    x: int
    y: Any


Pair = collections.namedtuple("Pair", "left right")


class Options(TypedDict):
    depth: int


@dataclasses.dataclass
class Item:
    name: str
    colour: Colour = Colour.RED


@dataclasses.dataclass(frozen=True)
class Order:
    items: tuple[Item, ...]


@dataclasses.dataclass
class Noted:
    a: int

    def __post_init__(self) -> None:
        self.note = "no field"


@dataclasses.dataclass(slots=True)
class Slim:
    a: int


class Shape(pydantic.BaseModel):
    name: str = ""


class Circle(Shape):
    r: float = 1.0


class Holder(pydantic.BaseModel):
    shape: Shape
    shapes: list[Shape] = []
    hidden: int = pydantic.Field(default=7, exclude=True)
    _private: int = pydantic.PrivateAttr(default=1)


class Root(pydantic.RootModel[list[int]]):
    pass


T = TypeVar("T")


class Box(pydantic.BaseModel, Generic[T]):
    item: T


IntBox = Box[int]


class Linked(pydantic.BaseModel):
    url: pydantic.HttpUrl


class Locked(pydantic.BaseModel):
    key: pydantic.SecretStr


class Money(int):
    pass


class Table(dict):  # type: ignore[type-arg]
    pass


class Stranger:
    def __init__(self) -> None:
        self.a = 1


class Odd(ValueError):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.more = {code}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise NotInstalled(name) from exc


class NotInstalled(Exception):
    """A package of the table is not there."""


def _holder() -> Holder:
    made = Holder(shape=Circle(r=5), shapes=[Circle(r=2), Shape()], hidden=5)
    made._private = 9
    return made


def _attrs_object() -> Any:
    return _package("attrs_objects").Mark(1)


def _with_info(image: Any) -> Any:
    image.info["dpi"] = (72, 72)
    return image


def _frame() -> Any:
    pd = _package("pandas")
    frame = pd.DataFrame(
        {"a": [1, 2], "t": pd.to_datetime(["2024", None]), "c": pd.Categorical(["x", "y"])}, index=[0, 0]
    )
    frame["n"] = pd.array([1, None], dtype="Int64")
    return frame


def _masked() -> Any:
    return _package("numpy").ma.masked_array([1, 2], [True, False])


def _records() -> Any:
    return _package("numpy").array([(1, 2.5)], [("a", "<i4"), ("b", "<f8")])


def _stream() -> io.BytesIO:
    made = io.BytesIO(b"abc")
    made.seek(1)
    made.name = "x.png"
    return made


ROWS: dict[str, Callable[[], Any]] = {
    "None, bool, int, float, str, bytes": lambda: [None, True, 1, 2**70, -0.0, "text", "lone \ud800", b"\xff"],
    "list, dict with any keys": lambda: {"a": [1], (1, 2): {None: 2.5}},
    "tuple, set, frozenset": lambda: ((1,), {2}, frozenset({3})),
    "bytearray": lambda: bytearray(b"a"),
    "memoryview": lambda: memoryview(b"abc"),
    "range, slice, Ellipsis": lambda: [range(3), slice(1, None), ...],
    "complex": lambda: 1 - 2j,
    "collections.deque": lambda: collections.deque([1], 3),
    "collections.OrderedDict": lambda: collections.OrderedDict(b=1, a=2),
    "collections.Counter": lambda: collections.Counter("aab"),
    "collections.defaultdict(list)": lambda: collections.defaultdict(list, a=[1]),
    "collections.defaultdict of a function": lambda: collections.defaultdict(Stranger),
    "types.SimpleNamespace": lambda: types_module.SimpleNamespace(a=1),
    "decimal.Decimal": lambda: Decimal("1.50"),
    "fractions.Fraction": lambda: Fraction(1, 3),
    "uuid.UUID": lambda: uuid.UUID(int=5),
    "datetime.datetime with a ZoneInfo": lambda: dt.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
    "datetime.date, time, timedelta": lambda: [dt.date(2024, 1, 1), dt.time(1), dt.timedelta(1)],
    "datetime.timezone": lambda: dt.timezone(dt.timedelta(hours=2), "X"),
    "zoneinfo.ZoneInfo": lambda: zoneinfo.ZoneInfo("Europe/Paris"),
    "time.struct_time": lambda: time.gmtime(0),
    "pathlib.Path": lambda: pathlib.Path("a/b"),
    "pathlib.PureWindowsPath": lambda: pathlib.PureWindowsPath("c:\\a"),
    "re.Pattern": lambda: re.compile("a+", re.I),
    "ipaddress": lambda: [ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8")],
    "array.array": lambda: array.array("d", [1.5]),
    "io.BytesIO": _stream,
    "http.HTTPStatus and other enums of the standard library": lambda: _package("http").HTTPStatus.OK,
    "ValueError and other builtin exceptions": lambda: ValueError("why", {1}),
    "an exception of the program": lambda: Odd(3),
    "enum.Enum": lambda: Colour.RED,
    "enum of str": lambda: Word.YES,
    "enum.IntEnum": lambda: Level.LOW,
    "enum.Flag": lambda: Bits.A | Bits.B,
    "NamedTuple": lambda: Spot(1, (2,)),
    "collections.namedtuple": lambda: Pair(1, 2),
    "TypedDict": lambda: Options(depth=1),
    "dataclass": lambda: Item("x"),
    "dataclass, frozen, with others in it": lambda: Order((Item("x"),)),
    "dataclass with slots": lambda: Slim(1),
    "dataclass with attributes that are no fields": lambda: Noted(1),
    "attrs class": _attrs_object,
    "pydantic model": lambda: Circle(name="c", r=2),
    "pydantic model with subclasses, excluded and private fields": _holder,
    "pydantic RootModel": lambda: Root([1, 2]),
    "pydantic generic model": lambda: IntBox(item=1),
    "pydantic HttpUrl": lambda: pydantic.HttpUrl("http://a.b/c"),
    "pydantic model with an HttpUrl": lambda: Linked(url="http://a.b/c"),  # type: ignore[arg-type]
    "pydantic SecretStr": lambda: pydantic.SecretStr("x"),
    "pydantic model with a SecretStr": lambda: Locked(key="x"),  # type: ignore[arg-type]
    "subclass of int": lambda: Money(5),
    "subclass of dict": lambda: Table(a=1),
    "any other class": Stranger,
    "a lock, an open file, a generator": threading.Lock,
    "numpy.ndarray": lambda: _package("numpy").arange(6.0).reshape(2, 3),
    "numpy array of objects": lambda: _package("numpy").array([1, None, "x"], object),
    "numpy.ma.MaskedArray": _masked,
    "numpy structured array": _records,
    "numpy structured array, fields reordered": lambda: _records()[["b", "a"]],
    "numpy.recarray": lambda: _records().view(_package("numpy").recarray),
    "numpy scalar": lambda: _package("numpy").float32(1.5),
    "numpy.datetime64": lambda: _package("numpy").datetime64("2024-01-01T00:00:00.123456789"),
    "ml_dtypes bfloat16, float8": lambda: _package("numpy").zeros(2, _package("ml_dtypes").bfloat16),
    "pandas.DataFrame": _frame,
    "pandas.Series": lambda: _frame()["n"],
    "pandas.Index": lambda: _package("pandas").Index(["a", "b"], name="n"),
    "pandas.Timestamp": lambda: _package("pandas").Timestamp("2020-01-01 00:00:00.123456789", tz="Europe/Paris"),
    "pandas.Timedelta": lambda: _package("pandas").Timedelta("1ns"),
    "pandas.NaT, NA": lambda: [_package("pandas").NaT, _package("pandas").NA],
    "polars.DataFrame": lambda: _package("polars").DataFrame({"a": [1, None], "s": ["x", None]}),
    "polars.Series": lambda: _package("polars").Series("s", [dt.date(2024, 1, 1), None]),
    "polars.LazyFrame": lambda: _package("polars").DataFrame({"a": [1]}).lazy(),
    "pyarrow.Table": lambda: _package("pyarrow").table({"a": [1, None]}, metadata={"k": "v"}),
    "pyarrow.Array": lambda: _package("pyarrow").array([1, None]),
    "PIL.Image": lambda: _with_info(_package("PIL.Image").new("RGB", (2, 3), "red")),
    "torch.Tensor": lambda: _package("torch").arange(6.0).reshape(2, 3).T,
    "torch.Tensor, computed with gradients": lambda: _package("torch").ones(2, requires_grad=True) * 2,
    "torch.Tensor on another device": lambda: _package("torch").ones(2, device="meta"),
}  # fmt: skip


# ---------------------------------------------------------------- comparing


def is_alike(got: Any, sent: Any) -> bool:
    """Whether nobody who gets one for the other notices."""
    if type(got) is not type(sent):
        return False
    if type(sent) is list:
        return len(got) == len(sent) and all(map(is_alike, got, sent))
    package = type(sent).__module__.partition(".")[0]
    if package == "pandas":
        return _is_alike_in_pandas(got, sent)
    if type(sent).__name__ == "LazyFrame":
        return bool(got.serialize() == sent.serialize())
    if package in ("polars", "pyarrow"):
        return bool(got.equals(sent)) and str(got) == str(sent)
    if package == "torch":
        is_here = sent.device.type == "cpu"
        is_equal = bool((got == sent).all()) if is_here else True
        return is_equal and (got.dtype, got.shape, got.device) == (sent.dtype, sent.shape, sent.device)
    if package == "PIL":
        return bool(got == sent)
    if package == "numpy" and type(sent).__name__ == "MaskedArray":
        return repr(got) == repr(sent) and got.dtype == sent.dtype
    if package == "numpy":
        return got.dtype == sent.dtype and got.shape == sent.shape and repr(got) == repr(sent)
    if isinstance(sent, (io.BytesIO, memoryview)):
        mine, others = (bytes(each.read() if isinstance(each, io.BytesIO) else each) for each in (got, sent))
        return getattr(got, "name", "") == getattr(sent, "name", "") and mine == others
    if isinstance(sent, pydantic.BaseModel):
        return bool(got == sent) and repr(got) == repr(sent) and got.model_fields_set == sent.model_fields_set
    if type(sent) is Stranger or isinstance(sent, Exception):
        held = {name: item for name, item in vars(got).items() if name != "remote_traceback"}
        return held == vars(sent) and bool(getattr(got, "args", ()) == getattr(sent, "args", ()))
    return bool(got == sent) and found_by(got) == found_by(sent)


def _is_alike_in_pandas(got: Any, sent: Any) -> bool:
    testing = _package("pandas").testing
    kind = type(sent).__name__
    if kind == "DataFrame":
        testing.assert_frame_equal(got, sent, check_exact=True)
    elif kind == "Series":
        testing.assert_series_equal(got, sent, check_exact=True)
    elif kind == "Index":
        testing.assert_index_equal(got, sent, exact=True)
    else:
        return got is sent or (got == sent and repr(got) == repr(sent))
    return True


# ---------------------------------------------------------------- the table

# What the texts of the errors say, by the number that the table has for them.
ERRORS = {
    1: "which the receiving side does not know: there, annotate the parameter or result with",
    2: "has no msgpack form (register_type can teach it)",
    3: "is not sent unasked: send its get_secret_value(), or allow it on both sides by register_type",
    4: "a defaultdict travels if its default_factory is None or a builtin type",
    5: "is not computed yet: send its collect()",
    6: "is part of a graph: send its .detach()",
    7: "does not travel: send its .cpu()",
    8: "cannot pickle",
}


def cell(sent: Any, send: Callable[[Any], Any]) -> str:
    """The entry of the table for ``sent``: ``send`` gives what arrives, or raises.

    What is plain is asked for, but for an exception, which is the nearest base that the receiver knows.
    """
    try:
        got = send(sent)
    except Exception as exc:
        texts = [str(each) for each in (exc, exc.__cause__) if each is not None]
        known = [number for number, text in ERRORS.items() if any(text in each for each in texts)]
        if not isinstance(exc, SerializationError) or not known:
            raise
        return f"error {known[0]}"
    if is_alike(got, sent):
        return "equal"
    plain = type(got)
    is_plain = plain in (str, int, tuple, list, dict) or (plain.__name__ == "ValueError" and type(sent) is Odd)
    return f"plain {plain.__name__}" if is_plain else f"CHANGED {got!r:.80}"


def method_that_takes(hint: Any) -> Callable[..., Any]:
    def method(self: Any, value: Any) -> Any:
        return value

    method.__annotations__ = {"value": hint, "return": hint}
    return method


@contextlib.contextmanager
def registered(cls: type) -> Iterator[None]:
    with forgotten():
        with contextlib.suppress(Exception):  # of a type that has a form of its own
            codec.register_type(cls)
        yield


def in_this_process(column: str) -> Callable[[Any], Any]:
    """What sends a value as that column says, by the codec alone."""

    def send(value: Any) -> Any:
        scope = {"plain_types": Scope(plain=True), "trusted": Scope(trusted=("values_table", "attrs_objects"))}.get(
            column, Scope()
        )
        if column == "annotated":
            scope = Scope(expected=codec.expected_by(method_that_takes(type(value))))
        pickles: dict[str, Any] = {"pickler": pickling.dumps} if column == "private host" else {}
        encoded = codec.encode_call((value,), {}, **pickles)
        unpickler = pickling.loads if pickles else None
        args, _ = codec.decode_call(encoded.payload, received(encoded), scope=scope, unpickler=unpickler)
        return args[0]

    def send_registered(value: Any) -> Any:
        with registered(type(value)):
            return send(value)

    return send_registered if column == "registered" else send


def cells(name: str, sender: Callable[[str], Callable[[Any], Any]] = in_this_process) -> list[str]:
    """A row of the table; NotInstalled if its package is not there."""
    return [cell(ROWS[name](), sender(column)) for column in COLUMNS]


def table() -> str:
    """The table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for name, row in [("type", COLUMNS), *((name, cells(name)) for name in ROWS)]:
        lines += [f"   {'*' if not index else ' '} - {entry}" for index, entry in enumerate((name, *row))]
    return "\n".join(lines)


def read_table(text: str) -> dict[str, list[str]]:
    """The rows of the table in a page of the documentation."""
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("   * - "):
            rows.append([])
        if rows and line.startswith(("   * - ", "     - ")):
            rows[-1].append(line[7:])
    return {row[0]: row[1:] for row in rows[1:]}
