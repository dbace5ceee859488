"""Whatever a table, tensor, image or attrs object holds, it arrives equal and of the same type by every way."""

from __future__ import annotations

import datetime as dt
import decimal
from typing import Any

import attrs
import numpy
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from anything import VALUES
from scale import pick
from travelling import KNOWN_BY, every_way, found_by

pytestmark = pytest.mark.values
np: Any = numpy  # its stubs know no call with a unit from a variable
law = settings(deadline=None, max_examples=pick(20, 40), suppress_health_check=[HealthCheck.too_slow])

INTS = st.integers(-(2**31), 2**31 - 1)
FLOATS = st.floats(allow_nan=False)
WORDS = st.text(st.characters(codec="utf-8"), max_size=6)
MOMENTS = st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1))
ZONES = st.sampled_from(["UTC", "Europe/Paris", "Asia/Kathmandu"])
LABELS = st.one_of(INTS, WORDS, st.tuples(INTS, WORDS))


def make_pools() -> None:
    """Have polars, pyarrow and torch make the threads that they keep, before the first look at what a test leaves."""
    pl, pa, torch = map(pytest.importorskip, ("polars", "pyarrow", "torch"))
    stream = pl.DataFrame({"a": range(1000)}).sort("a").write_ipc_stream(None)
    pl.read_ipc_stream(stream.getvalue())
    pa.table({"a": range(1000)}).sort_by("a")
    torch.ones(100_000).sum()


make_pools()


# ---------------------------------------------------------------- attrs


@attrs.define
class Defined:
    a: Any
    _hidden: Any = None
    made: Any = attrs.field(default=0, init=False)


@attrs.frozen(kw_only=True)
class Frozen:
    a: Any
    b: Any = attrs.field(default=1, alias="bee")


@attrs.define(slots=False)
class Loose(Defined):
    child: Any = None


def attrs_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    makers: Any = {"defined": Defined, "frozen": Frozen, "loose": Loose}

    def defined(a: Any, hidden: Any, made: Any) -> Any:
        value = makers["defined"](a, hidden)
        value.made = made
        return value

    def loose(a: Any, child: Any, more: Any) -> Any:
        value = makers["loose"](a, child=child)
        value.more = more  # no field
        return value

    return st.one_of(
        st.tuples(inner, inner, inner).map(lambda found: defined(*found)),
        st.tuples(inner, inner).map(lambda found: makers["frozen"](a=found[0], bee=found[1])),
        st.tuples(inner, inner, inner).map(lambda found: loose(*found)),
    )


def check_attrs(got: Any, sent: Any) -> None:
    def shown(value: Any) -> Any:
        if not attrs.has(type(value)):
            return found_by(value)
        names = [each.name for each in attrs.fields(type(value))] + sorted(getattr(value, "__dict__", ()))
        return (type(value), *((name, shown(getattr(value, name))) for name in names))

    assert shown(got) == shown(sent)


@law
@given(st.recursive(VALUES, attrs_of, max_leaves=3).filter(lambda value: attrs.has(type(value))),
       st.sampled_from(KNOWN_BY))  # fmt: skip
def test_any_attrs_object_arrives_with_private_fields_and_attributes(value: Any, way: Any) -> None:
    every_way(value, check_attrs, known=way)


# ---------------------------------------------------------------- ml_dtypes

ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e5m2fnuz", "int4", "uint4"]


@law
@given(st.sampled_from(ML_DTYPES), st.lists(st.integers(0, 7), max_size=6), st.booleans())
def test_any_array_of_ml_dtypes_arrives_with_type_and_bytes(name: str, items: list[int], is_reversed: bool) -> None:
    kind = getattr(pytest.importorskip("ml_dtypes"), name)
    sent = np.array(items, kind)[:: -1 if is_reversed else 1]

    def check(got: Any, sent: Any) -> None:
        assert (got.dtype, got.shape, got.tobytes()) == (sent.dtype, sent.shape, sent.tobytes())

    every_way(sent, check)
    for scalar in sent:
        every_way(scalar, lambda got, sent: check(np.asarray(got), np.asarray(sent)))


# ---------------------------------------------------------------- pandas


