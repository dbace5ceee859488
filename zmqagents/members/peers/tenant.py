"""An agent of the cluster whose code runs in a process of this host: a child, see `members.child`.

What holds for a `Resident` holds for it: the turn, the look before a call begins and before its answer leaves, the
saves. Its state comes from the process ahead of the end of the call, in order, and is written by this host.

*The process may end before a call does.* Then nothing counts of the turn that ran there but what was written before:
not the state or the reminders that were to be written in one step with the end of the call, and no outcome. The call
ends in `AgentCrashed`. The next process makes the agent with the state that was written last.
"""

from __future__ import annotations

from collections.abc import Mapping

from ... import errors
from ...agents.state import Reminder, Snapshot
from ...cluster.activations import Made, OnceOutcome
from ...cluster.naming import AgentName
from ...cluster.reminders import MAX_REMINDERS
from ...errors import ZmqAgentsError
from ...scheduler.effects import Effect
from ...scheduler.records import END, AgentRecord, Ticket
from ...store.cluster import Mine
from ...wire.messages import Op, Reply
from .quarters import Leaving, Process, Quarters
from .resident import Resident, waiting_calls

__all__ = ["Tenant"]


class Tenant(Resident):
    """See the module's docstring. A `Landlord`, of one agent. ``state``: with which it is made."""

    def __init__(
        self, room: Quarters, name: AgentName, record: AgentRecord, mine: Mine, labels: Mapping[str, str] | None,
        maker: Made | None, *, process: Process, state: Snapshot | None,
    ) -> None:  # fmt: skip
        super().__init__(room, name, record, mine, labels, maker, process)
        self._process = process
        self._written = state
        self._refused: dict[Ticket, ZmqAgentsError] = {}  # calls whose reminders could not be taken

    @property
    def pid(self) -> int:
        """The process, 0 while there is none."""
        return self._process.pid

    def saw(self, call_id: int) -> None:
        """A request of its code has come."""
        self._process.saw(call_id)

    def _has_begun(self, ticket: Ticket) -> bool:
        return not self._process.lodging(self.record).holds(ticket)

    def _unbegun(self) -> list[Ticket]:
        return self._process.lodging(self.record).take_back()

    # ------------------------------------------------------------ what its process says

    def state_of(self, record: AgentRecord) -> Snapshot | None:
        """The state with which it is made in a process now."""
        self._forget_turn()
        return self._written

    def keep(self, record: AgentRecord, state: Snapshot, ticket: Ticket | None) -> None:
        """Its code has saved its state, in the turn of ``ticket``, or (None) when it was made again."""
        if ticket is not None:
            self.save(state)
        elif not self._is_spoiled:  # even if a call has the turn that is not to end yet: its code has not begun
            self._save_apart(state)

    def _write(self, snapshot: Snapshot | None, ticket: Ticket | None = None, once: OnceOutcome | None = None) -> None:
        super()._write(snapshot, ticket, once)
        if snapshot is not None:
            self._written = snapshot

    def remind(self, record: AgentRecord, reminder: Reminder, ticket: Ticket | None) -> list[Effect]:
        """Its code has set a reminder or cancelled one, in the turn of ``ticket``, or (None) while it is made again."""
        if not reminder.method or self.reminders < MAX_REMINDERS:
            self.note_reminder(reminder, is_made=self.record.made and ticket is not None)
        elif ticket is not None:
            text = f"{self.name} has {MAX_REMINDERS} reminders, which is as many as it may have"
            self._refused[ticket] = errors.HostBusy(text)
        return []

    def remade(self, record: AgentRecord, reply: Reply) -> list[Effect]:
        """It is made again, or could not be."""
        if self._changes:
            self._write_changes(failed=bool(reply.code))
        return []

    # ------------------------------------------------------------ calls end

    def returned(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """The code of a call has returned."""
        refused = self._refused.pop(ticket, None)
        if refused is not None and not reply.code:
            reply = self._error(ticket, refused)
        return super().returned(ticket, reply)

    def broken_off(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """Its process has ended before ``ticket`` did."""
        self._refused.pop(ticket, None)
        self._forget_turn()
        is_asked = bool(self._makers) or self._maker is not None
        if ticket.op == Op.CREATE and not is_asked and not self._process.lodging(self.record).is_suspect:
            # Only those who call it have it made: they need not know, if another agent has ended the process.
            self.leaving = self.leaving or (Leaving.DELETED if self._is_fresh else Leaving.RELEASED)
            for waiting in waiting_calls(self.record, self._room.dispatcher):
                self._room.send_on(waiting, self.agent)
        return self.given_up(ticket, reply)

    def given_up(self, ticket: Ticket, reply: Reply) -> list[Effect]:
        """The code of ``ticket`` has not run to its end, and will not."""
        now = self._room.clock()
        if ticket.op == Op.CREATE:
            return self._made(ticket, reply)
        if ticket.settled or ticket.op == END or self.phase is None:
            return self._room.dispatcher.on_done(ticket, reply, now)
        return self._returned_plain(ticket, reply, now)

    def _forget_turn(self) -> None:
        """Nothing counts of a turn that did not come to its end."""
        self._whole = None
        self._changes.clear()
