"""Model configurations: what a host knows about language models, for its agents' own code only.

A configuration is a JSON object with a ``config_name`` and a ``model_type``; the rest depends on the
type and is kept as data. A file or a call gives one object or a list of them:

    [{"config_name": "local", "model_type": "openai_chat", "model_name": "qwen3", "api_key": "EMPTY",
      "client_args": {"base_url": "http://127.0.0.1:8010/v1"}, "generate_args": {"temperature": 0.2}}]

A list is checked as a whole before any of it counts, and every bad field is named at once. Fields
that any type may have are checked for their kind (`_KINDS`); ``null`` means absent; keys we do not
know are kept, since an agent may read them.

`ModelConfigs.model` makes a client for the configurations that name an endpoint with the OpenAI chat
completions API, through the library ``openai`` (extra ``zmqagents[models]``):

    openai_chat        at ``client_args.base_url``, or where the library's own environment says
    ollama_chat        at ``host`` + ``/v1``, unless ``client_args.base_url`` is given
    any other *_chat   at ``client_args.base_url``, which must be given

Nothing is guessed: any other configuration is a `ConfigError`. An ``api_key`` of the environment goes
to the library's default endpoint alone, never to a ``base_url``.

Secrets stay here. Values under a key that matches `_SECRET`, all headers, and passwords in URLs are
shown as ``***`` by every ``repr``, by `ModelConfigs.redacted`, and in errors of the library, which may
quote an endpoint that quotes the key. Messages about bad fields name kinds, never values.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..errors import ConfigError
from .values import copy_of, kind_of, redact

if TYPE_CHECKING:
    from .chat import ChatModel

__all__ = ["ModelConfigs", "check_model_configs", "load_model_configs_file"]

_MAX_PROBLEMS = 5  # named in one error


# ---------------------------------------------------------------- checking

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


# ---------------------------------------------------------------- the registry


class ModelConfigs:
    """The configurations of one host, by ``config_name``. Every method may be called from any thread."""

    def __init__(self, configs: Iterable[Mapping[str, Any]] | Mapping[str, Any] = ()) -> None:
        self._lock = threading.Lock()
        self._making = threading.Lock()  # clients are made one at a time, without holding up the readers
        self._configs: dict[str, dict[str, Any]] = {}
        self._models: dict[str, tuple[dict[str, Any], ChatModel]] = {}
        self._version = 0
        self.add(configs)

    def add(self, configs: object) -> list[str]:
        """Add one configuration or a list of them; one of the same name is replaced. Gives their names.

        All or nothing: raises `ConfigError` before anything is changed.
        """
        return self._apply(configs, keep=True)

    def replace(self, configs: object) -> list[str]:
        """The same as `add`, but forget every other configuration."""
        return self._apply(configs, keep=False)

    def _apply(self, configs: object, *, keep: bool) -> list[str]:
        new = {config["config_name"]: config for config in check_model_configs(configs)}
        with self._lock:
            self._configs = {**(self._configs if keep else {}), **new}
            # A dropped client is not closed: another thread may be in the middle of a request.
            self._models = {name: made for name, made in self._models.items() if self._configs.get(name) is made[0]}
            self._version += 1
        return list(new)

    @property
    def version(self) -> int:
        """Grows with every change."""
        return self._version

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._configs)

    def get(self, name: str) -> dict[str, Any]:
        """A copy of the configuration ``name``, secrets and all. Raises `ConfigError` naming the known ones."""
        copy: dict[str, Any] = copy_of(self._find(name), "", [])
        return copy

    def redacted(self) -> list[dict[str, Any]]:
        """All configurations, sorted by name, without their secrets: for ``status``."""
        with self._lock:
            return [redact(self._configs[name]) for name in sorted(self._configs)]

    def model(self, name: str) -> ChatModel:
        """The client for configuration ``name``; made on first use, anew after the configuration changed.

        Raises `ConfigError` if there is no such configuration or none that we can serve, and
        `MissingExtra` if the library is not installed.
        """
        with self._making:
            config = self._find(name)
            made = self._models.get(name)
            if made is not None and made[0] is config:
                return made[1]
            from .chat import ChatModel  # here, so that no start without a model waits for it

            model = ChatModel(config)
            with self._lock:
                if self._configs.get(name) is config:  # else it was replaced meanwhile
                    self._models[name] = (config, model)
            return model

    def close(self) -> None:
        """Close the connections of all clients; a client asked for later is made anew."""
        with self._lock:
            models, self._models = self._models, {}
        for _, model in models.values():
            model.close()

    def _find(self, name: str) -> dict[str, Any]:
        with self._lock:
            config = self._configs.get(name)
            known = ", ".join(sorted(self._configs))
        if config is None:
            rest = f"this host has: {known}" if known else "this host has none: it was given no model configs"
            raise ConfigError(f"no model config is named {name!r}; {rest}")
        return config

    def __repr__(self) -> str:
        return f"<ModelConfigs {', '.join(self.names()) or 'empty'}>"