def columns_of_pandas(data: Any, rows: int) -> Any:
    """Any column of this length."""
    pd = pytest.importorskip("pandas")

    def some(items: Any, *, missing: bool = False) -> list[Any]:
        found: list[Any] = data.draw(st.lists(st.none() | items if missing else items, min_size=rows, max_size=rows))
        return found

    kind = data.draw(st.sampled_from([
        "int8", "uint64", "float32", "float64", "bool", "complex128", "object", "Int64", "UInt8", "Float32", "boolean",
        "string", "str", "category", "moments", "zoned", "seconds", "spans", "periods", "intervals", "sparse", "arrow",
        "arrow text", "mixed",
    ]))  # fmt: skip
    if kind in ("int8", "uint64", "UInt8"):
        small = st.integers(0, 127)
        return pd.Series(some(small, missing=kind == "UInt8"), dtype=kind)
    if kind in ("float32", "float64", "Float32"):
        return pd.Series(some(st.floats(width=32), missing=kind == "Float32"), dtype=kind)
    if kind in ("bool", "boolean"):
        return pd.Series(some(st.booleans(), missing=kind == "boolean"), dtype=kind)
    if kind == "complex128":
        return pd.Series(some(st.complex_numbers(allow_nan=False)), dtype=kind)
    if kind == "Int64":
        return pd.Series(some(st.integers(-(2**63), 2**63 - 1), missing=True), dtype=kind)
    if kind in ("string", "str"):
        return pd.Series(some(WORDS, missing=True), dtype=kind)
    if kind == "category":
        return pd.Series(pd.Categorical(some(st.sampled_from("abc"), missing=True), categories=list("cabd"),
                                        ordered=data.draw(st.booleans())))  # fmt: skip
    if kind in ("moments", "seconds"):
        unit = "s" if kind == "seconds" else data.draw(st.sampled_from(["ns", "us", "ms"]))
        return pd.Series(some(MOMENTS, missing=True), dtype="datetime64[us]").astype(f"datetime64[{unit}]")
    if kind == "zoned":
        return pd.Series(some(MOMENTS, missing=True), dtype="datetime64[ns]").dt.tz_localize("UTC").dt.tz_convert(
            data.draw(ZONES))  # fmt: skip
    if kind == "spans":
        return pd.Series(some(st.timedeltas(dt.timedelta(-9999), dt.timedelta(9999)), missing=True),
                         dtype="timedelta64[ns]")  # fmt: skip
    if kind == "periods":
        ordinals = some(st.integers(0, 9999))
        freq = data.draw(st.sampled_from(["D", "M", "h", "Y"]))
        return pd.Series(pd.PeriodIndex.from_ordinals(np.array(ordinals, "i8"), freq=freq))
    if kind == "intervals":
        left = np.array(some(INTS), "i8")
        return pd.Series(pd.arrays.IntervalArray.from_arrays(left, left + 1, closed=data.draw(
            st.sampled_from(["left", "right", "both", "neither"]))))  # fmt: skip
    if kind == "sparse":
        return pd.Series(pd.arrays.SparseArray(np.array(some(st.sampled_from([0, 0, 1])), "i8"), fill_value=0))
    if kind in ("arrow", "arrow text"):
        pytest.importorskip("pyarrow")
        items = some(INTS if kind == "arrow" else WORDS, missing=True)
        return pd.Series(items, dtype="int64[pyarrow]" if kind == "arrow" else "string[pyarrow]")
    return pd.Series(some(VALUES.filter(lambda value: not isinstance(value, slice))), dtype=object)


def index_of_pandas(data: Any, rows: int) -> Any:
    pd = pytest.importorskip("pandas")
    kind = data.draw(st.sampled_from(["range", "labels", "equal", "moments", "multi"]))
    name = data.draw(st.none() | LABELS)
    if kind == "range":
        return pd.RangeIndex(rows, name=name)
    if kind == "labels":
        labels = data.draw(st.lists(WORDS, min_size=rows, max_size=rows))
        return pd.Index(labels, name=name, dtype=object)
    if kind == "equal":
        return pd.Index([7] * rows, name=name, dtype="int64")
    if kind == "moments":
        return pd.date_range("2024", periods=rows, freq=data.draw(st.sampled_from(["D", "h", "MS"])), name=name,
                             tz=data.draw(st.none() | ZONES))  # fmt: skip
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 2), WORDS), min_size=rows, max_size=rows))
    return pd.MultiIndex.from_arrays([[a for a, _ in pairs], [b for _, b in pairs]], names=["a", None])


def check_pandas_objects(got: Any, sent: Any) -> None:
    if sent.dtype == object:
        assert list(map(found_by, got.tolist())) == list(map(found_by, sent.tolist()))


