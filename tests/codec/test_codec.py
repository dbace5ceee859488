"""What travels, what it arrives as, and how everything else fails."""

from __future__ import annotations

import array
import collections
import contextlib
import dataclasses
import datetime as dt
import enum
import http
import ipaddress
import math
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import types as types_module
import urllib.error
import urllib.parse
import uuid
import zoneinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import cloudpickle
import msgpack
import numpy as np
import pydantic
import pytest

from sameness import same
from zmqagents import codec, errors
from zmqagents.codec import AgentRef, Encoded, TaskRef, decode, decode_call, encode, encode_call, register_type
from zmqagents.codec import encoder as encoder_module
from zmqagents.codec.classes import types
from zmqagents.codec.forms import Scope

LARGE = codec.INLINE_LIMIT_BYTES + 1


def round_trip(value: Any, **kwargs: Any) -> Any:
    encoded = encode(value)
    return decode(encoded.payload, encoded.buffers, **kwargs)


# ---------------------------------------------------------------- what Python brings along

PARIS = zoneinfo.ZoneInfo("Europe/Paris")
VALUES: list[Any] = [
    None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 2**64, -(2**63) - 1, 2**4000, -(2**4000), 0.1, math.inf, -0.0,
    "", "text", "naïve 🐍", "lone \udcff surrogate", b"", b"bytes", bytearray(), bytearray(b"array"),
    [], [1, [2, [3]]], {}, {"a": {"b": 1}}, {1: "int", 2.5: "float", None: 0, b"b": 1, (1, (2, "x")): "tuple"},
    {frozenset({1, 2}): 1, Decimal("1.5"): 2, dt.date(2024, 1, 1): 3, "lone \ud800": 4, 2**70: 5},
    (), (1,), (1, (2, [3, (4,)])), set(), {1, "a", (1, 2)}, frozenset(), frozenset({frozenset({1})}),
    collections.deque(), collections.deque([1, 2], maxlen=5), range(0), range(5, 1, -2), range(2**80),
    slice(None), slice(1, None, (2, 3)), ..., complex(1, -2), complex(-0.0, math.inf),
    Fraction(1, 3), Fraction(-(2**300), 7), Decimal("0.10"), Decimal("-0"), Decimal("1E+999999"), Decimal("Infinity"),
    dt.datetime(2024, 2, 29, 23, 59, 59, 999999), dt.datetime(1, 1, 1), dt.datetime.max,
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), dt.datetime(2024, 1, 1, tzinfo=PARIS),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, minutes=-30, microseconds=7))),
    dt.date(1, 1, 1), dt.date.max, dt.time(), dt.time(1, 2, 3, 4), dt.time(1, 2, tzinfo=dt.timezone.utc),
    dt.time(1, 2, tzinfo=PARIS), dt.timedelta.min, dt.timedelta.max, dt.timedelta(microseconds=-1),
    collections.OrderedDict(b=1, a=2), collections.Counter("aab"), collections.Counter({(1, 2): 0.5}),
    collections.defaultdict(list, a=[1]), collections.defaultdict(None, {1: collections.OrderedDict()}),
    types_module.SimpleNamespace(a=1, b=(2,)), PARIS, dt.timezone.utc, dt.timezone(dt.timedelta(hours=-3), "X"),
    re.compile("a(?P<b>[^c]+)", re.IGNORECASE | re.VERBOSE), re.compile(rb"\xff"), array.array("d", [1.5, 2]),
    array.array("B"),
    *map(ipaddress.ip_address, ["10.0.0.1", "fe80::1%eth0"]),
    *map(ipaddress.ip_network, ["10.0.0.0/8", "2001:db8::/32"]), *map(ipaddress.ip_interface, ["10.0.0.1/8", "::1/64"]),
    pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\a"), http.HTTPStatus.NOT_FOUND,
    urllib.parse.urlparse("http://h/p?q"), uuid.UUID(int=2**128 - 1),
    pathlib.Path("a/b c"), pathlib.Path("/"), pathlib.Path("odd \udcff name"),
]  # fmt: skip


def shown(value: Any) -> str:
    """The id of a test: a set in one order, which its `repr` has not from one process to the next."""
    text = f"{{{', '.join(sorted(map(repr, value)))}}}" if isinstance(value, set) and value else repr(value)
    return text[:50]


each_value = pytest.mark.parametrize("value", VALUES, ids=shown)


def assert_same(got: Any, sent: Any) -> None:
    assert same(got, sent), f"{got!r:.500} is not {sent!r:.500}"


@each_value
def test_a_value_arrives_as_it_was_sent(value: Any) -> None:
    assert_same(round_trip(value), value)


@each_value
def test_a_value_arrives_as_it_was_sent_from_deep_inside_other_values(value: Any) -> None:
    box = [({"k": (value, [value])},)]
    assert_same(round_trip(box), box)


@each_value
def test_the_slow_way_gives_the_same_value_as_the_fast_one(value: Any) -> None:
    box = [value, {"hidden": [bytearray(b"which only the walk sees")]}, b"x" * LARGE]
    encoded = encode(box)
    assert len(encoded.buffers) == 1
    assert_same(decode(encoded.payload, encoded.buffers), box)


def test_not_a_number_arrives_as_one_and_keeps_its_type() -> None:
    assert math.isnan(round_trip(math.nan))
    assert repr(round_trip(Decimal("sNaN123"))) == repr(Decimal("sNaN123"))


def test_a_pattern_that_would_print_itself_is_refused_on_both_sides(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.SerializationError, match=r"re\.DEBUG"):
        encode(re.compile("a", re.DEBUG))
    capfd.readouterr()
    with pytest.raises(errors.RemoteProtocolError, match=r"re\.DEBUG"):
        decode(b"\xc1" + msgpack.packb([msgpack.ExtType(1, b"e"), "Pattern", "a", int(re.DEBUG)]))
    assert capfd.readouterr().out == ""


def test_a_zone_arrives_by_its_name() -> None:
    assert round_trip(dt.datetime(2024, 7, 1, tzinfo=PARIS)).tzinfo is PARIS


@pytest.mark.parametrize(("zone", "text"), [
    (b"Europe/Parys", "the time zone Europe/Parys is not known here"), (b"Asia/Kolkata", "another offset in the time"),
])  # fmt: skip
def test_a_zone_that_the_receiver_lacks_or_knows_otherwise_is_refused(zone: bytes, text: str) -> None:
    for sent in (dt.datetime(2024, 7, 1, 12, tzinfo=PARIS), [{"at": dt.datetime(2024, 7, 1, 12, tzinfo=PARIS)}]):
        with pytest.raises(errors.SerializationError, match=text):
            decode(encode(sent).payload.replace(b"Europe/Paris", zone))
    with pytest.raises(errors.SerializationError, match="not known here"):
        decode(encode(PARIS).payload.replace(b"Europe/Paris", b"Europe/Parys"))


class Odd(dt.tzinfo):
    """A time zone of the program's own."""

    def utcoffset(self, _: dt.datetime | None) -> dt.timedelta:
        return dt.timedelta(hours=5)

    def dst(self, _: dt.datetime | None) -> None:
        return None

    def tzname(self, _: dt.datetime | None) -> None:
        return None


