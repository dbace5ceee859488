"""A child's way to its host: what the code of an agent in a child calls, asks for and waits for.

To such code the host is the parent, never the child: its calls go there over a connection of the child's own, and the
agents and results that it names are the parent's. The wait-for graph is there as well, so waits are told upward:

* a call that blocks its thread until the answer comes says so itself (the option ``waits``);
* every other wait is told by WAITS if it lasts `TELL_AFTER_S`, and taken back when it ends. If the parent refuses the
  wait, because it could never end, the waiting code gets that error.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..agents.context import RunningCall, own_call
from ..agents.state import Reminder, Snapshot
from ..codec import Encoded, pack
from ..config import Parent
from ..connection.connection import Connection, take_place
from ..connection.requests import Plain
from ..connection.target import Target
from ..errors import ZmqAgentsError
from ..execution.event_loop import EventLoop
from ..execution.gate import Wait, begin_wait
from ..execution.lifecycle.saving import StateSaver
from ..execution.router import Router
from ..execution.services import LocalServices, gives_slot_back
from ..models.configs import ModelConfigs
from ..scheduler.records import Ticket
from ..scheduler.seals import Seals
from ..wire.link import Sink, rebuild_error
from ..wire.messages import REMINDER, SNAPSHOT, Flag, Kind, Place, Reply, Waits
from .board import Board

__all__ = ["ParentConnection", "ParentKeeper", "ParentServices"]

TELL_AFTER_S = 0.02  # most waits are shorter; to find a deadlock may take a second
SENT_WITHIN_S = 1.0  # it takes a fraction of a millisecond, if the parent reads


class ParentConnection(Connection):
    """The connection of a child to its parent, which the code of its agents takes for their host."""

    server_id = ""  # set when it is made, known before it is opened

    def __init__(self, parent: Parent) -> None:
        super().__init__(Target("", None, ipc=parent.ipc))
        self.server_id = parent.server_id
        self.address = parent.address
        self.board = Board()  # of the waits that are told
        take_place(self)  # also for code that goes there as strangers do

    def waiting(self, call: RunningCall) -> AbstractContextManager[None]:
        """The slot is given back; the parent knows for which call."""
        host = call.host
        return host.giving_back(call) if isinstance(host, ParentServices) else host.outside(call)

    def call(
        self, agent: str, method: str, body: Encoded, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> Reply:  # fmt: skip
        caller = own_call()
        if caller is not None and caller.thread == threading.get_ident() and not caller.ticket.on_loop:
            options = {**(options or {}), "waits": True}
        return super().call(agent, method, body, flags=flags, options=options, timeout=timeout)

    def submit(
        self, agent: str, method: str, body: Encoded, sink: Sink, *,
        flags: int = 0, options: dict[str, Any] | None = None, timeout: float | None = None,
    ) -> str:  # fmt: skip
        task_id = super().submit(agent, method, body, sink, flags=flags, options=options, timeout=timeout)
        caller = own_call()
        if caller is not None and isinstance(caller.host, ParentServices):
            caller.host.note_request(caller, int(task_id.rpartition("-")[2]))
        return task_id

    def close(self) -> None:
        """Close it; no wait is shown any more."""
        super().close()
        self.board.close()

    def begin_wait(self, waits: Waits, sink: Sink) -> int:
        """Tell of a wait. If it is refused, ``sink`` gets the error. Its number."""
        what = [waits.task_id, list(waits.task_ids), waits.any_of, waits.received, waits.place and list(waits.place)]
        message = Plain(Kind.WAITS, None, pack(what))
        return self.open_channel().request(message, sink, None)

    def end_wait(self, number: int) -> None:
        """Tell that the wait is over."""
        channel = self.channel
        if channel is not None and not channel.closing:  # otherwise the parent has gone
            channel.take_back(number, Kind.WAITS)


class ParentKeeper:
    """The `Keeper` of a child: its parent keeps the states of the agents, and gives them back before they are made."""

    def __init__(self) -> None:
        self._given: dict[str, Snapshot] = {}

    def keeps(self, agent_id: str) -> bool:
        """Of all that it runs."""
        return True

    def keep(self, agent_id: str, snapshot: Snapshot, of: object = None) -> None:
        """Send a state to the parent, ahead of the end of the call; or take one that the parent gives back."""
        call = own_call()
        if call is None:
            self._given[agent_id] = snapshot
        elif isinstance(call.host, ParentServices):
            call.host.send_state(call, snapshot)

    def remind(self, reminder: Reminder, ticket: Any) -> None:
        """Send a reminder to the parent, ahead of the state that it goes with."""
        services = ticket.context.host
        assert isinstance(services, ParentServices)
        services.send_reminder(ticket, reminder)

    def last(self, agent_id: str) -> Snapshot | None:
        """What the parent has given back; once, for the agent that is made now."""
        return self._given.pop(agent_id, None)

    def forget(self, agent_id: str) -> None:
        """The parent forgets it by itself."""


class _Told:
    """One wait, as far as the parent knows of it; ``refused`` gets the error if it refuses the wait."""

    def __init__(
        self, link: ParentConnection, call: RunningCall, task_ids: Sequence[str],
        refused: Callable[[Exception], None], *, any_of: bool = False, stream: Any = None,
    ) -> None:  # fmt: skip
        self._link = link
        self._waits = Waits(0, call.call_id, task_ids, any_of)
        self._stream = stream
        self._refused = refused
        self._lock = threading.Lock()  # the end of a wait may be told by another thread
        self._number = 0
        self._place: Place | None = None
        self._error: Exception | None = None
        self._over = False

    def begin(self) -> None:
        """It has lasted for a while."""
        with self._lock:
            if not self._over:
                self._place = self._link.board.begin()
                waits = self._waits._replace(received=getattr(self._stream, "received", -1), place=self._place)
                with contextlib.suppress(ZmqAgentsError):  # the parent is gone, and soon this process is, too
                    self._number = self._link.begin_wait(waits, self)

    def end(self) -> None:
        """It is over."""
        with self._lock:
            self._over = True
            number, self._number = self._number, 0
            place, self._place = self._place, None
        if place is not None:
            self._link.board.end(place)
        if number:
            self._link.end_wait(number)

    def check(self) -> None:
        """Raise the error with which the parent has refused the wait."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # see Gate.wait

    def deliver(self, reply: Reply | None) -> None:
        if reply is not None and reply.code:
            self._error = rebuild_error(reply)
            self._refused(self._error)

    def fail(self, error: Exception) -> None:
        """The parent is gone, and soon this process is, too."""

    def chunk(self, item: Reply) -> None:
        """Never comes."""


