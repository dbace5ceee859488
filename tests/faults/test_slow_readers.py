"""Clients that do not read: they cost a bounded amount, and harm nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import hosts
from actors import CLASSES, Desk, client_of, host, within
from raw_peer import RawPeer
from scale import MIB, Memory, pick, soak_only
from zmqagents import AgentProxy, RpcAgentServerLauncher, RpcClient, async_func, codec
from zmqagents.wire import messages
from zmqagents.wire.messages import Flag, Kind
from zmtp import Wire, connect_ipc

pytestmark = pytest.mark.timeout(pick(60, 300))

LIMIT = 16 * MIB  # of unread replies, of one client
POOL = 16 * MIB  # of finished results in the store
ROOM = 64  # MiB beyond the limit: what libzmq and the kernel hold


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(*CLASSES, Maker, Fountain, capacity=4, max_unread_bytes=LIMIT, max_pool_bytes=POOL) as launcher:
        yield launcher


def _settled(client: RpcClient, within_s: float = 10) -> None:
    assert hosts.eventually(lambda: client.get_server_info()["calls_open"] == 0, within_s)


@pytest.mark.parametrize(
    ("size", "count"),
    [(10_240, 10_000), (32_000, 2000), (100_000, 2000), (1_000_000, pick(200, 1000)), (17_000_000, pick(6, 30))],
)  # fmt: skip
def test_replies_of_any_size_that_nobody_reads_cost_no_more_than_the_limit(
    server: RpcAgentServerLauncher, client: RpcClient, size: int, count: int
) -> None:
    desk = client.create_agent(Desk)
    memory = Memory(server.pid)
    with RawPeer(server, receive_limit=1) as peer:
        peer.hello()
        for call_id in range(1, count + 1):
            peer.call(call_id, desk.agent_id, "make_bytes", size)
            if call_id % 100 == 0:
                with within(1):
                    assert desk.echo("served") == "served"
                memory.grown  # noqa: B018
        _settled(client)
        assert max(memory.most, memory.grown) < LIMIT / MIB + ROOM
    assert desk.echo("others are served") == "others are served"


def test_large_replies_arrive_whole_and_in_order_at_a_reader_who_comes_late(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    desk = client.create_agent(Desk)
    count = 30
    with RawPeer(server, receive_limit=1) as peer:
        peer.hello()
        for call_id in range(1, count + 1):
            peer.call(call_id, desk.agent_id, "make_bytes", call_id * 40_000)  # 19 MB: below the limit and 24 MiB
        _settled(client)
        for call_id in range(1, count + 1):
            head, (payload, *buffers) = peer.receive()
            assert (head.kind, head.call_id) == (Kind.RESULT, call_id)
            assert codec.decode(payload, buffers) == b"\xaa" * (call_id * 40_000)


def test_a_host_that_stops_delivers_what_was_not_read_yet() -> None:
    with host() as launcher, client_of(launcher) as client:
        desk = client.create_agent(Desk)
        with Wire(connect_ipc(launcher)) as wire:
            token = wire.hello()
            sizes = [100, 3 * MIB, 100, 2 * MIB, 40_000, 100_000]
            for call_id, size in enumerate(sizes, 1):
                wire.send(*_make_bytes(desk.agent_id, call_id, token, size))
            meta = codec.pack([desk.agent_id, "bump", None, None])
            wire.send(messages.header(Kind.CALL, 7, token), meta, codec.encode_call((), {}).payload)
            assert hosts.eventually(lambda: desk.count == 1, 10), "all before that have ended"
            stopping = threading.Thread(target=launcher.shutdown)
            stopping.start()
            for call_id, size in enumerate(sizes, 1):
                head, body = wire.receive()
                assert (head.kind, head.call_id) == (Kind.RESULT, call_id)
                assert sum(map(len, body)) >= size
            assert wire.receive()[0].call_id == 7
            assert wire.receive()[0].kind == Kind.GOODBYE
            stopping.join()


def test_a_stream_whose_reader_grants_ever_more_and_reads_nothing_costs_no_more_than_the_limit(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    fountain = client.create_agent(Fountain)
    memory = Memory(server.pid)
    with RawPeer(server, receive_limit=1) as peer:
        peer.hello()
        peer.call(1, fountain.agent_id, "flow", 100_000, flags=Flag.STREAM)
        assert hosts.eventually(lambda: client.get_server_info()["calls_open"] == 1, 20)  # it has begun

        def dropped() -> bool:
            peer.send(messages.header(Kind.CREDIT, 1, peer.token, time_ms=messages.MAX_TIME_MS))  # for one window
            memory.watch(0.0)
            return bool(client.get_server_info()["calls_open"] == 0)

        # Dropped for what it did not read, it holds the agent no longer.
        assert hosts.eventually(dropped, 20)
        assert max(memory.most, memory.grown) < LIMIT / MIB + ROOM
    with within(2):
        assert list(fountain.flow(1, 3)) == [b"\xaa"] * 3


def test_a_peer_that_says_bye_and_hello_and_never_reads_costs_no_more(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """A new session is on the old connection, with what waits in it."""
    desk = client.create_agent(Desk)
    memory = Memory(server.pid)
    with Wire(connect_ipc(server)) as wire:
        token = wire.hello()
        for _ in range(pick(5, 50)):
            for call_id in range(1, 41):
                wire.send(*_make_bytes(desk.agent_id, call_id, token, 1_000_000))
            _settled(client)
            wire.send(messages.header(Kind.BYE, 0, token))
            wire.send(messages.header(Kind.HELLO), codec.pack({"client": os.urandom(10), "versions": [1]}))
            assert memory.grown < 2 * LIMIT / MIB + ROOM  # what it held is gone at once
            while True:  # the WELCOME is behind what was not read
                head, _ = wire.receive()
                if head.kind == Kind.WELCOME:
                    token = head.token
                    break


def test_many_connections_that_never_read_cost_their_limits(client: RpcClient, server: RpcAgentServerLauncher) -> None:
    desk = client.create_agent(Desk)
    memory = Memory(server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            wire = stack.enter_context(Wire(connect_ipc(server)))
            token = wire.hello()
            for call_id in range(1, 101):
                wire.send(*_make_bytes(desk.agent_id, call_id, token, 1_000_000))
            _settled(client)
            with within(1):
                assert desk.echo(1) == 1
        # Each was dropped: what the door still has to write is all that is left.
        assert memory.grown < 8 * 32 + ROOM


def _make_bytes(agent_id: str, call_id: int, token: int, size: int) -> list[bytes]:
    head = messages.header(Kind.CALL, call_id, token)
    return [head, codec.pack([agent_id, "make_bytes", None, None]), codec.encode_call((size,), {}).payload]


# ---------------------------------------------------------------- a client that is stopped, and goes on

READER = """
import json, sys
from collections import Counter
from zmqagents import RpcClient
port, agent_id, latch_id, count, size = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
client = RpcClient("localhost", int(port), timeout=60)
desk, latch = client.get_agent(agent_id), client.get_agent(latch_id)
start = latch.hold_async()
results = [desk.make_later(size, start) for _ in range(count)]
client.is_alive()
print(json.dumps("sent"), flush=True)
outcomes = Counter()
for result in results:
    error = result.exception()
    assert error is not None or result.result() == b"\\xaa" * size
    outcomes[type(error).__name__] += 1