@pytest.mark.usefixtures("registry")
def test_a_moment_in_a_zone_of_another_class_goes_by_the_rules_for_classes() -> None:
    moments = dt.datetime(2024, 1, 1, 1, 2, 3, 4, tzinfo=Odd(), fold=1), dt.time(1, 2, tzinfo=Odd())
    for moment in moments:
        with pytest.raises(errors.SerializationError, match=r"test_codec.Odd has no msgpack form"):
            encode(moment)
    register_type(Odd, to_data=lambda _: None, from_data=lambda _: Odd())
    for moment in moments:
        got = round_trip([moment])[0]
        assert (type(got.tzinfo), got.replace(tzinfo=None), got.fold) == (Odd, moment.replace(tzinfo=None), moment.fold)


@pytest.mark.parametrize("zone", [dt.timezone(dt.timedelta(hours=1), "CET"), dt.timezone(dt.timedelta(0), "Z")])
def test_a_moment_in_a_named_zone_keeps_the_name(zone: dt.timezone) -> None:
    assert round_trip(dt.datetime(2024, 1, 1, tzinfo=zone)).tzname() == zone.tzname(None)
    assert round_trip(dt.time(1, tzinfo=zone)).tzname() == zone.tzname(None)


@pytest.mark.parametrize("is_safe", uuid.SafeUUID)
def test_an_uuid_keeps_whether_it_is_safe(is_safe: uuid.SafeUUID) -> None:
    sent = uuid.UUID(int=2**100, is_safe=is_safe)
    got = round_trip([sent])[0]
    assert (got, got.is_safe) == (sent, is_safe)


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (memoryview(b"abc"), (3,)), (memoryview(b"abcdef")[::2], (3,)), (memoryview(b""), (0,)),
        (np.arange(2, dtype="i4").data, (2,)), (np.arange(6.0).reshape(2, 3).data, (2, 3)),
        (memoryview(b"x" * LARGE)[1:], (LARGE - 1,)), (np.array(1.5).data, ()),
    ],
)  # fmt: skip
def test_a_view_of_memory_arrives_as_one_with_its_format_and_shape(view: memoryview, shape: Any) -> None:
    for got in (round_trip(view), round_trip([view])[0], round_trip([view, bytearray(b"slowly")])[0]):
        assert type(got) is memoryview
        assert (got.format, got.shape) == (view.format, shape)
        assert got.tolist() == view.tolist()


def test_a_dictionary_keeps_its_order() -> None:
    sent = {str(index): index for index in range(100, 0, -1)}
    assert list(round_trip(sent)) == list(sent)


def test_equal_keys_and_values_of_other_types_stay_apart() -> None:
    assert_same(round_trip([1, 1.0, True, Decimal(1), Fraction(1)]), [1, 1.0, True, Decimal(1), Fraction(1)])


def test_plain_values_are_plain_msgpack() -> None:
    sent = {"a": [1, 2.5, None, b"b"]}
    assert msgpack.unpackb(encode(sent).payload) == sent


def test_a_timestamp_of_another_msgpack_arrives_as_a_datetime() -> None:
    assert decode(msgpack.packb(msgpack.Timestamp(1))) == dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.timezone.utc)


# ---------------------------------------------------------------- calls


def test_the_arguments_of_a_call_arrive_in_place() -> None:
    encoded = encode_call((1, (2, 3), {"k": {4}}), {"a": [5], "b": (6,), "ключ": None})
    assert decode_call(*encoded[:2]) == ((1, (2, 3), {"k": {4}}), {"a": [5], "b": (6,), "ключ": None})
    assert decode_call(encode_call((), {}).payload) == ((), {})


def test_encoding_a_call_changes_nothing_of_the_callers() -> None:
    kwargs = {"big": b"x" * LARGE, "array": bytearray(b"y")}
    before = dict(kwargs)
    assert decode_call(*encode_call((), kwargs)[:2])[1] == before
    assert kwargs == before


@pytest.mark.parametrize(
    "value", [None, [], [1], [{1: 2}], (1, {}), {}, [1, collections.deque()]], ids=lambda value: repr(value)
)
def test_a_payload_that_is_no_call_is_refused(value: Any) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        decode_call(encode(value).payload)


# ---------------------------------------------------------------- buffers


def test_large_bytes_travel_in_a_frame_of_their_own_without_a_copy() -> None:
    data = bytes(LARGE)
    for sent in (data, [data], {"k": (data,)}):
        encoded = encode(sent)
        assert encoded.buffers == [data]
        assert encoded.buffers[0] is data
        assert len(encoded.payload) < 100
    assert decode(*encode(data)[:2]) is data
    (got,), _ = decode_call(*encode_call((data,), {})[:2])
    assert got is data


def test_bytes_of_the_inline_limit_stay_in_the_payload() -> None:
    assert not encode(bytes(LARGE - 1)).buffers
    assert round_trip([bytes(LARGE - 1)]) == [bytes(LARGE - 1)]


def test_a_read_only_view_of_bytes_goes_out_without_a_copy() -> None:
    data = b"x" * (2 * LARGE)
    encoded = encode(memoryview(data)[1:])
    assert isinstance(encoded.buffers[0], memoryview)
    assert encoded.buffers[0].obj is data
    assert round_trip(memoryview(data)[1:]).tobytes() == data[1:]


@pytest.mark.parametrize(
    "make", [bytearray, lambda data: memoryview(bytearray(data)), lambda data: np.frombuffer(bytearray(data), "u1")]
)
def test_writable_memory_is_taken_as_it_is_when_it_is_encoded(make: Any) -> None:
    for size in (4, LARGE):
        sent = make(bytes(size))
        encoded = encode([sent])
        sent[0] = 1
        assert bytes(decode(encoded.payload, encoded.buffers)[0]) == bytes(size)


def test_a_bytearray_keeps_its_type_wherever_it_is() -> None:
    for data in (bytearray(), bytearray(b"ab"), bytearray(LARGE)):
        for sent in (data, [data], {"k": ({"deep": data},)}):
            assert_same(round_trip(sent), sent)
        (got,), kwargs = decode_call(*encode_call((data,), {"k": data})[:2])
        assert type(got) is type(kwargs["k"]) is bytearray


def test_frames_may_be_memoryviews() -> None:
    sent = (b"x" * LARGE, bytearray(LARGE), np.zeros(LARGE, "u1"), "text")
    payload, buffers, _ = encode(sent)
    got = decode(memoryview(payload), [memoryview(buffer) for buffer in buffers])
    assert [type(item) for item in got] == [bytes, bytearray, np.ndarray, str]
    assert got[:2] == sent[:2]


def test_more_large_values_than_buffers_go_into_the_payload() -> None:
    sent = [bytes([index]) * LARGE for index in range(codec.MAX_BUFFERS + 3)]
    encoded = encode(sent)
    assert len(encoded.buffers) == codec.MAX_BUFFERS
    assert decode(encoded.payload, encoded.buffers) == sent
    arrays = [np.full(LARGE, index, "u1") for index in range(codec.MAX_BUFFERS + 3)]
    assert all(np.array_equal(a, b) for a, b in zip(round_trip(arrays), arrays, strict=True))


@pytest.mark.parametrize("change", ["missing", "swapped out", "one too many", "twice", "on a plain payload"])
def test_buffers_that_do_not_fit_the_payload_are_refused(change: str) -> None:
    payload, buffers, _ = encode([b"x" * LARGE, b"y" * LARGE])
    if change == "missing":
        buffers = []
    elif change == "swapped out":
        buffers = buffers[:1]
    elif change == "one too many":
        buffers = [*buffers, b""]
    elif change == "twice":
        payload = payload.replace(b"\x02\x00\x01", b"\x02\x00\x00")
    else:
        payload = encode([]).payload
    with pytest.raises(errors.RemoteProtocolError, match="buffer"):
        decode(payload, buffers)


