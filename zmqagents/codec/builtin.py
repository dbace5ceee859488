"""The types of Python and its standard library: how each is sent, and how it is made again.

`REDUCERS` has a reducer for each type whose module is loaded (see `late_reducer`), `LEAVES` and `BUILDERS` what makes
the values again; the rarer types are in `standard`. A date and time carries the name of its `zoneinfo` zone and its
offset: a receiver that has no such zone, or another offset for it at that time, refuses it.
"""

from __future__ import annotations

import collections
import datetime as dt
import pathlib
import struct
import sys
import uuid
from collections.abc import Callable
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from msgpack import ExtType

from ..errors import RemoteProtocolError, SerializationError
from .exceptions import read_exception
from .forms import (
    MARK_AGENT,
    MARK_BYTEARRAY,
    MARK_DEQUE,
    MARK_EXCEPTION,
    MARK_FRACTION,
    MARK_FROZENSET,
    MARK_OBJECT,
    MARK_RANGE,
    MARK_SET,
    MARK_SLICE,
    MARK_STANDARD,
    MARK_TASK,
    MARK_TUPLE,
    MAX_NUMBER_BYTES,
    AgentRef,
    Decoding,
    Encoding,
    Ext,
    NoForm,
    Reducer,
    TaskRef,
    Unknown,
    all_str,
    bytearray_of,
    check_reference,
    expect,
    ints_of,
)
from .standard import STANDARD_REDUCERS, has_name, is_zone, read_standard, zone_of

if TYPE_CHECKING:
    from decimal import Decimal
    from fractions import Fraction

_MAX_MOMENT_BYTES = 128  # of a date or a time with its zone; the longest has 107
_COMPLEX_PAIR = struct.Struct(">dd")
_DELTA = struct.Struct(">iii")


def _reduce_int(_: Encoding, value: int) -> Any:
    value = int.__index__(value)
    if -(2**63) <= value < 2**64:
        return value
    size = value.bit_length() // 8 + 1
    if size > MAX_NUMBER_BYTES:
        raise NoForm(f"an int of {size:,} bytes is over the limit of {MAX_NUMBER_BYTES:,}")
    return ExtType(Ext.INT, value.to_bytes(size, "big", signed=True))


def _reduce_decimal(_: Encoding, value: Decimal) -> Any:
    text = sys.modules["decimal"].Decimal.__str__(value).encode("ascii")
    if len(text) > MAX_NUMBER_BYTES:
        raise NoForm(f"a Decimal of {len(text):,} digits is over the limit of {MAX_NUMBER_BYTES:,}")
    return ExtType(Ext.DECIMAL, text)


def _reduce_fraction(_: Encoding, value: Fraction) -> Any:
    return [MARK_FRACTION, int(value.numerator), int(value.denominator)]  # int(): one of numpy integers holds such


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
    return [MARK_BYTEARRAY, encoder.place_memory(bytes(value))]


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


_MICROSECOND = dt.timedelta(microseconds=1)


def _reduce_moment(code: Ext, isoformat: Callable[[Any], str]) -> Reducer:
    """The reducer of a date and time, or a time: ``ISO-text fold zone``.

    zone is nothing or ``name:offset``, the offset in microseconds. A moment in a zone of any other kind is a box of it
    and its zone.
    """

    def reduce(_: Encoding, value: Any) -> Any:
        zone, text = value.tzinfo, ""
        if zone is not None:
            key = zone.key if is_zone(type(zone)) else ""
            if not key and (type(zone) is not dt.timezone or has_name(zone)):
                return [MARK_STANDARD, "in zone", value.replace(tzinfo=None), zone]
            text = f"{key}:{_shift_of(value)}"
        return ExtType(code, f"{isoformat(value.replace(tzinfo=None))} {value.fold} {text}".encode())

    return reduce


def _shift_of(value: Any) -> str:
    """The offset of a moment in its zone, in microseconds; "" if the zone has none for it."""
    offset = value.utcoffset()
    return "" if offset is None else f"{offset // _MICROSECOND:+d}"


def _in_zone(value: Any, text: str) -> Any:
    key, _, shift = text.rpartition(":")
    if not key:
        if not shift:
            return value
        offset = int(shift) * _MICROSECOND
        return value.replace(tzinfo=dt.timezone(offset) if offset else dt.timezone.utc)
    value = value.replace(tzinfo=zone_of(key))
    if shift != _shift_of(value):
        raise SerializationError(f"{value} has another offset in the time zone {key} here than where it was sent")
    return value


def _moment(data: bytes) -> str:
    if len(data) > _MAX_MOMENT_BYTES:
        raise RemoteProtocolError(f"a date or time of {len(data):,} bytes is over the limit of {_MAX_MOMENT_BYTES}")
    return data.decode("ascii")


def _read_datetime(data: bytes) -> Any:
    text, fold, zone = _moment(data).split(" ")
    return _in_zone(dt.datetime.fromisoformat(text).replace(fold=int(fold)), zone)


def _read_time(data: bytes) -> Any:
    text, fold, zone = _moment(data).split(" ")
    return _in_zone(dt.time.fromisoformat(text).replace(fold=int(fold)), zone)


def _read_timedelta(data: bytes) -> dt.timedelta:
    return dt.timedelta(*_DELTA.unpack(data))


def _read_int(data: bytes) -> int:
    return int.from_bytes(_short(data), "big", signed=True)


def _read_decimal(data: bytes) -> Decimal:
    from decimal import Decimal  # here, as for `late_reducer`

    return Decimal(_short(data).decode("ascii"))


def _short(data: bytes) -> bytes:
    if len(data) > MAX_NUMBER_BYTES:
        raise RemoteProtocolError(f"a number of {len(data):,} bytes is over the limit of {MAX_NUMBER_BYTES:,}")
    return data


