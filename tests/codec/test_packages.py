"""Values of pandas, polars, pyarrow, Pillow, torch, attrs, pydantic and ml_dtypes, with the packages themselves."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import sys
import time
from typing import Any

import msgpack
import numpy as np
import pytest

from travelling import received
from zmqagents import codec, errors
from zmqagents.codec import decode, encode
from zmqagents.codec.forms import Scope

pytestmark = pytest.mark.values


def round_trip(value: Any, **kwargs: Any) -> Any:
    encoded = encode(value)
    return decode(encoded.payload, received(encoded), **kwargs)


def refused(value: Any) -> str:
    with pytest.raises(errors.SerializationError) as caught:
        encode([value])
    return str(caught.value)


# ---------------------------------------------------------------- numpy


def test_arrays_of_objects_arrive_with_each_object_as_it_was() -> None:
    for sent in (
        np.array([1, None, [2], "x", (1,)], object), np.array([[1, None], [2, "a"]], object, order="F"),
        np.array(None, object), np.zeros((0, 3), object),
    ):  # fmt: skip
        got = round_trip(sent)
        assert (got.dtype, got.shape, got.flags.f_contiguous) == (sent.dtype, sent.shape, sent.flags.f_contiguous)
        assert got.tolist() == sent.tolist()
        assert list(map(type, got.flat)) == list(map(type, sent.flat))


def test_masked_arrays_matrices_and_records_arrive_as_such() -> None:
    records = np.array([(1, 2.5, "x")], [("a", "<i4"), ("b", "<f8"), ("c", "<U3")])
    for sent in (
        np.ma.masked_array([1, 2], [True, False], fill_value=7), np.ma.masked_array([1.0, 2.0]), np.ma.masked,
        np.ma.masked_array(records, [(True, False, True)]), np.ma.array([1, 2], mask=[False, True], hard_mask=True),
        np.array([[1, 2]]).view(np.matrix), np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    ):  # fmt: skip
        got = round_trip(sent)
        assert (type(got), got.dtype, repr(got)) == (type(sent), sent.dtype, repr(sent))
        assert repr(getattr(got, "fill_value", None)) == repr(getattr(sent, "fill_value", None))
        assert getattr(got, "hardmask", None) == getattr(sent, "hardmask", None)


def test_records_of_numpy_stay_records_wherever_they_are() -> None:
    flat = np.dtype((np.record, [("a", "<i4"), ("b", "<U1")]))
    spread = np.dtype((np.record, np.dtype({"names": ["a"], "formats": ["f8"], "titles": ["t"]}, align=True)))
    for dtype in (flat, spread):
        held = np.zeros(2, [("inner", dtype), ("rows", dtype, (2,))])
        for sent in (dtype, np.zeros(1, dtype)[0], np.zeros(2, dtype), np.zeros(2, dtype).view(np.recarray), held):
            got = round_trip(sent)
            assert (type(got), repr(got)) == (type(sent), repr(sent))
            assert repr(getattr(got, "dtype", got)) == repr(getattr(sent, "dtype", sent))


def test_structures_keep_the_order_offsets_and_titles_of_their_fields() -> None:
    records = np.array([(1, 2.5, "x")], [("a", "<i4"), ("b", "<f8"), ("c", "<U3")])
    titled = np.zeros(2, [(("title", "n"), "i4"), ("grid", "<i2", (2, 3)), ("in", [("x", "f4")])])
    aligned = np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    for sent in (records[["b", "a"]], records[["c"]], titled, aligned):
        got = round_trip(sent)
        assert (got.dtype, got.dtype.isalignedstruct) == (sent.dtype, sent.dtype.isalignedstruct)
        assert got.tobytes() == sent.tobytes()
        assert round_trip(sent.dtype) == sent.dtype


def test_small_floats_and_ints_of_ml_dtypes_keep_their_type() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz", "int4", "uint4"):
        kind = getattr(ml_dtypes, name)
        for sent in (
            np.arange(4).astype(kind),
            np.zeros(codec.INLINE_LIMIT_BYTES * 2, kind),
            np.zeros(2, [("a", kind)]),
        ):
            got = round_trip(sent)
            assert got.dtype == sent.dtype
            assert got.tobytes() == sent.tobytes()
        assert type(round_trip(kind(1))) is kind


# ---------------------------------------------------------------- pandas


def test_a_table_arrives_with_every_type_of_column() -> None:
    pd = pytest.importorskip("pandas")
    columns = {
        "ints": [1, 2, 3], "floats": [1.0, np.nan, 3.0], "text": ["a", None, "c"], "bools": [True, False, True],
        "objects": pd.Series([None, float("nan"), decimal.Decimal(1)], dtype=object),
        "Int64": pd.array([1, None, 3], dtype="Int64"), "Float64": pd.array([1.5, None, 3], dtype="Float64"),
        "boolean": pd.array([True, None, False], dtype="boolean"), "string": pd.array(["x", None, "z"], dtype="string"),
        "category": pd.Categorical(["a", "b", "a"], ordered=True), "moments": pd.date_range("2024", periods=3),
        "zoned": pd.date_range("2024", periods=3, tz="Europe/Paris"), "spans": pd.to_timedelta([1, 2, None], unit="ns"),
        "periods": pd.period_range("2024-01", periods=3, freq="M"), "intervals": pd.interval_range(0, 3),
        "sparse": pd.arrays.SparseArray([0, 0, 1]),
        "text in Python": pd.array(["x", None, "z"], dtype=pd.StringDtype("python")),
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        columns["arrow"] = pd.array([1, 2, None], dtype="int64[pyarrow]")
    frame = pd.DataFrame(columns)
    frame.attrs["source"] = ("a", 1)
    tables = [
        frame, frame.set_index("category"), frame.set_index(["ints", "text"]), frame.iloc[:0], frame[["floats"]],
        pd.DataFrame(), pd.DataFrame(index=range(3)), pd.DataFrame(columns=["a"]), frame.set_index("moments"),
        pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame({"a": [1, 2]}, index=[0, 0]),
        pd.concat([pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [2]})]), pd.DataFrame({1: [1], "a": [2], (1, 2): [3]}),
        pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")], names=["x", None])),
    ]  # fmt: skip
    for sent in tables:
        got = round_trip([sent])[0]
        pd.testing.assert_frame_equal(got, sent, check_exact=True, check_freq=True)
        assert (type(got.index), type(got.columns)) == (type(sent.index), type(sent.columns))
        assert got.attrs == sent.attrs
        for place in range(sent.shape[1]):
            pd.testing.assert_series_equal(round_trip(sent.iloc[:, place]), sent.iloc[:, place], check_exact=True)
    objects = round_trip(frame)["objects"].tolist()
    assert objects[0] is None
    assert objects[1] != objects[1]


def test_a_table_that_holds_what_cannot_travel_is_refused() -> None:
    pd = pytest.importorskip("pandas")
    assert "object has no msgpack form" in refused(pd.DataFrame({"a": [object()]}))

    class Mine(pd.DataFrame):  # type: ignore[misc,name-defined]
        pass

    assert "Mine has no msgpack form" in refused(Mine({"a": [1]}))


def test_scalars_of_pandas_keep_type_unit_and_zone() -> None:
    pd = pytest.importorskip("pandas")
    for sent in (
        pd.NaT, pd.NA, pd.Timestamp("2020-01-01 00:00:00.123456789"), pd.Timestamp("2020-06-01", tz="Europe/Berlin"),
        pd.Timestamp("2024-10-27 01:30Z").tz_convert("Europe/Paris"), pd.Timestamp.min, pd.Timestamp.max,
        pd.Timestamp("2024-01-01", tz=dt.timezone(dt.timedelta(hours=2))), pd.Timedelta("1ns"), pd.Timedelta.max,
        pd.Timestamp("2024-01-01").as_unit("s"), pd.Timedelta(days=1).as_unit("ms"), pd.Period("2024-01", "M"),
        pd.Interval(0, 1, "left"), pd.Interval(pd.Timestamp("2024"), pd.Timestamp("2025")), pd.offsets.MonthEnd(2),
    ):  # fmt: skip
        got = round_trip([sent])[0]
        assert type(got) is type(sent)
        assert (repr(got), getattr(got, "unit", None)) == (repr(sent), getattr(sent, "unit", None))
        assert got is sent or got == sent


def test_indexes_and_arrays_of_pandas_keep_their_type() -> None:
    pd = pytest.importorskip("pandas")
    for sent in (
        pd.date_range("2024", periods=3, freq="D", name="n"), pd.timedelta_range("1D", periods=3), pd.Index(["a", "b"]),
        pd.RangeIndex(3, name="r"), pd.Index([1, "a"]), pd.Index([1.5], name=("a", 1)), pd.CategoricalIndex(["a"]),
        pd.IntervalIndex.from_breaks([0, 1, 2]), pd.period_range("2024", periods=2, freq="D"),
        pd.Index([], dtype="int8"),
    ):  # fmt: skip
        pd.testing.assert_index_equal(round_trip(sent), sent, exact=True)
        assert round_trip(sent).names == sent.names
        assert getattr(round_trip(sent), "freq", None) == getattr(sent, "freq", None)
        got = round_trip(sent.array)
        assert (type(got), got.dtype) == (type(sent.array), sent.array.dtype)


# ---------------------------------------------------------------- polars and pyarrow


def test_tables_and_columns_of_polars_arrive_as_they_were() -> None:
    pl = pytest.importorskip("polars")
    testing = pytest.importorskip("polars.testing")
    frame = pl.DataFrame(
        {
            "ints": [1, None, 3], "text": ["x", "y", None], "lists": [[1], [], None],
            "structs": [{"a": 1}, {"a": 2}, None], "categories": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
            "nulls": pl.Series([None] * 3),
            "enum": pl.Series(["a", "b", "a"], dtype=pl.Enum(["a", "b"])), "bytes": [b"a", b"", None],
            "moments": pl.Series([1, 2, 3], dtype=pl.Datetime("ns", "UTC")), "times": [dt.time(1), None, dt.time(2)],
            "decimals": pl.Series([1, 2, 3], dtype=pl.Decimal(10, 2)), "spans": [dt.timedelta(1)] * 3,
            "arrays": pl.Series([[1, 2]] * 3, dtype=pl.Array(pl.Int8, 2)), "big": pl.Series(range(3), dtype=pl.Int128),
        }
    )  # fmt: skip
    for sent in (frame, frame.clear(), pl.DataFrame(), frame[:1], pl.DataFrame({"a": range(100_000)})):
        testing.assert_frame_equal(round_trip(sent), sent)
        for column in sent:
            testing.assert_series_equal(round_trip(column), column)
            assert round_trip(column).dtype == column.dtype
    assert "send its collect()" in refused(frame.lazy())
    assert "holds Python objects" in refused(pl.Series("o", [object()], dtype=pl.Object))


def test_values_of_pyarrow_arrive_as_they_were() -> None:
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {
            "ints": [1, None, 3], "text": ["x", "y", None], "lists": [[1], [], None], "nulls": pa.nulls(3),
            "words": pa.array(["a", "b", "a"]).dictionary_encode(), "structs": [{"a": 1}, {"a": 2}, None],
            "moments": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
        },
        metadata={"k": "v"},
    )  # fmt: skip
    for sent in (
        table, table.to_batches()[0], table["words"], table["ints"].chunk(0), pa.array([1, 2])[0], pa.int64(),
        table.schema, table.schema.field("lists"), pa.scalar(None, pa.int8()), pa.table({}), table.slice(1, 1),
        pa.chunked_array([[1], [2, 3]]), pa.chunked_array([], type=pa.int8()), pa.array([], pa.string()),
        pa.table({"a": range(100_000)}),
    ):  # fmt: skip
        got = round_trip([sent])[0]
        assert type(got) is type(sent)
        assert got.equals(sent)
        for known in (got, sent):
            assert getattr(known, "metadata", None) == getattr(sent, "metadata", None)


# ---------------------------------------------------------------- images and tensors


def test_images_arrive_with_mode_pixels_palette_and_info() -> None:
    image_module = pytest.importorskip("PIL.Image")
    noise = image_module.effect_noise((9, 7), 50)
    images = [noise.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "LA")]
    images += [image_module.new(mode, (9, 7)) for mode in ("LAB", "I;16", "PA")] + [image_module.new("RGB", (0, 0))]
    images[2].info["transparency"] = 0
    for sent in images:
        got = round_trip([sent])[0]
        assert type(got) is image_module.Image
        assert got == sent


def test_an_image_of_a_file_arrives_as_a_plain_image(tmp_path: Any) -> None:
    image_module = pytest.importorskip("PIL.Image")
    image_module.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    with image_module.open(tmp_path / "red.png") as sent:
        got = round_trip(sent)
        assert type(got) is image_module.Image
        assert (got.mode, got.size, got.tobytes()) == (sent.mode, sent.size, sent.tobytes())


def test_an_image_of_several_frames_is_refused(tmp_path: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    frames = [image.new("L", (2, 2), value) for value in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with image.open(tmp_path / "moving.gif") as sent:
        assert "send a copy() of each frame" in refused(sent)
        sent.seek(1)
        assert round_trip(sent.copy()).convert("L").tobytes() == frames[1].tobytes()


def test_tensors_in_memory_arrive_with_type_shape_and_gradient_flag() -> None:
    torch = pytest.importorskip("torch")
    for sent in (
        torch.arange(6.0).reshape(2, 3), torch.arange(6).reshape(2, 3).T, torch.tensor(1.5), torch.zeros(0, 3),
        torch.ones(3, dtype=torch.bfloat16), torch.tensor([1 + 2j]).conj(), torch.tensor([True]),
        torch.ones(2, requires_grad=True), torch.nn.Parameter(torch.ones(2)), torch.ones(100_000)[::2],
    ):  # fmt: skip
        got = round_trip([sent])[0]
        assert (type(got), got.dtype, got.requires_grad) == (type(sent), sent.dtype, sent.requires_grad)
        assert torch.equal(got, sent)
    small = torch.ones(3, dtype=torch.float8_e5m2)
    assert round_trip(small).view(torch.uint8).equal(small.view(torch.uint8))
    for sent in (torch.Size([1, 2]), torch.float32, torch.device("cpu")):
        assert round_trip([sent]) == [sent]
    assert "send its .detach()" in refused(torch.ones(2, requires_grad=True) * 2)
    assert "send its .to_dense()" in refused(torch.eye(3).to_sparse())
    assert "a tensor on meta does not travel: send its .cpu()" in refused(torch.ones(2, device="meta"))


@pytest.mark.program
def test_torch_is_imported_by_no_value_and_the_others_by_their_first() -> None:
    import subprocess

    torch, pd = pytest.importorskip("torch"), pytest.importorskip("pandas")
    script = """
