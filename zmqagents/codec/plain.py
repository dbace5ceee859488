"""Plain msgpack: the headers of messages, and the short values that need nothing else.

Most arguments and results are None, bools, numbers, text and bytes. `encode_plain` and `encode_plain_call` make their
payloads with no more than msgpack's packer, so that such a call never enters `encoder`. Long bytes go beside the
payload, and the payload of a value that is nothing else is always the same: `LONE_VALUE`, `LONE_ARGUMENT`.

Every function may be called from any thread.
"""

from __future__ import annotations

from typing import Any

from msgpack import Packer, unpackb

from .. import errors
from ..errors import LocalProtocolError, RemoteProtocolError
from .forms import (
    FLAT_TYPES,
    INLINE_LIMIT_BYTES,
    KEEP_PACKER_BYTES,
    MAX_BUFFERS,
    PLACES,
    TAG,
    Buffer,
    Encoded,
    new_tuple,
    no_extension,
)


def encode_plain(value: Any) -> tuple[Buffer, ...] | None:
    """Payload and buffer that `encode` makes for None, a bool, a number, text or bytes: most results are such.

    None: ``value`` is something else, or cannot be encoded.
    """
    kind = type(value)
    if kind not in FLAT_TYPES:
        if kind is not bytes:
            return None
        if len(value) > INLINE_LIMIT_BYTES:
            return LONE_VALUE, value
    try:
        return (pack(value),)
    except LocalProtocolError:  # a long int, a lone surrogate
        return None


def encode_plain_call(args: tuple[Any, ...], max_bytes: int) -> Encoded | None:
    """What `encode_call` makes of positional arguments that `encode_plain` takes: the usual ones.

    None: other values are among them, or the payload is over ``max_bytes``, or `encode_call` has to say what is wrong.
    """
    large = False
    for value in args:
        kind = type(value)
        if kind not in FLAT_TYPES:
            if kind is not bytes:
                return None
            large = large or len(value) > INLINE_LIMIT_BYTES
    if large:
        return _encode_call_with_buffers(args, max_bytes)
    try:
        payload = pack((*args, _NO_KEYWORDS))
    except LocalProtocolError:  # as above
        return None
    return new_tuple(Encoded, (payload, (), ())) if len(payload) <= max_bytes else None


_NO_KEYWORDS: dict[str, Any] = {}
NO_CALL = "the arguments of a call must be a list that ends with a map"
NO_NAME = "the name of a keyword argument must be text"


def _encode_call_with_buffers(args: tuple[Any, ...], max_bytes: int) -> Encoded | None:
    """The same where some of the arguments are long bytes."""
    if len(args) == 1 and len(LONE_ARGUMENT) <= max_bytes:
        return Encoded(LONE_ARGUMENT, args, ())
    buffers = [value for value in args if type(value) is bytes and len(value) > INLINE_LIMIT_BYTES]
    if len(buffers) > MAX_BUFFERS:
        return None
    places = iter(PLACES)
    items = [next(places) if type(each) is bytes and len(each) > INLINE_LIMIT_BYTES else each for each in args]
    try:
        payload = TAG + pack([*items, _NO_KEYWORDS])
    except LocalProtocolError:  # as above
        return None
    return Encoded(payload, buffers, ()) if len(payload) <= max_bytes else None


def why_not_decoded(exc: Exception) -> str:
    """The text of the RemoteProtocolError for what the unpacker raised."""
    return f"the value cannot be decoded: {type(exc).__name__}: {errors.safe_text(exc)}"


def decode_plain(payload: Buffer) -> Any:
    """The value of a payload that is not tagged, as `decode` reads it: most values are such."""
    try:
        return unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
    except RemoteProtocolError:
        raise
    except Exception as exc:  # truncated, garbage, an unhashable key, more nesting than the unpacker takes ...
        raise RemoteProtocolError(why_not_decoded(exc)) from exc


_MAX_HEADER_DEPTH = 64
_SHALLOW_BYTES = 256  # so few bytes cannot nest deeper than repr and other recursive code bear

_idle_packers: list[Packer] = []


def pack(value: Any) -> bytes:
    """``value`` as plain msgpack: None, bool, int, float, str, bytes, list (and tuple), dict.

    LocalProtocolError if it holds anything else.
    """
    try:
        packer = _idle_packers.pop()
    except IndexError:
        packer = Packer(buf_size=1024)
    try:
        data: bytes = packer.pack(value)
    except Exception as exc:
        raise LocalProtocolError(f"cannot pack the value: {type(exc).__name__}: {errors.safe_text(exc)}") from exc
    if len(data) <= KEEP_PACKER_BYTES:
        _idle_packers.append(packer)
    return data


LONE_VALUE = TAG + pack(PLACES[0])  # the payload of bytes that are in a buffer
LONE_ARGUMENT = TAG + pack([PLACES[0], _NO_KEYWORDS])  # the same of a call with that one argument


def pack_rows(rows: list[Any]) -> bytes:
    """A list, packed row by row: other threads have their turns between two of them."""
    return b"".join([b"\xdd" + len(rows).to_bytes(4, "big"), *map(pack, rows)])


def unpack(data: Buffer, *, max_bytes: int = 65_536) -> Any:
    """The value that `pack` packed.

    RemoteProtocolError if ``data`` is longer than ``max_bytes``, is no msgpack, holds an extension type, or is longer
    than 256 bytes and nested more than 64 deep. A length that it declares is checked against its own length before
    anything is made of it.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"the message is {len(data):,} bytes, limit {max_bytes:,}")
    try:
        value = unpackb(data, strict_map_key=False, timestamp=1, ext_hook=no_extension)
    except RemoteProtocolError:
        raise
    except Exception as exc:
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    if len(data) > _SHALLOW_BYTES and not _is_shallow(value):
        raise RemoteProtocolError(f"the header is nested more than {_MAX_HEADER_DEPTH} deep")
    return value


def _is_shallow(value: Any) -> bool:
    boxes: list[Any] = [[value]]
    for _ in range(_MAX_HEADER_DEPTH):
        items = [item for box in boxes if box for item in (box.values() if type(box) is dict else box)]
        boxes = [item for item in items if type(item) is list or type(item) is dict]
        if not boxes:
            return True
    return False