def test_a_message_over_the_limit_is_refused_with_its_size() -> None:
    for sent in ("x" * 100, b"x" * (2 * LARGE)):
        size = sum(map(len, [encode(sent).payload, *encode(sent).buffers]))
        assert isinstance(encode(sent, max_bytes=size), Encoded)
        with pytest.raises(errors.MessageTooLarge, match=f"reader.load: the message is {size:,} bytes") as caught:
            encode(sent, max_bytes=size - 1, what="reader.load: ")
        assert (caught.value.size, caught.value.limit) == (size, size - 1)
        with pytest.raises(errors.MessageTooLarge):
            encode_call((sent,), {}, max_bytes=50)


# ---------------------------------------------------------------- numpy

ARRAYS = [
    np.array(3.5), np.arange(6, dtype=">i2"), np.arange(24.0).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), np.arange(10)[::-3], np.zeros((0, 5), "f4"), np.zeros((3, 0, 2)),
    np.array([True, False]), np.array([1 + 2j]), np.array(["a", "bcd", ""]), np.array([b"a", b"bcd"]),
    np.array(["2024-01-01", "NaT"], "M8[D]"), np.array([1, 2], "m8[25s]"), np.array([1.5], "f2"), np.array([1.5], "g"),
    np.array([(1, 2.5, "x")], [("a", "<i4"), ("b", "<f8"), ("c", "<U3")]),
    np.zeros(2, [("pos", [("x", "<f4"), ("y", "<f4")]), ("grid", "<i2", (2, 3))]),
    np.zeros(2, np.dtype([("a", "u1"), ("b", "<f8")], align=True)), np.zeros(3, "V5"),
    np.arange(LARGE), np.asfortranarray(np.arange(2 * LARGE).reshape(2, LARGE)), np.arange(4 * LARGE)[::2],
    np.zeros(LARGE, "M8[ns]"), np.zeros(LARGE, [("a", "<i4"), ("b", "<f8")]),
]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{str(array.dtype)[:30]}{array.shape}")
def test_an_array_arrives_with_its_type_shape_order_and_writable(array: Any) -> None:
    for got in (round_trip(array), round_trip(({"a": [array]},))[0]["a"][0]):
        assert type(got) is np.ndarray
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert np.array_equal(got, array, equal_nan=array.dtype.kind in "fcmM")
        assert got.flags.writeable
        if array.flags.c_contiguous or array.flags.f_contiguous:
            assert got.flags.c_contiguous == array.flags.c_contiguous
            assert got.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(1.5), np.float32(1.5), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.complex64(1j),
        np.datetime64("2024-01-01T00:00:00.000000001"), np.timedelta64(3, "h"), np.str_("a\0"), np.str_(""),
        np.bytes_(b"ab\0"), np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f8")])[0],
    ],
    ids=lambda scalar: type(scalar).__name__,
)  # fmt: skip
def test_a_numpy_scalar_keeps_its_type(scalar: Any) -> None:
    for got in (round_trip(scalar), round_trip([scalar])[0]):
        assert type(got) is type(scalar)
        assert got.dtype.str.rstrip("0123456789") == scalar.dtype.str.rstrip("0123456789")
        assert got == scalar


def test_a_large_array_is_one_buffer_and_arrives_in_the_memory_of_its_frame() -> None:
    array = np.arange(LARGE, dtype="<i4")
    payload, buffers, _ = encode([array])
    assert [len(buffer) for buffer in buffers] == [array.nbytes]
    frame = bytearray(buffers[0])  # a ZeroMQ frame is writable too
    (got,) = decode(payload, [memoryview(frame)])
    got[0] = -1
    assert frame[:4] == b"\xff" * 4
    assert array[0] == 0


def test_a_constant_array_goes_out_without_a_copy_and_a_read_only_view_of_a_changing_one_does_not() -> None:
    constant = np.frombuffer(b"x" * LARGE, "u1")
    (buffer,) = encode(constant).buffers
    assert np.shares_memory(np.frombuffer(buffer, "u1"), constant)
    changing = np.zeros(LARGE, "u1")
    view = changing[:]
    view.flags.writeable = False
    encoded = encode(view)
    changing[0] = 1
    assert not decode(encoded.payload, encoded.buffers).any()


@pytest.mark.parametrize(
    "array",
    [np.array([object()]), np.zeros(1, [("o", "O")]), np.ma.masked_array([object()], [True]), np.zeros(3, "V0")],
)
def test_an_array_that_has_no_form_is_named(array: Any) -> None:
    with pytest.raises(errors.SerializationError, match=r"cannot send args\[0\]\['w'\](\[0\]: object|: .*numpy array)"):
        encode_call(({"w": array},), {})


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _array_payload(*fields: Any) -> bytes:
    return b"\xc1" + _packed([msgpack.ExtType(1, b"a"), *fields])


@pytest.mark.parametrize(
    "fields",
    [
        ("O", [1], "C", b"12345678"), ("|O", [1], "C", b"12345678"), ("<f8", [2], "C", b"12345678"),
        ("<f8,<f8", [1], "C", b""), ("<f8", [1], "C", 10**9), ("<f8", 1, "C", b"12345678"),
        ("<f8", [-1], "C", b"12345678"), ("<f8", [2**47, 2**47], "C", b"1"), ("<f8", [True], "C", b"12345678"),
        ("<f8", [1] * 65, "C", b"12345678"), ("<f8", [1], "C", 0),
        ([["a", "|O"]], [1], "C", b"12345678"), ([["a"]], [1], "C", b""), ([1], [1], "C", b""), (None, [1], "C", b""),
        ("|S0", [2**40], "C", b""), ("|V999999999", [9], "C", b""), ([["a", "<f8", [2**40]]], [1], "C", b""),
        ("<f8",), ("<f8", [0, 2**47], "Z", b""), ("<f8", [1], "C", "12345678"), ("<f8", [1], "C", None),
    ],
)  # fmt: skip
def test_an_array_that_does_not_add_up_is_refused(fields: tuple[Any, ...]) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        decode(_array_payload(*fields))


@pytest.mark.program
def test_numpy_is_not_imported_before_an_array_is_met() -> None:
    script = (
        "import sys; from zmqagents.codec import encode, decode; "
        "decode(encode([(1, 2), {3}, 'x']).payload); assert 'numpy' not in sys.modules; "
        f"print(decode({encode(np.arange(3)).payload!r})); assert 'numpy' in sys.modules"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[0 1 2]\n"
    )


def test_a_receiver_without_numpy_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    payload = encode(np.arange(3)).payload
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(errors.SerializationError, match="numpy is not installed here"):
        decode(payload)


# ---------------------------------------------------------------- classes


class Color(enum.Enum):
    RED = "r"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Settings:
    name: str
    parts: list[Any] = dataclasses.field(default_factory=list)
    total: int = dataclasses.field(init=False, default=0)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a name is needed")


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    b: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "b", self.a + 1)


class Inner(pydantic.BaseModel):
    data: bytes
    when: dt.datetime


class Wider(Inner):
    extra: int = 0


class Outer(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    inner: Inner
    tags: set[str] = pydantic.Field(alias="Tags")
    pair: tuple[int, str] = (1, "a")


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Plain:
    def __init__(self, a: Any) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)


class Slotted:
    __slots__ = ("__private", "a")

    def __init__(self, a: int) -> None:
        self.a = a
        self.__private = a + 1

    def both(self) -> tuple[int, int]:
        return self.a, self.__private