import sys
from zmqagents.codec import decode
from zmqagents.codec.forms import Scope
from zmqagents.errors import SerializationError
tensor, moment = map(bytes.fromhex, sys.argv[1:])
try:
    decode(tensor)
except SerializationError as exc:
    assert "torch is not loaded here: import it, or name it with --types torch" in str(exc), exc
assert not {"torch", "pandas", "polars", "pyarrow", "PIL", "pydantic", "attr", "numpy"} & sys.modules.keys()
decode(moment)
assert "pandas" in sys.modules and "torch" not in sys.modules
print(decode(tensor, scope=Scope(trusted=("torch",))))
"""
    payloads = [encode(value).payload.hex() for value in (torch.ones(2), pd.NaT)]
    done = subprocess.run([sys.executable, "-c", script, *payloads], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "tensor([1., 1.])\n"), done.stderr


# ---------------------------------------------------------------- hostile forms

CPU_LIMIT_S = 0.5
BOMBS: list[Any] = [
    None, True, 0, -1, 2**62, 1.5, "x", "9" * 100, b"", b"x" * 100, [], [2**40, 0], [2**31, 2**31], {}, {"a": 1},
    [msgpack.ExtType(1, b"r"), 0, 2**60, 1], [msgpack.ExtType(1, b"a"), "<f8", [2**47, 0], "C", b""],
    [msgpack.ExtType(1, b"a"), "<i8", [1], "C", b"\xff" * 8], [msgpack.ExtType(1, b"a"), "<M8[ns]", [1], "C", bytes(8)],
    [msgpack.ExtType(1, b"p"), "pandas.RangeIndex", 0, 2**62, 1, None],
    [msgpack.ExtType(1, b"p"), "pandas.Index", [msgpack.ExtType(1, b"a"), "<i8", [1], "C", bytes(8)], None, None],
]  # fmt: skip


def kinds_of_all_doors() -> dict[str, Any]:
    from zmqagents.codec import packages

    found: dict[str, Any] = {}
    for package in packages.DOORS:
        with contextlib.suppress(ImportError):
            found |= packages.builders_of(package)
    return found


def decode_in_time(packed: Any) -> None:
    payload = b"\xc1" + msgpack.packb(packed)
    began = time.thread_time()
    with contextlib.suppress(errors.RemoteProtocolError, errors.SerializationError):
        decode(payload, scope=Scope(trusted=("torch", "pydantic", "pydantic_core")))
    assert time.thread_time() - began < CPU_LIMIT_S


def test_a_form_of_any_package_with_any_parts_is_a_value_or_refused_in_time() -> None:
    import random

    chance = random.Random(7)
    for kind in kinds_of_all_doors():
        decode_in_time([msgpack.ExtType(1, b"p"), kind])
        for count in range(1, 8):
            for _ in range(60):
                decode_in_time([msgpack.ExtType(1, b"p"), kind, *chance.choices(BOMBS, k=count)])
            for bomb in BOMBS:
                decode_in_time([msgpack.ExtType(1, b"p"), kind, *[bomb] * count])


def test_an_arrow_stream_with_any_byte_changed_is_a_value_or_refused() -> None:
    import random

    pa, pl = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    chance = random.Random(7)
    for sent in (
        pa.table({"a": [1, 2], "s": ["x", "yy"], "l": [[1], None]}),
        pl.DataFrame({"a": [1, None], "s": ["x", "yy"]}),
    ):
        payload = bytearray(encode(sent).payload)
        for _ in range(1500):
            changed = bytearray(payload)
            for _ in range(chance.choice([1, 1, 2, 8])):
                changed[chance.randrange(60, len(changed))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
            with contextlib.suppress(errors.RemoteProtocolError, errors.SerializationError):
                str(decode(bytes(changed)))


def test_a_compressed_arrow_stream_is_refused() -> None:
    pa = pytest.importorskip("pyarrow")
    for name, form in (("pyarrow.Table", ()), ("polars.DataFrame", ("[]",))):
        sink = pa.BufferOutputStream()
        table = pa.table({"a": [0] * 100_000})
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write(table)
        packed = [msgpack.ExtType(1, b"p"), name, *form, sink.getvalue().to_pybytes()]
        with pytest.raises(errors.RemoteProtocolError, match="must not be compressed"):
            decode(b"\xc1" + msgpack.packb(packed))
