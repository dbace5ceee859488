"""Shared memory between the door of a host and its clients, with real sockets: who gets it, what the rude can do."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import mmap
import os
import re
import resource
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from porters import Porter
from zmqagents.wire import messages as frames
from zmqagents.wire import transport, zmtp
from zmqagents.wire.messages import Frame, Kind
from zmqagents.wire.segments import memory
from zmqagents.wire.transport import Event
from zmqagents.wire.unix import LARGE_BEFORE, UnixTransport
from zmqagents.wire.unix_listener import SEGMENTS, UnixPeer

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not memory.is_offered(), reason="there are no sealed segments on this system"),
]

LIMIT = 3 << 20
LARGE = zmtp.LARGE_BYTES
NAME = "/memfd:zmqagents"


class Door(Porter):
    """One that sends back what it gets, unless ``answers`` is false."""

    def __init__(self, path: str) -> None:
        super().__init__(path, max_bytes=LIMIT)
        self.answers = True
        self.on_message = self._send_back

    def _send_back(self, peer: UnixPeer, parts: list[Frame]) -> None:
        if self.answers:
            peer.send(parts)

    @property
    def peer(self) -> UnixPeer:
        (peer,) = self.peers
        return peer


@pytest.fixture
def door(path: str) -> Iterator[Door]:
    before = mappings()
    door = Door(path)
    yield door
    door.close()
    assert mappings() == before


@pytest.fixture
def wire(door: Door) -> Iterator[UnixTransport]:
    wire = UnixTransport(door.path)
    yield wire
    wire.close()


def mappings() -> int:
    """How many segments this process has mapped."""
    return Path("/proc/self/maps").read_text().count(NAME)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def echo(door: Door, wire: UnixTransport, message: list[Frame]) -> list[Frame]:
    """The answer of the door to ``message``."""
    wire.send(message)
    return answer(door, wire)


def answer(door: Door, wire: UnixTransport) -> list[Frame]:
    found: list[list[Frame]] = []

    def comes() -> bool:
        wire.look(transport.poll(wire.items, 0))
        message = wire.receive()
        if message is not None:
            found.append(message)
        return bool(found)

    door.until(comes)
    return found[0]


def value(size: int, *, as_bytes: bool = True) -> list[Frame]:
    data = os.urandom(size)
    return frames.answer_frames(Kind.RESULT, 1, 1, [b"payload", data if as_bytes else memoryview(data)])


def share(door: Door, wire: UnixTransport) -> None:
    """Send long frames until both sides share memory."""
    for _ in range(LARGE_BEFORE + 2):
        echo(door, wire, value(LARGE))
    door.settle()
    assert wire.shares_memory
    assert door.peer.shares_memory


def same(got: list[Frame], sent: list[Frame]) -> bool:
    return [bytes(frame) for frame in got] == [bytes(frame) for frame in sent]


def read_exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := end.recv(size - len(data))):
        data += more
    return data


@contextlib.contextmanager
def shaken(door: Door) -> Iterator[socket.socket]:
    """A connection that may send, by a bare socket."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(15)
        end.connect(door.path)
        end.sendall(zmtp.GREETING + zmtp.READY)
        door.until(lambda: door.peers and door.peer.has_shaken_hands)
        expected = zmtp.GREETING + zmtp.READY_WITH_SEGMENTS
        assert read_exactly(end, len(expected)) == expected
        yield end


def given_to(door: Door, end: socket.socket) -> int:
    """Ask for a segment over a bare socket; its descriptor."""
    end.sendall(zmtp.SEGMENT)
    door.settle()
    data, found, _, _ = end.recvmsg(4096, socket.CMSG_SPACE(64))
    assert data == zmtp.SEGMENT
    (_, _, packed) = found[0]
    (descriptor,) = array.array("i", packed)
    return descriptor


def referring(start: int, size: int, *, flags: int = 8, head: bytes = b"head") -> bytes:
    reference = struct.pack(">?II", True, start, size)
    return bytes((1, len(head))) + head + bytes((flags, len(reference))) + reference


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "memory"])
@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, LARGE + 1, 100_000, 1 << 20, LIMIT - 1000])
def test_values_of_any_size_go_there_and_back(door: Door, wire: UnixTransport, size: int, as_bytes: bool) -> None:
    share(door, wire)
    for _ in range(3):
        sent = value(size, as_bytes=as_bytes)
        got = echo(door, wire, sent)
        assert same(got, sent)
        if size >= LARGE:
            assert [type(got[1]), type(door.received[-1][1][1])] == [bytes if as_bytes else bytearray] * 2


