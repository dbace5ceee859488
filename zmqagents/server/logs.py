"""The log of a host's process: who speaks is the call whose code runs. See `telemetry.program`."""

from __future__ import annotations

from ..agents.context import own_call
from ..config import BrokerConfig
from ..security.zap import name_of
from ..telemetry.program import Program, Speaker, current
from ..tracing.switch import current_ids

__all__ = ["begin", "flush", "speaker"]


def speaker() -> Speaker | None:
    """The call that this thread or coroutine runs, with its ids; None outside of one."""
    call = own_call()
    if call is None:
        return None
    fields = {"agent": call.agent, "method": call.method, "task_id": call.call_id}
    ticket = call.ticket
    if ticket is not None:
        fields |= {"class": ticket.agent.spec.name, "user": name_of(ticket.owner)}
    return Speaker(call, fields | current_ids(), lambda: call.over)


def begin(config: BrokerConfig, *, threaded: bool = True) -> Program | None:
    """Begin to log as the settings say; None: this process uses the package as a library.

    In a fork of a process that logs, that goes on. ``threaded``: see `Program.start`.
    """
    if config.logs is None:
        return None
    return Program.start(config.logs, config.server_id, speaker, threaded=threaded)


def flush() -> None:
    """Write what waits, for a moment: the process ends."""
    program = current()
    if program is not None:
        program.flush()
