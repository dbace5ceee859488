"""The Unix door with real sockets and no host: who comes in, what arrives, and what the rude and the slow can do."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

import hosts
from actors import within
from lines import Line
from porters import LIMIT, Porter
from zmqagents.broker.delivery import Delivery
from zmqagents.broker.session import Session
from zmqagents.config import BrokerConfig
from zmqagents.discovery import IpcLock
from zmqagents.process import descriptors
from zmqagents.scheduler.shares import Account, Shares
from zmqagents.wire import messages as frames
from zmqagents.wire import transport, zmtp
from zmqagents.wire.messages import Frame, Hello
from zmqagents.wire.segments import memory
from zmqagents.wire.stream import WRITE_BYTES
from zmqagents.wire.transport import Event, Peer
from zmqagents.wire.unix import UnixTransport
from zmqagents.wire.unix_listener import HANDSHAKE_S, PAUSE_S, QUEUE_PIECES, READ_BYTES, UnixPeer

pytestmark = pytest.mark.timeout(60)

MIB = 1 << 20
HANDSHAKE = zmtp.GREETING + zmtp.READY
ANSWERED = zmtp.GREETING + (zmtp.READY_WITH_SEGMENTS if memory.is_offered() else zmtp.READY_ROUTER)


@pytest.fixture
def porter(path: str) -> Iterator[Porter]:
    porter = Porter(path)
    yield porter
    porter.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def plain(path: str) -> socket.socket:
    """A connection that has said nothing."""
    end = socket.socket(socket.AF_UNIX)
    end.settimeout(15)
    end.connect(path)
    return end


@contextlib.contextmanager
def shaken(porter: Porter) -> Iterator[tuple[socket.socket, UnixPeer]]:
    """A connection that may send, by a socket that reads nothing by itself, and the door's end of it."""
    before = set(porter.peers)

    def new() -> list[UnixPeer]:
        return [peer for peer in porter.peers if peer.has_shaken_hands and peer not in before]

    with plain(porter.path) as end:
        end.sendall(HANDSHAKE)
        porter.until(new)
        assert end.recv(len(ANSWERED), socket.MSG_WAITALL) == ANSWERED
        (peer,) = new()
        yield end, peer


def written(*messages: list[bytes]) -> bytes:
    return b"".join(bytes(piece) for parts in messages for piece in zmtp.enclosed(list(parts)))


def counts(thing: object) -> dict[str, int]:
    """What a connection or the door says of itself."""
    return {name: int(number) for name, number in re.findall(r"(\w+): (\d+)", repr(thing))}


