"""Python values to msgpack and back, bounded both ways. The only importer of msgpack.

A value travels as one *payload* and up to `MAX_BUFFERS` *buffers*, each a frame of its own. What
msgpack has by itself goes as it is: None, bool, int of 64 bits, float, str, bytes, list, dict (any
hashable key). Such a payload is plain msgpack. All else is *tagged*, and then the payload begins with
0xC1, the one byte that msgpack never uses:

* a *leaf* is an extension type, its code one of `Ext`: big ints, dates, paths ...
* a *box* is a list whose first item is a *mark* (the extension `Ext.MARK` with one letter): so the
  packer goes on into the children in C, and nothing is packed twice.

=============================  ===================================================================
tuple set frozenset deque      t s f d     items (deque: maxlen, items)
range slice Fraction           r l q       start stop step; numerator denominator
bytearray                      b           bytes, or the index of a buffer
numpy array, numpy scalar      a g         dtype, shape, order, bytes or index; dtype, bytes
a class with a name            o           name, data
an exception                   x           `errors.describe`'s map, packed args or None
reference to agent, to task    A T         the fields of `AgentRef`, of `TaskRef`
=============================  ===================================================================

**What arrives as what.** The types above arrive exactly as they were sent, at every depth, with their
order. So do datetime (zoneinfo zones by name; any other zone as a fixed offset, and a zone that the
receiver does not have too), date, time, timedelta, complex, Decimal, UUID, Ellipsis, and strings with
lone surrogates. memoryview arrives as bytes; any path as this machine's `pathlib.Path`; subclasses of
native types (OrderedDict, defaultdict, an int subclass) as their base. numpy arrays arrive writable:
without a copy when the frame's memory is, otherwise with one.

Classes go by name with their plain data: enums (the value), namedtuples (the items), classes with
``to_dict`` and ``from_dict``, pydantic models, dataclasses, and whatever `register_type` was told. The
receiver makes an object of a class that *it* registered; of any other name it keeps the data: the
value, a tuple, a dict. Nothing is imported by a name from the wire, and nothing is unpickled unless
the caller passes an ``unpickler``.

**Copies.** A value is taken as it is when it is encoded: bytes and read-only memory go out as they
are, writable memory (arrays, bytearray) is copied once, because the caller may change it while the
frame is on its way. Large ``bytes`` come in without a copy when the frame is ``bytes``.

**Speed.** First the C packer runs over the value, with a hook for what it does not know. Only when
that fails, or may have packed a bytearray or large bytes in place, `Walk` goes over the value in
Python: it knows at each moment where it is, hence the path in the errors. So conversions such as
``to_dict`` may be called twice.

**Bounds.** Nesting up to `MAX_DEPTH` always travels; more than 1024 levels end msgpack itself. Numbers have
`MAX_NUMBER_BYTES` at most. A box is built of children of exactly the types that the table above names, and of no
others: Python's own constructors take much more, and ten bytes (a Decimal of 1e999999999, a range of 10**18) keep
them busy for hours. A length that a peer declares reserves nothing: that is msgpack's doing, from
1.2.4 on (before 1.2 it also lost memory at each truncated message). What is not bounded is the time of a
dict or set whose keys were chosen to collide, which Python prevents for text and bytes only.

Every function here may be called from any thread.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import datetime as dt
import enum
import importlib
import inspect
import math
import pathlib
import re
import struct
import sys
import uuid
import weakref
import zoneinfo
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from types import EllipsisType, NoneType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar, cast, overload

from msgpack import ExtType, Packer, unpackb

from .. import errors
from ..errors import ConfigError, LocalProtocolError, MessageTooLarge, RemoteProtocolError, SerializationError

__all__ = [
    "INLINE_LIMIT_BYTES", "MAX_BUFFERS", "MAX_DEPTH", "MAX_NUMBER_BYTES", "MAX_TEXT", "NATIVE_TYPES", "TAG", "AgentRef",
    "Buffer", "Encoded", "TaskRef", "check_reference", "decode", "decode_call", "encode", "encode_call", "encode_plain",
    "encode_plain_call", "is_name", "new_tuple", "pack", "register_type", "unpack",
]  # fmt: skip

Buffer = bytes | memoryview
T = TypeVar("T", bound=type)
X = TypeVar("X")

INLINE_LIMIT_BYTES = 65_536  # buffers above this travel as frames of their own
MAX_BUFFERS = 64  # per value; further ones go inside the payload (frames.MAX_FRAMES leaves room for these)
MAX_DEPTH = 128  # nesting that always travels; the C packer and unpacker end at 1024
MAX_TEXT = 255  # characters of an agent id, a server id, a method name or a task id
MAX_ADDRESS_CHARS = 512  # a host name has up to 253, a socket path up to 107 bytes
MAX_NUMBER_BYTES = 8_192  # of one int, Decimal or part of a Fraction: arithmetic on longer ones is a burden
MAX_VALIDATED_ITEMS = 1 << 20  # of a range, or an array of empty rows, that pydantic gets: it may make a list of it
_MAX_MOMENT_BYTES = 128  # of a date or a time with its zone; the longest has 107
MAX_EXCEPTION_DEPTH = 4  # exceptions among the arguments of exceptions
KEEP_PACKER_BYTES = 1 << 20  # a packer keeps its buffer: one that made more than this is dropped

TAGGED = 0xC1  # "never used" in the msgpack specification
TAG = bytes([TAGGED])  # what a payload begins with that is not plain msgpack


# ---------------------------------------------------------------- references and results


@dataclass(frozen=True, slots=True)
class AgentRef:
    """Where an agent is. ``methods`` tells what each public method returns, by name."""

    server_id: str
    address: str
    agent_id: str
    class_name: str
    methods: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A result that may not be there yet, and the host that has or will have it."""

    task_id: str
    server_id: str
    address: str


def is_name(value: object) -> bool:
    """Whether an agent or a task can be called so: 1 to `MAX_TEXT` printable characters.

    The empty name is the host's own: a call to it is a management request.
    """
    return type(value) is str and 1 <= len(value) <= MAX_TEXT and value.isprintable()