late = Counter(type(client.get_result(r.task_id).exception()).__name__ for r in results if r.exception() is not None)
client.close()
print(json.dumps([outcomes, late]), flush=True)
"""


class Maker(Desk):
    @async_func
    def make_later(self, size: int, start: Any) -> bytes:
        return b"\xaa" * size


class Fountain(Desk):
    def flow(self, size: int, count: int = 1_000_000) -> Any:
        for _ in range(count):
            yield b"\xaa" * size


@pytest.mark.parametrize(
    ("count", "size", "transport"),
    [
        (4000, 10_240, "tcp"),
        *(
            pytest.param(count, size, transport, marks=soak_only)
            for count, size in ((10_000, 10_240), (300, 1_000_000), (100, 10_000_000), (16_000, 100))
            for transport in ("ipc", "tcp")
        ),
    ],
)
def test_a_client_that_is_stopped_amid_thousands_of_replies_gets_all_or_errors_when_it_goes_on(
    server: RpcAgentServerLauncher, client: RpcClient, latch: AgentProxy, count: int, size: int, transport: str
) -> None:
    maker, other = client.create_agent(Maker), client.create_agent(Desk)
    memory = Memory(server.pid)
    source = READER.replace("timeout=60", f"timeout=60, transport={transport!r}")
    with hosts.started(source, str(server.port), maker.agent_id, latch.agent_id, str(count), str(size)) as program:
        assert hosts.told(program) == "sent"
        hosts.freeze(program.pid)
        latch.release()
        _settled(client, 20)
        with within(1):
            assert other.echo("served") == "served"
        assert max(memory.most, memory.grown) < (LIMIT + POOL) / MIB + ROOM
        program.send_signal(signal.SIGCONT)
        with within(20):
            outcomes, late = hosts.told(program)
    assert sum(outcomes.values()) == count
    assert set(outcomes) <= {"NoneType", "CallLost", "ResultExpired"}
    # What it did not get is still to be had, or was dropped by the limits of the store.
    assert sum(late.values()) == count - outcomes["NoneType"]
    assert set(late) <= {"NoneType", "ResultExpired"}
    assert outcomes["NoneType"] > 0


def test_half_a_message_goes_with_the_connection_over_which_it_came(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    memory = Memory(server.pid)
    for _ in range(20):
        with Wire(connect_ipc(server)) as wire:
            wire.end.sendall(b"\2" + (15 * MIB).to_bytes(8, "big") + b"its first bytes")
        client.get_server_info()  # that one has been read
    assert hosts.eventually(lambda: memory.grown < 60, 2)
