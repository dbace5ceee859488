"""The ``capacity`` slots of a host: how many worker threads run agents' code, and which call is next.

A call takes a slot when it starts and keeps it until its code returns, except while its code waits for other calls.
Calls whose wait is over get the next free slots; calls that have not started get those that are left. Of each kind the
users have their turns one after the other, and the calls of each user come in their order.

Calls may run for ever, so there are some slots beside ``capacity``, an eighth of it and one at least, for the users
that hold few or none: see `shares`.
"""

from __future__ import annotations

from .records import State, Ticket
from .shares import Account, FairQueue, Share

__all__ = ["Slots"]


class Slots:
    """Takes in the tickets that want a slot, and gives them out when there is one. See the module's docstring."""

    __slots__ = ("_ready", "_resuming", "_share", "blocked", "capacity", "running", "wanted")

    def __init__(self, share: Share) -> None:
        self.capacity = share.free
        self._share = share
        self._ready: FairQueue[Ticket] = FairQueue()
        self._resuming: FairQueue[Ticket] = FairQueue()
        self.running = 0  # slots in use
        self.wanted = False  # `next` may have a ticket to give out
        self.blocked = 0  # threads without a slot: their code waits, or waits for a slot to go on

    @property
    def ready(self) -> int:
        """Calls that could start if there were a slot."""
        return self._ready.count

    def take(self, ticket: Ticket) -> bool:
        """True: ``ticket`` has a slot. False: it is READY, and `next` gives it out in its turn."""
        account = ticket.account
        if self.running < self.capacity or not self._share.refuses(account.slots, self.running):
            self.running += 1
            account.slots += 1
            ticket.slot = True
            return True
        ticket.state = State.READY
        self._ready.add(account, ticket)
        self.wanted = True
        return False

    def withdraw(self, ticket: Ticket) -> None:
        """The READY ``ticket`` will not start."""
        self._ready.remove(ticket.account, ticket)

    def lend(self, ticket: Ticket, *, parked: bool = False) -> None:
        """``ticket`` gives its slot to others while its code waits; ``parked``: no thread waits with it."""
        account = ticket.account
        ticket.slot = False
        ticket.owed = True
        self.running -= 1
        account.slots -= 1
        ticket.parked = parked
        if not parked:
            account.waits += 1
            self.blocked += 1

    def reclaim(self, ticket: Ticket) -> None:
        """Its wait is over: `next` gives it out as soon as there is a slot."""
        self._resuming.add(ticket.account, ticket)
        self.wanted = True

    def free(self, ticket: Ticket) -> bool:
        """The code of ``ticket`` has returned; True if that freed a slot."""
        if ticket.owed:
            self._end_wait(ticket)
        if not ticket.slot:
            return False
        ticket.slot = False
        self.running -= 1
        ticket.account.slots -= 1
        return True

    def next(self, *, beyond: bool = False) -> Ticket | None:
        """The next ticket to run, which has a slot now; None if no slot is free or no ticket wants one.

        ``beyond``: at the end of the host the tickets whose wait is over go on without a slot, and no others.
        """
        while (ticket := self._next_of(self._resuming, beyond)) is not None:
            if ticket.owed:  # it may have returned instead
                self._end_wait(ticket)
                if not beyond:
                    self._give(ticket)
                return ticket
        ticket = None if beyond else self._next_of(self._ready, False)
        if ticket is not None:
            self._give(ticket)
        self.wanted = bool(self._ready.count or self._resuming.count)
        return ticket

    def _next_of(self, queue: FairQueue[Ticket], beyond: bool) -> Ticket | None:
        """The next ticket of ``queue`` that may have a slot now."""
        if not queue.count:
            return None
        if beyond or self.running < self.capacity:
            return queue.pop()
        account = self._with_few(queue)
        return None if account is None else queue.pop(account)

    def _with_few(self, queue: FairQueue[Ticket]) -> Account | None:
        """The next user in ``queue`` that may have one of the slots beside the capacity."""
        if self.running >= self._share.limit:
            return None
        for account in queue.users:
            if not self._share.refuses(account.slots, self.running):
                return account
        return None

    def _give(self, ticket: Ticket) -> None:
        ticket.slot = True
        self.running += 1
        ticket.account.slots += 1

    def _end_wait(self, ticket: Ticket) -> None:
        ticket.owed = False
        if not ticket.parked:
            ticket.account.waits -= 1
            self.blocked -= 1
        ticket.parked = False
