"""One segment: memory that a host and one of its clients both have mapped, with a ring each way.

    the first page   two counts, 64 bytes apart: frames that the host has taken, frames that the client has taken
    then             the ring that the client writes to, and the ring that the host writes to, `CAPACITY_BYTES` each

The host makes it, and maps no memory that a client has made. It is sealed, so that nobody can shorten it and end the
other side by a SIGBUS; a client maps nothing that is not. What comes out of it is always a copy: a value that was
checked cannot be changed any more. It is no file, so the system takes it back with the last process that has it mapped.

A count is written after the copy was made, and read before the same bytes are written again. Between the two lie some
hundreds of instructions on each side and, where callers wait for their answers, a message over the socket.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
from typing import Any

from ...errors import RemoteProtocolError
from ..messages import Frame
from .ring import COUNT_MASK, Ring

if hasattr(os, "memfd_create"):  # not on Windows, where there are clients, too
    import fcntl

__all__ = ["CAPACITY_BYTES", "SEGMENT_BYTES", "Segment", "is_offered", "make", "take_over"]

COUNTS_BYTES = 4096
CAPACITY_BYTES = 17 << 20  # of each ring: a value of 16 MiB and a little; only what was written to takes memory
SEGMENT_BYTES = COUNTS_BYTES + 2 * CAPACITY_BYTES
_OF_HOST, _OF_CLIENT = 0, 16  # where their counts are, in numbers of four bytes
_REFERENCE = struct.Struct(">?II")  # whether bytes are wanted, start, size
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}  # else it keeps a descriptor


def is_offered() -> bool:
    """Whether this system has such memory."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class Segment:
    """See the module's docstring. ``memory`` is mapped; belongs to the thread that has the connection."""

    __slots__ = ("_counts", "_in", "_memory", "_mine", "_out", "_ring", "_taken", "_theirs", "_views", "put_bytes")

    def __init__(self, memory: mmap.mmap, *, of_host: bool) -> None:
        self._memory = memory
        whole = memoryview(memory)
        page = whole[:COUNTS_BYTES]
        self._counts = page.cast("I")
        up = whole[COUNTS_BYTES : COUNTS_BYTES + CAPACITY_BYTES]
        down = whole[COUNTS_BYTES + CAPACITY_BYTES : SEGMENT_BYTES]
        self._in, self._out = (up, down) if of_host else (down, up)
        self._mine, self._theirs = (_OF_HOST, _OF_CLIENT) if of_host else (_OF_CLIENT, _OF_HOST)
        self._views = (self._counts, page, up, down, whole)
        self._ring = Ring(CAPACITY_BYTES)
        self._taken = 0
        self.put_bytes = 0  # so far

    def __repr__(self) -> str:
        return f"<Segment [out: {self._ring!r}, taken: {self._taken}]>"

    def put(self, frame: Frame) -> bytes | None:
        """Copy ``frame``; the reference by which the other side finds it, None if there is no room for it now."""
        size = len(frame)
        start = self._ring.place(size, self._counts[self._theirs])
        if start is None:
            return None
        if type(frame) is memoryview and frame.format != "B":
            frame = frame.cast("B")
        self._out[start : start + size] = frame
        self.put_bytes += size
        return _REFERENCE.pack(type(frame) is bytes, start, size)

    def take(self, reference: Frame, most: int) -> Frame:
        """A copy of the frame that the other side has put there. MemoryError: nothing is done, and `skip` it then.

        RemoteProtocolError: there is none, or it has more than ``most`` bytes.
        """
        try:
            wants_bytes, start, size = _REFERENCE.unpack(reference)
        except struct.error:
            raise RemoteProtocolError("what should refer to shared memory does not") from None
        if not size or start + size > CAPACITY_BYTES:
            raise RemoteProtocolError(f"a reference to bytes {start:,} to {start + size:,} of a segment")
        if size > most:
            raise RemoteProtocolError(f"a frame of {size:,} bytes")
        part = self._in[start : start + size]
        frame: Frame = part.tobytes() if wants_bytes else bytearray(part)
        self._taken = self._counts[self._mine] = (self._taken + 1) & COUNT_MASK
        return frame

    def skip(self) -> None:
        """Count the next frame as taken."""
        self._taken = self._counts[self._mine] = (self._taken + 1) & COUNT_MASK

    def close(self) -> None:
        """Unmap it, in this process."""
        with contextlib.suppress(BufferError):  # a fork came while a frame was copied: that view stays in the child
            for view in self._views:
                view.release()
            self._memory.close()


def make() -> tuple[Segment, int]:
    """A new segment, for a host, and a descriptor of it for the client, which the caller closes. Raises OSError."""
    fd = os.memfd_create("zmqagents", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, SEGMENT_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return Segment(mmap.mmap(fd, SEGMENT_BYTES, **_UNTRACKED), of_host=True), fd
    except BaseException:
        os.close(fd)
        raise


def take_over(fd: int) -> Segment:
    """The segment that a host has given as ``fd``, which the caller closes. Raises OSError.

    RemoteProtocolError: it is none, or one that the host could shorten while it is read here.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise RemoteProtocolError("the host gave a descriptor that is no shared memory") from None
    needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    if seals & needed != needed or os.fstat(fd).st_size != SEGMENT_BYTES:
        raise RemoteProtocolError("the host gave shared memory that it could shorten, or of a wrong size")
    return Segment(mmap.mmap(fd, SEGMENT_BYTES, **_UNTRACKED), of_host=False)
