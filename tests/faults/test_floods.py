"""Much of everything: garbage, handshakes, connections, sessions, calls. The host serves on, on bounded memory."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import zmq

import hosts
from actors import Desk, client_of, host, within
from raw_peer import RawPeer
from scale import Memory, pick
from zmqagents import AgentProxy, HostBusy, RpcAgentServerLauncher, RpcClient, codec
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind
from zmtp import MORE, Wire, connect_ipc, connect_tcp, frame, greeting

pytestmark = pytest.mark.timeout(pick(60, 900))

GARBAGE_S = pick(3.0, 60.0)
SERVED_WITHIN_S = 2.0  # the slowest answer that a good client may get on a busy machine


@contextlib.contextmanager
def _served(client: RpcClient) -> Iterator[list[float]]:
    """During the block a good client's calls are answered in time; how long each of them took."""
    desk, stop = client.create_agent(Desk), threading.Event()
    took: list[float] = []
    failures: list[Exception] = []

    def call() -> None:
        try:
            while not stop.is_set():
                start = time.monotonic()
                assert desk.echo(len(took)) == len(took)
                took.append(time.monotonic() - start)
                stop.wait(0.002)
        except Exception as exc:
            failures.append(exc)

    caller = threading.Thread(target=call, name="good client")
    caller.start()
    try:
        yield took
    finally:
        stop.set()
        caller.join()
    assert not failures, failures
    assert len(took) > 10
    assert max(took) < SERVED_WITHIN_S


@pytest.fixture(scope="module", autouse=True)
def half_open(server: RpcAgentServerLauncher) -> Iterator[tuple[float, list[socket.socket]]]:
    """Connections that begin a handshake and then say nothing, and when they did."""
    halves = [b"", greeting(b"NULL")[:11], greeting(b"NULL")[:63], greeting(b"NULL"), greeting(b"CURVE")]
    with contextlib.ExitStack() as stack:
        ends = []
        for half in halves:
            for end in (stack.enter_context(connect_tcp(server.port)), stack.enter_context(connect_ipc(server))):
                end.sendall(half)
                ends.append(end)
        yield time.monotonic(), ends


# ---------------------------------------------------------------- bytes of strangers


def _send_until(end: float, connect: Callable[[], socket.socket], chunks: Callable[[], bytes]) -> None:
    """One connection's worth of rudeness, and another connection as soon as that is cut off."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError), connect() as connection:
            while time.monotonic() < end:
                connection.sendall(chunks())


def _wrong_key(port: int) -> Callable[[], None]:
    """A real CURVE client whose key nobody knows, again and again."""
    public, secret = zmq.curve_keypair()

    def knock() -> None:
        from zmqagents.security.keys import KeyStore

        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.reconnect_ivl = 1
            dealer.curve_publickey, dealer.curve_secretkey = public, secret
            dealer.curve_serverkey = KeyStore.open().server_keypair().public.encode()
            with dealer.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH) as monitor:
                dealer.connect(f"tcp://127.0.0.1:{port}")
                monitor.poll(1000)
                dealer.disable_monitor()

    return knock


def test_garbage_from_eight_connections_costs_no_memory_and_a_line_for_each_peer(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Random bytes, floods of one byte, frames that never end, handshakes half done, and wrong keys."""
    with host(capacity=2) as launcher, client_of(launcher) as client, client_of(launcher, transport="tcp") as remote:
        assert remote.is_alive()
        port = launcher.port or 0
        source = random.Random(3)
        endless = frame(bytes(60_000), MORE)
        kinds: list[Callable[[], bytes]] = [
            lambda: source.randbytes(2000),
            lambda: greeting(b"CURVE") + source.randbytes(500),
            lambda: greeting(b"NULL") + endless,
            lambda: b"\xff" * 4096,
            lambda: b"\0" * 4096,
            lambda: greeting(b"CURVE") + b"\x04\xc8\x05HELLO" + source.randbytes(194),
        ]
        knock = [_wrong_key(port), _wrong_key(port)]
        with _served(client), _served(remote):
            time.sleep(0.2)
            memory = Memory(launcher.pid)
            end = time.monotonic() + GARBAGE_S

            def keep_knocking(once: Callable[[], None]) -> None:
                while time.monotonic() < end:
                    once()

            threads = [
                *(threading.Thread(target=_send_until, args=(end, lambda: connect_tcp(port), kind)) for kind in kinds),
                *(threading.Thread(target=keep_knocking, args=(once,)) for once in knock),
            ]
            assert len(threads) == 8
            for thread in threads:
                thread.start()
            memory.watch(GARBAGE_S)
            for thread in threads:
                thread.join()
        assert memory.most < 10
        assert client.get_server_info()["clients"] == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert len(lines) <= len(threads) + pick(0, 2)  # the number of further attempts is told once a minute
    assert sum("unknown key" in line for line in lines) == len(knock)


