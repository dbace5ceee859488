"""One end of a Unix socket: whatever pieces a message with a buffer comes in, it arrives whole, in the right memory."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zmqagents.wire import messages, zmtp
from zmqagents.wire.messages import Frame, Kind
from zmqagents.wire.stream import BUFFER_READ_BYTES, SHORT_READ_BYTES, UnixStream

LARGE = zmtp.LARGE_BYTES
SIZES = st.sampled_from([0, 1, 100, 300, LARGE - 1, LARGE, LARGE + 1, SHORT_READ_BYTES, 200_000, BUFFER_READ_BYTES + 1])


@contextlib.contextmanager
def stream() -> Iterator[tuple[UnixStream, socket.socket]]:
    """A stream after its handshake, and the bare socket at the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        made = UnixStream(ours, zmtp.Incoming())
        theirs.sendall(zmtp.GREETING + zmtp.READY)
        made.read()
        assert made.take() is None
        assert made.is_clean
        yield made, theirs


def received(end: UnixStream) -> list[list[Frame]]:
    """All messages of which everything has been written, read as a client does."""
    found: list[list[Frame]] = []
    while True:
        message = end.read_message() if end.is_clean else None
        if message is None and not end.is_clean:
            message = end.take()
            while message is None and end.read():
                message = end.take()
        if message is None:
            return found
        found.append(message)


def value(payload: bytes, size: int, as_bytes: bool) -> list[Frame]:
    """A result whose buffer is to arrive as bytes, or as memory that can be written to."""
    buffer = os.urandom(size)
    parts = messages.answer_frames(Kind.RESULT, 7, 5, [payload, buffer if as_bytes else memoryview(buffer)])
    if not as_bytes:  # also if it is so short that it would be received as bytes
        parts[0] = bytes(parts[0][:4]) + b"\0\0" + bytes(parts[0][6:])
    return parts


def data_of(sent: list[list[Frame]]) -> bytes:
    return b"".join(bytes(piece) for parts in sent for piece in zmtp.enclosed(parts))


def same(found: list[list[Frame]], sent: list[list[Frame]]) -> bool:
    return [[bytes(frame) for frame in parts] for parts in found] == [[bytes(frame) for frame in p] for p in sent]


@given(
    st.lists(st.tuples(st.binary(max_size=300), SIZES, st.booleans()), max_size=5),
    st.lists(st.integers(1, 70_000), max_size=8),
)
@example([(b"", 200_000, True)] * 3 + [(b"", 0, True)], [40, 1, 5_000])
@settings(max_examples=60, deadline=None)
def test_values_arrive_whole_whatever_pieces_they_come_in(
    values: list[tuple[bytes, int, bool]], sizes: list[int]
) -> None:
    sent = [value(*each) for each in values]
    data = data_of(sent)
    with stream() as (end, other):
        found = []
        while data:
            piece, data = data[: sizes[0] if sizes else 100_000], data[sizes[0] if sizes else 100_000 :]
            sizes = sizes[1:]
            other.sendall(piece)
            found += received(end)
        assert same(found, sent)
        assert end.is_clean


@pytest.mark.parametrize("size", [LARGE, 200_000, BUFFER_READ_BYTES, BUFFER_READ_BYTES + 1])
def test_a_buffer_is_received_as_the_message_says(size: int) -> None:
    with stream() as (end, other):
        for as_bytes in (True, False, True, True):
            sent = value(b"payload", size, as_bytes)
            thread = threading.Thread(target=other.sendall, args=(data_of([sent]),))
            thread.start()
            found = received(end)
            while not found:
                found = received(end)
            thread.join()
            [[_, buffer]] = found
            assert same(found, [sent])
            if not as_bytes:
                assert not memoryview(buffer).readonly
            elif zmtp.MAY_VIEW_BLOCKS:  # else the codec makes the bytes
                assert type(buffer) is bytes


def test_after_a_value_with_a_buffer_anything_may_come() -> None:
    long: list[Frame] = [messages.header(Kind.PONG, 1) + bytes(1_000)]
    several: list[Frame] = [b"first", b"second", bytes(LARGE), b"last"]
    large = value(b"payload", LARGE, True)
    sent: list[list[Frame]] = [
        large, long, large, [b"short"], large, several, large, large, [bytes(LARGE)], [b""]
    ]  # fmt: skip
    with stream() as (end, other):
        for each in sent:
            other.sendall(data_of([each]))
            assert same(received(end), [each])
        other.sendall(data_of(sent))
        assert same(received(end), sent)


def test_bytes_are_read_where_they_stay() -> None:
    size = 1 << 24
    with stream() as (end, other):
        thread = threading.Thread(target=other.sendall, args=(data_of([value(b"payload", size, True)]),))
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            thread.start()
            found = received(end)
            while not found:
                found = received(end)
            thread.join()
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert len(found[0][1]) == size
        assert peak < 1.5 * size


def test_what_has_no_room_is_sent_later_in_the_same_order() -> None:
    sent = [value(b"payload", size, True) for size in (LARGE, 6_000_000, LARGE, 0, 100_000)]
    with stream() as (end, other):
        for each in sent:
            end.send(each)
        data, got = data_of(sent), b""
        other.settimeout(10)
        while len(got) < len(data):
            got += other.recv(1 << 20)
            end.flush()
        assert got == data
        assert not end.pending
