"""ZMTP 3.1, the wire of ZeroMQ, without encryption, as both ends of a Unix socket need it: bytes in, messages out.

    greeting   signature ff 00*8 7f | version 03 01 | mechanism, 20 bytes | as-server | filler: 64 bytes
    frame      flags (1 more, 2 long, 4 command) | size, 1 or 8 bytes | body
    command    a frame whose body begins with the length of its name, and the name

Both sides send a greeting and, with the mechanism NULL, a READY command; then messages, each of frames of which all but
the last have the flag "more". Source: RFC 37, https://rfc.zeromq.org/spec/37/.

Hosts and clients of ours may have shared memory besides (`segments`). A host that has some to give says so by the
property "X-Segments" of its READY; a client that has long frames asks for it by the command SEGMENT. The host answers
with the same command and a descriptor, or with the data "no" and none; the client says MAPPED. From then on a frame
with the flag "segment" (8) stands for a long one: it says where in the shared memory that is.
"""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from ..errors import RemoteProtocolError
from .messages import Frame, want_bytes

__all__ = [
    "GREETING",
    "LARGE_BYTES",
    "LONG",
    "LONG_HEAD",
    "READY",
    "MAPPED",
    "NO_NEWS",
    "NO_SEGMENT",
    "READY_ROUTER",
    "READY_WITH_SEGMENTS",
    "SEGMENT",
    "Incoming",
    "Spares",
    "command",
    "enclosed",
    "head",
    "keep_freed_blocks",
    "refused",
]

MORE, LONG, COMMAND, SHARED = 1, 2, 4, 8
LARGE_BYTES = 32_768  # a frame from that on is read into memory of its own, and not copied
READ_BYTES = (
    1_048_576  # at a time: where the other side writes as fast as it is read, one read would get 80 MB of a frame
)
# A longer bytearray is not made, for that would be zeroed at once: a peer that promises 100 frames of 32 MiB and sends
# none would have them all written to.
ZEROED_BYTES = 4_194_304
KEPT_BYTES = 31 << 20  # just below the most that glibc can be told
MAX_FRAME_BYTES = 1 << 40
MAX_FRAMES = 256  # of one message
SPARE_BUFFERS = 4
_NOWHERE = memoryview(bytearray())
BUFFER_BYTES = 2 * LARGE_BYTES

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_SIGNED = len(GREETING)
LONG_HEAD = struct.Struct(">BQ")


@functools.cache
def keep_freed_blocks() -> None:
    """Have the allocator keep blocks of up to 31 MiB, once in a process; to be called when large values are about.

    glibc takes every block of 128 KiB and more from the system, and frees it there. The system then maps and clears
    each page when it is first written to, which takes a multiple of the time that it takes to fill it: with 256 of them
    a copy of 1 MiB took 2,000 µs in place of 40. But it learns: from when a larger block is freed, it takes only those
    from the system that are larger still, and keeps twice as much at the end of its heap. So one is made and freed. It
    is never written to, and takes no memory.
    """
    with contextlib.suppress(MemoryError):
        bytes(KEPT_BYTES)


def head(size: int, flags: int = 0) -> bytes:
    """What stands before the body of a frame of ``size`` bytes."""
    if size < 256:
        return bytes((flags, size))
    return LONG_HEAD.pack(flags | LONG, size)


def enclosed(parts: Sequence[Frame], put: Callable[[Frame], bytes | None] | None = None) -> list[Frame]:
    """A message as the bytes to be sent, in pieces: large frames are not copied.

    ``put`` copies a large frame behind the first to where the other side finds it, and gives the reference to it, None:
    it did not. With no large frame left, the message is one piece.
    """
    if len(parts) == 2 and (size := len(parts[1])) >= LARGE_BYTES and len(parts[0]) < 256:  # the usual large value
        if put is not None and (reference := put(parts[1])) is not None:
            start = bytes((MORE, len(parts[0])))
            return [b"".join((start, parts[0], bytes((SHARED, len(reference))), reference))]
        keep_freed_blocks()
        return [b"".join((bytes((MORE, len(parts[0]))), parts[0], LONG_HEAD.pack(LONG, size))), parts[1]]
    pieces: list[Frame] = []
    short: list[Frame] = []  # for the next piece
    last = len(parts) - 1
    for number, frame in enumerate(parts):
        size, flags = len(frame), MORE if number < last else 0
        if size >= LARGE_BYTES and number and put is not None and (reference := put(frame)) is not None:
            short += (bytes((flags | SHARED, len(reference))), reference)
            continue
        short.append(bytes((flags, size)) if size < 256 else bytes((flags | LONG,)) + size.to_bytes(8, "big"))
        if size < LARGE_BYTES:
            short.append(frame)
        else:
            keep_freed_blocks()
            pieces += (b"".join(short), frame)
            short = []
    if short:
        pieces.append(b"".join(short))
    return pieces


