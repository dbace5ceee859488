"""From a payload and its buffers to the value.

A payload that is not tagged is left to msgpack. In a tagged one two hooks of the C unpacker build what msgpack does
not have: `Decoder.leaf` for extension types, `Decoder.box` for every list that ends, innermost first.

The receiver rebuilds only types that it knows (`types`), imports nothing by a name from the wire, and unpickles
nothing unless the caller passes an ``unpickler``. Whatever is wrong with the data ends in RemoteProtocolError.

Large ``bytes`` come in without a copy when their frame is ``bytes``. Every function may be called from any thread.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from msgpack import ExtType, packb, unpackb

from ..errors import RemoteProtocolError, SerializationError, safe_text
from .bounds import SHORT_BYTES, map_of, spread
from .builtin import BUILDERS, LEAVES
from .classes.types import find_exception, read_object, registry
from .classes.unknown import refuse_in, settled
from .exceptions import check_description, rebuilt
from .forms import (
    BESIDE,
    BESIDE_TEXT,
    EXT_BESIDE,
    EXT_BUFFER,
    EXT_MARK,
    EXT_PICKLE,
    INDEX,
    MARK_ARRAY,
    MARK_FROZENSET,
    MARK_OBJECT,
    MARK_PACKAGE,
    MARK_SCALAR,
    MARK_SET,
    MARK_SLICE,
    MARK_STANDARD,
    MAX_EXCEPTION_DEPTH,
    NO_SCOPE,
    TAG,
    TAGGED,
    AgentRef,
    Buffer,
    Resolve,
    Scope,
    TaskRef,
    Unknown,
    all_str,
)
from .packages import read_package
from .plain import LONG_BYTES, NO_CALL, NO_NAME, pack, unpack_long, unpack_plain, value_of_argument, why_not_decoded
from .standard import read_standard

MAX_NESTED_BYTES = 4_194_304  # of what all exceptions in one value hold


class Passing(BaseException):
    """Carries an error of ``resolve`` out through the unpacker: it is the caller's error, not the peer's."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Mark:
    """Stands first in a box until the box is built. A mark that is anywhere else is an error of the peer."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self.build = build


class Decoder:
    """One tagged value on its way from msgpack. Its two hooks are called by the C unpacker, innermost first."""

    __slots__ = (
        "buffers", "left", "level", "nested_bytes", "open", "place", "resolve", "scope", "unpickler", "unsettled",
    )  # fmt: skip

    def __init__(
        self, buffers: Sequence[Buffer], resolve: Resolve | None, unpickler: Callable[[bytes], Any] | None,
        scope: Scope, level: int = 0,
    ) -> None:  # fmt: skip
        self.scope = scope
        self.unsettled = False  # whether an `Unknown` is somewhere in the value
        self.buffers: list[Buffer | None] = list(buffers)
        self.left = len(buffers)  # buffers that were not taken yet
        self.resolve = resolve
        self.unpickler = unpickler
        self.level = level
        self.open = 0  # marks that were read and whose box was not built yet
        self.place = 0  # of what comes next of the buffer of all that left the payload
        self.nested_bytes = 0

    def read(self, payload: Buffer) -> Any:
        if payload[0] != TAGGED:
            value = unpack_plain(payload) if len(payload) <= LONG_BYTES else unpack_long(payload, unpack_plain)
        else:
            inner = memoryview(payload)[1:]
            maps = map_of if len(payload) > SHORT_BYTES else None
            unpack = functools.partial(
                unpackb, strict_map_key=False, timestamp=3, ext_hook=self.leaf, list_hook=self.box,
                object_pairs_hook=maps,
            )  # fmt: skip
            if len(payload) <= LONG_BYTES:
                value = unpack(inner)
            else:
                value = unpack_long(inner, unpack, mark=_PIECE, box=self.box, to_map=map_of)
        if self.open:
            raise RemoteProtocolError("a mark stands where it is not the first item of a list")
        if self.place and self.place == len(self.buffers[-1] or b""):
            self.left -= 1
        if self.left:
            raise RemoteProtocolError("the message has a buffer that the value does not refer to")
        return value

    def leaf(self, code: int, data: bytes) -> Any:
        if code == EXT_MARK:
            self.open += 1
            return MARKS[data]
        if code == EXT_BUFFER:
            return bytes(self.take(*INDEX.unpack(data)))  # bytes of bytes is no copy
        if code == EXT_BESIDE:
            return self.next_beside(*BESIDE.unpack(data))
        if code == EXT_PICKLE:
            if self.unpickler is None:
                raise RemoteProtocolError("pickled value refused: this side takes no pickles from this peer")
            try:
                return self.unpickler(data)
            except Exception as exc:
                text = f"a pickled value cannot be made again here: {type(exc).__name__}: {safe_text(exc)}"
                raise SerializationError(text) from exc
        return LEAVES[code](data)

    def box(self, items: list[Any]) -> Any:
        if items and type(items[0]) is Mark:
            self.open -= 1
            return items[0].build(self, *items[1:])
        return items

    def unknown(self, name: str, plain: Any) -> Any:
        """What stands for an object of a class that is not known here."""
        if self.scope.plain:
            return plain
        self.unsettled = True
        return Unknown(name, plain)

    def require_known(self, children: Sequence[Any]) -> None:
        """Refuse ``children`` that hold an object of a class that is not known here."""
        if self.unsettled:
            refuse_in(children)

    def exception(self, name: str) -> type[BaseException] | None:
        """The exception class of this name, if it is known here."""
        return find_exception(name, self.scope)

    def trusts(self, package: str) -> bool:
        """Whether this receiver trusts the types of a package."""
        return package in self.scope.trusted or package in registry.trusted

    def take(self, place: Any) -> Buffer:
        """Bytes that stand in the payload, or the buffer of this index, which can be taken once."""
        if type(place) is bytes:
            return place
        buffer = self.buffers[place] if type(place) is int and 0 <= place < len(self.buffers) else None
        if buffer is None:
            raise RemoteProtocolError("the value refers to a buffer that is not there or was taken before")
        self.buffers[place] = None
        self.left -= 1
        return buffer

    def next_beside(self, letter: bytes, size: int) -> str | bytes:
        """The next ``size`` bytes of the last buffer, which holds what left the payload; no byte is given twice."""
        place, buffer = self.place, self.buffers[-1] if self.buffers else None
        if buffer is None or not 0 < size <= len(buffer) - place:
            raise RemoteProtocolError("the value refers to bytes that are not there or were taken before")
        self.place += size
        part = memoryview(buffer)[place : place + size]
        return str(part, "utf-8") if letter == BESIDE_TEXT else bytes(part)

    def nested(self, payload: Buffer) -> Any:
        """The value of a payload inside this one: what an exception holds. What is not known arrives in plain form."""
        self.nested_bytes += len(payload)
        if self.nested_bytes > MAX_NESTED_BYTES:  # `bounds` counts a payload inside a payload as bytes
            raise RemoteProtocolError(f"exceptions hold more than {MAX_NESTED_BYTES:,} bytes")
        if self.level >= MAX_EXCEPTION_DEPTH:
            raise RemoteProtocolError("exceptions are nested more than 4 deep")
        inner = Decoder((), self.resolve, self.unpickler, self.scope, self.level + 1)
        value = inner.read(payload)
        return settled(value, "", True) if inner.unsettled else value

    def resolved(self, ref: AgentRef | TaskRef) -> Any:
        if self.resolve is None:
            return ref
        try:
            return self.resolve(ref)
        except BaseException as exc:
            raise Passing(exc) from None


def _of_known(build: Callable[..., Any]) -> Callable[..., Any]:
    """A builder whose value `settled` cannot look into, so that it must hold no unknown object."""

    def build_of_known(decoder: Decoder, *children: Any) -> Any:
        decoder.require_known(children)
        return build(decoder, *children)

    return build_of_known


def _read_array(decoder: Decoder, *parts: Any) -> Any:
    from .arrays import read_array  # here, with the first array: most processes see none

    return read_array(decoder, *parts)


def _read_scalar(decoder: Decoder, *parts: Any) -> Any:
    from .arrays import read_numpy_scalar

    return read_numpy_scalar(decoder, *parts)


def _find_reader(payload: bytes | None) -> Callable[[Buffer], Any] | None:
    """`arrays.find_reader`, for what begins as an array does."""
    if payload is None or payload[: len(_ARRAY_HEAD)] != _ARRAY_HEAD:
        return None
    from .arrays import find_reader

    return find_reader(payload)


_ARRAY_HEAD = TAG + pack([MARK_ARRAY, 0, 0, 0, 0])[:4]

MARKS = {letter: Mark(build) for letter, build in BUILDERS.items()} | {
    MARK_SLICE.data: Mark(_of_known(BUILDERS[MARK_SLICE.data])),
    MARK_STANDARD.data: Mark(_of_known(read_standard)),
    MARK_ARRAY.data: Mark(_of_known(_read_array)),
    MARK_SCALAR.data: Mark(_read_scalar),
    MARK_PACKAGE.data: Mark(_of_known(read_package)),
    MARK_OBJECT.data: Mark(read_object),
    MARK_SET.data: Mark(spread(BUILDERS[MARK_SET.data])),
    MARK_FROZENSET.data: Mark(spread(BUILDERS[MARK_FROZENSET.data])),
}


# Of the lists that `unpack_long` makes of a long one. No peer can know it.
_TOKEN = os.urandom(8).hex().encode()
_PIECE = packb(ExtType(EXT_MARK, _TOKEN))
MARKS[_TOKEN] = Mark(lambda _, *items: list(items))


def decode_tagged(
    payload: Buffer, buffers: Sequence[Buffer], resolve: Resolve | None,
    unpickler: Callable[[bytes], Any] | None, scope: Scope, root: str, place: int | None,
) -> Any:  # fmt: skip
    """The value of any payload; see `decode`."""
    if len(buffers) == 1 and type(payload) is bytes and (read := _find_reader(payload)) is not None:
        return read(buffers[0])
    value, unsettled = _decoded(payload, buffers, resolve, unpickler, scope)
    if unsettled:
        expected = scope.expected
        return settled(value, root, expected is not None and expected.takes_plain(place))
    return value


def _decoded(
    payload: Buffer, buffers: Sequence[Buffer], resolve: Resolve | None,
    unpickler: Callable[[bytes], Any] | None, scope: Scope,
) -> tuple[Any, bool]:  # fmt: skip
    """The value of any payload, and whether an `Unknown` is in it."""
    try:
        decoder = Decoder(buffers, resolve, unpickler, scope)
        return decoder.read(payload), decoder.unsettled
    except (RemoteProtocolError, SerializationError):
        raise
    except Passing as passing:
        error = passing.error
    except Exception as exc:  # as above
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    try:
        raise error
    finally:
        del error  # it would hold this frame, and the frame it


def decode_tagged_call(
    payload: Buffer, buffers: Sequence[Buffer], resolve: Resolve | None,
    unpickler: Callable[[bytes], Any] | None, scope: Scope,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """The arguments in any payload; see `decode_call`."""
    if len(buffers) == 1 and type(payload) is bytes and (read := _find_reader(value_of_argument(payload))) is not None:
        return (read(buffers[0]),), {}
    items, unsettled = _decoded(payload, buffers, resolve, unpickler, scope)
    if type(items) is not list or not items or type(items[-1]) is not dict:
        raise RemoteProtocolError(NO_CALL)
    kwargs = items.pop()
    if kwargs and not all_str(kwargs):
        raise RemoteProtocolError(NO_NAME)
    if unsettled:
        plain = scope.expected.takes_plain if scope.expected is not None else lambda _: False
        items = [settled(item, f"args[{place}]", plain(place)) for place, item in enumerate(items)]
        kwargs = {name: settled(item, f"kwargs[{name!r}]", plain(name)) for name, item in kwargs.items()}
    return tuple(items), kwargs


def decode_error(
    data: Any, *, from_agent: bool, unpickler: Callable[[bytes], Any] | None = None, scope: Scope = NO_SCOPE
) -> Exception:
    """The exception that `encode_error` described; ``data`` is the unpacked body. Never raises."""
    if type(data) is not dict:
        return RemoteProtocolError("an error that is no map")
    try:
        check_description(data, 0)
    except RemoteProtocolError as exc:
        return RemoteProtocolError(f"an error that cannot be read: {exc}")
    decoder = Decoder((), None, unpickler, scope)
    return rebuilt(decoder, data, from_agent=from_agent)
