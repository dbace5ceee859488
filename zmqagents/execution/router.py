"""What threads that run agents' code tell the router thread.

Worker threads, the event loop and threads that an agent has started all call a `Router`. Each of its methods hands an
event over and returns at once; the router thread handles the events in the order in which they came (those of streams
among themselves). The broker implements it, so that nothing here needs to know the broker.

A thread that waits passes a `Wait` along. The router thread answers each `Wait` by opening its gate exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..errors import ZmqAgentsError
from ..scheduler.records import Peer, Ticket
from ..wire.messages import Call, Frame
from .gate import Wait

__all__ = ["Router"]


class Router(Protocol):
    """The router thread, as the other threads of the host see it. Any thread may call any of its methods."""

    def leads(self) -> bool:
        """Whether the calling thread is the router thread, and runs no agent's code.

        If it does run an agent's code, it gives up the leadership of the router loop first, and this is False.
        """

    # ------------------------------------------------------------ requests that the host's own code makes

    def call(self, peer: Peer, call: Call, parent: Ticket | None, wait: Wait | None) -> None:
        """A call. ``parent``: the call whose code made it; ``wait``: that code waits for the outcome."""

    def fetch(self, peer: Peer, call_id: int, task_id: str, timeout_s: float) -> None:
        """Ask for the result of ``task_id``; the answer is the reply to ``call_id``."""

    def cancel(self, peer: Peer, task_id: str, alone: bool) -> None:
        """Cancel a call and, unless ``alone``, the calls that it has made."""

    def credit(self, peer: Peer, call_id: int, items: int) -> None:
        """Allow a stream, the peer's own call ``call_id``, to send ``items`` more."""

    # ------------------------------------------------------------ a thread waits

    def go_to_loop(self, ticket: Ticket) -> None:
        """The code of ``ticket`` has left its thread; the rest of it is a coroutine."""

    def wait(self, wait: Wait, task_ids: Sequence[str], any_of: bool) -> None:
        """The thread waits for calls of this host: for all of them, or for ``any_of`` them."""

    def wait_outside(self, wait: Wait, task_ids: Sequence[str] = ()) -> None:
        """The thread waits for calls of other hosts; ``task_ids`` is empty where they are not known."""

    def go_outside(self, wait: Wait) -> None:
        """The thread blocks on something of its own, and looks at its gate only when that is over."""

    def refusal(self, ticket: Ticket) -> ZmqAgentsError | None:
        """Why the code of ``ticket`` may not wait now, None if it may; as a look from another thread tells it."""

    def wait_item(self, wait: Wait, stream: Any) -> None:
        """The thread waits for the next item of a stream of this host."""

    def wait_credit(self, wait: Wait) -> None:
        """A generator has left its thread, and waits until its reader takes some items."""

    def wait_over(self, wait: Wait) -> None:
        """The wait has ended from the thread's side. It counts at once if the router thread itself says so.

        Otherwise the wait-for graph would show a cycle that is none, between an item of a stream and the word that
        its reader waits no longer. It is posted as well then: the wait itself may still be in the inbox.
        """

    # ------------------------------------------------------------ a coroutine awaits

    def await_result(
        self, ticket: Ticket, task_id: str, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> None:
        """A coroutine awaits a result or an item of a call of this host.

        ``fail`` is called, in the router thread, if the wait could never end; ``ready`` tells whether it is over.
        """

    def await_outside(
        self, ticket: Ticket, task_id: str, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> None:
        """The same for a call of another host."""

    def await_credit(self, ticket: Ticket, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]) -> None:
        """A coroutine has an item to send, and waits until its reader takes some."""

    def unawait(self, ticket: Ticket, task_id: str) -> None:
        """The wait that `await_result` began is over. Like `wait_over` it counts at once in the router thread."""

    def unawait_outside(self, ticket: Ticket, task_id: str) -> None:
        """The wait that `await_outside` began is over."""

    # ------------------------------------------------------------ streams

    def chunk(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> None:
        """Item ``number`` of the stream ``ticket``, for its reader."""

    def note(self, ticket: Ticket, number: int, body: tuple[Frame, ...]) -> None:
        """What a member tells its host of the running call ``ticket``, ahead of its end; see `members.upward`."""

    def progress(self, ticket: Ticket) -> None:
        """The code of ``ticket`` has told how far it has come: see `agents.context.Told`."""

    def sent(self, done: threading.Event) -> None:
        """Set ``done`` when what was said before has left this process, or waits for room in the socket."""
