"""What the reader of a result is told: the reply that a store has, or why there is none."""

from __future__ import annotations

from .. import errors
from ..config import BrokerConfig
from ..wire.messages import Reply, error_reply, reply_from_bytes
from .base import Found, State

__all__ = ["reply_for"]


def reply_for(found: Found, task_id: str, config: BrokerConfig) -> Reply:
    """The answer to a reader of ``task_id``. Raises RemoteProtocolError for a value that is no reply."""
    if found.state is State.DONE and found.value is not None:
        return reply_from_bytes(found.value)
    error: errors.CallError
    if found.state is State.EXPIRED:
        error = errors.ResultExpired(
            f"the result of {task_id} was dropped: results are kept {config.max_expire_time:g} s, at most "
            f"{config.max_pool_size} of them"
        )
    elif found.state is State.LOST:
        error = errors.CallLost(f"the host that ran {task_id} is gone")
    else:
        error = errors.UnknownTask(f"{config.server_id} does not know the task {task_id!r}")
    return error_reply(error, call_id=task_id)