def read_all(end: socket.socket) -> bytes:
    """What comes until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := end.recv(MIB):
            data += more
    return data


# ---------------------------------------------------------------- who comes in


def test_a_dealer_of_libzmq_comes_in_and_is_answered(
    porter: Porter, context: zmq.Context[zmq.Socket[bytes]], path: str
) -> None:
    porter.on_message = lambda peer, parts: peer.send([b"you said", *parts])
    with context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"ipc://{path}")
        for message in ([b"a"], [b"a", b"", b"c" * 300], [os.urandom(3 * MIB), b""]):
            dealer.send_multipart(message)
            porter.until(lambda: dealer.poll(0))
            assert dealer.recv_multipart() == [b"you said", *message]
    porter.until(lambda: porter.gone)
    assert [peer.user for peer in porter.gone] == [f"uid:{os.geteuid()}"]


def test_a_unix_transport_comes_in_and_is_answered(porter: Porter, path: str) -> None:
    porter.on_message = lambda peer, parts: peer.send([b"you said", *parts])
    wire = UnixTransport(path)
    for message in ([b"a"], [b"a", b"", b"c" * 300], [os.urandom(3 * MIB), b""]):
        wire.send(list[Frame](message))
        answers: list[list[Frame]] = []

        def answered(answers: list[list[Frame]] = answers) -> bool:
            wire.look(transport.poll(wire.items, 0))
            answer = wire.receive()
            if answer is not None:
                answers.append(answer)
            return answer is not None

        porter.until(answered)
        assert [bytes(frame) for frame in answers[0]] == [b"you said", *message]
    assert wire.events == [Event.READY]
    wire.close()
    porter.until(lambda: porter.gone)


def test_where_there_is_no_epoll_poll_does(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("select.epoll", raising=False)
    porter = Porter(path)
    assert type(porter.poller).__name__ == "_Poll"
    try:
        test_a_unix_transport_comes_in_and_is_answered(porter, path)
        test_what_a_slow_reader_does_not_read_waits_with_its_sender_and_arrives_in_order(porter)
    finally:
        porter.close()


def test_messages_of_several_clients_are_taken_in_turn(porter: Porter) -> None:
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(shaken(porter))[0] for _ in range(3)]
        for end, name in zip(ends, (b"a", b"b", b"c"), strict=True):
            end.sendall(written(*([name + b"%d" % number] for number in range(5))))
        porter.until(lambda: len(porter.received) == 15)
    said = [parts[0] for parts in porter.messages]
    assert [text[1:] for text in said] == [b"%d" % (place // 3) for place in range(15)]
    for name in (b"a", b"b", b"c"):
        assert [text for text in said if text.startswith(name)] == [name + b"%d" % number for number in range(5)]


def test_a_handshake_may_come_byte_by_byte_with_messages_behind_it(porter: Porter, path: str) -> None:
    with plain(path) as end:
        for byte in HANDSHAKE + written([b"first"], [b"and", b"second"]):
            end.send(bytes([byte]))
            porter.turn()
        porter.settle()
    assert porter.messages == [[b"first"], [b"and", b"second"]]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        bytes(64),
        zmtp.GREETING.replace(b"NULL\0", b"PLAIN"),
        zmtp.GREETING.replace(b"NULL\0", b"CURVE"),
        zmtp.GREETING[:10] + b"\2\0" + zmtp.GREETING[12:],
        zmtp.GREETING + written([b"too early"]),
        HANDSHAKE + b"\x08\x00",
        HANDSHAKE + zmtp.head(LIMIT + 1),
        HANDSHAKE + zmtp.head(1 << 62),
    ],
    ids=["http", "zeros", "plain", "curve", "version", "early", "flag", "size", "huge"],
)
def test_who_does_not_speak_the_protocol_is_cut_off_and_complained_of(porter: Porter, path: str, data: bytes) -> None:
    with shaken(porter) as (other, _), plain(path) as end:
        end.sendall(data)
        porter.until(lambda: porter.gone)
        assert ANSWERED.startswith(read_all(end))
        assert len(porter.complaints) == 1
        other.sendall(written([b"unharmed"]))
        porter.until(lambda: porter.received)
    assert porter.messages == [[b"unharmed"]]


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.PUB, zmq.SUB, zmq.PUSH, zmq.PULL, zmq.ROUTER, zmq.PAIR])
def test_sockets_of_other_types_do_no_harm(
    porter: Porter, context: zmq.Context[zmq.Socket[bytes]], path: str, kind: int
) -> None:
    with context.socket(kind) as other:
        other.linger = 0
        other.connect(f"ipc://{path}")
        porter.until(lambda: porter.peers)
        for _ in range(10):
            porter.turn()
        with shaken(porter) as (end, _):
            end.sendall(written([b"unharmed"]))
            porter.until(lambda: [b"unharmed"] in porter.messages)


@pytest.mark.parametrize("said", [b"", b"\xff", zmtp.GREETING[:10] + b"\1\5\0\0", zmtp.GREETING, HANDSHAKE[:-1]])
def test_a_stranger_that_does_not_shake_hands_is_closed_in_time(porter: Porter, path: str, said: bytes) -> None:
    """``1 5 0 0``: ZMTP 2, which has no mechanism, and whose greeting is shorter."""
    with plain(path) as end, shaken(porter) as (other, peer):
        end.sendall(said)
        porter.settle()
        porter.now += HANDSHAKE_S - 0.01
        porter.settle()
        assert len(porter.peers) == 2
        assert porter.door.due <= porter.now + 0.02
        porter.now += 0.02
        porter.until(lambda: porter.gone)
        assert ANSWERED.startswith(read_all(end))
        assert porter.peers == [peer]
        other.sendall(written([b"still here"]))
        porter.until(lambda: porter.received)


# ---------------------------------------------------------------- whom the kernel says it is


def test_a_dealer_of_a_user_that_is_not_let_in_sees_that_it_was_refused(
    path: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    porter = Porter(path, uids={os.geteuid() + 1})
    with context.socket(zmq.DEALER) as dealer, dealer.get_monitor_socket() as monitor:
        dealer.linger = 0
        dealer.reconnect_ivl = -1
        dealer.connect(f"ipc://{path}")
        dealer.send(b"let me in")
        seen: list[int] = []

        def is_over() -> bool:
            while monitor.poll(0):
                seen.append(int(recv_monitor_message(monitor)["event"]))
            return bool(set(seen) & {zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_SUCCEEDED})

        porter.until(is_over)
        assert zmq.EVENT_HANDSHAKE_FAILED_AUTH in seen
        dealer.disable_monitor()
    assert not porter.received
    porter.close()


def test_a_unix_carrier_of_a_user_that_is_not_let_in_is_told_and_closed_later(path: str) -> None:
    porter = Porter(path, uids={os.geteuid() + 1})
    wire = UnixTransport(path)
    wire.send([b"let me in"])
    porter.until(lambda: wire.receive() or wire.events)
    assert wire.events == [Event.KEY_REFUSED]
    with plain(path) as end:
        porter.settle()
        assert end.recv(1000) == zmtp.GREETING + zmtp.refused(b"400")
        porter.now += HANDSHAKE_S
        porter.until(lambda: len(porter.gone) == 2)
        assert end.recv(1) == b""
    assert (porter.received, porter.peers) == ([], [])
    wire.close()
    porter.close()


REFUSE_ONE_WHO_HAS_GONE = """
import signal, socket, sys
from test_unix_listener import Porter, plain
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as programs have it that write to pipes
porter = Porter(sys.argv[1], uids=set())
plain(sys.argv[1]).close()
porter.settle()
assert not porter.peers
porter.close()
print("true")
"""


@pytest.mark.program
def test_one_who_is_refused_and_has_gone_is_no_broken_pipe(path: str) -> None:
    assert hosts.output_of(REFUSE_ONE_WHO_HAS_GONE, path) is True


# It changes its user after the imports: another user may not be able to read this Python's files.
OTHER_USER = """
import os, sys, time
from zmqagents.wire import transport, unix
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
wire = unix.UnixTransport(sys.argv[1])
end = time.monotonic() + 10
while not wire.events and time.monotonic() < end:
    wire.look(transport.poll(wire.items, 100))
    wire.receive()
