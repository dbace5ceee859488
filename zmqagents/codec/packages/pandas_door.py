"""pandas: tables, columns, indexes, the arrays that they are made of, and the scalars in them.

A table goes as its two indexes and its columns; columns of one numpy type go together as one two-dimensional array.
A column goes as what its array is made of, so nothing is converted: numpy's types by their bytes, objects one by one
(None stays None and NaN NaN), and each extension type by the public parts that its constructor takes. Nanoseconds,
NaT, NA, time zones, categories, equal labels and names of indexes arrive as they were.

Kinds on the wire: ``pandas.array`` holds ``kind`` and parts, ``pandas.Index`` wraps an array with its names,
``pandas.Series`` and ``pandas.DataFrame`` hold indexes and arrays.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy
import pandas

from ...errors import RemoteProtocolError
from ..forms import MARK_PACKAGE, TEACH, Decoding, Encoding, NoForm, Reducer, expect, ints_of, items_of, name_of

__all__ = ["BUILDERS", "reducer_of"]

MAX_FREQUENCY_CHARS = 64


# ---------------------------------------------------------------- arrays: taking apart


def _array_parts(array: Any) -> list[Any]:
    """``kind, parts...`` of any array that a column or an index holds."""
    if type(array) is pandas.arrays.NumpyExtensionArray:  # a column of text is one of its subclasses
        return ["extension", array.to_numpy()]
    if isinstance(array, numpy.ndarray):
        return ["numpy", array]
    take = next((take for cls, take in _ARRAYS if type(array) is cls), None)
    if take is None:
        raise NoForm(f"a pandas array of dtype {array.dtype} has no form; convert it with astype, or {TEACH}")
    return take(array)


def _masked_parts(array: Any) -> list[Any]:
    mask = array.isna()
    kind = array.dtype.numpy_dtype
    return ["masked", type(array).__name__, array.to_numpy(dtype=kind, na_value=kind.type(0)), mask]


def _string_parts(array: Any) -> list[Any]:
    dtype = array.dtype
    missing = array.isna()
    items = [None if lost else item for item, lost in zip(array.tolist(), missing, strict=True)]
    na = getattr(dtype, "na_value", pandas.NA)
    return ["text", dtype.storage, na is pandas.NA, items]


def _naive(array: Any) -> Any:
    """The moments of an array in UTC, without their zone."""
    index = pandas.DatetimeIndex(array)
    return (index if index.tz is None else index.tz_convert("UTC").tz_localize(None)).to_numpy()


def _datetime_parts(array: Any) -> list[Any]:
    return ["moments", _naive(array), array.tz]


def _timedelta_parts(array: Any) -> list[Any]:
    return ["spans", array.to_numpy()]


def _period_parts(array: Any) -> list[Any]:
    return ["periods", array.asi8.copy(), array.freqstr]


def _interval_parts(array: Any) -> list[Any]:
    return ["intervals", array.left, array.right, array.closed]


def _categorical_parts(array: Any) -> list[Any]:
    return ["categories", numpy.asarray(array.codes), array.categories, bool(array.ordered)]


def _sparse_parts(array: Any) -> list[Any]:
    return ["sparse", numpy.asarray(array), array.fill_value]


def _arrow_parts(array: Any) -> list[Any]:
    import pyarrow

    return ["arrow", pyarrow.chunked_array(array.__arrow_array__())]


_masked_classes = ("IntegerArray", "FloatingArray", "BooleanArray")
_ARRAYS: list[tuple[type, Callable[[Any], list[Any]]]] = [
    *((getattr(pandas.arrays, name), _masked_parts) for name in _masked_classes),
    *((cls, _string_parts) for name in ("StringArray", "ArrowStringArray", "ArrowStringArrayNumpySemantics")
      if (cls := getattr(pandas.arrays, name, None)) is not None),
    (pandas.arrays.DatetimeArray, _datetime_parts), (pandas.arrays.TimedeltaArray, _timedelta_parts),
    (pandas.arrays.PeriodArray, _period_parts), (pandas.arrays.IntervalArray, _interval_parts),
    (pandas.Categorical, _categorical_parts), (pandas.arrays.SparseArray, _sparse_parts),
    *((cls, _arrow_parts) for cls in [getattr(pandas.arrays, "ArrowExtensionArray", None)] if cls is not None),
]  # fmt: skip


# ---------------------------------------------------------------- arrays: making again


def _frequency(text: Any) -> Any:
    if text is None:
        return None
    if len(expect(str, text)) > MAX_FREQUENCY_CHARS:
        raise RemoteProtocolError("a frequency has at most 64 characters")
    return text


def _flat(child: Any, dtype_kind: str = "") -> Any:
    """``child``, a numpy array of one dimension."""
    if expect(numpy.ndarray, child).ndim != 1 or (dtype_kind and child.dtype.kind not in dtype_kind):
        raise RemoteProtocolError("an array of another shape or type was expected")
    return child


def _make_masked(name: Any, values: Any, mask: Any) -> Any:
    if expect(str, name) not in _masked_classes:
        raise RemoteProtocolError("a masked array of pandas that is not known here")
    return getattr(pandas.arrays, name)(_flat(values), _flat(mask, "b"))


def _make_text(storage: Any, is_na: Any, items: Any) -> Any:
    if not {*map(type, expect(list, items))} <= {str, type(None)}:
        raise RemoteProtocolError("a column of text holds something else")
    kind = pandas.StringDtype(expect(str, storage)) if is_na else pandas.StringDtype(storage, na_value=numpy.nan)
    return pandas.array(items, dtype=kind)


def _make_moments(values: Any, zone: Any) -> Any:
    index = pandas.DatetimeIndex(_flat(values, "M"))
    if zone is not None:
        if not isinstance(zone, dt.tzinfo):
            raise RemoteProtocolError(f"{name_of(type(zone))} where a time zone was expected")
        index = index.tz_localize("UTC").tz_convert(zone)
    return index.array


def _make_intervals(left: Any, right: Any, closed: Any) -> Any:
    if not isinstance(left, pandas.Index) or not isinstance(right, pandas.Index):
        raise RemoteProtocolError("the ends of intervals must be indexes")
    return pandas.arrays.IntervalArray.from_arrays(left, right, closed=expect(str, closed))


def _make_categories(codes: Any, categories: Any, ordered: Any) -> Any:
    if not isinstance(categories, pandas.Index):
        raise RemoteProtocolError("categories must be an index")
    return pandas.Categorical.from_codes(_flat(codes, "i"), dtype=pandas.CategoricalDtype(categories, bool(ordered)))


def _make_arrow(column: Any) -> Any:
    import pyarrow

    if type(column) is not pyarrow.ChunkedArray:
        raise RemoteProtocolError("an Arrow column was expected")
    return pandas.array(column, dtype=pandas.ArrowDtype(column.type))


_MAKERS: dict[str, Callable[..., Any]] = {
    "numpy": lambda values: expect(numpy.ndarray, values),
    "extension": lambda values: pandas.arrays.NumpyExtensionArray(_flat(values)),
    "masked": _make_masked,
    "text": _make_text,
    "moments": _make_moments,
    "spans": lambda values: pandas.TimedeltaIndex(_flat(values, "m")).array,
    "periods": lambda values, freq: pandas.PeriodIndex.from_ordinals(_flat(values, "i"), freq=_frequency(freq)).array,
    "intervals": _make_intervals,
    "categories": _make_categories,
    "sparse": lambda values, fill: pandas.arrays.SparseArray(_flat(values), fill_value=fill, dtype=values.dtype),
    "arrow": _make_arrow,
}


def _make_array(_: Decoding, kind: Any, *parts: Any) -> Any:
    make = _MAKERS.get(expect(str, kind))
    if make is None:
        raise RemoteProtocolError("an array of pandas of a kind that is not known here")
    return make(*parts)


def _box_array(array: Any) -> list[Any]:
    return [MARK_PACKAGE, "pandas.array", *_array_parts(array)]


# ---------------------------------------------------------------- indexes


def _index_box(index: Any) -> list[Any]:
    if isinstance(index, pandas.RangeIndex):
        return [MARK_PACKAGE, "pandas.RangeIndex", index.start, index.stop, index.step, index.name]
    if isinstance(index, pandas.MultiIndex):
        codes = [numpy.asarray(each) for each in index.codes]
        return [MARK_PACKAGE, "pandas.MultiIndex", list(index.levels), codes, list(index.names)]
    array = index.to_numpy() if isinstance(index.dtype, numpy.dtype) and index.dtype.kind not in "mM" else index.array
    freq = index.freq if index.dtype.kind in "mM" else None
    return [MARK_PACKAGE, "pandas.Index", _box_array(array), index.name, None if freq is None else freq.freqstr]


def _make_range(_: Decoding, start: Any, stop: Any, step: Any, name: Any) -> Any:
    return pandas.RangeIndex(*ints_of(start, stop, step), name=name)


def _make_multi(_: Decoding, levels: Any, codes: Any, names: Any) -> Any:
    if not all(isinstance(level, pandas.Index) for level in items_of(levels)):
        raise RemoteProtocolError("the levels of an index must be indexes")
    made = pandas.MultiIndex(levels, [_flat(each, "i") for each in items_of(codes)], names=items_of(names))
    return made


def _make_index(_: Decoding, array: Any, name: Any, freq: Any) -> Any:
    if type(array) is numpy.ndarray:
        return pandas.Index(_flat(array), name=name, dtype=array.dtype)
    if not isinstance(array, pandas.api.extensions.ExtensionArray):
        raise RemoteProtocolError("the values of an index must be an array")
    index = pandas.Index(array, name=name, dtype=array.dtype)
    if freq is not None:
        index.freq = _frequency(freq)  # pandas checks it against the values
    return index


def _is_index(child: Any) -> Any:
    if not isinstance(child, pandas.Index):
        raise RemoteProtocolError(f"{name_of(type(child))} where an index was expected")
    return child


# ---------------------------------------------------------------- columns and tables


def _column_array(column: Any) -> Any:
    """The array of a column: numpy's own where there is one."""
    return column.to_numpy() if isinstance(column.dtype, numpy.dtype) else column.array


