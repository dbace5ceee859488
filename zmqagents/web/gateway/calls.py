"""One call of an agent for one user, over the connection that the web process has to the host for that user.

A task that awaits a value or an item and is cancelled ends the call, as does a stream that is closed: so a caller that
has hung up keeps no agent busy. The chain of calls that a request was made in, which it names in a header, goes to the
host with the call; the host believes nothing of it but what it has sealed itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from ... import codec, errors
from ...agents.context import CHAIN_HEADER
from ...client.proxy import request_body
from ...client.result import AsyncResult
from ...client.stream import Stream
from ...connection.connection import Connection
from ...wire.link import Link
from ...wire.messages import MAX_CHAIN, MAX_TEXT, Flag, Op
from ..access import Principal
from ..hosts.doors import Doors
from .failures import BadArguments

__all__ = ["Calls", "Wish", "chain_in", "timeout_in"]

TIMEOUT_HEADER = "x-zmqagents-timeout"
_SCOPE = codec.Scope(plain=True)  # objects of all classes arrive as plain data


class Wish(NamedTuple):
    """What goes with every call of one request."""

    who: Principal
    timeout_s: float | None
    chain: Sequence[str] = ()

    @property
    def options(self) -> dict[str, Any] | None:
        """The options of a call, as its host takes them."""
        return {"chain": list(self.chain)} if self.chain else None


class Calls:
    """See the module's docstring. For the thread of the event loop."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    @asynccontextmanager
    async def _link(self, who: Principal) -> AsyncIterator[Link]:
        """The way to the host for a user, connected; it stays open for the block, however long that takes.

        A connection that turns out to be lost is given up: the next call makes a new one.
        """
        link = self._doors.client(who).link
        held = link if isinstance(link, Connection) else None
        if held is not None:
            held.take_up()
        try:
            if not link.server_id:
                await asyncio.to_thread(link.settle, link.management_timeout_s)
            yield link
        except (errors.HostUnreachable, errors.HostLost, errors.AuthenticationError):
            await asyncio.to_thread(self._doors.drop, who, link)
            raise
        finally:
            if held is not None and held.let_go():
                await asyncio.to_thread(held.close)

    async def value(
        self,
        wish: Wish,
        agent: str,
        method: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        again: bool = False,
    ) -> Any:
        """What a method gives. ``again``: it may be called a second time if its host is lost.

        Raises what the method has raised, and the errors of the connection.
        """
        label, flags = f"{agent}.{method}", Flag.IDEMPOTENT if again else 0
        async with self._link(wish.who) as link:
            body = request_body(link, label, tuple(args), dict(kwargs))
            result: AsyncResult[Any] = AsyncResult(
                link, label, _as_it_is, body, agent=agent, method=method, flags=flags, options=wish.options,
                timeout=wish.timeout_s, scope=_SCOPE,
            )  # fmt: skip
            return await result

    @asynccontextmanager
    async def stream(
        self, wish: Wish, agent: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """The items of a generator method, for the block."""
        label = f"{agent}.{method}"
        async with self._link(wish.who) as link:
            body = request_body(link, label, tuple(args), dict(kwargs))
            stream: Stream[Any] = Stream(
                link, label, _as_it_is, body, agent=agent, method=method, timeout=wish.timeout_s, scope=_SCOPE,
                options=wish.options,
            )  # fmt: skip
            try:
                yield _in_turns(stream)
            finally:
                stream.close()

    async def ask(self, who: Principal, op: str, options: dict[str, Any], *args: Any) -> Any:
        """The answer to a management request."""
        async with self._link(who) as link:
            body = request_body(link, op, args, {})
            result: AsyncResult[Any] = AsyncResult(
                link, op, _as_it_is, body, method=op, options=options, timeout=link.management_timeout_s, scope=_SCOPE
            )
            return await result

    async def file(self, wish: Wish, path: str, most: int) -> bytes:
        """A file of the host. BadArguments: it has more than ``most`` bytes; UnknownFile, PermissionRefused."""
        found = bytearray()
        async with self.stream(wish, "", Op.DOWNLOAD, (path,), {}) as items:
            size = await anext(items)
            if not isinstance(size, int) or size > most:
                raise BadArguments(f"{path} has {size:,} bytes, and at most {most:,} are given at once")
            async for item in items:
                found += item
        return bytes(found)


async def _in_turns(items: Stream[Any]) -> AsyncIterator[Any]:
    """The items, others being served after each: so that a client who has hung up is noticed at once."""
    async for item in items:
        yield item
        await asyncio.sleep(0)


def _as_it_is(ref: Any, *_: object) -> Any:
    """A reference to an agent or a result: named in the answer, and not followed."""
    return ref


def chain_in(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The calls that a request was made in, by its header. BadArguments: that is no list of names."""
    text = headers.get(CHAIN_HEADER, "")
    chain = tuple(filter(None, text.split(",")))
    if len(chain) > MAX_CHAIN or any(len(entry) > MAX_TEXT or not entry.isprintable() for entry in chain):
        raise BadArguments(f"the header {CHAIN_HEADER} is not what a call has given for it")
    return chain


def timeout_in(headers: Mapping[str, str], most_s: float | None) -> float | None:
    """For how many seconds a request may wait, by its header; ``most_s`` without it, and at most. None: no limit."""
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return most_s
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise BadArguments(f"the header {TIMEOUT_HEADER} is a number of seconds above 0, not {text!r:.40}")
    return seconds if most_s is None else min(seconds, most_s)