print([event.name for event in wire.events], flush=True)
wire.close()
"""


@pytest.mark.program
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_another_unix_user_gets_neither_through_the_directory_nor_to_the_socket_nor_past_the_door(path: str) -> None:
    def ask(porter: Porter) -> str:
        program = [sys.executable, "-c", OTHER_USER, path]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=hosts.environment()) as other:
            porter.until(lambda: other.poll() is not None)
            assert other.stdout is not None
            return other.stdout.read().strip()

    socket_path = Path(path)
    porter = Porter(path)
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert ask(porter) == "['CUT']"  # the directory is 0700
    socket_path.parent.chmod(0o711)
    assert ask(porter) == "['CUT']"  # and the socket 0600
    assert not porter.peers
    socket_path.chmod(0o666)
    assert ask(porter) == "['KEY_REFUSED']"
    porter.close()
    socket_path.unlink()
    porter = Porter(path, uids={0, 65534})
    socket_path.chmod(0o666)
    assert ask(porter) == "['READY']"
    porter.until(lambda: porter.gone)
    assert [peer.user for peer in porter.gone] == ["uid:65534"]
    porter.close()


def test_the_socket_is_its_owners_alone_whatever_the_umask(path: str) -> None:
    old_mask = os.umask(0)
    try:
        with IpcLock(path):
            porter = Porter(path)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert os.umask(0) == 0
            porter.close()
    finally:
        os.umask(old_mask)


# ---------------------------------------------------------------- no descriptors


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def test_without_a_free_descriptor_the_door_pauses_and_goes_on_later(
    porter: Porter, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with shaken(porter) as (other, _), plain(path) as end:
        end.sendall(HANDSHAKE)
        with no_descriptors():
            assert porter.turn() == 1
            for _ in range(20):
                assert porter.poller.poll(0.001, 64) == [], "a listener that cannot accept is not polled"
            assert porter.door.due <= porter.now + PAUSE_S
            other.sendall(written([b"served meanwhile"]))
            porter.until(lambda: porter.received)
            for _ in range(30):  # it tries again, and says so once
                porter.now += PAUSE_S
                porter.turn(0)
                porter.turn(0)
            assert len(porter.peers) == 1
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        porter.now += PAUSE_S
        porter.until(lambda: len(porter.peers) == 2 and all(peer.has_shaken_hands for peer in porter.peers))
        assert end.recv(len(ANSWERED), socket.MSG_WAITALL) == ANSWERED


# ---------------------------------------------------------------- who does not read


def test_what_a_slow_reader_does_not_read_waits_with_its_sender_and_arrives_in_order(porter: Porter) -> None:
    roomy: list[Peer] = []
    porter.on_room = roomy.append
    with shaken(porter) as (end, peer):
        taken: list[bytes] = []
        while peer.send([b"%06d" % len(taken) + bytes(1000)]):
            taken.append(b"%06d" % len(taken) + bytes(1000))
            assert len(taken) < 100_000
        assert peer.pending
        assert counts(peer)["pieces"] <= QUEUE_PIECES
        assert not peer.send([b"small"])
        porter.settle()
        assert not roomy
        expected, got = written(*([text] for text in taken)), b""
        while len(got) < len(expected):
            got += end.recv(MIB)
            porter.turn(0)
        assert got == expected
        assert set(roomy) == {peer}
        assert not peer.pending
        assert peer.send([b"small"])


def test_a_large_message_waits_until_what_was_sent_before_is_written(porter: Porter) -> None:
    with shaken(porter) as (end, peer):
        first, second = os.urandom(3 * MIB), os.urandom(3 * MIB)
        assert peer.send([first])
        assert not peer.send([second])
        assert not peer.send([b"head", bytes(zmtp.LARGE_BYTES)])
        assert peer.send([b"small"])
        waiting = [[second]]

        def send_more(peer: Peer) -> None:
            while waiting and peer.send(list[Frame](waiting[0])):
                waiting.pop()

        porter.on_room = send_more
        expected, got = written([first], [b"small"], [second]), b""
        end.setblocking(False)

        def is_read() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += end.recv(MIB)
            return len(got) >= len(expected)

        porter.until(is_read)
        assert got == expected
        porter.settle()
        assert [events for _, events in porter.poller.poll(0, 64)] == []


def test_what_waits_is_sent_although_its_reader_has_caught_up_before_anybody_looked(porter: Porter) -> None:
    """Room comes while messages to others are sent: it is still to be told of."""
    out = Delivery(64 * MIB, Shares(BrokerConfig()), lambda session: None, lambda session: None)
    with shaken(porter) as (end, peer):
        got = b""

        def drain() -> None:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                while True:
                    got += end.recv(MIB)

        def drained() -> bool:
            drain()
            return True

        class Bob(Line):
            def queue(self, message: list[Frame]) -> bool:
                drain()
                return super().queue(message)

        ann, bob = _seated(peer), _seated(Bob())
        porter.on_room = lambda peer: out.go_on(ann)
        end.setblocking(False)
        filling = 1
        while peer.send([bytes(1000)]) and not peer.pending:
            filling += 1
        porter.until(lambda: drained() and not peer.pending)
        drain()
        got = b""
        for _ in range(filling - 50):  # nearly full
            assert peer.send([bytes(1000)])
        assert not peer.pending
        first, second = os.urandom(200_000), os.urandom(200_000)
        out.unsent = [(ann, [b"small"]), (ann, [first]), (ann, [second]), (bob, [b"small"])]
        out.push_all()
        assert ann.outbox
        expected = written(*[[bytes(1000)]] * (filling - 50), [b"small"], [first], [second])
        porter.until(lambda: drained() and len(got) >= len(expected))
        assert got == expected
        assert ann.outbox is None


def _seated(peer: Peer) -> Session:
    session = Session(Hello(0, os.urandom(frames.CLIENT_ID_BYTES), {}), Account(), "call", 64 * MIB)
    session.take_seat(peer, 0.0)
    return session


def test_pings_without_end_that_are_not_answered_to_cost_no_memory(porter: Porter) -> None:
    ping = zmtp.command(b"PING", b"\0\0" + b"context")
    with shaken(porter) as (end, peer):
        end.sendall(ping)
        porter.settle()
        pong = zmtp.command(b"PONG", b"context")
        assert end.recv(len(pong), socket.MSG_WAITALL) == pong
        end.setblocking(False)

        def flood(turns: int) -> int:
            """The most bytes that ever waited to be sent."""
            most = 0
            for _ in range(turns):
                with contextlib.suppress(BlockingIOError):
                    end.send(ping * 10_000)
                porter.turn()
                most = max(most, counts(peer)["unwritten"])
            return most

        with within(10):
            while not peer.pending:
                flood(1)
        before = psutil.Process().memory_info().rss
        assert flood(40) < MIB
        assert psutil.Process().memory_info().rss - before < 4 * MIB


# ---------------------------------------------------------------- who goes


def test_the_other_side_may_vanish_amid_anything(porter: Porter) -> None:
    for rest in (
        b"\0",
        b"\0\5hal",
        b"\1\1x",
        zmtp.head(MIB) + bytes(1000),
        zmtp.head(70_000, zmtp.MORE) + bytes(70_000),
    ):
        with shaken(porter) as (end, _):
            end.sendall(written([b"whole"]) + rest)
        porter.until(lambda: porter.gone)
        porter.gone.clear()
    assert porter.messages == [[b"whole"]] * 5
    assert porter.peers == []
    assert porter.complaints == []


def test_the_other_side_may_vanish_with_unread_replies(porter: Porter) -> None:
    with shaken(porter) as (end, peer):
        while peer.send([bytes(1000)]):
            pass
        end.close()
    porter.until(lambda: porter.gone)
    assert peer.send([b"to nobody"])
    assert (counts(peer)["pieces"], peer.pending, porter.peers) == (0, False, [])
    assert porter.poller.poll(0, 64) == []


@pytest.mark.parametrize("fails_first", [False, True])
def test_messages_sent_before_the_close_are_received(porter: Porter, fails_first: bool) -> None:
    with shaken(porter) as (end, peer):
        end.sendall(written([b"one"], [b"two", bytes(100_000)], [b"three"]))
    if fails_first:
        assert peer.send([b"to nobody"])
        assert peer.ended
        assert not porter.gone
    porter.until(lambda: porter.gone)
    assert [parts[0] for parts in porter.messages] == [b"one", b"two", b"three"]
    assert porter.gone == [peer]
    porter.settle()
    assert porter.gone == [peer], "told once"


def test_a_peer_that_reads_no_more_but_sends_does_not_keep_the_thread_busy(porter: Porter) -> None:
    with shaken(porter) as (end, peer):
        while peer.send([bytes(1000)]):
            pass
        end.shutdown(socket.SHUT_RD)
        end.sendall(written([b"still sending"]))
        porter.until(lambda: porter.received)
        assert sum(porter.turn(0.001) for _ in range(100)) < 10
    porter.until(lambda: porter.gone)


def test_a_number_that_is_used_again_in_the_same_turn_is_another_peer(porter: Porter, path: str) -> None:
    """The old one's end, its successor's coming, and words of both are all in one poll."""
    for _ in range(20):
        with shaken(porter) as (end, old):
            end.sendall(written([b"last words"]))
        with plain(path) as end:
            end.sendall(HANDSHAKE + written([b"first words"]))
            porter.until(lambda: old in porter.gone and [b"first words"] in porter.messages)  # waits here
            (new,) = porter.peers
            assert new is not old
            assert not new.ended
        porter.until(lambda: not porter.peers)
        assert [(peer is old, text) for peer, (text,) in porter.received] == [
            (True, b"last words"), (False, b"first words"),
        ]  # fmt: skip
        porter.received.clear()


def test_those_who_come_and_go_leave_nothing_in_memory(porter: Porter, path: str) -> None:
    gc.collect()  # else what earlier tests have left to it may count before and be gone after
    buffers, peers = _live(zmtp.Buffer), _live(UnixPeer)
    for _ in range(100):
        with plain(path) as end:
            end.sendall(b"\xff")
        with shaken(porter) as (end, _):
            end.sendall(zmtp.head(MIB) + b"not all of it")
    porter.until(lambda: len(porter.gone) == 200)
    assert porter.peers == []
    held = [peer for peer in porter.gone if counts(peer)["large"]]
    assert held == [], "who keeps a lost client in mind does not keep its half message"
    assert _live(zmtp.Buffer) - buffers <= zmtp.SPARE_BUFFERS
    porter.gone.clear()
    porter.now += HANDSHAKE_S
    porter.turn()
    del _
    assert _live(UnixPeer) == peers


def _live(kind: type) -> int:
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


# ---------------------------------------------------------------- long messages


def test_a_frame_over_the_limit_ends_that_connection_alone(path: str) -> None:
    porter = Porter(path, max_bytes=100_000)
    with shaken(porter) as (good, _), shaken(porter) as (bad, peer):
        bad.sendall(written([b"fine", bytes(90_000)], [b"too much", bytes(99_999)]))
        porter.until(lambda: len(porter.received) == 2)
        assert (len(porter.received[1][1]), peer.size, peer.count) == (1, 100_007, 2)
        bad.sendall(zmtp.head(100_001))
        porter.until(lambda: porter.gone)
        assert porter.gone == [peer]
        assert bad.recv(1) == b""
        good.sendall(written([b"served"]))
        porter.until(lambda: len(porter.received) == 3)
    porter.close()


def test_a_message_that_does_not_end_is_let_go_and_told_as_what_it_was(porter: Porter) -> None:
    with shaken(porter) as (end, _):
        frame = zmtp.head(MIB, zmtp.MORE) + bytes(MIB)
        begin = psutil.Process().memory_info().rss
        end.sendall(zmtp.head(4, zmtp.MORE) + b"head")
        for _ in range(100):
            sender = threading.Thread(target=end.sendall, args=(frame,))
            sender.start()
            porter.until(lambda: not sender.is_alive())  # noqa: B023  # waits here
            sender.join()
        porter.settle()
        assert psutil.Process().memory_info().rss - begin < 48 * MIB  # of 100 that have come; the allocator keeps some
        end.sendall(written([b"end"], [b"next"]))
        porter.until(lambda: len(porter.received) == 2)
    assert porter.messages == [[], [b"next"]]


def test_others_are_served_while_long_messages_come(porter: Porter) -> None:
    long = os.urandom(16 * MIB)
    with shaken(porter) as (slow, loader), shaken(porter) as (quick, _):
        served = most = 0

        def on_message(peer: UnixPeer, parts: list[Frame]) -> None:
            nonlocal served
            if peer is loader:
                assert parts == [long]
                return
            served += 1
            quick.sendall(written([b"again"]))

        porter.on_message = on_message
        sender = threading.Thread(target=slow.sendall, args=(written(*[[long]] * 4),))
        sender.start()
        quick.sendall(written([b"begin"]))
        with within(30):
            while sum(peer is loader for peer, _ in porter.received) < 4:
                got = counts(loader)["large"]
                porter.turn()
                most = max(most, counts(loader)["large"] - got)
        sender.join()
        assert most <= 2 * READ_BYTES
        assert served >= 4 * len(long) / most / 2


SENDER = """
import socket, sys
from zmqagents.wire import zmtp
with socket.socket(socket.AF_UNIX) as end:
    end.connect(sys.argv[1])
    end.sendall(zmtp.GREETING + zmtp.READY)
    data = bytes(64 << 20)
    for _ in range(6):
        end.sendall(zmtp.head(len(data)))
        end.sendall(data)
