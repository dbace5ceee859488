"""The Agent2Agent protocol: each agent has a card, and is sent messages at ``/a2a/ID``.

A message is a task. Its text is for `Talk`; a data part ``{"method": NAME, "arguments": {...}}`` calls a method, each
of which is a skill. A task goes on when its sender has hung up, and ends when it is cancelled, as its call is then.
Tasks are known to their users alone, and to this process: it remembers the latest.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, unquote

from a2a.auth.user import User
from a2a.helpers import get_data_parts, get_text_parts, new_data_part, new_task, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.context import ServerCallContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import a2a_pb2 as proto
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...version import __version__
from ..access import Principal
from .bodies import path_of
from .calls import Wish
from .chats import Talk, is_chat
from .failures import BadArguments, text_of, type_of
from .offers import Offer
from .revival import plain
from .shared import Shared

__all__ = ["A2AAgents"]

MAX_TASKS = 10_000  # that one agent has had
MAX_AGENTS = 1_000  # whose tasks are remembered
_SUBMITTED = proto.TaskState.TASK_STATE_SUBMITTED
CARD = ".well-known/agent-card.json"


class A2AAgents:
    """The routes under ``/a2a``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._agents: OrderedDict[str, tuple[DefaultRequestHandlerV2, JsonRpcDispatcher]] = OrderedDict()

    def routes(self) -> list[Route]:
        """All of them."""
        route = self._shared.route
        return [route("/a2a/{rest:path}", self._card, ["GET"]), route("/a2a/{rest:path}", self._talk, ["POST"])]

    @asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The time in which it serves."""
        try:
            yield
        finally:
            for handler, _ in self._agents.values():
                await handler.aclose()

    async def _card(self, request: Request) -> Response:
        who = self._shared.who(request)
        agent_id, _, rest = _path(request).partition("/")
        if rest != CARD:
            raise HTTPException(404, f"the card of an agent is /a2a/ID/{CARD}")
        offer = await self._shared.offers.of(who, unquote(agent_id))
        return JSONResponse(agent_card_to_dict(_card_of(offer, str(request.base_url))))

    async def _talk(self, request: Request) -> Response:
        wish = self._shared.wish(request)._replace(timeout_s=None)
        offer = await self._shared.offers.of(wish.who, unquote(_path(request)))
        return await self._dispatcher(offer, str(request.base_url)).handle_requests(request)

    def _dispatcher(self, offer: Offer, base: str) -> JsonRpcDispatcher:
        known = self._agents.get(offer.agent_id)
        if known is None:
            handler = DefaultRequestHandlerV2(
                agent_executor=_Executor(self._shared, offer.agent_id), task_store=_Tasks(),
                agent_card=_card_of(offer, base),
            )  # fmt: skip
            dispatcher = JsonRpcDispatcher(handler, context_builder=_Contexts(self._shared), enable_v0_3_compat=True)
            known = self._agents[offer.agent_id] = handler, dispatcher
            if len(self._agents) > MAX_AGENTS:
                self._agents.popitem(last=False)
        return known[1]


def _path(request: Request) -> str:
    """What follows ``/a2a/``."""
    return path_of(request).removeprefix("/a2a/").rstrip("/")


class _User(User):
    def __init__(self, who: Principal) -> None:
        self._who = who

    @property
    def is_authenticated(self) -> bool:
        """Always: nobody else comes so far."""
        return True

    @property
    def user_name(self) -> str:
        """By which tasks are told apart."""
        return self._who.user


class _Contexts(DefaultServerCallContextBuilder):
    """Notes what goes with the calls of a request."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def build(self, request: Request) -> ServerCallContext:
        context = super().build(request)
        context.state["wish"] = self._shared.wish(request)._replace(timeout_s=None)
        return context

    def build_user(self, request: Request) -> User:
        return _User(self._shared.who(request))


class _Tasks(InMemoryTaskStore):
    """Keeps the latest tasks."""

    def __init__(self) -> None:
        super().__init__()
        self._saved: OrderedDict[str, ServerCallContext] = OrderedDict()

    async def save(self, task: proto.Task, context: ServerCallContext) -> None:
        await super().save(task, context)
        self._saved[task.id] = context
        if len(self._saved) > MAX_TASKS:
            await self.delete(*self._saved.popitem(last=False))


