"""The ``capacity`` slots of a host: how many worker threads run agents' code, and which call is next.

A call takes a slot when it starts and keeps it until its code returns, except while its code waits for other calls.
Calls whose wait is over get the next free slots; calls that have not started get those that are left. Each kind is
served in the order in which it came.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from .records import State, Ticket

__all__ = ["Slots"]


class Slots:
    """Takes in the tickets that want a slot, and gives them out when there is one. See the module's docstring."""

    __slots__ = ("_ready", "_resuming", "blocked", "capacity", "running", "wanted")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._ready: OrderedDict[Ticket, None] = OrderedDict()
        self._resuming: deque[Ticket] = deque()
        self.running = 0  # slots in use
        self.wanted = False  # `next` may have a ticket to give out
        self.blocked = 0  # threads without a slot: their code waits, or waits for a slot to go on

    @property
    def ready(self) -> int:
        """Calls that could start if there were a slot."""
        return len(self._ready)

    def take(self, ticket: Ticket) -> bool:
        """True: ``ticket`` has a slot. False: it is READY, and `next` gives it out in its turn."""
        if self.running < self.capacity:
            self.running += 1
            ticket.slot = True
            return True
        ticket.state = State.READY
        self._ready[ticket] = None
        self.wanted = True
        return False

    def withdraw(self, ticket: Ticket) -> None:
        """The READY ``ticket`` will not start."""
        del self._ready[ticket]

    def lend(self, ticket: Ticket) -> None:
        """``ticket`` gives its slot to others while its code waits."""
        ticket.slot = False
        ticket.owed = True
        self.running -= 1
        self.blocked += 1

    def reclaim(self, ticket: Ticket) -> None:
        """Its wait is over: `next` gives it out as soon as there is a slot."""
        self._resuming.append(ticket)
        self.wanted = True

    def free(self, ticket: Ticket) -> bool:
        """The code of ``ticket`` has returned; True if that freed a slot."""
        if ticket.owed:
            ticket.owed = False
            self.blocked -= 1
        if not ticket.slot:
            return False
        ticket.slot = False
        self.running -= 1
        return True

    def next(self, *, beyond: bool = False) -> Ticket | None:
        """The next ticket to run, which has a slot now; None if no slot is free or no ticket wants one.

        ``beyond``: at the end of the host the tickets whose wait is over go on without a slot, and no others.
        """
        if self.running >= self.capacity and not beyond:
            return None
        while self._resuming:
            ticket = self._resuming.popleft()
            if ticket.owed:  # it may have returned instead
                ticket.owed = False
                self.blocked -= 1
                if not beyond:
                    ticket.slot = True
                    self.running += 1
                return ticket
        if beyond or not self._ready:
            self.wanted = False
            return None
        ticket, _ = self._ready.popitem(last=False)
        ticket.slot = True
        self.running += 1
        return ticket
