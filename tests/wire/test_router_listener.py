"""The listener on TCP with real sockets and no host: large messages, clients without room, clients that have left."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import zmq

from zmqagents.config import BrokerConfig
from zmqagents.security.zap import Authenticator
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Frame, Kind
from zmqagents.wire.poller import new_poller
from zmqagents.wire.router_listener import (
    IN_FLIGHT_BYTES,
    LATE_S,
    RETRY_S,
    ROLL_CALLS,
    RouterListener,
    RouterPeer,
)
from zmqagents.wire.transport import DELAY_S, Peer

MIB = 1 << 20


class Porter:
    """A listener, and a router thread's turns around it, in the test's thread. ``now`` is its clock."""

    def __init__(self, max_calls: int = 1000) -> None:
        self.now = 1000.0
        self.poller = new_poller()
        self.received: list[tuple[RouterPeer, list[bytes]]] = []
        self.on_room: Callable[[Peer], None] = lambda peer: None
        self.roll_calls = 0
        self.is_closed = False
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.dealers: list[zmq.Socket[bytes]] = []
        config = BrokerConfig(port=0, insecure=True, local_mode=True, max_calls_per_client=max_calls)
        self.listener = RouterListener(
            config, Authenticator(None, insecure=True), self.poller, 64 * MIB, lambda: self.now,
            receive=self._receive, on_room=lambda peer: self.on_room(peer), call_roll=self._call_roll,
        )  # fmt: skip
        self.port = self.listener.open(None)

    def _receive(self, peer: Peer, parts: Sequence[Frame] | None, size: int, now: float) -> float:
        assert isinstance(peer, RouterPeer)
        self.received.append((peer, [bytes(part) for part in parts or ()]))
        return now

    def _call_roll(self) -> None:
        self.roll_calls += 1

    def until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < end, "it does not happen"
            for fd, events in self.poller.poll(0.005, 64):
                assert self.listener.on_ready(fd, events)
            if self.listener.ready:
                self.listener.read(64, self.now, self.now + 1)
            if self.now >= self.listener.next_look:
                self.listener.look(self.now)
            if self.listener.used:
                self.listener.ask()
            self.now += 0.001

    def seated(self, dealer: zmq.Socket[bytes]) -> RouterPeer:
        """The peer of ``dealer``, which a host would know from now on."""
        dealer.send(b"hello")
        count = len(self.received)
        self.until(lambda: len(self.received) > count)
        peer, _ = self.received[-1]
        peer.seat("a session")
        return peer

    def dealer(self, **options: int) -> zmq.Socket[bytes]:
        """A new client."""
        dealer = self.context.socket(zmq.DEALER)
        self.dealers.append(dealer)
        dealer.linger = 0
        dealer.rcvtimeo = 20_000
        for name, value in options.items():
            dealer.setsockopt(getattr(zmq, name), value)
        dealer.connect(f"tcp://127.0.0.1:{self.port}")
        return dealer

    def close(self) -> None:
        for dealer in self.dealers:
            dealer.close()
        self.context.term()
        self.close_listener()
        self.poller.close()

    def close_listener(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.listener.close()


@pytest.fixture
def porter() -> Iterator[Porter]:
    porter = Porter(max_calls=1)
    yield porter
    porter.close()


def test_a_short_delay_soon_after_a_long_pause_does_not_make_the_pause_shorter(porter: Porter) -> None:
    dealer = porter.dealer()
    porter.seated(dealer)
    (call,) = messages.call_frames(1, 0, "agent", "method", (b"payload",), timeout_s=0.5)
    porter.listener.note_delay(porter.now - 1.0, porter.now)
    porter.now += DELAY_S
    porter.listener.note_delay(porter.now - 2 * DELAY_S, porter.now)
    for is_late in (True, False):
        count = len(porter.received)
        dealer.send(call)
        porter.until(lambda: len(porter.received) > count)  # noqa: B023  # waits here
        _, (first,) = porter.received[-1]
        assert bool(messages.parse_header(first).flags & Flag.LATE) is is_late
        porter.now += 2 * LATE_S


def test_a_message_is_sent_whole_and_to_the_one_who_is_meant(porter: Porter) -> None:
    one, two = porter.dealer(), porter.dealer()
    first, second = porter.seated(one), porter.seated(two)
    assert first.user == second.user == "insecure"  # though no HELLO has said who it is
    for message in ([b"one"], [b"one", b"", b"three"], [bytes(MIB), b"x"]):
        assert first.send(list[Frame](message))
        assert one.recv_multipart() == message
    assert second.queue([b"two"])
    assert two.recv_multipart() == [b"two"]
    assert str(first) != str(second)


def test_who_says_hello_is_known_by_its_user(porter: Porter) -> None:
    dealer = porter.dealer()
    dealer.send_multipart([messages.header(Kind.HELLO), b"who I am"])
    porter.until(lambda: porter.received)
    assert porter.received[0][0].user == "insecure"


def test_a_client_is_the_same_peer_while_it_has_a_session(porter: Porter) -> None:
    dealer = porter.dealer()
    peer = porter.seated(dealer)
    assert porter.seated(dealer) is peer
    peer.seat(None)
    assert porter.seated(dealer) is not peer


def test_of_large_messages_only_so_many_bytes_are_on_their_way_to_one_client() -> None:
    porter = Porter()
    silent, other = porter.dealer(RCVHWM=1, RCVBUF=4096), porter.dealer()
    peer, fine = porter.seated(silent), porter.seated(other)
    sent = 0
    while peer.send([bytes(MIB)]):
        sent += 1
        assert sent < 100, "there is no limit"
    assert sent >= IN_FLIGHT_BYTES // MIB
    assert peer.pending
    assert fine.send([bytes(MIB)])
    assert other.recv() == bytes(MIB)
    again: list[Peer] = []
    porter.on_room = again.append
    for _ in range(sent):
        silent.recv()
    porter.now += RETRY_S
    porter.until(lambda: again)
    assert again[0] is peer
    assert not peer.pending
    porter.until(lambda: peer.send([bytes(MIB)]))
    silent.recv()
    porter.close()


def test_a_client_without_room_is_tried_again_every_now_and_then(porter: Porter) -> None:
    silent = porter.dealer(RCVHWM=1, RCVBUF=4096)
    peer = porter.seated(silent)
    times: list[float] = []

    def fill(peer: Peer) -> None:
        times.append(porter.now)
        while peer.send([bytes(10_000)]):
            pass

    porter.on_room = fill
    fill(peer)
    porter.until(lambda: len(times) == 4)
    assert all(later - before >= RETRY_S - 1e-6 for before, later in itertools.pairwise(times))


def test_a_client_that_has_left_is_found_out_by_sending_to_it(porter: Porter) -> None:
    dealer, other = porter.dealer(), porter.dealer()
    peer, fine = porter.seated(dealer), porter.seated(other)
    dealer.close()
    porter.until(lambda: porter.roll_calls == ROLL_CALLS)

    def is_gone() -> bool:
        peer.probe([b"are you there?"])
        return peer.ended

    porter.until(is_gone)
    assert list(porter.listener.ended) == [peer], "told once"
    assert peer.send([b"to nobody"])
    assert list(porter.listener.ended) == [peer]
    fine.probe([b"are you there?"])
    assert not fine.ended
    assert other.recv() == b"are you there?"


def test_the_last_words_are_as_many_as_there_is_room_for(porter: Porter) -> None:
    dealer = porter.dealer()
    peer = porter.seated(dealer)
    peer.send_last([[b"%d" % number] for number in range(10)])
    assert [dealer.recv() for _ in range(10)] == [b"%d" % number for number in range(10)]
    gone = porter.seated(porter.dealer())
    porter.close_listener()
    gone.send_last([[b"to nobody"]])


def test_an_error_that_is_not_about_the_client_is_raised(porter: Porter) -> None:
    peer = porter.seated(porter.dealer())
    porter.close_listener()
    with pytest.raises(zmq.ZMQError):
        peer.send([b"x"])
