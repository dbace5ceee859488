"""Where the results of this host's calls are kept and looked up: one interface, `Results`, with two bodies.

    LocalResults     a store in this process, which answers at once; other hosts are asked for their results over a
                     connection
    SharedResults    Redis, behind a thread of its own (`WriteBehind`); tasks of other hosts may be there as well, and a
                     host that does not share the store is asked as above

Both carry out the dispatcher's effects `Begin`, `Keep` and `Lookup` and post what they find. All methods belong to the
router thread, but `entries`, which may wait.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from .. import errors
from ..codec import TaskRef
from ..config import BrokerConfig
from ..errors import ZmqAgentsError
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Answer, Begin, Effect, Keep, Lookup
from ..scheduler.records import ParkedFetch, Ticket
from ..store import Entry, FutureStore, SharedStore, State
from ..store.found import reply_for
from ..wire.link import Sink
from ..wire.messages import Reply, error_reply, reply_to_bytes
from .events import Post

if TYPE_CHECKING:
    from ..store.write_behind import Question

__all__ = ["FarResults", "LocalResults", "Results", "SharedResults"]

log = logging.getLogger(__name__)

FETCH_PATIENCE_S = 0.3  # a task that is unknown to a shared store may just not have got there
DEP_PATIENCE_S = 1.0  # that of an argument is even likely to be on its way
MAX_FAR_HOSTS = 64  # asked for results at the same time: each takes a connection and a thread


class Results(Protocol):
    """The results of one host; see the module's docstring."""

    def start(self) -> None:
        """Start the threads that the store needs. Raises RuntimeError if that is not possible."""

    def begin(self, effect: Begin, /) -> None:
        """Note that a call is accepted whose result will be kept."""

    def keep(self, effect: Keep, /) -> None:
        """Keep the result of a call that has ended."""

    def look_up(self, effect: Lookup) -> list[Effect]:
        """Find a result, now or later: for an argument, a fetch or a peer, see `Lookup`."""

    def probe(self, name: str, answer: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        """Look up ``name``, which is no task, to see whether the store answers: ``answer`` gets "", or what is wrong.

        It may be called at once, or by another thread; not if nobody waits for it any more.
        """

    def figures(self) -> dict[str, Any]:
        """The state of the store, for `status`."""

    def entries(self, most: int) -> list[Entry]:
        """The latest results that are kept, the youngest first. May wait; any thread."""

    def close(self) -> None:
        """Write what is left, and close the store."""


class FarResults:
    """Results that other hosts have, as arguments of parked calls; ``fetch`` asks for one over a connection."""

    def __init__(
        self, server_id: str, dispatcher: Dispatcher, post: Post, fetch: Callable[[TaskRef, Sink], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._server_id = server_id
        self._dispatcher = dispatcher
        self._post = post
        self._fetch = fetch
        self._clock = clock
        self._asked: Counter[str] = Counter()  # addresses of other hosts, and how many results each is asked for

    def __repr__(self) -> str:
        return f"<FarResults [{self._asked.total()} asked of {len(self._asked)} hosts]>"

    def ask(self, ticket: Ticket, task_id: str) -> None:
        """Ask the host of an argument for it. The caller of ``ticket`` has chosen the address."""
        ref = TaskRef(task_id, *(ticket.far or {})[task_id])
        asked = self._asked
        sink = _FarSink(ref, lambda reply: self._post(self._on_answer, ticket, ref, reply))
        asked[ref.address] += 1
        if len(asked) > MAX_FAR_HOSTS:
            sink.fail(errors.HostBusy(f"{self._server_id} waits for results of {MAX_FAR_HOSTS} other hosts"))
            return
        try:
            self._fetch(ref, sink)
        except ZmqAgentsError as exc:  # the address is malformed
            sink.fail(exc)

    def _on_answer(self, ticket: Ticket, ref: TaskRef, reply: Reply) -> list[Effect]:
        self._asked[ref.address] -= 1
        if self._asked[ref.address] <= 0:
            del self._asked[ref.address]
        return self._dispatcher.on_dep(ticket, ref.task_id, reply, self._clock())


class _FarSink:
    """Takes the one result that another host is asked for."""

    def __init__(self, ref: TaskRef, take: Callable[[Reply], None]) -> None:
        self._ref = ref
        self._take = take

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None:  # None: the time limit of the fetch is over, and this fetch has none
            self._take(reply)

    def fail(self, error: Exception) -> None:
        known = error if isinstance(error, ZmqAgentsError) else errors.HostLost(str(error))
        self._take(error_reply(known, call_id=self._ref.task_id))

    def chunk(self, item: Reply) -> None:
        """Never called: a result is no stream."""


class LocalResults:
    """Results in a store that answers at once."""

    def __init__(
        self, store: FutureStore, config: BrokerConfig, dispatcher: Dispatcher, far: FarResults,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.entries = store.entries
        self.close = store.close
        self._store = store
        self._config = config
        self._dispatcher = dispatcher
        self._far = far
        self._clock = clock

    def start(self) -> None:
        """Do nothing: there is no thread."""

    def begin(self, effect: Begin) -> None:
        """Do nothing: a call that is not finished is known to the dispatcher alone."""

    def keep(self, effect: Keep) -> None:
        try:
            self._store.put(effect.task_id, reply_to_bytes(effect.reply))
        except ZmqAgentsError as exc:  # its caller has the result all the same
            log.warning("the result of %s is not kept: %s", effect.task_id, exc)

    def look_up(self, effect: Lookup) -> list[Effect]:
        ticket, task_id = effect.ticket, effect.task_id
        if ticket is not None and task_id in (ticket.far or ()):
            self._far.ask(ticket, task_id)
            return []
        try:
            found = self._store.get(task_id)
            if found.state is State.UNKNOWN and ticket is None:
                effects = self._dispatcher.on_unknown(effect, self._clock())
                if effects is not None:
                    return effects
            reply = reply_for(found, task_id, self._config)
        except ZmqAgentsError as exc:
            reply = error_reply(exc, call_id=task_id)
        if ticket is None:
            return [Answer(effect.peer, effect.call_id, reply)]
        return self._dispatcher.on_dep(ticket, task_id, reply, self._clock())

    def probe(self, name: str, answer: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        try:
            self._store.get(name)
        except ZmqAgentsError as exc:
            answer(str(exc))
        else:
            answer("")

    def figures(self) -> dict[str, Any]:
        return self._store.stats()._asdict()


class SharedResults:
    """Results in a store that other hosts share, and that may keep its callers waiting."""

    def __init__(
        self, store: SharedStore, config: BrokerConfig, dispatcher: Dispatcher, far: FarResults,
        clock: Callable[[], float], post: Post,
    ) -> None:  # fmt: skip
        from ..store.write_behind import Question, WriteBehind  # here: 33 kB that a host without Redis need not load

        self._question = Question
        self._writer = writer = WriteBehind(store, config, lambda full: post(dispatcher.admission.on_store_full, full))
        self.begin: Callable[[Begin], None] = writer.begin  # without a step in between: each call of a client pays
        self.keep: Callable[[Keep], None] = writer.keep
        self.start, self.figures, self.close = writer.start, writer.figures, writer.close
        self.entries = store.entries
        self._dispatcher = dispatcher
        self._far = far
        self._clock = clock
        self._post = post

    def look_up(self, effect: Lookup) -> list[Effect]:
        ticket = effect.ticket
        question = self._about_fetch(effect) if ticket is None else self._about_argument(ticket, effect.task_id)
        self._writer.look_up(question)
        return []

    def probe(self, name: str, answer: Callable[[str], None], is_over: Callable[[], bool]) -> None:
        def told(state: State | None, _: Reply | None) -> None:
            figures = self.figures()
            answer(figures["trouble"] or ("" if state is not None else "it does not answer"))

        self._writer.look_up(self._question(name, told, is_over=is_over, until=None, patience_s=0.0))

    def _about_fetch(self, effect: Lookup) -> Question:
        fetch = effect.fetch
        assert fetch is not None

        def answer(state: State | None, reply: Reply | None) -> None:
            self._post(self._on_fetched, effect, fetch, state, reply)

        until, patience_s = time.monotonic() + effect.timeout_s, min(effect.timeout_s, FETCH_PATIENCE_S)
        return self._question(effect.task_id, answer, is_over=lambda: fetch.settled, until=until, patience_s=patience_s)

    def _about_argument(self, ticket: Ticket, task_id: str) -> Question:
        far = ticket.far is not None and task_id in ticket.far
        shared = ticket.far is None or not far or self._writer.shares_with(ticket.far[task_id][0])

        def answer(state: State | None, reply: Reply | None) -> None:
            if far and state in (None, State.UNKNOWN):  # its own host may not share the store
                self._post(self._on_not_here, ticket, task_id)
            elif reply is not None:
                self._post(self._on_argument, ticket, task_id, reply)

        patience_s = DEP_PATIENCE_S if shared else 0.0
        return self._question(task_id, answer, is_over=lambda: ticket.settled, until=None, patience_s=patience_s)

    def _on_fetched(self, effect: Lookup, fetch: ParkedFetch, state: State | None, reply: Reply | None) -> list[Effect]:
        if state is State.UNKNOWN and not fetch.settled:
            effects = self._dispatcher.on_unknown(effect, self._clock())
            if effects is not None:
                return effects
        return self._dispatcher.on_found(fetch, reply)

    def _on_argument(self, ticket: Ticket, task_id: str, reply: Reply) -> list[Effect]:
        return self._dispatcher.on_dep(ticket, task_id, reply, self._clock())

    def _on_not_here(self, ticket: Ticket, task_id: str) -> list[Effect]:
        if not ticket.settled:
            self._far.ask(ticket, task_id)
        return []
