"""What the modules of the codec have in common: the format, its bounds, and what one value on its way may be asked.

**The format.** A value travels as one *payload* and up to `MAX_BUFFERS` *buffers*, each a frame of its own. Values
that msgpack has by itself go as msgpack writes them: None, bool, int of 64 bits, float, str, bytes, list, dict (with
any hashable key). Such a payload is plain msgpack. Every other payload is *tagged*: it begins with 0xC1, the one byte
that msgpack never uses, and holds besides

* *leaves*: extension types, the code one of `Ext` (big ints, dates, paths);
* *boxes*: lists whose first item is a *mark* (the extension `Ext.MARK` with one letter). The packer goes on into the
  children of a box in C, so nothing is packed twice.

=============================  ===================================================================
tuple set frozenset deque      t s f d     items (deque: maxlen, items)
range slice Fraction           r l q       start stop step; numerator denominator
bytearray                      b           bytes, or the index of a buffer
numpy array, numpy scalar      a g         dtype, shape, order, bytes, index or items; dtype, bytes
a class with a name            o           name, plain form, what the plain form lacks
of the standard library        e           name, what its builder in `standard` takes
of a supported package         p           name, what its builder in `packages` takes
an exception                   x           `errors.describe`'s map, packed args or None
reference to agent, to task    A T         the fields of `AgentRef`, of `TaskRef`
=============================  ===================================================================

A payload that would be longer than the receiver takes is made once more: texts and bytes of more than
`BESIDE_FROM_BYTES` leave it for one buffer, the last, in their order (the leaf `Ext.BESIDE`). So the limit of a payload
is one of what has a structure.

**How the modules fit.** A *reducer* turns a value of one type into a leaf, a box or a native value; a *builder* makes
the value of a box again. `builtin`, `arrays` and `types` hold them and see an `Encoding` or a `Decoding`, never the
`encoder` or `decoder` that calls them.

**Bounds.** Nesting up to `MAX_DEPTH` always travels; msgpack itself ends at 1,024 levels. A number has at most
`MAX_NUMBER_BYTES`. A builder takes children of exactly the types that the table names, and no others: Python's own
constructors take much more, and ten bytes (a Decimal of 1e999999999, a range of 10**18) keep them busy for hours. A
length that a peer declares reserves nothing: msgpack sees to that from 1.2.4 on. `bounds` sees to keys that were chosen
to collide, and to what takes much more memory than bytes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from msgpack import ExtType

from ..errors import RemoteProtocolError

Buffer = bytes | memoryview | bytearray

X = TypeVar("X")

INLINE_LIMIT_BYTES = 32_768  # buffers above this travel as frames of their own
BESIDE_FROM_BYTES = 256  # what is longer leaves a payload that would be too long
MAX_BUFFERS = 64  # per value; further ones go inside the payload (wire.messages.MAX_FRAMES leaves room for these)
MAX_DEPTH = 128  # nesting that always travels; the C packer and unpacker end at 1024
MAX_TEXT = 255  # characters of an agent id, a server id, a method name or a task id
MAX_ADDRESS_CHARS = 512  # a host name has up to 253, a socket path up to 107 bytes
MAX_NUMBER_BYTES = 8_192  # of one int, Decimal or part of a Fraction: arithmetic on longer ones is a burden
MAX_EXCEPTION_DEPTH = 4  # exceptions among the arguments of exceptions
KEEP_PACKER_BYTES = 1 << 20  # a packer keeps its buffer: one that made more than this is dropped

TAGGED = 0xC1  # "never used" in the msgpack specification
TAG = bytes([TAGGED])  # what a payload begins with that is not plain msgpack


@dataclass(frozen=True, slots=True)
class AgentRef:
    """A reference to an agent: its id, its host and the host's address.

    ``methods`` maps each public method to what it returns (`agents.spec.MethodSpec.mark`).
    """

    server_id: str
    address: str
    agent_id: str
    class_name: str
    methods: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A reference to a result, which may still be pending, and to the host that has or will have it."""

    task_id: str
    server_id: str
    address: str


def is_name(value: object) -> bool:
    """Whether ``value`` may be the id of an agent or a task: a string of 1 to `MAX_TEXT` printable characters.

    The empty id means the host itself: a call to it is a management request.
    """
    return type(value) is str and 1 <= len(value) <= MAX_TEXT and value.isprintable()


