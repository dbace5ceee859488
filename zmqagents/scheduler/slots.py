"""The ``capacity`` slots of a host: how many worker threads run agents' code, and who is next."""

from __future__ import annotations

from collections import OrderedDict, deque

from .records import State, Ticket

__all__ = ["Slots"]


class Slots:
    """Takes tickets in and gives them out; the dispatcher says what becomes of them.

    Those that waited and go on come before those that have not started; each kind in its order.
    """

    __slots__ = ("_capacity", "_ready", "_resuming", "blocked", "running")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ready: OrderedDict[Ticket, None] = OrderedDict()
        self._resuming: deque[Ticket] = deque()
        self.running = 0  # slots in use
        self.blocked = 0  # threads without a slot: their code waits, or waits for a slot to go on

    @property
    def ready(self) -> int:
        """Calls that could start if there were a slot."""
        return len(self._ready)

    def take(self, ticket: Ticket) -> bool:
        """True: ``ticket`` has a slot. False: it is READY, and `next` gives it out in its turn."""
        if self.running < self._capacity:
            self.running += 1
            ticket.slot = True
            return True
        ticket.state = State.READY
        self._ready[ticket] = None
        return False

    def withdraw(self, ticket: Ticket) -> None:
        """A READY one will not start."""
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
        """Who gets a free slot, now its own; None if there is no slot or nobody.

        ``beyond``: at the end of the host, those whose wait is over go on without one, and nobody else.
        """
        if self.running >= self._capacity and not beyond:
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
            return None
        ticket, _ = self._ready.popitem(last=False)
        ticket.slot = True
        self.running += 1
        return ticket
