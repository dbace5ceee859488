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
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..agents.context import current_call
from ..errors import ConfigError, MissingExtra, ZmqAgentsError, safe_text

__all__ = ["ChatModel", "ModelConfigs", "check_model_configs", "load_model_configs_file", "redact"]

REQUEST_LIMIT_S = 600.0  # openai's own default timeout of one request
_MAX_DEPTH = 32  # of a configuration; json.loads would allow about a thousand
_MAX_PROBLEMS = 5  # named in one error


# ---------------------------------------------------------------- secrets

_HIDDEN = "***"
_SECRET = re.compile(r"key|token|secret|passw|auth|credential|cookie|signature", re.IGNORECASE)
_HEADERS = re.compile(r"headers$", re.IGNORECASE)
_NOT_SECRET = {"messages_key"}
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(rf"([?&][^=&#\s]*(?:{_SECRET.pattern})[^=&#\s]*=)[^&#\s]+", re.IGNORECASE)


def redact(value: Any, key: str = "") -> Any:
    """A copy of ``value`` (JSON data found under ``key``) in which secrets are ``***``."""
    if _is_secret(key, value):
        return _HIDDEN
    if isinstance(value, Mapping):
        if _HEADERS.search(key):
            return dict.fromkeys(value, _HIDDEN)
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, key) for item in value]
    if isinstance(value, str):
        return _QUERY.sub(rf"\g<1>{_HIDDEN}", _USERINFO.sub(_HIDDEN, value))
    return value


def _is_secret(key: str, value: Any) -> bool:
    if value is None or isinstance(value, bool) or key in _NOT_SECRET or not _SECRET.search(key):
        return False
    # max_tokens is a count, max_completion_tokens too
    return not (key.lower().endswith("tokens") and isinstance(value, (int, float)))