@law
@given(st.data())
def test_any_table_of_pandas_arrives_with_types_labels_and_missing_values(data: Any) -> None:
    pd = pytest.importorskip("pandas")
    rows = data.draw(st.integers(0, 4))
    columns = [columns_of_pandas(data, rows) for _ in range(data.draw(st.integers(0, 4)))]
    index = index_of_pandas(data, rows)
    names = data.draw(st.lists(LABELS, min_size=len(columns), max_size=len(columns)))
    sent = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(rows))
    sent.index = index
    if columns:
        sent.columns = pd.Index(names, tupleize_cols=False)

    def check(got: Any, sent: Any) -> None:
        assert list(got.dtypes) == list(sent.dtypes)
        assert list(map(found_by, got.columns)) == list(map(found_by, sent.columns))
        for place in range(sent.shape[1]):
            check_column(got.iloc[:, place], sent.iloc[:, place])
        if not sent.shape[1]:
            pd.testing.assert_frame_equal(got, sent)

    def check_column(got: Any, sent: Any) -> None:
        check_pandas_objects(got, sent)
        pd.testing.assert_index_equal(got.index, sent.index, exact=True)
        assert (got.index.names, getattr(got.index, "freq", 0)) == (sent.index.names, getattr(sent.index, "freq", 0))
        if sent.dtype != object:
            pd.testing.assert_series_equal(got, sent, check_exact=True)

    every_way(sent, check)
    for place in range(len(columns)):
        every_way(sent.iloc[:, place], check_column)


@law
@given(st.sampled_from(["s", "ms", "us", "ns"]), st.integers(-(2**60), 2**60), st.none() | ZONES)
def test_any_moment_and_span_of_pandas_keeps_unit_zone_and_nanoseconds(unit: str, count: int, zone: Any) -> None:
    pd = pytest.importorskip("pandas")
    count %= {"s": 2**31, "ms": 2**41, "us": 2**51, "ns": 2**60}[unit]
    for sent in (
        pd.Timestamp(np.datetime64(count, unit)).as_unit(unit), pd.Timedelta(np.timedelta64(count, unit)).as_unit(unit),
    ):  # fmt: skip
        if zone is not None and isinstance(sent, pd.Timestamp):
            sent = sent.tz_localize("UTC").tz_convert(zone)

        def check(got: Any, sent: Any) -> None:
            assert (type(got), got, got.unit, repr(got)) == (type(sent), sent, sent.unit, repr(sent))

        every_way(sent, check)


# ---------------------------------------------------------------- pyarrow and polars


def arrow_types(pa: Any) -> list[tuple[Any, st.SearchStrategy[Any]]]:
    return [
        (pa.int8(), st.integers(-128, 127)), (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.float32(), st.floats(width=32)), (pa.bool_(), st.booleans()), (pa.string(), WORDS),
        (pa.large_string(), WORDS), (pa.binary(), st.binary(max_size=5)),
        (pa.binary(2), st.binary(min_size=2, max_size=2)), (pa.timestamp("ns", "UTC"), st.integers(0, 2**60)),
        (pa.timestamp("s"), st.integers(0, 2**31)), (pa.duration("us"), st.integers(0, 2**50)),
        (pa.date32(), st.dates()),
        (pa.decimal128(20, 3), st.decimals(-1000, 1000, places=3)), (pa.list_(pa.int8()), st.lists(st.integers(0, 9))),
        (pa.struct([("a", pa.int8())]), st.fixed_dictionaries({"a": st.integers(0, 9)})), (pa.null(), st.none()),
        (pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(WORDS, st.integers(0, 9)), max_size=2)),
        (pa.dictionary(pa.int32(), pa.string()), st.sampled_from("abc")), (pa.time64("ns"), st.integers(0, 10**9)),
    ]  # fmt: skip