def check_reference(ref: AgentRef | TaskRef) -> None:
    """Raise RemoteProtocolError for a reference that leads to no agent or task."""
    name = ref.agent_id if isinstance(ref, AgentRef) else ref.task_id
    if not is_name(name) or not is_name(ref.server_id):
        raise RemoteProtocolError("a reference with an id that nothing is called")
    if type(ref.address) is not str or not 1 <= len(ref.address) <= MAX_ADDRESS_CHARS or "\0" in ref.address:
        raise RemoteProtocolError("a reference with an address that is none")


# ``new_tuple(Reply, (code, body))`` is ``Reply(code, body)`` without the function in Python that makes it one.
new_tuple: Any = tuple.__new__


class Encoded(NamedTuple):
    """A value on its way: ``payload`` and the ``buffers`` that follow it, and ``tasks``, the results
    that it refers to at any depth, in the order met, one that is met twice given twice."""

    payload: bytes
    buffers: Sequence[Buffer]
    tasks: Sequence[TaskRef]


class NoForm(Exception):
    """There is no way to send a value; the text is the reason. Never leaves this module."""


# ---------------------------------------------------------------- on the wire


class Ext(enum.IntEnum):
    MARK = 1
    BUFFER = 2  # data: index of the buffer that holds the bytes
    INT = 3
    COMPLEX = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    DECIMAL = 9
    UUID = 10
    PATH = 11
    TEXT = 12  # a string with lone surrogates
    ELLIPSIS = 13
    PICKLE = 14


EXT_MARK, EXT_BUFFER, EXT_PICKLE = int(Ext.MARK), int(Ext.BUFFER), int(Ext.PICKLE)


def mark_of(letter: bytes) -> Any:
    return ExtType(EXT_MARK, letter)


MARK_TUPLE, MARK_SET, MARK_FROZENSET, MARK_DEQUE = mark_of(b"t"), mark_of(b"s"), mark_of(b"f"), mark_of(b"d")
MARK_RANGE, MARK_SLICE, MARK_FRACTION, MARK_BYTEARRAY = mark_of(b"r"), mark_of(b"l"), mark_of(b"q"), mark_of(b"b")
MARK_ARRAY, MARK_SCALAR, MARK_OBJECT, MARK_EXCEPTION = mark_of(b"a"), mark_of(b"g"), mark_of(b"o"), mark_of(b"x")
MARK_AGENT, MARK_TASK = mark_of(b"A"), mark_of(b"T")

FLAT_TYPES = frozenset({str, int, float, bool, NoneType})  # what cannot hold or be a buffer
BYTES_TYPES = frozenset({bytes, bytearray, memoryview})
NATIVE_TYPES = frozenset({*FLAT_TYPES, bytes, list, dict, tuple})  # no references, and nothing to be awaited
_COMPLEX_PAIR = struct.Struct(">dd")
_DELTA = struct.Struct(">iii")
INDEX = struct.Struct(">H")

# ---------------------------------------------------------------- one value to what msgpack can pack
#
# A reducer gets the encoder and a value, and returns an ExtType, a list that begins with a mark, or a
# value of a native type. Children may be of any type.

Reducer = Callable[["Encoding", Any], Any]
Resolve = Callable[[AgentRef | TaskRef], Any]


class Encoding(Protocol):
    """What a reducer may use of the value that is being encoded."""

    tasks: list[TaskRef]

    def place(self, data: Buffer) -> Buffer | int: ...
    def place_bytes(self, data: Buffer) -> Any: ...
    def nested(self, values: list[Any]) -> bytes | None: ...


class Decoding(Protocol):
    """What a builder may use of the value that is being decoded."""

    def take(self, place: Any) -> Buffer: ...
    def resolved(self, ref: AgentRef | TaskRef) -> Any: ...
    def nested(self, payload: Buffer) -> Any: ...


def _reduce_int(_: Encoding, value: int) -> Any:
    value = int.__index__(value)
    if -(2**63) <= value < 2**64:
        return value
    size = value.bit_length() // 8 + 1
    if size > MAX_NUMBER_BYTES:
        raise NoForm(f"an int of {size:,} bytes is over the limit of {MAX_NUMBER_BYTES:,}")
    return ExtType(Ext.INT, value.to_bytes(size, "big", signed=True))


def _reduce_decimal(_: Encoding, value: Decimal) -> Any:
    text = Decimal.__str__(value).encode("ascii")
    if len(text) > MAX_NUMBER_BYTES:
        raise NoForm(f"a Decimal of {len(text):,} digits is over the limit of {MAX_NUMBER_BYTES:,}")
    return ExtType(Ext.DECIMAL, text)


