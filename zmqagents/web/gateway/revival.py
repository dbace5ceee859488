"""JSON into the values that a method takes (`revive`), and what a method gives into JSON (`plain`).

JSON has no bytes, dates or objects of classes. The schema of an argument says what a text or an object stands for, by
its ``x-python`` (`agents.schemas`); an object of a class is sent under the name of that class, which this process need
not have.
"""

from __future__ import annotations

import base64
import binascii
import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ...agents.schemas.hints import MARK
from ...codec.forms import AgentRef, TaskRef, Unknown

__all__ = ["NotRevived", "dumps", "plain", "revive"]


class NotRevived(ValueError):
    """A value is not what its schema says it stands for."""


def _bytes_of(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _without_z(text: str) -> str:
    """A moment as every Python reads it: before 3.11 none knows the letter for the zone of UTC."""
    return f"{text[:-1]}+00:00" if text.endswith(("Z", "z")) else text


def _datetime_of(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(_without_z(text))


def _time_of(text: str) -> datetime.time:
    return datetime.time.fromisoformat(_without_z(text))


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "bytes": _bytes_of, "datetime": _datetime_of, "date": datetime.date.fromisoformat, "time": _time_of,
    "uuid": uuid.UUID, "decimal": decimal.Decimal, "path": pathlib.Path, "float": float, "tuple": tuple, "set": set,
    "frozenset": frozenset,
}  # fmt: skip


def revive(schema: Any, value: Any, fits: Callable[[Any, Any], bool]) -> Any:
    """What ``value``, which ``schema`` allows, stands for. ``fits``: whether a schema allows a value.

    NotRevived: a text says no date, say.
    """
    if not isinstance(schema, Mapping) or not schema or value is None:
        return value
    if "anyOf" in schema:
        chosen = next((each for each in schema["anyOf"] if fits(each, value)), None)
        return revive(chosen, value, fits)
    if isinstance(value, list):
        rows = schema.get("prefixItems")
        items = schema.get("items")
        inner = [rows[n] if rows and n < len(rows) else items for n in range(len(value))]
        value = [revive(each, item, fits) for each, item in zip(inner, value, strict=True)]
    elif isinstance(value, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties")
        value = {key: revive(named.get(key, others), item, fits) for key, item in value.items()}
    elif isinstance(value, float) and schema.get("type") == "integer":
        return int(value)
    mark = schema.get(MARK)
    return value if mark is None else _made(mark, value)


def _made(mark: str, value: Any) -> Any:
    maker = _MAKERS.get(mark)
    if maker is None:
        return Unknown(mark, value)
    try:
        return maker(value)
    except (ValueError, TypeError, ArithmeticError, binascii.Error) as exc:
        raise NotRevived(f"{value!r:.80} is no {mark}") from exc


# ---------------------------------------------------------------- into JSON


def dumps(value: Any) -> bytes:
    """``value`` as JSON."""
    return json.dumps(plain(value), allow_nan=False, separators=(",", ":")).encode("ascii")


_AS_IS = (str, bool, type(None))
_AS_LIST = (list, tuple, set, frozenset, collections.deque, range)


def plain(value: Any) -> Any:
    """``value`` in what JSON has: bytes as base64, moments as ISO 8601, no number that is none."""
    kind = type(value)
    if kind in _AS_IS or kind is int:
        return value
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict:
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, _AS_LIST):
        return [plain(item) for item in value]
    return _plain_rare(value)


def _key(key: Any) -> str:
    return key if type(key) is str else str(plain(key))


def _plain_rare(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, AgentRef):
        return {"agent_id": value.agent_id, "class": value.class_name}
    if isinstance(value, TaskRef):
        return {"task_id": value.task_id}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, int, float)):  # of a subclass
        return plain(next(base(value) for base in (str, int, float) if isinstance(value, base)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    as_list = getattr(value, "tolist", None)  # an array of numpy, or a number of it
    return plain(as_list()) if callable(as_list) else str(value)
