"""From a value to its payload and buffers.

**Speed.** First the C packer runs over the value, with a hook (`Encoder.default`) for what it does not know. Only
when that fails, or may have packed a bytearray or large bytes in place, `walk.Walk` goes over the value in Python: it
knows at each moment where it is, hence the path in the errors. So a conversion (``to_data``) may be called twice.

**Copies.** A value is taken as it is when it is encoded: bytes and read-only memory go out as they are; writable
memory (arrays, bytearray) is copied once, because the caller may change it while the frame is on its way.

Every function may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import IOBase
from itertools import islice
from types import AsyncGeneratorType, BuiltinFunctionType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from msgpack import ExtType, Packer

from .. import errors
from ..errors import MessageTooLarge, SerializationError
from .bounds import HARMLESS, check_structure, long_bytes, too_large
from .forms import (
    BESIDE,
    BESIDE_BYTES,
    BESIDE_FROM_BYTES,
    BESIDE_TEXT,
    BYTES_TYPES,
    EXT_BESIDE,
    EXT_PICKLE,
    FLAT_TYPES,
    INLINE_LIMIT_BYTES,
    KEEP_PACKER_BYTES,
    MAX_BUFFERS,
    MAX_EXCEPTION_DEPTH,
    PLACES,
    TAG,
    Beside,
    Buffer,
    Encoded,
    NoForm,
    Reducer,
    TaskRef,
    name_of,
)
from .plain import PIECE_BYTES, pack

if TYPE_CHECKING:
    from .walk import Walk

__all__ = ["encode", "encode_call", "encode_error"]


# ---------------------------------------------------------------- one value to what msgpack can pack
#
# A reducer gets the encoder and a value, and returns an ExtType, a list that begins with a mark, or a
# value of a native type. Children may be of any type.
#
# The reducers are loaded with the first value that msgpack does not know: they and the builders take 5 ms and 0.8 MiB,
# which most processes need not pay before they have begun to work.

_reducers: dict[type, Reducer] = {}  # those of `builtin`


def _load_reducers(kind: type) -> Reducer | None:
    global _reducers, _reducer_of
    from .builtin import REDUCERS
    from .classes.types import registry

    _reducers = REDUCERS
    _reducer_of = registry.reducer_of
    return REDUCERS.get(kind) or _reducer_of(kind)


_reducer_of: Callable[[type], Reducer | None] = _load_reducers  # of a class that is not in `_reducers`


_BOXES = frozenset({list, dict})
MANY_ITEMS = 4_096
FEW_ITEMS = 64  # of so few it is looked at whether one is long: that is cheap


def _is_long(item: Any) -> bool:
    return type(item) in _BOXES and len(item) > MANY_ITEMS


def hides_bytes(pending: list[Any]) -> bool:
    """Whether the C packer packed a bytearray, or large bytes, in place: somewhere below ``pending``.

    Dictionary keys are not looked at: they are hashable, and large bytes inside the payload are legal.
    """
    while pending:
        box = pending.pop()
        items = box.values() if type(box) is dict else box
        for kind in set(map(type, items)):
            large = kind is bytes and any(type(item) is bytes and len(item) > INLINE_LIMIT_BYTES for item in items)
            if large or kind is bytearray or kind is memoryview:
                return True
            if kind is list or kind is dict:
                pending += [item for item in items if type(item) is kind]
    return False


# ---------------------------------------------------------------- encoding


# What to do instead with what is no value; the first that fits.
_REMEDIES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((FunctionType, MethodType, BuiltinFunctionType), "make it a method of an agent, and send what it works on"),
    ((GeneratorType, AsyncGeneratorType), "send a list of its items; a method that yields them gives a stream"),
    ((CoroutineType,), "await it, and send what it gives"),
    ((IOBase,), "send its content, or its path"),
    ((object,), "register_type can teach it"),
)


def _remedy_for(kind: type) -> str:
    return next(remedy for kinds, remedy in _REMEDIES if issubclass(kind, kinds))


class Encoder:
    """One value on its way to msgpack; used again for the next value when it went well."""

    __slots__ = ("apart", "buffers", "level", "made", "packer", "pickler", "tagged", "tasks")

    def __init__(self, level: int = 0) -> None:
        self.level = level  # of exceptions among the arguments of exceptions
        self.packer = Packer(default=self.default, strict_types=True, buf_size=4096)
        self.reset()

    def reset(self, pickler: Callable[[Any], bytes] | None = None) -> None:
        self.buffers: list[Buffer] = []
        self.tasks: list[TaskRef] = []
        self.made: list[Any] = []  # boxes that came out of `default`; the C packer went into them
        self.apart: list[Buffer] | None = None  # what left a long payload, in its order; None: nothing has to
        self.tagged = False
        self.pickler = pickler

    def default(self, value: Any) -> Any:
        """The packer's hook for what it does not know."""
        self.tagged = True
        item = self.reduce(value)
        if type(item) is list or type(item) is dict:
            self.made.append(item)
        return item

    def reduce(self, value: Any) -> Any:
        kind = type(value)
        reducer = _reducers.get(kind) or _reducer_of(kind)
        try:
            if reducer is None:
                raise NoForm(f"{name_of(kind)} has no msgpack form ({_remedy_for(kind)})")
            return reducer(self, value)
        except NoForm:
            if self.pickler is None:
                raise
            return ExtType(EXT_PICKLE, self.pickler(value))

    def place(self, data: Buffer) -> Buffer | int | Beside:
        """``data`` itself, or where it was put: the index of a buffer, or its place among what goes beside."""
        if len(data) <= INLINE_LIMIT_BYTES or len(self.buffers) >= MAX_BUFFERS:
            if self.apart is not None and len(data) > BESIDE_FROM_BYTES:
                return self._beside(BESIDE_BYTES, data)
            return bytes(data)  # of bytes it is no copy; a view would be packed as one
        self.buffers.append(data)
        return len(self.buffers) - 1

    def place_memory(self, data: bytes) -> Buffer | int | Beside:
        """The same for what arrives as memory that can be written to."""
        placed = self.place(data)
        if type(placed) is int:
            self.buffers[placed] = memoryview(data)
        return placed

    def place_bytes(self, data: Buffer) -> Any:
        """The same for what arrives as bytes."""
        placed = self.place(data)
        if type(placed) is not int:
            return placed
        self.tagged = True
        return PLACES[placed]

    def beside(self, text: str) -> Any:
        """``text``, or what says where it is if long ones have to leave the payload."""
        if self.apart is None or len(text) <= BESIDE_FROM_BYTES:
            return text
        return self._beside(BESIDE_TEXT, text.encode())

    def _beside(self, letter: bytes, data: Buffer) -> Beside:
        assert self.apart is not None
        self.apart.append(data)
        return Beside(ExtType(EXT_BESIDE, BESIDE.pack(letter, len(data))))

    def argument(self, value: Any) -> Any:
        """For bytes, bytearray and memoryview at the top, where large ones mostly are: not packed in place."""
        if type(value) is bytes:
            return value if len(value) <= INLINE_LIMIT_BYTES else self.place_bytes(value)
        return self.default(value)

    def fast_value(self, value: Any) -> bytes | None:
        """The payload made in C; None: `Walk` has to make it, or to say why there is none."""
        kind = type(value)
        try:
            if kind in BYTES_TYPES:
                return self.finished(self.packer.pack(self.argument(value)), None)
            payload = self._packed(value) if kind is list or kind is dict else self.packer.pack(value)
        except Exception:  # whatever a conversion raises, or nesting without end: the walk finds the place
            return None
        return self.finished(payload, None if kind in FLAT_TYPES else [value])

    def fast_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        """The same for arguments: a list of the positional ones and the map of the others."""
        boxes = []
        items: list[Any] = []
        try:
            for value in args:
                kind = type(value)
                if kind in BYTES_TYPES:
                    value = self.argument(value)
                elif kind not in FLAT_TYPES:
                    boxes.append(value)
                items.append(value)
            if kwargs:
                kwargs = kwargs.copy()
                for name, value in kwargs.items():
                    kind = type(value)
                    if kind in BYTES_TYPES:
                        kwargs[name] = self.argument(value)
                    elif kind not in FLAT_TYPES:
                        boxes.append(value)
            items.append(kwargs)
            payload = self._packed(items) if boxes else self.packer.pack(items)
        except Exception:  # as above
            return None
        return self.finished(payload, boxes)

    def _packed(self, box: list[Any] | dict[Any, Any]) -> bytes:
        """The bytes of a list or map. What is long is packed piece by piece, as `plain.unpack_long` reads it."""
        packer: Any = self.packer
        items: Iterable[Any] = box.items() if isinstance(box, dict) else box
        if len(box) <= MANY_ITEMS:
            inner = box.values() if isinstance(box, dict) else box
            if len(box) > FEW_ITEMS or _BOXES.isdisjoint(map(type, inner)) or not any(map(_is_long, inner)):
                packed: bytes = packer.pack(box)
                return packed
        head = packer.pack_map_header if items is not box else packer.pack_array_header
        return b"".join((head(len(box)), *self._pieces(iter(items), items is not box)))

    def _pieces(self, items: Iterator[Any], is_map: bool) -> Iterator[bytes]:
        """The bytes of ``items``, of some at a time; of one at a time where these are long."""
        pack, step = self.packer.pack, 1
        while some := list(islice(items, step)):
            if step > 1:
                packed = pack(dict(some) if is_map else some)
                yield packed[1 if len(some) < 16 else 3 :]
            else:
                parts = some[0] if is_map else some
                packed = b"".join(self._packed(item) if type(item) in _BOXES else pack(item) for item in parts)
                yield packed
            step = max(1, min(4 * step, 16_384, step * PIECE_BYTES // (1 + len(packed))))

    def finished(self, payload: bytes, boxes: list[Any] | None) -> bytes | None:
        # A bytearray or large bytes in it would stand behind one of msgpack's three headers of bin.
        if boxes and (0xC4 in payload or 0xC5 in payload or 0xC6 in payload) and hides_bytes([boxes, *self.made]):
            return None
        return TAG + payload if self.tagged else payload

    def walk(self, what: str) -> Walk:
        """The slow way, begun anew."""
        from .walk import Walk

        self.reset(self.pickler)
        return Walk(self, what)

    def bounded(self, payload: bytes, limit: int, what: str, again: Callable[[Walk], bytes]) -> bytes:
        """``payload``, made ``again`` without its long texts and bytes if it is over ``limit``; or MessageTooLarge."""
        if len(payload) > limit:
            left = len(payload) - long_bytes(payload)
            if left > limit:
                raise too_large(left, limit, what)
            walk = self.walk(what)
            self.apart = []
            payload = again(walk)
            if self.apart:
                self.buffers.append(b"".join(self.apart))
        check_structure(payload, limit, what)
        return payload

    def nested(self, values: list[Any]) -> bytes | None:
        """``values`` as a payload of their own, None if they cannot go by themselves or are large."""
        if self.level >= MAX_EXCEPTION_DEPTH:
            return None
        inner = Encoder(self.level + 1)
        inner.pickler = self.pickler
        payload = inner.fast_value(values)
        if payload is None:
            try:
                payload = inner.walk("").value(values, "args")
            except SerializationError:
                return None
        alone = not inner.buffers and not inner.tasks and len(payload) <= INLINE_LIMIT_BYTES
        return payload if alone else None


idle: list[Encoder] = []  # append and pop are atomic; a conversion that itself encodes gets another one


def _encoder() -> Encoder:
    try:
        return idle.pop()
    except IndexError:
        return Encoder()


def _encoded(encoder: Encoder, payload: bytes, max_bytes: int | None, what: str) -> Encoded:
    if encoder.tagged:
        encoded = Encoded(payload, encoder.buffers, encoder.tasks)
        encoder.reset()
    else:
        encoded = Encoded(payload, (), ())
    if len(payload) <= KEEP_PACKER_BYTES:
        idle.append(encoder)
    if max_bytes is not None:
        size = len(payload) + sum(map(len, encoded.buffers)) if encoded.buffers else len(payload)
        if size > max_bytes:
            raise MessageTooLarge(f"{what}the message is {size:,} bytes, limit {max_bytes:,}", size, max_bytes)
    return encoded


def encode(
    value: Any, *, root: str = "value", max_bytes: int | None = None, max_structured_bytes: int | None = None,
    pickler: Callable[[Any], bytes] | None = None, what: str = "",
) -> Encoded:  # fmt: skip
    """``value``, ready to be sent.

    SerializationError names the place, beginning with ``root``, and the type found there; ``what`` stands
    before the text of every error. MessageTooLarge: payload and buffers together are over ``max_bytes``, or the
    payload alone, or the value in memory, is more than a receiver with ``max_structured_bytes`` takes.
    ``pickler`` is asked for what would fail otherwise; give one only where the receiver takes pickles.
    """
    encoder = _encoder()
    encoder.pickler = pickler
    payload = encoder.fast_value(value)
    if payload is None:
        payload = encoder.walk(what).value(value, root)
    if max_structured_bytes is not None and len(payload) > max_structured_bytes // HARMLESS:
        payload = encoder.bounded(payload, max_structured_bytes, what, lambda walk: walk.value(value, root))
    return _encoded(encoder, payload, max_bytes, what)


def encode_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, max_bytes: int | None = None,
    max_structured_bytes: int | None = None, pickler: Callable[[Any], bytes] | None = None, what: str = "",
) -> Encoded:  # fmt: skip
    """The arguments of a call, ready to be sent; as `encode`, with paths like ``kwargs['cfg'].lock``."""
    encoder = _encoder()
    encoder.pickler = pickler
    payload = encoder.fast_call(args, kwargs)
    if payload is None:
        payload = encoder.walk(what).call(args, kwargs)
    if max_structured_bytes is not None and len(payload) > max_structured_bytes // HARMLESS:
        payload = encoder.bounded(payload, max_structured_bytes, what, lambda walk: walk.call(args, kwargs))
    return _encoded(encoder, payload, max_bytes, what)


# ---------------------------------------------------------------- exceptions

MAX_ERROR_CONTENT_BYTES = 1 << 19  # of the arguments and attributes in one error reply


def encode_error(
    exc: BaseException, *, agent: str = "", method: str = "", call_id: str = "",
    pickler: Callable[[Any], bytes] | None = None,
) -> bytes:  # fmt: skip
    """The body of an error reply: what `errors.describe` says of ``exc``, with what it holds if that can be sent.

    Never raises, unless ``exc`` is of a class that breaks what it inherits beyond all use.
    """
    encoder = Encoder()
    encoder.pickler = pickler
    left = MAX_ERROR_CONTENT_BYTES

    def pack_some(values: list[Any]) -> bytes | None:
        nonlocal left
        payload = encoder.nested(values)
        if payload is None or len(payload) > left:
            return None
        left -= len(payload)
        return payload

    where: dict[str, Any] = {"agent": agent, "method": method, "call_id": call_id}
    data = pack(errors.describe(exc, pack=pack_some, pickle=pickler, **where))
    return data if len(data) <= 2 * MAX_ERROR_CONTENT_BYTES else pack(errors.describe_briefly(exc, **where))