class OldMsg(pydantic.BaseModel):
    """Of the shape of agentscope 0.1: an ``__init__`` of its own, and a from_dict that empties its dict."""

    id: str
    name: str
    content: Any
    metadata: dict[str, Any] | None = None

    def __init__(self, name: str, content: Any) -> None:
        super().__init__(id=uuid.uuid4().hex, name=name, content=content)

    def to_dict(self) -> dict[str, Any]:
        return {"__module__": type(self).__module__, "__name__": "OldMsg", **self.model_dump()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OldMsg:
        assert data.pop("__module__") == cls.__module__
        assert data.pop("__name__") == "OldMsg"
        made = cls(data.pop("name"), data.pop("content"))
        made.id, made.metadata = data.pop("id"), data.pop("metadata")
        assert not data
        return made


class NewMsg:
    """Of the shape of agentscope 1.0: a plain class; its to_dict hands out its own content."""

    def __init__(self, name: str, content: Any) -> None:
        self.name, self.content, self.id = name, content, uuid.uuid4().hex

    def to_dict(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NewMsg:
        made = cls(data["name"], data["content"])
        made.id = data["id"]
        return made

    def __eq__(self, other: object) -> bool:
        return type(other) is NewMsg and vars(other) == vars(self)


def _inner() -> Inner:
    return Inner(data=b"\xff\x00", when=dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc))


OBJECTS: list[tuple[Any, Any]] = [
    (Color.RED, "r"),
    (Color.PAIR, (1, 2)),
    (Level.LOW, 1),
    (Bits.A | Bits.B, 3),
    (Point(1, (2, "z")), (1, (2, "z"))),
    (Settings("a", [(1,), {2}]), {"name": "a", "parts": [(1,), {2}], "total": 0}),
    (Frozen(1), {"a": 1, "b": 2}),
    (_inner(), {"data": b"\xff\x00", "when": dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)}),
    (
        Outer.model_validate({"inner": _inner(), "Tags": {"x"}, "more": 3}),
        {"inner": _inner().model_dump(), "tags": {"x"}, "pair": (1, "a"), "more": 3},
    ),
    (Numbers([1, 2]), [1, 2]),
]


each_object = pytest.mark.parametrize(("value", "data"), OBJECTS, ids=lambda value: type(value).__name__)
PLAIN = Scope(plain=True)


@each_object
def test_an_object_of_an_unknown_class_is_an_error_that_names_place_type_and_remedy(value: Any, data: Any) -> None:
    encoded = encode([{"k": value}])
    name = type(value).__name__
    with pytest.raises(errors.SerializationError, match=rf"value\[0\]\['k'\] is an? {name}, which") as caught:
        decode(encoded.payload)
    assert caught.value.path == "value[0]['k']"
    assert caught.value.type_name == f"test_codec:{name}"
    for remedy in ("annotate", "register_type", "trust_types('test_codec') (--types test_codec)", "plain_types"):
        assert remedy in str(caught.value)


@each_object
def test_an_object_of_an_unknown_class_arrives_in_its_plain_form_where_that_is_asked_for(value: Any, data: Any) -> None:
    assert_same(round_trip(value, scope=PLAIN), data)
    assert_same(round_trip([{"k": value}], scope=PLAIN), [{"k": data}])


@each_object
def test_an_object_of_a_registered_class_arrives_as_one(value: Any, data: Any, registry: None) -> None:
    payload = encode([value]).payload  # what the sender has registered does not matter
    register_type(type(value))
    assert_same(decode(payload), [value])
    assert_same(round_trip({"k": (value,)}), {"k": (value,)})


@each_object
def test_an_object_of_a_trusted_package_arrives_as_one(value: Any, data: Any) -> None:
    assert_same(round_trip([value], scope=Scope(trusted=("test_codec",))), [value])


@each_object
def test_an_object_of_an_annotated_class_arrives_as_one(value: Any, data: Any) -> None:
    def method(self: Any, one: Any, *, more: Any) -> Any:
        raise NotImplementedError

    kind = type(value)
    for hint in (kind, list[kind], kind | None, dict[str, tuple[kind, ...]], kind.__name__):  # type: ignore[valid-type]
        method.__annotations__ = {"one": Any, "more": hint}
        scope = Scope(expected=types.expected_by(method))
        assert_same(decode_call(*encode_call((1,), {"more": [value]})[:2], scope=scope), ((1,), {"more": [value]}))


@pytest.mark.parametrize(
    ("hint", "is_plain"),
    [
        (dict, True), (list, True), (dict[str, Any], True), (list[dict[str, int]], True), (dict[str, Any] | None, True),
        ("dict", True), (list[Point], False), (dict[str, Any] | Settings, False), (Any, False), (None, False),
    ],
)  # fmt: skip
def test_a_parameter_that_is_a_dict_or_list_of_plain_data_gets_the_plain_form(hint: Any, is_plain: bool) -> None:
    def method(self: Any, first: Any, data: Any) -> Any:
        raise NotImplementedError

    method.__annotations__ = {"data": hint}
    scope = Scope(expected=types.expected_by(method))
    for args, kwargs, place in (((0, Frozen(1)), {}, 1), ((0,), {"data": Frozen(1)}, "data")):
        payload = encode_call(args, kwargs).payload  # without self, which the caller does not send
        if is_plain:
            got, more = decode_call(payload, scope=scope)
            assert (more[place] if place == "data" else got[1]) == {"a": 1, "b": 2}
        else:
            with pytest.raises(errors.SerializationError, match="is a Frozen, which the receiving side does not know"):
                decode_call(payload, scope=scope)


def test_an_unknown_object_inside_another_value_is_refused_or_plain_at_any_depth(registry: None) -> None:
    register_type(Settings)
    deep = Settings("a", [Frozen(1)])
    for value in (deep, [slice(Frozen(1))], {"c": collections.OrderedDict(a=Frozen(1))}, np.array([Frozen(1)], object)):
        with pytest.raises(errors.SerializationError, match=r"an inner value.* is a Frozen, which the receiving side"):
            round_trip(value)
    assert round_trip(deep, scope=PLAIN) == Settings("a", [{"a": 1, "b": 2}])
    assert_same(round_trip([Point(1, Frozen(1))], scope=PLAIN), [(1, {"a": 1, "b": 2})])


def test_a_message_with_to_dict_and_from_dict_goes_by_its_fields(registry: None) -> None:
    for cls in (OldMsg, NewMsg):
        register_type(cls)
        sent = cls("bob", [{"type": "text", "text": "hi"}, {"type": "blob", "data": b"\xff"}])
        before = sent.to_dict().copy()
        assert round_trip([sent, sent]) == [sent, sent]
        assert sent.to_dict() == before
    with pytest.raises(errors.SerializationError, match="Broken has no msgpack form"):
        encode(Broken())


def test_a_plain_class_must_be_registered_to_be_sent(registry: None) -> None:
    with pytest.raises(errors.SerializationError, match="Plain has no msgpack form"):
        encode(Plain(1))
    register_type(Plain)
    assert round_trip([Plain((1, Plain(2)))]) == [Plain((1, Plain(2)))]
    register_type(Slotted)
    assert round_trip(Slotted(1)).both() == (1, 2)


def test_register_type_is_a_decorator_too(registry: None) -> None:
    @register_type
    class One:
        pass

    @register_type(name="two", to_data=lambda two: two.x, from_data=lambda x: Two(x))
    class Two:
        def __init__(self, x: Any) -> None:
            self.x = x

    assert type(round_trip(One())) is One
    assert round_trip(Two((1, 2))).x == (1, 2)
    assert b"two" in encode(Two(1)).payload


