"""What no client would send: garbage on the sockets, malformed frames, oversize, floods. The host serves on."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import zmq

from actors import Desk, Latch, client_of, host, within
from raw_peer import RawPeer, ipc_path
from zmqagents import RpcAgentServerLauncher, RpcClient, codec
from zmqagents.wire import messages
from zmqagents.wire.messages import Code, Flag, Kind

pytestmark = pytest.mark.timeout(60)

# ZMTP 3.1 greeting (RFC 23): signature, version, mechanism, as-server, filler.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"%-20s" + bytes(32)
NULL_GREETING = GREETING.replace(b"%-20s", b"NULL".ljust(20, b"\0"))
CURVE_GREETING = GREETING.replace(b"%-20s", b"CURVE".ljust(20, b"\0"))


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(capacity=4, max_message_bytes=1_000_000) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        client.is_alive()
        yield client


@pytest.fixture(autouse=True)
def _the_host_serves_on(server: RpcAgentServerLauncher, client: RpcClient) -> Iterator[None]:
    desk = client.create_agent(Desk)
    yield
    assert server.is_running
    with within(3):
        assert desk.echo("still here") == "still here"
        assert desk.bump() == 1  # nothing that the test sent was run
        assert client.is_alive()


@pytest.fixture
def peer(server: RpcAgentServerLauncher) -> Iterator[RawPeer]:
    with RawPeer(server) as peer:
        peer.hello()
        yield peer


def _connections(server: RpcAgentServerLauncher) -> list[socket.socket]:
    """One raw byte connection to the TCP port and one to the ipc socket."""
    tcp = socket.create_connection(("127.0.0.1", server.port or 0), timeout=2)
    ipc = socket.socket(socket.AF_UNIX)
    ipc.settimeout(2)
    ipc.connect(ipc_path(server))
    return [tcp, ipc]


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 4096, b"\xff" * 4096, b"\x16\x03\x01" + bytes(500),
        NULL_GREETING, CURVE_GREETING, NULL_GREETING + b"\x04\xff" + b"\xff" * 200,
        NULL_GREETING + b"\x06" + struct.pack(">Q", 2**62) + b"x" * 1000,
        CURVE_GREETING + b"\x04\xc8\x05HELLO" + bytes(194),
        GREETING.replace(b"%-20s", b"PLAIN".ljust(20, b"\0")),
    ],
    ids=["http", "zeros", "ones", "tls", "null", "curve", "null-command", "null-huge", "curve-hello", "plain"],
)  # fmt: skip
def test_garbage_bytes_on_the_sockets(server: RpcAgentServerLauncher, client: RpcClient, garbage: bytes) -> None:
    connections = _connections(server)
    try:
        for connection in connections:
            connection.sendall(garbage)
        assert client.is_alive()
    finally:
        for connection in connections:
            connection.close()


def test_random_bytes_on_the_sockets(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    source = random.Random(7)
    for turn in range(30):
        for connection in _connections(server):
            with connection:
                start = (b"", NULL_GREETING, CURVE_GREETING)[turn % 3]
                with contextlib.suppress(OSError):  # cut off already: fine
                    connection.sendall(start + source.randbytes(source.randrange(2000)))
    assert client.is_alive()


def test_connections_that_say_nothing_cost_no_session(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    before = client.get_server_info()["clients"]
    connections = [connection for _ in range(50) for connection in _connections(server)]
    try:
        assert client.get_server_info()["clients"] == before
    finally:
        for connection in connections:
            connection.close()


def test_a_peer_without_a_key_gets_no_answer_on_tcp(server: RpcAgentServerLauncher) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"tcp://127.0.0.1:{server.port}")
        hello = [messages.header(Kind.HELLO), codec.pack({"client": b"0123456789", "versions": [1]})]
        with contextlib.suppress(zmq.Again):  # it was refused before it could say anything
            dealer.send_multipart(hello, zmq.NOBLOCK)
        assert not dealer.poll(300)


# ---------------------------------------------------------------- frames


def _head(peer: RawPeer, kind: int = Kind.CALL, call_id: int = 1, **fields: int) -> bytes:
    return messages.header(kind, call_id, peer.token, **fields)


GOOD_BODY = codec.encode_call((), {}).payload


@pytest.mark.parametrize(
    "parts",
    [
        [b""], [b"x"], [bytes(28)], [b"ZA"], [messages.header(Kind.PING)[:-1]], [messages.header(Kind.PING) + b"x"],
        [b"ZB" + messages.header(Kind.PING)[2:]], [b"ZA\x02" + messages.header(Kind.PING)[3:]], [b""] * 5,
        [b"\xff" * 28] * 3,
    ],
)  # fmt: skip
def test_a_message_with_a_bad_header_is_dropped(peer: RawPeer, parts: list[bytes]) -> None:
    peer.send(*parts)
    assert peer.hears_nothing(50)
    _still_good(peer)


@pytest.mark.parametrize(
    "meta",
    [
        b"", b"\xc1", b"\x94", codec.pack(None), codec.pack({}), codec.pack([]), codec.pack(["a", "b"]),
        codec.pack("text"),
        codec.pack([1, "m", None, None]), codec.pack(["a", 5, None, None]), codec.pack([None, None, None, None]),
        codec.pack(["a", "m", "deps", None]), codec.pack(["a", "m", [1], None]), codec.pack(["a", "m", {"k": 1}, None]),
        codec.pack(["a", "m", None, []]), codec.pack(["a", "m", None, "options"]), 
        codec.pack(["x" * 256, "m", None, None]),
        codec.pack(["a", "x" * 256, None, None]), b"\x91" * 70_000, b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x00",
        b"\x91" * 5000 + b"\xc0", b"\xdf\x7f\xff\xff\xff", codec.pack(["a", "m", ["d"] * 5000, None]),
        b"\x94\xa1\xff\xa1m\xc0\xc0",
    ],
)  # fmt: skip
def test_a_call_with_a_bad_list_is_dropped(peer: RawPeer, meta: bytes) -> None:
    peer.send(_head(peer), meta, GOOD_BODY)
    _still_good(peer)


@pytest.mark.parametrize("kind", [0, 9, 64, 65, 66, 67, 68, 69, 70, 71, 72, 255])
def test_kinds_that_no_client_sends_are_dropped(peer: RawPeer, kind: int) -> None:
    peer.send(_head(peer, kind), codec.pack({}), b"")
    _still_good(peer)


@pytest.mark.parametrize("kind", [Kind.CALL, Kind.FETCH, Kind.HELLO])
def test_messages_that_end_too_early_are_dropped(peer: RawPeer, kind: Kind) -> None:
    peer.send(_head(peer, kind))
    _still_good(peer)


@pytest.mark.parametrize(
    "meta", [codec.pack(5), codec.pack([1]), codec.pack(None), b"", b"\xc1", codec.pack("x" * 300)]
)
@pytest.mark.parametrize("kind", [Kind.FETCH, Kind.CANCEL])
def test_bad_task_ids_are_dropped(peer: RawPeer, kind: Kind, meta: bytes) -> None:
    peer.send(_head(peer, kind, time_ms=1), meta)
    _still_good(peer)


@pytest.mark.parametrize(
    "hello",
    [
        {}, {"client": None}, {"client": "0123456789"}, {"client": b"short"}, {"client": bytes(1000)}, [], "text", None,
        {"client": b"0123456789", "versions": "all"}, {1: 2},
    ],
)  # fmt: skip
def test_a_bad_hello_opens_nothing_or_something_that_works(server: RpcAgentServerLauncher, hello: Any) -> None:
    with RawPeer(server) as peer:
        peer.send(messages.header(Kind.HELLO), codec.pack(hello))
        if not peer.hears_nothing(30):
            assert peer.receive()[0].kind in (Kind.WELCOME, Kind.ERROR)


@pytest.mark.parametrize(
    "options",
    [
        {"chain": 5}, {"chain": None}, {"chain": "text"}, {"chain": [1, None, {}]}, {"chain": {"a": 1}},
        {"chain": ["x"] * 3000},
        {"id": []}, {"class": {}}, {"max_concurrency": "many"}, {"": ""}, {1: 2}, {"id": 7, "class": 7, "chain": 7},
        {"max_concurrency": -1}, {"grace_s": "x"}, {"items": -5},
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("agent", "method"),
    [("", "create_agent"), ("", "get_agent_memory"), ("", "describe_agent"), ("", "delete_agent"), ("nobody", "m")],
)
def test_odd_options_are_refused_or_ignored(peer: RawPeer, agent: str, method: str, options: Any) -> None:
    peer.call(1, agent, method, options=options)
    assert Kind.RESULT not in _still_good(peer)


@pytest.mark.parametrize("chain", [5, None, "text", [1, None], {"a": 1}, ["x"] * 3000])
def test_an_odd_chain_of_calls_harms_nobody(peer: RawPeer, client: RpcClient, chain: Any) -> None:
    desk = client.create_agent(Desk)
    peer.call(1, desk.agent_id, "bump", options={"chain": chain})
    _still_good(peer)
    assert client.is_alive()


@pytest.mark.parametrize(
    "body",
    [
        [b""], [b"\xc1"], [b"\xc1" * 50], [codec.pack(5)], [codec.pack([])], [codec.pack([[], []])], [codec.pack({})],
        [codec.pack([[], {1: 2}])], [b"\x91" * 400_000], [b"\xc1" + b"\x91" * 400_000], [b"\xdd\xff\xff\xff\xff"],
        [os.urandom(100)], [b"\xc1\x92\x90\x80", b"extra"], [codec.pack([[1], {}])] + [b"buffer"] * 60,
        [b"\xc1\x92\x91\xc7\x02\x02\xff\xff\x80"], [codec.pack([[], {}]) + b"trailing"],
    ],
)  # fmt: skip
def test_a_body_that_is_none_is_told_to_its_sender(peer: RawPeer, client: RpcClient, body: list[bytes]) -> None:
    desk = client.create_agent(Desk)
    peer.send(_head(peer), codec.pack([desk.agent_id, "anything", None, None]), *body)
    head, rest = peer.answer_to(1)
    if head.kind == Kind.ERROR:
        assert isinstance(codec.unpack(rest[0], max_bytes=1_000_000)["message"], str)
    _still_good(peer)


@pytest.mark.parametrize("method", ["set_model_configs", "register_class", "stop?", "create_agent", "get_call_list"])
@pytest.mark.parametrize("body", [b"", b"\xc1", codec.pack([[], {}]), codec.pack([[5], {}]), b"\x91" * 10_000])
def test_management_requests_with_bad_bodies_are_answered(peer: RawPeer, method: str, body: bytes) -> None:
    peer.send(_head(peer), codec.pack(["", method, None, {"class": "Desk"}]), body)
    head, _ = peer.answer_to(1)
    assert head.kind == (Kind.RESULT if method == "get_call_list" else head.kind)
    _still_good(peer)


def test_a_pickle_is_never_loaded(peer: RawPeer, client: RpcClient, tmp_path: Any) -> None:
    """The extension that private hosts use for pickled values, with a pickle that would make a file."""
    import pickle

    proof = tmp_path / "loaded"

    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(proof), "w")

    pickled = pickle.dumps(Trap())
    body = codec.encode_call((threading_lock(),), {}, pickler=lambda _: pickled)
    desk = client.create_agent(Desk)
    peer.send(_head(peer), codec.pack([desk.agent_id, "echo", None, None]), body.payload, *map(bytes, body.buffers))
    assert peer.answer_to(1)[0].kind == Kind.ERROR
    peer.send(_head(peer, call_id=2), codec.pack(["", "register_class", None, None]), body.payload)
    assert peer.answer_to(2)[0].kind == Kind.ERROR
    assert not proof.exists()
    _still_good(peer)


def threading_lock() -> Any:
    import threading

    return threading.Lock()


def test_a_call_with_id_0_is_dropped(peer: RawPeer, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    peer.send(_head(peer, call_id=0), codec.pack([desk.agent_id, "bump", None, None]), GOOD_BODY)
    _still_good(peer)
    assert desk.count == 0


def test_unknown_flags_are_ignored(peer: RawPeer, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    peer.call(1, desk.agent_id, "bump", flags=0xFFF0)
    assert peer.answer_to(1)[0].kind == Kind.RESULT


@pytest.mark.parametrize("flags", [Flag.STREAM, Flag.STREAM | Flag.DETACHED, Flag.ATTRIBUTE | Flag.STREAM, 7])
@pytest.mark.parametrize("method", ["echo", "soon", "count", "nothing"])
def test_flags_that_do_not_fit_the_method_are_answered(
    peer: RawPeer, client: RpcClient, method: str, flags: int
) -> None:
    desk = client.create_agent(Desk)
    peer.call(1, desk.agent_id, method, flags=flags, time_ms=2000)
    assert peer.answer_to(1)[0].kind in (Kind.RESULT, Kind.ERROR)
    _still_good(peer)


@pytest.mark.parametrize("time_ms", [1, 2**32 - 1])
def test_the_extremes_of_the_time_field(peer: RawPeer, client: RpcClient, time_ms: int) -> None:
    desk = client.create_agent(Desk)
    peer.call(1, desk.agent_id, "echo", 1, time_ms=time_ms)
    assert peer.answer_to(1)[0].kind in (Kind.RESULT, Kind.ERROR)
    peer.send(_head(peer, Kind.FETCH, 2, time_ms=time_ms), codec.pack("no such task"))
    assert peer.answer_to(2)[0].kind == Kind.ERROR


def test_random_frames_are_dropped(peer: RawPeer) -> None:
    source = random.Random(11)
    good = [_head(peer), codec.pack(["nobody", "m", None, {"chain": []}]), GOOD_BODY]
    for _ in range(3000):
        parts = [bytearray(part) for part in good]
        for _ in range(source.randrange(1, 4)):
            part = source.choice(parts)
            if part:
                part[source.randrange(len(part))] = source.randrange(256)
            if source.random() < 0.1:
                parts.insert(source.randrange(len(parts)), bytearray(source.randbytes(source.randrange(40))))
        parts[0][3:4] = bytes([source.choice([2, 3, 4, 5, 8, 9, 66, parts[0][3]])]) if len(parts[0]) > 3 else b""
        peer.send(*(bytes(part) for part in parts))
    with RawPeerAgain(peer) as other:
        _still_good(other)


# ---------------------------------------------------------------- size


@pytest.mark.parametrize("size", [31_000, 33_000, 60_000, 70_000])
def test_a_call_whose_payload_in_the_first_frame_is_long_is_answered_as_any_other(
    peer: RawPeer, client: RpcClient, size: int
) -> None:
    agent = client.create_agent(Desk)
    payload, _, _ = codec.encode_call((["x" * 100] * (size // 102),), {})
    meta = codec.pack([agent.agent_id, "echo", None, None])
    head = messages.header(Kind.CALL, 5, peer.token) + len(meta).to_bytes(2, "big")
    peer.send(head + meta + payload)
    answer, body = peer.answer_to(5)
    assert (answer.kind, codec.decode(body[0])) == (Kind.RESULT, ["x" * 100] * (size // 102))
    peer.send(head + meta, payload)  # it ends where its payload should begin
    peer.send(head[:-2] + b"\xff\xff" + meta + payload)


def test_a_message_of_100000_empty_frames_is_read_and_dropped(peer: RawPeer, client: RpcClient) -> None:
    peer.send(_head(peer), *[b""] * 100_000)
    with within(2):
        assert client.is_alive()
    _still_good(peer)


def test_a_message_of_73_frames_is_dropped(peer: RawPeer, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    peer.send(_head(peer), codec.pack([desk.agent_id, "bump", None, None]), GOOD_BODY, *[b"x"] * messages.MAX_FRAMES)
    _still_good(peer)
    assert desk.count == 0


def test_a_frame_over_the_limit_ends_the_connection_of_its_sender_only(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    with RawPeer(server) as peer:
        peer.hello()
        peer.send(_head(peer), codec.pack(["nobody", "m", None, None]), bytes(3_000_000))
        assert peer.hears_nothing(100)
    assert client.is_alive()


def test_many_frames_below_the_limit_that_are_too_much_together_are_refused(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    latch = client.create_agent(Latch)
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    with RawPeer(server) as peer:
        peer.hello()
        for call_id in (1, 2, 3):
            meta = codec.pack([latch.agent_id, "mark", None, None])
            peer.send(_head(peer, call_id=call_id), meta, GOOD_BODY, *[b"x" * 900_000] * 60)
            head, rest = peer.answer_to(call_id)
            assert head.kind == Kind.ERROR
            error = codec.unpack(rest[0], max_bytes=1_000_000)
            assert error["type"].endswith(":MessageTooLarge")
            assert error["message"].startswith("a message of 54,0")
        _still_good(peer)
    assert latch.marks == []
    assert process.memory_info().rss - before < 40e6
    latch.release()


def test_during_a_flood_of_malformed_messages_others_are_served(peer: RawPeer, client: RpcClient) -> None:
    for _ in range(5000):
        peer.send(b"nonsense")
    with within(3):
        assert client.is_alive()
    _still_good(peer)


def test_a_flood_of_hellos_opens_one_session(peer: RawPeer, client: RpcClient) -> None:
    before = client.get_server_info()["clients"]
    for _ in range(500):  # fewer than the replies that a peer may leave unread before they are dropped
        peer.say_hello()
    for _ in range(500):
        peer.token = peer.receive()[0].token
    assert client.get_server_info()["clients"] <= before
    _still_good(peer)


def test_a_flood_of_slow_management_requests_does_not_make_a_thread_each(
    server: RpcAgentServerLauncher, peer: RawPeer
) -> None:
    process = psutil.Process(server.pid)
    most = 0
    for call_id in range(1, 501):
        peer.call(call_id, "", "set_model_configs", [])
        if call_id % 50 == 0:
            most = max(most, process.num_threads())
    peer.answer_to(500)
    assert most < 100


def test_a_fetch_flood_on_one_task_is_bounded_or_answered(peer: RawPeer, client: RpcClient) -> None:
    for call_id in range(1, 2001):
        peer.send(_head(peer, Kind.FETCH, call_id, time_ms=1000), codec.pack("aaaaaaaaaaaaaaaa-1"))
    with within(3):
        for _ in range(2000):
            assert peer.receive()[0].code == Code.HOST_ERROR


def test_cancels_of_nothing_are_nothing(peer: RawPeer) -> None:
    for call_id in range(1000):
        peer.send(_head(peer, Kind.CANCEL, call_id))
        peer.send(_head(peer, Kind.CANCEL, 0), codec.pack(f"aaaaaaaaaaaaaaaa-{call_id}"))
    _still_good(peer)


class RawPeerAgain:
    """The same peer after it may have lost its session: it introduces itself anew."""

    def __init__(self, peer: RawPeer) -> None:
        self._peer = peer

    def __enter__(self) -> RawPeer:
        self._peer.say_hello()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            head, _ = self._peer.receive()
            if head.kind == Kind.WELCOME:
                self._peer.token = head.token
                return self._peer
        raise AssertionError("no WELCOME")

    def __exit__(self, *exc: object) -> None:
        pass


def _still_good(peer: RawPeer) -> list[int]:
    """The session of ``peer`` is as it was: its next request is answered. The kinds of what came before that."""
    peer.call(77_777, "", "get_agent_list")
    before = []
    while (head := peer.receive()[0]).call_id != 77_777:
        before.append(head.kind)
    assert head.kind == Kind.RESULT
    return before
