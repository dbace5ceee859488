"""The state of agents: saved in the turn of the call that may have changed it, and put back into an agent made again.

``persist="call"``: after each call that had the agent's turn, and when the agent has been made. ``"idle"``: when the
agent ends. Both: when the agent's code says ``current_call().save()``. The state is packed where the call runs, before
the call is answered; if that fails, the call gets the error, unless its own code has failed: then that is one line in
the log. A call that has failed leaves what it has changed, and that is saved.

All this is done by a `KeepingHost`, which a host is that has a `Keeper`. No other host knows of it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

from ... import codec
from ...agents.context import RunningCall
from ...agents.spec import annotated
from ...agents.state import Snapshot
from ...scheduler.records import END, Ticket
from ...wire.messages import Op, Reply
from ..runner import PARKED, AgentHost
from .saving import StateSaver

__all__ = ["KeepingHost", "agent_host"]

log = logging.getLogger(__name__)


class KeepingHost(AgentHost):
    """An `AgentHost` that saves the state of its agents; see the module's docstring."""

    def __init__(self, *given: Any, saver: StateSaver, **more: Any) -> None:
        super().__init__(*given, **more)
        self._saver = saver

    # ------------------------------------------------------------ in a worker thread

    def run(self, ticket: Ticket, context: RunningCall) -> Reply:
        """See `AgentHost.run`."""
        if ticket.op == END:
            return self._save(ticket, context, lambda: super(KeepingHost, self).run(ticket, context))
        reply = super().run(ticket, context)
        return self._save(ticket, context, lambda: reply) if self._is_due(ticket, reply) else reply

    def resume(self, ticket: Ticket, context: RunningCall) -> Reply:
        """See `AgentHost.resume`."""
        reply = super().resume(ticket, context)
        return self._save(ticket, context, lambda: reply) if self._is_due(ticket, reply) else reply

    def _save(self, ticket: Ticket, context: RunningCall, run: Callable[[], Reply]) -> Reply:
        failed = self._save_here(ticket, context) if self._has_state(ticket) else None
        return self._with_error(ticket, run(), failed)

    def _save_here(self, ticket: Ticket, context: RunningCall) -> BaseException | None:
        """What has failed."""
        context.begin_again()
        is_saved = False
        try:
            later = self._saver.save(ticket.agent)
            if later is not None:
                with self.services.outside(context):
                    self._await_value(later)
                    is_saved = True
        except BaseException as exc:
            return None if is_saved else exc  # a call that has ended may not wait, and is told so when it has
        finally:
            context.end()
        return None

    # ------------------------------------------------------------ on the event loop

    async def run_on_loop(self, ticket: Ticket, context: RunningCall) -> Reply:
        """See `AgentHost.run_on_loop`."""
        if ticket.op == END:
            failed = await self._save_on_loop(ticket, context)
            return self._with_error(ticket, await super().run_on_loop(ticket, context), failed)
        reply = await super().run_on_loop(ticket, context)
        return await self._saved_on_loop(ticket, context, reply)

    async def run_rest(self, ticket: Ticket, context: RunningCall) -> Reply:
        """See `AgentHost.run_rest`."""
        return await self._saved_on_loop(ticket, context, await super().run_rest(ticket, context))

    async def _saved_on_loop(self, ticket: Ticket, context: RunningCall, reply: Reply) -> Reply:
        if not self._is_due(ticket, reply):
            return reply
        return self._with_error(ticket, reply, await self._save_on_loop(ticket, context))

    async def _save_on_loop(self, ticket: Ticket, context: RunningCall) -> BaseException | None:
        if not self._has_state(ticket):
            return None
        context.begin_again()
        try:
            later = self._saver.save(ticket.agent)
            if later is not None:
                await later
        except BaseException as exc:
            return exc
        finally:
            context.end()
        return None

    # ------------------------------------------------------------ both

    def _is_due(self, ticket: Ticket, reply: Reply) -> bool:
        """Whether the state is to be saved, for the call is over and may have changed it."""
        record, context = ticket.agent, ticket.context
        if record.options.persist is None or not self._saver.keeper.keeps(record.agent_id):
            return False
        if record.options.persist == "idle" and not (
            ticket.is_tick or (context is not None and context.has_reminded)
        ):  # reminders are kept with the state
            return False
        return ticket.exclusive and ticket.op in ("", Op.CREATE) and reply is not PARKED

    def _has_state(self, ticket: Ticket) -> bool:
        record = ticket.agent
        if record.options.persist is None or record.instance is None:
            return False
        return self._saver.keeper.keeps(record.agent_id)

    def _with_error(self, ticket: Ticket, reply: Reply, failed: BaseException | None) -> Reply:
        if failed is None:
            return reply
        if reply.code:
            log.warning("%s: its state was not saved: %s: %s", ticket.label, type(failed).__name__, failed)
            return reply
        return self.failure(ticket, failed)

    def _instance_for(self, ticket: Ticket) -> Any:
        """The object of a new agent, with the state that was kept of it."""
        instance = super()._instance_for(ticket)
        record = ticket.agent
        snapshot = self._saver.keeper.last(record.agent_id) if record.options.persist is not None else None
        if snapshot is None:
            return instance
        hooks = record.spec.hooks
        state = self._state_in(snapshot, type(instance))
        value = instance.load_state(*((state, snapshot.version) if hooks.takes_version else (state,)))
        if inspect.isawaitable(value) and ticket.context is not None:
            with self.services.outside(ticket.context):
                self._await_value(value)
        return instance

    def _state_in(self, snapshot: Snapshot, cls: type) -> Any:
        """The state: it may hold objects of the classes that the annotations of ``load_state`` name."""
        methods, skip = annotated(cls, "load_state")
        scope = self._own_scope._replace(expected=codec.expected_by(*methods, skip=skip))
        payload, *buffers = snapshot.frames

        def resolve(ref: codec.AgentRef | codec.TaskRef) -> Any:
            return self._bind(ref, None, scope)

        return codec.decode(payload, buffers, resolve=resolve, scope=scope, root="state", place=0)


def agent_host(saver: StateSaver | None, *given: Any, **more: Any) -> AgentHost:
    """The `AgentHost` for these parameters; with a ``saver`` it saves states."""
    return AgentHost(*given, **more) if saver is None else KeepingHost(*given, saver=saver, **more)
