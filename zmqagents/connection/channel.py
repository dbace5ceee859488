"""The socket of one client (a `Transport`), and the thread that reads it. `Session` says what is sent and when.

One thread at a time *leads*: it alone sends, receives and looks at the clock (the lock ``_lead``). That is the I/O
thread, which also runs the done-callbacks, connects, pings and recovers. But handing a reply from one thread to
another costs more than all the rest of a short call; so when only blocked callers use the connection, the I/O
thread rests, and a caller reads the socket itself until its reply is there (the leader/followers pattern, Schmidt
et al., 2000). Any other request that comes meanwhile wakes the leader, which sends it and leaves the socket to the
I/O thread.

A transport is one connection and never connects again: a message queued for a host that died must not reach its
successor. A crash shows as the end of the connection, within milliseconds; a host that hangs is noticed by pings.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable

from .. import errors
from ..wire import dealer, transport
from ..wire.link import Sink, Waiter
from ..wire.messages import Frame, Home, Kind, Reply
from ..wire.transport import Event, Transport
from .dialling import dial
from .host_keys import HostKeys
from .requests import Message, Plain, Request
from .session import BATCH, Session, State
from .target import Target

__all__ = ["Channel", "after_fork", "close_all", "is_over"]

log = logging.getLogger(__name__)

FLUSH_S = 1.0  # how long a connection that is closed goes on trying to send
LATE_S = 0.5  # how long after a deadline the client waits for the host's own, better worded, answer

LEAD_S = 1.0  # a caller leads no longer than that; after it the I/O thread looks after the connection
LONE_CALLS = 4  # calls of one thread in a row, with nothing beside them, before the I/O thread rests


class Channel:
    """See the module's docstring. `ask`, `request`, `forget` and `close` may be called from any thread."""

    def __init__(self, target: Target, on_hint: Callable[[Home], object] = len) -> None:
        """``on_hint``: see `Session`."""
        self.pid = os.getpid()
        self.address = target.address
        self._host_keys = HostKeys(target.keep_keys)
        learn = self._host_keys.learn
        self.session = Session(target.address, learn=learn, on_hint=on_hint, acts_for=target.acts_for)
        self.closing = False
        self.resting = False  # the I/O thread leaves the socket to callers
        self.io_thread = 0  # the ident of the thread that runs the done-callbacks
        self.leading_caller = 0  # the ident of the caller that leads: until its call returns, no other thread reads
        self._ended = False
        self._target = target
        self._book = self.session.book
        self._lead = threading.RLock()  # an RLock knows its owner
        self._rest = threading.Lock()
        self._rest.acquire()
        self._streak = 0  # lone calls in a row
        self._streak_thread = 0
        self._patient = False  # the last answer to a lone call took longer than `transport.SHORT_MS`
        self._interrupted = False  # a leading caller was: half a message may be read or written
        self._asleep = False
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._wake_fd = self._wake_r.fileno()
        self._wakes: transport.Items = [(self._wake_fd, transport.IN)]
        self._wire: Transport | None = None
        self._readable = True  # there may be something to receive
        self._due = 0.0  # when there is something to do whatever else happens
        self._thread = threading.Thread(target=self._run, name=f"zmqagents-io-{self.address[-24:]}", daemon=True)
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
        except BaseException:  # KeyboardInterrupt: no code will know the id
            self.forget(call_id)
            raise
        return call_id

    def ask(self, message: Message) -> Reply:
        """Send ``message`` and wait for the answer; CallTimeout after its deadline, or what it failed with."""
        if self.leading_caller and self.leading_caller == threading.get_ident():
            raise errors.BlockingCallError("a call in a signal handler or finalizer, while its thread is in another")
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
        """Cancel this call on the host: no thread waits for it any more."""
        self.take_back(call_id, Kind.CANCEL)

    def take_back(self, call_id: int, kind: Kind) -> None:
        """Wait for no answer to a request any more, and tell the host so by a message of this kind."""
        if self._book.drop(call_id):
            self.request(Plain(kind, call_id), None, None)

    def is_alive(self) -> bool:
        """Whether its sockets may still be open."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the I/O thread; does not wait for it."""
        self.closing = True
        if self.pid == os.getpid():
            self._wake()

    def join(self) -> None:
        """Wait for the I/O thread, unless this is it."""
        if self.io_thread != threading.get_ident():
            with contextlib.suppress(RuntimeError):  # another thread is just about to start it
                self._thread.join(5.0)

    def _wake(self) -> None:
        """Make a thread look at the outbox soon. No wake-up gets lost if a KeyboardInterrupt comes in here."""
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
            self.session.fail_all(errors.HostLost(f"the connection to {self.address} is closed"))

    # ------------------------------------------------------------ a caller that leads

    def _lead_alone(self, message: Message) -> Reply | Request | None:
        """Send ``message`` and read its answer, in the thread that waits for it and has just taken the lead.

        The answer, or the request that is going to get it; None if it was not sent.

        A short call, with nothing beside it, is answered before anything else happens. So for `transport.SHORT_MS`
        there is no look at the other descriptors; but where the last answer took longer, to wait in two steps costs
        more than it saves. The call is recorded only when something else comes first, or the I/O thread takes over.
        """
        book, session = self._book, self.session
        call_id = 0
        try:
            self.leading_caller = threading.get_ident()
            begun = session.begin_alone(message)
            wire = self._wire
            if begun is None or wire is None:
                return None
            call_id, parts, size = begun
            wire.send(parts)
            begun_s = 0.0
            if self._patient and (wire.is_clean or wire.polls_all):
                begun_s = time.monotonic()
                end = self._leads_until(begun_s, message)
                answer = wire.receive() if self._may_receive(wire, end) else None
            else:
                answer = wire.receive_soon()
            if answer is not None:
                now = time.monotonic()
                reply = session.answer_alone(call_id, answer, now)
                if reply is not None:
                    if begun_s:
                        self._patient = now - begun_s > transport.SHORT_MS / 1000
                    return reply
            self._patient = True
            request = Request(message, Waiter(), None)
            book.adopt(request, call_id, size)
            if answer is not None:
                self._take(answer)
            end = self._leads_until(begun_s or time.monotonic(), message)
            while book.find(call_id) is request and self._wait_for_one(end):
                pass
            return request
        except BaseException:  # KeyboardInterrupt: half a message may have been read or written
            if call_id:
                self._interrupted = True
                book.drop(call_id)
                book.outbox.append(Request(Plain(Kind.CANCEL, call_id), None, None))
            raise
        finally:
            self._asleep = False
            self.leading_caller = 0
            self._lead.release()
            if book.waiting or book.asking or book.outbox or self._interrupted:
                self._wake()

    def _leads_until(self, now: float, message: Message) -> float:
        """When a caller that waits for the answer to ``message`` leaves the socket to the I/O thread."""
        end = now + LEAD_S
        return end if message.deadline is None else min(end, message.deadline + LATE_S)

    def _wait_for_one(self, end: float) -> bool:
        """Receive the next message; False when the socket is the I/O thread's."""
        wire = self._wire
        if wire is None or not self.session.token or self._book.postponed:  # a look at the clock is needed
            return False
        if time.monotonic() >= end:
            return False
        parts = None if wire.is_clean or wire.polls_all else wire.receive()
        if parts is None:
            if not self._may_receive(wire, end):
                return False
            parts = wire.receive()
        if parts is not None:
            self._take(parts)
        return True

    def _may_receive(self, wire: Transport, end: float) -> bool:
        """Wait until there may be something to receive: True. False when the socket is the I/O thread's."""
        self._asleep = True
        if self._book.outbox or not self.resting or self.closing or wire.events:
            return False
        left_s = end - time.monotonic()
        ready = transport.poll([*self._wakes, *wire.items], max(0, int(left_s * 1000)) + 1)
        self._asleep = False
        wire.look(ready)
        return bool(ready) and not wire.events and ready[0][0] != self._wake_fd

    # ------------------------------------------------------------ the I/O thread

    def _run(self) -> None:
        self.io_thread = threading.get_ident()
        error: Exception = errors.HostLost(f"the connection to {self.address} was closed")
        try:
            while not self.closing:
                with self._lead:
                    self._lead_until_lonely()
                self._let_callers_lead()
        except transport.Terminated:
            pass
        except BaseException as exc:  # a bug: no request may be left waiting
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
            self.session.close(error)
            self._wake_w.close()
            self._wake_r.close()

    def _lead_until_lonely(self) -> None:
        book = self._book
        self._streak = 0
        self._readable = True  # callers may have left something
        while not self.closing:
            if self._turn():
                continue
            if self._streak >= LONE_CALLS and self.session.token and not (book.waiting or book.asking or book.unsent):
                return
            self._asleep = True
            if not (book.outbox or self.closing):
                self._sleep()
            self._asleep = False

    def _let_callers_lead(self) -> None:
        """Rest until a thread asks for this one, or the connection was not used for a second."""
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
        book, session = self._book, self.session
        if self._readable:
            self._readable = self._receive_some()
        if book.outbox or book.unsent or session.state is State.LOST:
            self._send_some()
        wire = self._wire
        if wire is not None and wire.events:
            self._look_at_events()
            return True
        self._due = session.next_due()
        now = time.monotonic()
        if self._due <= now:
            self._after(session.look(now))
            return True
        return self._readable

    def _drop_if_interrupted(self) -> None:
        """Nothing more may be written or read after half a message."""
        if self._interrupted:
            self._interrupted = False
            if self._wire is not None:
                self.session.lost("a caller was interrupted", errors.CallLost, time.monotonic())
                self._disconnect()

    def _after(self, message: list[Frame] | None) -> None:
        """Send ``message``, and close the transport if the session uses it no more."""
        wire = self._wire
        if wire is not None:
            if not self.session.linked:
                self._disconnect()
            elif message is not None:
                wire.send(message)

    def _sleep(self, timeout_ms: int | None = None) -> None:
        """Wait until there is something to do, or for ``timeout_ms``."""
        wire = self._wire
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

    # ------------------------------------------------------------ the thread that leads: sending and receiving

    def _send_some(self) -> None:
        book, session, wire = self._book, self.session, self._wire
        if wire is None or not session.token:
            book.take_in()
            if wire is None and time.monotonic() >= session.next_try:
                self._wire = dial(session, self._target, self._host_keys)
            return
        sent = False
        while (book.outbox or book.unsent) and (message := session.next_message()) is not None:
            wire.queue(message)
            sent = True
        if sent:
            wire.flush()

    def _receive_some(self) -> bool:
        """Receive what has come, `BATCH` messages at most; True if there may be more."""
        wire, session = self._wire, self.session
        if wire is None:
            return False
        for _ in range(BATCH):
            parts = wire.receive()
            if parts is None:
                return False
            session.received(parts, time.monotonic())
            if not session.linked:
                self._disconnect()
                return True
            if wire.is_clean:
                return False
        return True

    def _take(self, parts: list[Frame]) -> None:
        self.session.received(parts, time.monotonic())
        if not self.session.linked:
            self._disconnect()

    def _look_at_events(self) -> None:
        wire = self._wire
        if wire is None or not wire.events:
            return
        for event in wire.take_events():
            if event in (Event.CUT, Event.REFUSED):  # what the host sent before it went, a GOODBYE say
                while self._wire is wire and (parts := wire.receive()) is not None:
                    self._take(parts)
            if self._wire is wire:
                self._after(self.session.on_event(event, time.monotonic()))

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
        message = self.session.bye()
        if self._wire is not None and message is not None:
            with contextlib.suppress(transport.TransportError):
                self._wire.send(message)

    def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()

    def fail_in_child(self) -> None:
        """After a fork, in the child: the parent's sockets and threads are not here; waits on copies fail."""
        self.closing = True
        self._asleep = self.resting = False
        if self._wire is not None:
            self._wire.abandon()
        for request in self._book.take_all():
            if request.sink is not None:
                with contextlib.suppress(RuntimeError):  # its lock is free: the parent's thread had just answered
                    request.sink.fail(errors.HostLost("this process was forked while the call was out"))


# ---------------------------------------------------------------- the process


channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def after_fork() -> None:
    """In the child; see `Channel.fail_in_child`."""
    dealer.forget_context()
    for channel in list(channels):
        channel.fail_in_child()


def is_over() -> bool:
    """Whether the interpreter is going down: a thread that is started then never runs."""
    return sys.is_finalizing()


def close_all() -> None:
    """At exit: no thread is left waiting, what was sent is written, and ZeroMQ's own clean-up finds no open socket."""
    mine = [channel for channel in list(channels) if channel.pid == os.getpid()]
    for channel in mine:
        channel.close()
    for channel in mine:
        channel.join()
    if not any(channel.is_alive() for channel in mine):
        dealer.end_context()
