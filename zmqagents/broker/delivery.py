"""Sending to clients, as fast as they read.

Replies are collected in ``unsent`` and sent together at the end of a turn (`Delivery.push_all`): so a client is written
to once for several messages. While short methods run, a reply waits `PUSH_S` for others at most (`push_some`).

No send waits for a client. When its connection has no room, the messages for it wait in the *outbox* of its session
until the listener says that there may be room (`go_on`). When more than ``max_unread_bytes`` wait there, or more than
the share of its user in what may wait for all clients, the client does not read, and is dropped. That a connection
is no more is found by its listener, see `transport.Peer`.

All of this belongs to the router thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..scheduler.shares import Shares
from ..wire.messages import Frame
from ..wire.transport import Peer
from .session import Session

__all__ = ["Delivery"]

log = logging.getLogger(__name__)

PUSH_AT = 32  # how many replies may wait for others while short methods run, and for how long
PUSH_S = 0.0002
LARGE_BYTES = 32_768  # messages from that size on are sent at once, so that each finds whether there is room for it


class Delivery:
    """Sends messages to sessions; see the module's docstring.

    ``drop`` is called for a client that does not read, ``keep`` for one whose connection is gone: its replies are kept.
    """

    def __init__(
        self, max_unread_bytes: int, shares: Shares, drop: Callable[[Session], None], keep: Callable[[Session], None]
    ) -> None:
        self.unsent: list[tuple[Session, list[Frame]]] = []  # messages of this turn
        self._push_by = 0.0  # when they are to be sent at the latest; 0: not known yet
        self._max_unread_bytes = max_unread_bytes
        self._share = shares.unread_bytes
        self._everybody = shares.everybody
        self._drop = drop
        self._keep_for_lost = keep

    def push_some(self, now: float) -> None:
        """Send what has waited long enough for others, before more code runs."""
        if not self._push_by:
            self._push_by = now + PUSH_S
        if len(self.unsent) >= PUSH_AT or now >= self._push_by:
            self.push_all()

    def push_all(self) -> None:
        """Send all that is ``unsent``, and what comes of that."""
        self._push_by = 0.0
        while self.unsent:  # to drop a client may end calls that others wait for
            unsent, self.unsent = self.unsent, []
            if len(unsent) == 1:
                session, message = unsent[0]
                peer = session.peer
                if not (peer.pending or peer.ended or session.outbox) and peer.send(message):  # most often
                    continue
            queued: dict[Peer, None] = {}
            for session, message in unsent:
                peer = session.peer
                if peer.ended:
                    self._keep_for_lost(session)
                    continue
                if session.outbox is not None:
                    self._keep(session, message)
                elif len(message) == 1 and len(message[0]) < LARGE_BYTES:
                    if peer.queue(message):
                        queued[peer] = None
                    else:
                        self._keep(session, message)
                elif not peer.send(message):
                    self._keep(session, message)
            for peer in queued:
                if not peer.pending:  # else the listener tells when there is room; not if it is written here
                    peer.flush()

    def go_on(self, session: Session) -> None:
        """Send what has waited for room, for there may be some."""
        if session.outbox is not None:
            session.send_kept()

    def _keep(self, session: Session, message: list[Frame]) -> None:
        if not session.seated:
            return
        unread_bytes, all_bytes = session.keep(message), self._everybody.unread_bytes
        if unread_bytes > self._max_unread_bytes or (
            all_bytes >= self._share.free and self._share.refuses(session.caller.account.unread_bytes, all_bytes)
        ):
            log.warning("dropping client %s: it has not read %d bytes of replies", session.caller.prefix, unread_bytes)
            self._drop(session)