def command(name: bytes, data: bytes = b"") -> bytes:
    """A frame that is no part of a message but speaks to the other side's ZMTP."""
    body = bytes((len(name),)) + name + data
    return head(len(body), COMMAND) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


READY = command(b"READY", _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))
_ROUTER = _property(b"Socket-Type", b"ROUTER") + _property(b"Identity", b"")
_OFFER = _property(b"X-Segments", b"1")
READY_ROUTER = command(b"READY", _ROUTER)
READY_WITH_SEGMENTS = command(b"READY", _ROUTER + _OFFER)
SEGMENT = command(b"SEGMENT")
NO_SEGMENT = command(b"SEGMENT", b"no")
MAPPED = command(b"MAPPED")


def refused(reason: bytes) -> bytes:
    """The command that ends a handshake. A DEALER of libzmq wants a status code of ZAP for a reason, ``400`` say."""
    return command(b"ERROR", bytes((len(reason),)) + reason)


class Buffer:
    """Memory to read into, `BUFFER_BYTES` of it."""

    __slots__ = ("data", "view")

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_BYTES)
        self.view = memoryview(self.data)


class Spares:
    """Memory that connections of one thread have done with, for the next that needs some."""

    __slots__ = ("buffers",)

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []


class Shared(Protocol):
    """Where frames with the flag "segment" are."""

    def take(self, reference: Frame, most: int) -> Frame:
        """The frame; see `segments.memory.Segment`."""

    def skip(self) -> None:
        """The next frame is not wanted."""


_SHARED = bytes((SHARED,))
_OF_SEGMENTS = (b"SEGMENT", b"MAPPED")
NO_NEWS: frozenset[bytes] = frozenset()  # one for all connections: a set of its own takes 216 bytes
_EARLY = "a message before the handshake was over"
# Python 3.12 (3.12.1) crashes when its garbage collector frees a view of a `BytesIO` that is part of a cycle.
MAY_VIEW_BLOCKS = sys.version_info[:2] != (3, 12)
_SINK = memoryview(bytearray(LARGE_BYTES))  # where bytes go that nobody reads


class _Block(io.BytesIO):
    """The memory of a frame. Never closed: the garbage collector would try that before it has freed the views of it.

    What comes of that, a `BufferError` that nobody can catch, is ignored before Python 3.13, and goes to stderr there.
    """

    def close(self) -> None:
        """Do nothing."""


def _mapped(size: int) -> mmap.mmap:
    """Memory that is this process's own. Raises MemoryError."""
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as exc:
        raise MemoryError(f"{size:,} bytes cannot be had: {exc}") from exc


