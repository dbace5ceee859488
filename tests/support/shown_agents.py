"""Agents that a gateway shows, for its tests."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import enum
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

from zmqagents import AgentBase, agent, concurrent, current_call, idempotent


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclasses.dataclass
class Order:
    item: str
    count: int = 1


@agent(expose=True)
class Shop:
    """Sells things."""

    def __init__(self) -> None:
        self._begun = self._cancelled = 0

    @idempotent
    def add(self, a: int, b: int = 1) -> int:
        """The sum of two numbers."""
        return a + b

    def order(self, order: Order, size: Size = Size.SMALL, note: str = "") -> str:
        """What was ordered, as the agent sees it."""
        return f"{type(order).__name__}: {order.count} {order.item}, {size.name} {note}".rstrip()

    def moments(self, at: datetime.datetime, data: bytes = b"") -> list[str]:
        return [type(at).__name__, at.isoformat(), type(data).__name__, data.hex()]

    def echo(self, value: Any) -> Any:
        return value

    def size(self, text: str) -> int:
        return len(text)

    def fail(self, text: str = "no such thing") -> None:
        raise ValueError(text)

    async def slow(self, seconds: float = 60.0) -> str:
        """Can be cancelled, which it counts."""
        self._begun += 1
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._cancelled += 1
            raise
        return "done"

    async def ticks(self, count: int, pause: float = 0.0, fail_at: int = -1) -> AsyncIterator[int]:
        """Numbers, one by one."""
        self._begun += 1
        try:
            for number in range(count):
                if number == fail_at:
                    raise ValueError("no more")
                yield number
                await asyncio.sleep(pause)
        except (asyncio.CancelledError, GeneratorExit):
            self._cancelled += 1
            raise

    @concurrent
    def begun(self) -> int:
        """How many calls that can be cancelled have begun."""
        return self._begun

    @concurrent
    def cancelled(self) -> int:
        """How many calls were cancelled in the middle."""
        return self._cancelled

    def _private(self) -> str:
        return "nobody may see it"


class Hidden:
    """Is not shown."""

    def add(self, a: int, b: int) -> int:
        return a + b


class Talker(AgentBase):
    """Says again what it hears."""

    def reply(self, text: str, polite: bool = False) -> str:
        """The answer."""
        return f"you said: {text}" + (", please" if polite else "")

    def tokens(self, text: str) -> Iterator[str]:
        """The answer, word by word."""
        for word in text.split():
            yield f"{word} "


class Listener(AgentBase):
    """Gets the whole conversation."""

    def reply(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        return {"role": "assistant", "content": " ".join(str(message.get("role")) for message in messages)}


class Slow(AgentBase):
    """Talks for as long as somebody listens."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = 0

    async def reply(self, text: str) -> str:
        if text == "fail":
            raise ValueError("I do not like that")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self._ended += 1
            raise
        return text

    async def tokens(self, text: str) -> AsyncIterator[str]:
        try:
            while text != "fail":
                yield "and "
                await asyncio.sleep(0.05)
            raise ValueError("I do not like that")
        except (asyncio.CancelledError, GeneratorExit):
            self._ended += 1
            raise

    @concurrent
    def ended(self) -> int:
        return self._ended


class Caller(AgentBase):
    """Calls over HTTP, itself perhaps."""

    def post(self, url: str, token: str, body: dict[str, Any]) -> list[Any]:
        """Status and body of the answer; the request says in which call it is made."""
        call = current_call()
        assert call is not None
        with call.outgoing() as headers:
            return _post(url, token, body, headers)

    async def post_later(self, url: str, token: str, body: dict[str, Any]) -> list[Any]:
        """The same in a coroutine."""
        call = current_call()
        assert call is not None
        async with call.outgoing() as headers:
            return await asyncio.to_thread(_post, url, token, body, headers)

    def hand_on(self, url: str, token: str, body: dict[str, Any], by: Any) -> list[Any]:
        """Have another agent do it, and wait for that."""
        return list(by.post(url, token, body))


def _post(url: str, token: str, body: dict[str, Any], headers: dict[str, str]) -> list[Any]:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json", **headers}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [answer.status, json.load(answer)]
    except urllib.error.HTTPError as exc:
        with exc:
            return [exc.code, json.load(exc)]


CLASSES = [Shop, Hidden, Talker, Listener, Slow, Caller]
SHOWN = ("talker", "listener", "slow", "caller", "other caller")  # by their ids
