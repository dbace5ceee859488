"""An agent that is talked to: which of its methods answer, and with what text.

``reply`` answers. Its first parameter gets the text of the last message of the user, or, where it is annotated as a
list, all messages. ``tokens`` (as of all adapters) gives the text piece by piece, or else ``stream``, or ``reply``
itself if it is a generator.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from .calls import Calls, Wish
from .failures import BadArguments
from .offers import Method, Offer
from .revival import plain

__all__ = ["Talk", "is_chat"]

_STREAMS = ("tokens", "stream", "reply", "__call__")
_ANSWERS = ("reply", "__call__")


def is_chat(offer: Offer) -> bool:
    """Whether an agent can be talked to."""
    return _answering(offer) is not None


def _answering(offer: Offer) -> Method | None:
    return next((offer.methods[name] for name in _ANSWERS if name in offer.methods), None)


class Talk:
    """One question to an agent: ``messages``, each with ``role`` and ``content``. BadArguments: it takes none."""

    def __init__(
        self, calls: Calls, wish: Wish, offer: Offer, messages: Sequence[Mapping[str, Any]], more: Mapping[str, Any]
    ) -> None:
        answers = _answering(offer)
        if answers is None:
            raise BadArguments(f"{offer.agent_id} has no method reply")
        self._calls = calls
        self._wish = wish
        self._agent = offer.agent_id
        self._answers: Method = answers
        self._streams = next((offer.methods[name] for name in _STREAMS if _is_stream(offer, name)), None)
        self._messages = messages
        self._more = more

    async def whole(self) -> str:
        """The text of the answer."""
        if self._answers.streams:
            return "".join([piece async for piece in self.pieces()])
        args, kwargs = await self._arguments(self._answers)
        value = await self._calls.value(self._wish, self._agent, self._answers.name, args, kwargs)
        return _text_in(value)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text of the answer, piece by piece; one piece of an agent that has no generator for it."""
        method = self._streams
        if method is None:
            yield await self.whole()
            return
        args, kwargs = await self._arguments(method)
        async with self._calls.stream(self._wish, self._agent, method.name, args, kwargs) as items:
            async for item in items:
                yield _text_in(item)

    async def _arguments(self, method: Method) -> tuple[list[Any], dict[str, Any]]:
        names = method.names
        given: dict[str, Any] = {name: value for name, value in self._more.items() if name in names[1:]}
        if names:
            schema = method.arguments["properties"][names[0]]
            given[names[0]] = list(self._messages) if schema.get("type") == "array" else self._last()
        return await method.prepared(given)

    def _last(self) -> str:
        """The text of the last message of the user."""
        for message in reversed(self._messages):
            if message.get("role", "user") == "user":
                return _text_in(message.get("content"))
        raise BadArguments("messages: none of them is of the role user")


def _is_stream(offer: Offer, name: str) -> bool:
    return name in offer.methods and offer.methods[name].streams


def _text_in(value: Any) -> str:
    """The text of an answer: of a message its content, of parts those that are text; JSON of anything else."""
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for name in ("content", "text", "parts", "output"):
            if isinstance(value.get(name), (str, list)):
                return _text_in(value[name])
    if isinstance(value, list) and value and all(isinstance(part, (str, dict)) for part in value):
        texts = [part if isinstance(part, str) else part.get("text") for part in value]
        if all(isinstance(text, (str, type(None))) for text in texts) and any(texts):
            return "".join(text for text in texts if text)
    return json.dumps(value)
