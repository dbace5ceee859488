"""What an Arrow IPC stream may hold: the check before pyarrow or polars reads one.

Both readers trust much of what a stream says of itself: the sizes of compressed buffers, lengths of columns without
data, the depth of nested types. So a stream is refused that is compressed, that declares many more rows than it has
bits, whose buffers lie outside of it, or whose types are nested deeply. The format is Arrow's: each message is a
FlatBuffer (`Message.fbs`, `Schema.fbs`) and the body that it describes.
"""

from __future__ import annotations

import struct

from ...errors import RemoteProtocolError
from ..forms import Buffer

__all__ = ["check_stream"]

MAX_TYPE_DEPTH = 64
MAX_FREE_ROWS = 1 << 20  # a column of nulls has no data: so many rows are taken for nothing
_CONTINUED = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # types of messages


class _Table:
    """One table of a FlatBuffer. Whatever leads out of it raises struct.error."""

    def __init__(self, data: memoryview, place: int) -> None:
        self.data = data
        self.place = place
        self._fields = place - self.number("<i", place)

    def number(self, form: str, place: int) -> int:
        if place < 0:
            raise struct.error("before the beginning")
        (found,) = struct.unpack_from(form, self.data, place)
        return int(found)

    def field(self, index: int) -> int:
        """The place of a field, 0 if it is not there."""
        if 4 + 2 * index >= self.number("<H", self._fields):
            return 0
        offset = self.number("<H", self._fields + 4 + 2 * index)
        return self.place + offset if offset else 0

    def value(self, index: int, form: str) -> int:
        place = self.field(index)
        return self.number(form, place) if place else 0

    def table(self, index: int) -> _Table | None:
        place = self.field(index)
        return _Table(self.data, place + self.number("<I", place)) if place else None

    def vector(self, index: int, item_bytes: int) -> tuple[int, int]:
        """The place of the first item, and how many there are."""
        place = self.field(index)
        if not place:
            return 0, 0
        begin = place + self.number("<I", place)
        count = self.number("<I", begin)
        if begin + 4 + count * item_bytes > len(self.data):
            raise struct.error("a vector that is too long")
        return begin + 4, count


def check_stream(stream: Buffer) -> None:
    """Raise RemoteProtocolError unless ``stream`` is an Arrow IPC stream within the bounds."""
    data = memoryview(stream).cast("B")
    try:
        _check_messages(data)
    except struct.error as exc:
        raise RemoteProtocolError("not an Arrow stream") from exc


def _check_messages(data: memoryview) -> None:
    place, first = 0, True
    while place < len(data):
        if data[place : place + 4] != _CONTINUED:
            raise RemoteProtocolError("not an Arrow stream of a version that is read here")
        (size,) = struct.unpack_from("<i", data, place + 4)
        place += 8
        if size == 0:  # the end
            break
        if size < 0 or place + size > len(data):
            raise RemoteProtocolError("an Arrow stream that is cut off")
        head = data[place : place + size]
        message = _Table(head, _Table(head, 0).number("<I", 0) if size >= 4 else 0)
        body = message.value(3, "<q")
        place += size
        if body < 0 or place + body > len(data):
            raise RemoteProtocolError("an Arrow stream that is cut off")
        place += body
        _check_message(message, first, body, len(data))
        first = False
    if first:
        raise RemoteProtocolError("an Arrow stream without a schema")


def _check_message(message: _Table, first: bool, body: int, total: int) -> None:
    kind, inner = message.value(1, "<B"), message.table(2)
    if inner is None or (kind == _SCHEMA) != first or kind not in (_SCHEMA, _DICTIONARY, _BATCH):
        raise RemoteProtocolError("an Arrow stream must be a schema and then record batches")
    if kind == _SCHEMA:
        _check_schema(inner)
        return
    batch = inner.table(1) if kind == _DICTIONARY else inner
    if batch is None or batch.field(3):
        raise RemoteProtocolError("an Arrow stream must not be compressed")
    most = 8 * total + MAX_FREE_ROWS
    place, count = batch.vector(1, 16)
    lengths = [batch.value(0, "<q"), *(batch.number("<q", place + 16 * index) for index in range(count))]
    if not all(0 <= length <= most for length in lengths):
        raise RemoteProtocolError("an Arrow stream declares more rows than it can hold")
    place, count = batch.vector(2, 16)
    for index in range(count):
        offset, length = (batch.number("<q", place + 16 * index + 8 * part) for part in (0, 1))
        if offset < 0 or length < 0 or offset + length > body:
            raise RemoteProtocolError("an Arrow stream has a buffer outside of it")


def _check_schema(schema: _Table) -> None:
    if schema.value(0, "<h"):
        raise RemoteProtocolError("an Arrow stream must be little-endian")
    pending = [(schema, 1, 0)]
    left = len(schema.data) // 8  # fields: more can be there only if one stands in several places
    while pending:
        table, index, depth = pending.pop()
        place, count = table.vector(index, 4)
        left -= count
        if left < 0 or depth > MAX_TYPE_DEPTH:
            raise RemoteProtocolError("the types in an Arrow stream are nested too deeply")
        for number in range(count):
            at = place + 4 * number
            pending.append((_Table(table.data, at + table.number("<I", at)), 5, depth + 1))
