"""What holds for every value and for every string of bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import math
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import msgpack
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anything import LEAVES, TEXTS, VALUES
from sameness import same
from scale import pick
from zmqagents import codec, errors
from zmqagents.codec import decoder, forms
from zmqagents.codec import encoder as encoder_module

REFUSED = (errors.RemoteProtocolError, errors.SerializationError)


@given(VALUES)
@settings(max_examples=pick(120, 400))
def test_what_is_decoded_is_what_was_encoded(value: Any) -> None:
    payload, buffers, tasks = codec.encode(value)
    assert same(codec.decode(payload, buffers), value)
    assert not tasks


@given(VALUES)
def test_the_fast_way_and_the_slow_way_make_the_same_bytes(value: Any) -> None:
    encoder = encoder_module.Encoder()
    fast = encoder.fast_value(value)
    buffers = list(encoder.buffers)
    slow = encoder.walk("").value(value, "value")
    if fast is not None:
        assert fast == slow
        assert buffers == encoder.buffers
    assert same(codec.decode(slow, encoder.buffers), value)


@given(st.lists(VALUES, max_size=3), st.dictionaries(TEXTS, VALUES, max_size=3))
def test_the_arguments_of_a_call_arrive_as_they_were(args: list[Any], kwargs: dict[str, Any]) -> None:
    payload, buffers, _ = codec.encode_call(tuple(args), kwargs)
    got_args, got_kwargs = codec.decode_call(payload, buffers)
    assert same(got_args, tuple(args))
    assert same(got_kwargs, kwargs)


@given(st.lists(LEAVES, max_size=4))
def test_the_way_for_plain_arguments_makes_the_same_bytes_or_declines(args: list[Any]) -> None:
    plain = codec.encode_plain_call(tuple(args), 1 << 30)
    if plain is not None:
        slow = codec.encode_call(tuple(args), {})
        assert (plain.payload, list(plain.buffers), list(plain.tasks)) == (slow.payload, list(slow.buffers), [])
        assert codec.encode_plain_call(tuple(args), len(plain.payload)) is not None
        assert codec.encode_plain_call(tuple(args), len(plain.payload) - 1) is None


@given(hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3), hnp.array_shapes(min_dims=0, min_side=0)))
def test_an_array_arrives_byte_for_byte(array: Any) -> None:
    assume(array.dtype.itemsize)
    for sent in (array, array.T, array[..., :1] if array.ndim else array):
        encoded = codec.encode(sent)
        got = codec.decode(encoded.payload, encoded.buffers)
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert got.tobytes() == sent.tobytes()


def decodes_or_refuses(payload: bytes, buffers: Sequence[codec.Buffer]) -> None:
    for read in (codec.decode, codec.decode_call):
        with contextlib.suppress(*REFUSED):
            read(payload, buffers)


PACKED = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(),
        st.text(max_size=5), st.binary(max_size=5),
        st.builds(msgpack.ExtType, st.integers(0, 16), st.binary(max_size=12)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(
            lambda letter, items: [msgpack.ExtType(1, letter), *items],
            st.sampled_from(sorted(decoder.MARKS)),
            st.lists(inner, max_size=6),
        ),
    ),
    max_leaves=20,
)  # fmt: skip


@given(st.binary(max_size=200), st.lists(st.binary(max_size=10), max_size=2))
def test_any_bytes_are_a_value_or_a_protocol_error(payload: bytes, buffers: list[bytes]) -> None:
    decodes_or_refuses(payload, buffers)
    decodes_or_refuses(b"\xc1" + payload, buffers)


@given(PACKED, st.lists(st.binary(max_size=10), max_size=2))
@settings(max_examples=pick(150, 600))
def test_any_msgpack_is_a_value_or_a_protocol_error(packed: Any, buffers: list[bytes]) -> None:
    payload = msgpack.packb(packed)
    decodes_or_refuses(payload, buffers)
    decodes_or_refuses(b"\xc1" + payload, buffers)


@given(VALUES, st.data())
def test_a_payload_with_one_byte_changed_or_cut_off_is_a_value_or_a_protocol_error(value: Any, data: Any) -> None:
    payload, buffers, _ = codec.encode(value)
    index = data.draw(st.integers(0, min(len(payload), 400) - 1))
    byte = data.draw(st.integers(0, 255))
    decodes_or_refuses(payload[:index] + bytes([byte]) + payload[index + 1 :], buffers)
    decodes_or_refuses(payload[:index], buffers)


@given(PACKED)
def test_a_value_that_was_decoded_can_be_sent_on(packed: Any) -> None:
    try:
        value = codec.decode(b"\xc1" + msgpack.packb(packed))
    except REFUSED:
        return
    codec.encode(value)


UTF8 = st.text(st.characters(codec="utf-8"))
HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.binary() | UTF8,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(UTF8 | st.integers(0, 9), inner),
    max_leaves=10,
)


@given(HEADERS)
def test_what_is_unpacked_is_what_was_packed(header: Any) -> None:
    assert same(codec.unpack(codec.pack(header)), header)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_a_protocol_error(data: bytes) -> None:
    try:
        value = codec.unpack(data)
    except errors.RemoteProtocolError:
        return
    assert same_kinds(value)


def same_kinds(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(same_kinds, value))
    if isinstance(value, dict):
        return all(map(same_kinds, value)) and all(map(same_kinds, value.values()))
    return type(value) in (type(None), bool, int, float, str, bytes)


# ---------------------------------------------------------------- children of wrong types

CPU_LIMIT_S = 0.4  # of the thread that decodes; what is refused takes some microseconds


class Colour(enum.Enum):
    RED = 1


class Bits(enum.IntFlag):
    LOW = 1


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Record:
    count: int
    made: Any = dataclasses.field(default=None, init=False)


class Model(pydantic.BaseModel):
    count: int
    parts: list[int] = []
    table: dict[int, float] = {}
    share: Fraction = Fraction(1)


class Plain:
    count: int


for _cls in (Colour, Bits, Pair, Record, Model, Plain):
    codec.register_type(_cls, name=_cls.__name__)


class Trap:
    """What a reference becomes: to read an attribute is a call to another host, to iterate over it a long wait."""

    sprung: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        self.sprung.append(name)
        raise AttributeError(name)

    def __iter__(self) -> Any:
        self.sprung.append("iter")
        return iter(())

    def __len__(self) -> int:
        self.sprung.append("len")
        return 0

    def __bool__(self) -> bool:
        self.sprung.append("bool")
        return False

    def __getitem__(self, key: Any) -> Any:
        self.sprung.append("item")
        raise IndexError(key)


def box(letter: str, *children: Any) -> list[Any]:
    return [msgpack.ExtType(1, letter.encode()), *children]


DECIMAL = forms.Ext.DECIMAL


def leaf(code: forms.Ext, data: bytes) -> Any:
    return msgpack.ExtType(code, data)


def nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


# With these exponents and lengths Python's own constructors work for one or two seconds, so that the test can fail.
BIG_TEXT, BIG_RANGE = "1e5000000", box("r", 0, 20_000_000, 1)
REFERENCE = box("A", "s", "h:1", "id", "C", {"items": "value ()", "keys": "value ()"})
CHILDREN: dict[str, Any] = {
    "None": None, "True": True, "0": 0, "3": 3, "-1": -1, "2**63": 2**63, "float": 0.5, "inf": math.inf,
    "nan": math.nan, "text": "C", "exponent as text": BIG_TEXT, "ratio as text": f"1/{'9' * 4000}",
    "long text": "9" * 1_000_000, "bytes": b"C", "exponent as bytes": BIG_TEXT.encode(), "long bytes": b"9" * 1_000_000,
    "list": [], "long list": [0] * 100_000, "nested lists": nested(200), "dict": {},
    "dict of bombs": {"count": BIG_RANGE},
    "big int": leaf(forms.Ext.INT, b"\x7f" * codec.MAX_NUMBER_BYTES),
    "complex": leaf(forms.Ext.COMPLEX, bytes(16)), "timedelta": leaf(forms.Ext.TIMEDELTA, bytes(12)),
    "date": leaf(forms.Ext.DATE, b"2024-01-01"), "uuid": leaf(forms.Ext.UUID, bytes(16)),
    "safe uuid": leaf(forms.Ext.UUID, bytes(17)), "time": leaf(forms.Ext.TIME, b"01:02:00 0 "),
    "path": leaf(forms.Ext.PATH, b"/" + b"a/" * 1000), "ellipsis": leaf(forms.Ext.ELLIPSIS, b""),
    "Decimal": leaf(DECIMAL, b"1.5"), "huge Decimal": leaf(DECIMAL, BIG_TEXT.encode()),
    "tiny Decimal": leaf(DECIMAL, b"1e-5000000"), "Decimal NaN": leaf(DECIMAL, b"sNaN"),
    "tuple": box("t", 1), "set": box("s", 1), "frozenset": box("f"), "deque": box("d", None, 1),
    "huge range": BIG_RANGE,
    "slice": box("l", BIG_RANGE, None, None), "Fraction": box("q", 1, 3), "bytearray": box("b", b"abc"),
    "array": box("a", "<f8", [1], "C", bytes(8)), "long empty array": box("a", "<f8", [2**47, 0], "C", b""),
    "numpy scalar": box("g", "<i8", b"\x01" + bytes(7)), "numpy text": box("g", "U", "C"),
    "object": box("o", "Pair", box("t", 1, 2)), "object of an unknown class": box("o", "x:Y", BIG_RANGE),
    "exception": box("x", {"type": "builtins:KeyError", "message": "m"}),
    "Counter": box("e", "Counter", {"a": 1}), "pattern": box("e", "Pattern", "a+", 0),
    "zone": box("e", "ZoneInfo", "UTC"), "stream": box("e", "BytesIO", b"", 2**62),
    "list of huge ranges": [BIG_RANGE, BIG_RANGE],
    "dict with a huge key": {leaf(DECIMAL, BIG_TEXT.encode()): 1},
    "agent": REFERENCE, "task": box("T", "a-1", "s", "h:1"),
}  # fmt: skip
DESCRIPTION = {
    "type": "builtins:SyntaxError", "message": "m", "traceback": "t", "group": [], "fields": {"size": 1}, "args": b"",
    "attributes": b"", "bases": ["builtins:ValueError"], "notes": ["n"], "cause": {"type": "builtins:KeyError"},
}  # fmt: skip
# Each way to build something: valid children, and the types that the codec demands (object: of any type).
BUILDERS: dict[str, tuple[str, list[Any], list[type]]] = {
    "tuple": ("t", [1], [object]), "set": ("s", [1], [object]), "frozenset": ("f", [1], [object]),
    "deque": ("d", [3, 1], [int, object]), "range": ("r", [1, 9, 2], [int] * 3),
    "slice": ("l", [1, 2, 3], [object] * 3),
    "Fraction": ("q", [1, 3], [int, int]), "bytearray": ("b", [b"abc"], [bytes]),
    "array": ("a", ["<f8", [1], "C", bytes(8)], [object, list, str, bytes]),
    "numpy scalar": ("g", ["<f8", bytes(8)], [object, bytes]), "numpy text": ("g", ["U", "text"], [object, str]),
    "enum": ("o", ["Colour", 1], [str, object]), "flag": ("o", ["Bits", 1], [str, object]),
    "namedtuple": ("o", ["Pair", box("t", 1, 2)], [str, object]),
    "dataclass": ("o", ["Record", {"count": 1}], [str, dict]), "model": ("o", ["Model", {"count": 1}], [str, dict]),
    "attributes": ("o", ["Plain", {"count": 1}], [str, dict]), "exception": ("x", [DESCRIPTION], [dict]),
    "OrderedDict": ("e", ["OrderedDict", {}], [str, dict]), "Counter": ("e", ["Counter", {"a": 1}], [str, dict]),
    "defaultdict": ("e", ["defaultdict", "list", {}], [str, object, dict]),
    "namespace": ("e", ["SimpleNamespace", {"a": 1}], [str, dict]),
    "zone": ("e", ["ZoneInfo", "UTC"], [str, str]), 
    "timezone": ("e", ["timezone", 3600 * 10**6, "X"], [str, int, object]),
    "moment in a named zone": (
        "e", ["in zone", leaf(forms.Ext.TIME, b"01:02:00 0 "), box("e", "timezone", 0, "X")], [str, dt.time, object],
    ),
    "pattern": ("e", ["Pattern", "a", 0], [str, object, int]),
    "array.array": ("e", ["array", "B", 1, b"a"], [str, str, int, bytes]),
    "memoryview": ("e", ["memoryview", "i", [2], bytes(8)], [str, str, list, bytes]),
    "BytesIO": ("e", ["BytesIO", b"abc", 1], [str, bytes, int]),
    "BytesIO with a name": ("e", ["BytesIO", b"abc", 1, {"name": "x"}], [str, bytes, int, dict]),
    "Counter with attributes": ("e", ["Counter", {"a": 1}, {"b": 2}], [str, dict, dict]),
    "struct sequence": ("o", ["time:struct_time", [0] * 9, {"tm_zone": "UTC"}], [str, list, dict]),
    "dataclass with attributes": ("o", ["Record", {"count": 1}, {"more": 2}], [str, dict, object]),
    "enum of the standard library": ("o", ["http:HTTPStatus", 200, "OK"], [str, object, object]),
    "pure path": ("e", ["PureWindowsPath", "a"], [str, str]), "address": ("e", ["IPv4Address", "1.2.3.4"], [str, str]),
    "agent": ("A", ["s", "h:1", "id", "C", {"reply": "future ()"}], [str, str, str, str, dict]),
    "task": ("T", ["a-1", "s", "h:1"], [str, str, str]),
}  # fmt: skip


def decode_in_time(packed: Any) -> Any:
    """The value, or the error; within the limit, and without a touch on what a reference has become."""
    payload = b"\xc1" + msgpack.packb(packed)
    Trap.sprung.clear()
    began = time.thread_time()
    try:
        found = codec.decode(payload, resolve=lambda _: Trap())
    except REFUSED as exc:
        found = exc
    assert time.thread_time() - began < CPU_LIMIT_S
    assert not Trap.sprung
    return found


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_takes_no_child_of_a_wrong_type_and_no_bomb(builder: str) -> None:
    letter, children, kinds = BUILDERS[builder]
    assert not isinstance(decode_in_time(box(letter, *children)), errors.RemoteProtocolError)
    for place, kind in enumerate(kinds):
        for name, child in CHILDREN.items():
            found = decode_in_time(box(letter, *children[:place], child, *children[place + 1 :]))
            if kind is not object and type(decode_in_time(child)) is not kind and (letter, name) != ("d", "None"):
                assert isinstance(found, REFUSED), name
    for count in (0, len(children) - 1, len(children) + 1):
        decode_in_time(box(letter, *(children * 2)[:count]))


def child_key(child: Any) -> Any:
    """A child as the key of a map, or a text if msgpack cannot have it there."""
    return child if type(child) in (str, int, bytes) else "key"


@pytest.mark.parametrize("name", CHILDREN)
def test_a_bomb_deep_in_the_children_is_refused_in_time(name: str) -> None:
    child = CHILDREN[name]
    for field in DESCRIPTION:
        for odd in (child, [child, child], {"type": child}, {child_key(child): child}):
            decode_in_time(box("x", DESCRIPTION | {field: odd}))
            decode_in_time(box("x", DESCRIPTION | {"group": [DESCRIPTION | {field: odd}]}))
    for kind in ("SyntaxError", "ExceptionGroup", "OSError", "UnicodeDecodeError", "KeyError", "StopIteration"):
        for more in ({}, {"agent": "a"}):
            data = {"type": f"builtins:{kind}", "message": "m", **more}
            for args in (["m", child], [child, "m"], [child] * 5):
                packed = b"\xc1" + msgpack.packb(args)
                for held in ({"args": packed}, {"attributes": packed}, {"args": args}):
                    decode_in_time(box("x", data | held))
                    decode_in_time(box("x", DESCRIPTION | {"group": [data | held]}))
                decode_in_time(box("x", DESCRIPTION | {"cause": data | {"args": packed}}))
    for form in ([child], [[child, "<f8"]], [["x", child]], [["x", "<f8", child]], [["x", "<f8", [child]]]):
        decode_in_time(box("a", form, [1], "C", bytes(8)))
        decode_in_time(box("g", form, bytes(8)))
    decode_in_time(box("a", "<f8", [child], "C", bytes(8)))


@pytest.mark.parametrize(
    "name", [name for name in CHILDREN if name not in ("agent", "task")]
)  # pydantic iterates over those
def test_a_bomb_in_a_field_of_a_model_is_refused_in_time(name: str) -> None:
    child = CHILDREN[name]
    for field in ("count", "parts", "table", "share"):
        for value in (child, [child], {"count": child}):
            decode_in_time(box("o", "Model", {"count": 1, field: value}))
    with contextlib.suppress(TypeError):  # what msgpack cannot pack as a key
        decode_in_time(box("o", "Model", {"count": 1, "table": {child: 1.0}}))


@pytest.mark.parametrize("code", forms.Ext)
def test_a_leaf_of_any_data_is_a_value_or_refused_in_time(code: forms.Ext) -> None:
    moment = b"2024-01-01T00:00:00 0 :+"
    for data in (b"", b"9" * 8192, b"9" * 1_000_000, moment + b"9" * 50, moment + b"9" * 4000, b"1e999999999", b"\xff"):
        decode_in_time(leaf(code, data))


ANY_CHILD = st.sampled_from(list(CHILDREN.values()))


@given(
    st.sampled_from([letter.decode() for letter in decoder.MARKS]),
    st.lists(ANY_CHILD | st.lists(ANY_CHILD, max_size=3) | st.dictionaries(st.text(max_size=5), ANY_CHILD, max_size=3)),
)
@settings(max_examples=pick(150, 600), deadline=None)
def test_any_box_of_any_children_is_a_value_or_a_protocol_error_in_time(letter: str, children: list[Any]) -> None:
    decode_in_time(box(letter, *children))
