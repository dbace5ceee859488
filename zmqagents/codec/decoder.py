"""From a payload and its buffers to the value.

A payload that is not tagged is left to msgpack. In a tagged one two hooks of the C unpacker build what msgpack does
not have: `Decoder.leaf` for extension types, `Decoder.box` for every list that ends, innermost first.

The receiver rebuilds only types that it knows (`types`), imports nothing by a name from the wire, and unpickles
nothing unless the caller passes an ``unpickler``. Whatever is wrong with the data ends in RemoteProtocolError.

Large ``bytes`` come in without a copy when their frame is ``bytes``. Every function may be called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgpack import unpackb

from ..errors import RemoteProtocolError
from .arrays import read_array, read_numpy_scalar
from .builtin import BUILDERS, LEAVES
from .forms import (
    EXT_BUFFER,
    EXT_MARK,
    EXT_PICKLE,
    INDEX,
    MARK_ARRAY,
    MARK_OBJECT,
    MARK_SCALAR,
    MAX_EXCEPTION_DEPTH,
    TAG,
    TAGGED,
    AgentRef,
    Buffer,
    Resolve,
    TaskRef,
    all_str,
    no_extension,
)
from .plain import why_not_decoded
from .types import read_object


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

    __slots__ = ("buffers", "level", "open", "resolve", "unpickler")

    def __init__(
        self, buffers: Sequence[Buffer], resolve: Resolve | None, unpickler: Callable[[bytes], Any] | None,
        level: int = 0,
    ) -> None:  # fmt: skip
        self.buffers: list[Buffer | None] = list(buffers)
        self.resolve = resolve
        self.unpickler = unpickler
        self.level = level
        self.open = 0  # marks that were read and whose box was not built yet

    def read(self, payload: Buffer) -> Any:
        if payload[0] != TAGGED:
            value = unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        else:
            inner = memoryview(payload)[1:]
            value = unpackb(inner, strict_map_key=False, timestamp=3, ext_hook=self.leaf, list_hook=self.box)
        if self.open:
            raise RemoteProtocolError("a mark stands where it is not the first item of a list")
        if any(buffer is not None for buffer in self.buffers):
            raise RemoteProtocolError("the message has a buffer that the value does not refer to")
        return value

    def leaf(self, code: int, data: bytes) -> Any:
        if code == EXT_MARK:
            self.open += 1
            return MARKS[data]
        if code == EXT_BUFFER:
            return bytes(self.take(*INDEX.unpack(data)))  # bytes of bytes is no copy
        if code == EXT_PICKLE:
            if self.unpickler is None:
                raise RemoteProtocolError("pickled value refused: this side takes no pickles from this peer")
            return self.unpickler(data)
        return LEAVES[code](data)

    def box(self, items: list[Any]) -> Any:
        if items and type(items[0]) is Mark:
            self.open -= 1
            return items[0].build(self, *items[1:])
        return items

    def take(self, place: Any) -> Buffer:
        """Bytes that stand in the payload, or the buffer of this index, which can be taken once."""
        if type(place) is bytes:
            return place
        buffer = self.buffers[place] if type(place) is int and 0 <= place < len(self.buffers) else None
        if buffer is None:
            raise RemoteProtocolError("the value refers to a buffer that is not there or was taken before")
        self.buffers[place] = None
        return buffer

    def nested(self, payload: Buffer) -> Any:
        """The value of a payload inside this one: the arguments of an exception."""
        if self.level >= MAX_EXCEPTION_DEPTH:
            raise RemoteProtocolError("exceptions are nested more than 4 deep")
        return Decoder((), self.resolve, self.unpickler, self.level + 1).read(payload)

    def resolved(self, ref: AgentRef | TaskRef) -> Any:
        if self.resolve is None:
            return ref
        try:
            return self.resolve(ref)
        except BaseException as exc:
            raise Passing(exc) from None


MARKS = {letter: Mark(build) for letter, build in BUILDERS.items()} | {
    MARK_ARRAY.data: Mark(read_array),
    MARK_SCALAR.data: Mark(read_numpy_scalar),
    MARK_OBJECT.data: Mark(read_object),
}


def decode(
    payload: Buffer, buffers: Sequence[Buffer] = (), *,
    resolve: Resolve | None = None, unpickler: Callable[[bytes], Any] | None = None,
) -> Any:  # fmt: skip
    """The value that `encode` put into ``payload`` and ``buffers`` (bytes, or memoryviews of bytes).

    ``resolve`` turns each reference into what the value is to hold (without it, the reference itself);
    what it raises comes out as it is. RemoteProtocolError for everything that is wrong with the data, a
    pickled part without ``unpickler`` included.
    """
    try:
        if payload[0] != TAGGED and not buffers:
            return unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        return Decoder(buffers, resolve, unpickler).read(payload)
    except RemoteProtocolError:
        raise
    except Passing as passing:
        error = passing.error
    except Exception as exc:  # truncated, garbage, an unhashable key, more nesting than the unpacker takes ...
        raise RemoteProtocolError(why_not_decoded(exc)) from exc
    try:
        raise error
    finally:
        del error  # it would hold this frame, and the frame it


def decode_call(
    payload: Buffer, buffers: Sequence[Buffer] = (), *,
    resolve: Resolve | None = None, unpickler: Callable[[bytes], Any] | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """The arguments that `encode_call` put into ``payload`` and ``buffers``; as `decode`."""
    if buffers or payload[:1] == TAG:
        items = decode(payload, buffers, resolve=resolve, unpickler=unpickler)
    else:  # what `decode` does with it, for one function call less
        try:
            items = unpackb(payload, strict_map_key=False, timestamp=3, ext_hook=no_extension)
        except RemoteProtocolError:
            raise
        except Exception as exc:
            raise RemoteProtocolError(why_not_decoded(exc)) from exc
    if type(items) is not list or not items or type(items[-1]) is not dict:
        raise RemoteProtocolError("the arguments of a call must be a list that ends with a map")
    kwargs = items.pop()
    if kwargs and not all_str(kwargs):
        raise RemoteProtocolError("the name of a keyword argument must be text")
    return tuple(items), kwargs