@law
@given(st.data())
def test_any_array_column_and_table_of_pyarrow_arrives(data: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = data.draw(st.integers(0, 5))
    arrays = []
    for _ in range(data.draw(st.integers(1, 4))):
        kind, items = data.draw(st.sampled_from(arrow_types(pa)))
        arrays.append(pa.array(data.draw(st.lists(st.none() | items, min_size=rows, max_size=rows)), type=kind))
    table = pa.table(arrays, names=[str(place) for place in range(len(arrays))])
    cut = data.draw(st.integers(0, rows))

    def check(got: Any, sent: Any) -> None:
        assert type(got) is type(sent)
        assert got.equals(sent) or str(got) == str(sent)  # NaN
        assert got.schema.equals(sent.schema) if hasattr(sent, "schema") else got.type.equals(sent.type)

    for sent in (table, table.slice(cut), *arrays, *(each.slice(cut) for each in arrays), *table.columns):
        every_way(sent, check)
    for each in arrays:
        for item in each:
            every_way(item, check)


@law
@given(st.data())
def test_any_table_of_polars_arrives(data: Any) -> None:
    pl = pytest.importorskip("polars")
    testing = pytest.importorskip("polars.testing")
    kinds: list[tuple[Any, st.SearchStrategy[Any]]] = [
        (pl.Int8, st.integers(-128, 127)), (pl.UInt64, st.integers(0, 2**64 - 1)),
        (pl.Float32, st.floats(width=32)),
        (pl.Boolean, st.booleans()), (pl.String, WORDS), (pl.Binary, st.binary(max_size=5)), (pl.Date, st.dates()),
        (pl.Datetime("us"), MOMENTS), (pl.Datetime("ns", "UTC"), MOMENTS),
        (pl.List(pl.Int8), st.lists(st.integers(0, 9))),
        (pl.Duration("ms"), st.integers(0, 9999).map(lambda ms: dt.timedelta(milliseconds=ms))), (pl.Null, st.none()),
        (pl.Decimal(20, 3), st.integers(0, 9999).map(lambda n: decimal.Decimal(n) / 8)), (pl.Time, st.times()),
        (pl.Categorical, st.sampled_from("abc")), (pl.Enum(["a", "b"]), st.sampled_from("ab")),
        (pl.Struct({"a": pl.Int8}), st.fixed_dictionaries({"a": st.integers(0, 9)})),
        (pl.Int128, st.integers(0, 2**100)),
        (pl.Array(pl.Int8, 2), st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    ]  # fmt: skip
    rows = data.draw(st.integers(0, 4))
    columns = {}
    for name in data.draw(st.lists(WORDS, max_size=4, unique=True)):
        kind, items = data.draw(st.sampled_from(kinds))
        columns[name] = pl.Series(
            name, data.draw(st.lists(st.none() | items, min_size=rows, max_size=rows)), dtype=kind, strict=False
        )
    sent = pl.DataFrame(columns)

    def check(got: Any, sent: Any) -> None:
        assert (type(got), got.schema) == (type(sent), sent.schema)
        testing.assert_frame_equal(got, sent, check_exact=True)

    every_way(sent, check)
    for column in sent:
        every_way(column, lambda got, sent: testing.assert_series_equal(got, sent, check_exact=True))


# ---------------------------------------------------------------- tensors and images


@law
@given(st.data())
def test_any_tensor_in_memory_arrives_whatever_its_strides(data: Any) -> None:
    torch = pytest.importorskip("torch")
    kind = data.draw(st.sampled_from([
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    ]))  # fmt: skip
    shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
    sent = torch.arange(float(int(np.prod(shape)))).reshape(shape).to(kind)
    ways = [lambda t: t, lambda t: t.T if t.dim() == 2 else t, lambda t: t[::2] if t.dim() else t,
            lambda t: t.conj() if t.is_complex() else t, lambda t: t[..., None].expand(*t.shape, 2)]  # fmt: skip
    sent = data.draw(st.sampled_from(ways))(sent)
    if kind.is_floating_point and data.draw(st.booleans()):
        sent = sent.detach().requires_grad_()

    def check(got: Any, sent: Any) -> None:
        assert (type(got), got.dtype, got.shape, got.requires_grad) == (
            type(sent), sent.dtype, sent.shape, sent.requires_grad)  # fmt: skip
        assert torch.equal(got, sent)

    every_way(sent, check)


@law
@given(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]),
       st.integers(0, 5), st.integers(0, 5), st.binary(min_size=200, max_size=200),
       st.dictionaries(WORDS, VALUES))  # fmt: skip
def test_any_image_arrives_with_pixels_palette_and_info(
    mode: str, width: int, height: int, pixels: bytes, info: dict[str, Any]
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    sent = image_module.new(mode, (width, height))
    if sent.width and sent.height:
        sent.frombytes(pixels[: len(sent.tobytes())])
    if mode == "P":
        sent.putpalette(pixels[:30])
    assume("transparency" not in info)
    sent.info = info

    def check(got: Any, sent: Any) -> None:
        assert (type(got), got.mode, got.size) == (type(sent), sent.mode, sent.size)
        assert got.tobytes() == sent.tobytes()
        assert found_by(got.info) == found_by(sent.info)
        assert got.getpalette() == sent.getpalette()

    every_way(sent, check)
