"""What a client has asked for and has no answer to: pure bookkeeping, without a socket, thread or clock.

    request --add--> outbox --take_in--> unsent --next_to_send (credit)--> sent --answered--> gone
                                           ^                                |
                                           +---- carry_over, put_back ------+   the connection broke, the host was busy

Ids are given in the order of sending, so one number says which replies the client still needs: all from `lowest`
on. It travels with every CALL, and lets the host forget the replies that it keeps for a connection that breaks.

Any thread may `add`, `drop` and look at `asking`; everything else belongs to the thread that leads the connection.
Requests of blocked threads (`Waiter` sinks) and all others are kept apart, because a thread may read the socket
itself only while nobody else waits for anything.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .. import codec, errors
from ..agents.context import RunningCall
from ..codec import Encoded
from ..wire import messages
from ..wire.link import Sink, Waiter, places, rebuild_error
from ..wire.messages import MAX_CHAIN, Code, Flag, Frame, Kind, Reply

__all__ = ["Message", "Outstanding", "Plain", "Reask", "Repeat", "Request"]

LARGE_BYTES = 65_536  # below it a message is not worth counting against `max_open_bytes`
BATCH = 64


class Repeat(enum.Enum):
    """What may become of a message that was sent when its connection broke."""

    SAFE = "safe"  # asked again, of this host or its successor
    ONCE = "once"  # asked again only of a host that knows whether it came
    NEVER = "never"  # a stream: what was on its way is lost


class Message(Protocol):
    """What a request sends."""

    repeat: Repeat
    is_call: bool
    deadline: float | None  # of the call; None: no deadline

    def to_frames(self, call_id: int, token: int, server_id: str, needed: int, resent: bool) -> list[Frame]:
        """The message; ``needed`` is the lowest id whose reply the client still needs."""

    def kept_as(self, task_id: str) -> str | None:
        """``task_id`` if the store keeps its result, so that it can be asked for."""


class Request:
    """One message, and the sink that its answer goes to (None: there is none)."""

    __slots__ = ("call_id", "deadline", "message", "resent", "sent", "sink", "size")

    def __init__(self, message: Message, sink: Sink | None, deadline: float | None) -> None:
        self.call_id = 0
        self.message = message
        self.sink = sink
        self.deadline = deadline  # None: whoever waits looks at the clock himself
        self.sent = False
        self.resent = False
        self.size = 0


class Outstanding:
    """See the module's docstring. ``max_calls`` and ``max_open_bytes`` are what the host allows to be open."""

    def __init__(self) -> None:
        self.max_calls = 1 << 30
        self.max_open_bytes = 1 << 62
        self.waiting: dict[int, Request] = {}  # of blocked threads
        self.asking: dict[int, Request] = {}  # of all others
        self.outbox: deque[Request] = deque()  # filled by any thread
        self.unsent: deque[Request] = deque()
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._highest = 0
        self._lowest = 1
        self._large: dict[int, int] = {}  # bytes of the large messages that are open
        self._open_bytes = 0
        self.due = math.inf  # when `take_overdue` or `take_ready` will have something, or earlier
        self._timers: list[tuple[float, int]] = []
        self._later: list[tuple[float, int, Request]] = []  # the host was busy: to be sent again at that time

    # ------------------------------------------------------------ any thread

    def add(self, request: Request) -> int:
        """Take a request in; its id. Raises HostBusy if far more is asked than the host allows to be open.

        One without a sink gets no id, and takes no lock: the garbage collector may be who asks, in the middle of this.
        """
        sink = request.sink
        if sink is None:
            self.outbox.append(request)
            return 0
        with self._lock:
            if len(self.asking) >= 2 * self.max_calls:
                raise errors.HostBusy(
                    f"{len(self.asking)} calls of this client are open, twice what the host takes ({self.max_calls})"
                )
            request.call_id = call_id = next(self._ids)
            row = self.waiting if type(sink) is Waiter else self.asking
            row[call_id] = request
            self._highest = call_id  # last: whoever looks for the lowest open id must find it in its row
            self.outbox.append(request)
        return call_id

    def id_for_one_alone(self) -> int:
        """An id for a call that goes out at once, by whoever leads; 0 if there is anything beside it.

        It is told as the lowest needed id, so that must be sure; `adopt` it if the answer does not come at once.
        """
        with self._lock:
            if self.waiting or self.asking or self.outbox:
                return 0
            self._lowest = self._highest = next(self._ids)
            return self._highest

    def adopt(self, request: Request, call_id: int, size: int) -> None:
        """``request`` was sent under an id of `id_for_one_alone`."""
        request.call_id = call_id
        self.waiting[call_id] = request
        self.sent(request, size)

    def drop(self, call_id: int) -> bool:
        """Nobody waits for this answer any more; False if it was here, or was dropped, before."""
        return self.waiting.pop(call_id, None) is not None or self.asking.pop(call_id, None) is not None

    @property
    def highest(self) -> int:
        """The last id given."""
        return self._highest

    def __len__(self) -> int:
        return len(self.waiting) + len(self.asking)

    # ------------------------------------------------------------ the leading thread: sending

    def take_in(self) -> None:
        """Move what other threads have asked for to this thread's own queue; their deadlines count from now on."""
        outbox, unsent = self.outbox, self.unsent
        for _ in range(BATCH):
            if not outbox:
                return
            request = outbox.popleft()
            if request.deadline is not None:
                self._add_timer(request.deadline, request.call_id)
            unsent.append(request)

    def next_to_send(self) -> Request | None:
        """The next request that may go out now; None if there is none, or no credit for it."""
        if self.outbox:
            self.take_in()
        unsent = self.unsent
        while unsent:
            request = unsent[0]
            call_id = request.call_id
            if request.sink is not None and call_id not in self.waiting and call_id not in self.asking:
                unsent.popleft()  # it timed out or was dropped
                continue
            open_calls = len(self.waiting) + len(self.asking) - len(unsent)
            if open_calls >= self.max_calls and request.message.is_call:
                return None
            return unsent.popleft()
        return None

    def has_room_for(self, size: int) -> bool:
        """Whether a message of ``size`` bytes may be opened; one alone always may."""
        return size < LARGE_BYTES or not self._large or self._open_bytes + size <= self.max_open_bytes

    def put_back(self, request: Request) -> None:
        """It could not be sent now: it is the next one again."""
        self.unsent.appendleft(request)

    def sent(self, request: Request, size: int) -> None:
        """``request`` has gone out."""
        request.sent = True
        if size >= LARGE_BYTES and request.message.is_call and request.call_id not in self._large:
            self._large[request.call_id] = size
            self._open_bytes += size

    def lowest(self) -> int:
        """The lowest id whose reply is still needed: the host may forget all below."""
        low, waiting, asking = self._lowest, self.waiting, self.asking
        while low <= self._highest and low not in waiting and low not in asking:
            low += 1
        self._lowest = low
        return low

    # ------------------------------------------------------------ the leading thread: answers

    def find(self, call_id: int) -> Request | None:
        """The request of this id, which goes on waiting."""
        return self.waiting.get(call_id) or self.asking.get(call_id)

    def answered(self, call_id: int) -> Request | None:
        """The request of this id, which is over."""
        if self._large:
            self._open_bytes -= self._large.pop(call_id, 0)
        return self.waiting.pop(call_id, None) or self.asking.pop(call_id, None)

    def keep(self, request: Request) -> None:
        """The answer was none: ``request`` goes on waiting."""
        row = self.waiting if type(request.sink) is Waiter else self.asking
        row[request.call_id] = request

    def try_later(self, request: Request, due: float) -> None:
        """The host was too busy and has executed nothing: send it again at ``due``."""
        request.sent = request.resent = False
        heapq.heappush(self._later, (due, request.call_id, request))
        self._look_at_timers()

    # ------------------------------------------------------------ the leading thread: time

    @property
    def postponed(self) -> bool:
        """Whether something is to be sent again later."""
        return bool(self._later)

    def _look_at_timers(self) -> None:
        self.due = min(row[0][0] if row else math.inf for row in (self._timers, self._later))

    def take_overdue(self, now: float) -> list[Request]:
        """The requests whose deadline is over; they wait no more."""
        late = []
        while self._timers and self._timers[0][0] <= now:
            request = self.answered(heapq.heappop(self._timers)[1])
            if request is not None:
                late.append(request)
        self._look_at_timers()
        return late

    def take_ready(self, now: float) -> bool:
        """Queue those again that the host was too busy for; True if there are any."""
        any_ready = False
        while self._later and self._later[0][0] <= now:
            request = heapq.heappop(self._later)[2]
            if self.find(request.call_id) is request:  # it may have timed out meanwhile
                self.unsent.append(request)
                any_ready = True
        self._look_at_timers()
        return any_ready

    def _add_timer(self, due: float, call_id: int) -> None:
        heapq.heappush(self._timers, (due, call_id))
        if due < self.due:
            self.due = due
        if len(self._timers) > 2 * len(self.asking) + 1024:  # mostly calls that were answered long before
            self._timers = [entry for entry in self._timers if entry[1] in self.asking]
            heapq.heapify(self._timers)

    # ------------------------------------------------------------ the leading thread: a connection breaks

    def carry_over(self, again: Callable[[Request], bool]) -> list[Request]:
        """Queue for sending again, in their order and before all others, what was sent and ``again`` says True of.

        The rest is returned; it waits no more.
        """
        rest, queued = [], []
        for request in sorted([*self.waiting.values(), *self.asking.values()], key=lambda r: r.call_id):
            if not request.sent:
                continue
            if again(request):
                queued.append(request)
            elif self.answered(request.call_id) is not None:
                rest.append(request)
        self.unsent.extendleft(reversed(queued))
        for request in queued:
            request.sent = False
        self._count_large()
        return rest

    def forget_unsent(self, last: int) -> None:
        """Nothing up to the id ``last`` is to be sent any more."""
        self.unsent = deque(request for request in self.unsent if request.call_id > last)

    def _count_large(self) -> None:
        """Those that were dropped while they were open have gone with the connection."""
        self._large = {
            call_id: size for call_id, size in self._large.items() if call_id in self.waiting or call_id in self.asking
        }
        self._open_bytes = sum(self._large.values())

    def take(self, lost: Callable[[Request], bool]) -> list[Request]:
        """The requests that ``lost`` says True of; they wait no more."""
        found = [request for request in [*self.waiting.values(), *self.asking.values()] if lost(request)]
        return [request for request in found if self.answered(request.call_id) is not None]

    def take_all(self) -> list[Request]:
        """Every request; nothing is left."""
        self.outbox.clear()
        self.unsent.clear()
        self._later.clear()
        self._look_at_timers()
        found = self.take(lambda _: True)
        self._count_large()
        return found


