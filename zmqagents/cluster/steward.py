"""Between the router thread and Redis, for a member of a cluster: the router never waits.

    router thread ── send, ask, note ──►  exchange thread  ◄──► Redis
                  ◄── events, by ``deliver`` ──┤
                                           beat thread     ◄──► Redis, by a connection of its own

*Beats* have a thread and a connection of their own: a pipeline of saves must not delay them. A beat that fails is tried
again after `RETRY_S`, with a number of its own.

*The exchange* keeps what is to be sent in order. It takes the first `MAX_COMMANDS` requests, or `MAX_BYTES` of them,
and carries them out in one round trip. If there is no answer, all of them stay where they are and are sent again, as
they were and before anything newer: each may have been carried out, and may still be. So an owner gets one answer to
each request, in the order of its requests, however often they were sent. One that finds Redis at its maxmemory is put
back to the front.

*Another server.* When a connection finds another server than before, or the same with another history, `ServerChanged`
is delivered before any answer of that server.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple

from ..errors import ConfigError, StoreError, StoreFull, StoreUnavailable
from ..store.cluster import Answer, Beat, Claim, ClusterRecords, Delete, Locate, Release, Request, Save
from .lease import BEATS, PATIENCE_S, boot_time

__all__ = [
    "Answered", "Barred", "Beaten", "Declared", "Event", "Identity", "MissedBeat", "Rejoined", "ServerChanged",
    "Steward", "Told", "ToldDead", "Trouble",
]  # fmt: skip

log = logging.getLogger(__name__)

MAX_COMMANDS = 64
MAX_BYTES = 1 << 20
RETRY_S = 0.2
CLOSE_S = 0.4  # beyond the grace of its host, which ends within `config.END_WAIT_S` then, and has more to end
LAST_S = 0.3  # for the obituary
BARRED_S = 5.0


class Identity(NamedTuple):
    """Who this member is. ``start``: a token of this start of the process, by which an obituary names it."""

    server_id: str
    start: str
    fingerprint: str
    lease_s: float


# ---------------------------------------------------------------- events


class Beaten(NamedTuple):
    """Redis has taken a beat. ``sent_at``, ``came_at``: `boot_time` before it was sent and when the answer came."""

    beat: Beat
    sent_at: float
    came_at: float


class MissedBeat(NamedTuple):
    """Redis has not answered a beat that was sent at ``sent_at``."""

    sent_at: float
    reason: str


class ToldDead(NamedTuple):
    """This incarnation is dead; no beat is sent until `Steward.rejoin`. Told again every `PATIENCE_S` until then."""

    incarnation: str


class Rejoined(NamedTuple):
    """The member is another incarnation from now on; its first beat follows."""

    incarnation: str


class Barred(NamedTuple):
    """Redis does not let the host join again, for this reason; it asks again after `BARRED_S`."""

    reason: str


class Answered(NamedTuple):
    """The answer to a request. Each request gets one, in the order in which they were sent."""

    request: Request
    answer: Answer


class Declared(NamedTuple):
    """Whether an incarnation that was asked for, with this beat number, is dead."""

    incarnation: str
    number: int | None
    dead: bool


class ServerChanged(NamedTuple):
    """Redis is another server, or has another history: it may have lost its last writes."""

    identity: str


class Trouble(NamedTuple):
    """Since ``since`` no request gets through, for this reason; "": they do again. ``full``: Redis is out of memory."""

    since: float
    reason: str
    full: bool = False


class Told(NamedTuple):
    """The answer to a question of `Steward.inquire`, or the `StoreError` instead of one."""

    token: Hashable
    answer: object


Event = Beaten | MissedBeat | ToldDead | Rejoined | Barred | Answered | Declared | ServerChanged | Trouble | Told


class _Question(NamedTuple):
    incarnation: str
    number: int | None
    watched: bool


class _Inquiry(NamedTuple):
    look: Callable[[ClusterRecords], object]
    token: Hashable


_Errand = _Question | _Inquiry | Callable[[], object]


# ---------------------------------------------------------------- the threads


class Steward:
    """The threads of one member; see the module's docstring.

    ``open_records`` opens a connection for one thread. ``deliver`` is called by both threads with the events in their
    order, and must not block. All other methods are for the router thread and return at once, but for `join` and
    `close`.
    """

    def __init__(
        self, open_records: Callable[[], ClusterRecords], identity: Identity, deliver: Callable[[Sequence[Event]], None]
    ) -> None:
        if not identity.start.isalnum():
            raise ValueError(f"a start has a token of letters and digits, not {identity.start!r}")
        self._who = identity
        self._deliver = deliver
        self._beats = open_records()
        self._records = open_records()
        self._incarnation = ""
        self._number = 0
        self._description: tuple[bytes, bool, int] = (b"", False, 0)
        self._beat_soon = threading.Event()
        self._may_rejoin = threading.Event()
        self._ending = threading.Event()
        self._ends_at = self._tries_until = math.inf  # when the exchange thread gives up, once it is ending
        self._inbox: queue.SimpleQueue[Request | _Errand | None] = queue.SimpleQueue()
        self._backlog: deque[Request] = deque()  # the exchange thread's own, as the next three
        self._errands: deque[_Errand] = deque()
        self._trouble = ""
        self._troubled_since = 0.0
        self._tells_end = False
        self._known = ""  # the server that the exchange thread has reached
        self.round_trip_s = 0.0  # of the latest exchange
        self.exchanges = 0
        self._threads = [
            threading.Thread(target=self._beat_on, name="zmqagents-beats", daemon=True),
            threading.Thread(target=self._exchange_on, name="zmqagents-cluster", daemon=True),
        ]

    def __repr__(self) -> str:
        return f"<Steward of {self._incarnation or self._who.server_id} [{len(self._backlog)} requests]>"

    # ------------------------------------------------------------ the router thread

    def join(self) -> str:
        """Ask Redis whether this host may join; the name of its incarnation. Before `start`.

        Raises `ConfigError` if it may not, or if Redis is set to lose records; `StoreUnavailable` without a Redis.
        """
        self._beats.check_settings()
        self._incarnation = self._new_incarnation()
        return self._incarnation

    def start(self) -> None:
        """Start the threads; the first beat is sent at once."""
        for thread in self._threads:
            thread.start()

    def describe(self, record: bytes, *, draining: bool = False, writes: int = 0) -> None:
        """What beats say of this member from now on. A change of ``draining`` is told at once.

        ``writes``: the form of records that its requests have.
        """
        at_once = draining != self._description[1]
        self._description = (record, draining, writes)
        if at_once:
            self._beat_soon.set()

    def beat_soon(self) -> None:
        """Beat now, for the answer tells which members there are."""
        self._beat_soon.set()

    def send(self, request: Request) -> None:
        """Carry out ``request``, behind those that were sent before; `Answered` tells the answer."""
        self._inbox.put(request)

    def ask(self, incarnation: str, number: int | None, *, watched: bool) -> None:
        """Declare an incarnation dead if it has been watched for a whole lease, else ask; `Declared` tells."""
        self._inbox.put(_Question(incarnation, number, watched))

    def inquire(self, look: Callable[[ClusterRecords], object], token: Hashable) -> None:
        """Look something up; `Told` has what ``look`` returns. Not tried again: without a Redis it fails."""
        self._inbox.put(_Inquiry(look, token))

    def note(self, kind: str, what: str) -> None:
        """Write into the cluster's log, if Redis takes it."""
        self._inbox.put(functools.partial(self._note, kind, what))

    def obituary(self, start: str) -> None:
        """The process that was started with this token has ended."""
        self._inbox.put(lambda: self._records.obituary(start))

    def rejoin(self) -> None:
        """After `ToldDead`: what could be saved has been sent. Join as a new incarnation."""
        self._may_rejoin.set()
        self._beat_soon.set()

    def close(self, left_s: float = 0.0, *, obituary: bool = False) -> None:
        """Send what is left, as far as Redis takes it within ``left_s`` or `CLOSE_S`; then end the threads.

        Without a Redis, or with a full one, it is `CLOSE_S`. ``obituary``: tell last that this process has ended; what
        it has not saved by then is refused as soon as others have its agents.
        """
        now = time.monotonic()
        self._tells_end = obituary
        self._tries_until, self._ends_at = now + CLOSE_S, now + max(CLOSE_S, left_s)
        self._ending.set()
        self._beat_soon.set()
        self._may_rejoin.set()
        self._inbox.put(None)
        beats, exchange = self._threads
        while exchange.is_alive() and (rest_s := self._ends_at + LAST_S - time.monotonic()) > 0:  # it may become less
            exchange.join(min(rest_s, 0.1))
        if beats.is_alive():
            beats.join(max(0.0, self._tries_until + LAST_S - time.monotonic()))
        for records in (self._beats, self._records):
            records.close()
        if self._backlog:
            names = ", ".join(sorted({request.name for request in self._backlog})[:20])
            log.warning("%s: %d requests could not be sent: %s", self._incarnation, len(self._backlog), names)

    # ------------------------------------------------------------ the beat thread

    def _new_incarnation(self) -> str:
        joined = self._beats.join(self._who.fingerprint)
        return f"{self._who.server_id}/{joined.now_us}/{secrets.token_hex(4)}"

    def _beat_on(self) -> None:
        known = self._beats.identity
        every_s = self._who.lease_s / BEATS
        while not self._ending.is_set():
            sent_at = boot_time()
            pause_s = min(RETRY_S, every_s)
            try:
                events = self._beat(sent_at)
                self._beats.look()
                if self._beats.identity != known:
                    known = self._beats.identity
                    events.insert(0, ServerChanged(known))
                self._deliver(events)
                pause_s = every_s - (boot_time() - sent_at)
                if isinstance(events[-1], ToldDead):
                    self._join_again()
                    continue
            except StoreError as exc:
                self._deliver([MissedBeat(sent_at, str(exc))])
            except Exception:  # a bug of this package: the lease ends, and says so
                log.exception("the beat thread of %s met an error", self._incarnation)
            self._beat_soon.wait(max(0.0, pause_s))
            self._beat_soon.clear()

    def _beat(self, sent_at: float) -> list[Event]:
        self._number += 1
        record, draining, writes = self._description
        beat = self._beats.beat(
            self._incarnation, self._number, lease_s=self._who.lease_s, draining=draining, start=self._who.start,
            record=record, writes=writes,
        )  # fmt: skip
        if not beat.alive:
            return [ToldDead(self._incarnation)]
        return [Beaten(beat, sent_at, boot_time())]

    def _join_again(self) -> None:
        """Wait until what can be saved is; then be another incarnation."""
        while not self._may_rejoin.wait(PATIENCE_S):
            self._deliver([ToldDead(self._incarnation)])
        self._may_rejoin.clear()
        barred = ""
        self._ending.wait(RETRY_S)  # the next one may be told the same at once, if the start of this process is dead
        while not self._ending.is_set():
            try:
                self._incarnation, self._number = self._new_incarnation(), 0
            except ConfigError as exc:
                if str(exc) != barred:
                    barred = str(exc)
                    log.error("%s: may not join again: %s", self._who.server_id, barred)
                self._deliver([Barred(barred)])
                self._ending.wait(BARRED_S)
            except StoreError:
                self._ending.wait(RETRY_S)
            else:
                self._deliver([Rejoined(self._incarnation)])
                return

    # ------------------------------------------------------------ the exchange thread

    def _exchange_on(self) -> None:
        while not self._ending.is_set() or (self._has_work and time.monotonic() < self._ends_at):
            self._gather()
            begun_at = boot_time()
            try:
                self._exchange()
                if self._errands:  # one at a time, for claims and saves wait meanwhile
                    self._run_errand(self._errands[0])
                    self._errands.popleft()
                if not self._backlog:  # else some may wait for room in Redis
                    self._tell_end_of_trouble()
            except StoreUnavailable as exc:
                self._ends_at = min(self._ends_at, self._tries_until)
                self._tell_trouble(begun_at, str(exc))
                self._refuse_inquiries(exc)
                time.sleep(RETRY_S)
            except Exception:  # a bug of this package
                log.exception("the exchange thread of %s met an error", self._incarnation)
                time.sleep(RETRY_S)
        if self._tells_end and not self._trouble:
            with contextlib.suppress(StoreError):
                self._records.obituary(self._who.start)

    @property
    def _has_work(self) -> bool:
        """Also what came between the last look into the inbox and the word that the end has begun."""
        return bool(self._backlog or self._errands) or not self._inbox.empty()

    def _gather(self) -> None:
        """Take what has come; wait for it if there is nothing to do."""
        wait = not (self._backlog or self._errands or self._ending.is_set())
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._inbox.get() if wait else self._inbox.get_nowait()
                wait = False
                if item is None:
                    continue
                if isinstance(item, (Claim, Save, Release, Delete, Locate)):
                    self._backlog.append(item)
                else:
                    self._errands.append(item)

    def _run_errand(self, errand: _Errand) -> None:
        if isinstance(errand, _Inquiry):
            answer: object
            try:
                answer = errand.look(self._records)
            except StoreError as exc:
                answer = exc
            self._tell([Told(errand.token, answer)])
        elif isinstance(errand, _Question):
            incarnation, number, watched = errand
            dead = self._records.declare(incarnation, number, watched=watched, lease_s=self._who.lease_s)
            self._tell([Declared(incarnation, number, dead)])
        else:
            errand()

    def _note(self, kind: str, what: str) -> None:
        with contextlib.suppress(StoreError):
            self._records.note(kind, what)

    def _refuse_inquiries(self, error: StoreError) -> None:
        refused = [errand.token for errand in self._errands if isinstance(errand, _Inquiry)]
        self._errands = deque(errand for errand in self._errands if not isinstance(errand, _Inquiry))
        if refused:
            self._deliver([Told(token, error) for token in refused])

    def _exchange(self) -> None:
        batch = _first(self._backlog)
        if not batch:
            return
        begun_at = boot_time()
        answers = self._records.exchange(batch)
        self.round_trip_s = boot_time() - begun_at
        self.exchanges += 1
        for _ in batch:
            self._backlog.popleft()
        pairs = list(zip(batch, answers, strict=True))
        full = [request for request, answer in pairs if isinstance(answer, StoreFull)]
        self._backlog.extendleft(reversed(full))
        self._tell([Answered(request, answer) for request, answer in pairs if not isinstance(answer, StoreFull)])
        if full:
            self._ends_at = min(self._ends_at, self._tries_until)
            self._tell_trouble(
                begun_at, str(next(answer for _, answer in pairs if isinstance(answer, StoreFull))), True
            )
            time.sleep(RETRY_S)
        else:
            self._tell_end_of_trouble()

    def _tell(self, events: Sequence[Event]) -> None:
        """Deliver ``events``, which Redis has answered; before them, that it is another server."""
        identity = self._records.identity
        if identity != self._known:
            events = [ServerChanged(identity), *events] if self._known else events
            self._known = identity
        self._deliver(events)

    def _tell_trouble(self, since: float, reason: str, full: bool = False) -> None:
        if not self._trouble:
            self._troubled_since = since
            log.warning("%s: %s", self._incarnation, reason)
        self._trouble = reason
        self._deliver([Trouble(self._troubled_since, reason, full)])

    def _tell_end_of_trouble(self) -> None:
        if self._trouble:
            self._trouble = ""
            log.info("%s: Redis answers again", self._incarnation)
            self._tell([Trouble(self._troubled_since, "")])


def _first(backlog: Iterable[Request]) -> list[Request]:
    """The first of ``backlog``, at least one, until they are too many or too long."""
    batch: list[Request] = []
    size = 0
    for request in backlog:
        save = request.last if isinstance(request, Release) else request
        if isinstance(save, Save):
            size += save.size
        elif isinstance(request, Claim):
            size += len(request.arguments) + len(request.options)
        if batch and (len(batch) >= MAX_COMMANDS or size > MAX_BYTES):
            break
        batch.append(request)
    return batch