def test_the_newer_class_of_a_name_takes_the_place_of_the_older(registry: None) -> None:
    def cell() -> type:
        @register_type
        class Cell:
            pass

        return Cell

    old, new = cell(), cell()
    assert type(round_trip(old())) is type(round_trip(new())) is new


def test_a_registered_class_goes_its_own_way_whatever_it_derives_from(registry: None) -> None:
    class Path(type(pathlib.Path())):  # type: ignore[misc]
        pass

    with pytest.raises(errors.SerializationError, match="Path has no msgpack form"):
        encode(Path("a"))
    register_type(Path, to_data=str, from_data=Path)
    assert type(round_trip(Path("a"))) is Path


@pytest.mark.parametrize("cls", [int, dict, bool, type(None), pathlib.PosixPath, AgentRef, object, "text", 3])
def test_register_type_refuses_what_has_a_form_or_is_no_class(cls: Any) -> None:
    with pytest.raises(errors.ConfigError, match="register_type takes"):
        register_type(cls)


@pytest.mark.parametrize(
    ("cls", "data"),
    [
        (Settings, {"name": ""}), (Settings, {"nome": "x"}), (Settings, {1: 2}), (Settings, None),
        (Color, "no"), (Color, []), (Point, (1,)), (Point, None), (Inner, {"data": "x", "when": "never"}),
        (OldMsg, {}), (Plain, {"__class__": 1}), (Plain, 3),
    ],
)  # fmt: skip
def test_data_that_a_registered_class_refuses_is_a_protocol_error_that_names_it(
    cls: Any, data: Any, registry: None
) -> None:
    register_type(cls)
    name = errors.type_name_of(cls)
    payload = b"\xc1" + msgpack.packb([msgpack.ExtType(1, b"o"), name, data])
    with pytest.raises(errors.SerializationError, match=f"cannot make a {name}") as caught:
        decode(payload)
    assert caught.value.__cause__ is not None


def test_nothing_is_imported_by_a_name_from_the_wire() -> None:
    payload = b"\xc1" + msgpack.packb([msgpack.ExtType(1, b"o"), "antigravity:Flyer", {"a": 1}])
    before = set(sys.modules)
    for scope in (Scope(), PLAIN, Scope(trusted=("antigravi", "gravity")), Scope(expected=types.expected_by(encode))):
        with contextlib.suppress(errors.SerializationError):
            assert decode(payload, scope=scope) == {"a": 1}
        assert set(sys.modules) == before


def test_an_exception_is_registered_under_its_own_name_only(registry: None) -> None:
    with pytest.raises(errors.ConfigError, match="leave out name='x' for Custom"):
        register_type(Custom, name="x")


# ---------------------------------------------------------------- exceptions


class Custom(Exception):
    def __init__(self) -> None:
        super().__init__("no arguments")


class Coded(ValueError):
    def __init__(self, code: int, *detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class NearlyCoded(Coded):
    pass


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_builtin_exception_arrives_as_itself_with_its_arguments() -> None:
    for sent in (
        KeyError(("a", 1)), ValueError(), OSError(2, "gone"), OSError(2, "gone", "f"),
        OSError(18, "other", "a", None, "b"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), StopIteration(3), SystemError({1}),
    ):  # fmt: skip
        got = round_trip([sent])[0]
        assert type(got) is type(sent)
        assert got.args == sent.args
        assert str(got) == str(sent)
    got = round_trip(OSError(18, "other", "a", None, "b"))
    assert (got.errno, got.filename, got.filename2) == (18, "a", "b")


def test_a_builtin_exception_whose_arguments_stayed_behind_keeps_its_type() -> None:
    got = round_trip(UnicodeDecodeError("utf-8", bytes(2 * LARGE), 0, 1, "why"))
    assert isinstance(got, UnicodeDecodeError)
    assert "why" in str(got)


def test_an_exception_of_this_package_arrives_with_its_fields() -> None:
    got = round_trip(errors.SerializationError("text", "a.b", "lock"))
    assert (type(got), str(got), got.path, got.type_name) == (errors.SerializationError, "text", "a.b", "lock")


def test_an_exception_of_another_class_arrives_by_name_until_it_is_registered(registry: None) -> None:
    for sent in (Custom(), Unprintable(1)):
        got = round_trip(sent)
        assert type(got) is errors.AgentCallError
        assert got.type_name == errors.type_name_of(type(sent))
    register_type(Custom)
    got = round_trip(Custom())
    assert type(got) is Custom
    assert got.args == ("no arguments",)


def test_an_oserror_with_an_init_of_its_own_keeps_its_arguments(registry: None) -> None:
    class Located(OSError):
        def __init__(self, code: int, place: str) -> None:
            super().__init__(code, place, "f")
            self.place = place

    for sent in (urllib.error.URLError("refused"), Located(2, "here")):
        register_type(type(sent))
        got = round_trip(sent)
        told = codec.decode_error(msgpack.unpackb(codec.encode_error(sent)), from_agent=True)
        for each in (got, told):
            assert isinstance(each, type(sent))
            assert (each.args, each.filename, each.errno) == (sent.args, sent.filename, sent.errno)
        assert (repr(got), str(got)) == (repr(sent), str(sent))


def test_an_exception_keeps_its_attributes_notes_and_cause(registry: None) -> None:
    sent = Coded(7, "disk")
    sent.__notes__ = ["a hint"]  # type: ignore[attr-defined,unused-ignore]
    sent.__cause__ = OSError(2, "gone", "f")
    sent.lock = threading.Lock()  # type: ignore[attr-defined]  # takes nothing else with it
    register_type(Coded)
    got = round_trip(sent)
    assert (type(got), got.code, got.detail, got.args, got.__notes__) == (Coded, 7, ("disk",), sent.args, ["a hint"])
    assert (type(got.__cause__), got.__cause__.filename) == (FileNotFoundError, "f")
    assert not hasattr(got, "lock")


def test_the_names_that_an_import_or_a_look_up_missed_arrive() -> None:
    for sent in (ImportError("no", name="a.b", path="p"), AttributeError("no", name="a"), NameError("no", name="n")):
        got = round_trip(sent)
        assert type(got) is type(sent)
        assert got.name == sent.name
    assert round_trip(ImportError("no", name="a.b", path="p")).path == "p"


def test_an_exception_of_an_unknown_class_arrives_as_its_nearest_base_that_is_known(registry: None) -> None:
    for from_agent in (False, True):
        data = errors.describe(NearlyCoded(7, "disk"), pack=lambda values: encode(values).payload)
        got = errors.rebuild(data, from_agent=from_agent, unpack=decode)
        assert isinstance(got, errors.AgentCallError)
        assert isinstance(got, ValueError)
        assert not isinstance(got, Coded)
        assert (got.type_name, got.code) == ("test_codec:NearlyCoded", 7)  # type: ignore[attr-defined]
    register_type(Coded)
    assert isinstance(round_trip(NearlyCoded(7)), Coded)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="groups are new in Python 3.11")
def test_the_members_of_a_group_arrive_whole() -> None:
    group = ExceptionGroup  # type: ignore[name-defined,unused-ignore]  # noqa: F821
    sent = group("several", [ValueError(1, (2,)), group("inner", [OSError(2, "none", "f")])])
    got = round_trip(sent)
    assert (type(got), str(got), got.message) == (group, str(sent), "several")
    assert got.exceptions[0].args == (1, (2,))
    assert got.exceptions[1].exceptions[0].filename == "f"
    data = errors.describe(sent, agent="r1", method="m", pack=lambda values: encode(values).payload)
    raised: Any
    for raised in (
        errors.rebuild(data, unpack=decode),
        pickle.loads(pickle.dumps(errors.rebuild(data, unpack=decode))),
    ):
        assert isinstance(raised, group)
        assert (raised.message, str(raised)) == ("several", "several (2 sub-exceptions) (in r1.m)")
        assert raised.exceptions[0].args == (1, (2,))
        assert raised.split(OSError)[0].exceptions[0].exceptions[0].errno == 2


