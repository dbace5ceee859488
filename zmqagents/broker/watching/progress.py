"""How far calls have come: what their code tells, sent to those who wait for them.

The code may tell of each turn of a loop. The thread that runs it posts one event, and no other before the router thread
has looked at that. The router thread sends the newest that was told, `EVERY_S` after the one before at the earliest. So
a call costs ten messages a second at most, and the last one told is sent, however long the code is silent after it.

A client whose connection is broken for a moment misses what is sent then: the next one says all that it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...codec import pack
from ...scheduler.effects import Effect
from ...scheduler.records import Alarm, Peer, Ticket, Timed
from ...scheduler.timers import Timers
from ...wire.messages import PROGRESS, Flag, Frame, Kind, answer_frames
from ..delivery import Delivery
from ..session import Session

__all__ = ["ProgressSender"]

EVERY_S = 0.1


class ProgressSender:
    """Belongs to the router thread. ``inside`` takes what is for the host's own code: a call id, and the message."""

    def __init__(
        self, timers: Timers[Timed], delivery: Delivery, inside: Callable[[int, Sequence[Frame]], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._timers = timers
        self._delivery = delivery
        self._inside = inside
        self._clock = clock

    def show(self, ticket: Ticket) -> list[Effect]:
        """The code of ``ticket`` has told something: send it, or note when to send it."""
        told = ticket.context.told if ticket.context is not None else None
        if ticket.settled or told is None:
            return []
        now = self._clock()
        if now < told.next_s:
            self._timers.add(told.next_s, Alarm(lambda _: self.show(ticket)))
            return []
        told.send_next_at(now + EVERY_S)  # before the look: what is told after it is posted again
        body = (pack(list(told.progress)),)
        if ticket.flags & Flag.WATCHED:
            self._send(ticket.peer, ticket.call_id, body)
        for fetch in ticket.fetches or ():
            self._send(fetch.peer, fetch.call_id, body)
        return []

    def _send(self, peer: Peer, call_id: int, body: Sequence[Frame]) -> None:
        if peer.local:
            self._inside(call_id, body)
            return
        session: Session = peer.key
        if not peer.gone and not session.lost:
            message = answer_frames(Kind.CHUNK, call_id, session.token, body, time_ms=PROGRESS)
            self._delivery.unsent.append((session, message))