def _flags_of(value: Any) -> list[Any]:
    return [value.attrs, bool(value.flags.allows_duplicate_labels)]


def _series_box(_: Encoding, series: Any) -> list[Any]:
    array = _box_array(_column_array(series))
    return [MARK_PACKAGE, "pandas.Series", _index_box(series.index), array, series.name, *_flags_of(series)]


def _frame_box(_: Encoding, frame: Any) -> list[Any]:
    places: dict[Any, list[int]] = {}
    alone: list[int] = []
    for place, dtype in enumerate(frame.dtypes):
        if isinstance(dtype, numpy.dtype):
            places.setdefault(dtype, []).append(place)
        else:
            alone.append(place)
    blocks: list[Any] = []
    for chosen in places.values():
        block = frame if len(chosen) == len(frame.columns) else frame.iloc[:, chosen]
        # Transposed, as pandas itself keeps them: a column is one run of memory.
        blocks.append([chosen, [MARK_PACKAGE, "pandas.array", "numpy", block.to_numpy().T]])
    blocks += [[[place], _box_array(frame.iloc[:, place].array)] for place in alone]
    return [MARK_PACKAGE, "pandas.DataFrame", _index_box(frame.columns), _index_box(frame.index), blocks,
            *_flags_of(frame)]  # fmt: skip


