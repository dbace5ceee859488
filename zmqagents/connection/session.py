"""The protocol of one client with its host, without a socket, a thread or a clock.

`Session` decides what is sent, what a received message means, and what becomes of the open requests when the connection
breaks. `Channel` owns the socket: it passes in what it has received, and the time. A host that knows this client is
asked again for all that is open, and runs nothing twice. Another host, one that crashed and was started anew say, is
asked again only for what may be repeated; the rest fails with `CallLost`.

`Outstanding` keeps the open requests:

    request --add--> outbox --take_in--> unsent --next_to_send (credit)--> sent --answered--> gone
                                           ^                                |
                                           +---- carry_over, put_back ------+   the connection broke, the host was busy

A short call may `begin`, which takes it from its making to being sent in one step. Ids are given in the order of
sending, so one number says which replies the client still needs: all from `lowest` on. It travels with every CALL,
and lets the host forget the replies that it keeps for a connection that breaks.

Any thread may `add`, `drop` and look at `asking`; everything else belongs to the thread that leads the connection.
Requests of blocked threads (`Waiter` sinks) and all others are kept apart, because a thread may read the socket
itself only while no other request waits for an answer.
"""

from __future__ import annotations

import copy
import enum
import heapq
import itertools
import logging
import math
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .. import codec, errors
from ..checks import MAX_STRUCTURED_BYTES
from ..codec import new_tuple
from ..wire import messages
from ..wire.clock import clock_name
from ..wire.link import Waiter, rebuild_error
from ..wire.messages import CLIENT_ID_BYTES, Code, Flag, Frame, Home, Kind, Reply
from ..wire.transport import Event
from .requests import Call, Credit, Fetch, Message, Plain, Reask, Repeat, Request
from .tasks import program_id

__all__ = ["REMEDY", "Outstanding", "Session", "State"]

log = logging.getLogger(__name__)

_RESULT, _ANSWERS, _STREAM = int(Kind.RESULT), (int(Kind.RESULT), int(Kind.ERROR)), Flag.STREAM

LARGE_BYTES = 65_536  # below it a message is not worth counting against `max_open_bytes`
HEADER_BYTES = 1024  # that a message may have beyond the host's limit, which counts the payload
BATCH = 64
CONNECT_TIMEOUT_S = 5.0
PING_IDLE_S = 10.0
PING_BUSY_S = 5.0
LAST_TRY_S = 0.1  # before the deadline: a call sent later may arrive too late, and CallTimeout says less than HostBusy
DEAD_S = 15.0

RETRY_S = (0.03, 0.25)  # pause before the next attempt to connect again: the first, and the longest
DOUBT_S = 0.4  # handshakes break off for so long before the key is blamed
# What to type next: where nothing listens, where the host refused the key, and where the host has another key.
REMEDY = "as_server doctor lists the hosts of this machine"
LET_IN = "to let it in, type there: as_server keys add NAME KEY, with the client key of as_server keys show here"
KNOW_IT = "if its key has changed: as_server keys add"
DEAD_HOST_S = 0.4  # nothing listens any more for so long: what cannot be repeated is lost
GIVE_UP_S = 30.0  # after that, what can be repeated is lost as well
QUIET_HOST_S = 10.0  # as DEAD_HOST_S, for a host that cannot be reached but has not refused: a cut cable

ACK_AFTER = 64  # replies after which the host is told what it may forget, if no call does that
ACK_WITHIN_S = 0.5


