"""Exceptions as data, with arguments and attributes of any type that can be sent.

An exception travels as the map that `errors.describe` gives: names, texts, the members of a group, the cause. Its
arguments and its attributes are payloads of their own inside that map, so that what cannot be sent takes nothing else
with it: an exception always arrives. What the receiver does not know in them arrives in its plain form.

The same map is the body of an error reply (`failures`) and part of a value (`read_exception`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from .. import errors
from ..errors import RemoteProtocolError
from .forms import MARK_EXCEPTION, Decoding, Encoding, expect

__all__ = ["check_description", "read_exception", "rebuilt", "reduce_exception"]


def reduce_exception(encoder: Encoding, exc: BaseException) -> Any:
    """The reducer of every exception."""
    where: dict[str, Any] = {}
    if isinstance(exc, errors.CallError):
        where = {"agent": exc.agent, "method": exc.method, "call_id": exc.call_id}
    return [MARK_EXCEPTION, errors.describe(exc, pack=encoder.nested, pickle=encoder.pickler, **where)]


def read_exception(decoder: Decoding, data: Any) -> BaseException:
    """The builder of `MARK_EXCEPTION`."""
    check_description(data, 0)
    return rebuilt(decoder, data, from_agent=False)


def rebuilt(decoder: Decoding, data: dict[str, Any], *, from_agent: bool) -> Exception:
    """The exception that a map of `errors.describe` says, which was checked. Never raises."""
    pickled: dict[str, type[BaseException]] = {}
    if decoder.unpickler is not None:
        _add_pickled(pickled, decoder.unpickler, data, 0)

    def find(name: str) -> type[BaseException] | None:
        return pickled.get(name) or decoder.exception(name)

    return errors.rebuild(data, from_agent=from_agent, unpack=decoder.nested, find=find)


def _add_pickled(
    found: dict[str, type[BaseException]], unpickler: Callable[[bytes], Any], data: dict[str, Any], depth: int
) -> None:
    """The classes that came along as pickles, by name."""
    if "class" in data:
        with contextlib.suppress(Exception):  # its module cannot be imported here
            cls = unpickler(data["class"])
            if isinstance(cls, type) and issubclass(cls, BaseException):
                found[data["type"]] = cls
    if depth < errors.MAX_GROUP_DEPTH:
        for member in (*data.get("group", ()), *filter(None, [data.get("cause")])):
            _add_pickled(found, unpickler, member, depth + 1)


_DESCRIBED: dict[str, type] = {
    **dict.fromkeys(("type", "message", "traceback", "agent", "method", "call_id"), str),
    "group": list, "fields": dict, "cause": dict, "bases": list, "notes": list,
}  # fmt: skip


def check_description(data: Any, depth: int) -> None:
    """Refuse a map that `errors.describe` does not give."""
    for key, child in expect(dict, data).items():
        if type(key) is str and key in _DESCRIBED:
            expect(_DESCRIBED[key], child)
    for key in ("args", "attributes", "class"):
        expect(bytes, data.get(key, b""))
    for name in (*data.get("bases", ()), *data.get("notes", ())):
        expect(str, name)
    if not {*map(type, data.get("fields", {}).values())} <= {int, float, str, list}:
        raise RemoteProtocolError("a field of an exception must be a number, text or a list")
    if depth < errors.MAX_GROUP_DEPTH:  # those below that are not made
        for member in (*data.get("group", ()), *filter(None, [data.get("cause")])):
            check_description(member, depth + 1)