def check_reference(ref: AgentRef | TaskRef) -> None:
    """Raise RemoteProtocolError unless both ids of ``ref`` are names and its address is a short text."""
    name = ref.agent_id if isinstance(ref, AgentRef) else ref.task_id
    if not is_name(name) or not is_name(ref.server_id):
        raise RemoteProtocolError.of_reference("the ids in a reference must be 1 to 255 printable characters")
    if type(ref.address) is not str or not 1 <= len(ref.address) <= MAX_ADDRESS_CHARS:
        raise RemoteProtocolError.of_reference("the address in a reference must be text of 1 to 512 characters")


# ``new_tuple(Reply, (code, body))`` is ``Reply(code, body)`` without the function in Python that makes it one.
new_tuple: Any = tuple.__new__


class Encoded(NamedTuple):
    """An encoded value: the payload and the buffers that follow it.

    ``tasks`` lists the results that the value refers to at any depth, in the order in which they were met; a result
    that was met twice stands there twice.
    """

    payload: bytes
    buffers: Sequence[Buffer]
    tasks: Sequence[TaskRef]


class NoForm(Exception):
    """A value cannot be sent; the text is the reason. `walk` makes it a SerializationError with the path."""


class Beside(NamedTuple):
    """Stands for bytes or a text that travel in the buffer of all that leaves a long payload."""

    leaf: ExtType


class Withheld(Exception):
    """The value is not to be sent, whatever form it could take."""


TEACH = "register_type with to_data and from_data can teach it"  # the remedy that many texts of NoForm end with


class Unknown:
    """Stands for an object of a class that the receiver does not know, until it is known what to do about it."""

    __slots__ = ("name", "plain")

    def __init__(self, name: str, plain: Any) -> None:
        self.name = name
        self.plain = plain


class Known(NamedTuple):
    """A class that the receiver can make objects of: its name on the wire, and what makes one of the parts."""

    cls: type
    name: str
    make: Callable[..., Any]


class Expected(Protocol):
    """The classes that annotations name."""

    def find(self, name: str) -> Known | None:
        """The class of this name on the wire."""

    def takes_plain(self, place: int | str | None) -> bool:
        """Whether the annotation of the parameter of this index or name, or 0 of a result, asks for the plain form.

        False for None, a value that has no annotation of its own.
        """


class Scope(NamedTuple):
    """What one receiver knows beside the types that are registered and trusted in its process."""

    expected: Expected | None = None
    trusted: tuple[str, ...] = ()  # names of packages, as `trust_types` takes them
    plain: bool = False  # an object of an unknown class arrives as its plain form
    imports: bool = True  # False: of the trusted packages only what is loaded; for threads that must not be kept


NO_SCOPE = Scope()


class Ext(enum.IntEnum):
    """The extension types of a tagged payload."""

    MARK = 1
    BUFFER = 2  # data: index of the buffer that holds the bytes
    INT = 3
    COMPLEX = 4
    DATETIME = 5
    DATE = 6
    TIME = 7
    TIMEDELTA = 8
    DECIMAL = 9
    UUID = 10
    PATH = 11
    TEXT = 12  # a string with lone surrogates
    ELLIPSIS = 13
    PICKLE = 14
    BESIDE = 15  # data: a letter, and how many bytes come next of the last buffer


EXT_MARK, EXT_BUFFER, EXT_PICKLE, EXT_BESIDE = int(Ext.MARK), int(Ext.BUFFER), int(Ext.PICKLE), int(Ext.BESIDE)


def mark_of(letter: bytes) -> Any:
    """The mark that begins a box."""
    return ExtType(EXT_MARK, letter)


MARK_TUPLE, MARK_SET, MARK_FROZENSET, MARK_DEQUE = mark_of(b"t"), mark_of(b"s"), mark_of(b"f"), mark_of(b"d")
MARK_RANGE, MARK_SLICE, MARK_FRACTION, MARK_BYTEARRAY = mark_of(b"r"), mark_of(b"l"), mark_of(b"q"), mark_of(b"b")
MARK_ARRAY, MARK_SCALAR, MARK_OBJECT, MARK_EXCEPTION = mark_of(b"a"), mark_of(b"g"), mark_of(b"o"), mark_of(b"x")
MARK_AGENT, MARK_TASK, MARK_STANDARD, MARK_PACKAGE = mark_of(b"A"), mark_of(b"T"), mark_of(b"e"), mark_of(b"p")

