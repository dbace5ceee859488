"""An agent of the cluster that lives on this host: its calls run there, after a look and before one.

*Before its code begins* a call is looked at: does this host hold its lease, is the record of the agent certain, are not
too many of its saves under way? If not, the call is held: it keeps the agent's turn, but no worker slot.

*Before its answer leaves*, the saves that were begun before must be taken, and the lease be held. The turn is free
meanwhile: the next call runs.

*Reminders* that its code sets go with the next save, and the end of a tick goes with the save of its turn.

*It leaves* when it is given back, deleted or lost: no call begins any more, those that wait become calls of a `Way`
again, those that run go on to their end, then the hooks at its end run. Only then is its record released, with the
state that it has then.

Its code runs in the host's threads. One whose code runs in a process of its own is a `Tenant`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ... import errors
from ...agents.spec import MethodSpec
from ...agents.state import Reminder, Snapshot
from ...agents.timing import HeldPace
from ...cluster.activations import Dropped, DroppedFor, Made, OnceOutcome, Phase
from ...cluster.naming import AgentName
from ...cluster.reminders import Reminders
from ...errors import ZmqAgentsError
from ...scheduler.calls import error_of
from ...scheduler.dispatcher import Dispatcher
from ...scheduler.effects import Effect
from ...scheduler.records import END, AgentRecord, State, Ticket
from ...store.cluster import Mine
from ...store.reminders import Change, Done, Drop, Set
from ...wire.messages import Op, Reply, error_reply, reply_from_bytes, reply_to_bytes
from .keeper import packed
from .quarters import Leaving, Quarters, Runner
from .ticks import packed_what, tick_of
from .way import MAKE, TRUE, UNMAKE, Passage

__all__ = ["Resident", "waiting_calls"]

MAX_OUTCOME_BYTES = 65_536  # of an `@once` call
OUTCOME_S = 30.0  # how long an outcome is kept beyond the deadline of its call


class Resident:
    """See the module's docstring. A `Home`, of one agent. Belongs to the router thread.

    ``runner``: what runs its code, the threads of the host if it is not given.
    """

    def __init__(
        self, room: Quarters, name: AgentName, record: AgentRecord, mine: Mine,
        labels: Mapping[str, str] | None = None, maker: Made | None = None, runner: Runner | None = None,
    ) -> None:  # fmt: skip
        self.record = record
        self.labels = labels
        self.name = name.text
        self.leaving: Leaving | None = None
        self.following = ""  # who has it after this host
        self.used = room.clock()
        self._room = room
        self._activations, self._epoch = room.member.activations, mine.epoch
        self._is_fresh = mine.fresh  # nobody has had it before
        self._maker = maker  # that of the one call which has made it, of all that wait for it
        self.agent = name
        self._state: Snapshot | None = None  # as it was saved at the end, to be released with it
        self._held: dict[Ticket, float] = {}
        self._kept: dict[Ticket, Reply] = {}  # answers that wait for saves
        self._withheld: dict[Ticket, tuple[Reply, float]] = {}  # answers that wait for the lease, and since when
        self._whole: Snapshot | None = None  # the state after the call that runs, which is written in one step with it
        self._changes: list[Change] = []  # of reminders, by the turn that runs
        self._is_spoiled = False  # its state could not be saved: it comes back as it was last saved
        self._makers: list[Passage] = []  # of create_agent, while it is made
        self._breakers: list[Ticket] = []  # of delete_agent
        self._told: list[Callable[[], None]] = []  # when it is gone
        self._runner: Runner = runner or room.pool
        self._begin = room.begin if runner is None else runner.start
        if runner is None:
            record.live_under(self, mine.epoch, self._admits)
        else:
            record.live_at(self, mine.epoch)

    def __repr__(self) -> str:
        return f"<Resident {self.name} [{len(self._held)} held, {len(self._kept)} answers wait]>"

    @property
    def pid(self) -> int:
        """The process of its own that runs its code; 0: there is none."""
        return 0

    @property
    def is_leaving(self) -> bool:
        """Whether no call is for it any more."""
        return self.leaving is not None or self.record.removed

    @property
    def phase(self) -> Phase | None:
        """Where its activation is; None: there is none, or it is another one by now."""
        activations = self._room.member.activations
        if activations is not self._activations:  # this host is another member since
            return None
        phase = activations.phase(self.name)
        return phase if phase is not None and activations.epoch(self.name) == self._epoch else None

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        record = self.record
        return record.made and not (record.holders or record.beside or record.mailbox or self._kept or self._withheld)

    @property
    def is_held(self) -> bool:
        """Whether calls wait here with the turn, or answers for the lease."""
        return bool(self._held or self._withheld)

    # ------------------------------------------------------------ calls come

    def welcome(self, passage: Passage) -> None:
        """A call that was on its way is for this agent."""
        ticket, room = passage.ticket, self._room
        assert ticket is not None
        if ticket.op == MAKE:
            self._greet_maker(passage, ticket)
        elif ticket.op == UNMAKE:
            self._breakers.append(ticket)
            self.leave(Leaving.DELETED)
        else:
            room.carry_out(room.dispatcher.on_move(ticket, self.record, room.clock()))

    def _greet_maker(self, passage: Passage, ticket: Ticket) -> None:
        room, made = self._room, passage.made
        if not self.record.made:
            self._makers.append(passage)
        elif made is not None and made.new:
            self._finish(ticket, self._error(ticket, _exists(self.name)))
        else:
            self._finish(ticket, room.described(self.record))

    def _admits(self, method: MethodSpec) -> bool:
        """See `AgentRecord.admits`: so it is while the agent keeps nothing and no call waits for anything.

        A call that is admitted counts as a use of the agent.
        """
        room, pace = self._room, method.pace
        if not isinstance(pace, HeldPace) or not pace.is_short or method.once:
            return False
        if self.record.options.persist is not None or self._changes or self._kept or self.is_held:
            return False
        if self.is_leaving or not room.may_start(self.name):
            return False
        self.used = room.clock()
        return True

    def start(self, ticket: Ticket) -> None:
        """Let the code of a call begin, or hold it."""
        room = self._room
        if ticket.op in (Op.CREATE, END):
            # To save a state makes the router thread another one, which costs more than a worker.
            saves = ticket.op == END or self.record.options.persist == "call"
            (self._runner.start if saves else self._begin)(ticket)
            return
        if not self.is_leaving and room.may_start(self.name):
            reply = self._known_outcome(ticket) if _is_whole(ticket) else None
            if reply is None:
                self._begin(ticket)
            else:
                room.later(lambda: self._finish(ticket, reply))
            return
        if self.is_leaving:
            if self.leaving is Leaving.DELETED:
                room.later(lambda: self._finish(ticket, self._error(ticket, _deleted(ticket))))
            else:
                room.later(lambda: self._send_late(ticket))
            return
        self._held[ticket] = room.clock()
        effects: list[Effect] = []
        room.dispatcher.calls.hold(ticket, effects, room.clock())
        room.carry_out(effects)
        room.watch(self)

    def _send_late(self, ticket: Ticket) -> None:
        """It was about to begin when the agent was told to leave: those behind it were sent on without it."""
        if ticket.settled:
            self._finish(ticket, TRUE)
        else:
            self._room.send_on(ticket, self.agent, ahead=True)

    def _known_outcome(self, ticket: Ticket) -> Reply | None:
        """What an ``@once`` call has ended in before, or what speaks against it; None: it is to be executed."""
        activations = self._activations
        if ticket.is_tick:
            return self._known_tick(ticket)
        kept = activations.outcome_of(self.name, ticket.task_id)
        if kept is not None:
            return reply_from_bytes(kept)
        if ticket.deadline is None:
            return self._error(ticket, errors.ConfigError(f"{ticket.label} is @once, and needs a timeout"))
        if activations.is_over(self.name, ticket.task_id):
            return self._error(ticket, errors.CallLost(f"{ticket.label} has come late: its sender has had the outcome"))
        activations.confirm(self.name, ticket.task_id)
        if not activations.has_room_for_outcome(self.name):
            return self._error(ticket, errors.HostBusy(f"{self.name} keeps as many outcomes of calls as it may"))
        return None

    def _known_tick(self, ticket: Ticket) -> Reply | None:
        """The same for a tick: nothing is to be done if it is not the present one of its reminder."""
        tick = tick_of(ticket.task_id)
        standing = self._activations.reminder(self.name, tick.reminder)
        if standing is None or standing.stamp != tick.stamp:
            return TRUE
        if ticket.exclusive:
            return None
        return self._error(ticket, errors.ConfigError(f"{ticket.label} is @concurrent by now: no reminder can call it"))

    def go_on(self) -> None:
        """What has held calls may be over."""
        room = self._room
        held, self._held = self._held, {}
        for ticket, since in held.items():
            if ticket.settled:
                continue
            if not room.may_start(self.name):
                self._held[ticket] = since
                continue
            effects: list[Effect] = []
            room.dispatcher.calls.admit(ticket, room.clock(), effects)
            room.carry_out(effects)
        if self._withheld and room.may_answer:
            withheld, self._withheld = self._withheld, {}
            for ticket, (reply, _) in withheld.items():
                self._settle(ticket, reply)

    def refuse_held(self, error: ZmqAgentsError, before: float) -> None:
        """What is held since ``before`` or longer ends in this error; nothing of it ran."""
        room = self._room
        for ticket, since in list(self._held.items()):
            if since <= before or ticket.settled:
                del self._held[ticket]
                if not ticket.settled:
                    room.carry_out(room.dispatcher.on_lost(ticket, error, room.clock()))
        for ticket, (_, since) in list(self._withheld.items()):
            if since <= before:
                text = f"{ticket.label} ran; whether its host still had the agent is not known, for Redis is away"
                self.lose(ticket, errors.CallLost(text))

    def interrupt(self, ticket: Ticket, *, alone: bool) -> None:
        """No caller waits for ``ticket`` any more."""
        self._runner.interrupt(ticket, alone=alone)

    def saw(self, call_id: int) -> None:
        """A request of its code has come, if that is in another process."""

    # ------------------------------------------------------------ calls end

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """The code of a call has returned."""
        room = self._room
        self.used = now = room.clock()
        if ticket.settled and _is_whole(ticket):
            self._end_late(ticket, reply)
        elif self._changes and not _is_whole(ticket):
            self._write_changes(failed=bool(ticket.op == Op.CREATE and reply.code))
        if ticket.op == Op.CREATE:
            return self._made(ticket, reply)
        if ticket.settled or ticket.op == END or self.phase is None:
            return room.dispatcher.on_done(ticket, reply, now)
        if _is_whole(ticket):
            return self._returned_whole(ticket, reply)
        return self._returned_plain(ticket, reply, now)

    def _returned_plain(self, ticket: Ticket, reply: Reply, now: float) -> list[Effect]:
        """The turn is free; the answer leaves when this host may answer, and all saves begun before are taken."""
        room = self._room
        effects = room.dispatcher.on_returned(ticket, now)
        if room.may_answer:
            self._settle(ticket, reply)
        else:
            self._withheld[ticket] = reply, now
            room.watch(self)
        return effects

    def _returned_whole(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """Write the state in one step with what makes this the only time; the answer waits for that."""
        room, snapshot = self._room, self._whole
        self._whole = None
        effects = room.dispatcher.on_returned(ticket, room.clock())
        if snapshot is None and self.record.options.persist is not None:  # it could not be saved, which is its error
            self._answer(ticket, reply)
            self._spoil()
            return effects
        once = None
        if ticket.is_tick:
            self._changes.append(_done(ticket, self._activations.reminders_of(self.name)))
        else:
            reply, once = _outcome(ticket, reply, room.clock())
        self._kept[ticket] = reply
        try:
            self._write(snapshot, ticket, once)
        except errors.MessageTooLarge as exc:
            self.lose(ticket, exc)
            self._spoil()
        return effects

    def _write(self, snapshot: Snapshot | None, ticket: Ticket | None = None, once: OnceOutcome | None = None) -> None:
        """Save the state, and the reminders with it. Raises MessageTooLarge."""
        changes, self._changes = self._changes, []
        state, version = (None, 0) if snapshot is None else (packed(snapshot.frames), snapshot.version)
        room = self._room
        room.do(room.member.carry(self._activations.save(self.name, state, version, ticket, once, changes)))

    def _end_late(self, ticket: Ticket, reply: Reply) -> None:
        """It was cancelled, say, and its code has run to its end: it is done, as its state is."""
        snapshot, self._whole = self._whole, None
        has_run = snapshot is not None or (self.record.options.persist is None and ticket.context is not None)
        if self.phase is Phase.ACTIVE and has_run:
            once = None
            if ticket.is_tick:
                self._changes.append(_done(ticket, self._activations.reminders_of(self.name)))
            else:
                _, once = _outcome(ticket, reply, self._room.clock())
            try:
                self._write(snapshot, None, once)
            except errors.MessageTooLarge:
                self._spoil()

    def _write_changes(self, *, failed: bool) -> None:
        """A turn has ended whose reminders went with no state: the agent has none, or it could not be saved."""
        if self.record.options.persist is not None or failed or self.phase not in (Phase.STARTING, Phase.ACTIVE):
            self._changes.clear()
        else:
            self._write(None)

    def _spoil(self) -> None:
        """The state that the agent has here was not saved, and cannot be: it comes back as it was last saved."""
        self._is_spoiled = True
        self._changes.clear()
        self.leave(Leaving.RELEASED)

    def _settle(self, ticket: Ticket, reply: Reply) -> None:
        """Answer when all saves that were begun before are taken."""
        room = self._room
        self._kept[ticket] = reply
        if self.phase is not None:
            room.do(room.member.carry(room.member.activations.settle(self.name, ticket)))
        else:
            self.lose(ticket)

    def taken(self, calls: Iterable[Ticket]) -> None:
        """The answers of these may leave."""
        for ticket in calls:
            reply = self._kept.pop(ticket, None)
            if reply is not None:
                self._answer(ticket, reply)

    def lose(self, ticket: Ticket, error: ZmqAgentsError | None = None) -> None:
        """What ``ticket`` has done is not kept, as far as is known."""
        self._kept.pop(ticket, None)
        self._withheld.pop(ticket, None)
        self._answer(
            ticket, self._error(ticket, error or errors.Fenced(f"{ticket.label}: {self.name} has another home"))
        )

    def save(self, snapshot: Snapshot) -> None:
        """Its code has saved its state."""
        if self._is_spoiled:
            return
        if any(_is_whole(each) for each in self.record.holders):
            self._whole = snapshot
        else:
            self._save_apart(snapshot)

    def _save_apart(self, snapshot: Snapshot) -> None:
        """Save the state by itself."""
        if self.is_leaving and all(each.op == END for each in (*self.record.holders, *(self.record.beside or ()))):
            self._state = snapshot  # no answer waits for it
        elif self.phase in (Phase.STARTING, Phase.ACTIVE):
            try:
                self._write(snapshot)
            except errors.MessageTooLarge:
                self._spoil()

    def note_reminder(self, reminder: Reminder, *, is_made: bool) -> None:
        """Its code has set a reminder, or cancelled one. ``is_made``: not while it is made."""
        if self.phase is None:
            return
        if not reminder.method:
            self._changes.append(Drop(reminder.name))
        elif is_made or self._activations.reminder(self.name, reminder.name) is None:
            stamp, what = self._activations.reminders_of(self.name).stamp(), packed_what(reminder)
            self._changes.append(Set(reminder.name, stamp, reminder.after_s, reminder.every_s, what))

    @property
    def reminders(self) -> int:
        """How many it has, and sets. Any thread may ask."""
        return self._activations.count_reminders(self.name) + len(self._changes)

    # ------------------------------------------------------------ it is made

    def _made(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        room, calls = self._room, self._room.dispatcher.calls
        if reply.code:
            failed: list[Effect] = []
            for waiting in waiting_calls(self.record, room.dispatcher):
                calls.drop(waiting, reply, failed, room.clock())
            room.carry_out(failed)
            for passage in self._makers:
                if passage.ticket is not None:
                    self._finish(passage.ticket, reply)
            # With arguments that do not work it would be in the way of those who make it with others.
            self.leaving = self.leaving or (Leaving.DELETED if self._is_fresh else Leaving.RELEASED)
            return room.dispatcher.on_done(ticket, reply, room.clock())
        effects = room.dispatcher.on_done(ticket, reply, room.clock())
        if self.phase is Phase.STARTING:
            room.do(room.member.carry(self._activations.started(self.name)))
        makers, self._makers = self._makers, []
        for passage in makers:
            if passage.ticket is not None:
                is_late = passage.made is not None and passage.made.new and passage.made is not self._maker
                late = self._error(passage.ticket, _exists(self.name)) if is_late else None
                self._finish(passage.ticket, late or reply)
        return effects

    # ------------------------------------------------------------ it leaves

    def leave(self, why: Leaving, following: str = "") -> None:
        """No call begins any more; see the module's docstring."""
        room = self._room
        if self.is_leaving:
            self.leaving = self.leaving or why
            return
        self.leaving, self.following = why, following
        unbegun = self._unbegun()
        if why is not Leaving.DELETED:
            self._held.clear()
            for ticket in [*unbegun, *waiting_calls(self.record, room.dispatcher)]:
                room.send_on(ticket, self.agent)
        effects: list[Effect] = []
        streams = why is not Leaving.DELETED
        room.dispatcher.calls.forget_agent(self.record, effects, room.clock(), f"was {why.value}", streams=streams)
        room.carry_out(room.dispatcher.waiting.end(effects, room.clock()))
        if why is Leaving.DELETED:
            for ticket in unbegun:
                self._finish(ticket, self._error(ticket, _deleted(ticket)))

    def _has_begun(self, ticket: Ticket) -> bool:
        """Whether the code of a call that was started runs, or will in a moment, whatever becomes of its caller."""
        return True

    def _unbegun(self) -> list[Ticket]:
        """Calls that were started, and whose code has not begun, for a process is not there: they are taken back."""
        return []

    def _cut(self, error: ZmqAgentsError) -> None:
        """End the calls whose code runs."""
        room, record = self._room, self.record
        for ticket in [*record.holders, *(record.beside or ())]:
            if ticket.op != END and ticket.state >= State.RUNNING and not ticket.settled and self._has_begun(ticket):
                room.carry_out(room.dispatcher.on_lost(ticket, error, room.clock()))

    def give_up(self) -> None:
        """This host was declared dead: what runs is cancelled, and the agent given back with its state."""
        self._cut(errors.Fenced(f"{self.name}: {_REASONS[DroppedFor.DEAD]}"))
        self.leave(Leaving.RELEASED)

    def drop(self, dropped: Dropped) -> None:
        """The activation is no more: nothing of the agent is to seem served here."""
        if dropped.had is not None:
            ticket, outcome = dropped.had
            self._kept.pop(ticket, None)  # type: ignore[call-overload]
            self._answer(ticket, reply_from_bytes(outcome))  # type: ignore[arg-type]  # calls are tickets here
        lost = [*dropped.lost, *self._kept, *self._withheld]
        error = _ERRORS[dropped.why](f"{self.name}: {_REASONS[dropped.why]}")
        for ticket in lost:
            self.lose(ticket, error)  # type: ignore[arg-type]
        self._cut(error)
        self.leave(Leaving.LOST)

    def retire(self, records: Iterable[AgentRecord]) -> None:
        """None of its calls runs any more, and its hooks have run."""
        room, activations = self._room, self._room.member.activations
        self._runner.retire(records)
        room.moved_out(self)
        if self.phase not in (Phase.STARTING, Phase.ACTIVE):
            self.gone()
            room.on_way_out(self.name)
        elif self.leaving is Leaving.DELETED:
            room.do(room.member.carry(activations.delete(self.name)))
        else:
            state = self._state
            frames = packed(state.frames) if state is not None else None
            version = state.version if state is not None else 0
            try:
                effects = activations.release(self.name, self.following, frames, version)
            except errors.MessageTooLarge:
                effects = activations.release(self.name, self.following)
            room.do(room.member.carry(effects))

    def on_gone(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called when its record is released."""
        self._told.append(tell)

    def gone(self) -> None:
        """Its record is released, deleted or another's."""
        for tell in self._told:
            tell()
        for ticket in self._breakers:
            self._finish(ticket, TRUE)
        self._breakers.clear()
        for ticket in [*self._kept, *self._withheld]:
            self.lose(ticket)

    # ------------------------------------------------------------ answers

    def _answer(self, ticket: Ticket, reply: Reply) -> None:
        room = self._room
        room.carry_out(room.dispatcher.on_kept(ticket, reply, room.clock()))

    def _finish(self, ticket: Ticket, reply: Reply) -> None:
        room = self._room
        room.carry_out(room.dispatcher.on_done(ticket, reply, room.clock()))

    def _error(self, ticket: Ticket, error: ZmqAgentsError) -> Reply:
        return error_reply(error, agent=self.record.agent_id, method=ticket.name, call_id=ticket.task_id)


def waiting_calls(record: AgentRecord, dispatcher: Dispatcher) -> list[Ticket]:
    """The calls of an agent whose code has not begun, but for that which makes it, in their order."""
    seated = [ticket for ticket in (*record.holders, *(record.beside or ())) if ticket.state < State.RUNNING]
    parked = [
        ticket for ticket in dispatcher.tasks.values()
        if ticket.agent is record and ticket.state is State.PARKED and ticket.deps
    ]  # fmt: skip
    return [ticket for ticket in (*seated, *(record.mailbox or ()), *parked) if ticket.op not in (Op.CREATE, END)]


def _outcome(ticket: Ticket, reply: Reply, now: float) -> tuple[Reply, OnceOutcome]:
    """What an ``@once`` call ends in, and what is kept of it."""
    outcome = reply_to_bytes(reply)
    if len(outcome) > MAX_OUTCOME_BYTES:
        text = f"{ticket.label} is @once, and its outcome has {len(outcome)} bytes, at most {MAX_OUTCOME_BYTES}"
        reply = error_of(ticket, errors.MessageTooLarge(text, len(outcome), MAX_OUTCOME_BYTES))
        outcome = reply_to_bytes(reply)
    left_s = max(0.0, (ticket.deadline or 0.0) - now) + OUTCOME_S
    return reply, OnceOutcome(ticket.task_id, outcome, left_s)


def _done(ticket: Ticket, reminders: Reminders) -> Done:
    tick = tick_of(ticket.task_id)
    return Done(tick.reminder, tick.stamp, reminders.stamp())


def _exists(name: str) -> errors.AgentExists:
    return errors.AgentExists(f"there is already an agent {name}")


def _deleted(ticket: Ticket) -> errors.AgentDeleted:
    return errors.AgentDeleted(f"{ticket.agent.agent_id} was deleted before {ticket.name} could start")


def _is_whole(ticket: Ticket) -> bool:
    """Whether what it does to the state is written in one step with the word that it is done."""
    return (ticket.method is not None and ticket.method.once) or ticket.is_tick


_ERRORS = {
    DroppedFor.FENCED: errors.Fenced, DroppedFor.REPEATED: errors.CallLost, DroppedFor.RECORD: errors.CallLost,
    DroppedFor.DEAD: errors.Fenced,
}  # fmt: skip
_REASONS = {
    DroppedFor.FENCED: "it has another home by now, and what this call has changed is not kept",
    DroppedFor.REPEATED: "it had executed a call a second time, and was dropped",
    DroppedFor.RECORD: "its record in Redis is not understood, and what this call has changed is not kept",
    DroppedFor.DEAD: "its host was declared dead, and what this call has changed is not kept",
}
