"""numpy arrays and scalars. numpy is imported when the first array comes in; until then nothing can be an array.

An array goes as dtype, shape, order and bytes, and arrives writable: without a copy when the memory of the frame is
writable, otherwise with one. Arrays that nobody can write to go out without a copy. An array of objects goes as a list
of them. Masked arrays, matrices and record arrays are `MARK_PACKAGE` forms around an array.

A dtype is its own short text, ``ml_dtypes.`` and a name for the types of that package, or for a structure a map of
names, formats, offsets and size. What comes from the wire is checked against a pattern before numpy sees it.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable
from typing import Any

from msgpack import unpackb

from ..errors import RemoteProtocolError, SerializationError
from .forms import (
    INLINE_LIMIT_BYTES,
    MARK_ARRAY,
    MARK_PACKAGE,
    MARK_SCALAR,
    TAG,
    Buffer,
    Decoding,
    Encoding,
    NoForm,
    Reducer,
    all_str,
    expect,
    ints_of,
    writable,
)
from .plain import Lone, lone_forms, note_lone, pack

__all__ = ["BUILDERS", "find_reader", "read_array", "read_numpy_scalar", "reducer_of"]

_DTYPE = re.compile(r"[<>|=][bifucmMSUV]\d{1,9}(\[\d{0,9}[A-Za-zμ]{1,7}\])?")
_ML_DTYPE = re.compile(r"ml_dtypes\.[a-z][a-z0-9_]{1,30}")
_MAX_DTYPE_DEPTH = 16  # of structures in structures


def reducer_of(cls: type) -> Reducer | None:
    """The reducer of a class of numpy or ml_dtypes."""
    numpy = importlib.import_module("numpy")
    if issubclass(cls, numpy.generic):
        is_its_own = cls.__module__.partition(".")[0] in ("numpy", "ml_dtypes")
        return _reduce_numpy_scalar if is_its_own else None
    if cls is numpy.ndarray or cls is numpy.memmap:
        return _reduce_array
    if cls is numpy.ma.MaskedArray:
        return _reduce_masked
    if cls is type(numpy.ma.masked):
        return lambda _, value: [MARK_PACKAGE, "numpy.masked"]
    if cls is numpy.matrix:
        return lambda _, value: [MARK_PACKAGE, "numpy.matrix", value.A]
    if cls is numpy.recarray:
        return lambda _, value: [MARK_PACKAGE, "numpy.recarray", _bare(value)]
    if issubclass(cls, numpy.dtype):
        return lambda _, value: [MARK_PACKAGE, "numpy.dtype", "|O" if value.kind == "O" else _dtype_data(value)]
    return None


def _bare(array: Any) -> Any:
    """A record array as a plain one."""
    numpy = importlib.import_module("numpy")
    bare = array.view(numpy.ndarray)
    return bare.view(numpy.dtype((numpy.void, bare.dtype))) if bare.dtype.type is numpy.record else bare


def _reduce_numpy_scalar(_: Encoding, value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "US":  # not by dtype, which has no length of zero and drops trailing NULs, as item() does
        return [MARK_SCALAR, kind, str.__str__(value) if kind == "U" else bytes(value)]
    return [MARK_SCALAR, _dtype_data(value.dtype), value.tobytes()]


def _reduce_array(encoder: Encoding, array: Any) -> Any:
    lone_forms.setdefault(type(array), _lone_array)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    order = "F" if fortran else "C"
    source = array.T if fortran else array
    data: Any
    if array.dtype.kind == "O":
        dtype, data = "|O", source.reshape(-1).tolist()
    else:
        dtype = _dtype_data(array.dtype)
        if array.nbytes > INLINE_LIMIT_BYTES and source.flags.c_contiguous and _is_constant(array):
            data = encoder.place(memoryview(source.reshape(-1).view("u1")))
        else:
            data = encoder.place_memory(source.tobytes())
    return [MARK_ARRAY, dtype, list(array.shape), order, data]


def _lone_array(array: Any) -> Lone | None:
    """Payload and buffer of a long array in C order that is a whole value; None: `_reduce_array` is to make them."""
    payload = _payloads.get((array.dtype, array.shape))
    if payload is None:
        payload = _lone_payload(array)
        if payload is None:
            return None
    flags = array.flags
    if not flags.c_contiguous:
        return None
    if flags.writeable or not _is_constant(array):
        return payload, memoryview(array.tobytes())
    return payload, memoryview(array.reshape(-1).view("u1"))


_payloads: dict[tuple[Any, tuple[int, ...]], bytes] = {}  # by dtype and shape
_MAX_PAYLOADS = 1024


def _lone_payload(array: Any) -> bytes | None:
    """The payload of a long array that is a whole value.

    None for a short one, and for a dtype that equals others with another form: a structure, aligned or a record.
    """
    dtype = array.dtype
    if array.nbytes <= INLINE_LIMIT_BYTES or dtype.kind in "OV":
        return None
    try:
        payload = TAG + pack([MARK_ARRAY, _dtype_data(dtype), list(array.shape), "C", 0])
    except NoForm:
        return None
    if len(_payloads) >= _MAX_PAYLOADS:
        _payloads.clear()
    _payloads[dtype, array.shape] = payload
    return payload


def _reduce_masked(_: Encoding, array: Any) -> Any:
    numpy = importlib.import_module("numpy")
    mask = None if array.mask is numpy.ma.nomask else array.mask
    fill = numpy.asarray(array.fill_value, array.dtype)
    usual = numpy.asarray(numpy.ma.default_fill_value(array.dtype), array.dtype)
    is_usual = array.dtype.kind != "O" and fill.tobytes() == usual.tobytes()
    return [MARK_PACKAGE, "numpy.ma", array.data, mask, None if is_usual else fill, bool(array.hardmask)]


def _is_constant(array: Any) -> bool:
    """Whether nobody can write to the array's memory by way of numpy. Then it needs no copy."""
    while array is not None and hasattr(array, "flags"):
        if array.flags.writeable:
            return False
        array = array.base
    return array is None or memoryview(array).readonly


