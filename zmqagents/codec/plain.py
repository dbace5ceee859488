"""Plain msgpack: the headers of messages, and the short values that need nothing else.

Most arguments and results are None, bools, numbers, text and bytes. `encode_plain` and `encode_plain_call` make their
payloads with no more than msgpack's packer, so that such a call never enters `encoder`.

Long bytes, bytearrays and arrays go beside the payload. If a value is nothing else, its payload says no more than of
what kind, and is the same for all of that kind: it is made and read once, see `lone_forms` and `lone_values`.

Every function may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgpack import OutOfData, Packer, Unpacker, unpackb

from .. import errors
from ..errors import LocalProtocolError, RemoteProtocolError
from .bounds import LENGTHS
from .forms import (
    FLAT_TYPES,
    INLINE_LIMIT_BYTES,
    KEEP_PACKER_BYTES,
    MARK_BYTEARRAY,
    MAX_BUFFERS,
    MAX_DEPTH,
    PLACES,
    TAG,
    Buffer,
    Encoded,
    bytearray_of,
    new_tuple,
    no_extension,
)


def encode_plain(value: Any) -> tuple[Buffer, ...] | None:
    """Payload and buffer that `encode` makes for None, a bool, a number, text, bytes, a short list or map of these
    but bytes, or a long buffer: most results.

    None: ``value`` is something else, or cannot be encoded.
    """
    kind = type(value)
    if kind not in FLAT_TYPES:
        if kind is bytes:
            if len(value) > INLINE_LIMIT_BYTES:
                return LONE_VALUE, value
        elif not (kind in _CONTAINERS and _is_flat(value)):
            form = lone_forms.get(kind)
            return None if form is None else form(value)
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
            if kind is bytes:
                large = large or len(value) > INLINE_LIMIT_BYTES
            elif not (kind in _CONTAINERS and _is_flat(value)):
                return _encode_lone_argument(args, max_bytes)
    if large:
        return _encode_call_with_buffers(args, max_bytes)
    try:
        payload = pack((*args, _NO_KEYWORDS))
    except LocalProtocolError:  # as above
        return None
    return new_tuple(Encoded, (payload, (), ())) if len(payload) <= max_bytes else None


def _is_flat(value: dict[Any, Any] | list[Any]) -> bool:
    """Whether a map or list is short, and holds nothing but None, bools, numbers and text.

    So few of them take no more memory than `check_structure` allows, whatever the limit of a payload is.
    """
    if len(value) > MAX_FLAT:
        return False
    if type(value) is list:
        return FLAT_TYPES.issuperset(map(type, value))
    return FLAT_TYPES.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value))  # type: ignore[union-attr]


MAX_FLAT = 32
_CONTAINERS, _TEXT = frozenset({dict, list}), frozenset({str})
_NO_KEYWORDS: dict[str, Any] = {}
NO_CALL = "the arguments of a call must be a list that ends with a map"
NO_NAME = "the name of a keyword argument must be text"


def _encode_call_with_buffers(args: tuple[Any, ...], max_bytes: int) -> Encoded | None:
    """The same where some of the arguments are long bytes."""
    if len(args) == 1 and len(LONE_ARGUMENT) <= max_bytes:
        made: Encoded = new_tuple(Encoded, (LONE_ARGUMENT, args, ()))
        return made
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


def _encode_lone_argument(args: tuple[Any, ...], max_bytes: int) -> Encoded | None:
    """The same for one long buffer that is no bytes."""
    form = lone_forms.get(type(args[0])) if len(args) == 1 else None
    lone = None if form is None else form(args[0])
    if lone is None or len(lone[0]) + 2 > max_bytes:
        return None
    made: Encoded = new_tuple(Encoded, (argument_of(lone[0]), lone[1:], ()))
    return made


def why_not_decoded(exc: Exception) -> str:
    """The text of the RemoteProtocolError for what the unpacker raised."""
    return f"the value cannot be decoded: {type(exc).__name__}: {errors.safe_text(exc)}"


def unpack_plain(payload: Buffer) -> Any:
    """The value of a payload that is not tagged; raises what msgpack does."""
    return unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)


def decode_plain(payload: Buffer) -> Any:
    """The value of a payload that is not tagged, as `decode` reads it: most values are such."""
    try:
        return unpack_plain(payload) if len(payload) <= LONG_BYTES else unpack_long(payload, unpack_plain)
    except RemoteProtocolError:
        raise
    except Exception as exc:  # truncated, garbage, an unhashable key, more nesting than the unpacker takes ...
        raise RemoteProtocolError(why_not_decoded(exc)) from exc


# ---------------------------------------------------------------- long payloads
#
# The C unpacker keeps the interpreter lock to its end: 0.2 s for 16 MiB of numbers, 1 s for as many maps. So a long
# payload is read piece by piece, in some 10 % more time, and other threads run in between.

LONG_BYTES = 131_072
PIECE_BYTES = 65_536  # 0.3 to 4 ms
_MANY_ITEMS = 16_384
_EXTENSIONS = frozenset({0xC7, 0xC8, 0xC9})


def unpack_long(
    payload: Buffer, unpack: Callable[[bytes], Any], *, mark: bytes = b"",
    box: Callable[[list[Any]], Any] | None = None, to_map: Callable[[list[tuple[Any, Any]]], Any] | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Any:  # fmt: skip
    """What ``unpack`` gives for ``payload``, read in pieces of ``piece_bytes``. Raises ValueError, or what it raises.

    ``mark``: the packed object that ``unpack`` wants first in a list that it is to leave as it is. ``box`` and
    ``to_map`` make the value of a list and of the pairs of a map, as the hooks of ``unpack`` do.
    """
    pieces = _Pieces(memoryview(payload), unpack, mark, box, to_map, piece_bytes)
    value = pieces.item()
    if pieces.place != len(payload):
        raise ValueError("something follows the value")
    return value


class _Pieces:
    """Goes through a payload once. A list that is longer than a piece is read as several short ones."""

    __slots__ = ("_box", "_data", "_depth", "_mark", "_piece_bytes", "_to_map", "_unpack", "place")

    def __init__(
        self, data: memoryview, unpack: Callable[[bytes], Any], mark: bytes,
        box: Callable[[list[Any]], Any] | None, to_map: Callable[[list[tuple[Any, Any]]], Any] | None,
        piece_bytes: int,
    ) -> None:  # fmt: skip
        self._data = data
        self._unpack = unpack
        self._mark = mark
        self._box = box
        self._to_map = to_map
        self._piece_bytes = piece_bytes
        self._depth = 0
        self.place = 0

    def item(self) -> Any:
        """The next object."""
        size = self._size(b"")
        if size is not None:
            return self._take(b"", size)
        head = self._data[self.place]
        if 0x80 <= head <= 0x9F or 0xDC <= head <= 0xDF:
            return self._container(head)
        length = LENGTHS.get(head)
        if length is None:
            raise ValueError("the payload is incomplete")
        (count,) = length.unpack_from(self._data, self.place)
        return self._take(b"", length.size + (head in _EXTENSIONS) + count)

    def _container(self, head: int) -> Any:
        if self._depth == MAX_DEPTH:
            raise ValueError(f"what is long is nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        count = self._count(head)
        if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
            made = self._map(count)
        else:
            made = self._items(count)
            if self._box is not None:
                made = self._box(made)
        self._depth -= 1
        return made

    def _count(self, head: int) -> int:
        """The number of items, or pairs, of the container that begins here; `place` is behind that then."""
        count = head & 15
        if head >= 0xDC:
            (count,) = LENGTHS[head].unpack_from(self._data, self.place)
            self.place += LENGTHS[head].size
        else:
            self.place += 1
        return count

    def _items(self, count: int) -> list[Any]:
        """The next ``count`` objects."""
        items: list[Any] = []
        for some in self._pieces(count, b"\xdc", self._mark):
            if some is None:
                items.append(self.item())
            else:
                items += some
        return items

    def _map(self, count: int) -> Any:
        """The map of the next ``count`` pairs."""
        if self._to_map is not None:
            items = self._items(2 * count)
            return self._to_map(list(zip(items[::2], items[1::2], strict=True)))
        made: dict[Any, Any] = {}
        for some in self._pieces(count, b"\xde"):
            if some is None:
                key = self.item()
                made[key] = self.item()
            else:
                made.update(some)
        return made

    def _pieces(self, count: int, kind: bytes, mark: bytes = b"") -> Iterator[Any]:
        """The next ``count`` items or pairs, some at a time; None: the caller is to read the next one, it is long."""
        if count > len(self._data) - self.place:
            raise ValueError("the payload is incomplete")
        step = 256
        while count:
            step = min(step, count)
            head = kind + (step + bool(mark)).to_bytes(2, "big") + mark
            size = self._size(head)
            if size is None and step > 1:
                step = max(1, step // 8)
                continue
            if size is None:
                yield None
                size = self._piece_bytes
            else:
                yield self._take(head, size)
            count -= step
            step = max(1, min(_MANY_ITEMS, step * self._piece_bytes * 7 // (8 * size)))

    def _size(self, head: bytes) -> int | None:
        """How many bytes the object takes that ``head`` begins and what comes next continues; None: over a piece."""
        unpacker = Unpacker()
        unpacker.feed(head)
        unpacker.feed(self._data[self.place : self.place + self._piece_bytes])
        try:
            unpacker.skip()
        except OutOfData:
            return None
        return int(unpacker.tell()) - len(head)

    def _take(self, head: bytes, size: int) -> Any:
        data = self._data[self.place : self.place + size]
        if len(data) != size:
            raise ValueError("the payload is incomplete")
        self.place += size
        return self._unpack(head + bytes(data))


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


# ---------------------------------------------------------------- values that are one buffer and nothing else

Lone = tuple[bytes, Buffer]
MAX_LONE_KINDS = 1024  # dtypes and shapes of arrays; a peer may send any number of them

lone_forms: dict[type, Callable[[Any], Lone | None]] = {}  # by type: payload and buffer; None: the general way
lone_values: dict[bytes, Callable[[Buffer], Any]] = {}  # by payload: what makes the value of the buffer
lone_arguments: dict[bytes, Callable[[Buffer], Any]] = {}  # the same by the payload of a call with that one argument


def argument_of(payload: bytes) -> bytes:
    """The payload of a call with one argument, whose own payload as a value is ``payload``."""
    return b"".join((_ONE_ARGUMENT, payload[1:], _PACKED_NO_KEYWORDS))


_ONE_ARGUMENT = TAG + b"\x92"  # a list of two
_PACKED_NO_KEYWORDS = pack(_NO_KEYWORDS)


def value_of_argument(payload: bytes) -> bytes | None:
    """The reverse of `argument_of`; None if ``payload`` is none that it gives."""
    if payload[:2] != _ONE_ARGUMENT or payload[-1:] != _PACKED_NO_KEYWORDS:
        return None
    return TAG + payload[2:-1]


def note_lone(payload: bytes, read: Callable[[Buffer], Any]) -> None:
    """Remember how values with this payload are made of their buffer."""
    if len(lone_values) >= MAX_LONE_KINDS:
        lone_values.clear()
        lone_arguments.clear()
        _note_builtin()
    lone_values[payload] = read
    lone_arguments[argument_of(payload)] = read


def _lone_bytearray(value: bytearray) -> Lone | None:
    return (_LONE_BYTEARRAY, memoryview(bytes(value))) if len(value) > INLINE_LIMIT_BYTES else None


def _note_builtin() -> None:
    note_lone(LONE_VALUE, bytes)
    note_lone(_LONE_BYTEARRAY, bytearray_of)


LONE_VALUE = TAG + pack(PLACES[0])  # the payload of bytes that are in a buffer
LONE_ARGUMENT = argument_of(LONE_VALUE)
_LONE_BYTEARRAY = TAG + pack([MARK_BYTEARRAY, 0])
lone_forms[bytearray] = _lone_bytearray
_note_builtin()


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
