"""Which agents are shown, and what their methods take: as the host says, asked again after a second.

Shown are the agents whose ids were named when the web process was started, and those of classes that say so themselves
(``@agent(expose=True)``), with their public methods.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import jsonschema

from ... import errors
from ...wire.messages import Op
from ..access import Principal
from .bodies import APART_BYTES
from .calls import Calls
from .failures import BadArguments, NotShown
from .revival import NotRevived, revive

__all__ = ["Method", "Offer", "Offers"]

FRESH_S = 1.0
MAX_KEPT = 10_000  # answers about single agents
SHOWN_CHARS = 200  # of what is wrong about an argument

_Validator = jsonschema.Draft202012Validator


class Method:
    """One method, as ``told`` by the host: see `agents.schemas.methods.offered`."""

    def __init__(self, name: str, told: Mapping[str, Any]) -> None:
        self.name = name
        self.returns: str = told["returns"]
        self.idempotent = bool(told["idempotent"])
        self.doc: str = told["doc"]
        self.arguments: dict[str, Any] = told["arguments"]
        self.result: dict[str, Any] = told["result"]
        self._positional: list[str] = list(told["positional"])
        self._rest: str = told["rest"]

    def __repr__(self) -> str:
        return f"<Method {self.name}>"

    @property
    def streams(self) -> bool:
        """Whether it gives items one by one."""
        return self.returns == "stream"

    @property
    def names(self) -> list[str]:
        """The names of its arguments, in their order."""
        return list(self.arguments["properties"])

    @functools.cached_property
    def _validator(self) -> Any:
        return _Validator(self.arguments, format_checker=None)

    async def prepared(self, given: dict[str, Any], size: int = 0) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call for an object of JSON, which was ``size`` bytes. BadArguments: it takes no such."""
        if size < APART_BYTES:
            return self._prepare(given)
        return await asyncio.to_thread(self._prepare, given)

    def _prepare(self, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        wrong = jsonschema.exceptions.best_match(self._validator.iter_errors(given))
        if wrong is not None:
            place = "".join(f"[{part!r}]" for part in wrong.absolute_path)
            raise BadArguments(f"arguments{place}: {wrong.message[:SHOWN_CHARS]}")
        try:
            named: dict[str, Any] = revive(self.arguments, given, _fits)
        except NotRevived as exc:
            raise BadArguments(f"arguments: {exc}") from exc
        rest = named.pop(self._rest, []) if self._rest else []
        args = []
        for name in self._positional:
            if name not in named:
                if rest or any(later in named for later in self._positional):
                    raise BadArguments(f"arguments: {name} is needed, as it stands before others that are given")
                break
            args.append(named.pop(name))
        return [*args, *rest], named


def _fits(schema: Any, value: Any) -> bool:
    return bool(_Validator(schema).is_valid(value))


class Offer:
    """One agent that is shown."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.told = told
        self.agent_id: str = told["agent_id"]
        self.class_name: str = told["class"]
        self.doc: str = told["doc"]
        self.methods = {name: Method(name, each) for name, each in sorted(told["methods"].items())}

    def __repr__(self) -> str:
        return f"<Offer {self.agent_id}: {', '.join(self.methods)}>"

    def method(self, name: str) -> Method:
        """A public method. NotShown: it has none of that name."""
        found = self.methods.get(name)
        if found is None:
            raise NotShown(f"no method {name!r:.80} of an agent {self.agent_id!r} is shown here")
        return found


class Offers:
    """See the module's docstring. ``ids``: the agents that were named. For the thread of the event loop."""

    def __init__(self, calls: Calls, ids: Collection[str]) -> None:
        self._calls = calls
        self._ids = frozenset(ids)
        self._kept: dict[str, tuple[float, asyncio.Task[Any]]] = {}  # "": all
        self._known: dict[str, Offer] = {}

    async def all(self, who: Principal) -> list[Offer]:
        """All agents that are shown, in the order of their ids."""
        found: list[Offer] = await self._fresh("", lambda: self._ask_all(who))
        return found

    async def of(self, who: Principal, agent_id: str) -> Offer:
        """One of them. NotShown: it is none of them."""
        if not agent_id:
            raise _not_shown(agent_id)
        found: Offer = await self._fresh(agent_id, lambda: self._ask_one(who, agent_id))
        return found

    async def _fresh(self, key: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What ``ask`` gives, or has given a moment ago; those who ask at the same time share one answer."""
        now = time.monotonic()
        kept = self._kept.get(key)
        if kept is None or now > kept[0] or (kept[1].done() and (kept[1].cancelled() or kept[1].exception())):
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
                self._known.clear()
            kept = self._kept[key] = now + FRESH_S, asyncio.ensure_future(ask())
        return await asyncio.shield(kept[1])

    async def _ask_all(self, who: Principal) -> list[Offer]:
        found: dict[str, Offer] = {}
        after: Any = 0
        while after is not None:
            page = await self._calls.ask(who, Op.OFFERS, {"ids": sorted(self._ids), "after": after})
            found |= {row["agent_id"]: self._offer(row) for row in page["agents"]}
            after = page["next"]
        self._known = dict(found)
        return [found[agent_id] for agent_id in sorted(found)]

    async def _ask_one(self, who: Principal, agent_id: str) -> Offer:
        try:
            row = await self._calls.ask(who, Op.OFFERS, {"id": agent_id})
        except errors.UnknownAgent:
            raise _not_shown(agent_id) from None
        if not row["exposed"] and agent_id not in self._ids:
            raise _not_shown(agent_id)
        found = self._known[agent_id] = self._offer(row)
        return found

    def _offer(self, row: dict[str, Any]) -> Offer:
        """The offer that ``row`` tells; the one that is known, with its compiled schemas, if nothing has changed."""
        known = self._known.get(row["agent_id"])
        return known if known is not None and known.told == row else Offer(row)


def _not_shown(agent_id: str) -> NotShown:
    return NotShown(f"no agent {agent_id!r:.80} is shown here")
