"""polars: tables and columns as Arrow IPC streams, each a buffer of its own.

The types of the columns go along as text: a stream that would give others is refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import polars

from ...errors import RemoteProtocolError, safe_text
from ..forms import MARK_PACKAGE, Decoding, Encoding, NoForm, Reducer, expect, name_of
from .arrow_stream import check_stream

__all__ = ["BUILDERS", "reducer_of"]


def _types_of(frame: Any) -> str:
    return repr([(name, repr(kind)) for name, kind in frame.schema.items()])


def _stream_of(encoder: Encoding, kind: str, frame: Any) -> list[Any]:
    for name, column in frame.schema.items():
        if column.is_object() if hasattr(column, "is_object") else column == polars.Object:
            raise NoForm(f"column {name!r} holds Python objects: polars has no form for these")
    sink = io.BytesIO()
    try:
        frame.write_ipc_stream(sink, compression="uncompressed")
        check_stream(sink.getbuffer())
    except RemoteProtocolError as exc:
        raise NoForm(str(exc)) from None
    except BaseException as exc:
        raise _as_error(exc, NoForm) from exc
    return [MARK_PACKAGE, kind, _types_of(frame), encoder.place(sink.getvalue())]


def _as_error(exc: BaseException, kind: type[Exception]) -> BaseException:
    """A panic of polars, which is no Exception, as one of ours; all else as it is."""
    if isinstance(exc, Exception) or "Panic" not in type(exc).__name__:
        return exc
    return kind(f"polars panicked: {safe_text(exc)}")


def _read(decoder: Decoding, types: Any, place: Any) -> Any:
    data = decoder.take(place)
    check_stream(data)
    try:
        frame = polars.read_ipc_stream(io.BytesIO(data))
    except BaseException as exc:
        raise _as_error(exc, RemoteProtocolError) from exc
    if _types_of(frame) != expect(str, types):
        raise RemoteProtocolError("the columns of a polars table have other types here than they were sent with")
    return frame


def _read_series(decoder: Decoding, types: Any, place: Any) -> Any:
    frame = _read(decoder, types, place)
    if frame.width != 1:
        raise RemoteProtocolError("a polars Series must be one column")
    return frame.to_series()


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a table or a column."""
    if cls is polars.DataFrame:
        return lambda encoder, value: _stream_of(encoder, "polars.DataFrame", value)
    if cls is polars.Series:
        return lambda encoder, value: _stream_of(encoder, "polars.Series", value.to_frame())
    if cls is polars.LazyFrame:
        return _refuse_lazy
    return None


def _refuse_lazy(_: Encoding, value: Any) -> Any:
    raise NoForm(f"a {name_of(type(value))} is not computed yet: send its collect()")


BUILDERS: dict[str, Callable[..., Any]] = {"polars.DataFrame": _read, "polars.Series": _read_series}
