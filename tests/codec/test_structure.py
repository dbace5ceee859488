"""The limit of a payload bounds the memory of its value; large bytes and texts leave a payload that is too long."""

from __future__ import annotations

import collections
import datetime as dt
import fractions
import gc
import pathlib
import random
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import numpy
import pytest

from zmqagents import codec
from zmqagents.codec.bounds import GROWTH
from zmqagents.config import MEBIBYTE
from zmqagents.errors import MessageTooLarge, RemoteProtocolError

LIMIT = 65_536
SMALL = 8_192  # where memory is measured, which takes time


def many(item: Any, size: int, *, tagged: bool) -> bytes:
    """A payload of ``size`` bytes: a list of as many ``item`` as fit."""
    packed = msgpack.packb(item)
    count = (size - 16) // len(packed)
    return b"\xc1" * tagged + b"\xdd" + count.to_bytes(4, "big") + packed * count


ITEMS = {
    "empty map": {}, "map of one": {None: None}, "map of six": dict.fromkeys(range(6)),
    "map of sixteen": dict.fromkeys(range(16)), "empty list": [], "list of one": [[]], "small int": -32,
    "int": 2**60, "float": 0.5, "text": "ab", "wide text": "a" * 27 + "\U0001f600", "nested maps": {1: {1: {}}},
}  # fmt: skip
BOXES = {
    "deque": collections.deque(), "set": set(), "set of five": {1, 2, 3, 4, 5}, "set of twenty": set(range(20)),
    "tuple": (1, 2), "path": pathlib.Path("a"), "uuid": uuid.UUID(int=1), "datetime": dt.datetime(2020, 1, 1),
    "fraction": fractions.Fraction(1, 2), "bytearray": bytearray(), "exception": ValueError(1),
    "map of texts": {(): 1},
}  # fmt: skip


def payload_of(name: str, size: int) -> bytes:
    if name in ITEMS:
        return many(ITEMS[name], size, tagged=False)
    one = bytes(codec.encode(BOXES[name]).payload[1:])
    count = (size - 16) // len(one)
    return b"\xc1\xdd" + count.to_bytes(4, "big") + one * count


