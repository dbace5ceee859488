"""Model configurations: what a host knows about language models, for its agents' own code only.

A configuration is a JSON object with a ``config_name`` and a ``model_type``; the rest depends on the
type and is kept as data. A file or a call gives one object or a list of them:

    [{"config_name": "local", "model_type": "openai_chat", "model_name": "qwen3", "api_key": "EMPTY",
      "client_args": {"base_url": "http://127.0.0.1:8010/v1"}, "generate_args": {"temperature": 0.2}}]

A list is checked as a whole before any of it counts, and every bad field is named at once. Fields
that any type may have are checked for their kind (`checking`); ``null`` means absent; keys we do not
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

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from .chat import ChatModel

__all__ = ["ModelConfigs"]

# `checking` and `values` are loaded with the first configuration: most hosts have none, and need not pay 1 ms.


class ModelConfigs:
    """The configurations of one host, by ``config_name``. Every method may be called from any thread."""

    def __init__(self, configs: Iterable[Mapping[str, Any]] | Mapping[str, Any] = ()) -> None:
        self._lock = threading.Lock()
        self._making = threading.Lock()  # clients are made one at a time, without holding up the readers
        self._configs: dict[str, dict[str, Any]] = {}
        self._models: dict[str, tuple[dict[str, Any], ChatModel]] = {}
        self._version = 0
        if configs:
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
        from .checking import check_model_configs

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
        """A copy of the configuration ``name``, secrets and all, which the codec refuses to send.

        Raises `ConfigError` naming the known ones.
        """
        from .values import HeldDict, copy_of

        copy: dict[str, Any] = copy_of(self._find(name), "", [], kind=HeldDict)
        return copy

    def redacted(self) -> list[dict[str, Any]]:
        """All configurations, sorted by name, without their secrets: for ``status``."""
        from .values import redact

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
