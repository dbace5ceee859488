"""Calls that run on a member: sent there with their arguments unread, and answered with results unread.

For the dispatcher a `Forwarder` is like the worker pool: it starts tickets, and tells when their code has returned. The
member tells no earlier than that: a call that is cancelled or too late is answered by this host at once, but keeps its
turn until then.

The credit of a stream goes from its reader to the member as it comes, and nothing is kept between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .. import errors
from ..agents.context import HostServices, Progress, RunningCall
from ..agents.factories.factory import FACTORY_HOOKS
from ..agents.factories.made import Made
from ..agents.state import Reminder, Snapshot
from ..codec import Encoded, pack, unpack
from ..connection.requests import FAR_S, Call, Repeat
from ..errors import HostStopping, ZmqAgentsError
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Effect
from ..scheduler.records import END, MANY, MAX_GIVEN_BYTES, AgentRecord, Home, State, Ticket
from ..wire.messages import (
    PROGRESS,
    REMINDER,
    SNAPSHOT,
    STREAM_WINDOW,
    Code,
    Flag,
    Frame,
    Op,
    Reply,
    call_frame,
    call_frames,
    error_reply,
    passed_on_meta,
    read_error,
    reply_to_bytes,
)
from .line import Line

__all__ = [
    "NO_ARGUMENTS", "Credits", "Forwarded", "Forwarder", "Landlord", "Outlet", "PassOn", "Starve", "forwarded",
    "landlord_of", "reminder_of", "request_of", "snapshot_of",
]  # fmt: skip

KEPT_FLAGS = Flag.ATTRIBUTE | Flag.STREAM
SHORT_CALL_BYTES = 4_096  # of arguments: a call with more is not sent at once
NO_ARGUMENTS = pack([[], {}])

HOLD_S = 0.5  # how long the end of a call waits for a request that it had made
_BESIDE = (SNAPSHOT, REMINDER, PROGRESS)
_HOST_ERROR, _WATCHED, _UNTIL, _STREAM = int(Code.HOST_ERROR), Flag.WATCHED, Flag.UNTIL, Flag.STREAM
_DONE = State.DONE  # an attribute of a class is looked up anew at each use
Starve = Callable[[Ticket, Callable[[ZmqAgentsError], None], Callable[[], bool]], list[Effect]]
PassOn = Callable[[Ticket, int, tuple[Frame, ...]], list[Effect]]


class Outlet(Protocol):
    """What the forwarders of a host have in common."""

    dispatcher: Dispatcher
    services: HostServices
    running: dict[str, Ticket]  # calls whose code runs on some member, by task id
    carry_out: Callable[[list[Effect]], None]
    pass_on: PassOn
    starve: Starve
    clock: Callable[[], float]

    def note_end(self, ticket: Ticket) -> None:
        """The code of ``ticket`` has returned."""

    def later(self, step: Callable[[], None]) -> None:
        """Do ``step`` when what is being done is done."""


class Landlord(Home, Protocol):
    """The home of agents that run in a process of this host: it is told what that says of them.

    ``ticket``: the call in whose turn that is, None while the agent is made again after its process had ended.
    """

    def broken_off(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """The process that ran ``ticket`` has ended; ``reply`` says how. Effects."""
        return self.returned(ticket, reply)

    def given_up(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """No process has run ``ticket``, and none will; effects."""
        return self.returned(ticket, reply)

    def keep(self, record: AgentRecord, state: Snapshot, ticket: Ticket | None) -> None:
        """The code of an agent has saved its state."""

    def remind(self, record: AgentRecord, reminder: Reminder, ticket: Ticket | None) -> list[Effect]:
        """The code of an agent has set a reminder, or cancelled one; before the state that this goes with. Effects."""
        return []

    def state_of(self, record: AgentRecord) -> Snapshot | None:
        """The state with which an agent is made in a process now; None: it has none.

        What the process before has not lived to see saved is gone.
        """

    def remade(self, record: AgentRecord, reply: Reply) -> list[Effect]:
        """An agent is made again, or could not be; effects."""
        return []


def landlord_of(record: AgentRecord) -> Landlord:
    """The home of an agent that runs in a process of this host."""
    return record.home  # type: ignore[return-value]


class Forwarder:
    """Runs calls on one member; see the module's docstring. Belongs to the router thread.

    ``tell`` takes what the process tells of an agent in the turn of a call: `SNAPSHOT` or `REMINDER`, and the frames.
    """

    def __init__(
        self, line: Line, outlet: Outlet, tell: Callable[[AgentRecord, int, Sequence[Frame], Ticket], None]
    ) -> None:
        self._line = line
        self.tell = tell
        self._outlet = outlet
        self._sent: dict[Ticket, int] = {}
        self._seen = 0  # the last request that code in the process has made
        self._held: list[tuple[int, float, Ticket, Reply]] = []

    def __len__(self) -> int:
        return len(self._sent)

    def __repr__(self) -> str:
        return f"<Forwarder [{len(self._sent)} calls] {self._line!r}>"

    @property
    def sent(self) -> Sequence[Ticket]:
        """The calls whose code runs there."""
        return list(self._sent)

    def start(self, ticket: Ticket, call: Forwarded | None = None) -> None:
        """Run ``ticket`` there; ``call``: its `request_of`, if that is made."""
        traces = self._outlet.dispatcher.traces
        try:
            if call is None and traces is None and _is_short(ticket):
                short = ShortForwarded(self, ticket)
                call_id = self._line.ask_at_once(short, short)
                if ticket.state is not _DONE:  # else it has failed already
                    self._begin(ticket)  # after the message: no answer is read before this thread reads on
            else:
                self._begin(ticket)
                if call is None:
                    call = request_of(ticket, self._outlet.dispatcher)
                if traces is not None:
                    call.add_options(traces.forwarded(ticket))
                body = call.body
                ask = self._line.ask if body.buffers or len(body.payload) > SHORT_CALL_BYTES else self._line.ask_at_once
                call_id = ask(call, _Run(self, ticket, call))
        except Exception as exc:
            error = exc if isinstance(exc, ZmqAgentsError) else errors.CallLost(str(exc))
            where = {"agent": ticket.agent.agent_id, "method": ticket.name, "call_id": ticket.task_id}
            self.done(ticket, error_reply(error, **where))
            return
        if ticket.state is not _DONE:
            self._sent[ticket] = call_id

    def _begin(self, ticket: Ticket) -> None:
        outlet = self._outlet
        sender = Credits(self, ticket) if ticket.flags & _STREAM else None
        ticket.begin(
            RunningCall(
                outlet.services, ticket.task_id, ticket.agent.agent_id, ticket.name, ticket.deadline, (), ticket, sender
            )
        )
        outlet.running[ticket.task_id] = ticket

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for ``ticket`` any more."""
        call_id = self._sent.get(ticket)
        if call_id:
            self._line.cancel(call_id, Flag.ALONE if alone else 0)

    def grant(self, ticket: Ticket, items: int) -> None:
        """Allow a stream to send ``items`` more."""
        call_id = self._sent.get(ticket)
        if call_id:
            self._line.grant(call_id, items)

    def returned(self, ticket: Ticket, reply: Reply, behind: int) -> None:
        """The code of ``ticket`` has returned, and had made the request ``behind`` of its process: that comes first.

        Where the process says that it stops, it tells when it has ended.
        """
        if reply.code == _HOST_ERROR and self.is_end(reply):
            return
        if behind > self._seen:
            self._held.append((behind, self._outlet.clock() + HOLD_S, ticket, reply))
        else:
            self.done(ticket, reply)

    def saw(self, call_id: int) -> None:
        """The request ``call_id`` of the process has come."""
        if call_id > self._seen:
            self._seen = call_id
            if self._held:
                self._outlet.later(self.release)

    def release(self) -> None:
        """Tell the ends that need not wait any more. What was cancelled before it was sent never comes."""
        now, held, self._held = self._outlet.clock(), self._held, []
        for each in held:
            behind, until, ticket, reply = each
            if behind <= self._seen or now >= until:
                self.done(ticket, reply)
            else:
                self._held.append(each)

    def done(self, ticket: Ticket, reply: Reply) -> None:
        """The code of ``ticket`` has returned."""
        outlet = self._outlet
        self._sent.pop(ticket, None)
        outlet.note_end(ticket)
        home = ticket.agent.home
        assert home is not None
        outlet.carry_out(home.returned(ticket, reply))

    def break_off(self, ticket: Ticket, error: ZmqAgentsError) -> None:
        """The process has ended before ``ticket`` did."""
        outlet = self._outlet
        self._sent.pop(ticket, None)
        outlet.note_end(ticket)
        where = {"agent": ticket.agent.agent_id, "method": ticket.name, "call_id": ticket.task_id}
        outlet.carry_out(landlord_of(ticket.agent).broken_off(ticket, error_reply(error, **where)))

    def is_end(self, reply: Reply) -> bool:
        """Whether the process says that it stops, and this host has not told it to: it tells how when it has ended."""
        return not self._outlet.dispatcher.draining and read_error(reply)[0] == HostStopping.__name__

    def fail(self, error: ZmqAgentsError) -> None:
        """The process has ended: so do the calls that were told that it stops."""
        for ticket in self.sent:
            self.break_off(ticket, error)

    def item(self, ticket: Ticket, number: int, body: Sequence[Frame]) -> None:
        """One item of a stream."""
        outlet = self._outlet
        outlet.carry_out(outlet.pass_on(ticket, number, tuple(body)))
        sender = ticket.context.sender if ticket.context is not None else None
        if sender is not None and sender.spend():
            outlet.carry_out(outlet.starve(ticket, lambda error: self._starved(ticket, error), _never))

    def _starved(self, ticket: Ticket, error: ZmqAgentsError) -> None:
        """The reader of a stream will never take what stands in its way."""
        outlet = self._outlet
        outlet.later(lambda: outlet.carry_out(outlet.dispatcher.on_lost(ticket, error, outlet.clock())))