def taken(payload: bytes) -> int:
    """The bytes that the value of ``payload`` takes at most while it is built."""
    codec.decode(payload)
    gc.collect()
    tracemalloc.start()
    try:
        value = codec.decode(payload)
        assert value
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [*ITEMS, *BOXES])
def test_what_is_accepted_takes_no_more_memory_than_is_said(name: str) -> None:
    sizes = (SMALL, SMALL // 2, SMALL // 4, SMALL // 8)
    accepted = next(payload for payload in (payload_of(name, size) for size in sizes) if is_accepted(payload))
    assert taken(accepted) <= 1.05 * GROWTH * SMALL + 1_000


def is_accepted(payload: bytes) -> bool:
    try:
        codec.check_structure(payload, SMALL)
    except MessageTooLarge:
        return False
    return True


@pytest.mark.parametrize("name", ["empty map", "deque", "set of twenty", "map of one"])
def test_what_would_take_too_much_memory_is_refused_unbuilt(name: str) -> None:
    with pytest.raises(MessageTooLarge, match="32 times max_structured_bytes"):
        codec.check_structure(payload_of(name, LIMIT), LIMIT)


RANDOM = random.Random(1)
HONEST: dict[str, Callable[[], Any]] = {  # made in their tests: they take half a second and 200 MB
    "a million ints": lambda: list(range(1_000_000)),
    "half a million texts": lambda: {f"key{i}": f"value {i}" for i in range(500_000)},
    "floats": lambda: [RANDOM.random() for _ in range(500_000)],
    "records": lambda: [{"id": i, "name": f"name {i}", "score": i / 7, "tags": ["a", "b"]} for i in range(100_000)],
    "texts of three bytes a character": lambda: ["数据" * 20] * 50_000,
    "tuples": lambda: [(i, i + 1) for i in range(300_000)],
}


@pytest.mark.parametrize("name", HONEST)
def test_large_honest_values_travel(name: str) -> None:
    value = HONEST[name]()
    encoded = codec.encode(value, max_structured_bytes=16 * MEBIBYTE)
    codec.check_structure(encoded.payload, 16 * MEBIBYTE)
    assert codec.decode(encoded.payload, encoded.buffers) == value


MOVED: dict[str, Any] = {
    "a text": "x" * 300_000,
    "texts": [f"{i} " * 200 for i in range(500)],
    "bytes that are not large": [bytes([i % 256]) * 2_000 for i in range(200)],
    "more large bytes than there are buffers": [bytes([i]) * 70_000 for i in range(100)],
    "bytearrays": [bytearray([i]) * 2_000 for i in range(200)],
    "keys and values": {"k" * 300 + str(i): (i, b"v" * 400) for i in range(300)},
    "texts of wide characters": ["\U0001f600" * 400] * 100,
}


@pytest.mark.parametrize("name", MOVED)
def test_long_texts_and_bytes_leave_a_payload_that_would_be_too_long(name: str) -> None:
    value = MOVED[name]
    encoded = codec.encode(value, max_structured_bytes=LIMIT)
    assert len(encoded.payload) <= LIMIT
    assert encoded.buffers
    assert codec.decode(encoded.payload, encoded.buffers) == value
    call = codec.encode_call((value,), {"name": value}, max_structured_bytes=LIMIT)
    assert codec.decode_call(call.payload, call.buffers) == ((value,), {"name": value})


def test_arrays_that_are_not_large_leave_it_too() -> None:
    arrays = [numpy.arange(i, i + 1000) for i in range(100)]
    encoded = codec.encode(arrays, max_structured_bytes=LIMIT)
    assert len(encoded.payload) <= LIMIT
    assert len(encoded.buffers) == 1
    for sent, came in zip(arrays, codec.decode(encoded.payload, encoded.buffers), strict=True):
        assert (sent == came).all()


def test_a_payload_within_the_limit_is_what_it_was() -> None:
    value = ["x" * 1_000] * 60
    assert codec.encode(value, max_structured_bytes=LIMIT) == codec.encode(value)


def test_a_sender_says_what_is_too_large_before_it_is_sent() -> None:
    for value in (list(range(100_000)), [{"a": "x" * 100}] * 1_000):
        with pytest.raises(MessageTooLarge, match=r"^job: the structured part .* \(max_structured_bytes\)") as error:
            codec.encode(value, max_structured_bytes=LIMIT, what="job: ")
        assert error.value.limit == LIMIT
    with pytest.raises(MessageTooLarge, match="32 times max_structured_bytes"):
        codec.encode([{}] * (LIMIT // 2), max_structured_bytes=LIMIT)


def beside(*sizes: int, letter: bytes = b"b") -> bytes:
    leaves = [msgpack.ExtType(15, letter + size.to_bytes(8, "big")) for size in sizes]
    return b"\xc1" + msgpack.packb(leaves)


def test_no_byte_beside_a_payload_is_given_twice_or_left_over() -> None:
    assert codec.decode(beside(2, 3), [b"aabbb"]) == [b"aa", b"bbb"]
    assert codec.decode(beside(5, letter=b"t"), [b"hello"]) == ["hello"]
    for payload, buffers in (
        (beside(5, 1), [b"aabbb"]), (beside(2, 2), [b"aabbb"]), (beside(0, 5), [b"aabbb"]), (beside(1), []),
        (beside(2**63), [b"a"]), (beside(1, letter=b"t"), [b"\xff"]),
        (b"\xc1" + msgpack.packb([msgpack.ExtType(2, b"\0\0"), msgpack.ExtType(15, b"b" + bytes(7) + b"\1")]), [b"a"]),
    ):  # fmt: skip
        with pytest.raises(RemoteProtocolError):
            codec.decode(payload, buffers)


def test_garbage_is_no_matter_of_its_size() -> None:
    for seed in range(200):
        data = random.Random(seed).randbytes(4_000)
        for payload in (data, b"\xc1" + data):
            try:
                codec.check_structure(payload, 4_001)
            except MessageTooLarge:
                continue


def test_what_exceptions_hold_is_bounded() -> None:
    args = msgpack.packb([[0] * 60_000])
    box = [msgpack.ExtType(1, b"x"), {"type": "builtins:ValueError", "message": "m", "args": args}]
    made = codec.decode(b"\xc1" + msgpack.packb([box] * 100))
    assert [len(exc.args[0]) for exc in made] == [60_000] * 69 + [1] * 31  # then their messages alone