def test_malformed_messages_are_logged_once_for_each_peer(capfd: pytest.CaptureFixture[str]) -> None:
    with host() as launcher, client_of(launcher) as client:
        for _ in range(3):
            with RawPeer(launcher) as peer:
                peer.hello()
                for _ in range(2000):
                    peer.send(b"nonsense")
                peer.call(1, "", "get_agent_list")
                peer.answer_to(1)
        assert client.is_alive()
    assert capfd.readouterr().err.count("malformed") == 1, "they are of one process"


# ---------------------------------------------------------------- connections


def test_1000_connections_are_served_and_cost_64_kib_each(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    memory = Memory(server.pid)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(connect_ipc(server))) for _ in range(1000)]
        tokens = [wire.hello() for wire in wires]
        for token, wire in zip(tokens, wires, strict=True):
            meta = codec.pack([desk.agent_id, "bump", None, None])
            wire.send(messages.header(Kind.CALL, 1, token), meta, codec.encode_call((), {}).payload)
        for wire in wires:
            assert wire.receive()[0].kind == Kind.RESULT
        assert client.get_server_info()["clients"] >= 1000
        with within(SERVED_WITHIN_S):
            assert desk.count == 1000
        assert memory.grown < 1000 * 64 / 1024


def test_300_idle_clients_at_the_unix_socket_cost_30_kib_each() -> None:
    """Measured: 4.5 KiB, of which 1.5 are the connection's. A buffer for each would be 128."""
    with host() as launcher, client_of(launcher) as client, contextlib.ExitStack() as stack:
        desk = client.create_agent(Desk)
        desk.bump()
        memory = Memory(launcher.pid)
        for _ in range(300):
            wire = stack.enter_context(Wire(connect_ipc(launcher)))
            meta = codec.pack([desk.agent_id, "bump", None, None])
            wire.send(messages.header(Kind.CALL, 1, wire.hello()), meta, codec.encode_call((), {}).payload)
            assert wire.answer_to(1)[0].kind == Kind.RESULT
        assert client.get_server_info()["clients"] == 301
        assert memory.grown < 300 * 30 / 1024


