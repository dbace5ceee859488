"""The wire of ZeroMQ, in memory: whatever pieces it comes in, the same messages come out."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scale import glibc_only, pick
from zmqagents.errors import RemoteProtocolError
from zmqagents.wire import zmtp
from zmqagents.wire.messages import Frame

HANDSHAKE = zmtp.GREETING + zmtp.READY
FRAMES = st.binary(max_size=300) | st.sampled_from([zmtp.LARGE_BYTES - 1, zmtp.LARGE_BYTES, 200_000]).map(bytes)
MESSAGES = st.lists(st.lists(FRAMES, min_size=1, max_size=4), max_size=6)


def feed_once(incoming: zmtp.Incoming, data: bytes) -> tuple[list[list[Frame]], bytes]:
    """As much of ``data`` as there is space for; the messages that are whole then, and the rest of it."""
    space = incoming.space()
    assert len(space)
    space[: len(data)] = data[: len(space)]
    incoming.filled(min(len(space), len(data)))
    return list(iter(incoming.take, None)), data[len(space) :]


def feed(incoming: zmtp.Incoming, data: bytes, sizes: list[int]) -> list[list[Frame]]:
    """What ``incoming`` makes of ``data`` that comes in pieces of ``sizes``, and then in one."""
    taken: list[list[Frame]] = []
    for size in [*sizes, len(data)]:
        while size and data:
            space = incoming.space()
            count = min(size, len(space), len(data))
            assert count
            space[:count] = data[:count]
            incoming.filled(count)
            data, size = data[count:], size - count
            while (message := incoming.take()) is not None:
                taken.append(message)
    return taken


def written(messages: list[list[bytes]]) -> bytes:
    return b"".join(bytes(piece) for parts in messages for piece in zmtp.enclosed(list(parts)))


@given(MESSAGES, st.lists(st.integers(0, 70_000), max_size=12))
@settings(deadline=None)
def test_messages_come_out_as_they_went_in_whatever_pieces_they_come_in(
    messages: list[list[bytes]], sizes: list[int]
) -> None:
    taken = feed(zmtp.Incoming(), HANDSHAKE + written(messages), sizes)
    assert [[bytes(frame) for frame in parts] for parts in taken] == messages


LIMIT = 100_000


def kept(parts: list[bytes]) -> list[bytes]:
    """What comes of a message where `LIMIT` holds."""
    return parts if sum(map(len, parts)) <= LIMIT and len(parts) <= zmtp.MAX_FRAMES else parts[:1]


@given(
    st.lists(
        st.lists(
            st.binary(max_size=300) | st.sampled_from([zmtp.LARGE_BYTES - 1, zmtp.LARGE_BYTES, LIMIT]).map(bytes),
            min_size=1,
            max_size=4,
        )
        | st.integers(zmtp.MAX_FRAMES - 1, zmtp.MAX_FRAMES + 3).map(lambda count: [b"x"] * count),
        max_size=6,
    ),
    st.lists(st.integers(0, 70_000), max_size=12),
)
def test_of_a_message_that_is_too_much_the_first_frame_is_kept_and_the_next_message_is_unharmed(
    messages: list[list[bytes]], sizes: list[int]
) -> None:
    incoming = zmtp.Incoming(max_bytes=LIMIT)
    data = HANDSHAKE + written(messages)
    taken = []
    for size in [*sizes, len(data)]:
        rest, data = data[size:], data[:size]
        while data:
            space = incoming.space()
            count = min(len(space), len(data))
            space[:count], data = data[:count], data[count:]
            incoming.filled(count)
            while (message := incoming.take()) is not None:
                taken.append(([bytes(frame) for frame in message], incoming.size, incoming.count))
        data = rest
    assert taken == [(kept(parts), sum(map(len, parts)), len(parts)) for parts in messages]


@pytest.mark.parametrize("limit", [1000, LIMIT, 40_000_000])
@pytest.mark.parametrize("flags", [0, zmtp.MORE])
def test_a_frame_longer_than_the_limit_is_refused_at_its_head(limit: int, flags: int) -> None:
    incoming = zmtp.Incoming(max_bytes=limit)
    assert len(feed(incoming, HANDSHAKE + written([[bytes(limit)]]), [])) == 1
    with pytest.raises(RemoteProtocolError):
        feed(incoming, zmtp.head(limit + 1, flags), [])


def test_a_message_without_an_end_keeps_its_first_frame_alone() -> None:
    incoming = zmtp.Incoming(max_bytes=LIMIT)
    feed(incoming, HANDSHAKE + zmtp.head(4, zmtp.MORE) + b"head", [])
    before = psutil.Process().memory_info().rss
    for _ in range(500):
        feed(incoming, zmtp.head(LIMIT, zmtp.MORE) + bytes(LIMIT), [])
    assert psutil.Process().memory_info().rss - before < 1 << 23
    assert feed(incoming, zmtp.head(1) + b"x", []) == [[b"head"]]
    assert (incoming.size, incoming.count) == (500 * LIMIT + 5, 502)


@given(st.lists(MESSAGES, min_size=1, max_size=8), st.data())
@settings(max_examples=pick(20, 40))
def test_connections_that_share_their_spare_memory_never_mix_their_messages(
    sent: list[list[list[bytes]]], data: st.DataObject
) -> None:
    spares = zmtp.Spares()
    incomings = [zmtp.Incoming(spares, max_bytes=1 << 20) for _ in sent]
    streams = [HANDSHAKE + written(messages) for messages in sent]
    taken: list[list[list[bytes]]] = [[] for _ in sent]
    while any(streams):
        which = data.draw(st.sampled_from([number for number, stream in enumerate(streams) if stream]))
        size = data.draw(st.integers(1, 150_000) | st.just(1 << 20))
        incoming, stream = incomings[which], streams[which]
        messages, rest = feed_once(incoming, stream[:size])
        streams[which] = rest + stream[size:]
        taken[which] += [[bytes(frame) for frame in parts] for parts in messages]
        if not incoming.started:
            incoming.rest()
    assert taken == sent
    assert all("buffers: 0" in repr(incoming) for incoming in incomings)
    assert len(spares.buffers) <= zmtp.SPARE_BUFFERS


def test_only_those_amid_a_message_hold_a_buffer() -> None:
    spares = zmtp.Spares()
    incomings = [zmtp.Incoming(spares) for _ in range(100)]
    for incoming in incomings:
        feed(incoming, HANDSHAKE + written([[b"whole"]]), [])
        assert not incoming.started
        incoming.rest()
    assert len(spares.buffers) == 1
    for incoming in incomings[:10]:
        feed(incoming, b"\x00\x05hal", [])
        assert incoming.started
        incoming.rest()  # not yet
    assert sum("buffers: 1" in repr(incoming) for incoming in incomings) == 10
    for incoming in incomings[:10]:
        assert feed(incoming, b"ve", []) == [[b"halve"]]
        incoming.rest()
    assert all("buffers: 0" in repr(incoming) for incoming in incomings)
    assert len(spares.buffers) == zmtp.SPARE_BUFFERS


@given(st.binary(max_size=400), st.booleans(), st.lists(st.integers(1, 50), max_size=8))
def test_garbage_is_refused_or_waited_for(garbage: bytes, shaken: bool, sizes: list[int]) -> None:
    incoming = zmtp.Incoming()
    try:
        taken = feed(incoming, HANDSHAKE * shaken + garbage, sizes)
    except RemoteProtocolError:
        return
    assert shaken or not taken


def test_large_frames_have_memory_of_their_own_that_may_be_written_to() -> None:
    [[small, large]] = feed(zmtp.Incoming(), HANDSHAKE + written([[b"small", bytes(100_000)]]), [])
    assert type(small) is bytes
    assert not memoryview(large).readonly


@pytest.mark.parametrize("size", [100_000, zmtp.ZEROED_BYTES + 1])
def test_what_a_forked_child_writes_there_its_parent_does_not_see(size: int) -> None:
    [[large]] = feed(zmtp.Incoming(), HANDSHAKE + written([[bytes(size)]]), [])
    memory = memoryview(large)
    child = os.fork()
    if not child:
        memory[0] = 1
        os._exit(large[0])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert large[0] == 0


@pytest.mark.parametrize("size", [100_000, zmtp.ZEROED_BYTES + 1])
def test_the_garbage_collector_frees_them_without_a_word(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    incoming = zmtp.Incoming()
    [[large]] = feed(incoming, HANDSHAKE + written([[bytes(size)]]), [])
    half_read = zmtp.Incoming()
    feed(half_read, HANDSHAKE + written([[bytes(size)]])[:-1], [])
    cycle: list[object] = [large, incoming, half_read]
    cycle.append(cycle)
    del cycle, large, incoming, half_read
    gc.collect()
    assert said == []


def test_it_is_ready_when_both_have_come_greeting_and_ready() -> None:
    incoming = zmtp.Incoming()
    feed(incoming, zmtp.GREETING, [10, 1, 53])
    assert not incoming.ready
    feed(incoming, zmtp.READY, [3])
    assert incoming.ready


def test_a_refusal_is_told() -> None:
    incoming = zmtp.Incoming()
    feed(incoming, zmtp.GREETING + zmtp.command(b"ERROR", b"\x03400"), [])
    assert incoming.refusal == "400"
    assert not incoming.ready


def test_a_ping_is_answered_with_what_came_with_it() -> None:
    incoming = zmtp.Incoming()
    feed(incoming, HANDSHAKE + zmtp.command(b"PING", b"\x00\x10context"), [])
    assert incoming.answers == [zmtp.command(b"PONG", b"context")]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" + bytes(8) + b"\x00",
        zmtp.GREETING.replace(b"NULL", b"PLAIN").ljust(64, b"\0")[:64],
        zmtp.GREETING + zmtp.head(1) + b"x",  # a message before the handshake is over
        HANDSHAKE + b"\x08\x00",  # a flag that there is not
        HANDSHAKE + zmtp.head(1 << 41),
        HANDSHAKE + zmtp.head(70_000, zmtp.COMMAND),
        HANDSHAKE + b"\x01\x00" * (zmtp.MAX_FRAMES + 1),
    ],
    ids=["http", "signature", "mechanism", "early", "flag", "size", "command", "frames"],
)
def test_what_is_no_zmtp_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        feed(zmtp.Incoming(), data, [])


def test_a_size_that_is_only_declared_takes_no_memory() -> None:
    incoming = zmtp.Incoming()
    before = psutil.Process().memory_info().rss
    feed(incoming, HANDSHAKE + zmtp.head(1 << 30) + b"the first bytes", [])
    assert psutil.Process().memory_info().rss - before < 1 << 26
    assert len(incoming.space()) == zmtp.READ_BYTES


FAULTS = """
import resource, sys
from zmqagents.process.memory import resident_bytes
from zmqagents.wire.zmtp import keep_freed_blocks
before = resident_bytes()
if sys.argv[1] == "kept":
    keep_freed_blocks()
assert resident_bytes() < before + (1 << 20), "the block must not be written to"
value = bytes(1 << 20)
first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    copied = bytes(bytearray(value))
    del copied
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


@pytest.mark.program
@glibc_only
def test_large_values_find_the_memory_of_the_values_before_them() -> None:
    faults = {}
    for way in ("kept", "not"):
        command = [sys.executable, "-c", FAULTS, way]
        faults[way] = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert faults["kept"] < faults["not"] / 4
    assert faults["kept"] < 50 * 256 / 4  # of 256 pages for each value