class _Run:
    """Takes what comes of one call."""

    __slots__ = ("_call", "_forwarder", "_items", "_ticket")

    def __init__(self, forwarder: Forwarder, ticket: Ticket, call: Forwarded) -> None:
        self._forwarder = forwarder
        self._ticket = ticket
        self._call = call
        self._items = 0

    def deliver(self, reply: Reply | None) -> None:
        assert reply is not None  # None is for fetches
        if self._ticket.op == Op.CREATE and not reply.code:
            reply = _learned(self._ticket.agent, reply)
            self._ticket.agent.hold(_ELSEWHERE)
        self._forwarder.returned(self._ticket, reply, self._call.behind)

    def fail(self, error: Exception) -> None:
        known = error if isinstance(error, ZmqAgentsError) else errors.CallLost(str(error))
        self._forwarder.break_off(self._ticket, known)

    def chunk(self, item: Reply) -> None:
        ticket, brings = self._ticket, self._call.brings
        if not brings:
            number, self._items = self._items, self._items + 1
            self._forwarder.item(ticket, number, item.body)
        elif brings != PROGRESS:
            self._forwarder.tell(ticket.agent, brings, item.body, ticket)
        elif ticket.context is not None:
            ticket.context.tell(Progress(*unpack(item.body[0])))