# ---------------------------------------------------------------- dtypes


def _dtype_data(dtype: Any) -> Any:
    package = dtype.type.__module__.partition(".")[0]
    if package == "ml_dtypes":
        return f"ml_dtypes.{dtype.name}"
    if dtype.hasobject or dtype.kind not in "bifucmMSUV" or not dtype.itemsize or package != "numpy":
        remedy = "; convert it, or send its items as a list"
        raise NoForm(f"a numpy array of dtype {dtype} has no msgpack form{remedy}")
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    return {
        "names": list(dtype.names),
        "formats": [_field_data(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "titles": [field[2] if len(field) > 2 else None for field in fields],
        "itemsize": dtype.itemsize,
        **({"aligned": True} if dtype.isalignedstruct else {}),
        **({"record": True} if dtype.type is importlib.import_module("numpy").record else {}),
    }


def _field_data(dtype: Any) -> Any:
    if dtype.subdtype is None:
        return _dtype_data(dtype)
    base, shape = dtype.subdtype
    return [_dtype_data(base), list(shape)]


def _read_dtype(data: Any, depth: int = 0) -> Any:
    numpy = importlib.import_module("numpy")
    if type(data) is dict and depth < _MAX_DTYPE_DEPTH:
        dtype = numpy.dtype(_read_structure(data, depth))
        if data.get("record") is True:  # its items have their fields as attributes
            dtype = numpy.dtype((numpy.record, dtype))
    elif type(data) is str and _DTYPE.fullmatch(data):
        dtype = numpy.dtype(data)
    elif type(data) is str and _ML_DTYPE.fullmatch(data):
        dtype = _read_ml_dtype(numpy, data.partition(".")[2])
    else:
        raise RemoteProtocolError("not a numpy dtype that may travel")
    if dtype.hasobject or not dtype.itemsize:
        raise RemoteProtocolError(f"numpy dtype {dtype} is refused")
    return dtype


def _read_ml_dtype(numpy: Any, name: str) -> Any:
    try:
        found = getattr(importlib.import_module("ml_dtypes"), name, None)
    except ImportError as exc:
        raise SerializationError("the value holds an ml_dtypes type, and ml_dtypes is not installed here") from exc
    if not isinstance(found, type) or not issubclass(found, numpy.generic):
        raise RemoteProtocolError("a type of ml_dtypes that is not known here")
    return numpy.dtype(found)


def _read_structure(data: dict[Any, Any], depth: int) -> dict[str, Any]:
    """numpy's description of a structured dtype, checked; numpy itself checks that the fields fit the size."""
    if data.keys() - {"aligned", "record"} != {"names", "formats", "offsets", "titles", "itemsize"}:
        raise RemoteProtocolError("a structured numpy dtype must be names, formats, offsets, titles and itemsize")
    names, titles = expect(list, data["names"]), expect(list, data["titles"])
    formats, offsets = expect(list, data["formats"]), expect(list, data["offsets"])
    if not all_str((*names, *(title for title in titles if title is not None))):
        raise RemoteProtocolError("the names and titles in a numpy dtype must be text")
    if not len(names) == len(formats) == len(offsets) == len(titles):
        raise RemoteProtocolError("a structured numpy dtype has lists of different lengths")
    ints_of(data["itemsize"], *offsets)
    made: dict[str, Any] = {"names": names, "offsets": offsets, "itemsize": data["itemsize"]}
    if data.get("aligned") is True:
        made["aligned"] = True  # numpy checks that the fields are
    made["formats"] = [_read_field(each, depth + 1) for each in formats]
    return made | ({"titles": titles} if any(title is not None for title in titles) else {})


def _read_field(data: Any, depth: int) -> Any:
    if type(data) is not list:
        return _read_dtype(data, depth)
    if len(data) != 2:
        raise RemoteProtocolError("a sub-array in a numpy dtype must be a dtype and a shape")
    return (_read_dtype(data[0], depth), tuple(_read_shape(data[1])))


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
        raise SerializationError("the value holds a numpy array, and numpy is not installed here") from exc


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
    count = math.prod(_read_shape(shape))
    if expect(str, order) not in ("C", "F"):
        raise RemoteProtocolError("the order of a numpy array must be 'C' or 'F'")
    if kind == "|O":
        if len(expect(list, data)) != count:
            raise RemoteProtocolError(f"{len(data):,} items for {count:,} places of a numpy array")
        flat = numpy.empty(count, object)
        for index, item in enumerate(data):  # one by one: numpy would look into lists
            flat[index] = item
    else:
        dtype = _read_dtype(kind)
        data = decoder.take(data)
        if count * dtype.itemsize != len(data):
            raise RemoteProtocolError(f"{len(data):,} bytes for {count:,} numpy items of {dtype.itemsize}")
        if not count:
            return numpy.empty(shape, dtype, order)
        flat = numpy.frombuffer(writable(data), dtype)
    return flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


def find_reader(payload: bytes) -> Callable[[Buffer], Any] | None:
    """What makes an array of the one buffer that comes with ``payload``, which begins as an array; it is remembered.

    None: it is no payload of `_lone_array`, or there is something wrong with it, or no numpy here.
    """
    if len(payload) > _MAX_LONE_BYTES:
        return None
    try:
        _, kind, shape, order, place = unpackb(memoryview(payload)[1:], strict_map_key=False)
        if type(kind) is not str or order != "C" or type(place) is not int or place:
            return None
        dtype, count = _read_dtype(kind), math.prod(_read_shape(shape))
    except Exception:  # the general way tells what is wrong
        return None
    frombuffer = importlib.import_module("numpy").frombuffer
    size, is_flat = count * dtype.itemsize, len(shape) == 1
    if not size:
        return None

    def read(data: Buffer) -> Any:
        if len(data) != size:
            raise RemoteProtocolError(f"{len(data):,} bytes for {count:,} numpy items of {dtype.itemsize}")
        flat = frombuffer(writable(data), dtype)
        return flat if is_flat else flat.reshape(shape)

    note_lone(payload, read)
    return read


_MAX_LONE_BYTES = 256


# ---------------------------------------------------------------- forms around an array


def _expect_array(child: Any) -> Any:
    return expect(importlib.import_module("numpy").ndarray, child)


def _make_masked(_: Decoding, data: Any, mask: Any, fill: Any, hard: Any) -> Any:
    numpy = _import_numpy()
    if mask is not None and _expect_array(mask).shape != _expect_array(data).shape:
        raise RemoteProtocolError("the mask of a numpy array has another shape than the array")
    made = numpy.ma.MaskedArray(_expect_array(data), numpy.ma.nomask if mask is None else mask, hard_mask=bool(hard))
    if fill is not None:
        if _expect_array(fill).shape != ():
            raise RemoteProtocolError("the fill value of a masked array must be one item")
        made.fill_value = fill[()]
    return made


def _make_dtype(_: Decoding, data: Any) -> Any:
    numpy = _import_numpy()
    return numpy.dtype(object) if data == "|O" else _read_dtype(data)


BUILDERS: dict[str, Any] = {
    "numpy.ma": _make_masked,
    "numpy.masked": lambda _: _import_numpy().ma.masked,
    "numpy.matrix": lambda _, data: _expect_array(data).view(_import_numpy().matrix),
    "numpy.recarray": lambda _, data: _expect_array(data).view(_import_numpy().recarray),
    "numpy.dtype": _make_dtype,
}
