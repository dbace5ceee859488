"""TODO."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

from msgpack import ExtType

from ..errors import RemoteProtocolError

Buffer = bytes | memoryview

X = TypeVar("X")

INLINE_LIMIT_BYTES = 65_536  # buffers above this travel as frames of their own
MAX_BUFFERS = 64  # per value; further ones go inside the payload (frames.MAX_FRAMES leaves room for these)
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
    """Where an agent is. ``methods`` tells what each public method returns, by name."""

    server_id: str
    address: str
    agent_id: str
    class_name: str
    methods: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class TaskRef:
    """A result that may not be there yet, and the host that has or will have it."""

    task_id: str
    server_id: str
    address: str


def is_name(value: object) -> bool:
    """Whether an agent or a task can be called so: 1 to `MAX_TEXT` printable characters.

    The empty name is the host's own: a call to it is a management request.
    """
    return type(value) is str and 1 <= len(value) <= MAX_TEXT and value.isprintable()


def check_reference(ref: AgentRef | TaskRef) -> None:
    """Raise RemoteProtocolError for a reference that leads to no agent or task."""
    name = ref.agent_id if isinstance(ref, AgentRef) else ref.task_id
    if not is_name(name) or not is_name(ref.server_id):
        raise RemoteProtocolError("a reference with an id that nothing is called")
    if type(ref.address) is not str or not 1 <= len(ref.address) <= MAX_ADDRESS_CHARS or "\0" in ref.address:
        raise RemoteProtocolError("a reference with an address that is none")


# ``new_tuple(Reply, (code, body))`` is ``Reply(code, body)`` without the function in Python that makes it one.
new_tuple: Any = tuple.__new__


class Encoded(NamedTuple):
    """A value on its way: ``payload`` and the ``buffers`` that follow it, and ``tasks``, the results
    that it refers to at any depth, in the order met, one that is met twice given twice."""

    payload: bytes
    buffers: Sequence[Buffer]
    tasks: Sequence[TaskRef]


class NoForm(Exception):
    """There is no way to send a value; the text is the reason. Never leaves this module."""


class Ext(enum.IntEnum):
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


EXT_MARK, EXT_BUFFER, EXT_PICKLE = int(Ext.MARK), int(Ext.BUFFER), int(Ext.PICKLE)


def mark_of(letter: bytes) -> Any:
    return ExtType(EXT_MARK, letter)


MARK_TUPLE, MARK_SET, MARK_FROZENSET, MARK_DEQUE = mark_of(b"t"), mark_of(b"s"), mark_of(b"f"), mark_of(b"d")
MARK_RANGE, MARK_SLICE, MARK_FRACTION, MARK_BYTEARRAY = mark_of(b"r"), mark_of(b"l"), mark_of(b"q"), mark_of(b"b")
MARK_ARRAY, MARK_SCALAR, MARK_OBJECT, MARK_EXCEPTION = mark_of(b"a"), mark_of(b"g"), mark_of(b"o"), mark_of(b"x")
MARK_AGENT, MARK_TASK = mark_of(b"A"), mark_of(b"T")

FLAT_TYPES = frozenset({str, int, float, bool, NoneType})  # what cannot hold or be a buffer
BYTES_TYPES = frozenset({bytes, bytearray, memoryview})
NATIVE_TYPES = frozenset({*FLAT_TYPES, bytes, list, dict, tuple})  # no references, and nothing to be awaited


INDEX = struct.Struct(">H")


Reducer = Callable[["Encoding", Any], Any]
Resolve = Callable[[AgentRef | TaskRef], Any]


class Encoding(Protocol):
    """What a reducer may use of the value that is being encoded."""

    tasks: list[TaskRef]

    def place(self, data: Buffer) -> Buffer | int: ...
    def place_bytes(self, data: Buffer) -> Any: ...
    def nested(self, values: list[Any]) -> bytes | None: ...


class Decoding(Protocol):
    """What a builder may use of the value that is being decoded."""

    def take(self, place: Any) -> Buffer: ...
    def resolved(self, ref: AgentRef | TaskRef) -> Any: ...
    def nested(self, payload: Buffer) -> Any: ...


def name_of(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def no_extension(code: int, data: bytes) -> NoReturn:
    raise RemoteProtocolError(f"extension type {code} in a payload that is not tagged")


def expect(kind: type[X], child: Any) -> X:
    """``child``, which must be exactly a ``kind``."""
    if type(child) is not kind:
        raise RemoteProtocolError(f"{name_of(type(child))} where {name_of(kind)} was expected")
    return child


def items_of(child: Any) -> list[Any] | tuple[Any, ...]:
    """``child``, which must be a list or a tuple."""
    if type(child) is not list and type(child) is not tuple:
        raise RemoteProtocolError(f"{name_of(type(child))} where a list was expected")
    return child


def ints_of(*children: Any) -> tuple[int, ...]:
    for child in children:
        expect(int, child)
    return children


def all_str(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)
