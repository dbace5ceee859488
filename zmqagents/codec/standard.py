"""Types of the standard library that go by a name: ``[mark, name, parts]``.

Each has an entry in `_FORMS`: what takes a value apart, and what makes it again of exactly such parts.
"""

from __future__ import annotations

import array
import collections
import datetime as dt
import io
import ipaddress
import pathlib
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import RemoteProtocolError, SerializationError
from .forms import MARK_STANDARD, Decoding, Encoding, NoForm, Reducer, all_str, expect, ints_of, name_of
from .shapes import set_attributes

if TYPE_CHECKING:
    import zoneinfo

__all__ = ["STANDARD_REDUCERS", "has_name", "is_zone", "read_standard", "reduce_zone", "zone_of"]

_FACTORIES = (list, dict, set, frozenset, tuple, int, float, complex, str, bytes, bytearray, bool,
              collections.OrderedDict, collections.Counter, collections.deque)  # fmt: skip
_FACTORY_NAMES: dict[Any, str] = {cls: cls.__name__ for cls in _FACTORIES}
_FACTORY_TYPES = {name: cls for cls, name in _FACTORY_NAMES.items()}
MAX_PATTERN_CHARS = 8_192  # of a regular expression
MAX_WIDE_SETS = 32  # sets like [a-z] in one that may name any character: with IGNORECASE each is 65,536 steps
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")
_MICROSECOND = dt.timedelta(microseconds=1)


def is_zone(cls: type) -> bool:
    """Whether ``cls`` is `zoneinfo.ZoneInfo`, which is not loaded for the question."""
    zones = sys.modules.get("zoneinfo")  # without it there is no such class
    return zones is not None and cls is zones.ZoneInfo


def zone_of(key: str) -> zoneinfo.ZoneInfo:
    """The time zone of this name; SerializationError if it is not known here."""
    if len(key) > 64 or not _ZONE_NAME.fullmatch(key):
        raise RemoteProtocolError("the name of a time zone must be like 'Europe/Paris'")
    import zoneinfo  # here, with the build settings of Python that it loads: few values have a zone

    try:
        return zoneinfo.ZoneInfo(key)
    except (LookupError, ValueError, OSError) as exc:  # the last two: a directory of zones
        text = f"the time zone {key} is not known here: is the package tzdata, or that of the system, missing or old?"
        raise SerializationError(text, "", "zoneinfo:ZoneInfo") from exc


# ---------------------------------------------------------------- taking apart


def _take_defaultdict(_: Encoding, value: collections.defaultdict[Any, Any]) -> list[Any]:
    factory = value.default_factory
    if factory is None:
        return [None, dict(value)]
    try:
        return [_FACTORY_NAMES[factory], dict(value)]
    except (KeyError, TypeError):
        raise NoForm(
            "a defaultdict travels if its default_factory is None or a builtin type, such as list; send dict(value)"
        ) from None


def reduce_zone(_: Encoding, value: zoneinfo.ZoneInfo) -> list[Any]:
    """The reducer of a time zone; its class is not in `STANDARD_REDUCERS`, which would load it."""
    if value.key is None:
        raise NoForm("a ZoneInfo that was read from a file without a key has no name to travel by")
    return [MARK_STANDARD, "ZoneInfo", value.key]


def has_name(value: dt.timezone) -> bool:
    """Whether it was given a name of its own."""
    return value.tzname(None) != dt.timezone(value.utcoffset(None)).tzname(None)