class Incoming:
    """What comes over one connection: read into `space`, say how much with `filled`, then `take` message by message.

    ``ready``: both have greeted, and messages may be sent. ``refusal``: why the other side will not have us.
    ``answers``: what is to be sent back at once. ``segment``: the shared memory that the other side writes to.
    ``offers``: the other side has some to give. ``news``: commands about it that nobody has looked at yet.

    An owner of many connections shares ``spares`` among them, and calls `rest` on one that has taken all that was read:
    then only those in the middle of a message hold a buffer. With ``max_bytes`` a longer frame is refused, and of a
    message that has more in all, or more than `MAX_FRAMES` frames, only the first frame is kept: ``size`` and ``count``
    say what it was, as of each message taken.
    """

    __slots__ = (
        "_block", "_buffer", "_bytes", "_count", "_end", "_got", "_greeted", "_large", "_large_flags", "_large_from",
        "_lacks", "_max_bytes", "_parts", "_skip", "_skipped", "_spares", "_start", "_view", "answers", "count",
        "lacks_memory", "news", "offers", "ready", "refusal", "segment", "size",
    )  # fmt: skip

    def __init__(self, spares: Spares | None = None, max_bytes: int | None = None) -> None:
        self._spares = spares or Spares()
        self._buffer: Buffer | None = None
        self._view = _NOWHERE
        self._max_bytes = max_bytes
        self._large_from = LARGE_BYTES if max_bytes is None else min(LARGE_BYTES, max_bytes + 1)
        self._bytes = self._count = 0  # of the message that is not whole yet
        self.size = self.count = 0  # of the one taken last
        self._start = self._end = 0  # of what was read and not taken
        self._parts: list[Frame] = []  # the message that is not whole yet
        self._large: memoryview | None = None  # the frame that is being read, and how much of it has come
        self._block: io.BytesIO | None = None  # has that memory, if the frame is to be bytes
        self._large_flags = self._got = 0
        self._skip = self._skipped = 0  # bytes still to come, and all, of a frame that is not kept
        self._lacks = False  # the message that is not whole yet will lack frames, for there was no memory for them
        self.lacks_memory = False  # the same of the one taken last
        self._greeted = False
        self.ready = False
        self.refusal: str | None = None
        self.answers: list[bytes] = []
        self.offers = False
        self.news: frozenset[bytes] = NO_NEWS
        self.segment: Shared | None = None

    def __repr__(self) -> str:
        large = self._got if self._large is not None else 0
        return f"<Incoming [buffers: {int(self._buffer is not None)}, waiting: {self.waiting}, large: {large}]>"

    @property
    def started(self) -> bool:
        """Something was read and not taken, be it the first frames of a message."""
        return self._end > 0 or self._count > 0 or self._large is not None or self._skipped > 0

    @property
    def waiting(self) -> int:
        """Bytes read and not taken, of frames that are not long."""
        return self._end - self._start

    @property
    def amid_large(self) -> bool:
        """A long frame has begun, and there is more of it to come."""
        return self._skip > 0 or (self._large is not None and self._got < len(self._large))

    def space(self) -> memoryview:
        """Where the next bytes belong, `READ_BYTES` at most; never empty."""
        if self._large is not None:
            return self._large[self._got : self._got + READ_BYTES]
        if self._skip:
            return _SINK[: self._skip]
        if self._buffer is None:
            self._buffer = self._spares.buffers.pop() if self._spares.buffers else Buffer()
            self._view = self._buffer.view
        if not self._end:
            return self._view
        if BUFFER_BYTES - self._end < LARGE_BYTES:
            left = self._end - self._start
            self._view[:left] = self._view[self._start : self._end].tobytes()
            self._start, self._end = 0, left
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """``count`` bytes were read into `space`."""
        if self._large is not None:
            self._got += count
        elif self._skip:
            self._skip -= count
        else:
            self._end += count

    def feed(self, data: bytes) -> None:
        """The same in one, for no more than `BUFFER_BYTES` that were read elsewhere, while nothing is left."""
        self.space()[: len(data)] = data
        self.filled(len(data))

    def buffer_size(self, data: bytes) -> int:
        """How long the buffer is that comes next, if ``data`` is a short frame and the head of a long one.

        That is how most values with a buffer begin. 0 for anything else, for a message that is too long, and where
        ``data`` goes on behind the buffer.
        """
        there = len(data)
        if there < 11 or data[0] != MORE or data[1] + 11 > there or data[start := data[1] + 2] != LONG:
            return 0
        size = int.from_bytes(data[start + 1 : start + 9], "big")
        if size < there - start - 9:
            return 0
        return size if self._large_from <= size <= (self._max_bytes or MAX_FRAME_BYTES) - start + 2 else 0

    def referred(self, data: bytes) -> list[Frame] | None:
        """The message, if ``data`` is no more and no less than a short frame and one with the flag "segment".

        None for anything else, and where something is wrong with it: that is for `take` to say.
        """
        end = data[1] + 2
        if self.segment is None or data[end : end + 1] != _SHARED:
            return None
        if len(data) != end + 2 + data[end + 1]:
            return None
        try:
            return [data[2:end], self.segment.take(data[end + 2 :], (self._max_bytes or MAX_FRAME_BYTES) - end + 2)]
        except (RemoteProtocolError, MemoryError):
            return None

    def begin(self, data: bytes, size: int) -> None:
        """The same as `feed` for ``data`` of which `buffer_size` has said ``size``. MemoryError: nothing is done."""
        start = data[1] + 2
        self._parts = [data[2:start]]
        try:
            self._large = self._memory(size)
        except MemoryError:
            self._parts = []
            raise
        self._got = min(size, len(data) - start - 9)
        self._large[: self._got] = data[start + 9 :]
        self._large_flags = 0
        self._count, self._bytes = 1, start - 2

    def rest(self) -> None:
        """Nothing is left of what was read: others may have the buffer."""
        buffer = self._buffer
        if buffer is not None and not self._end:
            self._buffer, self._view = None, _NOWHERE
            if len(self._spares.buffers) < SPARE_BUFFERS:
                self._spares.buffers.append(buffer)

    def drop(self) -> None:
        """Forget what was read and not taken; there is no more to come."""
        self._large = self._block = None
        self._skip = self._skipped = 0
        self._parts = []
        self._start = self._end = 0
        self.rest()

    def take(self) -> list[Frame] | None:
        """The next message, None if it is not there yet. RemoteProtocolError: this is not ZMTP."""
        if self._large is not None:
            if self._got < len(self._large):
                return None
            if not self.ready:
                raise RemoteProtocolError(_EARLY)
            message = self._on_frame(self._large_flags, self._end_of_large())
            if message is not None:
                return message
        start, end = self._start, self._end
        if end - start >= 2 and not self._view[start] and self.ready and not self._parts:  # one short frame
            stop = start + 2 + self._view[start + 1]
            if stop <= end:
                whole = self._view[start + 2 : stop].tobytes()
                if stop == end:
                    self._start = self._end = 0
                else:
                    self._start = stop
                self.size, self.count = len(whole), 1
                self.lacks_memory = False
                return [whole]
        while (found := self._next_frame()) is not None:
            flags, frame = found
            if flags & COMMAND:
                self._on_command(bytes(frame))
            elif not self.ready:
                raise RemoteProtocolError(_EARLY)
            elif (message := self._on_frame(flags, frame)) is not None:
                return message
        return None

    def _on_frame(self, flags: int, frame: Frame) -> list[Frame] | None:
        """One more frame of a message; the message, if it was the last one."""
        parts = self._parts
        self._count += 1
        self._bytes += len(frame)
        if self._lacks:
            del parts[1:]
        elif self._count > MAX_FRAMES or (self._max_bytes is not None and self._bytes > self._max_bytes):
            if self._max_bytes is None:
                raise RemoteProtocolError(f"a message of more than {MAX_FRAMES} frames")
            del parts[1:]
        else:
            parts.append(frame)
        if flags & MORE:
            return None
        self.size, self.count = self._bytes, self._count
        self.lacks_memory, self._lacks = self._lacks, False
        self._parts, self._bytes, self._count = [], 0, 0
        return parts

    def _next_frame(self) -> tuple[int, Frame] | None:
        if self._skipped:
            return self._end_of_skipped()
        if not (self._greeted or self._greet()):
            return None
        start, end = self._start, self._end
        if end - start < 2:
            return None
        flags = self._view[start]
        if flags & ~(MORE | LONG | COMMAND) and flags & ~MORE != SHARED:
            raise RemoteProtocolError(f"a frame with the flags {flags:#x}")
        body = start + (9 if flags & LONG else 2)
        if end < body:
            return None
        size = int.from_bytes(self._view[start + 1 : body], "big")
        if size >= self._large_from:
            return self._begin_large(flags, body, size)
        if end < body + size:
            return None
        frame: Frame = self._view[body : body + size].tobytes()
        self._skip_to(body + size)
        return flags & ~SHARED, self._from_segment(frame) if flags & SHARED else frame

    def _from_segment(self, reference: Frame) -> Frame:
        if self.segment is None or not self.ready:
            raise RemoteProtocolError("a reference to shared memory, and there is none")
        try:
            return self.segment.take(reference, self._max_bytes or MAX_FRAME_BYTES)
        except MemoryError:
            if self._max_bytes is None or not self._parts:  # as in `_begin_large`
                raise RemoteProtocolError("a frame for which there is no memory") from None
            self.segment.skip()
            self._lacks = True
            return b""

    def _begin_large(self, flags: int, body: int, size: int) -> tuple[int, Frame] | None:
        if size > (self._max_bytes or MAX_FRAME_BYTES) or flags & COMMAND:
            raise RemoteProtocolError(f"a frame of {size:,} bytes")
        try:
            self._large = self._memory(size)
        except MemoryError:
            if self._max_bytes is None or not self._parts:  # a client; or nobody would know whom to answer
                raise RemoteProtocolError(f"a frame of {size:,} bytes, for which there is no memory") from None
            got = min(size, self._end - body)
            self._skip_to(body + got)
            self._large_flags, self._skip, self._skipped, self._lacks = flags, size - got, size, True
            return self._end_of_skipped()
        self._large_flags = flags
        self._got = min(size, self._end - body)
        self._large[: self._got] = self._view[body : body + self._got]
        self._skip_to(body + self._got)
        return (flags, self._end_of_large()) if self._got == size else None

    def _memory(self, size: int) -> memoryview:
        """Memory for a frame of ``size`` bytes, of which the system gives no more than is written to.

        A `BytesIO` shares the ``bytes`` that it was made of as long as nothing else has them, and gives them away when
        they are full. So ``bytes`` are read from the socket in place, in as many pieces as they come.
        """
        keep_freed_blocks()
        if MAY_VIEW_BLOCKS and self._parts and want_bytes(self._parts[0]):
            self._block = block = _Block(bytes(size))
            return block.getbuffer()
        if size <= ZEROED_BYTES:
            return memoryview(bytearray(size))
        return _Block(bytes(size)).getbuffer() if MAY_VIEW_BLOCKS else memoryview(_mapped(size))

    def _end_of_large(self) -> Frame:
        """The long frame that has come."""
        frame: Frame | None = self._large
        assert isinstance(frame, memoryview)
        if self._block is not None:
            frame.release()  # with a view of it alive, getvalue would copy
            frame = self._block.getvalue()
        elif type(memory := frame.obj) is bytearray:
            frame.release()  # with a view of it alive, nobody could make it longer or shorter
            frame = memory
        self._large = self._block = None
        return frame

    def _end_of_skipped(self) -> tuple[int, Frame] | None:
        """A frame that was not kept, once all of it has come."""
        if self._skip:
            return None
        self._bytes += self._skipped
        self._skipped = 0
        return self._large_flags, b""

    def _skip_to(self, place: int) -> None:
        self._start = place
        if place == self._end:
            self._start = self._end = 0

    def _greet(self) -> bool:
        there = self._view[self._start : self._end]
        if len(there) and (there[0] != 0xFF or (len(there) > 9 and there[9] != 0x7F)):
            raise RemoteProtocolError("the peer does not speak ZMTP")
        if len(there) < _SIGNED:
            return False
        if there[10] < 3 or there[12:32].tobytes().rstrip(b"\0") != b"NULL":
            raise RemoteProtocolError("the peer does not speak ZMTP 3 with the mechanism NULL")
        self._greeted = True
        self._skip_to(self._start + _SIGNED)
        return True

    def _on_command(self, body: bytes) -> None:
        length = body[0] if body else 0
        name, data = body[1 : 1 + length], body[1 + length :]
        if name == b"READY":
            self.ready = True
            self.offers = _OFFER in data
        elif name in _OF_SEGMENTS:
            self.news |= {b"no" if data == b"no" else name}
        elif name == b"ERROR":
            self.refusal = data[1:].decode("utf-8", "replace")
        elif name == b"PING":  # a time to live, and what is to come back
            self.answers.append(command(b"PONG", data[2:]))
