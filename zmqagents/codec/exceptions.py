"""Exceptions as data, with arguments and attributes of any type that can be sent.

An exception travels as the map that `errors.describe` gives: names, texts, the members of a group, the cause. Its
arguments and its attributes are payloads of their own inside that map, so that what cannot be sent takes nothing else
with it: an exception always arrives. What the receiver does not know in them arrives in its plain form.

The same map is the body of an error reply (`failures`) and part of a value (`read_exception`).
"""

from __future__ import annotations

from typing import Any

from .. import errors
from ..errors import RemoteProtocolError
from .forms import MARK_EXCEPTION, Decoding, Encoding, expect

__all__ = ["check_description", "read_exception", "reduce_exception"]


def reduce_exception(encoder: Encoding, exc: BaseException) -> Any:
    """The reducer of every exception."""
    where: dict[str, str] = {}
    if isinstance(exc, errors.CallError):
        where = {"agent": exc.agent, "method": exc.method, "call_id": exc.call_id}
    return [MARK_EXCEPTION, errors.describe(exc, pack=encoder.nested, **where)]


def read_exception(decoder: Decoding, data: Any) -> BaseException:
    """The builder of `MARK_EXCEPTION`."""
    check_description(data, 0)
    return errors.rebuild(data, from_agent=False, unpack=decoder.nested, find=decoder.exception)


_DESCRIBED: dict[str, type] = {
    **dict.fromkeys(("type", "message", "traceback", "agent", "method", "call_id"), str),
    "group": list, "fields": dict, "cause": dict, "bases": list, "notes": list,
}  # fmt: skip


def check_description(data: Any, depth: int) -> None:
    """Refuse a map that `errors.describe` does not give."""
    for key, child in expect(dict, data).items():
        if type(key) is str and key in _DESCRIBED:
            expect(_DESCRIBED[key], child)
    for key in ("args", "attributes"):
        expect(bytes, data.get(key, b""))
    for name in (*data.get("bases", ()), *data.get("notes", ())):
        expect(str, name)
    if not {*map(type, data.get("fields", {}).values())} <= {int, float, str, list}:
        raise RemoteProtocolError("a field of an exception must be a number, text or a list")
    if depth < errors.MAX_GROUP_DEPTH:  # those below that are not made
        for member in (*data.get("group", ()), *filter(None, [data.get("cause")])):
            check_description(member, depth + 1)