def _with_flags(value: Any, attrs: Any, duplicates: Any) -> Any:
    value.attrs = expect(dict, attrs)
    if not duplicates:
        value.flags.allows_duplicate_labels = False
    return value


def _make_series(_: Decoding, index: Any, array: Any, name: Any, attrs: Any, duplicates: Any) -> Any:
    if len(array if type(array) is not numpy.ndarray else _flat(array)) != len(_is_index(index)):
        raise RemoteProtocolError("a Series has another length than its index")
    series = pandas.Series(array, index=index, name=name, dtype=array.dtype, copy=False)
    return _with_flags(series, attrs, duplicates)


def _make_frame(_: Decoding, columns: Any, index: Any, blocks: Any, attrs: Any, duplicates: Any) -> Any:
    width, height = len(_is_index(columns)), len(_is_index(index))
    found = [(ints_of(*items_of(places)), array) for places, array in map(items_of, items_of(blocks))]
    if sorted(place for places, _ in found for place in places) != list(range(width)):
        raise RemoteProtocolError("the columns of a table are not those that it names")
    for places, array in found:
        shape = (len(places), height) if type(array) is numpy.ndarray else (height,)
        if getattr(array, "shape", None) != shape:
            raise RemoteProtocolError("a block of a table has another shape than its indexes say")
    if len(found) == 1 and type(found[0][1]) is numpy.ndarray and list(found[0][0]) == list(range(width)):
        array = found[0][1]
        frame = pandas.DataFrame(array.T, index=index, columns=columns, dtype=array.dtype, copy=False)
    else:
        parts: dict[int, Any] = {}
        for places, array in found:
            rows = array if type(array) is numpy.ndarray else [array]
            parts |= {
                place: pandas.Series(row, index=index, dtype=array.dtype, copy=False)
                for place, row in zip(places, rows, strict=True)
            }
        frame = pandas.DataFrame({place: parts[place] for place in range(width)}, index=index, copy=False)
        frame.columns = columns
    return _with_flags(frame, attrs, duplicates)


