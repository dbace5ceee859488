"""What libzmq does that this package is built around: each fact by experiment, and beside it that a host is not hit.

When a new libzmq behaves otherwise, the test of the fact fails and says which precaution is no longer needed. Facts
about authentication (no handler, no domain, names that peers give themselves, the start of the routing ids) are in
test_security.py.

An experiment that ends in an abort, or that forks, is a program of its own; its exit status is the result.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

import hosts
import zmqagents
import zmtp
from actors import Desk, client_of, host, within
from scale import MIB, Memory, linux_only, pick
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, codec
from zmqagents.wire import messages
from zmqagents.wire.messages import Kind
from zmtp import LONG, MORE, Wire, command, connect_ipc, connect_tcp, flood_with_pings_and_go, frame, greeting

SOURCES = {path.name: path.read_text(encoding="utf-8") for path in Path(zmqagents.__file__).parent.rglob("*.py")}
ABORTED = -signal.SIGABRT


def _program(source: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, env=hosts.environment(), timeout=40
    )
    return done.returncode, done.stdout, done.stderr


# ---------------------------------------------------------------- heartbeats of ZMTP abort a slow reader

SLOW_READER = """
import sys, time, zmq
heartbeats = sys.argv[1] == "with"
router, dealer = zmq.Context().socket(zmq.ROUTER), zmq.Context().socket(zmq.DEALER)
router.linger = dealer.linger = 0
router.sndhwm = 0
dealer.rcvhwm = 1
dealer.rcvbuf = 4096
if heartbeats:
    dealer.heartbeat_ivl, dealer.heartbeat_timeout = 100, 200
router.bind("tcp://127.0.0.1:*")
dealer.connect(router.last_endpoint.decode())
dealer.send(b"here I am")
routing_id, _ = router.recv_multipart()
for _ in range(300):
    router.send_multipart([routing_id, bytes(30_000)])
time.sleep(0.7)
received = 0
while dealer.poll(300):
    dealer.recv()
    received += 1
print(received, flush=True)
import os; os._exit(0)
"""


def test_fact_heartbeats_abort_a_connecting_socket_that_reads_slowly() -> None:
    status, _, errors = _program(SLOW_READER, "with")
    assert status == ABORTED
    assert "_input_stopped" in errors


def test_without_heartbeats_a_slow_reader_reads_everything() -> None:
    assert _program(SLOW_READER, "without") == (0, "300\n", "")


@pytest.mark.parametrize("option", ["HEARTBEAT", "heartbeat_ivl", "ROUTER_HANDOVER, 1", "ROUTING_ID"])
def test_options_that_must_not_be_used_are_not(option: str) -> None:
    assert [name for name, source in SOURCES.items() if option in source] == []


def test_heartbeats_of_a_peer_are_answered(server: RpcAgentServerLauncher) -> None:
    with Wire(connect_ipc(server)) as wire:
        wire.hello()
        wire.end.sendall(command(b"PING", b"\0\0" + b"hello"))
        assert wire.read_frame()[1] == b"\x04PONGhello"


# ---------------------------------------------------------------- a PING in what was not read when its peer went

PING_AND_GO = """
import os, socket, sys, time, zmq
sys.path.insert(0, sys.argv[1])
from zmtp import Wire, command, frame
router = zmq.Context().socket(zmq.ROUTER)
router.linger, router.rcvhwm = 0, int(sys.argv[2])
router.bind("tcp://127.0.0.1:*")
port = int(router.last_endpoint.decode().rpartition(":")[2])
with Wire(socket.create_connection(("127.0.0.1", port))) as wire:
    wire.end.sendall((frame(bytes(50)) * 20 + command(b"PING", b"\\0\\0x")) * 2000)
time.sleep(0.3)
while router.poll(300):
    router.recv_multipart()
