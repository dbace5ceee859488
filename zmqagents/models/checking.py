"""What a model configuration must look like, in a file or as a call gives it: see `configs`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from .values import copy_of, kind_of

__all__ = ["check_model_configs", "load_model_configs_file"]

_MAX_PROBLEMS = 5  # named in one error

_TEXT, _OBJECT, _FLAG, _NUMBER, _WHOLE, _URL = "text", "an object", "true or false", "a number", "a whole number", "URL"

# What a field must be wherever it occurs at the top of a configuration, and inside of client_args.
_KINDS = {
    **dict.fromkeys(("model_name", "api_key", "organization", "host", "messages_key"), _TEXT),
    **dict.fromkeys(
        ("client_args", "client_kwargs", "generate_args", "options", "headers", "json_args", "post_args"), _OBJECT
    ),
    **dict.fromkeys(("timeout", "max_tokens", "top_p", "temperature"), _NUMBER),
    **dict.fromkeys(("max_retries", "max_length"), _WHOLE),
    "stream": _FLAG,
    "api_url": _URL,
}
_CLIENT_KINDS = {
    "base_url": _URL,
    "timeout": _NUMBER,
    "max_retries": _WHOLE,
    **dict.fromkeys(("api_key", "organization", "project"), _TEXT),
    **dict.fromkeys(("default_headers", "default_query"), _OBJECT),
}


def load_model_configs_file(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The checked configurations of a JSON file: one object or a list of them.

    Raises `ConfigError`, one line that begins with the file, if it is not there, is not JSON (with
    line and column) or has a bad field.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))  # -sig: editors of one system add a mark
    except FileNotFoundError:
        raise ConfigError(f"model config file '{file}' does not exist; check the path") from None
    except OSError as exc:
        raise ConfigError(f"model config file '{file}' cannot be read: {exc.strerror}") from exc
    except json.JSONDecodeError as exc:
        place = f"{file}:{exc.lineno}:{exc.colno}"
        raise ConfigError(f"{place}: model config file is not JSON: {exc.msg}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConfigError(f"model config file '{file}' is not JSON in UTF-8") from None
    return check_model_configs(data, source=f"model config file '{file}'")


def check_model_configs(configs: object, *, source: str = "model configs") -> list[dict[str, Any]]:
    """A deep copy of ``configs``, always a list. Raises `ConfigError` that names each bad field.

    ``source`` begins the error's text. The values of bad fields are never part of it.
    """
    entries = [configs] if isinstance(configs, Mapping) else configs
    if not isinstance(entries, (list, tuple)):
        raise ConfigError(f"{source}: must be an object or a list of objects, not {kind_of(configs)}")
    problems: list[str] = []
    checked: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for index, entry in enumerate(entries):
        found: list[str] = []
        if isinstance(entry, Mapping):
            copy = copy_of(entry, "", found)
            found += _problems_of(copy)
            checked.append(copy)
            name = copy.get("config_name")
            if isinstance(name, str) and first.setdefault(name, index) != index:
                found.append(f"config_name is that of entry {first[name]} too")
        else:
            name = None
            found.append(f"must be an object, not {kind_of(entry)}")
        label = f"entry {index} ({name[:80]!r})" if isinstance(name, str) else f"entry {index}"
        problems += [f"{label}: {problem}" for problem in found]
    if problems:
        more = [f"and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        raise ConfigError(f"{source}: " + "; ".join(problems[:_MAX_PROBLEMS] + more))
    return checked


def _problems_of(config: dict[str, Any]) -> list[str]:
    """What is wrong with one configuration, a few words for each field."""
    problems = []
    for key in ("config_name", "model_type"):
        if config.get(key) is None:
            problems.append(f"{key} is missing")
        elif not isinstance(config[key], str) or not config[key].strip():
            problems.append(f"{key} must be text, not {kind_of(config[key])}")
    problems += _wrong_kinds(config, _KINDS, "")
    if isinstance(config.get("client_args"), dict):
        problems += _wrong_kinds(config["client_args"], _CLIENT_KINDS, "client_args.")
    return problems


def _wrong_kinds(values: Mapping[str, Any], kinds: Mapping[str, str], prefix: str) -> list[str]:
    return [
        f"{prefix}{key} must be {'an http:// or https:// URL' if kind == _URL else kind}, not {kind_of(values[key])}"
        for key, kind in kinds.items()
        if values.get(key) is not None and not _is_kind(values[key], kind)
    ]


def _is_kind(value: Any, kind: str) -> bool:
    if kind == _URL:
        return isinstance(value, str) and _is_url(value)
    if kind == _FLAG or isinstance(value, bool):  # bool is an int to Python, not to JSON
        return kind == _FLAG and isinstance(value, bool)
    types: dict[str, tuple[type, ...]] = {_TEXT: (str,), _OBJECT: (dict,), _NUMBER: (int, float), _WHOLE: (int,)}
    return isinstance(value, types[kind])


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:  # "Invalid IPv6 URL"
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)
