"""Hypothesis strategies for values that travel whatever a receiver knows."""

from __future__ import annotations

import datetime as dt
import pathlib
import zoneinfo

from hypothesis import strategies as st

from zmqagents import codec

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