print("alive", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("high_water_mark", ["1", "1000"])
def test_fact_a_peer_that_floods_pings_and_goes_aborts_a_socket_with_a_high_water_mark(high_water_mark: str) -> None:
    """At the mark the input is stopped, and the end of the connection is an error; what is read then is a PING."""
    status, _, errors = _program(PING_AND_GO, os.path.dirname(zmtp.__file__), high_water_mark)
    assert status == ABORTED
    assert "!_io_error" in errors


def test_a_peer_that_floods_pings_and_goes_does_nothing_to_a_socket_without_a_high_water_mark() -> None:
    assert _program(PING_AND_GO, os.path.dirname(zmtp.__file__), "0") == (0, "alive\n", "")


def test_a_peer_that_floods_pings_and_goes_does_nothing_to_a_host_at_its_unix_socket() -> None:
    with host() as launcher, client_of(launcher) as client:
        for _ in range(3):
            flood_with_pings_and_go(connect_ipc(launcher))
        assert client.is_alive()
        assert launcher.is_running


def test_fact_a_peer_that_floods_pings_and_goes_ends_a_host_over_tcp() -> None:
    """No release of libzmq cures it, and the bound must stay: docs/decisions/0006. One that does is noticed here."""
    with host(insecure=True) as launcher:
        for _ in range(10):  # one may be read before its connection closes
            if launcher.is_running:
                flood_with_pings_and_go(connect_tcp(launcher.port))
                hosts.eventually(lambda: not launcher.is_running, 1)
        assert not launcher.is_running


@pytest.mark.parametrize(
    "rude",
    [
        command(b"PING"), command(b"PING", b"\0"), command(b"PING", b"\0\0" + bytes(70_000)),
        command(b"PONG", bytes(300)),
        command(b"SUBSCRIBE", b"x"), command(b"CANCEL"), command(b"ERROR", b"\x05hello"), command(b"ERROR", b"\xff"),
        command(b"READY"), command(b""), frame(b"", 4), frame(b"\xff", 4), frame(b"x", 5), bytes([0xF8, 1, 0]),
        b"\x02" + b"\xff" * 8, b"\x02\x80" + bytes(7), b"\x06" + b"\x7f" * 8,
    ],
)  # fmt: skip
def test_commands_that_no_peer_sends_after_the_handshake(
    server: RpcAgentServerLauncher, client: RpcClient, rude: bytes
) -> None:
    with Wire(connect_ipc(server)) as wire:
        wire.hello()
        wire.end.sendall(rude)
        assert client.is_alive()
    assert server.is_running


@pytest.mark.parametrize(
    "properties",
    [
        {"Socket_Type": b"ROUTER"}, {"Socket_Type": b"PUB"}, {"Socket_Type": b""}, {"Socket_Type": b"x" * 5000},
        {"Identity": b"\0"}, {"Identity": b"x" * 256}, {"Identity": bytes(5)}, {"User_Id": b"uid:0"}, {"": b""},
        {"Resource": b"../../etc"},
    ],
)  # fmt: skip
def test_odd_properties_in_the_handshake(
    server: RpcAgentServerLauncher, client: RpcClient, properties: dict[str, bytes]
) -> None:
    with connect_ipc(server) as end:
        end.settimeout(5)
        with contextlib.suppress(ConnectionError):  # cut off
            Wire(end, **properties).hello()
        assert client.is_alive()
    assert server.is_running


# ---------------------------------------------------------------- a routing id that is claimed by another

CLAIM = """
import socket, sys, zmq
sys.path.insert(0, sys.argv[1])
from zmtp import Wire
router = zmq.Context().socket(zmq.ROUTER)
router.linger, router.rcvtimeo = 0, 2000
router.bind("tcp://127.0.0.1:*")
address = router.last_endpoint.decode()
def honest():
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(address)
    dealer.send(b"x")
    return router.recv_multipart()[0]
number = int.from_bytes(honest()[1:], "big") + int(sys.argv[2])
end = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
rude = Wire(end, identity=b"\\0" + (number % 2**32).to_bytes(4, "big"))
rude.send(b"x")
router.recv_multipart()
honest()
print("alive", flush=True)
import os; os._exit(0)
"""


def test_fact_a_peer_that_claims_the_next_routing_id_aborts_the_process() -> None:
    status, _, errors = _program(CLAIM, os.path.dirname(zmtp.__file__), "1")
    assert status == ABORTED
    assert "Assertion failed: ok" in errors


def test_a_peer_that_claims_another_routing_id_is_like_any_other() -> None:
    assert _program(CLAIM, os.path.dirname(zmtp.__file__), "1000")[:2] == (0, "alive\n")


def test_two_peers_that_claim_one_identity_are_two_and_do_not_get_each_others_replies(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    desk = client.create_agent(Desk)
    with Wire(connect_ipc(server), identity=b"twin") as first:
        token = first.hello()
        with Wire(connect_ipc(server), identity=b"twin") as second:
            assert second.hello() != token
            meta = codec.pack([desk.agent_id, "echo", None, None])
            second.send(messages.header(Kind.CALL, 1, token), meta, codec.encode_call(("second",), {}).payload)
            first.send(messages.header(Kind.CALL, 1, token), meta, codec.encode_call(("first",), {}).payload)
            assert codec.decode(first.answer_to(1)[1][0]) == "first"
            assert second.answer_to(1)[0].kind == Kind.NEED_HELLO
            second.end.settimeout(0.2)
            with pytest.raises(TimeoutError):
                second.receive()
        first.send(messages.header(Kind.CALL, 2, token), meta, codec.encode_call(("again",), {}).payload)
        assert codec.decode(first.answer_to(2)[1][0]) == "again"


# ---------------------------------------------------------------- a message without an end


@linux_only("only Linux tells how many bytes have come on a connection")
def test_a_connection_whose_message_does_not_end_is_cut_and_others_are_served(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """libzmq would hold the message until its end: MAXMSGSIZE is for each frame, the high-water mark for whole ones."""
    with host(max_message_bytes=MIB, insecure=True) as launcher, client_of(launcher) as client:
        desk, memory = client.create_agent(Desk), Memory(launcher.pid)
        with client_of(launcher, transport="tcp-insecure") as far:
            other = far.get_agent(desk.agent_id)

            def send_without_end(wire: Wire) -> None:
                for number in range(4_000):
                    wire.end.sendall(frame(bytes(MIB), MORE))
                    if number % 20 == 0:
                        memory.grown  # noqa: B018  # for the most
                        with within(5):
                            assert other.echo(number) == number

            for says_hello in (True, False):
                with Wire(connect_tcp(launcher.port)) as wire:
                    if says_hello:
                        wire.hello()
                    with pytest.raises((ConnectionError, TimeoutError)):  # or the host reads no more
                        send_without_end(wire)
                    memory.watch(0.1)
                assert "is cut: a message of more than" in capfd.readouterr().err
            assert memory.most < 1_000  # 2 MiB and what comes in 0.2 s
            assert hosts.eventually(lambda: memory.grown < 100, 15)
            assert other.bump() == 1


@pytest.mark.parametrize("transport", ["tcp", "tcp-insecure"])
def test_a_connection_with_many_messages_of_the_largest_size_is_not_cut(
    transport: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        host(max_message_bytes=32 * MIB, insecure=transport != "tcp") as launcher,
        client_of(launcher, transport=transport, timeout=60) as client,
    ):
        desk: Any = client.create_agent(Desk)
        data = bytes(32 * MIB - 2000)
        for _ in range(pick(2, 4)):
            results = [desk.echo.aio(data) for _ in range(4)]
            assert [len(result.result(60)) for result in results] == [len(data)] * 4
        assert "is cut" not in capfd.readouterr().err


def test_of_a_message_that_does_not_end_the_unix_socket_keeps_the_first_frame_and_serves_the_others() -> None:
    with host(max_message_bytes=MIB) as launcher, client_of(launcher) as client:
        desk, memory = client.create_agent(Desk), Memory(launcher.pid)
        with Wire(connect_ipc(launcher)) as wire:
            token = wire.hello()
            wire.end.sendall(frame(messages.header(Kind.CALL, 1, token), MORE))
            for number in range(pick(100, 2000)):
                wire.end.sendall(frame(bytes(MIB), MORE))
                if number % 20 == 0:
                    with within(2):
                        assert desk.echo(number) == number
            assert memory.grown < 16
            wire.end.sendall(frame(b""))
            wire.send(messages.header(Kind.CALL, 2, token), bytes(MIB), bytes(MIB))  # too large, but not endless
            head, body = wire.answer_to(2)
            assert head.kind == Kind.ERROR
            assert "max_message_bytes" in codec.unpack(body[0])["message"]
            wire.send(messages.header(Kind.PING, 3, token))
            assert wire.answer_to(3)[0].kind == Kind.PONG
        assert memory.grown < 16


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_a_frame_that_is_only_promised_costs_the_memory_of_the_bytes_that_have_come(door: str) -> None:
    size, connections = 256 * MIB, 32
    with contextlib.ExitStack() as stack:
        launcher = stack.enter_context(host(insecure=True))
        client = stack.enter_context(client_of(launcher))
        desk, wires = client.create_agent(Desk), []
        for _ in range(connections):
            end = connect_ipc(launcher) if door == "unix" else connect_tcp(launcher.port)
            wires.append(stack.enter_context(Wire(end)))
            wires[-1].hello()
        memory = Memory(launcher.pid)
        for wire in wires:
            wire.end.sendall(bytes([LONG]) + size.to_bytes(8, "big") + bytes(1000))
        memory.watch(1)
        for wire in wires[:4]:
            wire.end.sendall(bytes(10 * MIB))
        with within(5):
            assert desk.echo("served") == "served"
        memory.watch(0.5)
        assert memory.most < 40 + 24


def test_a_stranger_cannot_send_a_message_without_an_end(server: RpcAgentServerLauncher) -> None:
    memory = Memory(server.pid)
    for start in (greeting(b"NULL"), greeting(b"CURVE"), b""):
        with connect_tcp(server.port) as end:
            end.sendall(start)
            with pytest.raises((ConnectionError, TimeoutError)):
                end.sendall(frame(bytes(MIB), MORE) * 50)
    assert memory.grown < 8


def test_a_message_of_a_million_empty_frames_is_let_go_at_its_end(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    """While it is read, at about a million frames a second, the host reads nothing else."""
    desk = client.create_agent(Desk)
    with Wire(connect_ipc(server)) as wire:
        token = wire.hello()
        wire.end.sendall(frame(messages.header(Kind.CALL, 1, token), MORE))
        for _ in range(10):
            wire.end.sendall(frame(b"", MORE) * pick(20_000, 100_000))
        assert desk.echo("before") == "before"
        wire.end.sendall(frame(b""))
        with within(pick(2, 8)):
            assert desk.echo("after") == "after"


# ---------------------------------------------------------------- processes that inherit the sockets

INHERITED = """
import os, signal, subprocess, sys, time, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.bind("tcp://127.0.0.1:*")
print(router.last_endpoint.decode(), flush=True)
router.recv()
if sys.argv[1] == "fork":
    child = os.fork()
    if not child:
        os.close(1)
        time.sleep(60)
        os._exit(0)
else:
    child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid
print(child, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("how", "is_seen"), [("fork", False), ("exec", True)])
def test_fact_a_forked_child_keeps_the_port_and_the_connections_of_a_dead_parent(how: str, is_seen: bool) -> None:
    with hosts.started(INHERITED, how) as program, zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        dealer.linger = 0
        with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            dealer.connect(address)
            dealer.send(b"x")
            child = int(program.stdout.readline())
            try:
                program.kill()
                program.wait()
                assert bool(monitor.poll(3000 if is_seen else 300)) is is_seen
                assert _may_bind(context, address) is is_seen
            finally:
                os.kill(child, signal.SIGKILL)
            dealer.disable_monitor()


def _may_bind(context: zmq.Context[Any], address: str) -> bool:
    with context.socket(zmq.ROUTER) as router:
        try:
            router.bind(address)
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EADDRINUSE:
                raise
            return False
    return True


class Starter(AgentBase):
    def start_program(self) -> int:
        self.program = subprocess.Popen(["sleep", "60"])
        return self.program.pid


def test_a_program_that_an_agent_starts_does_not_hide_the_death_of_its_host() -> None:
    with host(Starter) as launcher, client_of(launcher, transport="tcp") as client:
        pid = client.create_agent(Starter).start_program()
        try:
            os.kill(launcher.pid or 0, signal.SIGKILL)
            launcher.wait_until_terminate()
            with within(1):
                assert not client.is_alive()
            with host(port=launcher.port) as successor, client_of(successor) as again:
                assert again.is_alive()
        finally:
            os.kill(pid, signal.SIGKILL)


# ---------------------------------------------------------------- unbind


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_fact_unbind_ends_the_connections_that_there_are(transport: str, tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.linger = dealer.linger = 0
        router.router_mandatory = True
        router.bind("tcp://127.0.0.1:*" if transport == "tcp" else f"ipc://{tmp_path}/s")
        address = router.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()  # type: ignore[union-attr]
        dealer.connect(address)
        dealer.send(b"x")
        routing_id, _ = router.recv_multipart()
        router.unbind(address)

        def is_cut() -> bool:
            try:
                router.send_multipart([routing_id, b"reply"], zmq.NOBLOCK)
            except zmq.ZMQError as exc:
                return exc.errno == zmq.EHOSTUNREACH
            return False

        assert hosts.eventually(is_cut, 2)


def test_a_host_that_stops_does_not_unbind_its_router() -> None:
    assert re.findall(r"(\w+)\.unbind\(", "".join(SOURCES.values())) == ["_socket"]  # the authenticator's own
