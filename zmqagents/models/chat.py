"""`ChatModel`: one language model behind the OpenAI chat completions API, made from a model configuration.

The package ``openai`` is imported when the first model is made. An endpoint may quote the key that it refuses, so the
configuration's secrets are replaced by ``***`` in the text of every error before it is raised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..agents.context import current_call
from ..errors import ConfigError, MissingExtra, ZmqAgentsError, safe_text
from .values import HIDDEN, copy_of, redact, secrets

REQUEST_LIMIT_S = 600.0  # openai's own default timeout of one request


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
        self._secrets = sorted(set(secrets(config)), key=len, reverse=True)
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
            text = text.replace(secret, HIDDEN)
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
    generate_args: dict[str, Any] = copy_of(config.get("generate_args") or {}, "", [])
    return {**arguments, **generate_args}