def test_the_first_long_frames_go_by_the_socket_and_the_later_ones_do_not(door: Door, wire: UnixTransport) -> None:
    for _ in range(LARGE_BEFORE):
        assert not wire.shares_memory
        echo(door, wire, value(LARGE))
    share(door, wire)
    assert mappings() == 2
    sent = value(LIMIT - 1000)
    assert wire.send(sent)
    assert not wire.pending, "as much would not have fitted into the socket at once"
    assert same(answer(door, wire), sent)


def test_messages_of_several_long_and_short_frames_arrive_in_order(door: Door, wire: UnixTransport) -> None:
    share(door, wire)
    for number in range(1, 12):
        sent: list[Frame] = [b"%d" % number]
        sent += [os.urandom(size) for size in (5, LARGE, 300, 200_000, 0, LARGE)[: number % 6 + 1]]
        assert same(echo(door, wire, sent), sent)
        assert same(echo(door, wire, [b"x" * 300, os.urandom(LARGE)]), door.received[-1][1])


def test_what_finds_no_room_goes_by_the_socket_and_in_its_order(door: Door, wire: UnixTransport) -> None:
    share(door, wire)
    door.received.clear()
    door.answers = False
    sent = [[b"%d" % number, os.urandom(1 << 20)] for number in range(2 * memory.CAPACITY_BYTES >> 20)]
    for message in sent:  # twice what the ring holds
        assert wire.send(list[Frame](message))
    assert wire.pending

    def all_came() -> bool:
        wire.look(transport.poll(wire.items, 0))
        return len(door.received) == len(sent)

    door.until(all_came)
    assert door.messages == sent
    door.answers = True
    for message in sent[:6]:
        assert same(echo(door, wire, list[Frame](message)), list[Frame](message))


def test_a_reader_that_is_slow_finds_its_answers_unharmed(door: Door, wire: UnixTransport) -> None:
    share(door, wire)
    sent = [value(300_000) for _ in range(8)]
    for message in sent:
        wire.send(message)
    door.until(lambda: len(door.received) >= LARGE_BEFORE + 2 + len(sent))
    assert [same(answer(door, wire), message) for message in sent] == [True] * len(sent)


def test_a_value_that_was_received_does_not_change_with_the_memory(door: Door) -> None:
    with shaken(door) as end:
        descriptor = given_to(door, end)
        with mmap.mmap(descriptor, memory.SEGMENT_BYTES) as mapped:
            os.close(descriptor)
            mapped[4096 : 4096 + LARGE] = b"a" * LARGE
            end.sendall(referring(0, LARGE))
            door.until(lambda: door.received)
            mapped[4096 : 4096 + LARGE] = b"b" * LARGE
            assert door.messages == [[b"head", b"a" * LARGE]]


def test_what_goes_by_the_memory_counts_as_received_and_as_sent(door: Door, wire: UnixTransport) -> None:
    share(door, wire)
    received_bytes, sent_bytes = door.door.received_bytes, door.door.sent_bytes
    sent = value(LIMIT // 4)
    size = sum(map(len, sent))
    echo(door, wire, sent)
    for _ in range(2):  # which the door finds together
        wire.send(sent)
    for _ in range(2):
        answer(door, wire)
    assert door.door.received_bytes == received_bytes + 3 * size
    assert 0 <= door.door.sent_bytes - sent_bytes - 3 * size < 100, "and the references"
    sent_bytes = door.door.sent_bytes
    wire.close()
    door.until(lambda: not door.peers)
    assert (door.door.received_bytes, door.door.sent_bytes) == (received_bytes + 3 * size, sent_bytes)


# ---------------------------------------------------------------- who gets it


def test_a_host_that_has_none_to_give_is_not_asked(listener: socket.socket, path: str) -> None:
    wire = UnixTransport(path)
    other = listener.accept()[0]
    other.settimeout(10)
    other.sendall(zmtp.GREETING + zmtp.READY_ROUTER)
    while not wire.events:
        assert wire.receive() is None
    sent = [value(LARGE) for _ in range(2 * LARGE_BEFORE)]
    expected = zmtp.GREETING + zmtp.READY
    expected += b"".join(bytes(piece) for message in sent for piece in zmtp.enclosed(message))
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_exactly(other, len(expected))))
    reader.start()
    for message in sent:
        wire.send(message)
    while wire.pending:
        wire.look(transport.poll(wire.items, 20))
    reader.join()
    assert got == [expected]
    wire.close()
    other.close()


