"""Errors as HTTP tells them: a status code and an object of JSON.

The body is ``{"error": {"type", "message"}}`` and, of a call, ``agent`` and ``method``. What an agent's code has raised
comes with its name and its text; its traceback stays in the log of the host.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ... import errors

__all__ = ["BadArguments", "NotShown", "failure", "respond", "status_of", "text_of", "type_of"]


class BadArguments(errors.ZmqAgentsError, ValueError):
    """The arguments of a call are not what the method takes."""


class NotShown(errors.ZmqAgentsError, LookupError):
    """There is no such agent or method, or the gateway does not show it: which, is not told."""


# The first that fits. An agent's own error is the server's, as for any program behind a web server.
_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (BadArguments, 422), (NotShown, 404), (errors.UnknownAgent, 404), (errors.UnknownMethod, 404),
    (errors.UnknownFile, 404), (errors.AgentDeleted, 404), (errors.AuthenticationError, 401),
    (errors.PermissionRefused, 403), (errors.MessageTooLarge, 413), (errors.HostBusy, 503), (errors.HostStopping, 503),
    (errors.StoreFull, 503), (errors.CallTimeout, 504), (errors.DeadlockError, 508), (errors.CallCancelled, 409),
    (concurrent.futures.CancelledError, 409), (errors.AgentCallError, 500), (errors.SerializationError, 422),
    (errors.HostUnreachable, 502), (errors.HostLost, 502), (errors.CallLost, 502),
)  # fmt: skip


def status_of(error: BaseException) -> int:
    """The status code of ``error``."""
    if isinstance(error, HTTPException):
        return error.status_code
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def type_of(error: BaseException) -> str:
    """The name of the class of ``error``; of what an agent's code has raised, that of the agent's."""
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code).phrase.title().replace(" ", "")  # NotFound, MethodNotAllowed
    if isinstance(error, errors.AgentCallError) and error.type_name:
        return error.type_name.rpartition(":")[2]
    return type(error).__name__


def text_of(error: BaseException) -> str:
    """What ``error`` says."""
    if isinstance(error, HTTPException):
        return error.detail
    return error.message if isinstance(error, errors.AgentCallError) and error.type_name else str(error)


def failure(error: BaseException) -> dict[str, Any]:
    """``error`` as the body of an answer."""
    told = {"type": type_of(error), "message": text_of(error)}
    if isinstance(error, errors.CallError) and error.agent:
        told |= {"agent": error.agent, "method": error.method}
    return {"error": told}


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers that go with it: when to try again, or that it is of no use."""
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    if isinstance(error, errors.HostBusy):
        return {"retry-after": str(max(1, round(error.retry_after)))}
    return {"x-should-retry": "false"}  # clients of OpenAI look at this one


def respond(error: BaseException, body: Mapping[str, Any] | None = None) -> JSONResponse:
    """``error`` as an answer; ``body``: instead of that of `failure`."""
    return JSONResponse(failure(error) if body is None else dict(body), status_of(error), headers_of(error))
