"""Fetches that wait: a client asks for the result of a call and would wait for it (a long poll).

A fetch of a call that is open on this host is parked until that call is answered. Where the store is shared with other
hosts, a fetch of any other task is parked until the store answers. Both kinds end in the reply, or in `Pending` when
the time of the fetch is over: then the client asks again. A fetch of a task that neither is open nor can be found by
other hosts is a look into the store, and is not kept here.
"""

from __future__ import annotations

from collections.abc import Mapping

from .. import errors
from ..config import BrokerConfig
from ..wire.messages import Reply, error_reply
from .effects import Answer, Effect, Lookup, Pending
from .records import ParkedFetch, Peer, Ticket, Timed
from .shares import Share
from .timers import Timers

__all__ = ["Fetches"]

STORE_PATIENCE_S = 3.0  # the store thread answers before, even if the store itself does not


class Fetches:
    """The parked fetches of one host. ``tasks``: its open calls by task id; ``shares``: its store is shared.

    `on_fetch` and `on_found` are events; the dispatcher calls the other methods.
    """

    def __init__(
        self, config: BrokerConfig, tasks: Mapping[str, Ticket], timers: Timers[Timed],
        share: Share, *, shares: bool,
    ) -> None:  # fmt: skip
        self._config = config
        self._tasks = tasks
        self._timers = timers
        self._share = share  # of fetches that wait for the store
        self._asking = 0  # how many these are
        self._shares = shares
        self._closed = False

    def on_fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float, now: float) -> list[Effect]:
        """A client asks for the result of ``task_id`` and would wait ``timeout_s`` seconds for it."""
        refusal = self._refusal(peer)
        if refusal is not None:
            return [Answer(peer, call_id, error_reply(refusal, call_id=task_id))]
        ticket = self._tasks.get(task_id)
        if ticket is None and not self._shares:
            return [Lookup(peer, call_id, task_id)]
        if ticket is not None and timeout_s <= 0:
            return [Pending(peer, call_id)]
        if call_id in peer.fetches:
            self.forget(peer.fetches[call_id])
        if ticket is None:
            account = peer.account
            if self._asking >= self._share.free and self._share.refuses(account.fetches, self._asking):
                busy = errors.HostBusy.of_host(self._share.reason(account.fetches, self._asking))
                return [Answer(peer, call_id, error_reply(busy, call_id=task_id))]
            account.fetches += 1
            self._asking += 1
        fetch = ParkedFetch(peer, call_id, ticket)
        peer.fetches[call_id] = fetch
        patience_s = min(timeout_s, self._config.max_timeout_seconds)
        if ticket is None:
            patience_s *= 1 - call_id % 64 / 256  # thousands that came together are not renewed together
            self._timers.add(now + patience_s + STORE_PATIENCE_S, fetch)
            return [Lookup(peer, call_id, task_id, None, fetch, patience_s)]
        if ticket.fetches is None:
            ticket.fetches = {}
        ticket.fetches[fetch] = None
        self._timers.add(now + patience_s, fetch)
        return []

    def on_found(self, fetch: ParkedFetch, reply: Reply | None) -> list[Effect]:
        """The shared store answers a fetch; None: the call is not finished."""
        if fetch.settled:
            return []
        self.forget(fetch)
        if reply is None:
            return [Pending(fetch.peer, fetch.call_id)]
        return [Answer(fetch.peer, fetch.call_id, reply)]

    def answer(self, ticket: Ticket, reply: Reply, effects: list[Effect]) -> None:
        """``ticket`` is answered, and so are the fetches that wait for it."""
        for fetch in list(ticket.fetches or ()):
            self.forget(fetch)
            effects.append(Answer(fetch.peer, fetch.call_id, reply))

    def expire(self, fetch: ParkedFetch, effects: list[Effect]) -> None:
        """The time of ``fetch`` is over."""
        self.forget(fetch)
        effects.append(Pending(fetch.peer, fetch.call_id))

    def refuse(self, peer: Peer, reply: Reply, effects: list[Effect]) -> None:
        """Answer all fetches of ``peer`` with ``reply``."""
        for fetch in list(peer.fetches.values()):
            self.forget(fetch)
            effects.append(Answer(peer, fetch.call_id, reply))

    def forget(self, fetch: ParkedFetch) -> None:
        """``fetch`` is over: it gets no answer any more."""
        fetch.settled = True
        del fetch.peer.fetches[fetch.call_id]
        if fetch.ticket is None:
            fetch.peer.account.fetches -= 1
            self._asking -= 1
        if fetch.ticket is not None and fetch.ticket.fetches is not None:
            del fetch.ticket.fetches[fetch]

    def close(self) -> None:
        """The host has stopped: from now on each fetch is refused."""
        self._closed = True

    def _refusal(self, peer: Peer) -> errors.ZmqAgentsError | None:
        if self._closed:
            return errors.HostStopping("the host has stopped")
        if len(peer.fetches) >= self._config.max_calls_per_client and not peer.local:
            return errors.HostBusy(f"this client has {len(peer.fetches)} fetches open (max_calls_per_client)")
        return None