class ParentServices(LocalServices):
    """What agents in a child may ask of their host; see the module's docstring. Any thread of the child may use it."""

    def __init__(
        self, link: ParentConnection, server_id: str, models: ModelConfigs, router: Router,
        client: Callable[[], Any], seals: Seals, loop: EventLoop, saver: StateSaver | None = None,
    ) -> None:  # fmt: skip
        super().__init__(server_id, models, router, client, seals, loop, saver)
        self._link = link

    def save(self, call: RunningCall) -> Awaitable[None]:
        """As on any host. A plain method goes on when the state has left the process, and no crash can take it."""
        saved = super().save(call)
        if call.thread == threading.get_ident() and not self._router.leads():
            sent = threading.Event()
            self._router.sent(sent)
            sent.wait(SENT_WITHIN_S)
        return saved

    def note_request(self, call: RunningCall, number: int) -> None:
        """The code of ``call`` has made the request ``number``, and goes on: the end of the call must not overtake it.

        `Forwarded` takes it.
        """
        ticket: Ticket = call.ticket
        if not ticket.flags & Flag.STREAM:
            self._router.note(ticket, number - 1, ())

    def send_state(self, call: RunningCall, snapshot: Snapshot) -> None:
        """Send the state of an agent to the parent, ahead of the end of ``call``. `Forwarded` takes it."""
        head = pack([snapshot.number, snapshot.version])
        self._router.note(call.ticket, SNAPSHOT, (head, *snapshot.frames))

    def send_reminder(self, ticket: Ticket, reminder: Reminder) -> None:
        """Send a reminder that the code of a call sets to the parent. `Forwarded` takes it."""
        head = pack([reminder.name, reminder.after_s, reminder.every_s, reminder.method])
        self._router.note(ticket, REMINDER, (head, *reminder.frames))

    def giving_back(self, call: RunningCall) -> AbstractContextManager[None]:
        """The slot is given back within this block, and taken again at its end. Raises what speaks against a wait."""
        refusal = self._router.refusal(call.ticket)
        if refusal is not None:
            raise refusal
        return super().outside(call)

    @contextmanager
    def outside(self, call: RunningCall) -> Iterator[None]:
        """The same for what the parent cannot see: a call that comes back from there must not wait for this one."""
        told = _Told(self._link, call, (), _ignore)
        if call.thread == threading.get_ident():
            told.begin()
        try:
            with super().outside(call):
                yield
        finally:
            told.end()

    def wait_for(self, call: RunningCall, results: Sequence[Any], timeout: float | None, any_of: bool) -> bool:
        """See `LocalServices.wait_for`."""
        if not gives_slot_back(call.ticket, "result()"):
            return False
        wait = begin_wait(call.ticket)
        self._router.wait_outside(wait)
        self._end_when_done(wait, results, any_of)
        known = [result.task_id for result in results if getattr(result, "task_id", "")]
        told = self._told(call, wait, known if len(known) == len(results) or not any_of else [], any_of=any_of)
        self._wait_and_tell(wait, told, timeout)
        return True

    def wait_for_item(self, call: RunningCall, stream: Any, timeout: float | None) -> bool:
        """See `LocalServices.wait_for_item`."""
        if not gives_slot_back(call.ticket, "reading a stream"):
            return False
        wait, router = begin_wait(call.ticket), self._router
        stream.watch(lambda: router.wait_over(wait))
        router.wait_outside(wait)
        if stream.ready():  # it came between the look and the wait
            router.wait_over(wait)
        try:
            told = self._told(call, wait, [stream.task_id] if stream.task_id else [], stream=stream)
            self._wait_and_tell(wait, told, timeout)
        finally:
            stream.watch(None)
        return True

    def _told(
        self, call: RunningCall, wait: Wait, task_ids: Sequence[str], *, any_of: bool = False, stream: Any = None
    ) -> _Told | None:
        """What the parent is to know of a wait; None if it is for nothing that it could know."""
        router = self._router
        if not task_ids:
            return None
        return _Told(self._link, call, task_ids, lambda _: router.wait_over(wait), any_of=any_of, stream=stream)

    def _wait_and_tell(self, wait: Wait, told: _Told | None, timeout: float | None) -> None:
        first_s = TELL_AFTER_S if timeout is None else max(0.0, min(timeout, TELL_AFTER_S))
        if wait.gate.wait(first_s):
            return
        left_s = None if timeout is None else timeout - first_s
        if told is None:
            self._pass(wait, left_s)
            return
        told.begin()
        try:
            self._pass(wait, left_s)
        finally:
            told.end()
        told.check()

    def awaiting(
        self, call: RunningCall, result: Any, fail: Callable[[ZmqAgentsError], None], ready: Callable[[], bool]
    ) -> Callable[[], None]:
        """See `LocalServices.awaiting`."""
        import asyncio  # it runs there, so it is here

        over = super().awaiting(call, result, fail, ready)
        told = _Told(self._link, call, [result.task_id], fail, stream=result)  # type: ignore[arg-type]

        def end() -> None:
            told.end()
            over()

        if hasattr(result, "watch"):
            result.watch(end)
        if result.task_id:
            asyncio.get_running_loop().call_later(TELL_AFTER_S, told.begin)
        return end


def _ignore(error: Exception) -> None:
    """A wait of this kind is never refused."""