def test_an_error_of_an_agent_is_pickled_whole() -> None:
    sent = KeyError(("a", 1))
    sent.__cause__, sent.hint = ValueError("why"), (1, 2)  # type: ignore[attr-defined]
    sent.__notes__ = ["a note"]  # type: ignore[attr-defined,unused-ignore]
    pack = lambda values: encode(values).payload  # noqa: E731
    got = errors.rebuild(errors.describe(sent, agent="r1", method="m", pack=pack), unpack=decode)
    again = pickle.loads(pickle.dumps(got))
    for each in (got, again):
        assert isinstance(each, KeyError)
        assert isinstance(each, errors.AgentCallError)
        assert (each.args, each.hint, str(each.__cause__)) == (sent.args, (1, 2), "why")  # type: ignore[attr-defined]
        assert each.__notes__[0] == "a note"  # type: ignore[attr-defined,unused-ignore]
        assert str(each) == "('a', 1) (in r1.m)"  # what Python shows is not KeyError: KeyError: ...


def test_an_exception_carries_its_traceback_as_text() -> None:
    try:
        raise ValueError("here")
    except ValueError as exc:
        got = round_trip(exc)
    assert "test_codec.py" in got.remote_traceback


def test_an_exception_whose_arguments_cannot_travel_arrives_with_its_message() -> None:
    for argument in (threading.Lock(), b"x" * (2 * LARGE), TaskRef("t", "s", "a")):
        encoded = encode([ValueError("odd", argument)])
        assert not encoded.buffers
        assert not encoded.tasks
        (got,) = decode(encoded.payload)
        assert type(got) is ValueError
        assert got.args[0].startswith("('odd', ")


def test_exceptions_inside_exceptions_end_somewhere() -> None:
    inner = KeyError(1)
    got = round_trip(ValueError("outer", inner))
    assert type(got.args[1]) is KeyError
    assert got.args[1].args == (1,)
    loop = ValueError()
    loop.args = (loop, loop)
    assert type(round_trip(loop)) is ValueError


def test_an_error_of_an_agent_stays_one() -> None:
    sent = errors.rebuild({**errors.describe(KeyError("k"), agent="r1", method="m"), "args": ["k"]})
    got = round_trip(sent)
    assert isinstance(got, errors.AgentCallError)
    assert isinstance(got, KeyError)
    assert (got.agent, got.method, got.args) == ("r1", "m", ("k",))


# ---------------------------------------------------------------- references


class Proxy:
    """As a proxy does it: every unknown attribute would ask the network."""

    def __init__(self, ref: Any) -> None:
        object.__setattr__(self, "ref", ref)

    def __zmqagents_ref__(self) -> Any:
        return object.__getattribute__(self, "ref")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"asked the network for {name}")


AGENT = AgentRef("s1", "host:1", "r1", "m:Reader", {"load": "value", "reply": "future"})
TASK = TaskRef("t1", "s1", "host:1")


def test_a_reference_arrives_as_what_resolve_makes_of_it() -> None:
    encoded = encode([Proxy(AGENT), {"k": (Proxy(TASK),)}])
    assert decode(encoded.payload) == [AGENT, {"k": (TASK,)}]
    seen: list[Any] = []

    def resolve(ref: Any) -> str:
        seen.append(ref)
        return type(ref).__name__

    got = decode(encoded.payload, resolve=resolve)
    assert got == ["AgentRef", {"k": ("TaskRef",)}]
    assert seen == [AGENT, TASK]


def test_the_tasks_in_a_value_are_collected_at_any_depth() -> None:
    other = TaskRef("t2", "s2", "host:2")
    for hidden in ([], [bytearray(b"the slow way")]):
        assert encode_call((Proxy(TASK), hidden), {"k": [{"deep": (other,)}]}).tasks == [TASK, other]
    assert not encode([Proxy(AGENT)]).tasks
    assert not encode(1).tasks


def test_an_error_of_resolve_comes_out_as_it_is() -> None:
    payload = encode([Proxy(TASK)]).payload
    expired = errors.ResultExpired("gone")
    expired.__cause__ = cause = ValueError()

    def resolve(_: Any) -> Any:
        raise expired

    with pytest.raises(errors.ResultExpired) as caught:
        decode(payload, resolve=resolve)
    assert caught.value is expired
    assert caught.value.__cause__ is cause


def test_resolve_may_itself_decode() -> None:
    inner = encode((1, {2})).payload
    assert decode(encode([Proxy(TASK), (3,)]).payload, resolve=lambda _: decode(inner)) == [(1, {2}), (3,)]


@pytest.mark.parametrize(
    "fields",
    [(b"T", 1, "s", "a"), (b"T", "t"), (b"A", "s", "a", "i", "c", {"m": 1}), (b"A", "s", "a", "i", "c", []),
     (b"T", "", "s", "a"), (b"T", "t", "", "a"), (b"T", "t", "s", ""), (b"T", "t" * 256, "s", "a"),
     (b"T", "t\n", "s", "a"), (b"A", "s", "a", "", "c", {}), (b"A", "", "a", "i", "c", {}),
     (b"A", "s", "", "i", "c", {}), (b"A", "s", "a", "\x1b[m", "c", {}), (b"A", "s", "a", "i" * 256, "c", {}),
     (b"A", "s", "a" * 600, "i", "c", {})],
)  # fmt: skip
def test_a_reference_with_wrong_fields_is_refused(fields: tuple[Any, ...]) -> None:
    payload = b"\xc1" + msgpack.packb([msgpack.ExtType(1, fields[0]), *fields[1:]])
    with pytest.raises(errors.RemoteProtocolError):
        decode(payload)


def test_a_reference_that_is_none_is_an_error_at_the_call_site() -> None:
    with pytest.raises(errors.SerializationError, match="__zmqagents_ref__ gave str"):
        encode(Proxy("text"))


# ---------------------------------------------------------------- what cannot be sent


@dataclasses.dataclass
class Config:
    lock: Any = dataclasses.field(default_factory=threading.Lock)


class Broken:
    def to_dict(self) -> dict[str, Any]:
        raise KeyError("broken")

    from_dict = to_dict


class BrokenToo:
    pass


def _cycle() -> list[Any]:
    box: list[Any] = [1]
    box.append({"k": (box,)})
    return box


def _deep(levels: int, wrap: Any = lambda box: [box], core: Any = 1) -> Any:
    box = core
    for _ in range(levels):
        box = wrap(box)
    return box


