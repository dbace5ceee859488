"""pyarrow: tables, batches, columns, arrays and scalars, and their types, as Arrow IPC streams.

The stream is a buffer of its own, and what arrives lies in the memory of that buffer. It is validated in full: offsets
that lead out of a buffer would otherwise end the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow

from ...errors import RemoteProtocolError
from ..forms import MARK_PACKAGE, Decoding, Encoding, NoForm, Reducer
from .arrow_stream import check_stream

__all__ = ["BUILDERS", "reducer_of"]


def _stream_of(encoder: Encoding, kind: str, table: Any) -> list[Any]:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    data = memoryview(sink.getvalue())
    try:
        check_stream(data)
    except RemoteProtocolError as exc:
        raise NoForm(str(exc)) from None
    return [MARK_PACKAGE, kind, encoder.place(data)]


def _from_columns(kind: str, columns: Callable[[Any], list[Any]]) -> Reducer:
    return lambda encoder, value: _stream_of(encoder, kind, pyarrow.table(columns(value), names=[""]))


def _column_of(scalar: Any) -> Any:
    # pyarrow cannot make an array of a map that is null.
    return pyarrow.array([scalar], type=scalar.type) if scalar.is_valid else pyarrow.nulls(1, scalar.type)


def _from_schema(kind: str, schema: Callable[[Any], Any]) -> Reducer:
    return lambda encoder, value: _stream_of(encoder, kind, schema(value).empty_table())


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of pyarrow itself."""
    if cls.__module__.partition(".")[0] != "pyarrow":
        return None
    if cls is pyarrow.Table:
        return lambda encoder, value: _stream_of(encoder, "pyarrow.Table", value)
    if cls is pyarrow.RecordBatch:
        return lambda encoder, value: _stream_of(encoder, "pyarrow.RecordBatch", value)
    if cls is pyarrow.ChunkedArray:
        return _from_columns("pyarrow.ChunkedArray", lambda value: [value])
    if issubclass(cls, pyarrow.Array):
        return _from_columns("pyarrow.Array", lambda value: [value])
    if issubclass(cls, pyarrow.Scalar):
        return _from_columns("pyarrow.Scalar", lambda value: [_column_of(value)])
    if issubclass(cls, pyarrow.DataType):
        return _from_schema("pyarrow.DataType", lambda value: pyarrow.schema([pyarrow.field("", value)]))
    if cls is pyarrow.Field:
        return _from_schema("pyarrow.Field", lambda value: pyarrow.schema([value]))
    if cls is pyarrow.Schema:
        return _from_schema("pyarrow.Schema", lambda value: value)
    return None


def _read(decoder: Decoding, place: Any) -> Any:
    """The table in a stream, all of it looked at."""
    data = decoder.take(place)
    check_stream(data)
    with pyarrow.ipc.open_stream(pyarrow.py_buffer(data)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def _make_batch(decoder: Decoding, place: Any) -> Any:
    (batch,) = _read(decoder, place).to_batches() or [None]
    if batch is None:
        raise RemoteProtocolError("an Arrow stream without a record batch")
    return batch


def _make_array(decoder: Decoding, place: Any) -> Any:
    column = _read(decoder, place).column(0)
    if column.num_chunks > 1:
        raise RemoteProtocolError("an Arrow array must be one record batch")
    return column.chunk(0) if column.num_chunks else pyarrow.array([], type=column.type)


BUILDERS: dict[str, Callable[..., Any]] = {
    "pyarrow.Table": _read,
    "pyarrow.RecordBatch": _make_batch,
    "pyarrow.ChunkedArray": lambda decoder, place: _read(decoder, place).column(0),
    "pyarrow.Array": _make_array,
    "pyarrow.Scalar": lambda decoder, place: _make_array(decoder, place)[0],
    "pyarrow.DataType": lambda decoder, place: _read(decoder, place).schema.field(0).type,
    "pyarrow.Field": lambda decoder, place: _read(decoder, place).schema.field(0),
    "pyarrow.Schema": lambda decoder, place: _read(decoder, place).schema,
}
