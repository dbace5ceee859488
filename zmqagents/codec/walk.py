"""The slow way from a value to its payload, which always knows the path of the place where it is.

It makes the same bytes as the encoder's fast way, but packs in Python one value after the other. It is taken when the
fast way has failed, to find the place and raise SerializationError with it, and when the value holds large bytes or a
bytearray at some depth, which the C packer would have packed in place.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any, NoReturn, Protocol

from msgpack import ExtType, Packer

from .. import errors
from ..errors import SerializationError
from .forms import (
    BYTES_TYPES,
    EXT_MARK,
    FLAT_TYPES,
    MARK_ARRAY,
    MARK_DEQUE,
    MARK_FROZENSET,
    MARK_OBJECT,
    MARK_PACKAGE,
    MARK_SET,
    MARK_STANDARD,
    MAX_DEPTH,
    TAG,
    Beside,
    NoForm,
    Withheld,
    name_of,
)

_WRAPPING = (MARK_ARRAY, MARK_STANDARD, MARK_PACKAGE)  # the place of a child in these is no place in the value


class Reducing(Protocol):
    """What the walk uses of the encoder: the reducers, and a note that the payload is tagged."""

    tagged: bool

    def reduce(self, value: Any) -> Any: ...

    def beside(self, text: str) -> Any: ...


class Walk:
    """One run over one value."""

    __slots__ = ("encoder", "inside", "out", "path", "what")

    def __init__(self, encoder: Reducing, what: str) -> None:
        self.encoder = encoder
        self.what = what
        self.out = Packer(strict_types=True, autoreset=False)
        self.path: list[str] = []
        self.inside: set[int] = set()  # ids of the values around the current place

    def value(self, value: Any, root: str) -> bytes:
        try:
            self._put(value, root)
        except RecursionError as exc:  # begun deep in the caller's own recursion
            self._fail("it is nested too deeply for what is left of the stack", cause=exc)
        return self._payload()

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        try:
            self.out.pack_array_header(len(args) + 1)
            for index, value in enumerate(args):
                self._put(value, f"args[{index}]")
            self.out.pack_map_header(len(kwargs))
            for name, value in kwargs.items():
                self._put(name, "kwargs")
                self._put(value, f"kwargs[{_text_of(name)}]")
        except RecursionError as exc:  # as above
            self._fail("it is nested too deeply for what is left of the stack", cause=exc)
        return self._payload()

    def _payload(self) -> bytes:
        payload: bytes = self.out.bytes()
        return TAG + payload if self.encoder.tagged else payload

    def _put(self, value: Any, step: str) -> None:
        """Append ``value``, which is ``step`` away from the current place."""
        self.path.append(step)
        self._put_here(value)
        self.path.pop()

    def _put_here(self, value: Any) -> None:
        kind = type(value)
        if kind is float or kind is bool or value is None:
            self.out.pack(value)
        elif kind in FLAT_TYPES or kind in BYTES_TYPES:
            item = self._reduced(value)
            self._put_item(self.encoder.beside(item) if type(item) is str else item)
        elif kind is Beside:
            self._put_item(value)
        else:
            if id(value) in self.inside:
                self._fail("it contains itself", value)
            if len(self.path) > MAX_DEPTH:
                self._fail(f"it is nested more than {MAX_DEPTH} levels deep", value)
            self.inside.add(id(value))
            self._put_item(value if kind is list or kind is dict else self._reduced(value))
            self.inside.discard(id(value))

    def _reduced(self, value: Any) -> Any:
        try:
            return self.encoder.reduce(value)
        except (NoForm, Withheld) as exc:
            self._fail(str(exc), value)
        except RecursionError:
            raise
        except Exception as exc:
            name, text = name_of(type(value)), errors.safe_text(exc)
            self._fail(f"converting the {name} raised {type(exc).__name__}: {text}", value, exc)

    def _put_item(self, item: Any) -> None:
        """Append what a reducer gave, or a list or dict."""
        kind = type(item)
        if kind is Beside:
            item, kind = item.leaf, ExtType
        if kind is dict:
            self._put_dict(item, "[{}]", _text_of)
        elif kind is not list:
            self.encoder.tagged |= kind is ExtType
            self.out.pack(item)
        elif item and type(item[0]) is ExtType and item[0].code == EXT_MARK:
            self.encoder.tagged = True
            self._put_box(item)
        elif set(map(type, item)) <= {float, bool, NoneType}:
            self.out.pack(item)
        else:
            self.out.pack_array_header(len(item))
            for index, child in enumerate(item):
                self._put(child, f"[{index}]")

    def _put_box(self, item: list[Any]) -> None:
        mark = item[0]
        self.out.pack_array_header(len(item))
        self.out.pack(mark)
        if mark is MARK_OBJECT:
            self._put(item[1], "")
            if type(item[2]) is dict:
                self._put_dict(item[2], ".{}", _field_of)
            else:
                self._put_here(item[2])
            for child in item[3:]:
                self._put_here(child)
            return
        skip = 1 if mark is MARK_DEQUE else 0  # its maxlen
        step = "{...}" if mark is MARK_SET or mark is MARK_FROZENSET else "" if mark in _WRAPPING else None
        for index, child in enumerate(item[1:]):
            self._put(child, f"[{index - skip}]" if step is None else step)

    def _put_dict(self, item: dict[Any, Any], form: str, text_of: Callable[[Any], str]) -> None:
        self.out.pack_map_header(len(item))
        for key, child in item.items():
            text = text_of(key)
            self._put(key, f" key {text}")
            self._put(child, form.format(text))

    def _fail(self, reason: str, value: Any = ..., cause: BaseException | None = None) -> NoReturn:
        path = "".join(self.path)
        path = path if len(path) <= 500 else f"{path[:400]} ... {path[-80:]}"
        type_name = "" if value is ... else name_of(type(value))
        raise SerializationError(f"{self.what}cannot send {path}: {reason}", path, type_name) from cause


def _text_of(key: Any) -> str:
    """A dictionary key for a path; its repr only where that is known to be short and harmless."""
    if type(key) is str or type(key) is bytes:
        return repr(key if len(key) <= 60 else key[:60])
    if type(key) in FLAT_TYPES and (type(key) is not int or key.bit_length() <= 128):
        return repr(key)
    return f"<{name_of(type(key))}>"


def _field_of(key: Any) -> str:
    return key if type(key) is str and key.isidentifier() and len(key) <= 60 else _text_of(key)
