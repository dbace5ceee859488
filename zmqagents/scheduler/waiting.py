"""Calls that wait for other calls, and the waits that are refused because they could never end.

A call waits in three ways. Its arguments are results of calls that are not finished (it is parked, and its code has not
started). Its code waits for calls of this host. Or its code waits for something that this host cannot see: calls of
other hosts, which may come back here in the same chain, or whatever else may block a thread.

Deadlock. A wait that could never end is refused with `DeadlockError`, so no call is ever stuck; `wait_graph` finds such
waits. It is asked whenever a call begins to wait, and when a call that others may wait for begins to queue. Where the
class is ``reentrant``, a call that comes back in its own chain is let in beside the turn instead, at that moment and
not before: two calls of such an agent never run at the same time.

Threads and coroutines. A thread waits once at a time and gets exactly one `Resume` for each wait. A coroutine may have
several waits, which all count as needed. It holds no slot, and its results reach it by themselves; so it gets a
`Resume` only if a wait is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from .. import errors
from ..errors import ZmqAgentsError
from ..wire.messages import Reply
from . import wait_graph
from .admission import Admission
from .calls import Calls
from .effects import Effect, Lookup, Resume
from .records import State, Ticket

__all__ = ["EndWaits", "Waiting"]

EndWaits = Callable[[Collection[Any]], bool]


class Waiting:
    """What the calls of one host wait for.

    The methods ``on_...`` are events and return effects; the dispatcher calls the other methods, which append their
    effects to the list that they are given. ``end_waits``: ends those waits of calls on members that are over although
    that was not told yet; False: there are none.
    """

    def __init__(self, calls: Calls, admission: Admission, end_waits: EndWaits | None = None) -> None:
        self._end_waits = end_waits
        self._calls = calls
        self._admission = admission

    # ------------------------------------------------------------ events: calls of this host

    def on_wait(
        self, ticket: Ticket, task_ids: Iterable[str], now: float, *, any_of: bool = False, parked: bool = False
    ) -> list[Effect]:
        """The code of ``ticket`` waits for calls of this host: all of them, or ``any_of`` them.

        ``parked``: it has left its thread, as a stream does.
        """
        effects: list[Effect] = []
        refusal = self.refusal(ticket, parked=parked)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        tasks = self._calls.tasks
        found = [tasks.get(task_id) for task_id in dict.fromkeys(task_ids)]
        targets = [target for target in found if target is not None]
        if not targets or (any_of and (not ticket.threaded or len(targets) < len(found))):
            return effects if ticket.on_loop else [Resume(ticket)]  # what it waits for is there already
        self.begin(ticket, targets, any_of, effects, now, parked=parked)
        return self.end(effects, now)

    def on_unwait(self, ticket: Ticket, task_ids: Iterable[str]) -> list[Effect]:
        """A coroutine has given up one wait, for exactly these calls."""
        for task_id in dict.fromkeys(task_ids):
            target = self._calls.tasks.get(task_id)
            if target is not None:
                wait_graph.drop_edge(ticket, target)
        _run_again(ticket)
        return []

    def on_wait_over(self, ticket: Ticket, now: float) -> list[Effect]:
        """The wait of ``ticket`` ended from its own side (it timed out, or what is outside is there)."""
        effects: list[Effect] = []
        if ticket.state is State.WAITING and not ticket.on_loop:
            self._calls.wake(ticket, effects, now)
        return self.end(effects, now)

    # ------------------------------------------------------------ events: outside of this host

    def on_wait_outside(
        self, ticket: Ticket, now: float, *, task_ids: Iterable[str] = (), parked: bool = False
    ) -> list[Effect]:
        """The code of ``ticket`` waits for something that this host cannot see.

        ``task_ids``: the calls of other hosts that it waits for, where they are known; a call that comes back
        from one of them and needs this one is a deadlock. Not known: any call that came back in its chain.
        """
        effects: list[Effect] = []
        refusal = self.refusal(ticket, parked=parked)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        if ticket.on_loop:  # it has no slot to give, and may await other things meanwhile
            return effects
        ticket.state = State.WAITING
        ticket.outside = frozenset(task_ids)
        cycle = self._closes_cycle(ticket, None, now, effects) if ticket.returns else None
        if cycle is None:
            self._calls.lend_slot(ticket, effects, now, parked=parked)
        else:
            ticket.state, ticket.outside = State.RUNNING, None
            effects.append(Resume(ticket, wait_graph.deadlock_error(cycle)))
        return self.end(effects, now)

    def on_await_outside(self, ticket: Ticket, task_id: str, now: float) -> list[Effect]:
        """A coroutine awaits the call ``task_id`` of another host, beside whatever else it awaits."""
        effects: list[Effect] = []
        refusal = self.refusal(ticket)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        before = ticket.outside
        ticket.state = State.WAITING
        ticket.outside = (before or frozenset()) | {task_id}
        cycle = self._closes_cycle(ticket, None, now, effects) if ticket.returns else None
        if cycle is not None:
            ticket.outside = before
            _run_again(ticket)
            effects.append(Resume(ticket, wait_graph.deadlock_error(cycle)))
        return self.end(effects, now)

    def on_go_outside(self, ticket: Ticket, now: float) -> list[Effect]:
        """The code of ``ticket``, which runs on a member, waits for what neither that nor this host can see.

        It is over with `on_unawait_outside` of the task id "". Calls that came back in its chain cannot start before:
        they are refused, as the code itself hears of nothing until the wait is over.
        """
        effects: list[Effect] = []
        if self.refusal(ticket) is not None:
            return effects
        before, ticket.outside = ticket.outside, frozenset()
        ticket.state = State.WAITING
        cycle = self._closes_cycle(ticket, None, now, effects) if ticket.returns else None
        if cycle is None:
            return self.end(effects, now)
        ticket.outside = before
        effects += self.refuse_returns(ticket, wait_graph.deadlock_error(cycle), now)
        ticket.outside = frozenset()
        return self.end(effects, now)

    def on_unawait_outside(self, ticket: Ticket, task_id: str) -> list[Effect]:
        """The wait that `on_await_outside` began is over."""
        if ticket.on_loop and ticket.outside is not None:
            ticket.outside = (ticket.outside - {task_id}) or None
            _run_again(ticket)
        return []

    def refuse_returns(self, ticket: Ticket, error: ZmqAgentsError, now: float) -> list[Effect]:
        """End the calls that came back in the chain of ``ticket`` and have not started: they wait for it."""
        effects: list[Effect] = []
        for back in list(ticket.returns or ()):
            if not back.settled and back.state < State.RUNNING:
                self._calls.refuse(back, error, effects, now)
        return self.end(effects, now)

    # ------------------------------------------------------------ parked: arguments that are not there yet

    def on_dep(self, ticket: Ticket, task_id: str, reply: Reply, now: float) -> list[Effect]:
        """The store, or another host, answers for an argument of a parked call."""
        effects: list[Effect] = []
        self._dep_done(ticket, task_id, reply, effects, now)
        return self.end(effects, now)

    def park(self, ticket: Ticket, deps: Sequence[str], effects: list[Effect]) -> None:
        """A new ``ticket`` needs the results of ``deps``, which are task ids, before it may start."""
        missing = wait_graph.add_deps(ticket, deps, self._calls.tasks)
        self._calls.count_bytes(ticket)
        for task_id in missing:
            effects.append(Lookup(ticket.peer, ticket.call_id, task_id, ticket))

    def _dep_done(self, ticket: Ticket, task_id: str, reply: Reply, effects: list[Effect], now: float) -> None:
        if ticket.settled or ticket.dep_replies is None or not ticket.deps or task_id not in ticket.deps:
            return
        del ticket.deps[task_id]
        ticket.dep_replies[task_id] = reply
        if reply.code:  # an argument that failed fails the call, with the argument's own error
            self._calls.drop(ticket, reply, effects, now)
            return
        if ticket.deps:
            return
        ticket.deps = None
        record = ticket.agent
        if record.removed:
            gone = errors.AgentDeleted(f"{record.agent_id} was deleted before {ticket.name} could start")
            self._calls.refuse(ticket, gone, effects, now)
            return
        self._calls.enqueue(ticket, now, effects)
        if ticket.state is State.QUEUED:
            refusal = self._admission.refusal_of_queued(ticket)
            if refusal is not None:
                self._calls.refuse(ticket, refusal, effects, now)
            elif ticket.waiters or ticket.dependents or ticket.came_by:
                self.refuse_if_stuck(ticket, effects, now)

    # ------------------------------------------------------------ for the dispatcher

    def refusal(self, ticket: Ticket, *, parked: bool = False) -> ZmqAgentsError | None:
        """Why ``ticket`` may not wait now, None if it may; ``parked``: without a thread."""
        if ticket.ended is not None:
            return type(ticket.ended)(str(ticket.ended))
        if self._calls.drained:
            return errors.HostStopping("the host has stopped")
        if ticket.state is State.DONE:
            return errors.LocalProtocolError(f"{ticket.label} has returned and cannot wait any more")
        share, blocked = self._calls.shares.waits, self._calls.slots.blocked
        if ticket.slot and not parked and blocked >= share.free and share.refuses(ticket.account.waits, blocked):
            return errors.HostBusy(share.reason(ticket.account.waits, blocked))
        return None

    def begin(
        self, ticket: Ticket, targets: list[Ticket], any_of: bool, effects: list[Effect], now: float, *,
        parked: bool = False,
    ) -> None:  # fmt: skip
        """The code of ``ticket`` waits for ``targets`` from now on, unless that closes a cycle."""
        if ticket.waits_for and ticket.threaded:  # a wait of a call on a member, whose end was not told yet
            wait_graph.drop_edges(ticket)
        ticket.wait_any = any_of
        cycle = self._closes_cycle(ticket, targets, now, effects)
        if cycle is not None:
            error = wait_graph.deadlock_error(cycle)
            for target in targets:  # its own calls among them are over: no code will ever take their results
                own = ticket.spawned is not None and target in ticket.spawned
                if own and target.state < State.RUNNING and wait_graph.stuck_with(ticket, [target]):
                    self._calls.refuse(target, error, effects, now)
            effects.append(Resume(ticket, error))
            return
        wait_graph.add_edges(ticket, targets)
        ticket.state = State.WAITING
        self._calls.lend_slot(ticket, effects, now, parked=parked)

    def refuse_if_stuck(self, ticket: Ticket, effects: list[Effect], now: float) -> None:
        """End a call that has begun to park or queue if that closes a cycle through the calls that wait for it."""
        cycle = self._closes_cycle(ticket, None, now, effects)
        if cycle is not None:
            self._calls.refuse(ticket, wait_graph.deadlock_error(cycle), effects, now)

    def spread(self, effects: list[Effect], now: float) -> None:
        """Tell the calls that wait for what was settled; that may settle others."""
        news = self._calls.news
        while news:
            ticket, reply = news.popleft()
            dependents, ticket.dependents = ticket.dependents, None
            waiters, ticket.waiters = ticket.waiters, None
            for dependent in dependents or ():
                self._dep_done(dependent, ticket.task_id, reply, effects, now)
            for waiter in waiters or ():
                wanted = waiter.waits_for
                if wanted is not None and ticket in wanted:
                    del wanted[ticket]
                    if waiter.on_loop:
                        if waiter.wait_any:
                            wait_graph.drop_edges(waiter)
                        _run_again(waiter)
                    elif waiter.wait_any or not wanted:
                        self._calls.wake(waiter, effects, now)

    def end(self, effects: list[Effect], now: float) -> list[Effect]:
        """The end of every event: tell the calls that wait for what was settled; see whether the drain is over."""
        calls = self._calls
        if calls.news:
            self.spread(effects, now)
        if calls.drain is not None:
            if calls.drained:
                return []
            if not calls.tasks and not calls.lingering and not calls.end_agents(effects, now):
                calls.end_drain(0, effects)
        return effects

    def _closes_cycle(
        self, ticket: Ticket, targets: list[Ticket] | None, now: float, effects: list[Effect]
    ) -> list[Ticket] | None:
        """The cycle that ``ticket`` closes by waiting for ``targets``, after all that may re-enter has been let in."""
        while stuck := wait_graph.stuck_with(ticket, targets):
            if self._end_waits is not None and self._end_waits(stuck):
                continue
            inner = next((node for node in stuck if isinstance(node, Ticket) and wait_graph.reenters(node)), None)
            if inner is None:
                self._calls.counters.deadlocks += 1
                return wait_graph.closing_cycle(ticket, stuck, targets)
            self._calls.let_in(inner, now, effects)
        return None


def _run_again(ticket: Ticket) -> None:
    """A coroutine that awaits nothing more is running."""
    if ticket.state is State.WAITING and not ticket.waits_for and not ticket.outside:
        ticket.state = State.RUNNING