def _learned(record: AgentRecord, reply: Reply) -> Reply:
    """Take from the answer that an agent is made what it is, if a factory has made it; the answer without that."""
    if record.spec.hooks is not FACTORY_HOOKS:
        return reply
    *description, told = unpack(bytes(reply.body[0]), max_bytes=MAX_GIVEN_BYTES)
    made = Made.unpacked(told, record.spec)
    record.become(made.spec, made.options(record.options))
    return Reply(reply.code, (pack(description),))


class Grants(Protocol):
    """What passes credit on to the producer of a stream."""

    def grant(self, ticket: Ticket, items: int) -> None:
        """Allow it to send ``items`` more."""


class Credits:
    """The producer of a stream, as its reader reaches it."""

    def __init__(self, forwarder: Grants, ticket: Ticket) -> None:
        self._forwarder = forwarder
        self._ticket = ticket
        self._credit = STREAM_WINDOW
        self.items = 0  # that have come

    @property
    def has_credit(self) -> bool:
        return self._credit > 0

    def spend(self) -> bool:
        """An item has come; True if the producer now waits for credit."""
        self.items += 1
        self._credit -= 1
        return self._credit <= 0

    def grant(self, items: int) -> None:
        self._credit = min(self._credit + items, STREAM_WINDOW)
        self._forwarder.grant(self._ticket, items)


def snapshot_of(body: Sequence[Frame]) -> Snapshot:
    """The state of an agent in a CHUNK of a member."""
    head, *frames = body
    number, version = unpack(head)
    return Snapshot(number, version, tuple(map(bytes, frames)))


def reminder_of(body: Sequence[Frame]) -> Reminder:
    """A reminder in a CHUNK of a member."""
    head, *frames = body
    name, after_s, every_s, method = unpack(head)
    return Reminder(name, after_s, every_s, method, tuple(map(bytes, frames)))


_ELSEWHERE = object()  # stands for the object of an agent, which is in another process


def _never() -> bool:
    return False


class Forwarded(Call):
    """The CALL that runs a ticket on a member.

    Its code may have made calls without waiting for them, which travel over another connection. So the member says by
    CHUNK which request of its own was the last: ``behind``, 0 for none. Those must come before the end of the call.
    ``brings`` says what another CHUNK has: `SNAPSHOT` the agent's state, as the call leaves it, `REMINDER`, `PROGRESS`;
    0: it is an item of a stream.
    """

    __slots__ = ("behind", "brings")

    def __init__(
        self, agent: str, method: str, body: Encoded, flags: int, options: dict[str, Any], deadline: float | None
    ) -> None:
        super().__init__(agent, method, body, flags, options, None, None)
        if deadline is not None:
            self.deadline = deadline  # the very time: what is left of it would be told too late
            self.near = deadline - time.monotonic() < FAR_S
        self.behind = 0

    def takes(self, number: int) -> bool:
        """Note the item of a stream that has come, or what `behind` is to be."""
        self.brings = number if number in _BESIDE else 0
        if self.brings:
            return True
        if self.flags & Flag.STREAM:
            return super().takes(number)
        self.behind = number + 1
        return False


