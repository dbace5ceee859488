"""One end of a Unix socket that speaks ZMTP: what the clients and the host of one machine have between them.

`zmtp` knows the bytes, this module the socket: nothing here ever waits, and a broken connection is no exception but
an `ended` one. One thread at a time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from . import zmtp
from .messages import Frame, want_bytes
from .segments.memory import Segment

__all__ = ["SENDING", "UnixStream"]

SHORT_READ_BYTES = 65_536  # read at once where nothing is left of what was read before; a buffer of `Incoming` at most
BUFFER_READ_BYTES = 1_048_576  # a longer buffer is read in pieces
WRITE_BYTES = 4_194_304  # at a time: one call goes on while the other side reads, and others wait for this thread
PIECES = 64  # written by one system call
SEND_BUFFER_BYTES = 1 << 20  # asked for; Linux gives what net.core.wmem_max allows, twice the default at least
AT_ONCE = int(getattr(socket, "MSG_DONTWAIT", 0))  # Windows has neither the flag nor hosts with Unix sockets
SENDING = AT_ONCE | int(getattr(socket, "MSG_NOSIGNAL", 0))  # a program may have SIGPIPE at its default

_HEADS = tuple(bytes((0, size)) for size in range(256))  # of a message of one short frame


class UnixStream:
    """See the module's docstring. ``sock`` is connected or will be; the wire closes it.

    ``pending``: something sent waits until there is room. ``ended``: nothing more can be sent. ``drained``: nothing
    more can be read, but for what was read and not taken. ``written``: bytes that the system has taken.
    """

    __slots__ = (
        "_ask", "_counts_large", "_in", "_out", "_put", "_recv_into", "_segment", "_socket", "drained", "ended",
        "is_clean", "pending", "written",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, incoming: zmtp.Incoming) -> None:
        self._in = incoming
        self._out: list[Frame] = []  # no deque: that of an idle connection takes 760 bytes
        self.pending = self.ended = self.drained = False
        self.written = 0
        self.is_clean = True  # nothing is left of what was read
        self._ask = SHORT_READ_BYTES  # how much `read_message` reads first
        self._segment: Segment | None = None
        self._put: Callable[[Frame], bytes | None] | None = None  # what copies long frames there
        self._counts_large = False  # `_on_large` is to be told of long frames
        self._socket = sock
        self._recv_into: Callable[[memoryview, int, int], int] = sock.recv_into  # or what takes descriptors, too
        sock.settimeout(None)  # whatever the program's default is
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)

    def __repr__(self) -> str:
        waits = f"pieces: {len(self._out)}, unwritten: {sum(map(len, self._out))}"
        return f"<{type(self).__name__} [{waits}] {self._in!r}>"

    @property
    def shares_memory(self) -> bool:
        """Whether the long frames of this side go by shared memory, where there is room."""
        return self._put is not None

    def fileno(self) -> int:
        """The socket's descriptor; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, parts: list[Frame]) -> bool:
        """Send a message now, as far as there is room, and keep the rest; False if too much waits already."""
        if self._out:
            if not self.queue(parts):
                return False
        else:
            if len(parts) == 1 and (size := len(parts[0])) < zmtp.LARGE_BYTES:
                data: Frame = (_HEADS[size] if size < 256 else zmtp.LONG_HEAD.pack(zmtp.LONG, size)) + parts[0]
            else:
                pieces = zmtp.enclosed(parts, self._put)
                if len(pieces) > 1:
                    return self._send_large(pieces)
                data = pieces[0]
            try:
                count = self._socket.send(data, SENDING)
            except BlockingIOError:
                count = 0
            except OSError:
                self.end()
                return True
            self.written += count
            if count == len(data):
                return True
            self._out.append(data[count:])
        if not self.pending:  # else a poll tells when there is room
            self.flush()
        return True

    def _send_large(self, pieces: list[Frame]) -> bool:
        """The same for the pieces of a message with large frames, while nothing waits."""
        if self._counts_large:
            self._on_large()
        if len(pieces) == 2 and len(pieces[1]) <= WRITE_BYTES and not self._out:  # a value with a buffer, most often
            try:
                count = self._socket.sendmsg(pieces, (), SENDING)
            except BlockingIOError:
                count = 0
            except OSError:
                self.end()
                return True
            self.written += count
            begun = count - len(pieces[0])
            if begun == len(pieces[1]):
                return True
            pieces = [memoryview(pieces[1])[begun:]] if begun >= 0 else [pieces[0][count:], pieces[1]]
        self._out += pieces
        self.flush()
        return True

    def _on_large(self) -> None:
        """A long frame goes or comes over the socket."""

    def queue(self, parts: list[Frame]) -> bool:
        """Send a message at the next `flush`; False if too much waits already."""
        if self.pending and not self.may_queue(parts):
            return False
        if len(parts) == 1 and len(parts[0]) < 256:
            self._out.append(_HEADS[len(parts[0])] + parts[0])
        else:
            self._out += zmtp.enclosed(parts, self._put)
        return True

    def may_queue(self, parts: list[Frame]) -> bool:
        """Whether a message may wait behind what is not written yet."""
        return True

    def flush(self) -> None:
        """Write what is queued, as far as there is room, `WRITE_BYTES` at most."""
        out = self._out
        left = WRITE_BYTES
        try:
            while out and left and not self.ended:
                size = sum(map(len, out)) if len(out) <= PIECES else WRITE_BYTES + 1
                try:
                    count = self._socket.sendmsg(out if size <= left else self._next_pieces(left), (), SENDING)
                except BlockingIOError:
                    break
                except OSError:
                    self.end()
                    break
                self.written += count
                if count == size:  # most often
                    out.clear()
                    break
                left -= count
                whole = 0
                while count >= len(out[whole]):
                    count -= len(out[whole])
                    whole += 1
                if count:
                    out[whole] = memoryview(out[whole])[count:]
                del out[:whole]
        except BaseException:  # KeyboardInterrupt: how much was written is not known, and nothing may be written twice
            self.end()
            raise
        self.pending = bool(out) and not self.ended

    def _next_pieces(self, room: int) -> list[Frame]:
        """What is to be written next, ``room`` bytes at most."""
        pieces: list[Frame] = []
        for piece in self._out[:PIECES]:
            if len(piece) >= room:
                pieces.append(memoryview(piece)[:room])
                break
            pieces.append(piece)
            room -= len(piece)
        return pieces

    def read(self) -> int:
        """Read what is there, once; how many bytes that was."""
        if self.drained:
            return 0
        try:
            count = self._recv_into(self._in.space(), 0, AT_ONCE)
        except BlockingIOError:
            return 0
        except OSError:
            count = 0
        if count:
            self.is_clean = False
            self._in.filled(count)
        else:
            self.drained = True
            self.end()
        return count

    def read_message(self) -> list[Frame] | None:
        """Read what is there: the message, if that is one, whole, with nothing behind it.

        That is the rule where callers wait for each other. Anything else is left for `take`. To be called only when
        nothing was left so far, and after the handshake.
        """
        try:
            data = self._socket.recv(self._ask, AT_ONCE)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        size = len(data)
        if size > 1:
            start = data[0]
            if not start:
                if size == data[1] + 2:
                    return [data[2:]]
            elif start == zmtp.LONG:
                if size == int.from_bytes(data[1:9], "big") + 9:
                    return [data[9:]]
            elif self._segment is not None and (message := self._in.referred(data)) is not None:
                self._ask = SHORT_READ_BYTES
                return message
            elif (size := self._in.buffer_size(data)) > 0:
                return self._read_buffer(data, size)
        self._ask = SHORT_READ_BYTES
        if data:
            self.is_clean = False
            self._in.feed(data)
        else:
            self.drained = True
            self.end()
        return None

    def _read_buffer(self, data: bytes, size: int) -> list[Frame] | None:
        """Read the ``size`` bytes that follow the beginning ``data`` of a message: the message, if they are there.

        Values of one kind come one after the other, most often. So the next read asks for no more than the beginning,
        and of the rest the system makes ``bytes`` at once.
        """
        if self._counts_large:
            self._on_large()
        end = data[1] + 11
        head, self._ask = data[2 : end - 9], end
        self.is_clean = False
        body = b""
        try:
            if len(data) == end and size <= BUFFER_READ_BYTES and want_bytes(head):
                zmtp.keep_freed_blocks()
                body = self._socket.recv(size, AT_ONCE)
                if len(body) == size:
                    self.is_clean = True
                    return [head, body]
        except OSError:  # nothing is there, or all of it is over: the next read tells
            body = b""
        except MemoryError:
            self._in.feed(data)
            return None
        try:
            self._in.begin(data + body if body else data, size)
        except MemoryError:
            if body:
                raise
            self._in.feed(data)
        return None

    def take(self) -> list[Frame] | None:
        """The next message of what was read. RemoteProtocolError: the other side does not speak ZMTP."""
        incoming = self._in
        message = incoming.take()
        self.is_clean = not incoming.started
        if message is None and incoming.answers:
            if not self.pending:  # a peer that asks again and again, and does not read, is not answered
                self._out += incoming.answers
                self.flush()
            incoming.answers.clear()
        return message

    def _use(self, segment: Segment) -> None:
        """Long frames of the other side may be in ``segment`` from now on."""
        self._segment = self._in.segment = segment

    def _drop_segment(self) -> None:
        """Unmap the shared memory, if there is some: nothing more is read or sent."""
        segment, self._segment, self._in.segment, self._put = self._segment, None, None, None
        if segment is not None:
            segment.close()

    def end(self) -> None:
        """Nothing more can be sent. What the other side sent before it went can still be read."""
        self.ended = True
        self.pending = False
        self._out.clear()
