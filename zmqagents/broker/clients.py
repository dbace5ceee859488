"""Who is here, who is lost, and who may do what.

A client says HELLO over a connection and has a *seat* from then on, found by that connection: a routing id of the
ROUTER or a `UnixPeer`. Its messages bear the token that the WELCOME gave it. What ends that:

    its connection breaks     the Unix door tells of it; over TCP it is found out by sending (`Clients.call_roll`).
                              It is *lost*: its calls go on and their replies are kept for ``resume_s``, in which it may
                              come back over another connection. Nobody reads its streams any more; they are cancelled
    BYE, a long silence, too much unread, never come back: it is gone for good, and its plain calls are cancelled
    its key is revoked        all that it asked for ends in an error

All of this belongs to the router thread, whose loop calls `look` when it is ``due``.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable

import zmq

from .. import errors
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Effect
from ..scheduler.records import Ticket
from ..security.keys import Role
from ..security.zap import name_of
from ..wire import messages
from ..wire.messages import Flag, Frame, Hello, Kind, error_reply
from ..wire.unix_listener import Where
from .delivery import Delivery, Session

__all__ = ["Clients"]

log = logging.getLogger(__name__)

PROBE_S = 1.0  # how often the reader of a stream that waits for it is looked after
MAX_LOST = 1024  # clients that are waited for after their connection broke
ROLES_EVERY_S = (
    0.25  # how often the roles of clients with keys are looked at; the key store reads once a second at most
)
SILENCE_S = 60.0  # a client pings at least every 10 s: beyond this it is gone
COMPLAINTS, COMPLAINTS_EVERY_S = 20, 60.0  # log lines about malformed messages
MAX_BAD_PEERS = 4096  # that are remembered; beyond it one may be logged a second time


class Clients:
    """See the module's docstring. ``carry_out`` runs effects of the dispatcher."""

    def __init__(
        self, config: BrokerConfig, dispatcher: Dispatcher, out: Delivery,
        carry_out: Callable[[list[Effect]], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.seats: dict[Where, Session] = {}  # by where it is reached; always the same object
        self.due = 0.0  # when there is something to do for `look`
        self._config = config
        self._dispatcher = dispatcher
        self._out = out
        self._carry_out = carry_out
        self._clock = clock
        self._clients: dict[bytes, Session] = {}  # by client id, the lost ones, too
        self._lost: dict[Session, None] = {}  # those whose connection is gone, in that order
        self._starving: set[Ticket] = set()  # streams to other processes that wait for credit
        self._next_sweep = self._next_probe = 0.0
        self._next_roles = math.inf  # while nobody is here by a key
        self._bad_peers: dict[str, int] = {}
        self._complaints = _Quota(COMPLAINTS, COMPLAINTS_EVERY_S)
        self._role_of: Callable[[str], Role | None] = lambda user: None
        self._welcome = b""
        out.gone, out.drop = self.gone, self._detach

    def open(self, role_of: Callable[[str], Role | None], welcome: bytes) -> None:
        """Let clients in. ``role_of`` gives what a user may do, None: nothing; ``welcome`` is the body of a WELCOME."""
        self._role_of = role_of
        self._welcome = welcome

    # ------------------------------------------------------------ what clients say

    def hello(self, routing_id: Where, hello: Hello, user: str, now: float) -> None:
        """A client introduces itself, or has come back. ``user``: whom the `Authenticator` took it for."""
        role = self._role_of(user)
        if role is None:
            self._send_away(routing_id, errors.AuthenticationError("this key was revoked"))
            return
        session = self._clients.get(hello.client_id)
        flags = 0
        if session is None:
            session = Session(hello, user, role, self._config.max_unread_bytes)
            self._clients[hello.client_id] = session
        elif (session.resume, session.user) != (hello.options.get("resume"), user):
            self.complain(routing_id, errors.RemoteProtocolError("HELLO with the client id of somebody else"))
            return
        else:  # its former connection is lost, which it may have noticed before us
            self._lose(session)
            session.role = role
            flags = Flag.RESUMED
        other = self.seats.get(routing_id)
        if other is not None and other is not session:
            self._detach(other)
        session.take_seat(routing_id, now)
        self._lost.pop(session, None)
        self.seats[routing_id] = session
        if user.startswith("key:"):
            self._next_roles = min(self._next_roles, now + ROLES_EVERY_S)
            self.due = min(self.due, self._next_roles)
        head = messages.header(Kind.WELCOME, hello.call_id, session.token, flags=flags)
        self._out.send(routing_id, [head, self._welcome])

    def bye(self, session: Session) -> None:
        """The client goes, and will not come back."""
        self._detach(session)

    def complain(self, routing_id: Where, exc: Exception) -> None:
        """Count what a peer did wrong, and log it once for each peer, though not for each of a flood of them."""
        name = routing_id.hex() if isinstance(routing_id, bytes) else str(routing_id)
        seen = self._bad_peers.get(name, 0)
        if len(self._bad_peers) >= MAX_BAD_PEERS and not seen:
            self._bad_peers.clear()
        self._bad_peers[name] = seen + 1
        if not seen and self._complaints.take(self._clock()):
            log.warning("dropping malformed messages of peer %s: %s", name, exc)

    def came_before(self, session: Session, call_id: int) -> bool:
        """True if this call is open, or was answered: then it is answered again."""
        if call_id in session.peer.calls or call_id < session.replies.needed:
            return True
        try:
            reply = session.replies.find(call_id)
        except KeyError:
            return False
        if reply is None:
            task_id = messages.task_id_of(session.peer.prefix, call_id)
            limit = self._config.max_unread_bytes
            lost = errors.CallLost(f"the call ended, but its reply was not read among {limit} bytes (max_unread_bytes)")
            reply = error_reply(lost, call_id=task_id)
        self._out.push_reply(session, call_id, reply)
        return True

    # ------------------------------------------------------------ who has gone

    def look(self, now: float) -> None:
        """Do what is ``due``."""
        self.due = now + ROLES_EVERY_S  # should any of it fail
        if self._starving and now >= self._next_probe:
            self._next_probe = now + PROBE_S
            self._probe_readers()
        if now >= self._next_roles:
            self._next_roles = math.inf
            self._look_at_roles(now)
        while self._lost:
            session = next(iter(self._lost))  # lost before all others
            if now - session.last_seen <= self._config.resume_s:
                break
            self._detach(session)
        if now >= self._next_sweep:
            self._next_sweep = now + SILENCE_S / 4
            for session in [s for s in self.seats.values() if now - s.last_seen > SILENCE_S]:
                self._detach(session)
        self.due = min(self._next_sweep, self._next_roles)
        if self._starving:
            self.due = min(self.due, self._next_probe)
        if self._lost:
            self.due = min(self.due, next(iter(self._lost)).last_seen + self._config.resume_s)

    def call_roll(self) -> None:
        """Find out whose connection has ended: the ROUTER's monitor does not say, but sending does."""
        for session in list(self.seats.values()):
            if session.outbox is None:
                self._knock(session)

    def _knock(self, session: Session) -> None:
        """Send it something. The Unix door says by itself who has gone."""
        if isinstance(session.routing_id, bytes):
            self._out.send(session.routing_id, [messages.header(Kind.PONG, 0, session.token)])

    def starve(self, ticket: Ticket) -> None:
        """A stream to another process waits for its reader. If that has died it would wait, and keep the turn."""
        self._starving.add(ticket)
        self.due = min(self.due, self._next_probe)

    def feed(self, ticket: Ticket) -> None:
        """Its reader has granted it more."""
        self._starving.discard(ticket)

    def where(self) -> dict[str, int]:
        """How many clients there are, for the host's account of itself."""
        return {"clients": len(self.seats), "clients_lost": len(self._lost)}

    def close(self, goodbye: list[Frame]) -> None:
        """Send everybody what is left for them, and ``goodbye``."""
        for session in list(self.seats.values()):
            with contextlib.suppress(zmq.ZMQError):
                self._out.finish(session, goodbye)

    def _probe_readers(self) -> None:
        self._starving = {ticket for ticket in self._starving if not ticket.settled and not ticket.peer.gone}
        for session in {ticket.peer.key for ticket in self._starving if not ticket.peer.key.lost}:
            self._knock(session)

    def _look_at_roles(self, now: float) -> None:
        """Keys may be changed and removed while their clients are here, or about to come back."""
        for session in [session for session in self._clients.values() if session.user.startswith("key:")]:
            role = self._role_of(session.user)
            if role is not None:
                session.role = role
                self._next_roles = now + ROLES_EVERY_S
                continue
            who = name_of(session.user)
            log.warning("%s: %s was revoked: its session has ended", self._config.server_id, who)
            error = errors.AuthenticationError(f"the key of {who.partition(':')[2]} was revoked")
            self._carry_out(self._dispatcher.on_revoke(session.peer, error, now))
            if not session.lost:
                self._send_away(session.routing_id, error)
            self._detach(session)

    def _send_away(self, routing_id: Where, error: ZmqAgentsError) -> None:
        code, body = error_reply(error)
        self._out.send(routing_id, [messages.header(Kind.GOODBYE, code=code), *body])

    def gone(self, routing_id: Where) -> None:
        """This connection has ended."""
        session = self.seats.get(routing_id)
        if session is not None:
            self._lose(session)

    def roomy(self, where: Where) -> None:
        """It can be sent more, after a time in which it did not read."""
        session = self.seats.get(where)
        if session is not None:
            self._out.go_on(session)

    def _lose(self, session: Session) -> None:
        """Its connection is gone. Its calls go on for ``resume_s``, but nobody reads its streams any more."""
        if session.lost:
            return
        session.lost = True
        session.last_seen = self._clock()
        self._leave_seat(session)
        self._lost[session] = None
        self.due = min(self.due, session.last_seen + self._config.resume_s)
        if len(self._lost) > MAX_LOST:
            self._detach(next(iter(self._lost)))
        for ticket in [t for t in session.peer.calls.values() if t.flags & Flag.STREAM]:
            self._carry_out(self._dispatcher.on_cancel(session.peer, ticket.call_id, "", self._clock()))

    def _detach(self, session: Session) -> None:
        """The client is gone for good."""
        self._leave_seat(session)
        session.replies.clear()
        session.in_flight.clear()
        self._lost.pop(session, None)
        if self._clients.get(session.client_id) is session:
            del self._clients[session.client_id]
        self._carry_out(self._dispatcher.on_detach(session.peer, self._clock()))

    def _leave_seat(self, session: Session) -> None:
        if session.seated:
            session.seated = False
            del self.seats[session.routing_id]
        self._out.leave(session)


class _Quota:
    """So many in so many seconds."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._start = -seconds
        self._taken = 0

    def take(self, now: float) -> bool:
        if now - self._start >= self._seconds:
            self._start, self._taken = now, 0
        self._taken += 1
        return self._taken <= self._limit