# ---------------------------------------------------------------- scalars


def _timestamp_box(_: Encoding, value: Any) -> list[Any]:
    naive = value if value.tz is None else value.tz_convert("UTC").tz_localize(None)
    return [MARK_PACKAGE, "pandas.Timestamp", naive.to_numpy(), value.unit, value.tz, value.fold]


def _make_timestamp(_: Decoding, moment: Any, unit: Any, zone: Any, fold: Any) -> Any:
    made = pandas.Timestamp(expect(numpy.datetime64, moment)).as_unit(expect(str, unit))
    if zone is None:
        return made.replace(fold=expect(int, fold)) if fold else made
    if not isinstance(zone, dt.tzinfo):
        raise RemoteProtocolError(f"{name_of(type(zone))} where a time zone was expected")
    return made.tz_localize("UTC").tz_convert(zone)


def _timedelta_box(_: Encoding, value: Any) -> list[Any]:
    return [MARK_PACKAGE, "pandas.Timedelta", value.to_numpy(), value.unit]


def _make_timedelta(_: Decoding, span: Any, unit: Any) -> Any:
    return pandas.Timedelta(expect(numpy.timedelta64, span)).as_unit(expect(str, unit))


def _make_period(_: Decoding, ordinal: Any, freq: Any) -> Any:
    return pandas.Period(ordinal=expect(int, ordinal), freq=_frequency(freq))


def _offset_box(_: Encoding, value: Any) -> list[Any]:
    try:
        same = pandas.tseries.frequencies.to_offset(value.freqstr) == value
    except ValueError:
        same = False
    if not same:
        raise NoForm(f"the offset {value!r} is more than its name {value.freqstr!r} says; {TEACH}")
    return [MARK_PACKAGE, "pandas.offset", value.freqstr]


def _make_offset(_: Decoding, text: Any) -> Any:
    return pandas.tseries.frequencies.to_offset(_frequency(expect(str, text)))


_SCALARS: dict[type, Reducer] = {
    pandas.Timestamp: _timestamp_box,
    pandas.Timedelta: _timedelta_box,
    type(pandas.NaT): lambda _, value: [MARK_PACKAGE, "pandas.NaT"],
    type(pandas.NA): lambda _, value: [MARK_PACKAGE, "pandas.NA"],
    pandas.Period: lambda _, value: [MARK_PACKAGE, "pandas.Period", value.ordinal, value.freqstr],
    pandas.Interval: lambda _, value: [MARK_PACKAGE, "pandas.Interval", value.left, value.right, value.closed],
}


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of pandas itself; a class that derives from one holds more than we know."""
    if cls.__module__.partition(".")[0] != "pandas":
        return None
    if cls in _SCALARS:
        return _SCALARS[cls]
    if cls is pandas.DataFrame:
        return _frame_box
    if cls is pandas.Series:
        return _series_box
    if issubclass(cls, pandas.Index):
        return lambda _, value: _index_box(value)
    if issubclass(cls, pandas.api.extensions.ExtensionArray):
        return lambda _, value: _box_array(value)
    if issubclass(cls, pandas.tseries.offsets.BaseOffset):
        return _offset_box
    return None


def _make_interval(_: Decoding, left: Any, right: Any, closed: Any) -> Any:
    kinds = (int, float, numpy.generic, pandas.Timestamp, pandas.Timedelta)
    if not isinstance(left, kinds) or not isinstance(right, kinds):
        raise RemoteProtocolError("the ends of an interval must be numbers or moments")
    return pandas.Interval(left, right, expect(str, closed))


BUILDERS: dict[str, Callable[..., Any]] = {
    "pandas.array": _make_array,
    "pandas.Index": _make_index,
    "pandas.RangeIndex": _make_range,
    "pandas.MultiIndex": _make_multi,
    "pandas.Series": _make_series,
    "pandas.DataFrame": _make_frame,
    "pandas.Timestamp": _make_timestamp,
    "pandas.Timedelta": _make_timedelta,
    "pandas.Period": _make_period,
    "pandas.Interval": _make_interval,
    "pandas.offset": _make_offset,
    "pandas.NaT": lambda _: pandas.NaT,
    "pandas.NA": lambda _: pandas.NA,
}