def test_1000_strangers_on_tcp_hinder_nobody(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    memory = Memory(server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect_tcp(server.port)).sendall(greeting(b"CURVE"))
        with within(2), client_of(server, transport="tcp") as remote:
            assert remote.is_alive()
        assert client.is_alive()
        assert memory.grown < 64
    with within(2), client_of(server, transport="tcp") as remote:
        assert remote.is_alive()


CROWDED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
import hosts
hosts.main()
"""


def test_a_host_without_descriptors_serves_its_clients_and_takes_new_ones_when_there_are_some_again() -> None:
    import json

    with hosts.started(CROWDED, "fresh", json.dumps({"local_mode": True})) as program:
        server = hosts.Host(**hosts.told(program), program=program)
        with server.client() as client, contextlib.ExitStack() as stack:
            desk = client.create_agent("Worker")
            for _ in range(200):
                stack.enter_context(connect_tcp(server.port))
            with within(2):
                assert desk.echo(1) == 1
            assert client.is_alive()
            stack.close()
            with within(5), server.client(transport="tcp") as remote:
                assert hosts.eventually(remote.is_alive, 5)
            assert desk.echo(2) == 2


def test_sessions_that_came_and_went_do_not_pile_up(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    memory = Memory(server.pid)
    count = pick(500, 20_000)
    for _ in range(count):
        with Wire(connect_ipc(server)) as wire:
            wire.hello()
    assert client.is_alive()
    assert memory.grown < 2 + count * 3 / 1024  # 3 KiB each, for the minute until they are missed


# ---------------------------------------------------------------- calls


MAILBOX = 1000  # that one user may have; an eighth of all is kept for others


@pytest.fixture
def stuck() -> Iterator[tuple[RpcAgentServerLauncher, AgentProxy]]:
    """A host, and an agent on it whose one call does not end and whose mailbox is full."""
    with host(max_mailbox=MAILBOX * 8 // 7) as launcher, client_of(launcher, timeout=None) as client:
        latch = client.create_agent("Latch")
        kept = [latch.hold_async() for _ in range(MAILBOX + 1)]
        latch.entered()
        assert client.get_server_info()["calls_open"] == MAILBOX + 1
        yield launcher, latch
        assert client.get_server_info()["calls_open"] == MAILBOX + 1
        assert not any(result.done() for result in kept)
        latch.release()
        assert all(result.exception(20) is None for result in kept)


def test_thousands_of_calls_to_a_stuck_agent_are_refused_and_cost_no_memory(
    stuck: tuple[RpcAgentServerLauncher, AgentProxy],
) -> None:
    launcher, latch = stuck
    with client_of(launcher) as other, _served(other), RawPeer(launcher) as peer:
        peer.hello()
        memory = None
        rest = [codec.pack([latch.agent_id, "hold_async", None, None]), codec.encode_call((), {}).payload]
        for start in range(0, pick(20_000, 1_000_000), 500):
            for call_id in range(start + 1, start + 501):
                peer.send(messages.header(Kind.CALL, call_id, peer.token, flags=Flag.DETACHED), *rest)
            for call_id in range(start + 1, start + 501):
                assert peer.answer_to(call_id)[0].kind == Kind.ERROR
            peer.send(messages.header(Kind.ACK, start + 501, peer.token))
            memory = memory or Memory(launcher.pid)
        assert memory is not None
        assert memory.grown < 4


def test_a_client_learns_at_once_that_an_agent_is_stuck(stuck: tuple[RpcAgentServerLauncher, AgentProxy]) -> None:
    launcher, latch = stuck
    mine = Memory(os.getpid())
    with client_of(launcher) as client:
        latch = client.get_agent(latch.agent_id)
        memory = Memory(launcher.pid)
        for _ in range(pick(3, 1000)):
            with within(SERVED_WITHIN_S):
                results = [latch.hold_async() for _ in range(1000)]
                assert all(isinstance(result.exception(10), HostBusy) for result in results)
        with within(0.5), pytest.raises(HostBusy, match="max_mailbox") as caught:
            latch.hold()
        assert caught.value.retry_after > 0
        assert memory.grown < 4
        assert mine.grown < 64


def test_calls_that_wait_for_results_of_1500_addresses_do_not_take_a_thread_each(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """All of them lead to a socket that listens and says nothing."""
    desk, process = client.create_agent(Desk), psutil.Process(server.pid)
    before = process.num_threads()
    with socket.create_server(("0.0.0.0", 0), backlog=4096) as silent, RawPeer(server) as peer:
        port = silent.getsockname()[1]
        peer.hello()
        ids = [f"aaaaaaaaaaaaaaaa-{i}" for i in range(1500)]
        far = {each: ["elsewhere", f"127.0.{i >> 8}.{1 + (i & 255)}:{port}"] for i, each in enumerate(ids)}
        peer.call(1, desk.agent_id, "bump", deps=ids, options={"far": far})
        head, rest = peer.answer_to(1)
        assert head.kind == Kind.ERROR
        # The first of them is no host that is known here; with known ones it is the number that is too much.
        assert codec.unpack(rest[0], max_bytes=10_000)["type"].endswith(("HostUnreachable", "HostBusy"))
        assert process.num_threads() - before < 100
        with within(1):
            assert desk.echo(1) == 1
    assert desk.count == 0


# ---------------------------------------------------------------- handshakes (last: these have waited meanwhile)


def test_handshakes_left_half_done_are_ended_after_five_seconds(half_open: tuple[float, list[socket.socket]]) -> None:
    started, ends = half_open
    time.sleep(max(0.0, started + 6 - time.monotonic()))
    for end in ends:
        end.settimeout(2)
        with contextlib.suppress(ConnectionError):
            while end.recv(1000):
                pass