FLAT_TYPES = frozenset({str, int, float, bool, NoneType})  # they hold no other value, and are never a buffer
BYTES_TYPES = frozenset({bytes, bytearray, memoryview})
NATIVE_TYPES = frozenset({*FLAT_TYPES, bytes, list, dict, tuple})  # no references, and nothing to be awaited
INDEX = struct.Struct(">H")  # of a buffer, as `Ext.BUFFER` holds it
PLACES = tuple(ExtType(EXT_BUFFER, INDEX.pack(index)) for index in range(MAX_BUFFERS))  # bytes that are in a buffer
BESIDE = struct.Struct(">cQ")  # what `Ext.BESIDE` holds
BESIDE_TEXT, BESIDE_BYTES = b"t", b"b"

# From a value to a leaf, a box or a native value, whose children may be of any type.

Reducer = Callable[["Encoding", Any], Any]
Resolve = Callable[[AgentRef | TaskRef], Any]


class Encoding(Protocol):
    """What a reducer may use of the value that is being encoded."""

    tasks: list[TaskRef]
    pickler: Callable[[Any], bytes] | None

    def place(self, data: Buffer) -> Buffer | int | Beside:
        """``data`` itself if it is short, else the index of the buffer that now holds it, or what says where it is."""

    def place_memory(self, data: bytes) -> Buffer | int | Beside:
        """The same for data that is to arrive as memory that can be written to, in a buffer that is no ``bytes``."""

    def place_bytes(self, data: Buffer) -> Any:
        """The same for data that is to arrive as bytes."""

    def nested(self, values: list[Any]) -> bytes | None:
        """``values`` as a payload of their own; None if they cannot be sent, hold references or are large."""


class Decoding(Protocol):
    """What a builder may use of the value that is being decoded."""

    scope: Scope
    unpickler: Callable[[bytes], Any] | None

    def unknown(self, name: str, plain: Any) -> Any:
        """What stands for an object of a class that is not known here."""

    def require_known(self, children: Sequence[Any]) -> None:
        """Refuse ``children`` that hold an object of a class that is not known here."""

    def take(self, place: Any) -> Buffer:
        """The data that `Encoding.place` placed; a buffer can be taken once."""

    def resolved(self, ref: AgentRef | TaskRef) -> Any:
        """What the value holds in the place of ``ref``: a proxy or a result."""

    def nested(self, payload: Buffer) -> Any:
        """The values that `Encoding.nested` encoded."""

    def exception(self, name: str) -> type[BaseException] | None:
        """The exception class of this name, if it is known here."""

    def trusts(self, package: str) -> bool:
        """Whether this receiver trusts the types of a package."""


def name_of(cls: type) -> str:
    """The name of a class as error texts write it: ``int``, ``decimal.Decimal``."""
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def no_extension(code: int, data: bytes) -> NoReturn:
    """msgpack's hook for extension types in a payload that may have none."""
    raise RemoteProtocolError(f"extension type {code} in a payload that is not tagged")


# A child may be of any type, also one that `Decoding.resolved` has made: a proxy, whose attributes are calls, or a
# result, which waits when it is iterated over. So a builder looks at the type of a child first, and at nothing else
# of a child that has another type than it should.


def expect(kind: type[X], child: Any) -> X:
    """``child``, whose type must be exactly ``kind``; RemoteProtocolError if it is another."""
    if type(child) is not kind:
        raise RemoteProtocolError(f"{name_of(type(child))} where {name_of(kind)} was expected")
    return child


def items_of(child: Any) -> list[Any] | tuple[Any, ...]:
    """``child``, which must be a list or a tuple; RemoteProtocolError if it is neither."""
    if type(child) is not list and type(child) is not tuple:
        raise RemoteProtocolError(f"{name_of(type(child))} where a list was expected")
    return child


def ints_of(*children: Any) -> tuple[int, ...]:
    """``children``, which must all be ints; RemoteProtocolError if one is not."""
    for child in children:
        expect(int, child)
    return children


def bytearray_of(data: Buffer) -> bytearray:
    """``data`` itself if it came as a bytearray, else a copy."""
    return data if type(data) is bytearray else bytearray(data)


def writable(data: Buffer) -> bytearray | memoryview:
    """``data`` in memory that can be written to: itself if it is, else a copy."""
    if type(data) is bytearray or (type(data) is memoryview and not data.readonly):
        return data
    return bytearray(data)


def all_str(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)
