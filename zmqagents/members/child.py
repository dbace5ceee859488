"""One child: a process of this host, the agents that it runs, and what becomes of these when it crashes.

    NONE --a call--> STARTING --it listens--> UP
     ^                  |                      |       (ENDING between, where the connection breaks first)
     +-- gone ----------+----------------------+     agents that were made are made again in a new process

A call that starts while the process does not run, or its agent is not made in it yet, is held. The calls that ran in a
process that has ended get `AgentCrashed`; those that queue go on in the next one. There an agent is made again, from
the arguments that it was made with and its last state (see `agents.state`). An agent with a call that ran, and the
agent of a process of its own in any case, counts a crash; beyond ``max_restarts`` within a minute its calls get
`AgentCrashed` at once.

An agent may crash the process by being made again. It counts that, too. In the next process agents are made one after
the other then, so that of many only the one that does it is given up in the end.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from .. import codec, errors
from ..agents.options import AgentOptions
from ..agents.state import Snapshot
from ..codec import Encoded
from ..connection.requests import Call
from ..process.crashes import Crashes
from ..scheduler.effects import Effect
from ..scheduler.records import END, AgentRecord, Ticket
from ..scheduler.shares import Shares
from ..wire.link import rebuild_error
from ..wire.messages import REMINDER, SNAPSHOT, Code, Frame, Op, Reply, error_reply
from .answers import Answers
from .forwarder import (
    NO_ARGUMENTS,
    Forwarded,
    Forwarder,
    Landlord,
    Outlet,
    landlord_of,
    reminder_of,
    request_of,
    snapshot_of,
)
from .line import Ignored, Line
from .nursery import Death, Nursery, Process, Upbringing

__all__ = ["Child", "State", "Yard"]

log = logging.getLogger(__name__)

WINDOW_S = 60.0
START_CRASHES = 5  # so often within the window a process is started again at once, or tried to be
LONGEST_S = 2.0  # the longest pause before the next start: agents that do not crash wait for it as well
OBEY_S = 1.0  # how long a call may ignore that it was cancelled, where its process is killed then
SILENT_S = 1.0  # a process that has not answered for so long is called silent
MAX_REMEMBERED = 1024  # agents that have crashed and left
WELCOME_S = 5.0  # for the first answer of a process that listens, and runs nothing yet


class State(enum.Enum):
    """Where a child stands; see the module's docstring."""

    NONE = "no process runs"
    STARTING = "its process is being started"
    UP = "its process answers"
    ENDING = "its process is about to end: its connection has broken"


class Yard(Outlet, Protocol):
    """What the children of a host have in common."""

    poller: Any
    beside: dict[int, Callable[[int, int], object]]  # by descriptor: what to call when it is ready
    closing: bool  # no process is started any more
    crashes: OrderedDict[str, Crashes]  # of agents of a cluster that were here: they may come back at once

    @property
    def nursery(self) -> Nursery:
        """Their processes."""

    @property
    def lessons(self) -> list[Call]:
        """What every process is told first: model configurations, classes."""

    def forget(self, record: AgentRecord) -> None:
        """An agent is deleted."""

    def note_restart(self) -> None:
        """A process is started in the place of one that has ended."""


class Resident:
    """One agent of a child: how it is made, and the calls that are held until it is."""

    __slots__ = ("crashes", "held", "here", "make", "number", "record", "state")

    def __init__(self, record: AgentRecord, make: Forwarded, crashes: Crashes | None = None) -> None:
        self.record = record
        self.make = make
        self.here = False  # made in the process that runs now
        self.held: dict[Ticket, None] = {}
        self.state: Snapshot | None = None  # where nobody else keeps it
        self.number = 0  # of the latest state of the process that runs now
        self.crashes = crashes or Crashes(record.options.max_restarts, WINDOW_S)

    @property
    def is_suspect(self) -> bool:
        """Whether its process has ended more than once lately when it had to do with the agent."""
        return len(self.crashes) > 1

    def holds(self, ticket: Ticket) -> bool:
        """Whether ``ticket`` waits until the agent is made."""
        return ticket in self.held

    def take_back(self) -> list[Ticket]:
        """The calls that are held: they are no matter of this process any more."""
        taken = [ticket for ticket in self.held if ticket.op != Op.CREATE]
        for ticket in taken:
            del self.held[ticket]
        return taken

    def keep_arguments(self, shares: Shares) -> errors.HostBusy | None:
        """Count what is kept of it to make it again; the error if that is more than its user may have.

        Not of an agent of a cluster: that is in Redis as well, and short.
        """
        record, body = self.record, self.make.body
        if record.epoch:
            return None
        size = len(body.payload) + sum(map(len, body.buffers))
        share, held, taken = shares.made_bytes, record.account.made_bytes, shares.everybody.made_bytes
        if share.refuses(held, taken + size):
            return errors.HostBusy(f"{record.agent_id}: {share.reason(held, taken)}")
        record.keep_arguments(size)
        return None