class Outstanding:
    """See the module's docstring. ``max_calls`` and ``max_open_bytes`` are what the host allows to be open."""

    def __init__(self) -> None:
        self.max_calls = 1 << 30
        self.max_open_bytes = 1 << 62
        self.waiting: dict[int, Request] = {}  # of blocked threads
        self.asking: dict[int, Request] = {}  # of all others
        self.outbox: deque[Request] = deque()  # filled by any thread
        self.unsent: deque[Request] = deque()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._highest = 0
        self._lowest = 1
        self._large: dict[int, int] = {}  # bytes of the large messages that are open
        self._open_bytes = 0
        self.due = math.inf  # when `take_overdue` or `take_ready` will have something, or earlier
        self._timers: list[tuple[float, int]] = []
        self._later: list[tuple[float, int, Request]] = []  # the host was busy: to be sent again at that time

    # ------------------------------------------------------------ any thread

    def add(self, request: Request) -> int:
        """Take a request in; its id. Raises HostBusy if far more is asked than the host allows to be open.

        One without a sink gets no id, and takes no lock: the garbage collector may call this while it runs.
        """
        sink = request.sink
        if sink is None:
            self.outbox.append(request)
            return 0
        with self._lock:
            if len(self.asking) >= 2 * self.max_calls:
                raise errors.HostBusy(
                    f"{len(self.asking)} calls of this client are open, twice what the host takes ({self.max_calls})"
                )
            request.call_id = call_id = next(self._ids)
            row = self.waiting if type(sink) is Waiter else self.asking
            row[call_id] = request
            self._highest = call_id  # last: a look for the lowest open id must find it in its row
            self.outbox.append(request)
        return call_id

    def id_for_one_alone(self) -> int:
        """An id for a call that goes out at once, by the thread that leads; 0 if there is anything beside it.

        It is told as the lowest needed id, so that must be sure; `adopt` it if the answer does not come at once.
        """
        with self._lock:
            if self.waiting or self.asking or self.outbox:
                return 0
            self._lowest = self._highest = next(self._ids)
            return self._highest

    def begin(self, request: Request) -> int:
        """Take in a call that goes out at once; its id. 0 if others are to be sent before it, or there is no room.

        The leading thread. Nothing looks at the deadline of the request: its owner does.
        """
        with self._lock:
            if self.outbox or self.unsent or len(self.waiting) + len(self.asking) >= self.max_calls:
                return 0
            request.call_id = call_id = next(self._ids)
            self.asking[call_id] = request
            self._highest = call_id
        request.sent = True
        return call_id

    def adopt(self, request: Request, call_id: int, size: int) -> None:
        """``request`` was sent under an id of `id_for_one_alone`."""
        request.call_id = call_id
        self.waiting[call_id] = request
        self.sent(request, size)

    def drop(self, call_id: int) -> bool:
        """Drop a request: no thread waits for its answer. False if it was answered or dropped before."""
        return self.waiting.pop(call_id, None) is not None or self.asking.pop(call_id, None) is not None

    @property
    def highest(self) -> int:
        """The last id given."""
        return self._highest

    def __len__(self) -> int:
        return len(self.waiting) + len(self.asking)

    # ------------------------------------------------------------ the leading thread: sending

    def take_in(self) -> None:
        """Move what other threads have asked for to this thread's own queue; their deadlines count from now on."""
        outbox, unsent = self.outbox, self.unsent
        for _ in range(BATCH):
            if not outbox:
                return
            request = outbox.popleft()
            if request.deadline is not None:
                self._add_timer(request.deadline, request.call_id)
            unsent.append(request)

    def next_to_send(self) -> Request | None:
        """The next request that may go out now; None if there is none, or no credit for it."""
        if self.outbox:
            self.take_in()
        unsent = self.unsent
        while unsent:
            request = unsent[0]
            call_id = request.call_id
            if request.sink is not None and call_id not in self.waiting and call_id not in self.asking:
                unsent.popleft()  # it timed out or was dropped
                continue
            open_calls = len(self.waiting) + len(self.asking) - len(unsent)
            if open_calls >= self.max_calls and request.message.is_call:
                return None
            return unsent.popleft()
        return None

    def has_room_for(self, size: int) -> bool:
        """Whether a message of ``size`` bytes may be opened; one alone always may."""
        return size < LARGE_BYTES or not self._large or self._open_bytes + size <= self.max_open_bytes

    def put_back(self, request: Request) -> None:
        """It could not be sent now: it is the next one again."""
        self.unsent.appendleft(request)

    def sent(self, request: Request, size: int) -> None:
        """``request`` has gone out."""
        request.sent = True
        if size >= LARGE_BYTES and request.message.is_call and request.call_id not in self._large:
            self._large[request.call_id] = size
            self._open_bytes += size

    def lowest(self) -> int:
        """The lowest id whose reply is still needed: the host may forget all below."""
        low, waiting, asking = self._lowest, self.waiting, self.asking
        while low <= self._highest and low not in waiting and low not in asking:
            low += 1
        self._lowest = low
        return low

    # ------------------------------------------------------------ the leading thread: answers

    def find(self, call_id: int) -> Request | None:
        """The request of this id, which goes on waiting."""
        return self.waiting.get(call_id) or self.asking.get(call_id)

    def answered(self, call_id: int) -> Request | None:
        """The request of this id, which is over."""
        if self._large:
            self._open_bytes -= self._large.pop(call_id, 0)
        return self.waiting.pop(call_id, None) or self.asking.pop(call_id, None)

    def keep(self, request: Request) -> None:
        """The answer was none: ``request`` goes on waiting."""
        row = self.waiting if type(request.sink) is Waiter else self.asking
        row[request.call_id] = request

    def try_later(self, request: Request, due: float) -> None:
        """The host was too busy and has executed nothing: send it again at ``due``."""
        request.sent = request.resent = False
        heapq.heappush(self._later, (due, request.call_id, request))
        self._look_at_timers()

    # ------------------------------------------------------------ the leading thread: time

    @property
    def postponed(self) -> bool:
        """Whether something is to be sent again later."""
        return bool(self._later)

    def _look_at_timers(self) -> None:
        self.due = min(row[0][0] if row else math.inf for row in (self._timers, self._later))

    def take_overdue(self, now: float) -> list[Request]:
        """Take out the requests whose deadline is over."""
        late = []
        while self._timers and self._timers[0][0] <= now:
            request = self.answered(heapq.heappop(self._timers)[1])
            if request is not None:
                late.append(request)
        self._look_at_timers()
        return late

    def take_ready(self, now: float) -> bool:
        """Queue those again that the host was too busy for; True if there are any."""
        any_ready = False
        while self._later and self._later[0][0] <= now:
            request = heapq.heappop(self._later)[2]
            if self.find(request.call_id) is request:  # it may have timed out meanwhile
                self.unsent.append(request)
                any_ready = True
        self._look_at_timers()
        return any_ready

    def _add_timer(self, due: float, call_id: int) -> None:
        heapq.heappush(self._timers, (due, call_id))
        if due < self.due:
            self.due = due
        if len(self._timers) > 2 * len(self.asking) + 1024:  # mostly calls that were answered long before
            self._timers = [entry for entry in self._timers if entry[1] in self.asking]
            heapq.heapify(self._timers)

    # ------------------------------------------------------------ the leading thread: a connection breaks

    def carry_over(self, again: Callable[[Request], bool]) -> list[Request]:
        """Queue for sending again, in their order and before all others, what was sent and ``again`` says True of.

        The rest is returned; it waits no more.
        """
        rest, queued = [], []
        for request in sorted([*self.waiting.values(), *self.asking.values()], key=lambda r: r.call_id):
            if not request.sent:
                continue
            if again(request):
                queued.append(request)
            elif self.answered(request.call_id) is not None:
                rest.append(request)
        self.unsent.extendleft(reversed(queued))
        for request in queued:
            request.sent = False
        self._count_large()
        return rest

    def forget_unsent(self, last: int) -> None:
        """Nothing up to the id ``last`` is to be sent any more."""
        self.unsent = deque(request for request in self.unsent if request.call_id > last)

    def _count_large(self) -> None:
        """Those that were dropped while they were open have gone with the connection."""
        self._large = {
            call_id: size for call_id, size in self._large.items() if call_id in self.waiting or call_id in self.asking
        }
        self._open_bytes = sum(self._large.values())

    def take(self, lost: Callable[[Request], bool]) -> list[Request]:
        """The requests that ``lost`` says True of; they wait no more."""
        found = [request for request in [*self.waiting.values(), *self.asking.values()] if lost(request)]
        return [request for request in found if self.answered(request.call_id) is not None]

    def take_all(self) -> list[Request]:
        """Every request; nothing is left."""
        self.outbox.clear()
        self.unsent.clear()
        self._later.clear()
        self._look_at_timers()
        found = self.take(lambda _: True)
        self._count_large()
        return found


