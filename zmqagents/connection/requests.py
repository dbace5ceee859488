"""What a client asks for: the kinds of request, and what each becomes when it is sent.

A `Request` is one message and the sink of its answer. The message makes its frames at the moment when it is sent, so
that the time left, the connection's token and the lowest needed id are right then. Its `Repeat` says what may become
of it when the connection breaks.
"""

from __future__ import annotations

import enum
import time
from typing import Any, Protocol

from .. import codec, errors
from ..agents.context import RunningCall
from ..codec import Encoded
from ..tracing.switch import note_resent
from ..wire import messages
from ..wire.link import Sink, places, rebuild_error
from ..wire.messages import Code, Flag, Frame, Kind, Reply

__all__ = ["Call", "CallOfMany", "Credit", "Fetch", "Message", "Plain", "Reask", "Repeat", "Request"]


_STREAM, _UNTIL = Flag.STREAM, Flag.UNTIL
FAR_S = 1e6  # a deadline further away is told as the time left: as a time it would be taken for one in the past


class Repeat(enum.Enum):
    """What may become of a message that was sent when its connection broke."""

    SAFE = "safe"  # asked again, of this host or its successor
    SOON = "soon"  # the same, but no longer waited for than what is to run ONCE
    ONCE = "once"  # asked again only of a host that knows whether it came


class Message(Protocol):
    """What a request sends."""

    is_call: bool
    deadline: float | None  # of the call; None: no deadline

    @property
    def repeat(self) -> Repeat:
        """What may become of it when its connection breaks."""

    def to_frames(
        self, call_id: int, token: int, server_id: str, needed: int, resent: bool, one_clock: bool
    ) -> list[Frame]:
        """The message; ``needed`` is the lowest id whose reply the client still needs.

        ``one_clock``: the host reads the same monotonic clock, so it is told the deadline and not the time left.
        """

    def kept_as(self, task_id: str) -> str | None:
        """``task_id`` if the store keeps its result, so that it can be asked for."""


class Request:
    """One message, and the sink that its answer goes to (None: there is none)."""

    __slots__ = ("call_id", "deadline", "message", "resent", "sent", "sink", "size")

    def __init__(self, message: Message, sink: Sink | None, deadline: float | None) -> None:
        self.call_id = 0
        self.message = message
        self.sink = sink
        self.deadline = deadline  # None: the thread that waits looks at the clock itself
        self.sent = False
        self.resent = False
        self.size = 0


class Call:
    """A CALL that is made into frames when it is sent: the time left is right then, not when it was queued.

    Of a stream it knows how far that has come: the number of the item that is ``expected`` next, and the items for
    which credit was ``granted``. Both count round, as the wire has 32 bits for them.
    """

    __slots__ = ("agent", "body", "deadline", "expected", "flags", "granted", "method", "near", "options")

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
            options = {**(options or {}), "chain": caller.host.chain_of(caller)}
        self.options = options
        self.deadline = deadline = None if timeout is None else time.monotonic() + timeout
        if caller is not None and deadline is not None and caller.deadline is not None and caller.deadline < deadline:
            self.deadline = caller.deadline  # `timeout` was the rest of it a moment before
        self.near = timeout is not None and timeout < FAR_S
        if flags & _STREAM:
            self.expected = self.granted = 0

    @property
    def repeat(self) -> Repeat:
        """See `Repeat`; of use only when a connection breaks, so nothing that each call reckons."""
        return Repeat.SAFE if self.flags & (Flag.IDEMPOTENT | Flag.STREAM) == Flag.IDEMPOTENT else Repeat.ONCE

    def to_frames(
        self, call_id: int, token: int, server_id: str, needed: int, resent: bool, one_clock: bool
    ) -> list[messages.Frame]:
        left, flags = self.deadline, self.flags
        if left is not None:
            if one_clock and self.near:
                flags |= _UNTIL
            else:
                left -= time.monotonic()
        body, options = self.body, self.options
        meta: bytes | None = None
        if not (resent or body.tasks):
            if not options:
                meta = messages.plain_meta(self.agent, self.method)
            elif "traceparent" in options:
                meta = messages.traced_meta(self.agent, self.method, options)
        if meta is not None:
            buffers = body.buffers
            if buffers:
                flags |= messages.bytes_flag(buffers)
            frame = messages.call_frame(call_id, token, meta, body.payload, flags, left, needed)
            if frame is not None:
                return [frame, *buffers] if buffers else [frame]
        if resent:
            note_resent(options)
        deps, far = places(body, server_id) if body.tasks else ((), {})
        if far:
            options = {**(options or {}), "far": far}
        if resent and self.flags & Flag.STREAM:
            options = {**(options or {}), "stream": [self.expected, self.granted]}
        return messages.call_frames(
            call_id, token, self.agent, self.method, (body.payload, *body.buffers),
            flags=flags | Flag.RESENT if resent else flags, timeout_s=left, deps=deps, options=options,
            needed=needed,
        )  # fmt: skip

    def add_options(self, options: dict[str, Any]) -> None:
        """Send these options, too."""
        self.options = {**(self.options or {}), **options}

    def kept_as(self, task_id: str) -> str | None:
        return task_id if self.flags & Flag.DETACHED else None

    def lacks_items(self, head: messages.Header) -> bool:
        """Of a stream: whether this answer ends it and items of it are missing."""
        return head.code != Code.BUSY and head.time_ms != self.expected

    def takes(self, number: int) -> bool:
        """Whether the item ``number`` of a stream is the next one; another has come before, or comes again.

        Of any other call: True for what tells its progress. RemoteProtocolError for all else.
        """
        if not self.flags & Flag.STREAM:
            if number == messages.PROGRESS:
                return True
            raise errors.RemoteProtocolError("CHUNK for what is no stream")
        if number != self.expected:
            return False
        self.expected = (number + 1) & messages.MAX_TIME_MS
        return True

    def grant(self, items: int) -> None:
        """Credit for ``items`` of a stream is sent."""
        self.granted = (self.granted + items) & messages.MAX_TIME_MS