def test_a_client_that_gets_none_goes_on_by_the_socket(door: Door, wire: UnixTransport) -> None:
    for number in range(2 * SEGMENTS):
        door.door.grants.take(f"user {number}")
    for size in (LARGE, 300_000, LIMIT - 1000) * 3:
        sent = value(size)
        assert same(echo(door, wire, sent), sent)
    assert not wire.shares_memory
    assert not mappings()
    assert len(door.door.grants) == SEGMENTS


def test_a_client_whose_descriptor_got_lost_goes_on_by_the_socket(door: Door) -> None:
    """A relay between the two passes the bytes and not the descriptor."""
    with shaken(door) as end:
        end.sendall(zmtp.SEGMENT)
        door.settle()
        assert end.recv(4096) == zmtp.SEGMENT
        end.sendall(b"".join(map(bytes, zmtp.enclosed(value(LARGE)))))
        door.until(lambda: door.received)
        assert not door.peer.shares_memory


def test_as_many_clients_as_there_are_segments_have_one_and_give_it_back(door: Door) -> None:
    before, wires = descriptors(), [UnixTransport(door.path) for _ in range(SEGMENTS)]
    for wire in wires:
        for _ in range(LARGE_BEFORE + 2):
            sent = value(LARGE)
            assert same(echo(door, wire, sent), sent)
    sharing = sum(wire.shares_memory for wire in wires)
    assert sharing == len(door.door.grants) == SEGMENTS * 7 // 8, "the rest is for other users"
    for wire in wires:
        wire.close()
    door.until(lambda: not door.peers)
    assert not len(door.door.grants)
    assert not mappings()
    assert descriptors() == before


def test_a_host_without_a_descriptor_left_serves_its_clients_by_the_socket(
    door: Door, wire: UnixTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo(door, wire, value(LARGE))
    place = os.dup(0)
    os.close(place)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (place, hard))
    try:
        for _ in range(2 * LARGE_BEFORE):
            sent = value(LARGE)
            assert same(echo(door, wire, sent), sent)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not wire.shares_memory
    assert not len(door.door.grants)


# ---------------------------------------------------------------- hostile clients


@pytest.mark.parametrize(
    "data",
    [
        referring(memory.CAPACITY_BYTES - LARGE + 1, LARGE),
        referring(0xFFFFFFFF, 0xFFFFFFFF),
        referring(0, 0),
        referring(0, LIMIT + 1),
        referring(0, LARGE, flags=8 | 2),
        referring(0, LARGE, flags=8 | 4),
        referring(0, LARGE, flags=16),
        b"\x01\x04head\x08\x00",
        b"\x01\x04head\x08\x08\x01\0\0\0\0\0\0\0",
        b"\x08\x04head",
    ],
)
def test_a_reference_to_nothing_ends_the_connection_of_its_sender(door: Door, data: bytes) -> None:
    with shaken(door) as end:
        os.close(given_to(door, end))
        end.sendall(data)
        door.until(lambda: door.complaints)
        door.until(lambda: not door.peers)
    assert not door.received
    assert not len(door.door.grants)


def test_a_reference_before_there_is_memory_ends_the_connection(door: Door) -> None:
    with shaken(door) as end:
        end.sendall(referring(0, LARGE))
        door.until(lambda: door.complaints)
    assert "there is none" in door.complaints[0]


