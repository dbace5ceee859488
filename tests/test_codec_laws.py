"""What holds for every value and for every string of bytes."""

from __future__ import annotations

import contextlib
import datetime as dt
import pathlib
import zoneinfo
from typing import Any

import msgpack
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from test_codec import same
from zmqagents import codec, errors

ZONES = st.one_of(
    st.none(),
    st.just(dt.timezone.utc),
    st.sampled_from(["Europe/Paris", "America/St_Johns", "Asia/Kathmandu", "UTC"]).map(zoneinfo.ZoneInfo),
    st.timedeltas(dt.timedelta(hours=-23, minutes=-59), dt.timedelta(hours=23, minutes=59)).map(dt.timezone),
)
TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates too
NAMES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)
HASHABLE_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**2000), 2**2000), st.floats(allow_nan=False), TEXTS,
    st.binary(max_size=20), st.complex_numbers(allow_nan=False), st.decimals(allow_nan=False), st.fractions(),
    st.uuids(), st.dates(), st.datetimes(timezones=ZONES), st.times(timezones=ZONES), st.timedeltas(), st.just(...),
    st.lists(NAMES, max_size=3).map(lambda names: pathlib.Path(*names)),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
)  # fmt: skip
HASHABLE = st.recursive(
    HASHABLE_LEAVES,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
LEAVES = HASHABLE | st.binary(max_size=20).map(bytearray) | st.just(bytes(codec.INLINE_LIMIT_BYTES + 1))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.lists(inner, max_size=4).map(tuple), st.sets(HASHABLE, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
    ),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=400)
def test_what_is_decoded_is_what_was_encoded(value: Any) -> None:
    payload, buffers, tasks = codec.encode(value)
    assert same(codec.decode(payload, buffers), value)
    assert not tasks


@given(VALUES)
def test_the_fast_way_and_the_slow_way_make_the_same_bytes(value: Any) -> None:
    encoder = codec._Encoder()
    fast = encoder.fast_value(value)
    buffers = list(encoder.buffers)
    slow = codec._Walk(encoder, "").value(value, "value")
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
        assert plain == codec.encode_call(tuple(args), {})
        assert codec.encode_plain_call(tuple(args), len(plain.payload) - 1) is None


@given(hnp.arrays(hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3), hnp.array_shapes(min_dims=0, min_side=0)))
def test_an_array_arrives_byte_for_byte(array: Any) -> None:
    assume(array.dtype.itemsize)
    for sent in (array, array.T, array[..., :1] if array.ndim else array):
        encoded = codec.encode(sent)
        got = codec.decode(encoded.payload, encoded.buffers)
        assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
        assert got.tobytes() == sent.tobytes()


def decodes_or_refuses(payload: bytes, buffers: list[bytes]) -> None:
    for read in (codec.decode, codec.decode_call):
        with contextlib.suppress(errors.RemoteProtocolError):
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
            st.sampled_from(sorted(codec._MARKS)),
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
@settings(max_examples=600)
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
    except errors.RemoteProtocolError:
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