class CallOfMany(Call):
    """A CALL to a host of a cluster: what may run twice is not kept for that host alone, for others may have it."""

    __slots__ = ()

    @property
    def repeat(self) -> Repeat:
        """See `Repeat`."""
        return Repeat.SOON if super().repeat is Repeat.SAFE else Repeat.ONCE


class Plain:
    """A message of a header alone, or of a header and one frame."""

    __slots__ = ("_call_id", "_fields", "_meta", "kind")

    repeat = Repeat.SAFE
    is_call = False
    deadline: float | None = None

    def __init__(self, kind: Kind, call_id: int | None = None, meta: bytes | None = None, **fields: int) -> None:
        self.kind = kind
        self._call_id = call_id  # that it is about, None: its own
        self._meta = meta
        self._fields = fields

    def to_frames(
        self, call_id: int, token: int, server_id: str, needed: int, resent: bool, one_clock: bool
    ) -> list[messages.Frame]:
        about = call_id if self._call_id is None else self._call_id
        head = messages.header(self.kind, about, token, **self._fields)
        return [head] if self._meta is None else [head, self._meta]

    def kept_as(self, task_id: str) -> str | None:
        return None


class Credit(Plain):
    """Allow the stream ``call_id`` to send ``items`` more."""

    __slots__ = ("items", "stream_id")

    def __init__(self, call_id: int, items: int) -> None:
        super().__init__(Kind.CREDIT, call_id, time_ms=items)
        self.stream_id = call_id
        self.items = items


class Fetch(Plain):
    """Ask for the result of a task, for which the host waits ``time_ms``.

    ``at_home``: the call runs on this very host, and has gone if the host has.
    """

    __slots__ = ("repeat",)

    def __init__(self, task_id: str, time_ms: int, *, at_home: bool) -> None:
        super().__init__(Kind.FETCH, None, codec.pack(task_id), time_ms=time_ms)
        self.repeat = Repeat.SOON if at_home else Repeat.SAFE


class Reask(Fetch):
    """Ask for the result of a call whose connection was lost, in the place of the call."""

    __slots__ = ("why",)

    def __init__(self, task_id: str, why: str) -> None:
        super().__init__(task_id, messages.MAX_TIME_MS, at_home=True)
        self.why = why

    @staticmethod
    def has_lost(reply: Reply) -> bool:
        """True if the answer says that the host does not know the call."""
        return reply.code == Code.HOST_ERROR and isinstance(rebuild_error(reply), errors.UnknownTask)