def _read_path(data: bytes) -> pathlib.Path:
    return pathlib.Path(data.decode("utf-8", "surrogatepass"))


def _reduce_uuid(_: Encoding, value: uuid.UUID) -> ExtType:
    is_safe = value.is_safe.value
    return ExtType(Ext.UUID, value.bytes if is_safe is None else value.bytes + is_safe.to_bytes(1, "big", signed=True))


def _read_uuid(data: bytes) -> uuid.UUID:
    if len(data) == 17:  # one that is told to be safe or unsafe, as `uuid.uuid1` gives it
        return uuid.UUID(bytes=data[:16], is_safe=uuid.SafeUUID(int.from_bytes(data[16:], "big", signed=True)))
    return uuid.UUID(bytes=data)


def _read_ellipsis(data: bytes) -> EllipsisType:
    if data:
        raise RemoteProtocolError("an Ellipsis must come without data")
    return ...


LEAVES: dict[int, Callable[[bytes], Any]] = {
    Ext.INT: _read_int,
    Ext.COMPLEX: lambda data: complex(*_COMPLEX_PAIR.unpack(data)),
    Ext.DATETIME: _read_datetime,
    Ext.DATE: lambda data: dt.date.fromisoformat(_moment(data)),
    Ext.TIME: _read_time,
    Ext.TIMEDELTA: _read_timedelta,
    Ext.DECIMAL: _read_decimal,
    Ext.UUID: _read_uuid,
    Ext.PATH: _read_path,
    Ext.TEXT: lambda data: data.decode("utf-8", "surrogatepass"),
    Ext.ELLIPSIS: _read_ellipsis,
}


def _reduce_unknown(_: Encoding, value: Unknown) -> Any:
    """What has come as JSON is sent as an object of a class that this process need not have."""
    return [MARK_OBJECT, value.name, value.plain]


REDUCERS: dict[type, Reducer] = {
    Unknown: _reduce_unknown,
    int: _reduce_int,
    float: _reduce_float,
    str: _reduce_str,
    bytes: _reduce_bytes,
    bytearray: _reduce_bytearray,
    list: lambda _, value: list(value),
    dict: lambda _, value: dict(value),
    tuple: lambda _, value: [MARK_TUPLE, *value],
    set: lambda _, value: [MARK_SET, *value],
    frozenset: lambda _, value: [MARK_FROZENSET, *value],
    collections.deque: _reduce_deque,
    range: lambda _, value: [MARK_RANGE, value.start, value.stop, value.step],
    slice: lambda _, value: [MARK_SLICE, value.start, value.stop, value.step],
    complex: lambda _, value: ExtType(Ext.COMPLEX, _COMPLEX_PAIR.pack(value.real, value.imag)),
    EllipsisType: lambda _, value: ExtType(Ext.ELLIPSIS, b""),
    dt.datetime: _reduce_moment(Ext.DATETIME, dt.datetime.isoformat),
    dt.date: lambda _, value: ExtType(Ext.DATE, value.isoformat().encode()),
    dt.time: _reduce_moment(Ext.TIME, dt.time.isoformat),
    dt.timedelta: lambda _, value: ExtType(Ext.TIMEDELTA, _DELTA.pack(value.days, value.seconds, value.microseconds)),
    uuid.UUID: _reduce_uuid,
    **dict.fromkeys((pathlib.PosixPath, pathlib.WindowsPath), _reduce_path),
    **STANDARD_REDUCERS,
    AgentRef: _reduce_agent,
    TaskRef: _reduce_task,
}
BASES = frozenset(REDUCERS)
_LATE: dict[tuple[str, str], Reducer] = {
    ("decimal", "Decimal"): _reduce_decimal,
    ("fractions", "Fraction"): _reduce_fraction,
}


def late_reducer(cls: type) -> Reducer | None:
    """The reducer of a class that is not in `REDUCERS` before its module is loaded, None for any other.

    No process that has no such values loads these modules: they take 2.5 ms and 0.4 MiB.
    """
    for (module, name), reducer in _LATE.items():
        if cls is getattr(sys.modules.get(module), name, None):
            return REDUCERS.setdefault(cls, reducer)
    return None


def _read_deque(_: Decoding, maxlen: Any, *items: Any) -> collections.deque[Any]:
    return collections.deque(items, None if maxlen is None else expect(int, maxlen))


def _read_range(_: Decoding, start: Any, stop: Any, step: Any) -> range:
    return range(*ints_of(start, stop, step))


def _read_fraction(_: Decoding, numerator: Any, denominator: Any) -> Fraction:
    from fractions import Fraction  # here, as for `late_reducer`

    return Fraction(*ints_of(numerator, denominator))


def _read_bytearray(decoder: Decoding, place: Any) -> bytearray:
    return bytearray_of(decoder.take(place))


def _read_agent(decoder: Decoding, server_id: Any, address: Any, agent_id: Any, class_name: Any, methods: Any) -> Any:
    if type(methods) is not dict or not all_str((class_name, *methods, *methods.values())):
        raise RemoteProtocolError.of_reference("the class name and methods in a reference to an agent must be text")
    ref = AgentRef(server_id, address, agent_id, class_name, methods)
    check_reference(ref)
    return decoder.resolved(ref)


def _read_task(decoder: Decoding, task_id: Any, server_id: Any, address: Any) -> Any:
    ref = TaskRef(task_id, server_id, address)
    check_reference(ref)
    return decoder.resolved(ref)


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
    MARK_EXCEPTION.data: read_exception,
    MARK_STANDARD.data: read_standard,
    MARK_AGENT.data: _read_agent,
    MARK_TASK.data: _read_task,
}