def test_frames_that_are_too_much_together_are_not_kept(door: Door) -> None:
    with shaken(door) as end:
        os.close(given_to(door, end))
        one = referring(0, LIMIT // 2)
        end.sendall(one[:6] + (bytes((9,)) + one[7:]) * 2 + one[6:])
        door.until(lambda: door.received)
    assert door.messages == [[b"head"]], "of a message that is too long the first frame tells its sender"


def test_a_client_gets_one_segment_however_often_it_asks(door: Door) -> None:
    with shaken(door) as end:
        os.close(given_to(door, end))
        end.sendall(zmtp.SEGMENT * 2000 + zmtp.MAPPED * 2000)
        door.settle()
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
        assert len(door.door.grants) == 1
        assert mappings() == 1


def test_a_client_that_says_mapped_and_has_asked_for_nothing_gets_its_answers_by_the_socket(door: Door) -> None:
    with shaken(door) as end:
        sent = b"".join(map(bytes, zmtp.enclosed(value(LARGE))))
        end.sendall(zmtp.MAPPED + sent)
        door.until(lambda: door.received)
        assert read_exactly(end, len(sent)) == sent


@pytest.mark.parametrize("count", [1, 5, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_client_that_lies_about_what_it_has_taken_harms_only_itself(door: Door, count: int) -> None:
    with shaken(door) as end:
        descriptor = given_to(door, end)
        with mmap.mmap(descriptor, memory.SEGMENT_BYTES) as mapped:
            os.close(descriptor)
            end.sendall(zmtp.MAPPED)
            door.settle()
            mapped[64:68] = struct.pack("=I", count)
            sent = b"".join(map(bytes, zmtp.enclosed(value(LARGE))))
            end.sendall(sent)
            door.until(lambda: door.received)
            assert read_exactly(end, len(sent)) == sent, "by the socket"
    assert not door.complaints


def test_descriptors_that_a_client_sends_are_not_kept(door: Door) -> None:
    with shaken(door) as end:
        os.close(given_to(door, end))
        before = descriptors()
        null = os.open("/dev/null", os.O_RDONLY)
        for _ in range(20):
            socket.send_fds(end, [zmtp.SEGMENT], [null] * 200)
            door.settle()
        os.close(null)
        assert descriptors() == before
        assert mappings() == 1


def test_a_client_cannot_shorten_what_the_host_has_mapped(door: Door) -> None:
    with shaken(door) as end:
        descriptor = given_to(door, end)
        for size in (0, memory.SEGMENT_BYTES + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(descriptor, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(descriptor)


def test_a_client_that_asks_and_reads_nothing_gets_its_segment_when_it_has_read(door: Door) -> None:
    with shaken(door) as end:
        data = b"".join(map(bytes, zmtp.enclosed(value(LIMIT - 1000)))) * 4
        sender = threading.Thread(target=lambda: end.sendall(data + zmtp.SEGMENT))
        sender.start()
        door.until(lambda: len(door.received) == 4)
        sender.join()
        assert door.peer.pending
        door.settle()
        assert not len(door.door.grants), "there is no room for the descriptor"
        first_answer = len(data) // 4  # the others found no room
        reader = threading.Thread(target=lambda: read_exactly(end, first_answer))
        reader.start()
        door.until(lambda: len(door.door.grants))
        reader.join()
        reply, found, _, _ = end.recvmsg(4096, socket.CMSG_SPACE(64))
        assert reply == zmtp.SEGMENT
        for _, _, packed in found:
            os.close(*array.array("i", packed))


# ---------------------------------------------------------------- hostile hosts


def sealed(seals: int, size: int = memory.SEGMENT_BYTES) -> int:
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


BOTH_SEALS = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
BAD: dict[str, Callable[[], int]] = {
    "no seal": lambda: sealed(0),
    "may shrink": lambda: sealed(fcntl.F_SEAL_GROW),
    "tiny": lambda: sealed(BOTH_SEALS, 4096),
    "empty": lambda: sealed(BOTH_SEALS, 0),
    "huge": lambda: sealed(BOTH_SEALS, 1 << 40),
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a pipe": lambda: os.pipe()[1],
    "a directory": lambda: os.open("/", os.O_RDONLY),
}


@contextlib.contextmanager
def asking(listener: socket.socket, path: str) -> Iterator[tuple[UnixTransport, socket.socket]]:
    """A client that has asked for a segment, and a bare socket in the place of its host."""
    wire = UnixTransport(path)
    with listener.accept()[0] as other:
        other.settimeout(10)
        other.sendall(zmtp.GREETING + zmtp.READY_WITH_SEGMENTS)
        while not wire.take_events():
            assert wire.receive() is None
        answers = b"".join(bytes(piece) for piece in zmtp.enclosed(value(LARGE)))
        for _ in range(LARGE_BEFORE):
            other.sendall(answers)
            while wire.receive() is None:
                transport.poll(wire.items, 20)
        wire.send([b"short"])
        expected = zmtp.GREETING + zmtp.READY + zmtp.SEGMENT + b"\0\x05short"
        assert read_exactly(other, len(expected)) == expected
        yield wire, other
    wire.close()


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_client_maps_nothing_that_could_end_it(listener: socket.socket, path: str, bad: str) -> None:
    with asking(listener, path) as (wire, other):
        made = BAD[bad]()
        before = descriptors()
        socket.send_fds(other, [zmtp.SEGMENT], [made])
        while not wire.events:
            transport.poll(wire.items, 20)
            assert wire.receive() is None
        assert wire.take_events() == [Event.CUT]
        assert descriptors() == before
        assert not mappings()
        os.close(made)
        for other_end in () if bad != "a pipe" else (made - 1,):
            os.close(other_end)


def test_a_client_keeps_one_of_many_descriptors_and_closes_the_rest(listener: socket.socket, path: str) -> None:
    with asking(listener, path) as (wire, other):
        good = sealed(BOTH_SEALS)
        null = os.open("/dev/null", os.O_RDONLY)
        before = descriptors()
        socket.send_fds(other, [zmtp.SEGMENT], [good, *[null] * 200])
        while not wire.shares_memory:
            transport.poll(wire.items, 20)
            assert wire.receive() is None
        keeps = 0 if sys.version_info >= (3, 13) else 1  # its own copy, of the mapping
        assert descriptors() == before + keeps
        os.close(good)
        os.close(null)
        assert other.recv(100) == zmtp.MAPPED


def test_a_client_that_is_closed_while_a_descriptor_is_on_its_way_keeps_none(
    listener: socket.socket, path: str
) -> None:
    before = descriptors()
    with asking(listener, path) as (wire, other):
        good = sealed(BOTH_SEALS)
        socket.send_fds(other, [zmtp.SEGMENT[:5]], [good])  # the command is not whole
        os.close(good)
        transport.poll(wire.items, 1000)
        assert wire.receive() is None
    assert descriptors() == before


def test_a_host_that_gives_what_was_not_asked_for_gives_nothing(listener: socket.socket, path: str) -> None:
    wire = UnixTransport(path)
    with listener.accept()[0] as other:
        before = descriptors()
        good = sealed(BOTH_SEALS)
        other.sendall(zmtp.GREETING + zmtp.READY_WITH_SEGMENTS)
        socket.send_fds(other, [zmtp.SEGMENT + b"\0\x05hello"], [good])
        os.close(good)
        found: list[list[Frame]] = []
        while not found:
            transport.poll(wire.items, 20)
            message = wire.receive()
            found += [message] if message is not None else []
        assert found == [[b"hello"]]
        assert not wire.shares_memory
        assert descriptors() == before
    wire.close()


# ---------------------------------------------------------------- the end


def test_both_sides_unmap_it_with_the_end_of_the_connection(door: Door, wire: UnixTransport) -> None:
    before = descriptors()
    share(door, wire)
    assert mappings() == 2
    wire.close()
    door.until(lambda: not door.peers)
    assert not mappings()
    assert not len(door.door.grants)
    assert descriptors() == before - 1  # the socket


def test_a_host_that_is_killed_amid_a_value_leaves_a_client_that_can_be_closed(path: str) -> None:
    ready_r, ready_w = os.pipe()
    child = os.fork()
    if not child:
        door = Door(path)
        os.write(ready_w, b"x")
        while True:
            door.turn()
    os.read(ready_r, 1)
    os.close(ready_r)
    os.close(ready_w)
    wire = UnixTransport(path)
    try:
        while not wire.shares_memory:
            wire.send(value(LARGE))
            while wire.receive() is None:
                transport.poll(wire.items, 1000)
        for _ in range(50):
            wire.send(value(1 << 20))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    while Event.CUT not in wire.events:
        transport.poll(wire.items, 20)
        with contextlib.suppress(OSError):
            wire.receive()
    wire.close()
    assert not mappings()


def test_a_forked_child_of_a_client_unmaps_it_and_the_parent_goes_on(door: Door, wire: UnixTransport) -> None:
    share(door, wire)
    child = os.fork()
    if not child:
        try:
            wire.abandon()
            left = len(re.findall(NAME, Path("/proc/self/maps").read_text()))
        except BaseException:
            left = 77
        os._exit(left)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the door is of the parent; its own part is unmapped by a hook"
    sent = value(500_000)
    assert same(echo(door, wire, sent), sent)


def test_where_there_is_no_such_memory_none_is_offered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    wire = UnixTransport(door.path)
    for _ in range(2 * LARGE_BEFORE):
        sent = value(LARGE)
        assert same(echo(door, wire, sent), sent)
    assert not wire.shares_memory
    wire.close()


def test_a_system_that_refuses_it_is_none_that_breaks(
    door: Door, wire: UnixTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    for _ in range(2 * LARGE_BEFORE):
        sent = value(LARGE)
        assert same(echo(door, wire, sent), sent)
    assert not wire.shares_memory
    assert not len(door.door.grants)
