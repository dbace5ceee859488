"""The two carriers against real sockets: what arrives, what is told, and what happens when the other side is rude."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from actors import within
from zmqagents.wire import transport, zmtp
from zmqagents.wire import unix as unix_module
from zmqagents.wire.dealer import DealerTransport
from zmqagents.wire.messages import Frame
from zmqagents.wire.stream import UnixStream
from zmqagents.wire.transport import Event, Transport
from zmqagents.wire.unix import UnixTransport

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def router(path: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        router.bind(f"ipc://{path}")
        router.bind("tcp://127.0.0.1:*")
        yield router


def attempt(wire: Transport, is_over: Callable[[], object]) -> None:
    """Poll and read events until ``is_over``; messages stay."""
    with within(10):
        while not is_over():
            wire.look(transport.poll(wire.items, 20))
            if not any(event is Event.READY for event in wire.events):
                assert wire.receive() is None


def next_message(wire: Transport) -> list[Frame]:
    with within(10):
        while (message := wire.receive()) is None:
            wire.look(transport.poll(wire.items, 20))
    return message


def unix(router: zmq.Socket[bytes], path: str) -> UnixTransport:
    return UnixTransport(path)


def over_tcp(router: zmq.Socket[bytes], path: str) -> DealerTransport:
    return DealerTransport(router.getsockopt_string(zmq.LAST_ENDPOINT), None, None)


BOTH = pytest.mark.parametrize("make", [unix, over_tcp], ids=["unix", "zmq"])
Make = Callable[[zmq.Socket[bytes], str], Transport]


@BOTH
@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 3_000_000, 40_000_000])
def test_messages_of_any_size_go_there_and_come_back(
    make: Make, size: int, router: zmq.Socket[bytes], path: str
) -> None:
    wire = make(router, path)
    attempt(wire, lambda: wire.events)
    assert wire.events == [Event.READY]
    echo = threading.Thread(target=lambda: router.send_multipart(router.recv_multipart()))
    echo.start()
    message: list[Frame] = [b"head", os.urandom(size), b""]
    wire.send(message)
    assert [bytes(frame) for frame in next_message(wire)] == message
    echo.join()
    wire.close()


@BOTH
def test_what_is_queued_goes_out_in_order_with_the_next_flush(make: Make, router: zmq.Socket[bytes], path: str) -> None:
    wire = make(router, path)
    attempt(wire, lambda: wire.events)
    for number in range(500):
        wire.queue([b"%d" % number] if number % 7 else [b"%d" % number, bytes(70_000)])
    wire.flush()
    with within(20):
        for number in range(500):
            while not router.poll(0):
                wire.look(transport.poll(wire.items, 1))
            assert router.recv_multipart()[1] == b"%d" % number
    wire.close()


@BOTH
def test_the_end_of_the_connection_is_told_after_its_last_message(
    make: Make, router: zmq.Socket[bytes], path: str
) -> None:
    wire = make(router, path)
    attempt(wire, lambda: wire.events)
    wire.events.clear()
    wire.send([b"hello"])
    peer, _ = router.recv_multipart()
    for number in range(3):
        router.send_multipart([peer, b"%d" % number])
    router.close(linger=1000)
    assert [next_message(wire)[0] for _ in range(3)] == [b"0", b"1", b"2"]
    attempt(wire, lambda: wire.events)
    assert wire.events == [Event.CUT]
    wire.send([b"too late"])
    wire.close()


@BOTH
def test_receive_soon_waits_only_a_moment(make: Make, router: zmq.Socket[bytes], path: str) -> None:
    wire = make(router, path)
    attempt(wire, lambda: wire.events)
    begin = time.monotonic()
    for _ in range(20):
        assert wire.receive_soon() is None
    assert 0.015 < time.monotonic() - begin < 5
    wire.close()


def shaken_hands(listener: socket.socket, path: str) -> tuple[UnixTransport, socket.socket]:
    """A carrier that may send, and the other end, a plain socket that reads nothing by itself."""
    wire = UnixTransport(path)
    other = listener.accept()[0]
    other.sendall(zmtp.GREETING + zmtp.READY)
    attempt(wire, lambda: wire.events)
    return wire, other


def test_nobody_there_is_refused(path: str) -> None:
    wire = UnixTransport(path)
    assert wire.events == [Event.REFUSED]
    wire.close()


def test_a_path_that_is_no_socket_is_refused(path: str) -> None:
    Path(path).write_text("no socket")
    wire = UnixTransport(path)
    assert wire.events == [Event.REFUSED]
    wire.close()


def test_a_listener_that_is_no_zeromq_is_foreign(listener: socket.socket, path: str) -> None:
    wire = UnixTransport(path)
    with listener.accept()[0] as other:
        other.sendall(b"220 mail.example.org ESMTP\r\n")
        attempt(wire, lambda: wire.events)
        assert wire.events == [Event.FOREIGN]
        wire.close()


def test_a_listener_that_hangs_up_has_cut_the_connection(listener: socket.socket, path: str) -> None:
    wire = UnixTransport(path)
    listener.accept()[0].close()
    attempt(wire, lambda: wire.events)
    assert wire.events == [Event.CUT]
    wire.close()


def test_a_full_queue_of_new_connections_is_no_wait_for_ever(listener: socket.socket, path: str) -> None:
    begin = time.monotonic()
    wires = [UnixTransport(path) for _ in range(4)]
    assert wires[-1].events == [Event.CUT]  # not REFUSED: somebody is there
    assert time.monotonic() - begin < 5 * unix_module.CONNECT_S + 5
    for wire in wires:
        wire.close()


@pytest.mark.parametrize("soon", [False, True])
def test_a_message_whose_frames_come_one_by_one_is_one_message(listener: socket.socket, path: str, soon: bool) -> None:
    wire, other = shaken_hands(listener, path)
    receive = wire.receive_soon if soon else wire.receive
    frames = [b"first", bytes(70_000), b"", b"last"]
    with other:
        for number, frame in enumerate(frames):
            assert [receive() for _ in range(5)] == [None] * 5  # all that is there was read
            last = number == len(frames) - 1
            other.sendall(zmtp.head(len(frame), 0 if last else zmtp.MORE) + frame)
        got: list[Any] = []
        attempt(wire, lambda: bool(got) or got.extend(receive() or ()))  # type: ignore[func-returns-value]
        assert got == frames
        wire.close()


def test_a_peer_that_does_not_read_stops_nobody_and_gets_all_when_it_does(listener: socket.socket, path: str) -> None:
    wire, other = shaken_hands(listener, path)
    with other:
        data = os.urandom(5_000_000)
        begin = time.monotonic()
        wire.send([data])
        for number in range(1000):
            wire.send([b"%d" % number])
        assert time.monotonic() - begin < 5
        assert wire.pending
        expected = (
            zmtp.GREETING
            + zmtp.READY
            + b"".join(
                bytes(piece) for frame in [data, *(b"%d" % n for n in range(1000))] for piece in zmtp.enclosed([frame])
            )
        )
        got = b""
        with within(20):
            while len(got) < len(expected):
                wire.look(transport.poll(wire.items, 20))
                got += other.recv(1 << 20)
        assert got == expected
        assert not wire.pending
    wire.close()


def test_what_was_sent_is_written_before_the_connection_is_closed(listener: socket.socket, path: str) -> None:
    wire, other = shaken_hands(listener, path)
    with other:
        wire.send([bytes(2_000_000)])
        got: list[int] = []
        reader = threading.Thread(target=lambda: got.extend(iter(lambda: len(other.recv(1 << 20)), 0)))
        reader.start()
        wire.close()
        reader.join()
        assert sum(got) > 2_000_000


def test_closing_does_not_wait_for_a_peer_that_does_not_read(listener: socket.socket, path: str) -> None:
    wire, other = shaken_hands(listener, path)
    with other:
        wire.send([bytes(2_000_000)])
        begin = time.monotonic()
        wire.close()
        assert time.monotonic() - begin < transport.CLOSE_S + 5


class Interrupted(socket.socket):
    """A socket in which Ctrl-C comes amid a system call, once: what was written was written."""

    interrupts = 0

    def sendmsg(self, *args: Any) -> int:
        count = super().sendmsg(*args)
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return count


def test_after_an_interrupt_nothing_is_written_a_second_time() -> None:
    ours, other = socket.socketpair(socket.AF_UNIX)
    with Interrupted(fileno=ours.detach()) as end, other:
        stream = UnixStream(end, zmtp.Incoming())
        data = os.urandom(8_000_000)
        stream.send([data])
        assert stream.pending
        got = other.recv(100_000)
        end.interrupts = 1
        with pytest.raises(KeyboardInterrupt):
            stream.flush()
        pieces = [got]
        reader = threading.Thread(target=lambda: pieces.extend(iter(lambda: other.recv(1 << 20), b"")))
        reader.start()
        stream.flush()
        end.shutdown(socket.SHUT_WR)
        reader.join()
        assert not end.interrupts
        assert (zmtp.head(len(data)) + data).startswith(b"".join(pieces))


def test_a_child_that_lets_go_does_not_end_its_parents_connection(router: zmq.Socket[bytes], path: str) -> None:
    wire = UnixTransport(path)
    attempt(wire, lambda: wire.events)
    child = os.fork()
    if not child:
        wire.abandon()
        os._exit(0)
    os.waitpid(child, 0)
    wire.send([b"still here"])
    assert router.recv_multipart()[1] == b"still here"
    wire.close()