class Child(Landlord):
    """See the module's docstring. ``own``: of the one agent that has it for itself; None: shared.

    A `Landlord` of agents that are this host's alone: those of a cluster have another one.
    """

    def __init__(self, yard: Yard, own: AgentOptions | None) -> None:
        self.own = own
        self.state = State.NONE
        self.process: Process | None = None
        self._was_cut = False  # the connection to it, when that was looked at last
        self._school: _School | None = None  # its process is told what is new
        self.silent_s = 0.0  # for how long it has not answered, although it lives
        self._yard = yard
        self._upbringing = Upbringing() if own is None else Upbringing(own.memory_mb, own.env)
        self._agents: dict[str, Resident] = {}
        self._line: Line | None = None
        self._forwarder: Forwarder | None = None
        self._to_make: dict[Resident, None] = {}  # they are to be made again: all at once, or each after the one before
        self._one_by_one = False
        self._doomed: dict[Ticket, float] = {}  # calls that must have ended by then, or the process is killed
        self._starts = Crashes(START_CRASHES, WINDOW_S)

    def __repr__(self) -> str:
        return f"<Child [{self.state.name}, {len(self._agents)} agents] {self.process!r}>"

    @property
    def load(self) -> float:
        """What speaks against another agent here: how many there are, or that it is silent."""
        return len(self._agents) if self.silent_s < SILENT_S else math.inf

    def has(self, agent_id: str) -> bool:
        """Whether an agent of this id is there, or on its way: it may be one that has been deleted."""
        if agent_id in self._agents:
            return True
        return bool(self._to_make) and any(each.record.agent_id == agent_id for each in self._to_make)

    @property
    def pid(self) -> int:
        """Its process, 0 while there is none."""
        return self.process.pid if self.process is not None else 0

    @property
    def is_silent(self) -> bool:
        """Whether its process lives and does not answer: code in C may keep its interpreter lock."""
        return self.silent_s >= SILENT_S

    # ------------------------------------------------------------ as a home

    def start(self, ticket: Ticket) -> None:
        """Run ``ticket``, now or when its process and its agent are there."""
        record = ticket.agent
        if ticket.op and ticket.op == Op.CREATE:
            crashes = self._yard.crashes.pop(record.agent_id, None)
            resident = Resident(record, request_of(ticket, self._yard.dispatcher), crashes)
            refusal = resident.keep_arguments(self._yard.dispatcher.shares)
            if refusal is not None:
                self._yard.later(lambda: self._end(ticket, refusal))
                return
            self._agents[record.agent_id] = resident
            school = self._school
            is_ready = self.state is State.UP and school is not None and school.is_over
            if is_ready and not (crashes and (self._to_make or crashes.too_many(self._yard.clock()))):
                self._make(resident, ticket)
                return
        else:
            resident = self._agents[record.agent_id]
            if resident.here and self._forwarder is not None:
                if ticket.op == END:
                    resident.here = False  # its process deletes it
                    if self.own is not None:  # nobody else lives there
                        self._doomed[ticket] = self._yard.clock() + self._yard.dispatcher.config.end_hooks_s + OBEY_S
                self._forwarder.start(ticket)
                return
        if ticket.op == END:  # there is nothing that could end
            self._yard.later(lambda: self._done(ticket, _TRUE))
            return
        if resident.crashes.too_many(self._yard.clock()):
            self._give_up(resident, ticket)
            return
        resident.held[ticket] = None
        if self.state is State.UP and record.made:  # it could not be made again, or was given up for a while
            self._make_again(resident)
        else:
            self._ensure(0.0)

    def _make(self, resident: Resident, ticket: Ticket) -> None:
        """Make an agent for the first time."""
        if self._line is not None and self._forwarder is not None:
            resident.here = True
            if resident.record.options.persist is not None:
                _give_state(self._line, resident)
            self._forwarder.start(ticket, resident.make)

    def lodging(self, record: AgentRecord) -> Resident:
        """Where an agent stands that this process runs, or is to run."""
        return self._agents[record.agent_id]

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for ``ticket`` any more."""
        resident = self._agents.get(ticket.agent.agent_id)
        if resident is not None and ticket in resident.held:
            del resident.held[ticket]
            self._end(ticket, errors.CallCancelled(f"{ticket.label} was cancelled"))
        elif self._forwarder is not None:
            self._forwarder.interrupt(ticket, alone=alone)
            if self.own is not None and self.own.on_timeout == "kill":
                self._doomed[ticket] = self._yard.clock() + OBEY_S

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """Drop agents that are deleted, and the process if it was of one alone."""
        for record in records:
            self._yard.forget(record)
            record.keep_arguments(0)
            resident = self._agents.get(record.agent_id)
            if resident is None or resident.record is not record:
                continue
            del self._agents[record.agent_id]
            if record.epoch and len(resident.crashes):
                _remember(self._yard.crashes, resident)
            if self.own is not None:
                self.end("its agent was deleted")
            elif resident.here:  # it has no hooks, or their call was cancelled before it began
                self._tell_to_delete(record, hooks=False)
            elif self._one_by_one and next(iter(self._to_make), None) is not resident:
                self._to_make.pop(resident, None)  # it is not told to make it yet

    def _tell_to_delete(self, record: AgentRecord, *, hooks: bool) -> None:
        if self._line is not None:
            call = Call("", Op.DELETE, _NO_ARGUMENTS, 0, {"id": record.agent_id, "hooks": hooks}, None, None)
            self._line.ask(call, Ignored())

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """None of its calls runs in a thread of this host; but one that was started there before has its end."""
        return self._yard.dispatcher.on_done(ticket, reply, self._yard.clock())

    def keep(self, record: AgentRecord, state: Snapshot, ticket: Ticket | None) -> None:
        """Keep the state of an agent, for the process that comes after this one."""
        self._agents[record.agent_id].state = state

    def state_of(self, record: AgentRecord) -> Snapshot | None:
        """The state that was kept last."""
        return self._agents[record.agent_id].state

    def _is_listed(self, record: AgentRecord) -> bool:
        """Whether an agent is not deleted."""
        return self._yard.dispatcher.agents.get(record.agent_id) is record

    def saw(self, call_id: int) -> None:
        """A request of its code has come, over the connection of its own."""
        if self._forwarder is not None:
            self._forwarder.saw(call_id)

    # ------------------------------------------------------------ its process

    def _ensure(self, pause_s: float) -> None:
        if self.state is State.NONE and not self._yard.closing:
            self.state = State.STARTING
            self.process = self._yard.nursery.begin(self._upbringing, pause_s, self)

    def end(self, why: str) -> None:
        """End the process, which nothing needs any more."""
        if self.process is not None:
            self.process.end(why)

    def kill(self, why: str) -> None:
        """End the process at once; ``why`` is what its calls are told."""
        if self.process is not None:
            self.process.kill(why)

    def on_up(self, process: Process, path: str) -> list[Effect]:
        """Its process listens."""
        if process is self.process:
            yard = self._yard
            self._was_cut = False
            self._line = Line(path, yard.poller, yard.beside, ready=self._on_ready, cut=self._on_cut, later=yard.later)
            self._forwarder = Forwarder(self._line, yard, self.on_told)
        return []

    def _on_ready(self) -> None:
        """Its process answers: tell it first what every process is told."""
        assert self._line is not None
        self._school = school = _School(self._line, self._settle_in)
        for lesson in self._yard.lessons:
            school.add(lesson, None)
        if school.is_over:
            self._settle_in()

    def _settle_in(self) -> None:
        """It knows all that it has to know: make again what ran before, and let go on what is held."""
        line = self._line
        if line is None or line.is_cut:
            return
        began, self.state = self.state is not State.UP, State.UP
        now = self._yard.clock()
        for resident in list(self._agents.values()):
            if began and resident.record.made and not resident.crashes.too_many(now):
                self._make_again(resident)
        self._make_new()

    def _make_new(self) -> None:
        """Let agents be made for the first time that were held.

        What may have ended the process waits until all others are made again: if it does so once more, it is alone.
        """
        for resident in list(self._agents.values()):
            is_due = not (self._to_make and len(resident.crashes))
            if is_due and not (resident.record.made or resident.here):
                self._go_on(resident)

    def _make_again(self, resident: Resident) -> None:
        if resident not in self._to_make:
            self._to_make[resident] = None
            if not self._one_by_one or len(self._to_make) == 1:
                self._tell_to_make(resident)

    def _tell_to_make(self, resident: Resident) -> None:
        if self._line is not None:
            _give_state(self._line, resident)
            make = _again(resident.make)
            self._line.ask(make, _Remade(self, resident, make))

    def _on_cut(self) -> None:
        """Its connection has ended, as it does when the process ends: that comes next, and tells why."""
        self._hold_all()

    def _hold_all(self) -> None:
        self.state = State.ENDING
        self._school = None
        for resident in self._agents.values():
            resident.here = False

    def on_gone(self, process: Process, death: Death) -> list[Effect]:
        """Its process has ended."""
        if process is not self.process:
            return []
        started = self._line is not None
        self._hold_all()
        self.silent_s = 0.0
        line, self._line = self._line, None
        forwarder, self._forwarder = self._forwarder, None
        if line is not None and forwarder is not None:
            self._count(forwarder.sent)
            self._one_by_one = bool(self._to_make)
            self._to_make.clear()
            line.close(_crashed(death))
            forwarder.fail(_crashed(death))
        self.state, self.process = State.NONE, None
        self._start_again(started, death)
        return []

    def _count(self, ran: Sequence[Ticket]) -> None:
        """Note the crash for those that have to do with it."""
        now = self._yard.clock()
        hit = {each.record.agent_id for each in list(self._to_make)[: 1 if self._one_by_one else None]}
        if not (hit and self._one_by_one):  # else it is that one, most likely, and no call that ran beside
            hit |= {ticket.agent.agent_id for ticket in ran}
        for agent_id, resident in self._agents.items():
            if self.own is not None or agent_id in hit:
                resident.crashes.pause(now)

    def _start_again(self, started: bool, death: Death) -> None:
        if not self._agents or self._yard.closing:
            return
        now = self._yard.clock()
        pause_s = self._starts.pause(now)
        tired = [resident for resident in self._agents.values() if resident.crashes.too_many(now)]
        if not started:  # what is to be made in it for the first time cannot be made
            tired += [resident for resident in self._agents.values() if not resident.record.made]
        if pause_s is None and not started:
            tired = list(self._agents.values())
        for resident in dict.fromkeys(tired):
            for ticket in list(resident.held):
                del resident.held[ticket]
                self._end(ticket, _crashed(death))
        needed = {each for each in self._agents.values() if each.held or self._is_listed(each.record)}
        if needed - set(tired):
            self._yard.note_restart()
            # Agents are to be back soon, and five starts cost a second of a core. What does not even start most likely
            # will not a moment later either.
            at_once = pause_s is not None and (started or len(self._starts) == 1)
            self._ensure(0.0 if at_once else min(pause_s or LONGEST_S, LONGEST_S))

    # ------------------------------------------------------------ agents

    def on_remade(self, resident: Resident, reply: Reply) -> None:
        """An agent is made again, or could not be."""
        self._to_make.pop(resident, None)
        self._one_by_one = self._one_by_one and bool(self._to_make)
        if self._one_by_one:
            self._tell_to_make(next(iter(self._to_make)))
        elif not self._to_make:
            self._make_new()
        if self._agents.get(resident.record.agent_id) is not resident:  # it was deleted meanwhile
            self._tell_to_delete(resident.record, hooks=True)
            return
        self._yard.carry_out(landlord_of(resident.record).remade(resident.record, reply))
        if not reply.code:
            self._go_on(resident)
            return
        error = rebuild_error(reply)
        log.warning("%s could not be made again: %s", resident.record.agent_id, error)
        for ticket in list(resident.held):
            del resident.held[ticket]
            text = f"{resident.record.agent_id} could not be made again after its process had ended: {error}"
            self._end(ticket, errors.AgentCrashed(text))

    def _go_on(self, resident: Resident) -> None:
        """Let the calls begin that are held for an agent."""
        resident.here = True
        held, resident.held = resident.held, {}
        for ticket in held:
            if ticket.op == Op.CREATE:
                self._make(resident, ticket)
            else:
                landlord_of(ticket.agent).start(ticket)  # it may see a reason not to begin that was none before

    def _give_up(self, resident: Resident, ticket: Ticket) -> None:
        count = len(resident.crashes)
        text = (
            f"{resident.record.agent_id}: its process has ended {count} time{'s' * (count != 1)} within {WINDOW_S:g} s "
            f"(max_restarts={resident.crashes.limit}), and is not started again before some of these are older"
        )
        self._yard.later(lambda: self._end(ticket, errors.AgentCrashed(text)))

    def _end(self, ticket: Ticket, error: errors.ZmqAgentsError) -> None:
        """A call that did not run is over."""
        where = {"agent": ticket.agent.agent_id, "method": ticket.name, "call_id": ticket.task_id}
        self._done(ticket, error_reply(error, **where))

    def _done(self, ticket: Ticket, reply: Reply) -> None:
        self._yard.carry_out(landlord_of(ticket.agent).given_up(ticket, reply))

    def on_told(self, record: AgentRecord, what: int, body: Sequence[Frame], ticket: Ticket | None) -> None:
        """The process tells the state of an agent, or a reminder; ``ticket``: see `Landlord`."""
        resident, landlord = self._agents.get(record.agent_id), landlord_of(record)
        if what == REMINDER:
            self._yard.carry_out(landlord.remind(record, reminder_of(body), ticket))
        elif resident is not None and resident.record is record:
            state = snapshot_of(body)
            if state.number > resident.number:  # else it comes late
                resident.number = state.number
                landlord.keep(record, state, ticket)

    # ------------------------------------------------------------ now and then

    def on_tick(self) -> list[Effect]:
        """Look whether the process answers, and let it forget what it need not keep."""
        line = self._line
        if line is None:
            return []
        if line.is_cut:
            if self._was_cut:  # and the process has lived on for half a second
                self.kill("its connection to the host has broken")
            self._was_cut = True
        else:
            self.silent_s = line.look()
            if self.silent_s >= WELCOME_S and not line.was_ready:  # somebody has stopped it, say
                self.kill(f"it did not answer within {WELCOME_S:g} s of its start")
        if self._forwarder is not None:
            self._forwarder.release()
        if self.own is not None and self._forwarder is not None:
            self._kill_what_disobeys(self._forwarder.sent)
        return []

    def _kill_what_disobeys(self, sent: Sequence[Ticket]) -> None:
        now = self._yard.clock()
        doomed = self._doomed = {ticket: end for ticket, end in self._doomed.items() if ticket in sent}
        for ticket in sent:
            if ticket.ended is not None and not self._is_listed(ticket.agent):  # it alone keeps the process
                doomed.setdefault(ticket, now + OBEY_S)
        late = [ticket for ticket, end in doomed.items() if end <= now]
        if late:
            doomed.clear()
            went_on = f"{late[0].label} went on although it had ended"
            self.kill(f"it was killed, for {'the end of its agent took too long' if late[0].op == END else went_on}")

    def learn(self, lesson: Call, answers: Answers) -> None:
        """Tell the process what every process of the host is told."""
        if self._school is not None:
            answers.expect()
            self._school.add(lesson, answers)

    def row(self) -> dict[str, Any]:
        """What a list says of it. ``silent_s``: for how long it has not answered, although it lives."""
        process = self.process
        return {
            "pid": self.pid, "state": "silent" if self.is_silent else self.state.name.lower(),
            "isolation": "pool" if self.own is None else "process",
            "memory_mb": round(process.memory_mb, 1) if process is not None else 0.0,
            "silent_s": round(self.silent_s, 1), "calls": len(self._forwarder) if self._forwarder is not None else 0,
            "crashes": len(self._starts), "agents": list(self._agents),
        }  # fmt: skip

    def restart(self, record: AgentRecord) -> None:
        """End the process and start it again, also for an agent that was given up."""
        self._agents[record.agent_id].crashes.clear()
        self._starts.clear()
        if self.process is not None:
            self.process.kill("it was restarted (as_server children --restart)")
        else:
            self._ensure(0.0)

    def ask(self, op: str, answers: Answers) -> None:
        """Ask the process for rows, if it can be asked."""
        if self.state is State.UP and self._line is not None:
            answers.expect()
            self._line.ask(Call("", op, _NO_ARGUMENTS, 0, None, None, None), answers)

    def close(self) -> None:
        """Close the connection, at the end of the host."""
        if self._line is not None:
            self._line.close(errors.HostStopping("the host has stopped"))
            self._line = None


def _give_state(line: Line, resident: Resident) -> None:
    """Tell the process which state an agent has that is made next."""
    resident.number = 0  # each process counts anew
    state = landlord_of(resident.record).state_of(resident.record)
    if state is not None:
        payload, *buffers = state.frames
        options = {"id": resident.record.agent_id, "number": 0, "version": state.version}
        line.ask(Call("", Op.STATE, Encoded(payload, buffers, ()), 0, options, None, None), Ignored())


def _remember(crashes: OrderedDict[str, Crashes], resident: Resident) -> None:
    """An agent that has crashed leaves, and may be back at its next call."""
    crashes[resident.record.agent_id] = resident.crashes
    if len(crashes) > MAX_REMEMBERED:
        crashes.popitem(last=False)


def _crashed(death: Death) -> errors.AgentCrashed:
    error = errors.AgentCrashed(death.text)
    error.status, error.memory_mb, error.stderr = death.status, round(death.memory_mb, 1), death.stderr
    return error


_NO_ARGUMENTS = Encoded(NO_ARGUMENTS, (), ())
_TRUE = Reply(Code.NONE, (codec.pack(True),))


_OF_ITS_MAKER = frozenset(("task", "chain", "traceparent", "tracestate"))  # of the call that has made an agent


def _again(call: Call) -> Forwarded:
    """The same request for another connection."""
    options = {key: value for key, value in (call.options or {}).items() if key not in _OF_ITS_MAKER}
    return Forwarded(call.agent, call.method, call.body, call.flags, options, None)


class _School(Ignored):
    """Tells a process its lessons, one after the other: of two about the same thing the later one is to count.

    ``over`` is called when there is none left, each time.
    """

    def __init__(self, line: Line, over: Callable[[], None]) -> None:
        self._line = line
        self._over = over
        self._left: deque[tuple[Call, Answers | None]] = deque()  # the first one is being told

    @property
    def is_over(self) -> bool:
        """Whether there is no lesson left."""
        return not self._left

    def add(self, lesson: Call, answers: Answers | None) -> None:
        """Tell one more, after the others; ``answers`` takes its answer."""
        self._left.append((lesson, answers))
        if len(self._left) == 1:
            self._line.ask(_again(lesson), self)

    def deliver(self, reply: Reply | None) -> None:
        _, answers = self._left.popleft()
        if answers is not None:
            answers.deliver(reply)
        if self._left:
            self._line.ask(_again(self._left[0][0]), self)
        else:
            self._over()

    def fail(self, error: Exception) -> None:
        """The line was cut: no lesson that is left is told."""
        for _, answers in self._left:
            if answers is not None:
                answers.fail(error)
        self._left.clear()


class _Remade(Ignored):
    """Takes the answer to the request that makes an agent again."""

    def __init__(self, child: Child, resident: Resident, make: Forwarded) -> None:
        self._child = child
        self._resident = resident
        self._make = make

    def deliver(self, reply: Reply | None) -> None:
        assert reply is not None
        self._child.on_remade(self._resident, reply)

    def chunk(self, item: Reply) -> None:
        if self._make.brings in (SNAPSHOT, REMINDER):
            self._child.on_told(self._resident.record, self._make.brings, item.body, None)