"""


def test_one_who_reads_as_fast_as_the_door_writes_has_its_turn_and_no_more(porter: Porter) -> None:
    with shaken(porter) as (end, peer):
        size = 32 * MIB
        reader = threading.Thread(target=_read, args=(end, size))
        reader.start()
        assert peer.send([bytes(size)])
        turns = 1
        while peer.pending:
            unwritten = counts(peer)["unwritten"]
            porter.turn(1.0)
            assert unwritten - counts(peer)["unwritten"] <= WRITE_BYTES
            turns += 1
        reader.join(20)
        assert turns >= size / WRITE_BYTES


def _read(end: socket.socket, size: int) -> None:
    end.settimeout(20)
    while size > 0:
        size -= len(end.recv(1 << 20))


@pytest.mark.program
def test_one_who_writes_as_fast_as_the_door_reads_has_its_turn_and_no_more(path: str) -> None:
    porter = Porter(path, max_bytes=64 * MIB)
    with hosts.started(SENDER, path):
        porter.until(lambda: porter.peers)
        (peer,) = porter.peers
        most = 0

        def is_over() -> bool:
            nonlocal most
            got = counts(peer)["large"]
            porter.turn()
            most = max(most, counts(peer)["large"] - got)
            return len(porter.received) == 6

        porter.until(is_over)
    assert most <= 2 * READ_BYTES
    porter.close()


# ---------------------------------------------------------------- the end


def test_at_the_end_what_was_sent_is_written_as_long_as_it_is_read(path: str) -> None:
    porter = Porter(path)
    with shaken(porter) as (end, peer):
        data = os.urandom(8 * MIB)
        assert peer.send([data])
        assert peer.send([b"goodbye"])
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(read_all(end)))
        reader.start()
        porter.clock = time.monotonic
        porter.close(10.0)
        reader.join()
    assert got == [written([data], [b"goodbye"])]


def test_at_the_end_who_does_not_read_is_waited_for_no_longer_than_the_linger(path: str) -> None:
    porter = Porter(path)
    with shaken(porter) as (end, peer), shaken(porter) as (_, silent):
        peer.send([bytes(8 * MIB)])
        silent.send([bytes(8 * MIB)])
        end.close()
        porter.clock = time.monotonic
        begin = time.process_time()
        seconds = hosts.seconds_of(lambda: porter.close(0.3))
        assert 0.25 < seconds < 5
        assert time.process_time() - begin < 0.2, "waited for, not spun for"


def test_at_the_end_those_who_were_refused_are_closed_as_well(path: str) -> None:
    porter = Porter(path, uids=set())
    with plain(path) as end:
        porter.until(lambda: counts(porter.door)["strangers"])
        porter.close()
        assert read_all(end) == zmtp.GREETING + zmtp.refused(b"400")


# ---------------------------------------------------------------- forks


def test_a_forked_child_does_not_hide_that_its_parent_has_closed(path: str) -> None:
    porter = Porter(path)
    with shaken(porter) as (end, _), shaken(porter) as (other, _):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        try:
            porter.close()
            with within(10):
                assert end.recv(1) == b""
                assert other.recv(1) == b""
            assert hosts.eventually(lambda: _nobody_listens(path), 10)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _nobody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as end:
        return end.connect_ex(path) == errno.ECONNREFUSED


FORKING = """
import os, sys, time
from test_unix_listener import Porter
porter = Porter(sys.argv[1])
print("0", flush=True)
porter.until(lambda: porter.received)
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.program
def test_a_forked_child_does_not_hide_that_its_parent_has_died(path: str) -> None:
    with hosts.started(FORKING, path) as program:
        hosts.told(program)
        with plain(path) as end:
            end.sendall(HANDSHAKE + written([b"fork and die"]))
            with within(10):
                assert read_all(end) == ANSWERED
        os.kill(hosts.told(program), signal.SIGKILL)
        assert program.wait() == -signal.SIGKILL


def test_in_a_forked_child_no_socket_object_claims_a_number_that_is_free(porter: Porter, path: str) -> None:
    """The number may be another file's by the time that the object is thrown away."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(shaken(porter))[1] for _ in range(3)]
        with descriptors.not_for_forks(path):
            child = os.fork()
            if not child:
                os._exit(sum(number != -1 for number in [porter.door.fileno(), *(peer.fileno() for peer in peers)]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert all(peer.fileno() == peer.fd for peer in peers)
