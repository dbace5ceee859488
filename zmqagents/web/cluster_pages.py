"""``/api`` about a whole cluster, beside what there is of each of its hosts.

    GET     cluster                     the hosts, and whether they answer
            cluster/agents?q=&class=&after=     the agents of the cluster: each with the host that has it
            cluster/where?id=           one of them
            cluster/events              what has happened, the latest first
    POST    cluster/move {id, to}       role admin; ``to``: a host, "" for any other one

Each request is made to a host in the name of the one who asks. An agent is moved by the host that has it, so that only
that one writes a line of the log.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import errors
from ..checks import CLUSTER
from ..client.cluster.members import Members
from .access import Principal, need, principal_of
from .requests import SEARCH_S, body_of, failure_of, id_of, most_of

if TYPE_CHECKING:
    from .hosts.fleet import Fleet

__all__ = ["ClusterPages"]

PAGE = 200  # agents that are looked at at once in a search; so many rows more than asked for it may have
EVENTS = 200  # that are kept and shown

Answer = Callable[[Request, Principal], Awaitable[Any]]


class ClusterPages:
    """See the module's docstring."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._after = ""
        self._reading = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ClusterPages of {self._fleet!r}>"

    def routes(self) -> list[Route]:
        """All of them."""
        answers = {"agents": self._agents, "where": self._where, "events": self._take_events}
        return [
            Route("/api/cluster", self._hosts, methods=["GET"]),
            *(Route(f"/api/cluster/{name}", self._through(ask), methods=["GET"]) for name, ask in answers.items()),
            Route("/api/cluster/move", self._through(self._move), methods=["POST"]),
        ]

    def _through(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            principal = principal_of(request)
            try:
                return JSONResponse(await answer(request, principal))
            except (errors.ZmqAgentsError, OSError) as exc:
                return failure_of(exc)

        return respond

    async def _asked(self, principal: Principal, ask: Callable[[Members], Awaitable[Any]]) -> Any:
        """What a host that answers says."""
        await self._fleet.get_ready()
        doors, link = self._fleet.doors, None
        try:
            link = doors.client(principal).link
            return await ask(Members(link))
        except (errors.HostUnreachable, errors.HostLost, errors.HostStopping, errors.AuthenticationError, TimeoutError):
            if link is not None:
                await asyncio.to_thread(doors.drop, principal, link)  # the next one is to another host
            raise

    # ------------------------------------------------------------ looking

    async def _hosts(self, request: Request) -> Response:
        principal_of(request)
        await self._fleet.look("")
        return JSONResponse({"name": self._fleet.name, "hosts": self._fleet.told()})

    async def _agents(self, request: Request, principal: Principal) -> Any:
        query = request.query_params
        part, cls, most = query.get("q", "").casefold(), query.get("class", ""), most_of(query)
        prefix, after, found = f"{cls}/" if cls else "", query.get("after", ""), list[dict[str, Any]]()
        end = time.monotonic() + SEARCH_S
        while True:
            ask = functools.partial(Members.agents, prefix=prefix, after=after, most=PAGE if part else most)
            page = await self._asked(principal, ask)
            named = map(self._named, page["rows"])
            found += [row for row in named if part in row["agent"].casefold()]
            after = page["following"]
            if not after or len(found) >= most or time.monotonic() >= end:
                return {"agents": found, "next": after or None}

    async def _where(self, request: Request, principal: Principal) -> Any:
        reference = self._reference(request.query_params.get("id", ""))
        return self._named(await self._asked(principal, lambda member: member.where(reference)))

    async def _take_events(self, request: Request, principal: Principal) -> Any:
        async with self._reading:
            while True:
                page = await self._asked(principal, lambda member: member.events(self._after))
                self._events.extend(page["rows"])
                self._after = page["following"] or self._after
                if not page["rows"]:
                    return {"events": list(reversed(self._events))}

    # ------------------------------------------------------------ moving

    async def _move(self, request: Request, principal: Principal) -> Any:
        need(request, "admin")
        body = await body_of(request)
        reference, to = self._reference(id_of(body)), body.get("to", "")
        if not isinstance(to, str):
            raise HTTPException(400, "to must be the id or the address of a host")
        there = await self._asked(principal, lambda member: member.where(reference))
        if not there["address"]:
            raise errors.UnknownAgent(f"{self._named(there)['agent']} is on no host now: its next call makes it")
        to = self._fleet.address_of(to) if to else ""
        home = await self._fleet.place(there["address"])
        return self._named(await Members(home.doors.client(principal).link).move(reference, to))

    def _reference(self, name: str) -> str:
        return name if name.startswith(CLUSTER) else f"{CLUSTER}{self._fleet.name}/{name}"

    def _named(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with the name that users know beside the reference."""
        return {**row, "id": row["agent"], "agent": row["agent"].removeprefix(f"{CLUSTER}{self._fleet.name}/")}