BAD: list[tuple[Any, str, str]] = [
    (threading.Lock(), "", "_thread.lock"),
    ([1, threading.Lock()], "[1]", "_thread.lock"),
    ({"a": [{"b": threading.Lock()}]}, "['a'][0]['b']", "_thread.lock"),
    ({(1, threading.Lock()): 1}, " key <tuple>[1]", "_thread.lock"),
    (({threading.Lock()},), "[0]{...}", "_thread.lock"),
    (Config(), ".lock", "_thread.lock"),
    (Settings("x", [Config()]), ".parts[0].lock", "_thread.lock"),
    (collections.deque([0, threading.Lock()], 5), "[1]", "_thread.lock"),
    (Point(0, threading.Lock()), "[1]", "_thread.lock"),
    (lambda: 0, "", "function"),
    (Color, "", "enum.EnumType" if sys.version_info >= (3, 11) else "enum.EnumMeta"),
    (iter([]), "", "list_iterator"),
    ((x for x in range(0)), "", "generator"),
    (_cycle(), "[1]['k'][0]", "list"),
    (_deep(2000), "[0]" * 128, "list"),
    (_deep(2000, lambda box: (box,)), "[0]" * 128, "tuple"),
    ([10**50_000], "[0]", "int"),
    ([Decimal("1" * 20_000)], "[0]", "decimal.Decimal"),
    ([Broken()], "[0]", "Broken"),
    (object(), "", "object"),
]


@pytest.mark.parametrize(("value", "step", "type_name"), BAD, ids=[f"{step}{name}"[-40:] for _, step, name in BAD])
def test_what_cannot_be_sent_is_named_with_its_path_and_type(value: Any, step: str, type_name: str) -> None:
    with pytest.raises(errors.SerializationError) as caught:
        encode_call((0,), {"cfg": value}, what="reader.load: ")
    path = f"kwargs['cfg']{step}"
    assert str(caught.value).startswith(f"reader.load: cannot send {path[:300]}")
    assert caught.value.path[:300] == path[:300]
    assert caught.value.type_name.endswith(type_name)
    with pytest.raises(errors.SerializationError) as caught:
        encode(value, root="result")
    assert caught.value.path[:300] == f"result{step}"[:300]
    assert encode_call((1,), {}).payload == b"\x92\x01\x80"  # and the next one is well


def test_the_message_tells_what_to_do() -> None:
    with pytest.raises(errors.SerializationError) as caught:
        encode_call((), {"cfg": Config()}, what="reader.load: ")
    expected = "cannot send kwargs['cfg'].lock: _thread.lock has no msgpack form (register_type can teach it)"
    assert str(caught.value) == f"reader.load: {expected}"


def test_the_cause_of_a_failed_conversion_is_kept(registry: None) -> None:
    register_type(BrokenToo, to_data=Broken.to_dict, from_data=lambda _: BrokenToo())
    with pytest.raises(
        errors.SerializationError, match=r"converting the .*BrokenToo raised KeyError: 'broken'"
    ) as caught:
        encode([BrokenToo()])
    assert type(caught.value.__cause__) is KeyError


def test_nesting_up_to_the_limit_travels_in_every_form(registry: None) -> None:
    register_type(Plain)
    wraps: list[Any] = [lambda b: [b], lambda b: {"k": b}, lambda b: (b,), lambda b: collections.deque([b]), Plain]
    for wrap in wraps:
        for core in (1, bytearray(b"x")):  # the second takes the slow way
            box = _deep(codec.MAX_DEPTH - 1, wrap, core)
            assert round_trip(box) == box
    box = _deep(codec.MAX_DEPTH, lambda b: Point(1, b), 1)
    assert len(repr(round_trip(box, scope=PLAIN))) == len(repr(box).replace("Point(x=1, y=", "(1, "))


def test_deep_in_the_callers_own_recursion_there_is_no_recursion_error() -> None:
    box = _deep(100, lambda inner: [inner, threading.Lock()])

    def dig(left: int) -> Encoded:
        return dig(left - 1) if left else encode(box)

    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    with pytest.raises(errors.SerializationError, match="nested too deeply for what is left of the stack"):
        dig(sys.getrecursionlimit() - depth - 80)


def test_hostile_keys_do_not_break_the_message() -> None:
    class Key:
        def __repr__(self) -> str:
            raise RuntimeError

    for key in (Key(), 2**60_000, "x" * 10_000, b"y" * 10_000):
        with pytest.raises(errors.SerializationError) as caught:
            encode({key: threading.Lock()})
        assert len(str(caught.value)) < 700


def test_a_conversion_that_encodes_by_itself_disturbs_nothing(registry: None) -> None:
    register_type(Plain, to_data=lambda plain: encode((plain.a, [plain.a])).payload, from_data=decode)
    sent = [1, Plain(2), (3, Plain("x"))]
    assert round_trip(sent) == [1, (2, [2]), (3, ("x", ["x"]))]


def test_threads_do_not_disturb_each_other() -> None:
    wrong: list[Any] = []

    def work(seed: int) -> None:
        sent = {"seed": (seed, str(seed) * 50), "set": {seed}, "raw": bytes([seed]) * 300, "array": bytearray([seed])}
        for _ in range(300):
            if round_trip(sent) != sent:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_idle_encoder_holds_neither_values_nor_large_memory() -> None:
    encoder_module.idle.clear()
    encode([b"x" * LARGE, Proxy(TASK), "y" * (2 << 20)])
    assert encoder_module.idle == []
    encode([b"x" * LARGE, (Proxy(TASK),)], pickler=cloudpickle.dumps)
    (encoder,) = encoder_module.idle
    assert encoder.buffers == encoder.tasks == encoder.made == []
    assert encoder.pickler is None


# ---------------------------------------------------------------- pickles, only by choice


def test_with_a_pickler_any_value_travels_and_the_others_stay_as_they_are() -> None:
    encoded = encode([(1, 2), lambda x: x + 1, Plain(3)], pickler=cloudpickle.dumps)
    pair, function, plain = decode(encoded.payload, unpickler=pickle.loads)
    assert (pair, function(1), plain) == ((1, 2), 2, Plain(3))
    assert encode([1, (2,)], pickler=cloudpickle.dumps) == encode([1, (2,)])


def test_without_an_unpickler_a_pickle_is_refused_and_not_looked_at() -> None:
    payload = encode(lambda: 0, pickler=cloudpickle.dumps).payload
    with pytest.raises(errors.RemoteProtocolError, match="pickled value refused"):
        decode(payload)


def test_what_even_the_pickler_cannot_take_is_named_with_its_path() -> None:
    with pytest.raises(errors.SerializationError, match=r"cannot send value\[1\]: .*cannot pickle"):
        encode([1, threading.Lock()], pickler=cloudpickle.dumps)


class Unmade:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


def test_a_pickle_that_cannot_be_read_is_a_serialization_error_with_the_reason() -> None:
    for pickled, reason in ((b"garbage", "UnpicklingError"), (pickle.dumps(Unmade()), "ValueError: invalid literal")):
        payload = b"\xc1" + msgpack.packb(msgpack.ExtType(14, pickled))
        with pytest.raises(errors.SerializationError, match=f"cannot be made again here: {reason}"):
            decode(payload, unpickler=pickle.loads)


def test_the_codec_does_not_import_pickle() -> None:
    for path in pathlib.Path(codec.__file__).parent.rglob("*.py"):
        if path.stem != "pickling":
            source = path.read_text()
            assert "import pickle" not in source
            assert "import cloudpickle" not in source


# ---------------------------------------------------------------- what peers may send


def _ext(code: int, data: bytes) -> bytes:
    return b"\xc1" + _packed(msgpack.ExtType(code, data))


def _box(letter: bytes, *items: Any) -> bytes:
    return b"\xc1" + _packed([msgpack.ExtType(1, letter), *items])


