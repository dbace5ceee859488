"""``/api``: what the page shows and does, as JSON in the shapes of ``as_server ... --json``.

Each request is made to the host in the name of the one who asks, over a connection of that user's (`doors`), so the
host decides what is seen and done, writes its lines and looks after the limits. An error is ``{"error": text, "kind":
class}``.

    GET     me host hosts agents agent calls call graph results logs errors keys series dump stream
    POST    cancel {id}   delete {id}   restart {id}   drain {grace_s}     role admin, or one's own calls and agents
    POST    session {token}: a cookie for a token       DELETE session: the cookie ends
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .. import errors
from ..agents.spec import without_self
from ..client.aio import AsyncRpcClient
from ..client.many.pages import Pages
from ..security.keys import KeyStore
from ..telemetry.rates import rows_between
from ..version import __version__
from .access import SESSION_S, Access, Principal, need, principal_of
from .hosts.house import House, host_of
from .hosts.live import told_of
from .requests import SEARCH_S, body_of, failure_of, id_of, most_of, number_of, whole_of

__all__ = ["Api"]

END_S = 0.2  # in which code that was told to end may do so, before the answer says what became of it


class Host(NamedTuple):
    """The host as one user may ask it."""

    client: AsyncRpcClient
    pages: Pages


Answer = Callable[[Host, Request], Awaitable[Any]]


class Api:
    """The routes. ``house`` has the hosts; ``cookie`` is the name of the cookie for a session, ``secure``: it is sent
    by TLS alone.
    """

    def __init__(self, access: Access, house: House, store: KeyStore, cookie: str, *, secure: bool) -> None:
        self._secure = secure
        self._access = access
        self._house = house
        self._store = store
        self._cookie = cookie

    def __repr__(self) -> str:
        return f"<Api of {self._house!r}>"

    @property
    def routes(self) -> list[Route]:
        """All routes of ``/api``."""
        asked: dict[str, Answer] = {
            "host": self._host, "agents": self._agents, "agent": self._agent, "calls": self._calls, "call": self._call,
            "graph": self._graph, "results": self._results, "logs": self._logs, "errors": self._errors,
            "dump": self._dump,
        }  # fmt: skip
        done: dict[str, Answer] = {
            "cancel": self._cancel, "delete": self._delete, "restart": self._restart, "drain": self._drain,
        }  # fmt: skip
        return [
            *(Route(f"/api/{name}", self._through(answer), methods=["GET"]) for name, answer in asked.items()),
            *(Route(f"/api/{name}", self._through(answer), methods=["POST"]) for name, answer in done.items()),
            Route("/api/me", self._me), Route("/api/hosts", self._hosts), Route("/api/series", self._series),
            Route("/api/keys", self._keys), Route("/api/stream", self._stream),
            Route("/api/session", self._open, methods=["POST"]),
            Route("/api/session", self._close, methods=["DELETE"]),
        ]  # fmt: skip

    def _through(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """A route that asks the host in the name of the user."""

        async def respond(request: Request) -> Response:
            principal, link = principal_of(request), None
            doors = (await self._house.place(host_of(request))).doors
            try:
                link = doors.client(principal).link
                return JSONResponse(await answer(Host(AsyncRpcClient(link=link), Pages(link)), request))
            except (errors.ZmqAgentsError, OSError) as exc:
                lost = isinstance(exc, (errors.HostUnreachable, errors.HostLost, errors.AuthenticationError))
                if lost and link is not None:
                    await asyncio.to_thread(doors.drop, principal, link)  # it waits for threads of the connection
                return failure_of(exc)

        return respond

    # ------------------------------------------------------------ sessions

    async def _open(self, request: Request) -> Response:
        token = (await body_of(request)).get("token")
        session = self._access.open(token) if isinstance(token, str) else None
        if session is None:
            return JSONResponse({"error": "this token stands for nobody here", "kind": "AuthenticationError"}, 401)
        answer = JSONResponse({"opened": True})
        answer.set_cookie(
            self._cookie, session, max_age=int(SESSION_S), httponly=True, samesite="strict", secure=self._secure
        )
        return answer

    async def _close(self, request: Request) -> Response:
        self._access.close(request.cookies.get(self._cookie, ""))
        answer = JSONResponse({"closed": True})
        answer.delete_cookie(self._cookie, httponly=True, samesite="strict", secure=self._secure)
        return answer

    async def _me(self, request: Request) -> Response:
        principal = principal_of(request)
        about = {"name": principal.name, "role": principal.role, "version": __version__}
        return JSONResponse({**about, "cluster": self._house.cluster})

    # ------------------------------------------------------------ what this process knows itself

    async def _hosts(self, request: Request) -> Response:
        principal_of(request)
        await self._house.look(host_of(request))
        return JSONResponse(self._house.told())

    async def _series(self, request: Request) -> Response:
        principal_of(request)
        host = host_of(request)
        await self._house.look(host)
        return JSONResponse((await self._house.place(host)).live.series.told(request.query_params.get("span", "10m")))

    async def _keys(self, request: Request) -> Response:
        need(request, "admin", "view")
        keys = [{"name": peer.name, "role": peer.role, "public": key} for key, peer in self._store.authorized().items()]
        known = [
            {"name": f"{host}:{port}", "role": "host", "public": key} for host, port, key in self._store.known_hosts()
        ]
        return JSONResponse(sorted(keys, key=lambda row: row["name"]) + known)

    async def _stream(self, request: Request) -> Response:
        principal_of(request)
        again: Callable[[], Principal | None] = request.scope["state"]["ask_again"]
        ticks = self._house.stream(lambda: again() is not None, host_of(request))
        return StreamingResponse(ticks, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    # ------------------------------------------------------------ what the host is asked

    async def _host(self, host: Host, request: Request) -> Any:
        return {**await host.client.get_server_info(), "processes": await host.client.get_child_list()}

    async def _agents(self, host: Host, request: Request) -> Any:
        query = request.query_params
        ask = functools.partial(
            host.pages.agents, query.get("q", ""), of_class=query.get("class"), sort=query.get("sort", "")
        )
        return await _searched("agents", ask, whole_of(query.get("after")), most_of(query))

    async def _agent(self, host: Host, request: Request) -> Any:
        agent_id = request.query_params.get("id", "")
        page = await host.pages.agents(agent_id=agent_id, most=1)
        while not page["agents"] and page["next"] is not None:
            page = await host.pages.agents(agent_id=agent_id, after=page["next"], most=1)
        if not page["agents"]:
            raise errors.UnknownAgent(f"the host has no agent {agent_id!r}")
        row = page["agents"][0]
        proxy = await host.client.get_agent(agent_id)
        methods = []
        for name, text in sorted(proxy.__zmqagents_ref__().methods.items()):
            mark, _, signature = text.partition(" ")
            bound = proxy.__zmqagents_method__(name)
            doc = (bound.__doc__ or "") if bound is not None else ""
            methods.append({"name": name, "signature": without_self(signature), "gives": mark.rstrip("!"), "doc": doc})
        calls = await host.pages.calls(agent=agent_id, most=20)
        figures = await self._of_class(host_of(request), row["class"])
        return {**row, "doc": proxy.__doc__ or "", "methods": methods, "figures": figures, "open": calls["calls"]}

    async def _of_class(self, host: str, name: str) -> list[dict[str, Any]]:
        """The figures of the methods of a class since the start of the host, as they were when it was last asked."""
        figures = (await self._house.place(host)).live.figures
        rows = [] if figures is None else rows_between(None, figures)
        return [told_of(row) for row in rows if row.class_name == name]

    async def _calls(self, host: Host, request: Request) -> Any:
        query = request.query_params
        ask = functools.partial(
            host.pages.calls, query.get("q", ""), state=query.get("state"), agent=query.get("agent"),
            method=query.get("method"), of_user=query.get("user"),
        )  # fmt: skip
        return await _searched("calls", ask, number_of(query.get("after")), most_of(query))

    async def _call(self, host: Host, request: Request) -> Any:
        found = (await host.pages.around(request.query_params.get("id", "")))["calls"]
        return {"call": found[0], "around": found[1:]}

    async def _graph(self, host: Host, request: Request) -> Any:
        around = request.query_params.get("around") or None
        return await host.pages.around(around)

    async def _results(self, host: Host, request: Request) -> Any:
        skip, most = whole_of(request.query_params.get("after")), most_of(request.query_params)
        found = await host.client.get_result_list(min(skip + most + 1, 9_999))
        more = len(found) > skip + most
        return {"results": found[skip : skip + most], "next": skip + most if more else None}

    async def _logs(self, host: Host, request: Request) -> Any:
        query = request.query_params
        return await host.client.get_log(whole_of(query.get("after"), low=-1000), query.get("agent") or None)

    async def _errors(self, host: Host, request: Request) -> Any:
        return await host.pages.errors()

    async def _dump(self, host: Host, request: Request) -> Any:
        return await host.client.dump()

    # ------------------------------------------------------------ what the host is told

    async def _cancel(self, host: Host, request: Request) -> Any:
        task_id = id_of(await body_of(request))
        if not await host.client.cancel(task_id):
            return {"task_id": task_id, "cancelled": False, "text": "it had ended already"}
        await asyncio.sleep(END_S)
        text = "cancelled"
        with contextlib.suppress(errors.PermissionRefused):  # the stacks of all calls are for admins
            still = next((row for row in await host.client.dump() if row["task_id"] == task_id), None)
            if still is not None:
                frames = [line.strip() for line in still["stack"].splitlines() if line.strip().startswith("File ")]
                text = "; ".join(["cancelled: its code was told, and still runs", *frames[-1:]])
        return {"task_id": task_id, "cancelled": True, "text": text}

    async def _delete(self, host: Host, request: Request) -> Any:
        agent_id = id_of(await body_of(request))
        await host.client.delete_agent(agent_id)
        return {"deleted": agent_id}

    async def _restart(self, host: Host, request: Request) -> Any:
        agent_id = id_of(await body_of(request))
        return {"restarted": agent_id, "done": await host.client.restart_child(agent_id)}

    async def _drain(self, host: Host, request: Request) -> Any:
        grace: Any = (await body_of(request)).get("grace_s")
        await host.client.stop(float(grace) if type(grace) in (int, float) and 0 <= grace < 1e9 else None)
        return {"draining": True}


async def _searched(name: str, ask: Callable[..., Awaitable[Any]], after: float, most: int) -> dict[str, Any]:
    """The rows ``name`` of a page, from as many pages of the host: each may pass thousands that do not match."""
    found: list[Any] = []
    end = time.monotonic() + SEARCH_S
    while True:
        page = await ask(after=after, most=most - len(found))
        found += page[name]
        after = page["next"]
        if after is None or len(found) >= most or time.monotonic() >= end:
            return {name: found, "next": after, "total": page["total"]}
