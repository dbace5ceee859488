"""Between the router thread and a shared store that may keep its callers waiting: Redis.

    router thread ── begin, keep, look_up ──►  store thread  ◄──► Redis
                  ◄── answers, by `Broker.post` ──┘   ▲
                                                      └── listener thread: what was settled elsewhere

The router thread never waits: it leaves what is to be written in a few dicts and its questions in a queue. The
store thread takes all that has gathered and settles it in one exchange, so a busy host pays a few microseconds for
each result; a call that begins and ends between two exchanges is written once. A result is pushed to its caller
without regard to all this; `keep` only sees to it that it can be found again.

*Waiting.* A question about a task that another host has not finished is parked. The store tells the listener when it
is settled. Because a word can be lost, all that is parked is asked for again after every (re)subscription, when a host
has died and when Redis was away; and each of them every `LOOK_AGAIN_S`.

*Doubt.* That a task is unknown is not believed at once: word of it may be on its way. The patience of a question is
for a quick store; a slow one gets the time of `EXCHANGES` more. It begins anew where a task was pending before, and
when Redis is back: Redis may have lost what it was told last, and the host of the task tells it again at its next beat.

*Trouble.* When Redis does not answer, questions get `StoreUnavailable` at once, until a beat (twice a second) gets
through. Results wait meanwhile, `MAX_UNWRITTEN_BYTES` of them: beyond, the oldest are given up and are EXPIRED to
later readers. When Redis is at its maxmemory the same holds, and the host refuses new calls that would leave a
result there (`StoreFull`).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..config import BrokerConfig
from ..errors import StoreFull, StoreUnavailable, ZmqAgentsError
from ..wire.messages import Reply, error_reply, reply_to_bytes
from . import Found, SharedStore, State
from .base import ENTRY_OVERHEAD_BYTES, Mark, Settlement
from .found import reply_for

__all__ = ["Question", "WriteBehind"]

log = logging.getLogger(__name__)

BEAT_S = 0.5
LOOK_AGAIN_S = 5.0
DOUBT_S = 0.02  # when an unknown task is looked for again; then after twice that time, and so on
EXCHANGES = 3  # until one of another host is over, and the next one has written; and a reserve
SLOW_S = 5.0  # how long a long exchange counts
MAX_UNWRITTEN_BYTES = 64 * 1024 * 1024
MAX_EXCHANGE = 1024  # writes, and questions, of one exchange
MAX_EXCHANGE_BYTES = 8 * 1024 * 1024
GATHER_S = 0.001  # so that a short call is begun and put at once, and more calls in one exchange
BACK_OFF_S = (0.05, 1.0)  # of the listener: first, last
LISTEN_S = 1.0
CLOSE_S = 1.5  # a host ends within `config.END_WAIT_S`
CLOSE_OF_MEMBER_S = 0.7  # its `cluster.steward` has ended before


class Question:
    """What became of a task?

    ``answer(state, reply)`` is called once, by the router or the store thread, and must not block: PENDING and None
    when the time is over; None and an error when the store cannot say. ``until`` (monotonic seconds): how long to wait
    for a task that is pending; None: as long as it is. ``patience_s``: how long to disbelieve that a task is unknown,
    because word of it may be on its way; 0: not at all. ``is_over`` tells whether the answer is needed no more.
    """

    __slots__ = ("alarm", "answer", "asked_at", "doubt_at", "is_over", "patience_s", "state", "task_id", "until")

    def __init__(
        self, task_id: str, answer: Callable[[State | None, Reply | None], None], *,
        until: float | None, patience_s: float, is_over: Callable[[], bool],
    ) -> None:  # fmt: skip
        self.task_id = task_id
        self.answer = answer
        self.until = until
        self.asked_at = self.doubt_at = time.monotonic()  # from when on its patience counts
        self.patience_s = patience_s
        self.is_over = is_over
        self.alarm = 0.0  # the store thread's: when it looks after it, and what it found when it last did
        self.state = State.UNKNOWN

    def waits_until(self, state: State, slowness_s: float) -> float:
        """How long it goes on waiting while the task is in ``state``; ``slowness_s``: that of the store."""
        until = math.inf if self.until is None else self.until
        if state is State.PENDING:
            return until
        if state is State.UNKNOWN and self.patience_s:
            return min(until, self.doubt_at + self.patience_s + slowness_s)
        return 0.0


class WriteBehind:
    """The results of one host in a shared store; see the module's docstring.

    All but `close` is for the router thread. The owner of ``store`` is ``server id/epoch``. ``on_full`` is called by
    the store thread when the store takes no more results (with the reason), and when it does again (with "").
    """

    def __init__(self, store: SharedStore, config: BrokerConfig, on_full: Callable[[str], None]) -> None:
        self._store = store
        self._config = config
        self._close_s = CLOSE_OF_MEMBER_S if config.cluster else CLOSE_S
        self._on_full = on_full
        self._lock = threading.Lock()  # guards the next six; held for moments
        self._open: dict[str, None] = {}  # begun here and not finished
        self._begins: dict[str, None] = {}  # those of them that the store does not know yet
        self._results: dict[str, Reply] = {}  # to be put into the store, oldest first
        self._marks: dict[str, Mark] = {}  # what was given up, oldest first
        self._unwritten_bytes = 0  # in _results
        self._given_up = 0
        # A text: the id of a task settled elsewhere, "" if it may be any. None: there is something to write.
        self._inbox: queue.SimpleQueue[Question | str | None] = queue.SimpleQueue()
        self._asleep = False
        self._hosts: frozenset[str] = frozenset()  # server ids of those that share the store
        self._trouble = ""  # why the store cannot be reached
        self._full = ""
        self._figures = self._measured()
        self._ending = threading.Event()
        # The store thread's own.
        self._parked: dict[str, list[Question]] = {}
        self._alarms: list[tuple[float, int, Question]] = []  # heap: when one of `_parked` is to be looked after
        self._serial = itertools.count()
        self._dead: frozenset[str] = frozenset()
        self._next_beat = self._next_look = self._next_write = self._back_at = 0.0
        self._longest_s = self._longest_at = 0.0  # the longest exchange of the last `SLOW_S`, and when it ended
        self._threads = [
            threading.Thread(target=self._run, name="zmqagents-store", daemon=True),
            threading.Thread(target=self._listen, name="zmqagents-store-listener", daemon=True),
        ]

    def start(self) -> None:
        """Start the two threads. Called once, in the process that serves."""
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ the router thread

    def begin(self, begun: tuple[str]) -> None:
        """Note that the call with this task id is accepted, and that its result will be kept."""
        (task_id,) = begun
        with self._lock:
            self._open[task_id] = self._begins[task_id] = None
        self._wake()

    def keep(self, ended: tuple[str, Reply]) -> None:
        """Keep the reply of the call with this task id, which has ended."""
        task_id, reply = ended
        with self._lock:
            self._open.pop(task_id, None)
            self._begins.pop(task_id, None)
            if task_id not in self._results:
                self._results[task_id] = reply
                self._unwritten_bytes += _charge_bytes(reply)
            while self._unwritten_bytes > MAX_UNWRITTEN_BYTES and len(self._results) > 1:
                self._give_up_oldest()
        self._wake()

    def _give_up_oldest(self) -> None:
        task_id = next(iter(self._results))
        self._forget_result(task_id)
        self._given_up += 1
        if len(self._marks) >= self._store.limits.max_tombstones:
            del self._marks[next(iter(self._marks))]
        self._marks[task_id] = Mark.EXPIRED

    def _forget_result(self, task_id: str) -> None:
        reply = self._results.pop(task_id, None)
        if reply is not None:
            self._unwritten_bytes -= _charge_bytes(reply)

    def look_up(self, question: Question) -> None:
        """Answer ``question`` now or later."""
        reply = self._results.get(question.task_id)
        if reply is not None:
            question.answer(State.DONE, reply)
        elif self._trouble:
            question.answer(None, self._unavailable(question.task_id))
        else:
            self._inbox.put(question)

    def shares_with(self, server_id: str) -> bool:
        """Whether that host has been seen in the same store lately."""
        return server_id in self._hosts

    def figures(self) -> dict[str, Any]:
        """For `status`, as of the latest beat."""
        state = "down" if self._trouble else "full" if self._full else "up"
        return {
            **self._figures, "state": state, "trouble": self._trouble or self._full, "url": self._store.shown_url,
            "namespace": self._config.redis_namespace, "hosts": sorted(self._hosts), "waiting": len(self._parked),
            "unwritten": len(self._results), "unwritten_bytes": self._unwritten_bytes, "given_up": self._given_up,
        }  # fmt: skip

    def __repr__(self) -> str:
        """Counts what Redis does not have yet; safe in any thread."""
        begun, ended, asked = len(self._begins), len(self._results), len(self._parked)
        return f"<WriteBehind {self._config.server_id}: {begun} begun, {ended} ended, {asked} questions>"

    def close(self) -> None:
        """Write what is left, as far as the store takes it within a second or so; then close the store."""
        self._ending.set()
        self._wake()
        end = time.monotonic() + self._close_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        self._store.close()  # what still waits for it is cut off
        if self._results:
            log.warning("%s: %d results could not be written", self._config.server_id, len(self._results))

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._inbox.put(None)

    # ------------------------------------------------------------ the store thread

    def _run(self) -> None:
        end = None
        while end is None or (self._is_to_write() and time.monotonic() < end):
            words: list[Question | str] = []
            try:
                words = self._gather()
                self._exchange(words)
            except StoreUnavailable as exc:
                self._on_trouble(str(exc), words)
            except Exception:  # a bug of this package: the others are owed their answers
                log.exception("the store thread of %s met an error", self._config.server_id)
                self._on_trouble("an error of the store thread", words)
            if end is None and self._ending.is_set():
                end = time.monotonic() + self._close_s / 2
        with contextlib.suppress(StoreUnavailable, StoreFull):
            if not self._trouble:
                self._store.retire()
                self._store.nudge()

    def _gather(self) -> list[Question | str]:
        """What has come, after a pause until there is something to do."""
        self._asleep = True  # before the look at what there is to write: what is added from now on wakes this thread
        pause = 0.0
        if not (self._is_to_write() or self._ending.is_set()):
            pause = max(0.0, self._due() - time.monotonic())
        words: list[Question | str] = []
        try:
            word = self._inbox.get(timeout=pause) if pause else self._inbox.get_nowait()
            if word is None and not self._ending.is_set():  # only to write: more comes in the next moment
                time.sleep(GATHER_S)
            while True:
                if word is not None:
                    words.append(word)
                if len(words) >= MAX_EXCHANGE:
                    break
                word = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._asleep = False
        return words

    def _due(self) -> float:
        due = min(self._next_beat, self._next_look)
        return min(due, self._alarms[0][0]) if self._alarms else due

    def _is_to_write(self) -> bool:
        if self._trouble or time.monotonic() < self._next_write:
            return False
        return bool(self._begins or self._results or self._marks)

    def _exchange(self, words: Sequence[Question | str]) -> None:
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._beat(now)
        if self._trouble:
            self._refuse([*words, *self._take_due(now)])
            return
        if self._is_to_write():
            self._write(now)
        self._look(words, now)
        end = time.monotonic()
        if end - now >= self._longest_s or end - self._longest_at > SLOW_S:
            self._longest_s, self._longest_at = end - now, end

    def _beat(self, now: float) -> None:
        living, dead, known = self._store.beat()
        self._hosts = frozenset(owner.rpartition("/")[0] for owner in living | dead)
        if self._trouble:
            log.info("%s: the store is back", self._config.server_id)
        if self._trouble or not known:
            self._trouble = ""
            self._next_look = self._back_at = now
            with self._lock:  # it may have come back without what it was told last
                self._begins |= self._open
        if dead - self._dead:
            self._next_look = now
        self._dead = dead
        self._figures = self._measured()

    def _measured(self) -> dict[str, Any]:
        stats = self._store.stats()
        return {**stats._asdict(), "round_trip_ms": round(self._store.round_trip_s * 1000, 3)}

    def _on_trouble(self, reason: str, words: Sequence[Question | str]) -> None:
        if not self._trouble:
            log.warning("%s: %s", self._config.server_id, reason)
        self._trouble = reason
        self._next_beat = time.monotonic() + BEAT_S
        self._refuse(words)

    def _refuse(self, words: Sequence[Question | str]) -> None:
        for word in words:
            if isinstance(word, Question):
                word.answer(None, self._unavailable(word.task_id))

    def _unavailable(self, task_id: str) -> Reply:
        return error_reply(StoreUnavailable(self._trouble), call_id=task_id)

    # ------------------------------------------------------------ writing

    def _write(self, now: float) -> None:
        with self._lock:
            begins = list(itertools.islice(self._begins, MAX_EXCHANGE))
            marks = list(itertools.islice(self._marks.items(), MAX_EXCHANGE))
            results = list(_first(self._results.items(), MAX_EXCHANGE, MAX_EXCHANGE_BYTES))
        items: list[tuple[str, Settlement]] = [(task_id, None) for task_id in begins]
        items += marks
        items += [(task_id, reply_to_bytes(reply)) for task_id, reply in results]
        failures = self._store.settle(items)
        full = ""
        for task_id, error in failures.items():
            if isinstance(error, StoreFull):
                full = str(error)
            else:  # its caller has the result all the same
                log.warning("%s: the result of %s is not kept: %s", self._config.server_id, task_id, error)
        with self._lock:
            for task_id, _ in items:
                if not isinstance(failures.get(task_id), StoreFull):
                    self._begins.pop(task_id, None)
                    self._marks.pop(task_id, None)
            for task_id, reply in results:
                if not isinstance(failures.get(task_id), StoreFull) and self._results.get(task_id) is reply:
                    self._forget_result(task_id)
        if full:
            self._next_write = now + BEAT_S
        if full != self._full:
            log.warning("%s: %s", self._config.server_id, full or "the store takes results again")
            self._full = full
            self._on_full(full)

    # ------------------------------------------------------------ questions

    def _look(self, words: Sequence[Question | str], now: float) -> None:
        fresh: dict[str, list[Question]] = {}
        told: dict[str, None] = {}
        for word in words:
            if isinstance(word, Question):
                fresh.setdefault(word.task_id, []).append(word)
            elif not word:
                self._next_look = now
            elif word in self._parked:
                told[word] = None
        for question in self._take_due(now):
            if question.until is not None and question.until <= now and question.state is State.PENDING:
                self._leave(question)
                question.answer(State.PENDING, None)
            else:
                told[question.task_id] = None
        self._ask(list(told | fresh), fresh, now)
        if now >= self._next_look:
            self._next_look = math.inf
            parked = list(self._parked)
            for start in range(0, len(parked), MAX_EXCHANGE):
                self._ask(parked[start : start + MAX_EXCHANGE], {}, now)

    def _take_due(self, now: float) -> Iterator[Question]:
        while self._alarms and self._alarms[0][0] <= now:
            _, _, question = heapq.heappop(self._alarms)
            if question.is_over():
                self._leave(question)
            elif question.task_id in self._parked:
                yield question

    def _leave(self, question: Question) -> None:
        others = [other for other in self._parked.pop(question.task_id, ()) if other is not question]
        if others:
            self._parked[question.task_id] = others

    def _ask(self, task_ids: Sequence[str], fresh: Mapping[str, list[Question]], now: float) -> None:
        if not task_ids:
            return
        answers = self._store.watch(task_ids)
        slowness_s = EXCHANGES * max(self._longest_s, time.monotonic() - now)
        for task_id, found in zip(task_ids, answers, strict=True):
            left = []
            for question in self._parked.pop(task_id, []) + fresh.get(task_id, []):
                if question.is_over():
                    continue
                if found.state is State.UNKNOWN:
                    self._doubt(question, now)
                until = question.waits_until(found.state, slowness_s)
                if until <= now:
                    self._tell(question, found)
                    continue
                left.append(question)
                question.state = found.state
                if question.alarm <= now:
                    # The store tells of a pending task; an unknown one must be looked for.
                    pause_s = LOOK_AGAIN_S if found.state is State.PENDING else max(DOUBT_S, now - question.asked_at)
                    question.alarm = min(until, now + pause_s)
                    heapq.heappush(self._alarms, (question.alarm, next(self._serial), question))
            if left:
                self._parked[task_id] = left

    def _doubt(self, question: Question, now: float) -> None:
        if question.state is State.PENDING:
            question.doubt_at = now + BEAT_S
        elif question.doubt_at <= self._back_at:
            question.doubt_at = self._back_at + BEAT_S

    def _tell(self, question: Question, found: Found) -> None:
        if found.state is State.PENDING:
            question.answer(State.PENDING, None)
            return
        try:
            reply = reply_for(found, question.task_id, self._config)
        except ZmqAgentsError as exc:  # something else has written there
            reply = error_reply(exc, call_id=question.task_id)
        question.answer(found.state, reply)

    # ------------------------------------------------------------ the listener thread

    def _listen(self) -> None:
        listener = self._store.listen()
        first, last = BACK_OFF_S
        pause = first
        while not self._ending.is_set():
            try:
                word = listener.get(LISTEN_S)
                pause = first
                if word is not None:
                    self._inbox.put(word)
            except StoreUnavailable:
                self._ending.wait(pause)
                pause = min(last, pause * 2)
            except (AttributeError, TypeError, ValueError):
                if not self._ending.is_set():  # else redis-py has met a connection that `close` has closed meanwhile
                    raise
        listener.close()


def _charge_bytes(reply: Reply) -> int:
    return sum(map(len, reply.body)) + ENTRY_OVERHEAD_BYTES


def _first(items: Iterable[tuple[str, Reply]], most: int, most_bytes: int) -> Iterator[tuple[str, Reply]]:
    """The first of ``items``, at least one, until they are too many or too long."""
    size = 0
    for number, (task_id, reply) in enumerate(items):
        size += _charge_bytes(reply)
        if number and (number >= most or size > most_bytes):
            return
        yield task_id, reply
