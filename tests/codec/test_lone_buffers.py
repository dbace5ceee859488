"""Values that are one long buffer and nothing else: bytes, bytearrays, arrays. Their payload is made and read once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zmqagents import codec, errors
from zmqagents.codec import encoder as encoder_module
from zmqagents.codec import plain

LONG = codec.INLINE_LIMIT_BYTES + 8
ARRAY = np.arange(LONG, dtype="u1")


@pytest.fixture(autouse=True)
def the_tables_as_they_were() -> Iterator[None]:
    tables: list[dict[Any, Any]] = [plain.lone_forms, plain.lone_values, plain.lone_arguments]
    copies = [dict(table) for table in tables]
    yield
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)


def of_the_encoder(value: Any) -> tuple[bytes, list[bytes]]:
    """Payload and buffers as the general way makes them."""
    encoder = encoder_module.Encoder()
    payload = encoder.fast_value(value)
    assert payload is not None
    return payload, [bytes(buffer) for buffer in encoder.buffers]


def same(got: Any, sent: Any) -> bool:
    if isinstance(sent, np.ndarray):
        return (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape) and bool((got == sent).all())
    return type(got) is type(sent) and bool(got == sent)


def some_dtypes() -> st.SearchStrategy[Any]:
    return hnp.scalar_dtypes() | hnp.array_dtypes(max_size=3)


@given(some_dtypes(), st.sampled_from([(LONG,), (2, LONG // 2), (1, 1, LONG)]), st.booleans(), st.booleans())
def test_a_long_array_is_encoded_and_decoded_as_the_general_way_does_it(
    dtype: Any, shape: tuple[int, ...], fortran: bool, read_only: bool
) -> None:
    assume(dtype.itemsize and not dtype.hasobject)
    array = np.zeros(shape, dtype, order="F" if fortran else "C")
    array.flags.writeable = not read_only
    payload, buffers = of_the_encoder(array)
    for _ in range(2):  # the first one may go the general way
        lone = codec.encode_plain(array)
        if lone is not None:
            assert (lone[0], [bytes(buffer) for buffer in lone[1:]]) == (payload, buffers)
        got = codec.decode(payload, buffers)
        assert got.flags.writeable
        assert (got.dtype, got.dtype.isalignedstruct, got.shape) == (array.dtype, array.dtype.isalignedstruct, shape)
        call = codec.encode_call((array,), {})
        (again,), kwargs = codec.decode_call(call.payload, call.buffers)
        assert again.tobytes() == array.tobytes()
        assert not kwargs


@pytest.mark.parametrize("value", [bytes(LONG), bytearray(LONG), ARRAY, ARRAY.reshape(8, -1), ARRAY.view(">u8")])
def test_a_long_buffer_takes_the_short_way_there_and_back(value: Any) -> None:
    codec.encode(value)  # the first array makes the way known
    lone = codec.encode_plain(value)
    assert lone is not None
    assert (lone[0], [bytes(lone[1])]) == of_the_encoder(value)
    call = codec.encode_plain_call((value,), 1 << 20)
    assert call is not None
    slow = codec.encode_call((value,), {})
    assert (call.payload, [*map(bytes, call.buffers)]) == (slow.payload, [*map(bytes, slow.buffers)])
    for buffer in (bytes(lone[1]), memoryview(bytearray(lone[1]))):
        assert same(codec.decode(lone[0], [buffer]), value)
        (got,), _ = codec.decode_call(call.payload, [buffer])
        assert same(got, value)
    assert lone[0] in plain.lone_values
    assert call.payload in plain.lone_arguments


def test_a_bytearray_that_is_changed_after_the_call_was_made_goes_as_it_was() -> None:
    value = bytearray(LONG)
    call = codec.encode_plain_call((value,), 1 << 20)
    value[0] = 1
    value += b"more"
    assert call is not None
    assert [*map(bytes, call.buffers)] == [bytes(LONG)]


def test_an_array_that_is_changed_after_the_call_was_made_goes_as_it_was() -> None:
    value = np.zeros(LONG, "u1")
    codec.encode(value)
    call = codec.encode_plain_call((value,), 1 << 20)
    value[:] = 1
    assert call is not None
    assert [*map(bytes, call.buffers)] == [bytes(LONG)]


def test_dtypes_that_are_equal_but_not_the_same_do_not_take_each_others_payload() -> None:
    fields = [("a", "i4"), ("b", "i4")]
    dtypes = [np.dtype(fields), np.dtype(fields, align=True), np.dtype((np.record, fields))]
    for dtype in dtypes:
        for _ in range(2):
            lone = codec.encode(np.zeros(LONG, dtype))
            got = codec.decode(lone.payload, lone.buffers)
            assert (got.dtype.type, got.dtype.isalignedstruct) == (dtype.type, dtype.isalignedstruct)


@pytest.mark.parametrize("size", [0, LONG - 1, LONG + 1])
def test_a_buffer_that_does_not_fit_its_array_is_refused(size: int) -> None:
    payload, buffers = of_the_encoder(ARRAY)
    for _ in range(2):
        with pytest.raises(errors.RemoteProtocolError, match="numpy items"):
            codec.decode(payload, [bytes(size)])
        codec.decode(payload, buffers)  # from now on by the short way


MARK = msgpack.ExtType(1, b"a")


@pytest.mark.parametrize(
    "items",
    [
        [MARK, "|O", [LONG], "C", 0],
        [MARK, "|u1", [LONG], "D", 0],
        [MARK, "|u1", [LONG], "C", 1],
        [MARK, "|u1", [-LONG], "C", 0],
        [MARK, "rubbish", [LONG], "C", 0],
        [MARK, {}, [LONG], "C", 0],
        [MARK, "|u1", [LONG], "C", None],
    ],
)
def test_what_only_looks_like_an_array_is_refused_and_not_remembered(items: list[Any]) -> None:
    payload = codec.TAG + msgpack.packb(items)
    for _ in range(2):
        with pytest.raises(errors.RemoteProtocolError):
            codec.decode(payload, [bytes(LONG)])
        with pytest.raises(errors.RemoteProtocolError):
            codec.decode_call(plain.argument_of(payload), [bytes(LONG)])
    assert payload not in plain.lone_values


def test_a_peer_that_sends_ever_new_shapes_takes_no_more_memory_for_them() -> None:
    for length in range(2 * plain.MAX_LONE_KINDS):
        payload = codec.TAG + msgpack.packb([MARK, "|u1", [LONG + length], "C", 0])
        assert codec.decode(payload, [bytes(LONG + length)]).size == LONG + length
        codec.encode(np.zeros(LONG + length, "u1"))
    assert len(plain.lone_values) <= plain.MAX_LONE_KINDS
    assert len(plain.lone_arguments) <= plain.MAX_LONE_KINDS
    assert type(codec.decode(plain.LONE_VALUE, [bytes(LONG)])) is bytes


def test_a_payload_in_memory_that_can_be_written_to_is_read_all_the_same() -> None:
    payload, buffers = of_the_encoder(ARRAY)
    assert same(codec.decode(memoryview(bytearray(payload)), buffers), ARRAY)
    call = codec.encode_call((ARRAY,), {})
    (got,), _ = codec.decode_call(memoryview(bytearray(call.payload)), call.buffers)
    assert same(got, ARRAY)


def test_a_registered_form_of_arrays_is_taken_from_then_on(registry: None) -> None:
    codec.encode(ARRAY)
    assert codec.encode_plain(ARRAY) is not None
    codec.register_type(np.ndarray, name="array", to_data=lambda array: array.tolist(), from_data=np.array)
    assert codec.encode_plain(ARRAY) is None
    encoded = codec.encode(ARRAY)
    assert not encoded.buffers
    assert codec.decode(encoded.payload, ()).tolist() == ARRAY.tolist()
