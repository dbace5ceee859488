"""numpy arrays and scalars. numpy is imported when the first array comes in; until then nothing can be an array.

An array goes as dtype, shape, order and bytes, and arrives writable: without a copy when the memory of the frame is
writable, otherwise with one. Arrays that nobody can write to go out without a copy. A dtype from the wire is parsed
against a pattern before numpy sees it; a dtype that holds objects is refused.
"""

from __future__ import annotations

import importlib
import math
import re
from typing import Any

from ..errors import RemoteProtocolError
from .forms import INLINE_LIMIT_BYTES, MARK_ARRAY, MARK_SCALAR, Decoding, Encoding, NoForm, Reducer, all_str, expect

_DTYPE = re.compile(r"[<>|=][bifucmMSUV]\d{1,9}(\[\d{0,9}[A-Za-zμ]{1,7}\])?")


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of numpy or ml_dtypes."""
    numpy = importlib.import_module("numpy")
    if issubclass(cls, numpy.generic):
        return _reduce_numpy_scalar
    if cls is numpy.ndarray or cls is numpy.memmap:
        return _reduce_array
    return None  # a masked array, say, is more than its data


BUILDERS: dict[str, Any] = {}


def _reduce_numpy_scalar(_: Encoding, value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "US":  # not by dtype, which has no length of zero and drops trailing NULs, as item() does
        return [MARK_SCALAR, kind, str.__str__(value) if kind == "U" else bytes(value)]
    return [MARK_SCALAR, _dtype_data(value.dtype), value.tobytes()]


def _reduce_array(encoder: Encoding, array: Any) -> Any:
    dtype = _dtype_data(array.dtype)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    source = array.T if fortran else array
    if array.nbytes > INLINE_LIMIT_BYTES and source.flags.c_contiguous and _is_constant(array):
        data = encoder.place(memoryview(source.reshape(-1).view("u1")))
    else:
        data = encoder.place(source.tobytes())
    return [MARK_ARRAY, dtype, list(array.shape), "F" if fortran else "C", data]


def _is_constant(array: Any) -> bool:
    """Whether nobody can write to the array's memory by way of numpy. Then it needs no copy."""
    while array is not None and hasattr(array, "flags"):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or memoryview(array).readonly


def _dtype_data(dtype: Any) -> Any:
    if dtype.hasobject or dtype.kind not in "bifucmMSUV" or not dtype.itemsize:
        raise NoForm(f"a numpy array of dtype {dtype} has no msgpack form")
    if dtype.names is None:
        return dtype.str
    return _as_lists(importlib.import_module("numpy.lib.format").dtype_to_descr(dtype))


def _as_lists(descr: Any) -> Any:
    return [_as_lists(item) for item in descr] if isinstance(descr, (list, tuple)) else descr


def _read_dtype(data: Any) -> Any:
    if type(data) is list:
        dtype = importlib.import_module("numpy.lib.format").descr_to_dtype(_read_descr(data))
    elif type(data) is str and _DTYPE.fullmatch(data):
        dtype = importlib.import_module("numpy").dtype(data)
    else:
        raise RemoteProtocolError("not a numpy dtype that may travel")
    if dtype.hasobject or not dtype.itemsize:
        raise RemoteProtocolError(f"numpy dtype {dtype} is refused")
    return dtype


def _read_descr(fields: list[Any]) -> list[Any]:
    """numpy's description of a structured dtype: ``(name, format)`` or ``(name, format, shape)`` each."""
    descr: list[Any] = []
    for given in fields:
        if type(given) is not list or len(given) not in (2, 3):
            raise RemoteProtocolError("a field of a numpy dtype must be a list of two or three items")
        name, form, shape = (*given, None)[:3]
        if type(name) is list and len(name) == 2 and all_str(name):  # title and name
            name = tuple(name)
        elif type(name) is not str:
            raise RemoteProtocolError("the name of a field of a numpy dtype must be text, or a title and a name")
        if type(form) is list:
            form = _read_descr(form)
        elif type(form) is not str or not _DTYPE.fullmatch(form):
            raise RemoteProtocolError("not a numpy dtype that may travel")
        descr.append((name, form) if shape is None else (name, form, tuple(_read_shape(shape))))
    return descr


def _read_shape(shape: Any) -> list[int]:
    if type(shape) is not list or len(shape) > 64:  # numpy's own limit, 32 before numpy 2
        raise RemoteProtocolError("the shape of a numpy array must be a list of at most 64 lengths")
    for length in shape:
        if type(length) is not int or not 0 <= length < 2**48:
            raise RemoteProtocolError("a length in the shape of a numpy array must be an int from 0 to 2**48")
    return shape


def _import_numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as exc:
        raise RemoteProtocolError("the value holds a numpy array, and numpy is not installed here") from exc


def read_numpy_scalar(_: Decoding, kind: Any, data: Any) -> Any:
    numpy = _import_numpy()
    if type(kind) is str and kind in ("U", "S"):
        if type(data) is not (str if kind == "U" else bytes):
            raise RemoteProtocolError("the data of a numpy scalar does not have the type that its dtype names")
        return numpy.str_(data) if kind == "U" else numpy.bytes_(data)
    dtype = _read_dtype(kind)
    expect(bytes, data)
    if len(data) != dtype.itemsize:
        raise RemoteProtocolError(f"{len(data)} bytes for a numpy scalar of {dtype.itemsize}")
    return numpy.frombuffer(bytearray(data), dtype)[0]


def read_array(decoder: Decoding, kind: Any, shape: Any, order: Any, data: Any) -> Any:
    numpy = _import_numpy()
    dtype = _read_dtype(kind)
    count = math.prod(_read_shape(shape))
    if expect(str, order) not in ("C", "F"):
        raise RemoteProtocolError("the order of a numpy array must be 'C' or 'F'")
    data = decoder.take(data)
    if count * dtype.itemsize != len(data):
        raise RemoteProtocolError(f"{len(data):,} bytes for {count:,} numpy items of {dtype.itemsize}")
    if not count:
        return numpy.empty(shape, dtype, order)
    if not isinstance(data, memoryview) or data.readonly:
        data = bytearray(data)
    flat = numpy.frombuffer(data, dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)
