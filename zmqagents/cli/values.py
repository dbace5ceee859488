"""Values as the shell reads and shows them: JSON, or a bare word; and any value as JSON data."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import json
import keyword
import math
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import click

MAX_INT_BITS = 14_000  # fewer than 4,300 digits
DEEP = 20_000  # frames

__all__ = ["json_line", "json_text", "plain", "read_arguments", "read_value"]


def read_arguments(texts: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of a call. Each text is JSON, or a bare word; ``name=...`` is a keyword one."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or keyword.iskeyword(name):
            args.append(read_value(text))
        elif name in kwargs:
            raise click.UsageError(f"{name}= is given twice")
        else:
            kwargs[name] = read_value(value)
    return args, kwargs


def read_value(text: str) -> Any:
    """JSON, else the text itself; UsageError for what was surely meant to be more than a text."""
    if text in ("True", "False", "None"):
        json_word = {"True": "true", "False": "false", "None": "null"}[text]
        raise click.UsageError(f"{text} is no JSON: write {json_word}, or '\"{text}\"' for the text")
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as exc:
        if text[:1] in ("{", "[", '"'):
            raise click.UsageError(f"{text!r} begins like JSON and is none ({exc}): mind the shell's quoting") from None
        return text


def _no_json(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def plain(value: Any) -> Any:
    """``value`` as JSON data. What JSON lacks becomes what says most: bytes base64, times ISO 8601, durations
    seconds, sets sorted lists, numbers of thousands of digits hexadecimal texts, enums their values, objects their
    fields, proxies and results where they are.
    """
    from ..client.proxy import AgentProxy
    from ..client.result import AsyncResult

    match value:
        case AgentProxy():  # first: any attribute of the next two is a call
            return {"agent_id": value.__zmqagents_places__()[0], "proxy": repr(value)}
        case AsyncResult():
            return {"task_id": value.task_id, "server_id": value.server_id}
        case Enum():
            return plain(value.value)
        case None | bool() | str():
            return value
        case int():  # Python writes no decimals of a longer one, for it takes too long
            return value if value.bit_length() <= MAX_INT_BITS else hex(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case Mapping():
            return {key if isinstance(key, str) else json_line(plain(key)): plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted(map(plain, value), key=json_line)
        case list() | tuple():
            return [plain(item) for item in value]
        case BaseException():
            return f"{type(value).__name__}: {value}"
    return _plain_object(value)


def _plain_object(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    for method in ("model_dump", "to_dict", "tolist"):  # pydantic, Msg and its like, numpy
        if callable(getattr(value, method, None)) and not isinstance(value, type):
            return plain(getattr(value, method)())
    return str(value)


def json_line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def json_text(value: Any, indent: int | None = None) -> str:
    """Any value as JSON: what is not printable is escaped, and it may be nested as deep as it travels."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, DEEP))
    try:
        text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    finally:
        sys.setrecursionlimit(limit)
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1] if ord(character) != 0x7F else "\\u007f"
