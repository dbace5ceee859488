"""The clients of a host: which are connected, which are lost for a moment, and what each may do.

A client sends HELLO over a connection. From then on the connection's `Peer` holds its `Session`, and its messages have
the token that the WELCOME gave it. A client goes in one of these ways:

    its connection breaks     the Unix listener tells; over TCP only sending tells (`Clients.call_roll`). The client
                              is *lost*: its calls go on and their replies are kept for ``resume_s``, in which it may
                              come back over another connection; less if its process has ended, which the system
                              tells of clients at the Unix socket. Its streams go on as far as they have credit, and
                              what it has not taken of them is sent again when it is back
    BYE, a long silence, too much unread, never come back: it is gone for good, and its plain calls are cancelled
    its key is revoked        everything that it asked for ends in an error

All of this belongs to the router thread, whose loop calls `look` when it is ``due``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

from .. import codec, errors
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..process.watching import has_ended
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Effect, Report
from ..scheduler.records import Peer as Caller
from ..scheduler.records import Ticket
from ..scheduler.shares import Account
from ..security.roles import CALLERS, ActsFor, Role, asked_of, lesser, may_stand_in
from ..security.zap import INSECURE_USER, name_of
from ..telemetry.lines import fields_of
from ..wire import messages
from ..wire.link import rebuild_error
from ..wire.messages import Call, Flag, Frame, Hello, Kind, Reply, error_reply
from ..wire.transport import Peer
from .delivery import Delivery
from .session import Session

__all__ = ["Clients", "Complaints"]

log = logging.getLogger(__name__)
clients_log = logging.getLogger("zmqagents.clients")

PROBE_S = 1.0  # how often the reader is probed that a stream waits for
MAX_LOST = 1024  # lost clients that are waited for
ENDED_EVERY_S = 0.05  # how often it is looked whether the process of a lost client has ended
ROLES_EVERY_S = 0.25  # how often the roles of clients with keys are looked up; the key store reads once a second
SILENCE_S = 60.0  # a client pings at least every 10 s: after a silence of this length it is gone
NEW_KEY_S = 1.5  # after that a new key is known: the key store looks at its files once a second
MAX_UNKNOWN = 1024
HINT_EVERY_S = 1.0  # the same hint, to one client
MAX_HINTED = 4096
_NEVER: tuple[messages.Home | None, float] = None, 0.0
COMPLAINTS, COMPLAINTS_EVERY_S = 20, 60.0  # log lines about peers
_TOO_MUCH = "the call ended, but its reply was not read among {} bytes (max_unread_bytes)"
MAX_COMPLAINTS = 4096  # that are remembered; beyond it one may be logged a second time


class Clients:
    """The sessions of one host; see the module's docstring. ``carry_out`` runs effects of the dispatcher.

    ``delivery`` sends to them. ``due`` is when `look` has something to do at the latest.
    """

    def __init__(
        self, config: BrokerConfig, dispatcher: Dispatcher, carry_out: Callable[[list[Effect]], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.delivery = Delivery(config.max_unread_bytes, dispatcher.shares, self._detach, self._bound_kept)
        self.due = 0.0
        self._config = config
        self._dispatcher = dispatcher
        self._carry_out = carry_out
        self._clock = clock
        self._clients: dict[str, Session] = {}  # by the prefix of their task ids, the lost ones, too
        self._seated: dict[Session, None] = {}  # those with a connection
        self._lost: dict[Session, None] = {}  # those whose connection is gone, in that order
        self._kept: dict[Session, int] = {}  # bytes of replies that are kept for each of those
        self._kept_bytes = 0  # and for all of them
        self._starving: set[Ticket] = set()  # streams to other processes that wait for credit
        self._next_sweep = self._next_probe = 0.0
        self._next_ended = math.inf  # while no client is lost whose process is known
        self._next_roles = math.inf  # while no client has a key
        self._complaints = Complaints(clock)
        self._role_of: Callable[[str], Role | None] = lambda user: None
        self._welcome: Callable[[], bytes] = bytes
        self._sessions = self._resumed = self._resent = 0  # so far
        self._unknown: dict[str, float] = {}  # users for whom members pass calls on: when they were met first
        self._hinted: dict[tuple[str, str], tuple[messages.Home, float]] = {}  # by client and agent: told where, when

    def __repr__(self) -> str:
        return f"<Clients [{len(self._clients)} known, {len(self._seated)} connected, {len(self._lost)} lost]>"

    def open(self, role_of: Callable[[str], Role | None], welcome: Callable[[], bytes]) -> None:
        """Begin to accept clients.

        ``role_of`` gives the role of a user, None if the user may not come in; ``welcome`` the body of a WELCOME.
        """
        self._role_of = role_of
        self._welcome = welcome

    # ------------------------------------------------------------ what clients say

    def hello(self, peer: Peer, hello: Hello, now: float) -> None:
        """Connect ``peer`` with the session of its client, which is new or has come back."""
        try:
            user, role, acts_for = self._who(peer.user, hello)
        except ZmqAgentsError as exc:
            self._send_away(peer, exc)
            return
        prefix = messages.client_prefix(hello.client_id)
        if user == INSECURE_USER:  # nothing but their own word tells such clients apart
            user = f"{user}:{prefix}"
        session = self._clients.get(prefix)
        flags = 0
        if session is None:
            account = self._dispatcher.shares.account(user)
            session = Session(
                hello, account, role, self._config.max_unread_bytes, self._may_cache_more,
                # The references that come to a member are those of the clients of its host, which logs them.
                self._refuses if self._config.parent is None else None,
                door=peer.user if acts_for is not None and acts_for[0] else "",
                asked=None if acts_for is None else acts_for[1],
            )  # fmt: skip
            self._clients[prefix] = session
            self._sessions += 1
            _tell_of(session, "client %s of %s has come")
        elif (session.resume, session.user) != (hello.options.get("resume"), user) or (
            session.resume is None and peer.user == INSECURE_USER
        ):
            self._complaints.note(peer, "ids of other clients", f"HELLO with the id of {session.caller.prefix}")
            return
        else:  # its former connection is lost, which it may have noticed before the host
            self._lose(session)
            session.take_role(role)
            self._resumed += 1
            flags = Flag.RESUMED
        other: Session | None = peer.session
        if other is not None and other is not session:
            self._detach(other)
        self._give_kept(session)
        session.take_seat(peer, now, hello.options.get("pid"))
        self._lost.pop(session, None)
        self._seated[session] = None
        if user.startswith("key:"):
            self._next_roles = min(self._next_roles, now + ROLES_EVERY_S)
            self.due = min(self.due, self._next_roles)
        head = messages.header(Kind.WELCOME, hello.call_id, session.token, flags=flags)
        peer.send([head, self._welcome() if acts_for is None else _with(self._welcome(), acts_for=acts_for)])

    def _who(self, peer_user: str, hello: Hello) -> tuple[str, Role, ActsFor | None]:
        """The user of a connection, the role and, if the client has asked for either, what it has asked for."""
        role = self._role_of(peer_user)
        if role is None:
            raise errors.AuthenticationError("this key was revoked")
        acts_for = asked_of(hello.options.get("acts_for"))
        if acts_for is None:
            return peer_user, role, None
        user, wanted = acts_for
        if not user:
            return peer_user, lesser(role, wanted), acts_for
        if not may_stand_in(peer_user, role):
            raise errors.PermissionRefused(f"{name_of(peer_user)} may not connect in the name of others")
        own = self._role_of(user)
        if own is None or own == "door":
            raise errors.PermissionRefused(f"{name_of(user)} is no user of this host")
        return user, lesser(own, wanted), acts_for

    def bye(self, session: Session) -> None:
        """End the session of a client that goes and will not come back."""
        self._detach(session)

    def complain(self, peer: Peer, exc: Exception) -> None:
        """Log that a peer has broken the protocol."""
        self._complaints.note(peer, "malformed messages", str(exc))

    def report(self, effect: Report) -> None:
        """Log what was refused of a client's call."""
        session: Session = effect.peer.key
        self._complaints.note(session.peer, effect.kind, effect.why)

    def _refuses(self, session: Session, reply: Reply) -> None:
        """Log that a reference of a client is refused."""
        self._complaints.note(session.peer, "references", str(rebuild_error(reply)))

    def refuse_size(self, session: Session, call_id: int, size: int) -> None:
        """Answer a message of ``size`` bytes, which is more than the host allows."""
        limit = self._config.max_message_bytes
        text = f"a message of {size:,} bytes, limit {limit:,} (max_message_bytes)"
        self._refuse(session, call_id, errors.MessageTooLarge(text, size, limit))

    def refuse_for_memory(self, peer: Peer, parts: list[Frame]) -> None:
        """Answer a message for which there is no memory now. The rest of it was read and dropped."""
        session: Session | None = peer.session
        try:
            head = messages.parse_header(parts[0])
        except errors.RemoteProtocolError as exc:
            self.complain(peer, exc)
            return
        if session is None or session.token != head.token:
            peer.send([messages.header(Kind.NEED_HELLO, head.call_id)])
            return
        text = "the host has no memory for a message of this size now"
        self._refuse(session, head.call_id, errors.HostBusy.told_at_once(text, 1.0))

    def refuse_broken(self, peer: Peer, parts: Sequence[Frame] | None) -> None:
        """Answer a message on which the host has failed."""
        session: Session | None = peer.session
        if session is None or not parts:
            return
        try:
            call_id = messages.parse_header(parts[0]).call_id
        except errors.RemoteProtocolError:
            return
        session.caller.calls.pop(call_id, None)
        self._refuse(session, call_id, errors.RemoteProtocolError("the host failed on this message"))

    def _refuse(self, session: Session, call_id: int, error: ZmqAgentsError) -> None:
        self.delivery.unsent.append((session, session.answer(call_id, error_reply(error))))

    def expects(self, task_id: str) -> bool:
        """Whether it is the id of a call that a client of this host, connected or lost, may be about to make."""
        prefix, _, number = task_id.rpartition("-")
        session = self._clients.get(prefix)
        return session is not None and number.isdecimal() and session.replies.may_come(int(number))

    def refusal_of(self, user: str) -> ZmqAgentsError | None:
        """What speaks against calls that another member passes on for ``user``: its key is unknown here, or only looks.

        A key that was added just now may be unknown for a moment. A Unix user of another machine is unknown here, and
        is vouched for by the host that has let it in.
        """
        if not user.startswith("key:") or (role := self._role_of(user)) in CALLERS:
            return None
        name, now = name_of(user), self._clock()
        if role is not None:
            return errors.PermissionRefused(f"{name} has the role {role} at {self._config.server_id}, and may not call")
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.clear()
        if now - self._unknown.setdefault(user, now) < NEW_KEY_S:
            return errors.HostBusy.of_host(f"{self._config.server_id} looks whether {name} has a key")
        return errors.PermissionRefused(f"{name} is no user of {self._config.server_id}: its keys are others")

    def came_before(self, session: Session, call: Call) -> bool:
        """Whether this call is open, or was answered: then it is answered again. A stream goes on where it was."""
        self._resent += 1
        call_id = call.call_id
        ticket = session.caller.calls.get(call_id)
        if ticket is not None:
            if call.flags & Flag.STREAM and not self._send_items_again(session, call):
                lost = errors.CallLost(f"{ticket.label}: {_TOO_MUCH.format(self._config.max_unread_bytes)}")
                self._carry_out(self._dispatcher.on_lost(ticket, lost, self._clock()))
            return True
        if call_id < session.replies.needed:
            return True
        try:
            reply = session.replies.find(call_id)
        except KeyError:
            self._resent -= 1  # it had not come
            return False
        if call.flags & Flag.STREAM and reply is not None and not self._send_items_again(session, call):
            reply = None
        if reply is None:
            task_id = messages.task_id_of(session.caller.prefix, call_id)
            reply = error_reply(errors.CallLost(_TOO_MUCH.format(self._config.max_unread_bytes)), call_id=task_id)
        self.delivery.unsent.append((session, session.answer(call_id, reply)))
        return True

    def _send_items_again(self, session: Session, call: Call) -> bool:
        """Go on with a stream whose reader is back; False if items that it needs were dropped."""
        place = call.options.get("stream")
        needed, granted = place if _is_place(place) else (0, 0)
        found = session.replies.resume_stream(call.call_id, needed, granted)
        if found is None:
            return False
        credit, items = found
        for number, body in items:
            message = messages.answer_frames(Kind.CHUNK, call.call_id, session.token, body, time_ms=number)
            self.delivery.unsent.append((session, message))
        ticket = session.caller.calls.get(call.call_id)
        if ticket is not None and credit and ticket.context is not None:
            ticket.context.sender.grant(credit)
            self._dispatcher.calls.feed(ticket)
            self.feed(ticket)
        return True

    # ------------------------------------------------------------ clients that go

    def look(self, now: float) -> None:
        """Do what is ``due``."""
        self.due = now + ROLES_EVERY_S  # should any of it fail
        if self._starving and now >= self._next_probe:
            self._next_probe = now + PROBE_S
            self._probe_readers()
        if now >= self._next_roles:
            self._next_roles = math.inf
            self._look_at_roles(now)
        if now >= self._next_ended:
            self._next_ended = math.inf
            self._look_at_processes(now)
        while self._lost:
            session = next(iter(self._lost))  # lost before all others
            if now - session.last_seen <= self._config.resume_s:
                break
            self._detach(session)
        if now >= self._next_sweep:
            self._next_sweep = now + SILENCE_S / 4
            for session in [s for s in self._seated if now - s.last_seen > SILENCE_S]:
                self._detach(session)
        self.due = min(self._next_sweep, self._next_roles, self._next_ended)
        if self._starving:
            self.due = min(self.due, self._next_probe)
        if self._lost:
            self.due = min(self.due, next(iter(self._lost)).last_seen + self._config.resume_s)

    def hint(self, peer: Caller, home: messages.Home) -> None:
        """Tell a client where an agent of the cluster is, if it wants to know."""
        session: Session = peer.key
        if session.hints and session.seated and self._is_news(session, home):
            self.delivery.unsent.append((session, messages.hint_frames(session.token, home)))

    def _is_news(self, session: Session, home: messages.Home) -> bool:
        """Whether to tell a client where an agent is: not again at once, for it may not follow hints."""
        key, now = (session.caller.prefix, home.agent), self._clock()
        told, at = self._hinted.get(key, _NEVER)
        if told == home and now - at < HINT_EVERY_S:
            return False
        if len(self._hinted) >= MAX_HINTED:
            self._hinted.clear()
        self._hinted[key] = home, now
        return True

    def call_roll(self) -> None:
        """Find the clients whose connection has ended, where the listener cannot tell."""
        _probe(session for session in self._seated if session.outbox is None)

    def starve(self, ticket: Ticket) -> None:
        """Probe the reader of a stream now and then, for the stream waits for it, and would keep its turn for ever."""
        self._starving.add(ticket)
        self.due = min(self.due, self._next_probe)

    def feed(self, ticket: Ticket) -> None:
        """Probe the reader of this stream no more: it has granted credit."""
        self._starving.discard(ticket)

    def prefixes(self) -> list[str]:
        """The first halves of the task ids of all clients, the lost ones too."""
        return list(self._clients)

    def where(self) -> dict[str, int]:
        """How many clients there are, for `status`."""
        return {"clients": len(self._seated), "clients_lost": len(self._lost)}

    def figures(self) -> dict[str, Any]:
        """The same and what was counted, for `metrics`."""
        clients = {"connected": len(self._seated), "lost": len(self._lost)}
        return {
            "clients": clients, "sessions": self._sessions, "reconnects": self._resumed, "resent": self._resent,
            "breaches": self._complaints.counts.copy(),
        }  # fmt: skip

    def close(self, goodbye: list[Frame]) -> None:
        """Send every client what waits for it, and ``goodbye``."""
        for session in self._seated:
            session.peer.send_last([*(session.outbox or ()), goodbye])

    def _probe_readers(self) -> None:
        self._starving = {ticket for ticket in self._starving if not ticket.settled and not ticket.peer.gone}
        _probe({ticket.peer.key for ticket in self._starving if not ticket.peer.key.lost})

    def _look_at_processes(self, now: float) -> None:
        """Nobody comes back for a lost client whose process has ended."""
        for session in [session for session in self._lost if session.pid]:
            if has_ended(session.pid):
                self._detach(session)
            else:
                self._next_ended = now + ENDED_EVERY_S

    def _look_at_roles(self, now: float) -> None:
        """Apply changes of keys to their clients, also to those that are lost."""
        for session in [session for session in self._clients.values() if session.user.startswith("key:")]:
            role = self._role_now(session)
            if role is not None:
                session.take_role(role)
                self._next_roles = now + ROLES_EVERY_S
                continue
            name = name_of(session.user)
            log.warning("%s: %s was revoked, and its session is ended", self._config.server_id, name)
            error = errors.AuthenticationError(f"the key of {name.partition(':')[2]} was revoked")
            self._carry_out(self._dispatcher.on_revoke(session.caller, error, now))
            if not session.lost:
                self._send_away(session.peer, error)
            self._detach(session)

    def _role_now(self, session: Session) -> Role | None:
        """What its user may do now; None: the key is revoked, or may not do any more what the client has asked for."""
        role = self._role_of(session.user)
        if session.door:
            of_door = self._role_of(session.door)
            if of_door is None or not may_stand_in(session.door, of_door):
                return None
        if role is None or session.asked is None:
            return role
        try:
            return lesser(role, session.asked)
        except errors.PermissionRefused:
            return None

    def _send_away(self, peer: Peer, error: ZmqAgentsError) -> None:
        code, body = error_reply(error)
        peer.send([messages.header(Kind.GOODBYE, code=code), *body])

    def gone(self, peer: Peer) -> None:
        """Note that this connection has ended."""
        session: Session | None = peer.session
        if session is not None:
            self._lose(session)

    def on_room(self, peer: Peer) -> None:
        """Send on to a client that may have room, after a time in which it had none."""
        session: Session | None = peer.session
        if session is not None:
            self.delivery.go_on(session)

    def _lose(self, session: Session) -> None:
        """Wait ``resume_s`` for a client whose connection is gone."""
        if session.lost:
            return
        session.lose(self._clock())
        self._seated.pop(session, None)
        self._lost[session] = None
        if session.pid:  # which ends a moment after its connections
            self._next_ended = min(self._next_ended, session.last_seen + ENDED_EVERY_S)
        self.due = min(self.due, session.last_seen + self._config.resume_s, self._next_ended)
        if len(self._lost) > MAX_LOST:
            self._detach(next(iter(self._lost)))
        self._bound_kept(session)

    def _bound_kept(self, session: Session) -> None:
        """Keep no more replies for a lost client than is left for all of them, and for all of its user's."""
        if session not in self._lost:
            return
        account = session.caller.account
        self._give_kept(session)
        room = self._dispatcher.shares.kept_bytes.room(account.kept_bytes, self._kept_bytes)
        if session.replies.bytes > room:
            session.replies.shrink(room)
        self._kept[session] = kept = session.replies.bytes
        account.keep(kept)
        self._kept_bytes += kept

    def _may_cache_more(self, account: Account) -> bool:
        """Whether more replies may be kept for a client of this user, in case that its connection breaks."""
        held = taken = 0
        for session in self._clients.values():
            size = session.replies.bytes
            taken += size
            if session.caller.account is account:
                held += size
        return not self._dispatcher.shares.unread_bytes.refuses(held, taken)

    def _give_kept(self, session: Session) -> None:
        """The replies of this client count no more as kept for a lost one."""
        kept = self._kept.pop(session, 0)
        session.caller.account.keep(-kept)
        self._kept_bytes -= kept

    def _detach(self, session: Session) -> None:
        """Forget a client that is gone for good."""
        self._give_kept(session)
        session.clear()
        self._seated.pop(session, None)
        self._lost.pop(session, None)
        if self._clients.get(session.caller.prefix) is session:
            del self._clients[session.caller.prefix]
            _tell_of(session, "client %s of %s is gone")
        self._carry_out(self._dispatcher.on_detach(session.caller, self._clock()))


