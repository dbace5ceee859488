"""The fast lane: the router thread itself runs methods that are known to be short, between two messages.

A hand-off to a worker thread costs more than such a method does. Two ways lead here:

    a short payload for an idle agent       `run_short` runs and answers it at once; it is never registered with the
                                            dispatcher, unless its code keeps the thread
    any other call of a quick method        the dispatcher starts it, it is queued, and `run` runs it before the router
                                            thread reads on

That a method is short is a guess from its past (`timing`). If the guess is wrong, another thread takes over the
router loop in the middle of a run (see `leader`). So nothing is half done when agent code begins: what the loop needs
is in the fields of the broker and of this object. The former router thread hands its result in as a worker does and
raises `Relieved`.

All of this belongs to the router thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextvars import Context

from ..agents.context import RunningCall
from ..agents.timing import HeldPace
from ..execution.runner import NOTHING, AgentHost
from ..execution.threads import Done, WorkerPool
from ..scheduler.dispatcher import FORWARDED, PASSED_ON, Dispatcher
from ..scheduler.effects import Answer, Effect, Keep
from ..scheduler.records import Ticket
from ..wire.messages import Call, Flag, Kind, Op, Reply, answer_frames
from .delivery import Delivery
from .leader import Leader, Relieved
from .session import Session

__all__ = ["FastLane"]

log = logging.getLogger(__name__)

_RESULT, _DETACHED = int(Kind.RESULT), int(Flag.DETACHED)


class FastLane:
    """See the module's docstring. ``queue`` holds calls that are started and that the router thread is to run."""

    def __init__(
        self, dispatcher: Dispatcher, leader: Leader, host: AgentHost, pool: WorkerPool, delivery: Delivery, *,
        carry_out: Callable[[list[Effect]], None], keep: Callable[[Keep], None], answer: Callable[[Answer], None],
        hand_in: Done, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.is_open: bool = dispatcher.config.fast_lane
        self._is_child = dispatcher.config.parent is not None
        self.queue: deque[Ticket] = deque()
        self._short: Ticket | None = None  # runs now, and is not registered with the dispatcher
        self._dispatcher = dispatcher
        self._leader = leader
        self._run, self._too_late, self._services = host.run, host.too_late, host.services
        self._short_bytes = host.short_bytes  # of a payload: a longer one waits for the turn of its user
        self._pool = pool
        self._delivery = delivery
        self._carry_out = carry_out
        self._keep = keep
        self._answer = answer
        self._hand_in = hand_in
        self._clock = clock

    def __repr__(self) -> str:
        return f"<FastLane [{'open' if self.is_open else 'closed'}, {len(self.queue)} calls]>"

    def register_short(self) -> None:
        """A thread takes over the router loop: register the call with which its predecessor is busy."""
        if self._short is not None:
            self._dispatcher.enter(self._short)
            self._short = None

    def may_take(self, ticket: Ticket) -> bool:
        """Whether this call of a quick method may be run here: its arguments must be at hand and soon decoded."""
        return self.is_open and not ticket.dep_replies and len(ticket.body[0]) <= self._short_bytes

    def start(self, ticket: Ticket) -> None:
        """Let the code of a call begin, or make an agent, whose `Home` wants it: here if short, or in a thread."""
        pace = ticket.pace
        if isinstance(pace, HeldPace) and pace.is_short and self.may_take(ticket):
            self.queue.append(ticket)
        else:
            self._pool.start(ticket)

    def run(self, end: float) -> float:
        """Run what is queued, but begin nothing after ``end``; the time then. Raises `Relieved`."""
        leader, queue, now = self._leader, self.queue, self._clock()
        while queue and now < end:
            self._delivery.push_some(now)
            ticket = queue.popleft()
            if not leader.can_watch():
                self._pool.start(ticket)
                continue
            if ticket.settled and (ticket.op != Op.CREATE or ticket.agent.home is None):  # cancelled before it began
                reply = NOTHING  # but whether an agent of a cluster is made depends on no caller
            elif ticket.deadline is not None and ticket.deadline <= now:  # as in `WorkerPool`
                reply = self._too_late(ticket)
            else:
                reply, now = self._run_here(ticket, self._pool.prepare(ticket), now)
            if ticket.agent.home is not None:  # in its order behind the state that the code has handed in
                self._hand_in(ticket, reply)
                continue
            try:
                self._carry_out(self._dispatcher.on_done(ticket, reply, now))
            except Exception:  # a bug of this package: the host goes on
                log.exception("the end of %s could not be handled", ticket.task_id)
        return now

    def run_passed_on(self, session: Session, call: Call, now: float) -> float:
        """As `run_short`, for a call that the host of this child has passed on, or another member."""
        if call.options.keys() != (FORWARDED if self._is_child else PASSED_ON) or call.deps or not call.agent:
            return 0.0
        if not (self._is_child or session.caller.is_member) or sum(map(len, call.body)) > self._short_bytes:
            return 0.0
        return self.run_short(session, call, now, is_passed_on=True)

    def run_short(self, session: Session, call: Call, now: float, *, is_passed_on: bool = False) -> float:
        """Run and answer a call whose payload has come with its header, if nothing about it is unusual; the time then.

        0.0: it was not run, and the dispatcher must accept the call. ``is_passed_on``: by `run_passed_on`. Most calls
        of a busy host are short, and the general way costs them several times as much as their own code: see
        `Dispatcher.start_short` for the conditions. Raises `Relieved`.
        """
        dispatcher = self._dispatcher
        if is_passed_on:
            ticket = dispatcher.start_passed_on(session.caller, call, now)
        else:
            ticket = dispatcher.start_short(session.caller, call, now)
        if ticket is None:
            return 0.0
        leader = self._leader
        if leader.standby is None and not leader.can_watch():
            return 0.0
        replies = session.replies
        session.last_seen = now
        needed = call.needed
        if needed > replies.needed:
            replies.acknowledge(needed)
        delivery = self._delivery
        if delivery.unsent:
            delivery.push_some(now)
        if dispatcher.traces is not None and call.options:
            dispatcher.traces.accepted(ticket, call.options)
        self._short = ticket
        record, call_id = ticket.agent, ticket.call_id
        context = RunningCall(self._services, ticket.task_id, record.agent_id, ticket.name, ticket.deadline, (), ticket)
        ticket.begin(context)  # as `WorkerPool.prepare`: it has no chain, and is no stream
        reply, now = self._run_here(ticket, context, now)
        self._short = None
        if (admits := record.admits) is not None:
            assert ticket.method is not None  # it has a pace
            if context.has_reminded or not admits(ticket.method):  # something is to be kept, or its home waits
                dispatcher.enter(ticket)
                self._hand_in(ticket, reply)
                return now
        dispatcher.end_short(ticket, reply, now)
        if ticket.flags & _DETACHED:
            self._keep(Keep(ticket.task_id, reply))
        if reply.code:
            self._answer(Answer(session.caller, call_id, reply))
            return now
        replies.note(call_id, reply)
        delivery.unsent.append((session, answer_frames(_RESULT, call_id, session.token, reply.body)))
        return now

    def _run_here(self, ticket: Ticket, context: RunningCall, now: float) -> tuple[Reply, float]:
        """Run agent code; the reply and the time then. Raises `Relieved` if another thread leads the loop by then."""
        pace = ticket.pace
        assert pace is not None
        self._leader.begin()
        reply = Context().run(self._run, ticket, context)
        if not self._leader.end():
            pace.disappoint()
            self._hand_in(ticket, reply)
            raise Relieved
        clock = self._clock  # `self._clock()` would look for a method of that name first, at each call
        ended = clock()
        pace.note(ended - now)
        return reply, ended