def _take_timezone(_: Encoding, value: dt.timezone) -> list[Any]:
    return [value.utcoffset(None) // _MICROSECOND, value.tzname(None) if has_name(value) else None]


FLAGS_OF_PATTERNS = 0x17F  # all of `re` but DEBUG: TEMPLATE, I, L, M, S, U, X and A


def _take_pattern(_: Encoding, value: re.Pattern[Any]) -> list[Any]:
    _check_pattern(value.pattern, NoForm)
    if value.flags & re.DEBUG:
        raise NoForm("a pattern with the flag re.DEBUG would be printed where it arrives")
    return [value.pattern, value.flags]


def _check_pattern(pattern: Any, error: type[Exception]) -> None:
    """Refuse what takes long to compile: a long pattern, or many sets, each of which may span all characters."""
    if type(pattern) is not str and type(pattern) is not bytes:
        raise error(f"{name_of(type(pattern))} where the text of a pattern was expected")
    if len(pattern) > MAX_PATTERN_CHARS:
        raise error(f"a pattern of {len(pattern):,} characters is over the limit of {MAX_PATTERN_CHARS:,}")
    if type(pattern) is str and pattern.count("[") > MAX_WIDE_SETS and (not pattern.isascii() or "\\" in pattern):
        raise error(f"a pattern with more than {MAX_WIDE_SETS} sets may hold only ASCII and no backslash")


def _take_array(encoder: Encoding, value: array.array[Any]) -> list[Any]:
    if value.typecode == "u":
        return ["u", value.tounicode()]
    return [value.typecode, value.itemsize, encoder.place(value.tobytes())]


def _take_view(encoder: Encoding, value: memoryview) -> list[Any]:
    try:
        data = value.cast("B") if type(value.obj) is bytes and value.c_contiguous else value.tobytes()
        memoryview(bytes(value.itemsize)).cast(value.format)  # type: ignore[call-overload]  # format: any text
    except (TypeError, ValueError):
        raise NoForm(f"a memoryview of format {value.format!r} has no form: send its tobytes()") from None
    return [value.format, list(value.shape or ()), encoder.place(data)]


def _take_stream(encoder: Encoding, value: io.BytesIO) -> list[Any]:
    return [encoder.place(value.getvalue()), value.tell()]


# ---------------------------------------------------------------- making again


def _make_ordered(_: Decoding, items: Any) -> Any:
    return collections.OrderedDict(expect(dict, items))


def _make_counter(_: Decoding, items: Any) -> Any:
    counter: collections.Counter[Any] = collections.Counter()
    dict.update(counter, expect(dict, items))  # counts may be of any type
    return counter


def _make_defaultdict(_: Decoding, factory: Any, items: Any) -> Any:
    return collections.defaultdict(
        None if factory is None else _FACTORY_TYPES[expect(str, factory)], expect(dict, items)
    )


def _make_namespace(_: Decoding, attributes: Any) -> SimpleNamespace:
    if not all_str(expect(dict, attributes)):
        raise RemoteProtocolError("the names of attributes must be text")
    return SimpleNamespace(**attributes)


def _make_timezone(_: Decoding, offset: Any, name: Any) -> dt.timezone:
    delta = expect(int, offset) * _MICROSECOND
    if name is not None:
        return dt.timezone(delta, expect(str, name))
    return dt.timezone(delta) if delta else dt.timezone.utc


def _make_in_zone(_: Decoding, moment: Any, zone: Any) -> Any:
    if type(moment) is not dt.datetime and type(moment) is not dt.time:
        raise RemoteProtocolError("a date and time, or a time, was expected")
    if not issubclass(type(zone), dt.tzinfo):
        raise RemoteProtocolError(f"{name_of(type(zone))} where a time zone was expected")
    return moment.replace(tzinfo=zone)


def _make_pattern(_: Decoding, pattern: Any, flags: Any) -> re.Pattern[Any]:
    _check_pattern(pattern, RemoteProtocolError)
    # Python 3.10 takes minutes to take a long number apart into flags.
    if expect(int, flags) & ~FLAGS_OF_PATTERNS:
        raise RemoteProtocolError("a pattern with the flag re.DEBUG, or with flags that `re` does not have")
    return re.compile(pattern, flags)


def _make_array(decoder: Decoding, code: Any, *rest: Any) -> array.array[Any]:
    if expect(str, code) == "u":
        (text,) = rest
        return array.array("u", expect(str, text))
    size, data = rest
    if len(code) != 1 or code not in "bBhHiIlLqQfd":
        raise RemoteProtocolError("the type code of an array must be one of bBhHiIlLqQfd")
    made: array.array[Any] = array.array(code)
    if made.itemsize != expect(int, size):
        raise RemoteProtocolError(
            f"items of an array {code!r} have {made.itemsize} bytes here and {size} at the sender's"
        )
    made.frombytes(decoder.take(data))
    return made


def _make_view(decoder: Decoding, form: Any, shape: Any, data: Any) -> memoryview:
    view = memoryview(decoder.take(data)).cast("B")
    if expect(str, form) != "B":
        if len(form) > 2 or form.lstrip("@") not in tuple("cbBhHiIlLqQnNfdeP?"):
            raise RemoteProtocolError("the format of a memoryview must be one of its own")
        view = view.cast(form)
    lengths = ints_of(*expect(list, shape))
    if len(lengths) == 1 and lengths[0] == len(view):
        return view
    if len(lengths) > 64 or (not all(lengths) and lengths):
        raise RemoteProtocolError("the shape of a memoryview does not fit its data")
    return view.cast("B").cast(form, list(lengths))


def _make_stream(decoder: Decoding, data: Any, place: Any) -> io.BytesIO:
    stream = io.BytesIO(decoder.take(data))
    stream.seek(min(*ints_of(place, 2**62)))
    return stream


Form = tuple[type, Callable[[Encoding, Any], list[Any]], Callable[..., Any]]
_ADDRESSES = (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
              ipaddress.IPv4Interface, ipaddress.IPv6Interface)  # fmt: skip


def _address_form(cls: Any) -> Form:
    def make(_: Decoding, text: Any) -> Any:
        if len(expect(str, text)) > 128:
            raise RemoteProtocolError("an IP address has at most 128 characters")
        return cls(text)

    return cls, lambda _, value: [str(value)], make


def _with_attributes(form: Form, count: int) -> Form:
    """The form of objects that have attributes besides, as a stream of bytes has a name; ``count``: parts without."""
    cls, take, make = form

    def take_all(encoder: Encoding, value: Any) -> list[Any]:
        parts, more = take(encoder, value), vars(value)
        return [*parts, dict(more)] if more else parts

    def make_all(decoder: Decoding, *parts: Any) -> Any:
        made = make(decoder, *parts[:count])
        for more in parts[count:]:
            set_attributes(made, more)
        return made

    return cls, take_all, make_all


def _pure_path_form(cls: Any) -> Form:
    return cls, lambda _, value: [str(value)], lambda _, text: cls(expect(str, text))


_FORMS: dict[str, Form] = {
    "OrderedDict": _with_attributes((collections.OrderedDict, lambda _, value: [dict(value)], _make_ordered), 1),
    "Counter": _with_attributes((collections.Counter, lambda _, value: [dict(value)], _make_counter), 1),
    "defaultdict": (collections.defaultdict, _take_defaultdict, _make_defaultdict),
    "SimpleNamespace": (SimpleNamespace, lambda _, value: [dict(vars(value))], _make_namespace),
    "timezone": (dt.timezone, _take_timezone, _make_timezone),
    "Pattern": (re.Pattern, _take_pattern, _make_pattern),
    "array": (array.array, _take_array, _make_array),
    "memoryview": (memoryview, _take_view, _make_view),
    "BytesIO": _with_attributes((io.BytesIO, _take_stream, _make_stream), 2),
    **{cls.__name__: _pure_path_form(cls) for cls in (pathlib.PurePosixPath, pathlib.PureWindowsPath)},
    **{cls.__name__: _address_form(cls) for cls in _ADDRESSES},
}


def _reducer(name: str, take: Callable[[Encoding, Any], list[Any]]) -> Reducer:
    return lambda encoder, value: [MARK_STANDARD, name, *take(encoder, value)]


STANDARD_REDUCERS: dict[type, Reducer] = {cls: _reducer(name, take) for name, (cls, take, _) in _FORMS.items()}


def read_standard(decoder: Decoding, name: Any, *parts: Any) -> Any:
    """The builder of `MARK_STANDARD`."""
    if expect(str, name) == "ZoneInfo":
        (key,) = parts
        return zone_of(expect(str, key))
    if name == "in zone":
        return _make_in_zone(decoder, *parts)
    form = _FORMS.get(name)
    if form is None:
        raise RemoteProtocolError("a type of the standard library that is not known here")
    return form[2](decoder, *parts)