def _tell_of(session: Session, text: str) -> None:
    if clients_log.isEnabledFor(logging.INFO):
        prefix, user = session.caller.prefix, name_of(session.user)
        clients_log.info(text, prefix, user, extra=fields_of(client=prefix, user=user))


def _is_place(place: object) -> TypeGuard[tuple[int, int]]:
    """Whether it is what a client says of a stream that it wants to go on: the next number, and the credit granted."""
    return isinstance(place, list) and len(place) == 2 and all(type(n) is int and 0 <= n < 2**32 for n in place)


def _probe(sessions: Iterable[Session]) -> None:
    for session in sessions:
        session.peer.probe([messages.header(Kind.PONG, 0, session.token)])


BREACHES = {  # what is refused of peers, and its name in the figures
    "malformed messages": "malformed", "references": "reference", "ids of other clients": "client",
    "forged chains of calls": "chain", "names that are none": "name",
}  # fmt: skip


class Complaints:
    """Log lines about what is refused of peers: one for each peer and kind, though not for each of a flood of peers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.counts = dict.fromkeys(BREACHES.values(), 0)  # all of them, also those without a line
        self._clock = clock
        self._seen: set[tuple[str, str]] = set()
        self._quota = _Quota(COMPLAINTS, COMPLAINTS_EVERY_S)

    def note(self, peer: Peer, kind: str, why: str) -> None:
        """Log that something of this ``kind`` is refused of ``peer``, and ``why``, if it is the first time."""
        self.counts[BREACHES[kind]] += 1
        about = (_name_of(peer), kind)
        if about in self._seen:
            return
        if len(self._seen) >= MAX_COMPLAINTS:
            self._seen.clear()
        self._seen.add(about)
        if self._quota.take(self._clock()):
            log.warning("refusing %s of peer %s: %s", kind, about[0], why)


def _name_of(peer: Peer) -> str:
    """A name that a peer keeps when it connects again: of its process or its key, where there is one."""
    if peer.pid:
        return f"process {peer.pid} of {peer.user}"
    return name_of(peer.user) if peer.user.startswith("key:") else str(peer)


class _Quota:
    """Allows ``limit`` events in every ``seconds``."""

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


def _with(welcome: bytes, **more: Any) -> bytes:
    return codec.pack({**codec.unpack(welcome, max_bytes=len(welcome)), **more})
