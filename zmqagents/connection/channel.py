"""The connection of one client (a `Transport`) and whoever reads it.

One thread at a time *leads*: it alone sends, receives and looks at the clock (the lock ``_lead``). That is the I/O
thread, which also runs the done-callbacks, connects, pings and recovers. But handing a reply from one thread to
another costs more than all the rest of a short call; so when only blocked callers use the connection, the I/O
thread rests, and a caller reads the socket itself until its reply is there (the leader/followers pattern, Schmidt
et al., 2000). Whoever else comes meanwhile wakes the leader, which sends the request and leaves the socket to the
I/O thread.

    CONNECTING --handshake--> GREETING (HELLO sent) --WELCOME--> READY
        |                                                          | connection lost
        | refused: AuthenticationError; nothing listens            v
        v                                       +----------- RECOVERING: a new socket, again and again
    CLOSED: what is outstanding fails <---------+                  | WELCOME
                                                                   v
    READY: a host that knows this client is asked again for all that is outstanding, and runs nothing twice;
    another one (it crashed and was started anew) only for what may be repeated. The rest is `CallLost`.

A carrier is one connection and never connects again: a message queued for a host that died must not reach its
successor. A crash shows as the end of the connection, within milliseconds; a host that hangs is noticed by pings.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from .. import codec, errors
from ..codec import new_tuple
from ..security.keys import KeyStore
from ..wire import dealer, messages, transport
from ..wire.dealer import DealerTransport
from ..wire.link import Sink, Waiter, rebuild_error
from ..wire.messages import CLIENT_ID_BYTES, Code, Flag, Kind, Reply
from ..wire.transport import Event, Transport
from ..wire.unix import UnixTransport
from .requests import LARGE_BYTES, Message, Outstanding, Plain, Reask, Repeat, Request

__all__ = ["Channel", "Resolve", "after_fork", "close_all"]

log = logging.getLogger(__name__)

Resolve = Callable[[], "tuple[str, str | None]"]  # the ZeroMQ endpoint now, and the host's CURVE key (None on ipc)

BATCH = 64
CONNECT_TIMEOUT_S = 5.0
PING_IDLE_S = 10.0
PING_BUSY_S = 5.0
DEAD_S = 15.0
FLUSH_S = 1.0  # how long a connection that is closed goes on trying to send
LATE_S = 0.5  # how long after a deadline the client waits for the host's own, better worded, answer

RETRY_S = (0.03, 0.25)  # pause before the next attempt to connect again: the first, and the longest
DOUBT_S = 0.4  # handshakes break off for so long before it is the key
DEAD_HOST_S = 0.4  # nothing listens any more for so long: what cannot be repeated is lost
GIVE_UP_S = 30.0  # after that, what can be repeated is lost as well
QUIET_HOST_S = 10.0  # the same for a host that cannot be reached but has not refused: a cut cable

LEAD_S = 1.0  # a caller leads no longer than that; after it the I/O thread looks after the connection
LONE_CALLS = 4  # calls of one thread in a row, with nothing beside them, before the I/O thread rests
ACK_AFTER = 64  # replies after which the host is told what it may forget, if no call does that
ACK_WITHIN_S = 0.5


class Channel:
    """See the module's docstring. `ask`, `request`, `forget` and `close` may be called from any thread."""

    def __init__(self, resolve: Resolve, address: str) -> None:
        self.pid = os.getpid()
        self.address = address
        self.prefix_bytes = os.urandom(CLIENT_ID_BYTES)
        self.prefix = messages.client_prefix(self.prefix_bytes)
        self.welcome: dict[str, Any] = {}
        self.closing = False
        self._ended = False
        self._resolve = resolve
        self._secret = os.urandom(16)
        self._book = Outstanding()
        self._lead = threading.RLock()  # as such it knows whose it is
        self.resting = False  # the I/O thread leaves the socket to callers
        self._rest = threading.Lock()
        self._rest.acquire()
        self._streak = 0  # lone calls in a row
        self._streak_thread = 0
        self._leader = 0  # the ident of the caller that leads
        self._interrupted = False  # a leading caller was: half a message may be read or written
        self._asleep = False
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._wake_fd = self._wake_r.fileno()
        self._carrier: Transport | None = None
        self._wakes: transport.Items = [(self._wake_fd, zmq.POLLIN)]
        self._token = 0
        self._server_id = ""
        self._epoch = ""
        self.limit = 1 << 40
        self._connect_by = 0.0
        self._last_heard = self._last_ping = 0.0
        self._unacknowledged: list[int] = []  # ids of replies that the host may still keep
        self._ack_by = 0.0
        self._lost_at: float | None = None  # recovering since
        self._next_try = 0.0
        self._asked_before = 0  # the last request made before the latest attempt to connect
        self._doubting_since: float | None = None  # handshakes break off
        self._on_tcp = False
        self._pause_s = RETRY_S[0]
        self._readable = True  # there may be something to receive
        self._due = 0.0  # when there is something to do whatever else happens
        self._ident = 0
        self._thread = threading.Thread(target=self._run, name=f"zmqagents-io-{address[-24:]}", daemon=True)
        channels.add(self)
        self._thread.start()

    # ------------------------------------------------------------ any thread

    def request(self, message: Message, sink: Sink | None, timeout: float | None) -> int:
        """Send ``message``; its answer goes to ``sink`` (None: there is none), a timeout too. The call's id."""
        deadline = None if timeout is None else time.monotonic() + timeout + LATE_S
        call_id = self._book.add(Request(message, sink, deadline))
        if sink is None:
            self._wake()
            return call_id
        self._streak = 0
        try:
            self._wake()
        except BaseException:  # KeyboardInterrupt: nobody will know the id
            self.forget(call_id)
            raise
        return call_id

    def ask(self, message: Message) -> Reply:
        """Send ``message`` and wait for the answer; CallTimeout after its deadline, or what it failed with."""
        if self._leader and self.is_led_by_caller():
            raise errors.BlockingCallError("a call in a signal handler or finalizer, amid another of the same thread")
        request: Request | None = None
        try:
            if self.resting and self._lead.acquire(blocking=False):
                answer = self._lead_alone(message)
                if isinstance(answer, Reply):
                    return answer
                request = answer
            if request is None:
                request = Request(message, Waiter(), None)
                self._book.add(request)
                me = threading.get_ident()
                self._streak = self._streak + 1 if self._streak_thread == me else 0
                self._streak_thread = me
                self._wake()
            waiter, deadline = request.sink, message.deadline
            assert type(waiter) is Waiter
            return waiter.wait(None if deadline is None else max(0.0, deadline + LATE_S - time.monotonic()))
        except BaseException:  # too late, or a KeyboardInterrupt, which may come between any two of these lines
            with contextlib.suppress(RuntimeError):  # not this thread's: the rule
                self._lead.release()
            if request is not None:
                self.forget(request.call_id)
            raise

    def forget(self, call_id: int) -> None:
        """Nobody waits for this call any more: cancel it on the host."""
        if self._book.drop(call_id):
            self.request(Plain(Kind.CANCEL, call_id), None, None)

    def is_alive(self) -> bool:
        """Whether its sockets may still be open."""
        return self._thread.is_alive()

    def is_own_thread(self) -> bool:
        """True in the I/O thread, which runs the done-callbacks."""
        return self._ident == threading.get_ident()

    def is_led_by_caller(self) -> bool:
        """True in a signal handler or finalizer amid a call that leads: until it returns, nobody reads the socket."""
        return bool(self._leader) and self._leader == threading.get_ident()

    def close(self) -> None:
        """End the I/O thread; does not wait for it."""
        self.closing = True
        if self.pid == os.getpid():
            self._wake()

    def join(self) -> None:
        """Wait for the I/O thread, unless this is it."""
        if not self.is_own_thread():
            with contextlib.suppress(RuntimeError):  # another thread is just about to start it
                self._thread.join(5.0)

    def _wake(self) -> None:
        """See that somebody looks at the outbox soon. No wake-up gets lost if a KeyboardInterrupt comes in here."""
        if self.resting:
            try:
                self.resting = False
                self._rest.release()
            except RuntimeError:  # woken already
                pass
            except BaseException:
                self.resting = True
                raise
        if self._asleep:
            try:
                self._asleep = False
                self._wake_w.send(b"\0")
            except OSError:  # full of wake-ups already, or closed
                pass
            except BaseException:
                self._asleep = True
                raise
        if self._ended:  # it has missed the last look at the outbox
            self._fail(self._book.take_all(), errors.HostLost(f"the connection to {self.address} is closed"))

    # ------------------------------------------------------------ a caller that leads

    def _lead_alone(self, message: Message) -> Reply | Request | None:
        """Send ``message`` and read its answer, in the thread that waits for it and has just taken the lead.

        The answer, or the request that is going to get it; None if it was not sent.

        A short call, with nothing beside it, is answered before anything else happens. So for `carrier.SHORT_MS` there
        is no look at the other descriptors, and no record of the call.
        """
        book = self._book
        begun = False
        try:
            self._leader = threading.get_ident()
            call_id = book.id_for_one_alone() if self._token and not book.unsent else 0
            if not call_id:
                return None
            parts = message.to_frames(call_id, self._token, self._server_id, call_id, False)
            size = self._checked_size(parts)
            begun = True
            answer = self._first_answer(call_id, parts)
            if answer is not None and answer[0] is not None:
                return answer[0]
            request = Request(message, Waiter(), None)
            book.adopt(request, call_id, size)
            if answer is not None:
                self._take(answer[1])
            end = time.monotonic() + LEAD_S
            if message.deadline is not None:
                end = min(end, message.deadline + LATE_S)
            while book.find(call_id) is request and self._wait_for_one(end):
                pass
            return request
        except BaseException:  # KeyboardInterrupt: half a message may have been read or written
            if begun:
                self._interrupted = True
                book.drop(call_id)
                book.outbox.append(Request(Plain(Kind.CANCEL, call_id), None, None))
            raise
        finally:
            self._asleep = False
            self._leader = 0
            self._lead.release()
            if book.waiting or book.asking or book.outbox or self._interrupted:
                self._wake()

    def _first_answer(
        self, call_id: int, message: list[messages.Frame]
    ) -> tuple[Reply | None, list[messages.Frame]] | None:
        """Send; then what comes at once, and as a reply if it is the one to this call. None if nothing comes."""
        wire = self._carrier
        assert wire is not None
        wire.send(message)
        parts = wire.receive_soon()
        if parts is None:
            return None
        reply = messages.reply_to(call_id, parts)
        if reply is not None:
            now = self._last_heard = time.monotonic()
            self._ack_by = now + ACK_WITHIN_S
            self._unacknowledged = [call_id]  # what was before, this call has acknowledged
        return reply, parts

    def _wait_for_one(self, end: float) -> bool:
        """Receive the next message; False when the socket is the I/O thread's."""
        left = end - time.monotonic()
        wire = self._carrier
        if left <= 0 or wire is None or not self._token or self._book.postponed:  # that needs a look at the clock
            return False
        parts = wire.receive()
        if parts is None:
            self._asleep = True
            if self._book.outbox or not self.resting or self.closing or wire.events:
                return False
            ready = transport.poll([*self._wakes, *wire.items], int(left * 1000) + 1)
            self._asleep = False
            wire.look(ready)
            if not ready or wire.events or any(where == self._wake_fd for where, _ in ready):
                return False
            parts = wire.receive()
        if parts is not None:
            self._take(parts)
        return True

    # ------------------------------------------------------------ the I/O thread

    def _run(self) -> None:
        self._ident = threading.get_ident()
        error: Exception = errors.HostLost(f"the connection to {self.address} was closed")
        try:
            while not self.closing:
                with self._lead:
                    self._lead_until_lonely()
                self._let_callers_lead()
        except zmq.ContextTerminated:
            pass
        except BaseException as exc:  # a bug: nobody may be left waiting
            log.exception("the connection to %s failed", self.address)
            error = errors.HostLost(f"the connection to {self.address} failed: {exc!r}")
        finally:
            self.closing = True
            with self._lead:
                self._drop_if_interrupted()
                self._flush()
                self._say_bye()
                self._disconnect()
            self._ended = True
            self._fail(self._book.take_all(), error)
            self._wake_w.close()
            self._wake_r.close()

    def _lead_until_lonely(self) -> None:
        book = self._book
        self._streak = 0
        self._readable = True  # callers may have left something
        while not self.closing:
            if self._turn():
                continue
            if self._streak >= LONE_CALLS and self._token and not (book.waiting or book.asking or book.unsent):
                return
            self._asleep = True
            if not (book.outbox or self.closing):
                self._sleep()
            self._asleep = False

    def _let_callers_lead(self) -> None:
        """Rest until somebody asks for this thread, or nobody has used the connection for a second."""
        book = self._book
        last = 0
        self.resting = True
        while self.resting and not (self.closing or book.asking or book.outbox):
            if self._rest.acquire(timeout=LEAD_S):
                break
            if last == book.highest:
                break
            last = book.highest
        self.resting = False
        self._rest.acquire(blocking=False)  # a wake-up that came too late is not to count the next time

    def _turn(self) -> bool:
        """Do what there is to do; True if there may be more at once."""
        if self._interrupted:
            self._drop_if_interrupted()
        book = self._book
        if self._readable:
            self._readable = self._receive_some()
        if book.outbox or book.unsent or self._lost_at is not None:
            self._send_some()
        wire = self._carrier
        if wire is not None and wire.events:
            self._look_at_events()
            return True
        self._due = self._next_due()
        now = time.monotonic()
        if self._due <= now:
            self._look_at_clock(now)
            return True
        return self._readable

    def _drop_if_interrupted(self) -> None:
        """Nothing more may be written or read after half a message."""
        if self._interrupted:
            self._interrupted = False
            if self._carrier is not None:
                self._lost("a caller was interrupted", errors.CallLost)

    def _sleep(self, timeout_ms: int | None = None) -> None:
        """Wait until there is something to do, or for ``timeout_ms``."""
        wire = self._carrier
        if timeout_ms is None:
            left = self._due - time.monotonic()
            timeout_ms = -1 if left == math.inf else max(0, int(left * 1000) + 1)
        ready = transport.poll([*self._wakes, *wire.items] if wire is not None else self._wakes, timeout_ms)
        if not ready:
            return
        woken = ready[0][0] == self._wake_fd
        self._readable = len(ready) > 1 or not woken
        if self._readable and wire is not None:
            wire.look(ready)
        if woken:
            with contextlib.suppress(BlockingIOError):
                self._wake_r.recv(4096)

    def _next_due(self) -> float:
        """When there is something to do for `_look_at_clock`, or to connect."""
        due = self._book.due
        if self._carrier is not None:
            due = min(due, self._ping_due() if self._token else self._connect_by)
            if self._unacknowledged:
                due = min(due, self._ack_by if len(self._unacknowledged) < ACK_AFTER else 0.0)
        elif self._book.unsent or self._lost_at is not None:  # then `_send_some` connects
            due = min(due, self._next_try)
        return due

    def _look_at_clock(self, now: float) -> None:
        book = self._book
        book.take_ready(now)
        for request in book.take_overdue(now):
            assert request.sink is not None
            request.sink.fail(errors.CallTimeout(f"{self.address} did not answer in time"))
        if self._carrier is None:
            if self._lost_at is not None and not book:
                self._lost_at = None  # nothing to recover for
            return
        if not self._token:
            if now >= self._connect_by:
                self._lost(f"no answer within {CONNECT_TIMEOUT_S:g} s", errors.HostUnreachable)
        elif now >= self._last_heard + DEAD_S and self._last_ping > self._last_heard:
            self._lost(f"silent for {DEAD_S:g} s", errors.CallLost)
        elif now >= self._ping_due():
            self._last_ping = now
            self._carrier.send([messages.header(Kind.PING, 0, self._token)])
        elif len(self._unacknowledged) >= ACK_AFTER or (self._unacknowledged and now >= self._ack_by):
            self._acknowledge()

    def _ping_due(self) -> float:
        """When to ask for a sign of life, or to give the host up."""
        if self._last_ping > self._last_heard:
            return self._last_heard + DEAD_S
        return max(self._last_heard, self._last_ping) + (
            PING_BUSY_S if self._book.waiting or self._book.asking else PING_IDLE_S
        )

    def _acknowledge(self) -> None:
        """Tell the host which replies it need not keep."""
        assert self._carrier is not None
        needed, had = self._book.lowest(), self._unacknowledged
        self._unacknowledged = []
        message: list[messages.Frame] = [messages.header(Kind.ACK, needed, self._token)]
        beyond = [call_id for call_id in had[-messages.MAX_DEPS :] if call_id > needed]
        if beyond:  # an old call is still open
            message.append(codec.pack(beyond))
        self._carrier.send(message)

    # ------------------------------------------------------------ whoever leads: sending and receiving

    def _send_some(self) -> bool:
        book = self._book
        wire = self._carrier
        if wire is None:
            book.take_in()
            if time.monotonic() >= self._next_try:
                self._connect()
            return False
        if not self._token:
            book.take_in()
            return False
        sent = False
        while (book.outbox or book.unsent) and (request := book.next_to_send()) is not None:
            if not self._send_one(wire, request):
                break
            sent = True
        if sent:
            wire.flush()
        return sent

    def _send_one(self, wire: Transport, request: Request) -> bool:
        """Queue it; False if it has to wait until others are answered."""
        book = self._book
        needed = book.lowest()
        try:
            parts = request.message.to_frames(request.call_id, self._token, self._server_id, needed, request.resent)
        except Exception as exc:  # what cannot be made into a message concerns its own caller only
            self._fail([request], exc)
            return True
        try:
            size = self._checked_size(parts)
        except errors.MessageTooLarge as exc:
            self._fail([request], exc)
            return True
        if size >= LARGE_BYTES and not book.has_room_for(size):
            book.put_back(request)
            return False
        book.sent(request, size)
        if len(self._unacknowledged) == 1 and self._unacknowledged[0] < needed and request.message.is_call:
            self._unacknowledged.clear()  # the call has said so
        wire.queue(parts)
        return True

    def _checked_size(self, parts: list[messages.Frame]) -> int:
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        if size > self.limit + 1024:
            text = f"a message of {size:,} bytes, limit {self.limit:,} (max_message_bytes of the host)"
            raise errors.MessageTooLarge(text, size, self.limit)
        return size

    def _receive_some(self) -> bool:
        wire = self._carrier
        if wire is None:
            return False
        for _ in range(BATCH):
            parts = wire.receive()
            if parts is None:
                return False
            self._take(parts)
            if self._carrier is not wire:
                return True
            if wire.is_clean:
                return False
        return True

    def _take(self, parts: list[messages.Frame]) -> None:
        self._last_heard = time.monotonic()
        try:
            self._on_message(parts)
        except errors.RemoteProtocolError as exc:
            log.warning("%s sent what is no message: %s", self.address, exc)
        except KeyboardInterrupt:
            raise
        except BaseException:  # a done-callback may raise anything, SystemExit too
            log.exception("a callback on a result from %s failed", self.address)

    def _on_message(self, parts: list[messages.Frame]) -> None:
        head, body = messages.split_answer(parts)
        kind = head.kind
        if kind == Kind.RESULT or kind == Kind.ERROR:
            self._on_answer(head, body)
        elif kind == Kind.CHUNK:
            request = self._book.find(head.call_id)
            if request is not None and request.sink is not None:
                request.sink.chunk(Reply(Code.NONE, body))
        elif kind == Kind.PENDING:
            self._on_pending(head.call_id)
        elif kind == Kind.PONG:
            request = self._book.answered(head.call_id)
            if request is not None and request.sink is not None:
                request.sink.deliver(Reply(Code.NONE, ()))
        elif kind == Kind.WELCOME:
            self._on_welcome(head, parts)
        elif kind == Kind.GOODBYE:
            if head.code:  # it ends this session alone, and says why
                self._end(rebuild_error(Reply(head.code, parts[1:])))
            else:
                self._end(errors.HostStopping(f"{self.address}: it has stopped"))
        elif kind == Kind.NEED_HELLO:
            self._lost("it does not know this connection any more", errors.CallLost)
        else:
            raise errors.RemoteProtocolError(f"unknown kind {kind}")

    def _on_answer(self, head: messages.Header, body: Sequence[messages.Frame]) -> None:
        book = self._book
        if head.kind == Kind.RESULT:
            code = int(Code.NONE)
        else:
            code = head.code
            if code == Code.BUSY and self._try_later(head):
                return
        if not self._unacknowledged:
            self._ack_by = self._last_heard + ACK_WITHIN_S
        self._unacknowledged.append(head.call_id)
        request = book.answered(head.call_id)
        if request is None or request.sink is None:
            return
        reply = new_tuple(Reply, (code, body))
        if type(request.message) is Reask and request.message.has_lost(reply):
            request.sink.fail(errors.CallLost(f"{self.address}: {request.message.why}"))
        else:
            request.sink.deliver(reply)

    def _try_later(self, head: messages.Header) -> bool:
        """The host was busy: ask again, with some jitter. False if nobody waits, or not for so long."""
        request = self._book.find(head.call_id)
        if request is None:
            return False
        due = time.monotonic() + max(0.005, head.time_ms / 1000) * random.uniform(0.5, 1.5)
        deadline = request.message.deadline
        if deadline is not None and due >= deadline:
            return False
        self._book.try_later(request, due)
        return True

    def _on_pending(self, call_id: int) -> None:
        request = self._book.answered(call_id)
        if request is None or request.sink is None:
            return
        if type(request.message) is Reask:  # its owner knows nothing of the question: ask again
            self._book.keep(request)
            self._book.put_back(request)
        else:
            request.sink.deliver(None)

    # ------------------------------------------------------------ connecting

    def _connect(self) -> None:
        self._asked_before = self._book.highest
        self._token = 0
        self._connect_by = time.monotonic() + CONNECT_TIMEOUT_S
        try:
            endpoint, server_key = self._resolve()
            self._on_tcp = endpoint.startswith("tcp:")
            keys = KeyStore.open().client_keypair() if server_key is not None else None
            path = endpoint.removeprefix("ipc://")
            self._carrier = UnixTransport(path) if path != endpoint else DealerTransport(endpoint, keys, server_key)
        except errors.ZmqAgentsError as exc:
            if self._lost_at is None:
                self._end(exc)
            else:  # a host that is about to start again has no connection file
                self._lost(str(exc), errors.HostUnreachable, refused=True)
        except (OSError, ValueError, zmq.ZMQError) as exc:  # no address that there could be, or no descriptor for it
            self._lost(str(exc), errors.HostUnreachable)

    def _look_at_events(self) -> bool:
        """True if something has happened to the connection."""
        wire = self._carrier
        if wire is None or not wire.events:
            return False
        events, wire.events = wire.events, []
        for event in events:
            if self._carrier is wire:
                self._on_event(event)
        return True

    def _on_event(self, event: Event) -> None:
        if event is Event.READY:
            self._greet()
        elif event is Event.KEY_REFUSED:
            self._end(errors.AuthenticationError(f"{self.address}: {event.value}"))
        elif event in (Event.BROKEN_OFF, Event.FOREIGN):
            self._doubt(event.value)
        else:
            self._receive_all()
            if self._carrier is not None:
                if self._token:
                    self._lost("the connection was lost", errors.CallLost)
                else:
                    self._lost(event.value, errors.HostUnreachable, refused=event is Event.REFUSED)

    def _doubt(self, why: str) -> None:
        """A handshake broke off: a wrong key, or a host that was just closing, or a connection that was cut.

        On ipc there are no keys. On TCP it is believed to be the key when it goes on for `DOUBT_S`.
        """
        now = time.monotonic()
        if self._doubting_since is None:
            self._doubting_since = now
            self._pause_s = RETRY_S[0]
        if self._lost_at is not None or not self._on_tcp:
            self._lost(why, errors.HostUnreachable)
        elif now - self._doubting_since >= DOUBT_S:
            self._end(errors.AuthenticationError(f"{self.address}: {why}"))
        else:
            self._disconnect()
            self._next_try = now + self._pause_s
            self._pause_s *= 2

    def _receive_all(self) -> None:
        """What the host sent before it went, a GOODBYE say, is still worth reading."""
        wire = self._carrier
        while wire is not None and self._carrier is wire and (parts := wire.receive()) is not None:
            self._take(parts)

    def _greet(self) -> None:
        assert self._carrier is not None
        self._last_heard = self._last_ping = time.monotonic()
        hello = codec.pack({"client": self.prefix_bytes, "versions": [messages.VERSION], "resume": self._secret})
        self._carrier.send([messages.header(Kind.HELLO), hello])

    def _on_welcome(self, head: messages.Header, parts: list[messages.Frame]) -> None:
        welcome = codec.unpack(parts[1], max_bytes=messages.MAX_META_BYTES) if len(parts) > 1 else None
        if not isinstance(welcome, dict):
            raise errors.RemoteProtocolError("WELCOME without its map")
        book = self._book
        epoch, former = str(welcome.get("epoch", "")), self._epoch
        self.welcome = welcome
        self._server_id = str(welcome.get("server_id", ""))
        self.limit = int(welcome.get("max_message_bytes", 1 << 40))
        self._epoch = epoch
        book.max_calls = int(welcome.get("max_calls", 1 << 30))
        book.max_open_bytes = int(welcome.get("max_open_bytes", 1 << 62))
        self._token = head.token
        self._lost_at = None
        self._next_try = 0.0
        self._doubting_since = None
        self._pause_s = RETRY_S[0]
        if former:
            self._ask_again(bool(head.flags & Flag.RESUMED), same_results=epoch == former)

    # ------------------------------------------------------------ losing the connection, and having it back

    def _lost(self, why: str, kind: type[Exception], *, refused: bool = False) -> None:
        """The connection is no more. What is outstanding is kept for the next, as long as there may be one.

        ``refused``: nobody listens, so it is the host that has gone, and not a cable.
        """
        self._disconnect()
        if not self._epoch:  # there never was one; whoever asked while it was tried gets a try of his own
            self._doubting_since = None
            self._book.forget_unsent(self._asked_before)
            old = self._book.take(lambda request: request.call_id <= self._asked_before)
            self._fail(old, kind(f"{self.address}: {why}"))
            return
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
            self._pause_s = RETRY_S[0]
        text = f"{self.address}: {why}"
        self._fail(self._book.take(lambda request: request.message.repeat is Repeat.NEVER), errors.CallLost(text))
        lost_for_s = now - self._lost_at
        if lost_for_s >= (DEAD_HOST_S if refused else QUIET_HOST_S):
            self._fail(
                self._book.take(lambda request: request.message.repeat is not Repeat.SAFE), errors.CallLost(text)
            )
            self._book.forget_unsent(0)  # what has no answer, a CANCEL say: there is nobody whom it concerns
        if lost_for_s >= GIVE_UP_S or not (self._book or self._book.unsent or self._book.outbox):
            self._end(errors.CallLost(text))
            return
        self._next_try = now + self._pause_s * random.uniform(0.8, 1.2)
        self._pause_s = min(2 * self._pause_s, RETRY_S[1])

    def _end(self, error: Exception) -> None:
        """There will be no connection: all that is outstanding fails. The next request connects anew."""
        self._disconnect()
        self._lost_at = None
        self._next_try = 0.0
        self._doubting_since = None
        self._epoch = ""
        self._fail(self._book.take_all(), error)

    def _ask_again(self, resumed: bool, *, same_results: bool) -> None:
        """Queue what was sent over the former connection; ``same_results``: the host can see what became of it."""
        why = "the connection was lost, and the host knows no more what became of the call"

        def again(request: Request) -> bool:
            message = request.message
            if message.repeat is Repeat.NEVER:
                return False
            if resumed:
                request.resent = True
            elif message.repeat is Repeat.ONCE:
                task_id = message.kept_as(messages.task_id_of(self.prefix, request.call_id)) if same_results else None
                if task_id is None:
                    return False
                request.message = Reask(task_id, why)
            return True

        lost = self._book.carry_over(again)
        self._fail(lost, errors.CallLost(f"{self.address}: {why}"))

    def _flush(self) -> None:
        """Send what was asked for before the end: a program may make its calls and exit."""
        book = self._book
        end = time.monotonic() + FLUSH_S
        with contextlib.suppress(Exception):  # whatever it is, the rest of the end is to come
            while (book.outbox or book.unsent) and time.monotonic() < end:
                self._send_some()
                if book.outbox or book.unsent:  # not connected yet
                    self._sleep(20)
                    self._receive_some()
                    self._look_at_events()

    def _say_bye(self) -> None:
        if self._carrier is not None and self._token:
            with contextlib.suppress(zmq.ZMQError):
                self._carrier.send([messages.header(Kind.BYE, 0, self._token)])

    def _disconnect(self) -> None:
        wire, self._carrier = self._carrier, None
        self._token = 0
        self._unacknowledged.clear()
        if wire is not None:
            wire.close()

    def _fail(self, requests: list[Request], error: Exception) -> None:
        """``requests`` end in ``error``; those never sent say so."""
        for request in requests:
            self._book.drop(request.call_id)
            if request.sink is not None:
                unsent = isinstance(error, errors.CallLost) and not request.sent
                request.sink.fail(errors.HostUnreachable(*error.args) if unsent else _copy(error))

    def fail_in_child(self) -> None:
        """After a fork, in the child: the parent's sockets and threads are not here; who waits on a copy is told."""
        self.closing = True
        self._asleep = self.resting = False
        if self._carrier is not None:
            self._carrier.abandon()
        for request in self._book.take_all():
            if request.sink is not None:
                with contextlib.suppress(RuntimeError):  # its lock is free: the parent's thread had just answered
                    request.sink.fail(errors.HostLost("this process was forked while the call was out"))


def _copy(error: Exception) -> Exception:
    """One exception object for each waiter, with all it says: raising adds a traceback to it."""
    return copy.copy(error)


# ---------------------------------------------------------------- the process


channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def after_fork() -> None:
    """In the child; see `Channel.fail_in_child`."""
    dealer.forget_context()
    for channel in list(channels):
        channel.fail_in_child()


def close_all() -> None:
    """At exit: nobody is left waiting, what was sent is written, and ZeroMQ's own clean-up finds no open socket."""
    mine = [channel for channel in list(channels) if channel.pid == os.getpid()]
    for channel in mine:
        channel.close()
    for channel in mine:
        channel.join()
    if not any(channel.is_alive() for channel in mine):
        dealer.end_context()
