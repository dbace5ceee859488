"""What the code of an agent asks for with ``current_call().remind``: looked at and packed, where the call runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import codec, errors
from ...agents.state import Reminder
from ...checks import CLUSTER
from ...scheduler.records import MANY, AgentRecord, Ticket
from ...wire.messages import Op

__all__ = ["check_reminds", "made_reminder"]

MAX_NAME_CHARS = 100
MAX_ARGUMENT_BYTES = 16_384
MIN_EVERY_S = 1.0
MAX_S = 366 * 24 * 3600.0 * 100


def check_reminds(ticket: Ticket, *, over: bool) -> None:
    """Raise ConfigError if the code of ``ticket`` can set no reminder. ``over``: it has returned."""
    record, label = ticket.agent, ticket.label
    options = record.options
    if not record.agent_id.startswith(CLUSTER):
        raise errors.ConfigError(f"{record.agent_id} is no agent of a cluster, and only these have reminders")
    if over or ticket.op not in ("", Op.CREATE):
        raise errors.ConfigError(f"{label} has ended, and a reminder goes with the turn of a call that runs")
    if not ticket.exclusive:
        raise errors.ConfigError(f"{label} is @concurrent: it does not have the agent's turn, and sets no reminder")
    if options.persist is not None and (options.reentrant or 1 < options.max_concurrency < MANY):
        why = "reminders go with the state of one turn, and so with neither max_concurrency above 1 nor reentrant"
        raise errors.ConfigError(f"{record.agent_id}: {why}")


def made_reminder(
    ticket: Ticket, name: str, method: str, args: Sequence[Any], after: float | None, every: float | None
) -> Reminder:
    """The reminder that the code of ``ticket`` asks for; ``method`` "": that it cancels.

    Raises ConfigError, SerializationError, MessageTooLarge.
    """
    if not isinstance(name, str) or not name.isprintable() or "/" in name or not 0 < len(name) <= MAX_NAME_CHARS:
        what = f"1 to {MAX_NAME_CHARS} printable characters without a slash"
        raise errors.ConfigError(f"the name of a reminder must have {what}, not {name!r}")
    if not method:
        return Reminder(name, 0.0, 0.0, "", ())
    _check_method(ticket.agent, method)
    every_s = 0.0 if every is None else _seconds(every, "every", MIN_EVERY_S)
    if after is None and every is None:
        raise errors.ConfigError(f"the reminder {name} needs after= or every=, in seconds")
    after_s = every_s if after is None else _seconds(after, "after", 0.0)
    what = f"the arguments of the reminder {name}: "
    body = codec.encode_call(tuple(args), {}, what=what, max_bytes=MAX_ARGUMENT_BYTES)
    if body.tasks:
        raise errors.ConfigError(f"{what}a result that is not there yet is among them: wait for it first")
    return Reminder(name, after_s, every_s, method, (bytes(body.payload), *map(bytes, body.buffers)))


def _check_method(record: AgentRecord, method: str) -> None:
    spec = record.spec.methods.get(method) if isinstance(method, str) else None
    if spec is None:
        raise errors.ConfigError(f"{record.agent_id} ({record.spec.short}) has no public method {method!r}")
    if spec.concurrent or spec.returns == "stream":
        why = "is a stream, which nobody would read" if spec.returns == "stream" else "is @concurrent, and has no turn"
        raise errors.ConfigError(f"{record.spec.short}.{method} {why}: a reminder cannot call it")


def _seconds(value: float, what: str, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= MAX_S:
        raise errors.ConfigError(f"{what} must be {least:g} seconds or more, not {value!r}")
    return float(value)
