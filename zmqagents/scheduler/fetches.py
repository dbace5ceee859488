"""Fetches that wait: a client asks for the result of a call and would wait for it (a long poll).

A fetch of a call that is open on this host is parked until that call is answered. Where the store is shared with other
hosts, a fetch of any other task is parked until the store answers. Both kinds end in the reply, or in `Pending` when
the time of the fetch is over: then the client asks again. A fetch of a task that neither is open nor can be found by
other hosts is a look into the store.

If that does not know the task, its call may be on its way: the task id may have got here, by another connection, ahead
of the call. A fetch of such an ``expected`` call is parked for `EARLY_S`, and is a fetch like others when the call has
come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import errors
from ..config import BrokerConfig
from ..wire.messages import Code, Flag, Reply, error_reply
from .effects import Answer, Effect, Lookup, Pending
from .records import ParkedFetch, Peer, Ticket, Timed
from .shares import Share
from .timers import Timers

__all__ = ["EARLY_S", "Fetches"]

STORE_PATIENCE_S = 3.0  # the store thread answers before, even if the store itself does not
EARLY_S = 2.0  # how long a call may come later than the question for its result


class Fetches:
    """The parked fetches of one host. ``tasks``: its open calls by task id; ``shares``: its store is shared.

    ``expects`` tells whether the call of a task id may be on its way; ``early`` has the fetches of such calls by task
    id. `on_fetch`, `on_found` and `on_unknown` are events; the dispatcher calls the other methods.
    """

    def __init__(
        self, config: BrokerConfig, tasks: Mapping[str, Ticket], timers: Timers[Timed],
        share: Share, early: Share, *, shares: bool, expects: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._config = config
        self._tasks = tasks
        self._timers = timers
        self._share = share  # of fetches that wait for the store
        self._asking = 0  # how many these are
        self._early_share = early  # of fetches that wait for a call to come
        self._waiting_early = 0  # how many these are
        self._expects = expects
        self.early: dict[str, dict[ParkedFetch, None]] = {}
        self._shares = shares
        self._closed = False

    def on_fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float, now: float) -> list[Effect]:
        """A client asks for the result of ``task_id`` and would wait ``timeout_s`` seconds for it."""
        refusal = self._refusal(peer)
        if refusal is not None:
            return [Answer(peer, call_id, error_reply(refusal, call_id=task_id))]
        ticket = self._tasks.get(task_id)
        if ticket is None and not self._shares:
            return [Lookup(peer, call_id, task_id, timeout_s=timeout_s)]
        if ticket is not None and ticket.flags & Flag.STREAM:
            return [Answer(peer, call_id, _no_reader(task_id))]
        if ticket is not None and timeout_s <= 0:
            return [Pending(peer, call_id)]
        if call_id in peer.fetches:
            self.forget(peer.fetches[call_id])
        if ticket is None:
            account = peer.account
            if self._asking >= self._share.free and self._share.refuses(account.fetches, self._asking):
                return [_busy(peer, call_id, task_id, self._share.reason(account.fetches, self._asking))]
            account.fetches += 1
            self._asking += 1
        fetch = ParkedFetch(peer, call_id)
        peer.fetches[call_id] = fetch
        patience_s = min(timeout_s, self._config.max_timeout_seconds)
        if ticket is None:
            patience_s *= 1 - call_id % 64 / 256  # thousands that came together are not renewed together
            self._timers.add(now + patience_s + STORE_PATIENCE_S, fetch)
            return [Lookup(peer, call_id, task_id, None, fetch, patience_s)]
        fetch.meet(ticket)
        self._timers.add(now + patience_s, fetch)
        return []

    def join(self, peer: Peer, call_id: int, ticket: Ticket) -> None:
        """A call came by another way, too: it is answered as ``ticket`` is."""
        fetch = peer.fetches[call_id] = ParkedFetch(peer, call_id)
        fetch.meet(ticket)

    def on_found(self, fetch: ParkedFetch, reply: Reply | None) -> list[Effect]:
        """The shared store answers a fetch; None: the call is not finished."""
        if fetch.settled:
            return []
        self.forget(fetch)
        if reply is None:
            return [Pending(fetch.peer, fetch.call_id)]
        return [Answer(fetch.peer, fetch.call_id, reply)]

    def on_unknown(self, question: Lookup, now: float) -> list[Effect] | None:
        """The store knows nothing of a task. None: the asker is to be told so, for the call is not expected either."""
        peer, call_id, task_id, timeout_s = question.peer, question.call_id, question.task_id, question.timeout_s
        if task_id in self._tasks:  # it has come meanwhile
            return self.on_fetch(peer, call_id, task_id, timeout_s, now)
        if timeout_s <= 0 or self._closed or not self._expects(task_id):
            return None
        if call_id in peer.fetches:
            self.forget(peer.fetches[call_id])
        share, held, taken = self._early_share, peer.account.early, self._waiting_early
        if taken >= share.free and share.refuses(held, taken):
            return [_busy(peer, call_id, task_id, share.reason(held, taken))]
        self._count_early(peer, 1)
        fetch = peer.fetches[call_id] = ParkedFetch(peer, call_id, task_id)
        self.early.setdefault(task_id, {})[fetch] = None
        patience_s = EARLY_S * (1 - call_id % 64 / 256)  # thousands that came together are not over together
        self._timers.add(now + min(timeout_s, self._config.max_timeout_seconds, patience_s), fetch)
        return []

    def meet(self, ticket: Ticket, effects: list[Effect]) -> None:
        """The call of ``ticket`` has come, and there are ``early`` fetches of it."""
        if ticket.flags & Flag.STREAM:
            self.answer_early(ticket.task_id, _no_reader(ticket.task_id), effects)
            return
        for fetch in self.early.pop(ticket.task_id):
            self._count_early(fetch.peer, -1)
            fetch.meet(ticket)

    def answer_early(self, task_id: str, reply: Reply, effects: list[Effect]) -> None:
        """The call ``task_id`` has come, and ended at once in ``reply``; if the host was busy, it comes again."""
        if reply.code != Code.BUSY:
            for fetch in list(self.early.get(task_id, ())):
                self.forget(fetch)
                effects.append(Answer(fetch.peer, fetch.call_id, reply))

    def answer(self, ticket: Ticket, reply: Reply, effects: list[Effect]) -> None:
        """``ticket`` is answered, and so are the fetches that wait for it."""
        for fetch in list(ticket.fetches or ()):
            self.forget(fetch)
            effects.append(Answer(fetch.peer, fetch.call_id, reply))

    def expire(self, fetch: ParkedFetch, effects: list[Effect], now: float) -> None:
        """The time of ``fetch`` is over."""
        peer, call_id, expected = fetch.peer, fetch.call_id, fetch.expected
        self.forget(fetch)
        if expected:  # the store has the last word
            effects += self.on_fetch(peer, call_id, expected, 0.0, now)
        else:
            effects.append(Pending(peer, call_id))

    def refuse(self, peer: Peer, reply: Reply, effects: list[Effect]) -> None:
        """Answer all fetches of ``peer`` with ``reply``."""
        for fetch in list(peer.fetches.values()):
            self.forget(fetch)
            effects.append(Answer(peer, fetch.call_id, reply))

    def forget(self, fetch: ParkedFetch) -> None:
        """``fetch`` is over: it gets no answer any more."""
        fetch.settled = True
        del fetch.peer.fetches[fetch.call_id]
        if fetch.ticket is not None:
            if fetch.ticket.fetches is not None:
                del fetch.ticket.fetches[fetch]
        elif fetch.expected:
            self._count_early(fetch.peer, -1)
            row = self.early[fetch.expected]
            del row[fetch]
            if not row:
                del self.early[fetch.expected]
        else:
            fetch.peer.account.fetches -= 1
            self._asking -= 1

    def close(self, effects: list[Effect]) -> None:
        """The host has stopped: from now on each fetch is refused, and those of calls that did not come are, too."""
        self._closed = True
        for task_id in list(self.early):
            self.answer_early(task_id, error_reply(_stopped(), call_id=task_id), effects)

    def _count_early(self, peer: Peer, more: int) -> None:
        peer.account.early += more
        self._waiting_early += more

    def _refusal(self, peer: Peer) -> errors.ZmqAgentsError | None:
        if self._closed:
            return _stopped()
        if len(peer.fetches) >= self._config.max_calls_per_client and not peer.local:
            return errors.HostBusy(f"this client has {len(peer.fetches)} fetches open (max_calls_per_client)")
        return None


def _stopped() -> errors.HostStopping:
    return errors.HostStopping("the host has stopped")


def _busy(peer: Peer, call_id: int, task_id: str, why: str) -> Answer:
    return Answer(peer, call_id, error_reply(errors.HostBusy.of_host(why), call_id=task_id))


def _no_reader(task_id: str) -> Reply:
    error = errors.UnknownTask(f"{task_id} is a stream, which only its caller can read")
    return error_reply(error, call_id=task_id)
