"""Members of sets and keys of maps that have one hash are refused, quickly; what honest people send is not."""

from __future__ import annotations

import time
import uuid
from fractions import Fraction
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents import codec
from zmqagents.codec.bounds import MAX_EQUAL_HASHES
from zmqagents.errors import RemoteProtocolError

PRIME = 2**61 - 1  # hash(n) is n modulo this
MARK_OF_SET, MARK_OF_FROZENSET = (msgpack.ExtType(1, letter) for letter in (b"s", b"f"))


def tagged(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, strict_types=True)
    return b"\xc1" + packed


def big(number: int) -> msgpack.ExtType:
    return msgpack.ExtType(3, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


COLLIDING = [big((2**40 + index) * PRIME + 1) for index in range(18_000)]


@pytest.mark.parametrize("mark", [MARK_OF_SET, MARK_OF_FROZENSET])
def test_a_set_of_chosen_integers_is_refused_before_it_is_built(mark: msgpack.ExtType) -> None:
    payload = tagged([mark, *COLLIDING])
    began = time.process_time()
    with pytest.raises(RemoteProtocolError, match="18000 members of a set or keys of a map have one hash"):
        codec.decode(payload)
    assert time.process_time() - began < 1


def test_a_map_of_chosen_keys_is_refused_before_it_is_built() -> None:
    pairs = b"".join(msgpack.packb(key, strict_types=True) + b"\x00" for key in COLLIDING)
    payload = b"\xc1\xdf" + len(COLLIDING).to_bytes(4, "big") + pairs
    began = time.process_time()
    with pytest.raises(RemoteProtocolError, match="have one hash"):
        codec.decode(payload)
    assert time.process_time() - began < 1


def test_chosen_members_are_found_among_many_that_are_not() -> None:
    honest = [number + 2 for number in range(50_000)]
    with pytest.raises(RemoteProtocolError, match="18000 members"):
        codec.decode(tagged([MARK_OF_SET, *honest, *COLLIDING]))


def test_as_many_equal_hashes_as_are_harmless_are_taken() -> None:
    few = COLLIDING[:MAX_EQUAL_HASHES]
    assert len(codec.decode(tagged([MARK_OF_SET, *range(2, 1000), *few]))) == 998 + MAX_EQUAL_HASHES


@pytest.mark.parametrize(
    "value",
    [
        set(range(-5000, 5000)), {float(n) for n in range(5000)} | {-1, -2}, {f"text {n}" for n in range(5000)},
        {uuid.UUID(int=n) for n in range(1000)}, {Fraction(n, 7) for n in range(1000)},
        {frozenset({n, n + 1}) for n in range(1000)}, {(n, -n) for n in range(1000)},
        {uuid.UUID(int=n): n for n in range(1000)}, {(n, str(n)): n for n in range(5000)},
    ],
)  # fmt: skip
def test_what_honest_people_send_arrives(value: Any) -> None:
    encoded = codec.encode(value)
    assert codec.decode(encoded.payload, encoded.buffers) == value


@given(st.dictionaries(st.integers() | st.text() | st.tuples(st.integers()), st.none(), min_size=1), st.integers(0, 3))
def test_a_long_payload_gives_the_same_map_as_a_short_one(value: dict[Any, None], repeats: int) -> None:
    padded = [value, (), bytes(20_000).hex() * repeats]
    encoded = codec.encode(padded)
    assert codec.decode(encoded.payload, encoded.buffers) == padded
