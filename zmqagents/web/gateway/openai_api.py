"""The chat completions of OpenAI: an agent as a model, which answers whole or piece by piece.

The model is the id of an agent. What goes beside the messages and ``stream`` is left to the agent: the values of
``metadata`` are further arguments of its method, of the same names.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .bodies import object_of, while_there
from .chats import Talk, is_chat
from .failures import BadArguments, NotShown, failure, status_of, text_of, type_of
from .json_api import EVENTS, event
from .offers import Offer
from .shared import Shared

__all__ = ["OpenAIApi"]


class OpenAIApi:
    """The routes under ``/v1``."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def routes(self) -> list[Route]:
        """All of them."""
        route = self._shared.route
        return [
            route("/v1/models", self._models, ["GET"], _as_openai),
            route("/v1/models/{model:path}", self._model, ["GET"], _as_openai),
            route("/v1/chat/completions", self._complete, ["POST"], _as_openai),
        ]

    async def _models(self, request: Request) -> Response:
        offers = await self._shared.offers.all(self._shared.who(request))
        return JSONResponse({"object": "list", "data": [_model_of(offer) for offer in offers if is_chat(offer)]})

    async def _model(self, request: Request) -> Response:
        offer = await self._shared.offers.of(self._shared.who(request), request.path_params["model"])
        if not is_chat(offer):
            raise NotShown(f"{offer.agent_id} has no method reply")
        return JSONResponse(_model_of(offer))

    async def _complete(self, request: Request) -> Response:
        shared, wish = self._shared, self._shared.wish(request)
        body, _ = await object_of(request)
        model, messages = body.get("model"), body.get("messages")
        if not isinstance(model, str):
            raise BadArguments("model: the id of an agent is needed")
        if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
            raise BadArguments("messages: a list of messages is needed, each with role and content")
        more = body.get("metadata")
        offer = await shared.offers.of(wish.who, model)
        talk = Talk(shared.calls, wish, offer, messages, more if isinstance(more, dict) else {})
        answer_id, made = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        if body.get("stream"):
            options = body.get("stream_options")
            with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            chunks = _chunks(talk, {"id": answer_id, "created": made, "model": model}, with_usage)
            return StreamingResponse(chunks, headers=EVENTS, media_type="text/event-stream")
        text = await while_there(request, talk.whole())
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        return JSONResponse(
            {"id": answer_id, "object": "chat.completion", "created": made, "model": model, "choices": [choice],
             "usage": _NO_USAGE}
        )  # fmt: skip


_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # agents do not say


async def _chunks(talk: Talk, about: dict[str, Any], with_usage: bool) -> AsyncIterator[bytes]:
    def chunk(delta: dict[str, Any], end: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": end, "logprobs": None}
        return event({**about, "object": "chat.completion.chunk", "choices": [choice]})

    pieces = talk.pieces()
    try:
        yield chunk({"role": "assistant", "content": ""})
        async for piece in pieces:
            yield chunk({"content": piece})
    except Exception as exc:
        yield event(_as_openai(exc))
    else:
        yield chunk({}, "stop")
        if with_usage:
            yield event({**about, "object": "chat.completion.chunk", "choices": [], "usage": _NO_USAGE})
        yield b"data: [DONE]\n\n"
    finally:
        await pieces.aclose()


def _model_of(offer: Offer) -> dict[str, Any]:
    return {"id": offer.agent_id, "object": "model", "created": 0, "owned_by": offer.class_name}


def _as_openai(error: BaseException) -> dict[str, Any]:
    """``error`` in the form that clients of OpenAI read."""
    return {
        "error": {
            "message": text_of(error), "type": type_of(error), "param": None, "code": status_of(error),
            **{key: value for key, value in failure(error)["error"].items() if key in ("agent", "method")},
        }
    }  # fmt: skip