GARBAGE = {
    "nothing": b"",
    "only the tag": b"\xc1",
    "two tags": b"\xc1\xc1",
    "truncated": encode(["abc", {"d": (1,)}]).payload[:-1],
    "extra bytes": encode(1).payload + b"\x01",
    "extra bytes, tagged": encode((1,)).payload + b"\x01",
    "not UTF-8": b"\xa1\xff",
    "a long list declared": b"\xdd\xff\xff\xff\xff",
    "a long text declared": b"\xdb\xff\xff\xff\xff",
    "a long map declared": b"\xdf\x7f\xff\xff\xff",
    "a depth bomb": b"\x91" * 100_000 + b"\xc0",
    "a depth bomb, tagged": b"\xc1" + b"\x91" * 100_000 + b"\xc0",
    "a depth bomb of tuples": b"\xc1" + b"\x92\xd4\x01t" * 100_000 + b"\xc0",
    "an unhashable key": b"\x81\x90\x01",
    "an unhashable member": _box(b"s", []),
    "an extension in a plain payload": msgpack.packb(msgpack.ExtType(5, b"")),
    "an unknown extension": _ext(99, b""),
    "an unknown mark": _box(b"?"),
    "a mark with data of two": _box(b"tt"),
    "a mark alone": _ext(1, b"t"),
    "a mark in second place": b"\xc1" + msgpack.packb([1, msgpack.ExtType(1, b"t")]),
    "a mark in a map": b"\xc1" + msgpack.packb({"k": msgpack.ExtType(1, b"t")}),
    "a mark as a key": b"\xc1\x81\xd4\x01t\x01",
    "a mark inside a tuple": _box(b"t", 1, msgpack.ExtType(1, b"s")),
    "a long int": _ext(3, b"\x01" * 10_000),
    "a complex of 3 bytes": _ext(4, b"abc"),
    "a datetime of garbage": _ext(5, b"garbage"),
    "a datetime in no zone": _ext(5, b"2024-01-01T00:00:00 0 :x"),
    "an uuid of 18 bytes": _ext(9, bytes(18)),
    "an uuid of another safety": _ext(9, bytes(16) + b"\x07"),
    "a datetime in a file": _ext(5, b"2024-01-01T00:00:00 0 ../../etc/passwd:"),
    "a datetime in a far zone": _ext(5, b"2024-01-01T00:00:00 0 :+99999999999999999999999"),
    "a date of garbage": _ext(6, b"\xff"),
    "a time of garbage": _ext(7, b"25:00:00 0 "),
    "a timedelta out of range": _ext(8, b"\x7f\xff\xff\xff" * 3),
    "a decimal of garbage": _ext(9, b"1.2.3"),
    "a long decimal": _ext(9, b"1" * 10_000),
    "a UUID of 3 bytes": _ext(10, b"abc"),
    "a path of garbage": _ext(11, b"\xff"),
    "a text of garbage": _ext(12, b"\xff"),
    "an ellipsis with data": _ext(13, b"x"),
    "a range of texts": _box(b"r", "a", "b", "c"),
    "a range with step 0": _box(b"r", 0, 1, 0),
    "a range of two": _box(b"r", 0, 1),
    "a fraction of zero": _box(b"q", 1, 0),
    "a fraction of texts": _box(b"q", "1", "2"),
    "a deque of length -1": _box(b"d", -1),
    "a deque of nothing": _box(b"d"),
    "a bytearray by size": _box(b"b", 10**12),
    "a bytearray of text": _box(b"b", "x"),
    "a bytearray of True": _box(b"b", True),
    "a buffer that is not there": _ext(2, b"\x00\x00"),
    "a buffer index of 3 bytes": _ext(2, b"\x00\x00\x00"),
    "an object of no name": _box(b"o"),
    "an object with a list for a name": _box(b"o", [], {}),
    "an exception of text": _box(b"x", "text"),
    "an exception of too much": _box(b"x", {"type": "builtins:KeyError"}, None),
    "an exception with text for its arguments": _box(b"x", {"type": "builtins:KeyError", "args": "x"}),
    "an exception with a list for its cause": _box(b"x", {"type": "builtins:KeyError", "cause": []}),
    "an object without parts": _box(b"o", "a:B"),
    "a type of the library that is not there": _box(b"e", "nothing", 1),
    "a type of a package that is not there": _box(b"p", "nothing.at_all", 1),
    "a kind of value that is not there": _box(b"p", "numpy.Panel", 1),
    "a numpy scalar of nothing": _box(b"g", "<f8", b""),
    "a numpy text that is none": _box(b"g", "U", b"x"),
}


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_a_protocol_error_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        decode(payload)
    with pytest.raises(errors.RemoteProtocolError):
        decode_call(payload)


def test_exceptions_packed_inside_exceptions_by_a_peer_end_at_the_limit() -> None:
    payload = b"\xc1" + msgpack.packb([])
    for _ in range(200):
        payload = b"\xc1\x91" + _box(b"x", {"type": "builtins:KeyError", "message": "m", "args": payload})[1:]
    found, depth = decode(payload)[0], 0
    while isinstance(found, KeyError):
        found, depth = found.args[0], depth + 1
    assert (found, depth) == ("m", 5)


@pytest.mark.program
def test_lists_that_are_declared_inside_lists_cost_no_memory() -> None:
    size = 1 << 20
    head = b"\xdd" + (size - 6000).to_bytes(4, "big")
    payload = head * 1000 + b"\xc0" * (size - 5 * 1000)
    script = (
        "import resource, sys; from zmqagents.codec import decode; from zmqagents.errors import RemoteProtocolError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "payload = sys.stdin.buffer.read()\n"
        "for _ in range(20):\n"
        "    try: decode(payload)\n"
        "    except RemoteProtocolError as exc: print(type(exc.__cause__).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=payload, capture_output=True, check=True, timeout=60)
    assert done.stdout.split() == [b"ValueError"] * 20  # incomplete, and not a MemoryError


# ---------------------------------------------------------------- headers


def test_headers_are_plain_msgpack() -> None:
    header = ["agent", b"\x00", None, True, 1, 2.5, {"k": [1, {2: 3}]}]
    assert codec.unpack(codec.pack(header)) == header
    assert codec.pack(header) == msgpack.packb(header)
    assert codec.unpack(codec.pack((1, (2,)))) == [1, [2]]
    assert codec.unpack(memoryview(codec.pack([1]))) == [1]


@pytest.mark.parametrize("value", [threading.Lock(), 2**64, "\ud800", [{1, 2}], _deep(2000), dt.date(2024, 1, 1)])
def test_a_header_of_anything_else_is_a_local_error(value: Any) -> None:
    with pytest.raises(errors.LocalProtocolError):
        codec.pack(value)


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
def test_a_garbage_header_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(errors.RemoteProtocolError):
        codec.unpack(data)


def test_a_header_over_its_limit_or_nested_deeply_is_refused() -> None:
    assert codec.unpack(b"\xa9123456789", max_bytes=10) == "123456789"
    with pytest.raises(errors.RemoteProtocolError, match="11 bytes, limit 10"):
        codec.unpack(b"\xaa1234567890", max_bytes=10)
    for nested in (b"\x91" * 400 + b"\xc0", b"\x81\xa1k" * 400 + b"\xc0"):
        with pytest.raises(errors.RemoteProtocolError, match="nested more than 64"):
            codec.unpack(nested)
    long = codec.pack([_deep(60), "x" * 1000])
    assert codec.unpack(long) == [_deep(60), "x" * 1000]


def test_no_extension_gets_through_a_header() -> None:
    assert codec.unpack(msgpack.packb(msgpack.Timestamp(1, 500_000_000))) == 1.5
    with pytest.raises(errors.RemoteProtocolError):
        codec.unpack(msgpack.packb([msgpack.ExtType(7, b"x")]))
