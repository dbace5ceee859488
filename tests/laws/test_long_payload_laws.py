"""A long payload that is read piece by piece has the value that it has when it is read at once, or is refused too."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale import pick
from zmqagents import codec
from zmqagents.codec.plain import LONG_BYTES, unpack_long, unpack_plain
from zmqagents.errors import RemoteProtocolError

SHORTEST_PIECE = 32  # longer than what has no length of its own

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
values = st.recursive(
    scalars | st.binary(min_size=40, max_size=300) | st.text("aß", min_size=40, max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3) | st.integers(0, 99), inner),
    max_leaves=60,
)


def same(payload: bytes, piece_bytes: int) -> None:
    try:
        expected = unpack_plain(payload)
    except Exception:  # of whatever kind: it becomes a RemoteProtocolError
        with pytest.raises(Exception):  # noqa: B017, PT011
            unpack_long(payload, unpack_plain, piece_bytes=piece_bytes)
    else:
        assert repr(unpack_long(payload, unpack_plain, piece_bytes=piece_bytes)) == repr(expected)


@given(values, st.integers(SHORTEST_PIECE, 200))
def test_every_value_is_the_same_in_pieces_of_every_length(value: Any, piece_bytes: int) -> None:
    same(msgpack.packb(value), piece_bytes)


@given(values, st.integers(SHORTEST_PIECE, 200), st.data())
def test_what_is_cut_off_or_has_something_behind_it_is_refused_too(
    value: Any, piece_bytes: int, data: st.DataObject
) -> None:
    payload = msgpack.packb(value)
    same(payload[: data.draw(st.integers(0, len(payload)))], piece_bytes)
    same(payload + b"\x00", piece_bytes)


@given(st.binary(max_size=400), st.integers(SHORTEST_PIECE, 60))
def test_garbage_is_refused_as_it_is_at_once(payload: bytes, piece_bytes: int) -> None:
    same(payload, piece_bytes)


ROW = {"id": 77_777, "when": (1, 2.5), "who": "somebody", "tags": {"a", "b"}}


@pytest.mark.parametrize(
    "value",
    [
        [ROW] * 5_000, {f"row {n}": ROW for n in range(5_000)}, {(n,): n for n in range(20_000)}, set(range(60_000)),
        ((*range(60_000), (1, ROW)),), [[[(n,)] * 1_000 for n in range(10)] for _ in range(5)], [("x" * 70_000,)] * 4,
        [(1,), [2.5] * 40_000, {"deep": [[list(range(50_000))]]}],
    ],
)  # fmt: skip
def test_long_values_with_types_of_python_arrive_as_they_were_sent(value: Any) -> None:
    encoded = codec.encode(value)
    assert len(encoded.payload) > LONG_BYTES
    assert codec.decode(encoded.payload, encoded.buffers) == value
    args, kwargs = codec.decode_call(codec.encode_call((value,), {"more": 1}).payload)
    assert (args, kwargs) == ((value,), {"more": 1})


def test_what_is_long_may_be_nested_as_deep_as_always_travels() -> None:
    deep: Any = list(range(LONG_BYTES))
    for _ in range(codec.MAX_DEPTH - 2):
        deep = [deep]
    args, _ = codec.decode_call(codec.encode_call((deep,), {}).payload)
    assert args == (deep,)
    for _ in range(4):
        deep = [deep]
    with pytest.raises(RemoteProtocolError, match="nested more than 128 levels deep"):
        codec.decode_call(codec.encode_call((deep,), {}).payload)


def test_marks_and_keys_of_a_long_payload_are_checked_as_those_of_a_short_one() -> None:
    mark, long = msgpack.ExtType(1, b"t"), [0] * LONG_BYTES
    refused = functools.partial(pytest.raises, RemoteProtocolError)
    for wrong in ([mark, long, {"a": mark}], [[1, mark], *long], [*long, mark]):
        with refused(match="mark"):
            codec.decode(b"\xc1" + msgpack.packb(wrong))
    prime = 2**61 - 1
    keys = [msgpack.ExtType(3, (n * prime).to_bytes(10, "big", signed=True)) for n in range(1, 20_000)]
    packed = b"".join(msgpack.packb(key) + b"\x00" for key in keys)
    with refused(match="have one hash"):
        codec.decode(b"\xc1\xdf" + len(keys).to_bytes(4, "big") + packed)


def test_other_threads_run_while_the_longest_payloads_are_read() -> None:
    """The longest pause of one that asks for the time, in the best of five tries: 12 ms of 0.3 s on a quiet machine."""
    count = 16 << 20
    payload = b"\xdd" + count.to_bytes(4, "big") + b"\x01" * count
    assert any(_longest_pause(payload) < 0.5 for _ in range(5))


def _longest_pause(payload: bytes) -> float:
    """As a part of the time that it takes to read ``payload``."""
    longest = 0.0
    over = threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over.is_set():
            now = time.perf_counter()
            longest = max(longest, now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.perf_counter()
    codec.decode(payload)
    took = time.perf_counter() - began
    over.set()
    thread.join()
    return longest / took


@given(values)
@settings(max_examples=pick(10, 200), deadline=None)
def test_a_long_value_is_packed_to_the_bytes_that_the_packer_makes(value: Any) -> None:
    many = [value] * 5_000
    for long in (
        many,
        {"few": many, "one": value},
        dict(enumerate(many)),
        [[many], value],
        [value, *range(5_000), many],
    ):
        assert codec.encode(long).payload.removeprefix(codec.TAG) == _packed_at_once(long)


def _packed_at_once(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
