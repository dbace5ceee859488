"""JSON values of a model configuration: a checked copy of them, and the secrets in them.

A value counts as secret by its key (``api_key``, ``Authorization``), a header's value always, and so do the user and
the query parameters of a URL. `redact` hides secrets in what is shown; `secrets` lists them, to hide them in errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_DEPTH = 32  # of a configuration; json.loads would allow about a thousand


HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|passw|auth|credential|cookie|signature", re.IGNORECASE)
_HEADERS = re.compile(r"headers$", re.IGNORECASE)
_NOT_SECRET = {"messages_key"}
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(rf"([?&][^=&#\s]*(?:{_SECRET.pattern})[^=&#\s]*=)[^&#\s]+", re.IGNORECASE)


def redact(value: Any, key: str = "") -> Any:
    """A copy of ``value`` (JSON data found under ``key``) in which secrets are ``***``."""
    if _is_secret(key, value):
        return HIDDEN
    if isinstance(value, Mapping):
        if _HEADERS.search(key):
            return dict.fromkeys(value, HIDDEN)
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        return _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(HIDDEN, value))
    return value


def _is_secret(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or key in _NOT_SECRET or not _SECRET.search(key):
        return False
    # max_tokens is a count, max_completion_tokens too
    return not (key.lower().endswith("tokens") and isinstance(value, (int, float)))


def secrets(value: Any, key: str = "", hidden: bool = False) -> Iterator[str]:
    """Every text in ``value`` that `redact` would hide, and its words (``Bearer <token>``)."""
    hidden = hidden or _is_secret(key, value)
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from secrets(item, str(name), hidden or bool(_HEADERS.search(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secrets(item, key, hidden)
    elif isinstance(value, str):
        found = [value, *value.split()] if hidden else []
        found += [*_USERINFO.findall(value), *(match[0].partition("=")[2] for match in _QUERY.finditer(value))]
        yield from (text for text in found if len(text) >= 6)  # a shorter one would blank out plain words


class DiscreetDict(dict[str, Any]):
    """A dict whose ``repr`` hides secrets, so that a log line with a configuration in it is harmless."""

    def __repr__(self) -> str:
        return repr(redact(dict(self)))


def kind_of(value: object) -> str:
    """The kind of a value in JSON's words; never the value, which may be a secret."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return "other text" if value.strip() else "empty text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, (list, tuple)) else f"a Python {type(value).__name__}"


def copy_of(value: Any, path: str, problems: list[str], depth: int = 0) -> Any:
    """A deep copy of JSON data; what is no JSON data is noted in ``problems`` with its path."""
    where = path or "the entry"
    if depth > _MAX_DEPTH:
        problems.append(f"{where} is nested deeper than {_MAX_DEPTH} levels")
    elif isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            problems.append(f"{where} has a key that is not text but {kind_of(wrong[0])}")
        texts = {key: item for key, item in value.items() if isinstance(key, str)}
        return DiscreetDict(
            {key: copy_of(item, f"{path}.{key}" if path else key, problems, depth + 1) for key, item in texts.items()}
        )
    elif isinstance(value, (list, tuple)):
        return [copy_of(item, f"{path}[{index}]", problems, depth + 1) for index, item in enumerate(value)]
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        problems.append(f"{where} must be JSON data, not {kind_of(value)}")
    return value