def _reduce_str(_: Encoding, value: str) -> Any:
    value = str.__str__(value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8, say
        return ExtType(Ext.TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _reduce_float(_: Encoding, value: float) -> float:
    return float.__float__(value)


def _reduce_bytes(encoder: Encoding, value: bytes) -> Any:
    return encoder.place_bytes(value if type(value) is bytes else memoryview(value).tobytes())


def _reduce_bytearray(encoder: Encoding, value: bytearray) -> Any:
    return [MARK_BYTEARRAY, encoder.place(bytes(value))]


def _reduce_memoryview(encoder: Encoding, value: memoryview) -> Any:
    if value.nbytes > INLINE_LIMIT_BYTES and type(value.obj) is bytes and value.c_contiguous:
        return encoder.place_bytes(value.cast("B"))
    return encoder.place_bytes(value.tobytes())


def _reduce_deque(_: Encoding, value: collections.deque[Any]) -> Any:
    return [MARK_DEQUE, value.maxlen, *value]


def _reduce_path(_: Encoding, value: pathlib.PurePath) -> Any:
    return ExtType(Ext.PATH, value.as_posix().encode("utf-8", "surrogatepass"))


def _reduce_task(encoder: Encoding, ref: TaskRef) -> Any:
    encoder.tasks.append(ref)
    return [MARK_TASK, ref.task_id, ref.server_id, ref.address]


def _reduce_agent(_: Encoding, ref: AgentRef) -> Any:
    return [MARK_AGENT, ref.server_id, ref.address, ref.agent_id, ref.class_name, dict(ref.methods)]


def reduce_ref(encoder: Encoding, value: Any) -> Any:
    ref = value.__zmqagents_ref__()
    if isinstance(ref, TaskRef):
        return _reduce_task(encoder, ref)
    if isinstance(ref, AgentRef):
        return _reduce_agent(encoder, ref)
    raise NoForm(f"its __zmqagents_ref__ gave {type(ref).__name__}, not an AgentRef or a TaskRef")


def reduce_exception(encoder: Encoding, exc: BaseException) -> Any:
    where: dict[str, str] = {}
    if isinstance(exc, errors.CallError):
        where = {"agent": exc.agent, "method": exc.method, "call_id": exc.call_id}
    args = list(exc.args)
    if isinstance(exc, OSError) and exc.filename is not None:  # OSError takes its file names out of args
        args += [exc.filename] if exc.filename2 is None else [exc.filename, None, exc.filename2]
    return [MARK_EXCEPTION, errors.describe(exc, **where), encoder.nested(args)]


_MICROSECOND = dt.timedelta(microseconds=1)
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def _zoned(value: Any, isoformat: Callable[[Any], str]) -> bytes:
    """``ISO-text fold zone``, where zone is nothing or ``name:offset``, the offset in microseconds."""
    zone = ""
    if value.tzinfo is not None:
        key = value.tzinfo.key if isinstance(value.tzinfo, zoneinfo.ZoneInfo) else None
        offset = value.utcoffset()
        shift = "" if offset is None else f"{offset // _MICROSECOND:+d}"
        # Name and offset: a receiver without that zone (no tzdata, say) still gets the right instant.
        zone = f"{key or ''}:{shift}"
    return f"{isoformat(value.replace(tzinfo=None))} {value.fold} {zone}".encode()


def _zone(text: str) -> dt.tzinfo | None:
    key, _, shift = text.rpartition(":")
    if key:
        if len(key) > 64 or not _ZONE_NAME.fullmatch(key):
            raise RemoteProtocolError("a time zone whose name is none")
        try:
            return zoneinfo.ZoneInfo(key)
        except (LookupError, ValueError, OSError):  # not known here, or a directory of zones
            if not shift:
                raise
    if not shift:
        return None
    offset = int(shift) * _MICROSECOND
    return dt.timezone(offset) if offset else dt.timezone.utc


def _moment(data: bytes) -> str:
    if len(data) > _MAX_MOMENT_BYTES:
        raise RemoteProtocolError(f"a date or time of {len(data):,} bytes is over the limit of {_MAX_MOMENT_BYTES}")
    return data.decode("ascii")


def _read_datetime(data: bytes) -> dt.datetime:
    text, fold, zone = _moment(data).split(" ")
    return dt.datetime.fromisoformat(text).replace(fold=int(fold), tzinfo=_zone(zone))


def _read_time(data: bytes) -> dt.time:
    text, fold, zone = _moment(data).split(" ")
    return dt.time.fromisoformat(text).replace(fold=int(fold), tzinfo=_zone(zone))


def _read_timedelta(data: bytes) -> dt.timedelta:
    return dt.timedelta(*_DELTA.unpack(data))


def _read_int(data: bytes) -> int:
    return int.from_bytes(_short(data), "big", signed=True)


def _read_decimal(data: bytes) -> Decimal:
    return Decimal(_short(data).decode("ascii"))


def _short(data: bytes) -> bytes:
    if len(data) > MAX_NUMBER_BYTES:
        raise RemoteProtocolError(f"a number of {len(data):,} bytes is over the limit of {MAX_NUMBER_BYTES:,}")
    return data


def _read_path(data: bytes) -> pathlib.Path:
    return pathlib.Path(data.decode("utf-8", "surrogatepass"))


def _read_ellipsis(data: bytes) -> EllipsisType:
    if data:
        raise RemoteProtocolError("an Ellipsis with data")
    return ...


LEAVES: dict[int, Callable[[bytes], Any]] = {
    Ext.INT: _read_int,
    Ext.COMPLEX: lambda data: complex(*_COMPLEX_PAIR.unpack(data)),
    Ext.DATETIME: _read_datetime,
    Ext.DATE: lambda data: dt.date.fromisoformat(_moment(data)),
    Ext.TIME: _read_time,
    Ext.TIMEDELTA: _read_timedelta,
    Ext.DECIMAL: _read_decimal,
    Ext.UUID: lambda data: uuid.UUID(bytes=data),
    Ext.PATH: _read_path,
    Ext.TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    Ext.ELLIPSIS: _read_ellipsis,
}

_PATHS: tuple[type[pathlib.PurePath], ...] = (
    pathlib.PurePath, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath,
)  # fmt: skip

REDUCERS: dict[type, Reducer] = {
    int: _reduce_int,
    float: _reduce_float,
    str: _reduce_str,
    bytes: _reduce_bytes,
    bytearray: _reduce_bytearray,
    memoryview: _reduce_memoryview,
    list: lambda _, value: list(value),
    dict: lambda _, value: dict(value),
    tuple: lambda _, value: [MARK_TUPLE, *value],
    set: lambda _, value: [MARK_SET, *value],
    frozenset: lambda _, value: [MARK_FROZENSET, *value],
    collections.deque: _reduce_deque,
    range: lambda _, value: [MARK_RANGE, value.start, value.stop, value.step],
    slice: lambda _, value: [MARK_SLICE, value.start, value.stop, value.step],
    complex: lambda _, value: ExtType(Ext.COMPLEX, _COMPLEX_PAIR.pack(value.real, value.imag)),
    Decimal: _reduce_decimal,
    # int(): a Fraction of numpy integers holds such
    Fraction: lambda _, value: [MARK_FRACTION, int(value.numerator), int(value.denominator)],
    EllipsisType: lambda _, value: ExtType(Ext.ELLIPSIS, b""),
    dt.datetime: lambda _, value: ExtType(Ext.DATETIME, _zoned(value, dt.datetime.isoformat)),
    dt.date: lambda _, value: ExtType(Ext.DATE, value.isoformat().encode()),
    dt.time: lambda _, value: ExtType(Ext.TIME, _zoned(value, dt.time.isoformat)),
    dt.timedelta: lambda _, value: ExtType(Ext.TIMEDELTA, _DELTA.pack(value.days, value.seconds, value.microseconds)),
    uuid.UUID: lambda _, value: ExtType(Ext.UUID, value.bytes),
    **dict.fromkeys(_PATHS, _reduce_path),
    AgentRef: _reduce_agent,
    TaskRef: _reduce_task,
}
BASES = frozenset(REDUCERS)


def hides_bytes(pending: list[Any]) -> bool:
    """Whether the C packer packed a bytearray, or large bytes, in place: somewhere below ``pending``.

    Dictionary keys are not looked at: they are hashable, and large bytes inside the payload are legal.
    """
    while pending:
        box = pending.pop()
        items = box.values() if type(box) is dict else box
        for kind in set(map(type, items)):
            large = kind is bytes and any(type(item) is bytes and len(item) > INLINE_LIMIT_BYTES for item in items)
            if large or kind is bytearray or kind is memoryview:
                return True
            if kind is list or kind is dict:
                pending += [item for item in items if type(item) is kind]
    return False


# ---------------------------------------------------------------- classes that go by name


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
    if issubclass(cls, BaseException):
        return reduce_exception
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(cls, (numpy.generic, numpy.ndarray)):
        return numpy_reducer(numpy, cls)
    shape = _shape_of(cls)
    if shape is not None:
        return _object_reducer(errors.type_name_of(cls), shape.to_data)
    return next((REDUCERS[base] for base in cls.__mro__ if base in BASES), None)


def _shape_of(cls: Any) -> _Shape | None:
    """The form that a class brings along, None if it brings none."""
    if issubclass(cls, enum.Enum):
        return _Shape(lambda member: member.value, cls)
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


# ---------------------------------------------------------------- numpy, never imported unless met

_DTYPE = re.compile(r"[<>|=][bifucmMSUV]\d{1,9}(\[\d{0,9}[A-Za-zμ]{1,7}\])?")


def numpy_reducer(numpy: Any, cls: type) -> Reducer | None:
    if issubclass(cls, numpy.generic):
        return _reduce_numpy_scalar
    if cls is numpy.ndarray or cls is numpy.memmap:
        return _reduce_array
    return None  # a masked array, say, is more than its data


def _reduce_numpy_scalar(_: Encoding, value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "US":  # not by dtype, which has no length of zero and drops trailing NULs, as item() does
        return [MARK_SCALAR, kind, str.__str__(value) if kind == "U" else bytes(value)]
    return [MARK_SCALAR, _dtype_data(value.dtype), value.tobytes()]


def _reduce_array(encoder: Encoding, array: Any) -> Any:
    dtype = _dtype_data(array.dtype)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    source = array.T if fortran else array
    if array.nbytes > INLINE_LIMIT_BYTES and source.flags.c_contiguous and _is_constant(array):
        data = encoder.place(memoryview(source.reshape(-1).view("u1")))
    else:
        data = encoder.place(source.tobytes())
    return [MARK_ARRAY, dtype, list(array.shape), "F" if fortran else "C", data]


def _is_constant(array: Any) -> bool:
    """Whether nobody can write to the array's memory by way of numpy: then it needs no copy."""
    while array is not None and hasattr(array, "flags"):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or memoryview(array).readonly


def _dtype_data(dtype: Any) -> Any:
    if dtype.hasobject or dtype.kind not in "bifucmMSUV" or not dtype.itemsize:
        raise NoForm(f"a numpy array of dtype {dtype} has no msgpack form")
    if dtype.names is None:
        return dtype.str
    return _as_lists(importlib.import_module("numpy.lib.format").dtype_to_descr(dtype))


def _as_lists(descr: Any) -> Any:
    return [_as_lists(item) for item in descr] if isinstance(descr, (list, tuple)) else descr


def _read_dtype(data: Any) -> Any:
    if type(data) is list:
        dtype = importlib.import_module("numpy.lib.format").descr_to_dtype(_read_descr(data))
    elif type(data) is str and _DTYPE.fullmatch(data):
        dtype = importlib.import_module("numpy").dtype(data)
    else:
        raise RemoteProtocolError("a numpy dtype that is none")
    if dtype.hasobject or not dtype.itemsize:
        raise RemoteProtocolError(f"numpy dtype {dtype} is refused")
    return dtype


def _read_descr(fields: list[Any]) -> list[Any]:
    """numpy's description of a structured dtype: ``(name, format)`` or ``(name, format, shape)`` each."""
    descr: list[Any] = []
    for given in fields:
        if type(given) is not list or len(given) not in (2, 3):
            raise RemoteProtocolError("a numpy dtype with an odd field")
        name, form, shape = (*given, None)[:3]
        if type(name) is list and len(name) == 2 and all_str(name):  # title and name
            name = tuple(name)
        elif type(name) is not str:
            raise RemoteProtocolError("a numpy dtype with an odd name")
        if type(form) is list:
            form = _read_descr(form)
        elif type(form) is not str or not _DTYPE.fullmatch(form):
            raise RemoteProtocolError("a numpy dtype that is none")
        descr.append((name, form) if shape is None else (name, form, tuple(_read_shape(shape))))
    return descr


def _read_shape(shape: Any) -> list[int]:
    if type(shape) is not list or len(shape) > 64:  # numpy's own limit, 32 before numpy 2
        raise RemoteProtocolError("a numpy array whose shape is no list, or has too many dimensions")
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**48:
            raise RemoteProtocolError("a numpy array with an odd shape")
    return shape


def _import_numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as exc:
        raise RemoteProtocolError("the value holds a numpy array, and numpy is not installed here") from exc


def read_numpy_scalar(_: Decoding, kind: Any, data: Any) -> Any:
    numpy = _import_numpy()
    if type(kind) is str and kind in ("U", "S"):
        if type(data) is not (str if kind == "U" else bytes):
            raise RemoteProtocolError("a numpy scalar of another type than it says")
        return numpy.str_(data) if kind == "U" else numpy.bytes_(data)
    dtype = _read_dtype(kind)
    expect(bytes, data)
    if len(data) != dtype.itemsize:
        raise RemoteProtocolError(f"{len(data)} bytes for a numpy scalar of {dtype.itemsize}")
    return numpy.frombuffer(bytearray(data), dtype)[0]


def read_array(decoder: Decoding, kind: Any, shape: Any, order: Any, data: Any) -> Any:
    numpy = _import_numpy()
    dtype = _read_dtype(kind)
    count = math.prod(_read_shape(shape))
    if expect(str, order) not in ("C", "F"):
        raise RemoteProtocolError("a numpy array in an order that is none")
    data = decoder.take(data)
    if count * dtype.itemsize != len(data):
        raise RemoteProtocolError(f"{len(data):,} bytes for {count:,} numpy items of {dtype.itemsize}")
    if not count:
        return numpy.empty(shape, dtype, order)
    if not isinstance(data, memoryview) or data.readonly:
        data = bytearray(data)
    flat = numpy.frombuffer(data, dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


# ---------------------------------------------------------------- encoding


class Encoder:
    """One value on its way to msgpack; used again for the next value when it went well."""

    __slots__ = ("buffers", "level", "made", "packer", "pickler", "tagged", "tasks")

    def __init__(self, level: int = 0) -> None:
        self.level = level  # of exceptions among the arguments of exceptions
        self.packer = Packer(default=self.default, strict_types=True, buf_size=4096)
        self.reset()

    def reset(self, pickler: Callable[[Any], bytes] | None = None) -> None:
        self.buffers: list[Buffer] = []
        self.tasks: list[TaskRef] = []
        self.made: list[Any] = []  # boxes that came out of `default`; the C packer went into them
        self.tagged = False
        self.pickler = pickler

    def default(self, value: Any) -> Any:
        """The packer's hook for what it does not know."""
        self.tagged = True
        item = self.reduce(value)
        if type(item) is list or type(item) is dict:
            self.made.append(item)
        return item

    def reduce(self, value: Any) -> Any:
        kind = type(value)
        reducer = REDUCERS.get(kind) or reducer_of(kind)
        try:
            if reducer is None:
                raise NoForm(f"{name_of(kind)} has no msgpack form (register_type can teach it)")
            return reducer(self, value)
        except NoForm:
            if self.pickler is None:
                raise
            return ExtType(EXT_PICKLE, self.pickler(value))

    def place(self, data: Buffer) -> Buffer | int:
        """``data`` itself, or the index of the buffer that it was put into."""
        if len(data) <= INLINE_LIMIT_BYTES or len(self.buffers) >= MAX_BUFFERS:
            return data
        self.buffers.append(data)
        return len(self.buffers) - 1

    def place_bytes(self, data: Buffer) -> Any:
        """The same for what arrives as bytes."""
        placed = self.place(data)
        if type(placed) is not int:
            return placed
        self.tagged = True
        return ExtType(EXT_BUFFER, INDEX.pack(placed))

    def argument(self, value: Any) -> Any:
        """For bytes, bytearray and memoryview at the top, where large ones mostly are: not packed in place."""
        if type(value) is bytes:
            return value if len(value) <= INLINE_LIMIT_BYTES else self.place_bytes(value)
        return self.default(value)

    def fast_value(self, value: Any) -> bytes | None:
        """The payload made in C; None: `Walk` has to make it, or to say why there is none."""
        kind = type(value)
        try:
            if kind in BYTES_TYPES:
                return self.finished(self.packer.pack(self.argument(value)), None)
            payload = self.packer.pack(value)
        except Exception:  # whatever a conversion raises, or nesting without end: the walk finds the place
            return None
        return self.finished(payload, None if kind in FLAT_TYPES else [value])

    def fast_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        """The same for arguments: a list of the positional ones and the map of the others."""
        boxes = []
        items: list[Any] = []
        try:
            for value in args:
                kind = type(value)
                if kind in BYTES_TYPES:
                    value = self.argument(value)
                elif kind not in FLAT_TYPES:
                    boxes.append(value)
                items.append(value)
            if kwargs:
                kwargs = kwargs.copy()
                for name, value in kwargs.items():
                    kind = type(value)
                    if kind in BYTES_TYPES:
                        kwargs[name] = self.argument(value)
                    elif kind not in FLAT_TYPES:
                        boxes.append(value)
            items.append(kwargs)
            payload = self.packer.pack(items)
        except Exception:  # as above
            return None
        return self.finished(payload, boxes)

    def finished(self, payload: bytes, boxes: list[Any] | None) -> bytes | None:
        # A bytearray or large bytes in it would stand behind one of msgpack's three headers of bin.
        if boxes and (0xC4 in payload or 0xC5 in payload or 0xC6 in payload) and hides_bytes([boxes, *self.made]):
            return None
        return TAG + payload if self.tagged else payload

    def walk(self, what: str) -> Walk:
        """The slow way, begun anew."""
        self.reset(self.pickler)
        return Walk(self, what)

    def nested(self, values: list[Any]) -> bytes | None:
        """``values`` as a payload of their own, None if they cannot go by themselves or are large."""
        if self.level >= MAX_EXCEPTION_DEPTH:
            return None
        inner = Encoder(self.level + 1)
        inner.pickler = self.pickler
        payload = inner.fast_value(values)
        if payload is None:
            try:
                payload = inner.walk("").value(values, "args")
            except SerializationError:
                return None
        alone = not inner.buffers and not inner.tasks and len(payload) <= INLINE_LIMIT_BYTES
        return payload if alone else None


class Reducing(Protocol):
    """What the walk uses of the encoder."""

    tagged: bool

    def reduce(self, value: Any) -> Any: ...


class Walk:
    """The slow way to the same bytes, which knows where it is. For one value."""

    __slots__ = ("encoder", "inside", "out", "path", "what")

    def __init__(self, encoder: Reducing, what: str) -> None:
        self.encoder = encoder
        self.what = what
        self.out = Packer(strict_types=True, autoreset=False)
        self.path: list[str] = []
        self.inside: set[int] = set()  # ids of the values that we are in

    def value(self, value: Any, root: str) -> bytes:
        try:
            self._put(value, root)
        except RecursionError as exc:  # begun deep in the caller's own recursion
            self._fail("it is nested too deeply for what is left of the stack", cause=exc)
        return self._payload()

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            self.out.pack_array_header(len(args) + 1)
            for index, value in enumerate(args):
                self._put(value, f"args[{index}]")
            self.out.pack_map_header(len(kwargs))
            for name, value in kwargs.items():
                self._put(name, "kwargs")
                self._put(value, f"kwargs[{_text_of(name)}]")
        except RecursionError as exc:  # as above
            self._fail("it is nested too deeply for what is left of the stack", cause=exc)
        return self._payload()

    def _payload(self) -> bytes:
        payload: bytes = self.out.bytes()
        return TAG + payload if self.encoder.tagged else payload

    def _put(self, value: Any, step: str) -> None:
        """Append ``value``, which is ``step`` from where we are."""
        self.path.append(step)
        self._put_here(value)
        self.path.pop()

    def _put_here(self, value: Any) -> None:
        kind = type(value)
        if kind is float or kind is bool or value is None:
            self.out.pack(value)
        elif kind in FLAT_TYPES or kind in BYTES_TYPES:
            self._put_item(self._reduced(value))
        else:
            if id(value) in self.inside:
                self._fail("it contains itself", value)
            if len(self.path) > MAX_DEPTH:
                self._fail(f"it is nested more than {MAX_DEPTH} levels deep", value)
            self.inside.add(id(value))
            self._put_item(value if kind is list or kind is dict else self._reduced(value))
            self.inside.discard(id(value))

    def _reduced(self, value: Any) -> Any:
        try:
            return self.encoder.reduce(value)
        except NoForm as exc:
            self._fail(str(exc), value)
        except RecursionError:
            raise
        except Exception as exc:
            name, text = name_of(type(value)), errors.safe_text(exc)
            self._fail(f"converting the {name} raised {type(exc).__name__}: {text}", value, exc)

    def _put_item(self, item: Any) -> None:
        """Append what a reducer gave, or a list or dict."""
        kind = type(item)
        if kind is dict:
            self._put_dict(item, "[{}]", _text_of)
        elif kind is not list:
            self.encoder.tagged |= kind is ExtType
            self.out.pack(item)
        elif item and type(item[0]) is ExtType and item[0].code == EXT_MARK:
            self.encoder.tagged = True
            self._put_box(item)
        elif set(map(type, item)) <= {float, bool, NoneType}:
            self.out.pack(item)
        else:
            self.out.pack_array_header(len(item))
            for index, child in enumerate(item):
                self._put(child, f"[{index}]")

    def _put_box(self, item: list[Any]) -> None:
        mark = item[0]
        self.out.pack_array_header(len(item))
        self.out.pack(mark)
        if mark is MARK_OBJECT:
            self._put(item[1], "")
            if type(item[2]) is dict:
                self._put_dict(item[2], ".{}", _field_of)
            else:
                self._put_here(item[2])
            return
        skip = 1 if mark is MARK_DEQUE else 0  # its maxlen
        for index, child in enumerate(item[1:]):
            self._put(child, "{...}" if mark is MARK_SET or mark is MARK_FROZENSET else f"[{index - skip}]")

    def _put_dict(self, item: dict[Any, Any], form: str, text_of: Callable[[Any], str]) -> None:
        self.out.pack_map_header(len(item))
        for key, child in item.items():
            text = text_of(key)
            self._put(key, f" key {text}")
            self._put(child, form.format(text))

    def _fail(self, reason: str, value: Any = ..., cause: BaseException | None = None) -> NoReturn:
        path = "".join(self.path)
        path = path if len(path) <= 500 else f"{path[:400]} ... {path[-80:]}"
        type_name = "" if value is ... else name_of(type(value))
        raise SerializationError(f"{self.what}cannot send {path}: {reason}", path, type_name) from cause


def name_of(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _text_of(key: Any) -> str:
    """A dictionary key for a path; its repr only where that is known to be short and harmless."""
    if type(key) is str or type(key) is bytes:
        return repr(key if len(key) <= 60 else key[:60])
    if type(key) in FLAT_TYPES and (type(key) is not int or key.bit_length() <= 128):
        return repr(key)
    return f"<{name_of(type(key))}>"


def _field_of(key: Any) -> str:
    return key if type(key) is str and key.isidentifier() and len(key) <= 60 else _text_of(key)


_idle: list[Encoder] = []  # append and pop are atomic; a conversion that itself encodes gets another one


def _encoder() -> Encoder:
    try:
        return _idle.pop()
    except IndexError:
        return Encoder()


def _encoded(encoder: Encoder, payload: bytes, max_bytes: int | None, what: str) -> Encoded:
    if encoder.tagged:
        encoded = Encoded(payload, encoder.buffers, encoder.tasks)
        encoder.reset()
    else:
        encoded = Encoded(payload, (), ())
    if len(payload) <= KEEP_PACKER_BYTES:
        _idle.append(encoder)
    if max_bytes is not None:
        size = len(payload) + sum(map(len, encoded.buffers)) if encoded.buffers else len(payload)
        if size > max_bytes:
            raise MessageTooLarge(f"{what}the message is {size:,} bytes, limit {max_bytes:,}", size, max_bytes)
    return encoded


def encode(
    value: Any, *, root: str = "value", max_bytes: int | None = None,
    pickler: Callable[[Any], bytes] | None = None, what: str = "",
) -> Encoded:  # fmt: skip
    """``value``, ready to be sent.

    SerializationError names the place, beginning with ``root``, and the type found there; ``what`` stands
    before the text of every error. MessageTooLarge: payload and buffers together are over ``max_bytes``.
    ``pickler`` is asked for what would fail otherwise; give one only where the receiver takes pickles.
    """
    encoder = _encoder()
    encoder.pickler = pickler
    payload = encoder.fast_value(value)
    if payload is None:
        payload = encoder.walk(what).value(value, root)
    return _encoded(encoder, payload, max_bytes, what)


def encode_plain(value: Any) -> bytes | None:
    """The whole of what `encode` gives for None, a bool, a number, text or short bytes: most results are such.

    None: it is something else, or cannot be encoded.
    """
    kind = type(value)
    if kind not in FLAT_TYPES and (kind is not bytes or len(value) > INLINE_LIMIT_BYTES):
        return None
    try:
        return pack(value)
    except LocalProtocolError:  # a long int, a lone surrogate
        return None


def encode_plain_call(args: tuple[Any, ...], max_bytes: int) -> Encoded | None:
    """The whole of what `encode_call` gives for positional arguments that `encode_plain` takes: the usual ones.

    None: there are others among them, or `encode_call` has to say what is wrong.
    """
    for value in args:
        kind = type(value)
        if kind not in FLAT_TYPES and (kind is not bytes or len(value) > INLINE_LIMIT_BYTES):
            return None
    try:
        payload = pack((*args, _NO_KEYWORDS))
    except LocalProtocolError:  # as above
        return None
    return new_tuple(Encoded, (payload, (), ())) if len(payload) <= max_bytes else None


_NO_KEYWORDS: dict[str, Any] = {}


def encode_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, max_bytes: int | None = None,
    pickler: Callable[[Any], bytes] | None = None, what: str = "",
) -> Encoded:  # fmt: skip
    """The arguments of a call, ready to be sent; as `encode`, with paths like ``kwargs['cfg'].lock``."""
    encoder = _encoder()
    encoder.pickler = pickler
    payload = encoder.fast_call(args, kwargs)
    if payload is None:
        payload = encoder.walk(what).call(args, kwargs)
    return _encoded(encoder, payload, max_bytes, what)


# ---------------------------------------------------------------- decoding


class Passing(BaseException):
    """Carries an error of ``resolve`` out through the unpacker: it is the caller's, not the peer's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Mark:
    """Stands first in a box until the box is built; must not get anywhere else."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build


class Decoder:
    """One tagged value on its way from msgpack. Its two hooks are called by the C unpacker, innermost first."""

    __slots__ = ("buffers", "level", "open", "resolve", "unpickler")

    def __init__(
        self, buffers: Sequence[Buffer], resolve: Resolve | None, unpickler: Callable[[bytes], Any] | None,
        level: int = 0,
    ) -> None:  # fmt: skip
        self.buffers: list[Buffer | None] = list(buffers)
        self.resolve = resolve
        self.unpickler = unpickler
        self.level = level
        self.open = 0  # marks that were read and whose box was not built yet

    def read(self, payload: Buffer) -> Any:
        if payload[0] != TAGGED:
            value = unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        else:
            inner = memoryview(payload)[1:]
            value = unpackb(inner, strict_map_key=False, timestamp=3, ext_hook=self.leaf, list_hook=self.box)
        if self.open:
            raise RemoteProtocolError("a mark that is not the first item of a list")
        if any(buffer is not None for buffer in self.buffers):
            raise RemoteProtocolError("a buffer that nothing refers to")
        return value

    def leaf(self, code: int, data: bytes) -> Any:
        if code == EXT_MARK:
            self.open += 1
            return MARKS[data]
        if code == EXT_BUFFER:
            return bytes(self.take(*INDEX.unpack(data)))  # bytes of bytes is no copy
        if code == EXT_PICKLE:
            if self.unpickler is None:
                raise RemoteProtocolError("a pickled value refused: this side does not take pickles from there")
            return self.unpickler(data)
        return LEAVES[code](data)

    def box(self, items: list[Any]) -> Any:
        if items and type(items[0]) is Mark:
            self.open -= 1
            return items[0].build(self, *items[1:])
        return items

    def take(self, place: Any) -> Buffer:
        """Bytes that stand in the payload, or the buffer of this index, which goes once."""
        if type(place) is bytes:
            return place
        buffer = self.buffers[place] if type(place) is int and 0 <= place < len(self.buffers) else None
        if buffer is None:
            raise RemoteProtocolError("no such buffer, or one that was used before")
        self.buffers[place] = None
        return buffer

    def nested(self, payload: Buffer) -> Any:
        """The value of a payload inside this one: the arguments of an exception."""
        if self.level >= MAX_EXCEPTION_DEPTH:
            raise RemoteProtocolError("exceptions nested too deeply")
        return Decoder((), self.resolve, self.unpickler, self.level + 1).read(payload)

    def resolved(self, ref: AgentRef | TaskRef) -> Any:
        if self.resolve is None:
            return ref
        try:
            return self.resolve(ref)
        except BaseException as exc:
            raise Passing(exc) from None


def no_extension(code: int, data: bytes) -> NoReturn:
    raise RemoteProtocolError(f"extension type {code} in a payload that is not tagged")


# Children are of any type, also one that `resolve` has made: a proxy, whose attributes are calls, or a result, which
# waits when it is iterated over. So builders look at the type of a child before all else, and never at an attribute.


def expect(kind: type[X], child: Any) -> X:
    """``child``, which must be exactly a ``kind``."""
    if type(child) is not kind:
        raise RemoteProtocolError(f"{name_of(type(child))} where {name_of(kind)} was expected")
    return child


def items_of(child: Any) -> list[Any] | tuple[Any, ...]:
    """``child``, which must be a list or a tuple."""
    if type(child) is not list and type(child) is not tuple:
        raise RemoteProtocolError(f"{name_of(type(child))} where a list was expected")
    return child


def ints_of(*children: Any) -> tuple[int, ...]:
    for child in children:
        expect(int, child)
    return children


def _read_deque(_: Decoding, maxlen: Any, *items: Any) -> collections.deque[Any]:
    return collections.deque(items, None if maxlen is None else expect(int, maxlen))


def _read_range(_: Decoding, start: Any, stop: Any, step: Any) -> range:
    return range(*ints_of(start, stop, step))


def _read_fraction(_: Decoding, numerator: Any, denominator: Any) -> Fraction:
    return Fraction(*ints_of(numerator, denominator))


def _read_bytearray(decoder: Decoding, place: Any) -> bytearray:
    return bytearray(decoder.take(place))


def read_object(_: Decoding, name: Any, data: Any) -> Any:
    build = _builders.get(expect(str, name))
    if build is None:
        return data
    try:
        return build(data)
    except Exception as exc:
        text = errors.safe_text(exc)
        raise RemoteProtocolError(f"cannot make a {name} of its data: {type(exc).__name__}: {text}") from exc


_DESCRIBED: dict[str, type] = {
    **dict.fromkeys(("type", "message", "traceback", "agent", "method", "call_id"), str),
    "args": list, "group": list, "fields": dict,
}  # fmt: skip
# Their second argument is copied into a tuple, whatever it is.
_COPIES_ARGUMENT = (SyntaxError, *filter(None, [getattr(builtins, "BaseExceptionGroup", None)]))


def _read_exception(decoder: Decoding, data: Any, packed: Any) -> Exception:
    data = dict(expect(dict, data))
    if packed is not None:
        data["args"] = decoder.nested(expect(bytes, packed))
    _check_description(data, 0)
    known = errors.known_types.get(data.get("type", ""))
    if known is None or issubclass(known, errors.ZmqAgentsError) or "agent" in data:
        return errors.rebuild(data, from_agent=False)
    args = data.get("args")
    given = tuple(args) if args is not None else (data.get("message", ""),)
    cls = cast("type[Exception]", known)
    try:
        exc = cls(*given) if cls.__module__ == "builtins" else errors.instance_of(cls, cls, given)
    except Exception:  # one that wants more arguments than could travel: this one at least shows its message
        return errors.rebuild(data, from_agent=False)
    exc.remote_traceback = data.get("traceback", "")  # type: ignore[attr-defined]
    return exc


def _check_description(data: Any, depth: int) -> None:
    """Refuse what `errors.describe` does not give, and arguments that would be work out of proportion."""
    for key, child in expect(dict, data).items():
        if type(key) is str and key in _DESCRIBED:
            expect(_DESCRIBED[key], child)
    known = errors.known_types.get(data.get("type", ""))
    if known is not None and issubclass(known, _COPIES_ARGUMENT):
        for child in data.get("args", ())[1:2]:
            items_of(child)
    if not {*map(type, data.get("fields", {}).values())} <= {int, float, str, list}:
        raise RemoteProtocolError("an exception with a field of a wrong type")
    if depth < errors.MAX_GROUP_DEPTH:  # members below that are not made
        for member in data.get("group", ()):
            _check_description(member, depth + 1)


def _read_agent(decoder: Decoding, server_id: Any, address: Any, agent_id: Any, class_name: Any, methods: Any) -> Any:
    if type(methods) is not dict or not all_str((class_name, *methods, *methods.values())):
        raise RemoteProtocolError("a reference to an agent with fields of wrong types")
    ref = AgentRef(server_id, address, agent_id, class_name, methods)
    check_reference(ref)
    return decoder.resolved(ref)


def _read_task(decoder: Decoding, task_id: Any, server_id: Any, address: Any) -> Any:
    ref = TaskRef(task_id, server_id, address)
    check_reference(ref)
    return decoder.resolved(ref)


def all_str(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


BUILDERS: dict[bytes, Callable[..., Any]] = {
    MARK_TUPLE.data: lambda _, *items: items,
    MARK_SET.data: lambda _, *items: set(items),
    MARK_FROZENSET.data: lambda _, *items: frozenset(items),
    MARK_DEQUE.data: _read_deque,
    MARK_RANGE.data: _read_range,
    # a slice of anything: it does nothing with it
    MARK_SLICE.data: lambda _, start, stop, step: slice(start, stop, step),
    MARK_FRACTION.data: _read_fraction,
    MARK_BYTEARRAY.data: _read_bytearray,
    MARK_EXCEPTION.data: _read_exception,
    MARK_AGENT.data: _read_agent,
    MARK_TASK.data: _read_task,
}

MARKS = {letter: Mark(build) for letter, build in BUILDERS.items()} | {
    MARK_ARRAY.data: Mark(read_array),
    MARK_SCALAR.data: Mark(read_numpy_scalar),
    MARK_OBJECT.data: Mark(read_object),
}


def decode(
    payload: Buffer, buffers: Sequence[Buffer] = (), *,
    resolve: Resolve | None = None, unpickler: Callable[[bytes], Any] | None = None,
) -> Any:  # fmt: skip
    """The value that `encode` put into ``payload`` and ``buffers`` (bytes, or memoryviews of bytes).

    ``resolve`` turns each reference into what the value is to hold (without it, the reference itself);
    what it raises comes out as it is. RemoteProtocolError for everything that is wrong with the data, a
    pickled part without ``unpickler`` included.
    """
    try:
        if payload[0] != TAGGED and not buffers:
            return unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        return Decoder(buffers, resolve, unpickler).read(payload)
    except RemoteProtocolError:
        raise
    except Passing as passing:
        error = passing.error
    except Exception as exc:  # truncated, garbage, an unhashable key, more nesting than the unpacker takes ...
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    try:
        raise error
    finally:
        del error  # it would hold this frame, and the frame it


def decode_call(
    payload: Buffer, buffers: Sequence[Buffer] = (), *,
    resolve: Resolve | None = None, unpickler: Callable[[bytes], Any] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """The arguments that `encode_call` put into ``payload`` and ``buffers``; as `decode`."""
    if buffers or payload[:1] == TAG:
        items = decode(payload, buffers, resolve=resolve, unpickler=unpickler)
    else:  # what `decode` does with it, for one function call less
        try:
            items = unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        except RemoteProtocolError:
            raise
        except Exception as exc:
            raise RemoteProtocolError(why_not_decoded(exc)) from exc
    if type(items) is not list or not items or type(items[-1]) is not dict:
        raise RemoteProtocolError("the arguments of a call are not a list that ends with a map")
    kwargs = items.pop()
    if kwargs and not all_str(kwargs):
        raise RemoteProtocolError("a keyword argument whose name is not a string")
    return tuple(items), kwargs


def why_not_decoded(exc: Exception) -> str:
    return f"the value cannot be decoded: {type(exc).__name__}: {errors.safe_text(exc)}"


# ---------------------------------------------------------------- plain msgpack, for headers

_MAX_HEADER_DEPTH = 64
_SHALLOW_BYTES = 256  # so few bytes cannot nest deeper than repr and other recursive code bear

_idle_packers: list[Packer] = []


def pack(value: Any) -> bytes:
    """``value`` as plain msgpack: None, bool, int, float, str, bytes, list (and tuple), dict.

    LocalProtocolError if it holds anything else.
    """
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = Packer(buf_size=1024)
    try:
        data: bytes = packer.pack(value)
    except Exception as exc:
        raise LocalProtocolError(f"cannot pack this: {type(exc).__name__}: {errors.safe_text(exc)}") from exc
    if len(data) <= KEEP_PACKER_BYTES:
        _idle_packers.append(packer)
    return data


def unpack(data: Buffer, *, max_bytes: int = 65_536) -> Any:
    """What `pack` made, and nothing else: of at most ``max_bytes``, and nested at most 64 deep if it is long.

    RemoteProtocolError for everything that is wrong with it. Lengths that are declared in it are checked
    against its own length before anything is made of them.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"{len(data):,} bytes where at most {max_bytes:,} may be")
    try:
        value = unpackb(data, strict_map_key=False, timestamp=1, ext_hook=no_extension)
    except RemoteProtocolError:
        raise
    except Exception as exc:
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    if len(data) > _SHALLOW_BYTES and not _is_shallow(value):
        raise RemoteProtocolError(f"nested more than {_MAX_HEADER_DEPTH} deep")
    return value


def _is_shallow(value: Any) -> bool:
    boxes: list[Any] = [[value]]
    for _ in range(_MAX_HEADER_DEPTH):
        items = [item for box in boxes if box for item in (box.values() if type(box) is dict else box)]
        boxes = [item for item in items if type(item) is list or type(item) is dict]
        if not boxes:
            return True
    return False
