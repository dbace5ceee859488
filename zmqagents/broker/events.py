"""The events that other threads hand to the router thread: the broker's body of `Router` of the execution package.

Each method of `Events` posts its own handler, the method of the same name with ``_on_``, to the broker's inbox. The
router thread calls the handlers in the order in which they were posted, and carries out the effects they return. So
there are two halves here: the `Router` methods may be called by any thread, the ``on_`` and ``_on_`` methods by the
router thread alone. Results, management requests and the end of the host have handlers of their own, beside what they
change; they reach the inbox by the same `Post`.

What streams say goes by a way of its own, for a worker posts 16 items as fast as it can make them, and the calls of
others must not wait behind those of thirty workers: `_read_later` handles `LATER` of these events, and then goes behind
whatever else is in the inbox. Among themselves they keep their order, the end of a stream included.

Most events are about waiting, which makes the wait-for graph. A thread that waits gives a `Wait` and gets exactly one
`Resume`. A coroutine gives a function ``fail`` instead, for it does not look at a gate.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol

from .. import errors
from ..errors import ZmqAgentsError
from ..execution.gate import Wait
from ..scheduler.dispatcher import Dispatcher
from ..scheduler.effects import Effect, Resume, refusal_of
from ..scheduler.records import Peer, Ticket
from ..wire.messages import Call, Frame, Reply
from .clients import Clients
from .watching.progress import ProgressSender

__all__ = ["Events", "Post"]

log = logging.getLogger(__name__)

LATER = 2  # events of streams between two others

P = ParamSpec("P")
Effects = list[Effect]
Fail = Callable[[ZmqAgentsError], None]


class Post(Protocol):
    """Hands an event to the router thread: a handler with its arguments. Any thread may call it."""

    def __call__(self, handler: Callable[P, Effects], /, *args: P.args, **kwargs: P.kwargs) -> None: ...


class Events:
    """See the module's docstring, and `Router` for what each event says.

    ``leads``: see `Router.leads`. ``take_call`` handles a call of the host's own code, ``pass_on`` an item of a stream,
    ``inside`` what a call tells of its progress to the host's own code.
    """

    def __init__(
        self, dispatcher: Dispatcher, clients: Clients, post: Post, carry_out: Callable[[Effects], None],
        clock: Callable[[], float], *, leads: Callable[[], bool],
        take_call: Callable[[Peer, Call, Ticket | None, Wait | None], Effects],
        pass_on: Callable[[Ticket, int, tuple[Frame, ...]], Effects], inside: Callable[[int, Sequence[Frame]], None],
    ) -> None:  # fmt: skip
        self.leads = leads
        self._dispatcher = dispatcher
        self._clients = clients
        self._post = post
        self._carry_out = carry_out
        self._clock = clock
        self._take_call = take_call
        self._pass_on = pass_on
        self._show_progress = ProgressSender(dispatcher.timers, clients.delivery, inside, clock).show
        self._later: deque[tuple[Callable[..., Effects], tuple[Any, ...]]] = deque()  # events of streams
        self._reads_later = False  # `_read_later` is in the inbox

    def note_fork(self) -> None:
        """In a forked child: the next event is told that there is no host."""
        self._reads_later = False

    # ------------------------------------------------------------ requests

    def call(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> None:
        self._post(self._take_call, peer, call, parent, wait)

    def fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float) -> None:
        self._post(self.on_fetch, peer, call_id, task_id, timeout_s)

    def on_fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float) -> Effects:
        """Find a result for its reader."""
        return self._dispatcher.on_fetch(peer, call_id, task_id, timeout_s, self._clock())

    def cancel(self, peer: Peer, task_id: str, alone: bool) -> None:
        self._post(self._on_cancel, peer, task_id, alone)

    def _on_cancel(self, peer: Peer, task_id: str, alone: bool) -> Effects:
        return self._dispatcher.on_cancel(peer, 0, task_id, self._clock(), alone=alone)

    def credit(self, peer: Peer, call_id: int, items: int) -> None:
        self._post(self.on_credit, peer, call_id, items)

    def on_credit(self, peer: Peer, call_id: int, items: int) -> Effects:
        """Allow the stream ``call_id`` to send ``items`` more."""
        if not peer.local:
            peer.key.replies.grant(call_id, items)
        ticket = peer.calls.get(call_id)
        if ticket is None or ticket.context is None or ticket.context.sender is None:
            return []
        ticket.context.sender.grant(items)
        self._dispatcher.calls.feed(ticket)
        self._clients.feed(ticket)
        if ticket.on_loop and ticket.parent is not None:
            return self._dispatcher.on_unwait(ticket, [ticket.parent.task_id])
        return []

    # ------------------------------------------------------------ streams

    def chunk(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> None:
        self._post_later(self._pass_on, ticket, number, body)

    def note(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> None:
        self._post(self._pass_on, ticket, number, body)

    def progress(self, ticket: Ticket) -> None:
        self._post(self._show_progress, ticket)

    def sent(self, done: threading.Event) -> None:
        self._post(self._on_sent, done)

    def _on_sent(self, done: threading.Event) -> Effects:
        self._clients.delivery.push_all()
        done.set()
        return []

    def on_stream_done(self, ticket: Ticket, reply: Reply) -> Effects:
        """The code of a stream has returned; its last items may be on their way."""
        self._post_later(self._on_stream_over, ticket, reply)
        return []

    def _on_stream_over(self, ticket: Ticket, reply: Reply) -> Effects:
        home = ticket.agent.home
        if home is not None:
            return home.returned(ticket, reply)
        return self._dispatcher.on_done(ticket, reply, self._clock())

    def _post_later(self, handler: Callable[P, Effects], /, *args: P.args, **_: P.kwargs) -> None:
        self._later.append((handler, args))
        if not self._reads_later:
            self._reads_later = True
            self._post(self._read_later)

    def _read_later(self) -> Effects:
        later = self._later
        for _ in range(min(LATER, len(later))):
            handler, args = later.popleft()
            try:
                self._carry_out(handler(*args))
            except Exception:  # a bug of this package: the host goes on
                log.exception("an event of a stream could not be handled")
        self._reads_later = False  # before the look: one that is added after it is posted by its thread
        if later:
            self._reads_later = True
            self._post(self._read_later)
        return []

    # ------------------------------------------------------------ a thread waits

    def go_to_loop(self, ticket: Ticket) -> None:
        self._post(self._on_go_to_loop, ticket)

    def _on_go_to_loop(self, ticket: Ticket) -> Effects:
        return self._dispatcher.on_go_to_loop(ticket, self._clock())

    def wait(self, wait: Wait, task_ids: Sequence[str], any_of: bool) -> None:
        self._post(self._on_wait, wait, task_ids, any_of)

    def _on_wait(self, wait: Wait, task_ids: Sequence[str], any_of: bool) -> Effects:
        wait.enter()
        return self._dispatcher.on_wait(wait.ticket, task_ids, self._clock(), any_of=any_of)

    def wait_outside(self, wait: Wait, task_ids: Sequence[str] = ()) -> None:
        self._post(self._on_wait_outside, wait, task_ids)

    def _on_wait_outside(self, wait: Wait, task_ids: Sequence[str] = ()) -> Effects:
        wait.enter()
        return self._dispatcher.on_wait_outside(wait.ticket, self._clock(), task_ids=task_ids)

    def go_outside(self, wait: Wait) -> None:
        self._post(self._on_go_outside, wait)

    def _on_go_outside(self, wait: Wait) -> Effects:
        """The thread blocks on the outside thing itself, so a refusal would reach it only when that is over.

        Where the wait would close a cycle, the call that came back is therefore refused instead. Where there may be no
        more stand-ins, the thread keeps its slot.
        """
        now = self._clock()
        effects = self._on_wait_outside(wait)
        refusal = refusal_of(wait.ticket, effects)
        if isinstance(refusal, errors.DeadlockError):
            refused = self._dispatcher.refuse_returns(wait.ticket, refusal, now)
            return [*refused, *self._on_wait_outside(wait)]
        return [Resume(wait.ticket)] if isinstance(refusal, errors.HostBusy) else effects

    def refusal(self, ticket: Ticket) -> ZmqAgentsError | None:
        return self._dispatcher.waiting.refusal(ticket)

    def wait_item(self, wait: Wait, stream: Any) -> None:
        self._post(self._on_wait_item, wait, stream)

    def _on_wait_item(self, wait: Wait, stream: Any) -> Effects:
        return self._on_wait(wait, [] if stream.ready() else [stream.task_id], False)

    def wait_credit(self, wait: Wait) -> None:
        self._post_later(self._on_wait_credit, wait)

    def _on_wait_credit(self, wait: Wait) -> Effects:
        """A generator waits for its reader to take items, and has left its thread.

        That is an edge to a reader in a worker thread, which does one thing at a time. A coroutine may wait in one task
        and read in another, so a wait for its credit proves nothing.
        """
        ticket, now, dispatcher = wait.ticket, self._clock(), self._dispatcher
        reader = ticket.parent
        wait.enter()
        if ticket.context is not None and ticket.context.sender.has_credit:  # granted meanwhile
            return dispatcher.on_wait(ticket, [], now, parked=True)
        refusal = dispatcher.calls.starve(ticket)
        if refusal is not None:
            return [Resume(ticket, refusal)]
        if not ticket.peer.local:
            self._clients.starve(ticket)
        if reader is None or reader.settled or not reader.threaded:
            return dispatcher.on_wait_outside(ticket, now, parked=True)
        return dispatcher.on_wait(ticket, [reader.task_id], now, parked=True)

    def wait_over(self, wait: Wait) -> None:
        if self.leads():
            self._carry_out(self._on_wait_over(wait))
        self._post(self._on_wait_over, wait)

    def _on_wait_over(self, wait: Wait) -> Effects:
        return self._dispatcher.on_wait_over(wait.ticket, self._clock()) if wait.is_current else []

    # ------------------------------------------------------------ a coroutine awaits

    def await_result(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post(self._on_await, ticket, task_id, fail, ready)

    def _on_await(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> Effects:
        """A coroutine holds no slot, but its wait may close a cycle."""
        if ready():
            return []
        return _tell(fail, ticket, self._dispatcher.on_wait(ticket, [task_id], self._clock()))

    def await_outside(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post(self._on_await_outside, ticket, task_id, fail, ready)

    def _on_await_outside(self, ticket: Ticket, task_id: str, fail: Fail, ready: Callable[[], bool]) -> Effects:
        if ready():
            return []
        return _tell(fail, ticket, self._dispatcher.on_await_outside(ticket, task_id, self._clock()))

    def await_credit(self, ticket: Ticket, fail: Fail, ready: Callable[[], bool]) -> None:
        self._post_later(self.on_await_credit, ticket, fail, ready)

    def on_await_credit(self, ticket: Ticket, fail: Fail, ready: Callable[[], bool]) -> Effects:
        """A coroutine or a member waits until the reader of the stream ``ticket`` has taken some items."""
        reader, context = ticket.parent, ticket.context
        if context is None or context.sender.has_credit:
            return []
        refusal = self._dispatcher.calls.starve(ticket)
        if refusal is not None:
            fail(refusal)
            return []
        if not ticket.peer.local:
            self._clients.starve(ticket)
        if reader is None or reader.settled or not reader.threaded:
            return []
        return self._on_await(ticket, reader.task_id, fail, ready)

    def unawait(self, ticket: Ticket, task_id: str) -> None:
        if self.leads():
            self._carry_out(self._on_unawait(ticket, task_id))
        self._post(self._on_unawait, ticket, task_id)

    def _on_unawait(self, ticket: Ticket, task_id: str) -> Effects:
        return self._dispatcher.on_unwait(ticket, [task_id])

    def unawait_outside(self, ticket: Ticket, task_id: str) -> None:
        self._post(self._dispatcher.on_unawait_outside, ticket, task_id)


def _tell(fail: Fail, ticket: Ticket, effects: Effects) -> Effects:
    """Give ``effects`` back, and call ``fail`` if they refuse the wait of the coroutine ``ticket``."""
    refusal = refusal_of(ticket, effects)
    if refusal is not None:
        fail(refusal)
    return effects