class _Executor(AgentExecutor):
    """Carries out the messages to one agent."""

    def __init__(self, shared: Shared, agent_id: str) -> None:
        self._shared = shared
        self._agent_id = agent_id

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        """Answer a message, as a task."""
        message, call_context = context.message, context.call_context
        assert message is not None
        assert call_context is not None
        if context.current_task is None:
            task = new_task(context.task_id or "", context.context_id or "", _SUBMITTED, history=[message])
            await event_queue.enqueue_event(task)
        else:
            task = context.current_task
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        try:
            await self._answer(call_context.state["wish"], message, task, updater)
        except Exception as exc:
            text = f"{type_of(exc)}: {text_of(exc)}"
            await updater.failed(updater.new_agent_message([new_text_part(text)]))
        else:
            await updater.complete()

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        """The task is cancelled; `execute` is, too, when this has returned."""
        await TaskUpdater(event_queue, context.task_id or "", context.context_id or "").cancel()

    async def _answer(self, wish: Wish, message: proto.Message, task: proto.Task, updater: TaskUpdater) -> None:
        offer = await self._shared.offers.of(wish.who, self._agent_id)
        order = next((part for part in get_data_parts(message.parts) if isinstance(part, dict)), None)
        artifact = str(uuid.uuid4())
        if order is not None:
            async for part in self._carry_out(wish, offer, order):
                await updater.add_artifact([part], artifact_id=str(uuid.uuid4()))
            return
        more = dict(plain(dict(message.metadata.items())))
        pieces = Talk(self._shared.calls, wish, offer, _history(task, message), more).pieces()
        try:
            is_first = True
            async for piece in pieces:
                await updater.add_artifact([new_text_part(piece)], artifact_id=artifact, append=not is_first)
                is_first = False
        finally:
            await pieces.aclose()

    async def _carry_out(self, wish: Wish, offer: Offer, order: dict[str, Any]) -> AsyncIterator[proto.Part]:
        """The parts of the answer to ``{"method": NAME, "arguments": {...}}``."""
        name, given = order.get("method"), order.get("arguments", {})
        if not isinstance(name, str) or not isinstance(given, dict):
            raise BadArguments('a data part says {"method": NAME, "arguments": {...}}')
        method, calls = offer.method(name), self._shared.calls
        args, kwargs = await method.prepared(given)
        if not method.streams:
            yield new_data_part(plain(await calls.value(wish, offer.agent_id, name, args, kwargs)))
            return
        async with calls.stream(wish, offer.agent_id, name, args, kwargs) as items:
            async for item in items:
                yield new_data_part(plain(item))


def _history(task: proto.Task, last: proto.Message) -> list[dict[str, str]]:
    """The messages of a task as a chat has them, the last one at the end."""
    earlier = [message for message in task.history if message.message_id != last.message_id]
    return [
        {"role": "assistant" if message.role == proto.Role.ROLE_AGENT else "user",
         "content": "\n".join(get_text_parts(message.parts))}
        for message in (*earlier, last)
    ]  # fmt: skip


def _card_of(offer: Offer, base: str) -> proto.AgentCard:
    card = proto.AgentCard(
        name=offer.agent_id, description=offer.doc or f"An agent of the class {offer.class_name}.", version=__version__,
        capabilities=proto.AgentCapabilities(streaming=True), default_input_modes=["text/plain", "application/json"],
        default_output_modes=["text/plain", "application/json"],
    )  # fmt: skip
    url = f"{base.rstrip('/')}/a2a/{quote(offer.agent_id, safe='')}"
    for version in ("1.0", "0.3"):
        card.supported_interfaces.add(url=url, protocol_binding="JSONRPC", protocol_version=version)
    bearer = proto.HTTPAuthSecurityScheme(scheme="bearer")
    card.security_schemes["bearer"].http_auth_security_scheme.CopyFrom(bearer)
    card.security_requirements.add().schemes["bearer"].SetInParent()
    for name, method in offer.methods.items():
        tags = ["chat"] if is_chat(offer) and name == "reply" else ["method"]
        card.skills.add(id=name, name=name, description=method.doc or name, tags=tags)
    return card