class ShortForwarded(Forwarded):
    """The same for a short call, and the sink of its answer: see `_is_short`. Only its task id is packed for it."""

    __slots__ = ("_forwarder", "_payload", "_ticket")

    repeat = Repeat.ONCE

    def __init__(self, forwarder: Forwarder, ticket: Ticket) -> None:
        self._forwarder = forwarder
        self._ticket = ticket
        self._payload = ticket.body[0]  # the ticket has none any more when it has ended
        self.deadline = ticket.deadline
        self.flags = _WATCHED
        self.behind = 0

    def to_frames(
        self, call_id: int, token: int, server_id: str, needed: int, resent: bool, one_clock: bool
    ) -> list[Frame]:
        ticket, left, flags = self._ticket, self.deadline, _WATCHED
        if left is not None:
            if one_clock and left - ticket.accepted < FAR_S:
                flags |= _UNTIL
            else:
                left -= time.monotonic()
        agent, method, user, task_id = ticket.agent.agent_id, ticket.name, ticket.account.key, ticket.task_id
        meta = passed_on_meta(agent, method, user, task_id)
        frame = call_frame(call_id, token, meta, self._payload, flags, left, needed)
        if frame is not None:
            return [frame]
        options = {"user": user, "task": task_id}  # one of them is very long
        return call_frames(
            call_id, token, agent, method, (self._payload,), flags=flags, timeout_s=left, options=options, needed=needed
        )

    def deliver(self, reply: Reply | None) -> None:
        assert reply is not None  # None is for fetches
        self._forwarder.returned(self._ticket, reply, self.behind)

    def fail(self, error: Exception) -> None:
        _Run(self._forwarder, self._ticket, self).fail(error)

    def chunk(self, item: Reply) -> None:
        _Run(self._forwarder, self._ticket, self).chunk(item)


def _is_short(ticket: Ticket) -> bool:
    """Whether ``ticket`` is a method's call with one short frame of arguments, made in no other call, and no stream."""
    if ticket.op or ticket.flags & KEPT_FLAGS or ticket.parent is not None or ticket.came_by or ticket.dep_replies:
        return False
    return len(ticket.body) == 1 and len(ticket.body[0]) <= SHORT_CALL_BYTES


def request_of(ticket: Ticket, dispatcher: Dispatcher) -> Forwarded:
    """The CALL that runs ``ticket`` on a member."""
    record = ticket.agent
    options: dict[str, Any] = {"user": ticket.account.key, "task": ticket.task_id}
    agent, method = record.agent_id, ticket.name
    if ticket.op == Op.CREATE:
        agent = ""
        options |= {"class": record.spec.name, "id": record.agent_id, "max_concurrency": MANY}
        options["persist"] = record.options.persist
        if record.epoch:  # of a cluster: where one call has the turn at a time, its code may set reminders
            crowded = record.options.max_concurrency > 1 or record.options.reentrant
            options |= {"epoch": record.epoch, "reentrant": crowded}
        if record.ours:
            options["either"] = dict.fromkeys(record.ours, "")
    elif ticket.op == Op.MEMORY:
        agent = ""
        options["id"] = record.agent_id
    elif ticket.op == END:  # a member runs the hooks of an agent when it deletes it
        agent, method = "", Op.DELETE
        options["id"] = record.agent_id
    return forwarded(ticket, agent, method, options, dispatcher)


def forwarded(ticket: Ticket, agent: str, method: str, options: dict[str, Any], dispatcher: Dispatcher) -> Forwarded:
    """The CALL that passes ``ticket`` on, as ``method`` of ``agent`` there."""
    chain = ticket.chain
    if chain:
        options["chain"] = dispatcher.seals.seal(chain)
    payload, *buffers = ticket.body or (NO_ARGUMENTS,)
    if ticket.dep_replies:
        options["given"] = True
        buffers.append(pack({task_id: reply_to_bytes(reply) for task_id, reply in ticket.dep_replies.items()}))
    body = Encoded(payload, buffers, ())  # type: ignore[arg-type]  # as it came
    flags = ticket.flags & KEPT_FLAGS | Flag.WATCHED  # also for those who list the calls of this host
    return Forwarded(agent, method, body, flags, options, ticket.deadline)