class Call:
    """A CALL that is made into frames when it is sent: the time left is right then, not when it was queued."""

    __slots__ = ("agent", "body", "deadline", "flags", "method", "options", "repeat")

    is_call = True

    def __init__(
        self, agent: str, method: str, body: Encoded, flags: int, options: dict[str, Any] | None,
        timeout: float | None, caller: RunningCall | None,
    ) -> None:  # fmt: skip
        self.agent = agent
        self.method = method
        self.body = body
        self.flags = flags
        if caller is not None:  # so that a chain of calls which comes back to its first host is seen there
            options = {**(options or {}), "chain": [*caller.chain, caller.call_id][-MAX_CHAIN:]}
        self.options = options
        self.deadline = None if timeout is None else time.monotonic() + timeout
        if flags & Flag.STREAM:
            self.repeat = Repeat.NEVER
        else:
            self.repeat = Repeat.SAFE if flags & Flag.IDEMPOTENT else Repeat.ONCE

    def to_frames(self, call_id: int, token: int, server_id: str, needed: int, resent: bool) -> list[messages.Frame]:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        body, options = self.body, self.options
        if not (options or resent or body.tasks or body.buffers):
            meta = messages.plain_meta(self.agent, self.method)
            frame = messages.call_frame(call_id, token, meta, body.payload, self.flags, left, needed)
            if frame is not None:
                return [frame]
        deps, far = places(body, server_id)
        if far:
            options = {**(options or {}), "far": far}
        return messages.call_frames(
            call_id, token, self.agent, self.method, (body.payload, *body.buffers),
            flags=self.flags | Flag.RESENT if resent else self.flags, timeout_s=left, deps=deps, options=options,
            needed=needed,
        )  # fmt: skip

    def kept_as(self, task_id: str) -> str | None:
        return task_id if self.flags & Flag.DETACHED else None


