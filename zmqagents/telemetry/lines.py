"""Log records as lines: text for people, JSON for programs, and a limit for what comes in floods.

A record may bring the fields of `FIELDS` as ``extra``: which agent, method, call, user, client or process it is about.
Records of other loggers get those of the call whose code logs, see `program`. A failure that has happened in another
thread or process brings its traceback as the text ``remote_traceback``.
"""

from __future__ import annotations

import functools
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

__all__ = ["FIELDS", "JsonLines", "RateLimit", "TextLines", "event_of", "fields_of", "json_line", "text_of", "visible"]

FIELDS = ("host", "agent", "class", "method", "task_id", "user", "client", "child", "pid", "action", "stream",
          "trace_id", "span_id")  # fmt: skip
_ATTRIBUTES = {name: f"za_{name}" for name in FIELDS}  # "class" cannot be one, and a program may use such names itself
_SHOWN = [name for name in FIELDS if name not in ("host", "class")]  # in a line of text
MAX_TEXT = 16_384  # characters of a message or a traceback


def fields_of(**fields: Any) -> dict[str, Any]:
    """The ``extra`` of a record for these fields; a name that is a word of Python ends in an underscore."""
    return {_ATTRIBUTES[name.rstrip("_")]: value for name, value in fields.items()}


def event_of(record: logging.LogRecord) -> dict[str, Any]:
    """A record as plain data: ``ts``, ``level``, ``logger``, ``msg``, those of `FIELDS` that it has, and ``exc``."""
    event: dict[str, Any] = {
        "ts": _time(record.created), "level": record.levelname, "logger": record.name, "msg": _message(record),
    }  # fmt: skip
    attributes = vars(record)
    for name, attribute in _ATTRIBUTES.items():
        if attribute in attributes and (value := attributes[attribute]) not in (None, ""):
            event[name] = value if isinstance(value, (int, float)) else str(value)
    trace = _traceback(record)
    if trace:
        event["exc"] = trace
    return event


def json_line(event: Mapping[str, Any]) -> str:
    """One line of JSON, without its end. Never raises: what JSON does not know is shown as text."""
    text = json.dumps(event, ensure_ascii=False, default=str, separators=(",", ":"))
    if text.isprintable():
        return text
    return json.dumps(event, default=str, separators=(",", ":")).replace("\x7f", "\\u007f")


def text_of(event: Mapping[str, Any]) -> str:
    """One event for people: a line and, where there is one, the traceback below it.

    Their texts come from callers, too: what is not printable is shown as an escape, and no line of them looks like a
    line of the log.
    """
    about = " ".join(f"{name}={event[name]}" for name in _SHOWN if name in event)
    start = visible(f"{event['ts']} {event['level']} {event['logger']}: ")
    line = start + _indented(event["msg"]) + (visible(f" [{about}]") if about else "")
    return line + _indented("\n" + event["exc"].rstrip()) if "exc" in event else line


def visible(text: str, keep: str = "") -> str:
    """``text`` with escapes for all that is neither printable nor in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def _indented(text: str) -> str:
    """All its lines but the first are further to the right."""
    return visible(text, "\n\t").replace("\n", "\n  ")


class JsonLines(logging.Formatter):
    """Each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        return json_line(event_of(record))


class TextLines(logging.Formatter):
    """Each record as a line, with what it is about at its end."""

    def format(self, record: logging.LogRecord) -> str:
        return text_of(event_of(record))


class RateLimit:
    """Lets ``burst`` lines of one kind through at once, and one more each ``every_s`` seconds. One thread's.

    `MAX_KINDS` kinds are remembered, the latest ones.
    """

    MAX_KINDS = 1000

    def __init__(self, burst: int = 10, every_s: float = 1.0) -> None:
        self._burst = burst
        self._every_s = every_s
        self._kinds: OrderedDict[Hashable, tuple[float, float, int]] = OrderedDict()  # tokens, when, left out

    def __repr__(self) -> str:
        return f"<RateLimit [{len(self._kinds)} kinds]>"

    def take(self, kind: Hashable, now: float) -> int | None:
        """None: leave this line out. Else write it, and say that so many like it were left out before."""
        tokens, then, left_out = self._kinds.pop(kind, (float(self._burst), now, 0))
        tokens = min(self._burst, tokens + (now - then) / self._every_s)
        taken = tokens >= 1
        self._kinds[kind] = (tokens - 1, now, 0) if taken else (tokens, now, left_out + 1)
        if len(self._kinds) > self.MAX_KINDS:
            self._kinds.popitem(last=False)
        return left_out if taken else None


def _time(seconds: float) -> str:
    """The local time with its offset to UTC, as ISO 8601 has it: ``2026-11-29T14:40:12.123+01:00``."""
    whole, offset = _second(int(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03}{offset}"


@functools.lru_cache(2)
def _second(seconds: int) -> tuple[str, str]:
    """A second as text, and the offset to UTC: most lines are of the same second as the one before."""
    then = time.localtime(seconds)
    offset = time.strftime("%z", then)
    return time.strftime("%Y-%m-%dT%H:%M:%S", then), f"{offset[:3]}:{offset[3:5]}"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()[:MAX_TEXT]
    except Exception as exc:  # the arguments are other people's objects
        return f"{str(record.msg)[:MAX_TEXT]} ({type(exc).__name__} while this line was formatted)"


_plain = logging.Formatter()


def _traceback(record: logging.LogRecord) -> str:
    remote = str(getattr(record, "remote_traceback", "") or "")
    if "\n" not in remote.strip():  # no frames: the message has it
        remote = ""
    if record.exc_info and not record.exc_text:
        try:
            record.exc_text = _plain.formatException(record.exc_info)
        except Exception as exc:
            record.exc_text = f"{type(exc).__name__} while the traceback was formatted"
    parts = [part for part in (remote, record.exc_text or "", record.stack_info or "") if part]
    return "\n".join(parts)[-MAX_TEXT:]