class State(enum.Enum):
    """What a `Session` has of a connection.

        IDLE --a request--> CONNECTING --handshake over--> GREETING --WELCOME--> READY
         ^                   |   ^  |                         |                    |
         |     refused, key  |   |  | none, while recovering  | cut, no answer     | cut, silent, NEED_HELLO
         +<------------------+   |  v                         v                    |
         |                       +- LOST <--------------------+--------------------+
         |      after a pause       |
         +<-------------------------+   given up, nothing open any more, GOODBYE

    A session that has never been READY falls back to IDLE instead of LOST: it has nothing to recover.
    CLOSED follows any state, and nothing follows it.
    """

    IDLE = "no connection; the next request makes one"
    CONNECTING = "a socket exists, its handshake is not over"
    GREETING = "HELLO is sent"
    READY = "requests are sent"
    LOST = "no connection; one is tried again and again, for what is open"
    CLOSED = "no connection, and none to come"


class Session:
    """See the module's docstring. All but `fail_all` belongs to the thread that leads the connection.

    After each call, ``linked`` says whether the transport is still to be used; a channel that has one closes it if not.
    Frames that a method returns are to be sent at once. Times are in seconds, on one monotonic clock. ``jitter`` draws
    a number between two others. ``acts_for``: see `Target`.
    """

    def __init__(
        self, address: str, *, jitter: Callable[[float, float], float] = random.uniform,
        learn: Callable[[list[str]], object] = len, on_hint: Callable[[Home], object] = len,
        acts_for: tuple[str, str] | None = None,
    ) -> None:  # fmt: skip
        """``learn`` gets the public keys by which the host says that it may be known from now on.

        ``on_hint`` gets what it says of where an agent of its cluster is.
        """
        self.address = address
        self._acts_for = acts_for
        self.book = Outstanding()
        self.prefix_bytes = os.urandom(CLIENT_ID_BYTES)
        self.prefix = messages.client_prefix(self.prefix_bytes)
        self.state = State.IDLE
        self.linked = False
        self.token = 0  # of the connection; 0 unless READY
        self.server_id = ""
        self.welcome: dict[str, Any] = {}
        self.max_bytes = 1 << 40
        self.max_structured_bytes = MAX_STRUCTURED_BYTES
        self.next_try = 0.0  # no attempt to connect is made earlier
        self._jitter = jitter
        self._learn = learn
        self._on_hint = on_hint
        self._secret = os.urandom(16)
        self._epoch = ""  # of the host's process; "" if there is nothing to recover
        self._on_tcp = False
        self._one_clock = False  # the host reads the same monotonic clock
        self._connect_by = 0.0
        self._last_heard = self._last_ping = 0.0
        self._unacknowledged: list[int] = []  # ids of replies that the host may still keep
        self._ack_by = 0.0
        self._lost_at: float | None = None  # recovering since
        self._asked_before = 0  # the last request made before the latest attempt to connect
        self._doubting_since: float | None = None  # handshakes break off
        self._pause_s = RETRY_S[0]

    # ------------------------------------------------------------ sending

    def next_message(self) -> list[Frame] | None:
        """The next message to send; None if there is none, or it has to wait until others are answered."""
        book = self.book
        while (request := book.next_to_send()) is not None:
            needed = book.lowest()
            try:
                parts = request.message.to_frames(
                    request.call_id, self.token, self.server_id, needed, request.resent, self._one_clock
                )
                size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
                if size > self.max_bytes + HEADER_BYTES:
                    raise self._too_large(size)
            except Exception as exc:  # what cannot be made into a message concerns its own caller only
                self._fail([request], exc)
                continue
            if size >= LARGE_BYTES and not book.has_room_for(size):
                book.put_back(request)
                return None
            book.sent(request, size)
            if type(request.message) is Credit:
                self._note_credit(request.message)
            if len(self._unacknowledged) == 1 and request.message.is_call:
                self._note_told(needed)
            return parts
        return None

    def begin_short(self, request: Request) -> list[Frame] | None:
        """The message of a short call that goes out at once; None: see `Outstanding.begin`.

        Raises what makes it none, MessageTooLarge mostly.
        """
        book, call_id = self.book, self.book.begin(request)
        if not call_id:
            return None
        needed = book.lowest()
        try:
            parts = request.message.to_frames(call_id, self.token, self.server_id, needed, False, self._one_clock)
        except Exception:
            book.drop(call_id)
            raise
        self._note_told(needed)
        return parts

    def _note_told(self, needed: int) -> None:
        """A call says that no reply below ``needed`` is needed any more."""
        if len(self._unacknowledged) == 1 and self._unacknowledged[0] < needed:
            self._unacknowledged.clear()  # where there are more, an ACK tells of them

    def _note_credit(self, credit: Credit) -> None:
        """Count what the host is told of a stream: after a broken connection it has to know how much that was."""
        request = self.book.find(credit.stream_id)
        if request is not None and isinstance(request.message, Call):
            request.message.grant(credit.items)

    def begin_alone(self, message: Message) -> tuple[int, list[Frame], int] | None:
        """The id, the frames and the size of a call with nothing beside it; None if there is anything beside it.

        Raises MessageTooLarge.
        """
        book = self.book
        call_id = book.id_for_one_alone() if self.token and not book.unsent else 0
        if not call_id:
            return None
        parts = message.to_frames(call_id, self.token, self.server_id, call_id, False, self._one_clock)
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if size > self.max_bytes + HEADER_BYTES:
            raise self._too_large(size)
        return call_id, parts, size

    def answer_alone(self, call_id: int, parts: list[Frame], now: float) -> Reply | None:
        """The reply in ``parts`` to a call of `begin_alone`; None if they are something else, still to be received."""
        reply = messages.reply_to(call_id, parts)
        if reply is not None:
            self._last_heard = now
            self._ack_by = now + ACK_WITHIN_S
            self._unacknowledged = [call_id]  # what was before, this call has acknowledged
        return reply

    def bye(self) -> list[Frame] | None:
        """The last message of a connection that is closed; None if the host knows of no connection."""
        return [messages.header(Kind.BYE, 0, self.token)] if self.token else None

    def _too_large(self, size: int) -> errors.MessageTooLarge:
        limit = self.max_bytes
        text = f"a message of {size:,} bytes, limit {limit:,} (max_message_bytes of the host)"
        return errors.MessageTooLarge(text, size, limit)

    # ------------------------------------------------------------ receiving

    def received(self, parts: list[Frame], now: float) -> None:
        """Handle one message of the host; raises nothing but KeyboardInterrupt."""
        self._last_heard = now
        try:
            head, body = messages.split_answer(parts)
            kind = head.kind
            if kind in _ANSWERS:
                self._on_answer(head, kind, body)
            else:
                self._on_other(head, body, parts, now)
        except errors.RemoteProtocolError as exc:  # whatever it answers next is worth no wait
            self.end(errors.RemoteProtocolError(f"{self.address}: {exc}"))
        except KeyboardInterrupt:
            raise
        except BaseException:  # a done-callback may raise anything, SystemExit too
            log.exception("a callback on a result from %s failed", self.address)

    def _on_answer(self, head: messages.Header, kind: int, body: Sequence[Frame]) -> None:
        call_id, code = head.call_id, 0
        if kind != _RESULT:
            code = head.code
            if code == Code.BUSY and self._try_later(head):
                return
        request = self.book.answered(call_id)
        message = None if request is None else request.message
        if request is not None and isinstance(message, Call) and message.flags & _STREAM and message.lacks_items(head):
            self.book.keep(request)  # written before the host knew what a broken connection has lost: it comes again
            return
        if not self._unacknowledged:
            self._ack_by = self._last_heard + ACK_WITHIN_S
        self._unacknowledged.append(call_id)
        if request is None or request.sink is None:
            return
        reply = new_tuple(Reply, (code, body))
        if isinstance(message, Reask) and message.has_lost(reply):
            request.sink.fail(errors.CallLost(f"{self.address}: {message.why}"))
        else:
            request.sink.deliver(reply)

    def _on_other(self, head: messages.Header, body: Sequence[Frame], parts: list[Frame], now: float) -> None:
        kind = head.kind
        if kind == Kind.CHUNK:
            request = self.book.find(head.call_id)
            if request is None or request.sink is None:
                return
            if isinstance(request.message, Call):
                is_due = request.message.takes(head.time_ms)
            elif isinstance(request.message, Fetch) and head.time_ms == messages.PROGRESS:
                is_due = True
            else:
                raise errors.RemoteProtocolError("CHUNK for what is no stream")
            if is_due:
                request.sink.chunk(Reply(Code.NONE, body))
        elif kind == Kind.HINT:
            self._on_hint(messages.parse_hint((parts[0], *body)))
        elif kind == Kind.PENDING:
            self._on_pending(head.call_id)
        elif kind == Kind.PONG:
            request = self.book.answered(head.call_id)
            if request is not None and request.sink is not None:
                if type(request.message) is Plain and request.message.kind == Kind.PING:
                    request.sink.deliver(Reply(Code.NONE, ()))
                else:
                    request.sink.fail(errors.RemoteProtocolError(f"{self.address}: PONG for what is no PING"))
        elif kind == Kind.WELCOME:
            self._on_welcome(head, parts)
        elif kind == Kind.GOODBYE:
            if head.code:  # it ends this session alone, and says why
                self.end(rebuild_error(Reply(head.code, parts[1:])))
            else:
                self._learn(messages.server_keys_of_goodbye(parts))
                self.end(errors.HostStopping(f"{self.address}: it has stopped"))
        elif kind == Kind.NEED_HELLO:
            self.lost("it does not know this connection any more", errors.CallLost, now)
        else:
            raise errors.RemoteProtocolError(f"unknown kind {kind}")

    def _try_later(self, head: messages.Header) -> bool:
        """The host was busy: ask again, with some jitter. False if no thread waits, or not for so long."""
        request = self.book.find(head.call_id)
        if request is None:
            return False
        due = self._last_heard + max(0.005, head.time_ms / 1000) * self._jitter(0.5, 1.5)
        deadline = request.message.deadline
        if deadline is not None and due >= deadline - LAST_TRY_S:
            return False
        self.book.try_later(request, due)
        return True

    def _on_pending(self, call_id: int) -> None:
        request = self.book.answered(call_id)
        if request is None or request.sink is None:
            return
        if type(request.message) is Reask:  # its owner knows nothing of the question: ask again
            self.book.keep(request)
            self.book.put_back(request)
        elif type(request.message) is Fetch:
            request.sink.deliver(None)
        else:
            request.sink.fail(errors.RemoteProtocolError(f"{self.address}: PENDING for what is no FETCH"))

    # ------------------------------------------------------------ time

    def next_due(self) -> float:
        """When `look` has something to do, or a connection is to be made; `math.inf`: never."""
        book = self.book
        due = book.due
        if self.linked:
            due = min(due, self._ping_due() if self.token else self._connect_by)
            if self._unacknowledged:
                due = min(due, self._ack_by if len(self._unacknowledged) < ACK_AFTER else 0.0)
        elif book.unsent or self.state is State.LOST:
            due = min(due, self.next_try)
        return due

    def look(self, now: float) -> list[Frame] | None:
        """Do what is due: time-outs, a PING, an acknowledgement."""
        book = self.book
        book.take_ready(now)
        for request in book.take_overdue(now):
            assert request.sink is not None
            request.sink.fail(errors.CallTimeout(f"{self.address} did not answer in time"))
        if not self.linked:
            if self.state is State.LOST and not book:  # nothing to recover for
                self.state = State.IDLE
                self._lost_at = None
        elif not self.token:
            if now >= self._connect_by:
                reason = f"no answer within {CONNECT_TIMEOUT_S:g} s: a host that hangs, or none"
                self.lost(reason, errors.HostUnreachable, now)
        elif now >= self._last_heard + DEAD_S and self._last_ping > self._last_heard:
            self.lost(f"silent for {DEAD_S:g} s", errors.CallLost, now)
        elif now >= self._ping_due():
            self._last_ping = now
            return [messages.header(Kind.PING, 0, self.token)]
        elif len(self._unacknowledged) >= ACK_AFTER or (self._unacknowledged and now >= self._ack_by):
            return self._acknowledgement()
        return None

    def _ping_due(self) -> float:
        """When to ask for a sign of life, or to give the host up."""
        if self._last_ping > self._last_heard:
            return self._last_heard + DEAD_S
        pause_s = PING_BUSY_S if self.book.waiting or self.book.asking else PING_IDLE_S
        return max(self._last_heard, self._last_ping) + pause_s

    def acknowledge(self) -> list[Frame] | None:
        """What tells the host which replies it need not keep; None: it was told. For one that does not call `look`."""
        return self._acknowledgement() if self._unacknowledged and self.token else None

    def _acknowledgement(self) -> list[Frame]:
        """What tells the host which replies it need not keep."""
        needed, had = self.book.lowest(), self._unacknowledged
        self._unacknowledged = []
        message: list[Frame] = [messages.header(Kind.ACK, needed, self.token)]
        beyond = [call_id for call_id in had[-messages.MAX_DEPS :] if call_id > needed]
        if beyond:  # an old call is still open
            message.append(codec.pack(beyond))
        return message

    # ------------------------------------------------------------ connecting

    def connect(self, now: float) -> None:
        """An attempt to connect begins: `lost`, `no_way` or `on_event` tell how it goes on."""
        self._asked_before = self.book.highest
        self._connect_by = now + CONNECT_TIMEOUT_S
        self.state = State.CONNECTING
        self.linked = True

    def dial(self, endpoint: str) -> None:
        """The attempt goes to this ZeroMQ endpoint."""
        self._on_tcp = endpoint.startswith("tcp:")

    def no_way(self, error: Exception, now: float) -> None:
        """There is no endpoint to connect to. A host that is about to start again has no connection file."""
        if self._lost_at is None:
            self.end(error)
        else:
            self.lost("the connection was lost, and no host listens there", errors.HostUnreachable, now, refused=True)

    def on_event(self, event: Event, now: float) -> list[Frame] | None:
        """Something has happened to the connection."""
        if event is Event.READY:
            self.state = State.GREETING
            self._last_heard = self._last_ping = now
            said: dict[str, Any] = {
                "client": self.prefix_bytes, "versions": [messages.VERSION], "resume": self._secret, "hints": True,
                "pid": os.getpid(), "program": program_id(),
            }  # fmt: skip
            if self._acts_for is not None:
                said["acts_for"] = self._acts_for
            return [messages.header(Kind.HELLO), codec.pack(said)]
        if event is Event.KEY_REFUSED:
            self.end(errors.AuthenticationError(f"{self.address}: {event.value}; {LET_IN}"))
        elif event in (Event.BROKEN_OFF, Event.FOREIGN) or (event is Event.CUT and not self.token):
            self._doubt(event, now)
        elif self.token:
            self.lost("the connection was lost", errors.CallLost, now)
        else:
            refused = event is Event.REFUSED
            self.lost(event.value + f"; {REMEDY}" * refused, errors.HostUnreachable, now, refused=refused)
        return None

    def _doubt(self, event: Event, now: float) -> None:
        """A handshake broke off: a wrong key, or a host that was just closing, or a connection that was cut.

        On TCP it is tried again for `DOUBT_S`, then the key is blamed. A cut is tried again as long, but blames no key;
        and on ipc, where there are no keys, whatever else breaks off a handshake is final.
        """
        if self._doubting_since is None:
            self._doubting_since = now
            self._pause_s = RETRY_S[0]
        is_cut, is_over = event is Event.CUT, now - self._doubting_since >= DOUBT_S
        if self._lost_at is not None or (is_over if is_cut else not self._on_tcp):
            self.lost(event.value, errors.HostUnreachable, now)
        elif is_over:
            self.end(errors.AuthenticationError(f"{self.address}: {event.value}; {KNOW_IT} {self.address} KEY"))
        else:
            self._unlink(State.IDLE)
            self.next_try = now + self._pause_s
            self._pause_s *= 2

    def _on_welcome(self, head: messages.Header, parts: list[Frame]) -> None:
        welcome = messages.parse_welcome(parts)
        book = self.book
        if self._acts_for is not None and welcome.get("acts_for") != list(self._acts_for):
            text = f"{self.address}: this host is too old to let a connection have another user or less of a role"
            self.end(errors.PermissionRefused(text))  # before it takes anything for the user of this process
            return
        if "version" in welcome and welcome.get("minor", 0) < messages.MINOR:
            text = f"{self.address}: this host is older than its client can use: upgrade hosts before their clients"
            self.end(errors.RemoteProtocolError(text))
            return
        epoch, former = str(welcome.get("epoch", "")), self._epoch
        self.server_id = str(welcome.get("server_id", ""))
        self.max_bytes = int(welcome.get("max_message_bytes", 1 << 40))
        self.max_structured_bytes = int(welcome.get("max_structured_bytes", MAX_STRUCTURED_BYTES))
        book.max_calls = int(welcome.get("max_calls", 1 << 30))
        book.max_open_bytes = int(welcome.get("max_open_bytes", 1 << 62))
        self.welcome = welcome
        self._one_clock = bool(clock_name()) and welcome.get("clock") == clock_name()
        self.state = State.READY
        self.token = head.token
        self._epoch = epoch
        self._settle_down()
        self._pause_s = RETRY_S[0]
        self._learn(messages.server_keys_in(welcome))
        if former:
            self._ask_again(bool(head.flags & Flag.RESUMED), same_results=epoch == former)

    # ------------------------------------------------------------ losing the connection, and having it back

    def lost(self, why: str, kind: type[Exception], now: float, *, refused: bool = False) -> None:
        """The connection is no more. What is open is kept for the next, as long as there may be one.

        ``refused``: no program listens, so the host has gone, and the network works.
        """
        text = f"{self.address}: {why}"
        if not self._epoch:  # it has never been READY; requests made during the attempt get an attempt of their own
            self._unlink(State.IDLE)
            self._doubting_since = None
            self.book.forget_unsent(self._asked_before)
            self._fail(self.book.take(lambda request: request.call_id <= self._asked_before), kind(text))
            return
        self._unlink(State.LOST)
        if self._lost_at is None:
            self._lost_at = now
            self._pause_s = RETRY_S[0]
        book, gone = self.book, errors.CallLost(text)
        lost_for_s = now - self._lost_at
        if lost_for_s >= (DEAD_HOST_S if refused else QUIET_HOST_S):
            self._fail(book.take(lambda request: request.message.repeat is not Repeat.SAFE), gone)
            book.forget_unsent(0)  # what has no answer, a CANCEL say: no host is left that it concerns
        if lost_for_s >= GIVE_UP_S or not (book or book.unsent or book.outbox):
            self.end(gone)
            return
        self.next_try = now + self._pause_s * self._jitter(0.8, 1.2)
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def end(self, error: Exception) -> None:
        """There will be no connection: all that is open fails. The next request connects anew."""
        self._unlink(State.IDLE)
        self._settle_down()
        self._epoch = ""
        self.fail_all(error)

    def close(self, error: Exception) -> None:
        """End for good: all that is open fails with ``error``."""
        self._unlink(State.CLOSED)
        self.fail_all(error)

    def fail_all(self, error: Exception) -> None:
        """Fail all that is open. Any thread may call it."""
        self._fail(self.book.take_all(), error)

    def _unlink(self, state: State) -> None:
        self.state = state
        self.linked = False
        self.token = 0
        self._unacknowledged.clear()

    def _settle_down(self) -> None:
        """Neither recovering nor in doubt any more."""
        self._lost_at = self._doubting_since = None
        self.next_try = 0.0

    def _ask_again(self, resumed: bool, *, same_results: bool) -> None:
        """Queue what was sent over the former connection; ``same_results``: the host can see what became of it."""
        why = "the connection was lost, and the host knows no more what became of the call"

        def again(request: Request) -> bool:
            message = request.message
            if resumed:
                request.resent = True
            elif message.repeat is Repeat.ONCE:
                task_id = message.kept_as(messages.task_id_of(self.prefix, request.call_id)) if same_results else None
                if task_id is None:
                    return False
                request.message = Reask(task_id, why)
            return True

        self._fail(self.book.carry_over(again), errors.CallLost(f"{self.address}: {why}"))

    def _fail(self, requests: list[Request], error: Exception) -> None:
        """``requests`` end in ``error``; those never sent say so."""
        for request in requests:
            self.book.drop(request.call_id)
            if request.sink is not None:
                unsent = isinstance(error, errors.CallLost) and not request.sent
                # A copy for each waiter: raising adds a traceback to it.
                request.sink.fail(errors.HostUnreachable(*error.args) if unsent else copy.copy(error))