class Plain:
    """A message of a header alone, or of a header and one frame."""

    __slots__ = ("_call_id", "_fields", "_kind", "_meta")

    repeat = Repeat.SAFE
    is_call = False
    deadline: float | None = None

    def __init__(self, kind: Kind, call_id: int | None = None, meta: bytes | None = None, **fields: int) -> None:
        self._kind = kind
        self._call_id = call_id  # that it is about, None: its own
        self._meta = meta
        self._fields = fields

    def to_frames(self, call_id: int, token: int, server_id: str, needed: int, resent: bool) -> list[messages.Frame]:
        about = call_id if self._call_id is None else self._call_id
        head = messages.header(self._kind, about, token, **self._fields)
        return [head] if self._meta is None else [head, self._meta]

    def kept_as(self, task_id: str) -> str | None:
        return None


class Reask(Plain):
    """Ask for the result of a call whose connection was lost, in the place of the call."""

    __slots__ = ("why",)

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(Kind.FETCH, None, codec.pack(task_id), time_ms=messages.MAX_TIME_MS)
        self.why = why

    @staticmethod
    def has_lost(reply: Reply) -> bool:
        """Whether the answer says that nobody knows."""
        return reply.code == Code.HOST_ERROR and isinstance(rebuild_error(reply), errors.UnknownTask)