def _secrets(value: Any, key: str = "", hidden: bool = False) -> Iterator[str]:
    """Every text in ``value`` that `redact` would hide, and its words (``Bearer <token>``)."""
    hidden = hidden or _is_secret(key, value)
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, str(name), hidden or bool(_HEADERS.search(key)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets(item, key, hidden)
    elif isinstance(value, str):
        found = [value, *value.split()] if hidden else []
        found += [*_USERINFO.findall(value), *(match[0].partition("=")[2] for match in _QUERY.finditer(value))]
        yield from (text for text in found if len(text) >= 6)  # a shorter one would blank out plain words


class DiscreetDict(dict[str, Any]):
    """A dict whose ``repr`` hides secrets, so that a log line with a configuration in it is harmless."""

    def __repr__(self) -> str:
        return repr(redact(dict(self)))


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
        raise ConfigError(f"{source}: must be an object or a list of objects, not {_kind_of(configs)}")
    problems: list[str] = []
    checked: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for index, entry in enumerate(entries):
        found: list[str] = []
        if isinstance(entry, Mapping):
            copy = _copy(entry, "", found)
            found += _problems_of(copy)
            checked.append(copy)
            name = copy.get("config_name")
            if isinstance(name, str) and first.setdefault(name, index) != index:
                found.append(f"config_name is that of entry {first[name]} too")
        else:
            name = None
            found.append(f"must be an object, not {_kind_of(entry)}")
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
            problems.append(f"{key} must be text, not {_kind_of(config[key])}")
    problems += _wrong_kinds(config, _KINDS, "")
    if isinstance(config.get("client_args"), dict):
        problems += _wrong_kinds(config["client_args"], _CLIENT_KINDS, "client_args.")
    return problems


def _wrong_kinds(values: Mapping[str, Any], kinds: Mapping[str, str], prefix: str) -> list[str]:
    return [
        f"{prefix}{key} must be {'an http:// or https:// URL' if kind == _URL else kind}, not {_kind_of(values[key])}"
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


def _kind_of(value: object) -> str:
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


def _copy(value: Any, path: str, problems: list[str], depth: int = 0) -> Any:
    """A deep copy of JSON data; what is no JSON data is noted in ``problems`` with its path."""
    where = path or "the entry"
    if depth > _MAX_DEPTH:
        problems.append(f"{where} is nested deeper than {_MAX_DEPTH} levels")
    elif isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            problems.append(f"{where} has a key that is not text but {_kind_of(wrong[0])}")
        texts = {key: item for key, item in value.items() if isinstance(key, str)}
        return DiscreetDict(
            {key: _copy(item, f"{path}.{key}" if path else key, problems, depth + 1) for key, item in texts.items()}
        )
    elif isinstance(value, (list, tuple)):
        return [_copy(item, f"{path}[{index}]", problems, depth + 1) for index, item in enumerate(value)]
    elif value is not None and not isinstance(value, (str, bool, int, float)):
        problems.append(f"{where} must be JSON data, not {_kind_of(value)}")
    return value


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
        copy: dict[str, Any] = _copy(self._find(name), "", [])
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
            model = ChatModel(config)
            with self._lock:
                if self._configs.get(name) is config:  # else it was replaced while we were at it
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


# ---------------------------------------------------------------- the client

# Ollama's options that its OpenAI-compatible endpoint takes, by the name that it takes them under.
_OLLAMA_OPTIONS = {
    **{name: name for name in ("temperature", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty")},
    "num_predict": "max_tokens",
}


class ChatModel:
    """A language model behind the OpenAI chat completions API: ``model("Why?")`` gives the answer's text.

    ``client`` is the library's own ``openai.OpenAI``, for everything that is not here: tools, usage,
    embeddings. It goes with ``model_name`` and ``generate_args``. May be used from several threads.
    In an ``async def`` method write ``await asyncio.to_thread(model, messages)``.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.name: str = config["config_name"]
        self.model_name: str = config.get("model_name") or self.name
        self.generate_args = _generate_args(config)
        self.streaming = bool(self.generate_args.pop("stream", config.get("stream")))
        self._kind: str = config["model_type"]
        self._secrets = sorted(set(_secrets(config)), key=len, reverse=True)
        self.client, self._limit_s = self._connect(config)

    def _connect(self, config: Mapping[str, Any]) -> tuple[Any, float]:
        """The library's client and its timeout; nothing is sent yet."""
        arguments = {key: value for key, value in (config.get("client_args") or {}).items() if value is not None}
        base_url = _base_url(config)
        if base_url is not None:
            arguments["base_url"] = base_url
            # Without a key of its own the library would send the environment's to this endpoint.
            arguments.setdefault("api_key", "EMPTY")
        for key in ("api_key", "organization"):
            if config.get(key) is not None:
                arguments[key] = config[key]
        try:
            import openai
        except ImportError as exc:
            raise MissingExtra(
                f"model config {self.name!r} needs the package openai: pip install 'zmqagents[models]'"
            ) from exc
        try:
            return openai.OpenAI(**arguments), float(arguments.get("timeout", REQUEST_LIMIT_S))
        except (TypeError, ValueError, openai.OpenAIError) as exc:  # an unknown client_arg, a missing key
            reason = self._scrubbed_text(safe_text(exc))
            raise ConfigError(f"model config {self.name!r}: no client can be made: {reason}") from None

    def __call__(self, messages: Any, **generate_args: Any) -> str:
        """The text of the answer, "" if it has none.

        ``messages``: one text, or a list of ``{"role": ..., "content": ...}``. ``generate_args`` go
        before those of the configuration. With ``stream`` set the answer is fetched in pieces, which
        lets a cancelled call end early. Inside a call, no attempt at a request lasts longer than the
        call's deadline allows. Raises what the library raises (``openai.APIError``), without secrets.
        """
        arguments, streaming = self._arguments(messages, generate_args)
        if streaming:
            return "".join(self._pieces(arguments))
        with self._scrubbed():
            answer = self.client.chat.completions.create(**arguments)
        if not getattr(answer, "choices", None):
            raise self._no_answer()
        return answer.choices[0].message.content or ""

    def stream(self, messages: Any, **generate_args: Any) -> Iterator[str]:
        """The pieces of the answer's text, as they come. Arguments and errors as for a call."""
        return self._pieces(self._arguments(messages, generate_args)[0])

    def close(self) -> None:
        """Close the connections; for the host, when it stops."""
        self.client.close()

    def _arguments(self, messages: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The arguments of one request, and whether it is to be streamed."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        arguments = {"model": self.model_name, **self.generate_args, **given, "messages": list(messages)}
        streaming = bool(arguments.pop("stream", self.streaming))
        call = current_call()
        if call is not None:
            call.check()
            rest_s = call.remaining()
            if rest_s is not None and rest_s < self._limit_s:
                arguments.setdefault("timeout", rest_s)
        return arguments, streaming

    def _pieces(self, arguments: Mapping[str, Any]) -> Iterator[str]:
        call = current_call()
        empty = True
        with self._scrubbed(), self.client.chat.completions.create(**arguments, stream=True) as chunks:
            for chunk in chunks:
                if call is not None:
                    call.check()
                empty = False
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
        if empty:
            raise self._no_answer()

    def _no_answer(self) -> ZmqAgentsError:
        return ZmqAgentsError(f"{self!r} gave no chat completion; check the path in its base_url")

    @contextmanager
    def _scrubbed(self) -> Iterator[None]:
        """Hide the configuration's secrets in any error: an endpoint may quote the key that it refuses."""
        try:
            yield
        except Exception as exc:
            seen: set[int] = set()
            error: BaseException | None = exc
            while error is not None and id(error) not in seen:
                seen.add(id(error))
                error.args = tuple(self._scrubbed_data(arg) for arg in error.args)
                for name in ("message", "body"):  # openai.APIError keeps both
                    if hasattr(error, name):
                        setattr(error, name, self._scrubbed_data(getattr(error, name)))
                error = error.__cause__ or error.__context__
            raise

    def _scrubbed_data(self, data: Any) -> Any:
        if isinstance(data, str):
            return self._scrubbed_text(data)
        if isinstance(data, Mapping):
            return {self._scrubbed_data(key): self._scrubbed_data(value) for key, value in data.items()}
        return [self._scrubbed_data(item) for item in data] if isinstance(data, (list, tuple)) else data

    def _scrubbed_text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    def __repr__(self) -> str:
        place = redact(str(self.client.base_url))
        return f"<ChatModel {self.name}: {self._kind}, {self.model_name} at {place}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} stays on its host; send config_name instead")


def _base_url(config: Mapping[str, Any]) -> str | None:
    """The endpoint that a configuration names, None for openai's own. Raises `ConfigError`."""
    kind, name = config["model_type"], config["config_name"]
    base_url: str | None = (config.get("client_args") or {}).get("base_url")
    if kind.endswith("_chat"):
        if base_url or kind == "openai_chat":
            return base_url or None
        if kind == "ollama_chat" and config.get("host"):
            host = config["host"].rstrip("/")
            host = host if "://" in host else f"http://{host}"  # ollama takes "localhost:11434" too
            return host if host.endswith("/v1") else f"{host}/v1"
    raise ConfigError(
        f"model config {name!r}: no client for model_type {kind!r} as it stands; supported are openai_chat, "
        "ollama_chat with host, and any *_chat with client_args.base_url of an OpenAI-compatible endpoint"
    )


def _generate_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of every request: those of ``generate_args`` before those that some types have on top."""
    arguments = {key: config[key] for key in ("max_tokens", "top_p", "temperature") if config.get(key) is not None}
    if config["model_type"] == "ollama_chat":
        options = config.get("options") or {}
        if unknown := [key for key in options if key not in _OLLAMA_OPTIONS]:
            raise ConfigError(
                f"model config {config['config_name']!r}: options.{unknown[0]} cannot be set through ollama's "
                "OpenAI-compatible endpoint; put it into the model's Modelfile"
            )
        arguments.update({_OLLAMA_OPTIONS[key]: value for key, value in options.items()})
    generate_args: dict[str, Any] = _copy(config.get("generate_args") or {}, "", [])
    return {**arguments, **generate_args}
