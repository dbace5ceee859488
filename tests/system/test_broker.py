"""The broker: its sockets, its sessions, its limits, what it tells of itself, and how it stops."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import Desk, Latch, Node, client_of, client_on_host, host, within
from hosts import eventually
from raw_peer import RawPeer, ipc_path
from scale import LATE_S
from zmqagents import (
    AddressInUse,
    AgentProxy,
    CallLost,
    HostBusy,
    HostStopping,
    RpcAgentServerLauncher,
    RpcClient,
    __version__,
    codec,
    deadline,
)
from zmqagents.broker.broker import Broker
from zmqagents.config import BrokerConfig
from zmqagents.server.serve import build
from zmqagents.wire import messages
from zmqagents.wire.link import rebuild_error
from zmqagents.wire.messages import Code, Flag, Kind, Reply

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(capacity=4) as launcher:
        yield launcher


# ---------------------------------------------------------------- sockets


def _broker(**settings: Any) -> Broker:
    return build(BrokerConfig(local_mode=True, **settings), [Desk])


def test_a_port_that_is_taken_is_an_error_that_names_it(runtime_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = _broker(port=port)
        with pytest.raises(AddressInUse, match=str(port)):
            broker.bind()
        broker.abandon()
    assert broker.bound is None
    assert not [path for path in runtime_dir.rglob("*") if broker.config.server_id in path.name]


def test_a_broker_binds_a_free_port_and_says_which() -> None:
    one, two = _broker(), _broker()
    bound = [one.bind(), two.bind()]
    try:
        assert bound[0].port != bound[1].port
        with socket.create_connection(("127.0.0.1", bound[0].port or 0), timeout=2):
            pass
    finally:
        for broker in (one, two):
            broker.request_stop(0)
            broker.run()
    assert one.finished.is_set()


def test_two_brokers_of_one_id_do_not_share_a_socket() -> None:
    first, second = _broker(server_id="same"), _broker(server_id="same")
    first.bind()
    try:
        with pytest.raises(AddressInUse):
            second.bind()
        second.abandon()
    finally:
        first.request_stop(0)
        first.run()


def test_the_sockets_are_for_their_owner_only(server: RpcAgentServerLauncher) -> None:
    path = Path(ipc_path(server))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_in_local_mode_only_loopback_listens(server: RpcAgentServerLauncher) -> None:
    listening = [c.laddr for c in psutil.Process(server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]


# ---------------------------------------------------------------- sessions


def test_a_welcome_says_what_the_client_must_know(server: RpcAgentServerLauncher) -> None:
    with RawPeer(server) as peer:
        peer.send(messages.header(Kind.HELLO, 7), codec.pack({"client": peer.client_id, "versions": [1]}))
        head, rest = peer.receive()
        assert (head.kind, head.call_id) == (Kind.WELCOME, 7)
        assert head.token
        welcome = codec.unpack(rest[0], max_bytes=65_536)
        assert welcome["server_id"] == server.server_id
        assert welcome["version"] == __version__
        assert welcome["max_message_bytes"] == 256 * 1024 * 1024
        assert welcome["pickle"] is False


def test_without_the_sessions_token_nothing_is_done(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    with RawPeer(server) as peer:
        peer.call(1, desk.agent_id, "bump")  # no HELLO before it
        assert peer.receive()[0].kind == Kind.NEED_HELLO
        peer.hello()
        for wrong in (0, 1, peer.token ^ 1):
            peer.call(2, desk.agent_id, "bump", token=wrong)
            assert peer.receive()[0].kind == Kind.NEED_HELLO
        peer.call(3, desk.agent_id, "bump")
        head, _ = peer.receive()
        assert (head.kind, head.call_id) == (Kind.RESULT, 3)
    assert desk.count == 1


def test_the_token_of_one_session_is_none_in_another(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    with RawPeer(server, b"a" * 10) as one, RawPeer(server, b"b" * 10) as two:
        one.hello()
        two.hello()
        two.call(1, desk.agent_id, "bump", token=one.token)
        assert two.receive()[0].kind == Kind.NEED_HELLO
    assert desk.count == 0


def test_a_second_hello_begins_a_new_session(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    with RawPeer(server) as peer:
        first = peer.hello().token
        second = peer.hello().token
        assert first != second
        peer.call(1, desk.agent_id, "bump", token=first)
        assert peer.receive()[0].kind == Kind.NEED_HELLO
        peer.call(1, desk.agent_id, "bump")
        assert peer.receive()[0].kind == Kind.RESULT


def test_a_ping_is_answered_with_its_nonce_while_all_slots_are_taken(server: RpcAgentServerLauncher) -> None:
    with client_on_host(capacity=1) as client:
        latch = client.create_agent(Latch)
        running = latch.hold_async()
        latch.entered()
        with within(1):
            assert client.is_alive()
        assert not running.done()
        latch.release()
    with RawPeer(server) as peer:
        peer.hello()
        peer.send(messages.header(Kind.PING, 99, peer.token))
        head, _ = peer.receive()
        assert (head.kind, head.call_id) == (Kind.PONG, 99)


def test_a_call_id_that_is_in_use_runs_once(
    server: RpcAgentServerLauncher, client: RpcClient, latch: AgentProxy
) -> None:
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, latch.agent_id, "hold_async", "once", flags=Flag.DETACHED)
        latch.entered()
        peer.call(1, latch.agent_id, "hold_async", "twice", flags=Flag.DETACHED)
        peer.call(2, "", "get_server_info")  # answered after the one before it was read
        kinds = []
        while (head := peer.receive()[0]).call_id != 2:
            kinds.append(head.kind)
        latch.release()
        if Kind.RESULT not in kinds:
            kinds.append(peer.answer_to(1)[0].kind)
        assert kinds in ([Kind.RESULT], [Kind.ERROR, Kind.RESULT])
    assert latch.entered() == 1


def test_two_connections_of_one_client_id_do_not_take_each_others_results(
    server: RpcAgentServerLauncher, client: RpcClient, latch: AgentProxy
) -> None:
    other = client.create_agent(Latch)
    with RawPeer(server, b"0123456789") as one, RawPeer(server, b"0123456789") as two:
        one.hello()
        one.call(1, latch.agent_id, "hold_async", "one", flags=Flag.DETACHED)
        latch.entered()
        two.say_hello()
        if two.socket.poll(200):  # it may be refused
            two.token = two.receive()[0].token
            two.call(1, other.agent_id, "hold_async", "two", flags=Flag.DETACHED)
        other.release()
        latch.release()
        if two.token == 0:  # then the first is not disturbed
            assert codec.decode(one.answer_to(1)[1][0]) == "one"
    assert client.is_alive()


def test_bye_drops_what_the_client_had_queued(server: RpcAgentServerLauncher, latch: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, latch.agent_id, "mark", "plain")
        peer.call(2, latch.agent_id, "mark_later", "detached", flags=Flag.DETACHED)
        peer.send(messages.header(Kind.BYE, 0, peer.token))
        peer.call(3, latch.agent_id, "mark", "after")
        assert peer.answer_to(3)[0].kind == Kind.NEED_HELLO
    latch.release()
    running.result()
    assert latch.mark("last") == "last"
    assert latch.marks == ["detached", "last"]


# ---------------------------------------------------------------- limits


def test_a_client_keeps_to_the_calls_it_may_have_open_and_refuses_to_queue_far_more() -> None:
    with host(max_calls_per_client=8) as launcher, client_of(launcher) as client:
        latch = client.create_agent(Latch)
        results = [latch.hold_async(i) for i in range(16)]  # 8 at the host, 8 wait here for their turn
        with pytest.raises(HostBusy, match="16 calls of this client are open") as refused:
            latch.hold_async(16)
        assert refused.value.retry_after > 0
        with client_of(launcher, transport="tcp") as other:  # another client is not concerned
            assert eventually(lambda: other.get_server_info()["calls_open"] == 8, 10)
            other.get_agent(latch.agent_id).release()
        assert [result.result() for result in results] == list(range(16))


def test_a_peer_that_ignores_its_limit_is_refused_at_once() -> None:
    with host(max_calls_per_client=8) as launcher, client_of(launcher) as client, RawPeer(launcher) as peer:
        latch = client.create_agent(Latch)
        peer.hello()
        for call_id in range(1, 10):
            peer.call(call_id, latch.agent_id, "hold")
        head, rest = peer.receive()
        assert (head.kind, head.call_id) == (Kind.ERROR, 9)
        error = rebuild_error(Reply(head.code, rest))
        assert isinstance(error, HostBusy)
        assert "max_calls_per_client" in str(error)
        latch.release()


def test_a_full_host_is_asked_again_until_there_is_room_or_the_deadline_is_near() -> None:
    with client_on_host(max_calls=8) as client:
        latch = client.create_agent(Latch)
        results = [latch.hold_async(i) for i in range(8)]
        with pytest.raises(HostBusy, match="max_calls"), within(4), deadline(2):
            client.create_agent(Desk)
        waiting = latch.mark_later("there was room")
        assert client.is_alive()
        assert not waiting.done()
        for result in results[6:]:  # makes room for the one that waits, and for the one that opens the latch
            result.cancel()
        latch.release()
        assert [result.result() for result in results[:6]] == list(range(6))
        assert waiting.result(10) == "there was room"
        assert client.create_agent(Desk).echo(1) == 1


def test_an_agent_with_too_long_a_queue_refuses_more() -> None:
    with client_on_host(max_mailbox=4) as client:
        latch, desk = client.create_agent(Latch), client.create_agent(Desk)
        running = latch.hold_async()
        latch.entered()
        queued = [latch.mark_later(i) for i in range(4)]
        with pytest.raises(HostBusy, match="max_mailbox"), within(1):
            latch.mark(5)
        assert desk.echo("another agent") == "another agent"
        latch.release()
        assert [result.result() for result in queued] == list(range(4))
        running.result()
        assert latch.mark(6) == 6


def test_results_beyond_the_limit_in_bytes_make_the_oldest_go() -> None:
    with client_on_host(max_pool_bytes=1_000_000) as client:
        desk = client.create_agent(Desk)
        results = [desk.later(bytes(100_000)) for _ in range(30)]
        concurrent.futures.wait(results)
        store = client.get_server_info()["store"]
        assert store["bytes"] <= 1_000_000
        assert store["evicted"] >= 20
        assert all(len(result.result()) == 100_000 for result in results)


def test_a_client_that_never_reads_costs_a_bounded_amount() -> None:
    with (
        host(max_calls_per_client=64, capacity=4, max_unread_bytes=16 * 1024 * 1024) as launcher,
        client_of(launcher) as client,
    ):
        desk = client.create_agent(Desk)
        process = psutil.Process(launcher.pid)
        before = process.memory_info().rss
        with RawPeer(launcher, receive_limit=1) as peer:
            peer.hello()
            for call_id in range(1, 2001):
                peer.call(call_id, desk.agent_id, "make_bytes", 100_000)  # 200 MB of answers in all
                if call_id % 50 == 0:
                    while client.get_server_info()["calls_open"]:
                        pass
            grown = (process.memory_info().rss - before) / 1e6
            assert client.create_agent(Desk).echo("others are served") == "others are served"
        assert grown < 64, f"the host grew by {grown:.0f} MB"


# ---------------------------------------------------------------- what it tells


def test_the_hosts_own_account(server: RpcAgentServerLauncher, client: RpcClient, latch: AgentProxy) -> None:
    running = latch.hold_async()
    latch.entered()
    queued = [latch.mark_later(i) for i in range(3)]
    info = client.get_server_info()
    assert (info["server_id"], info["pid"], info["port"]) == (server.server_id, server.pid, server.port)
    assert (info["state"], info["capacity"], info["calls_open"], info["running"]) == ("running", 4, 4, 1)
    assert "actors:Desk" in info["classes"]
    assert info["uptime_s"] > 0
    (mine,) = [entry for entry in client.get_agent_list() if entry["agent_id"] == latch.agent_id]
    assert (mine["type"], mine["running"], mine["queued"]) == ("Latch", 1, 3)
    calls = {call["task_id"]: call for call in client.get_call_list()}
    assert calls[running.task_id]["state"] == "running"
    assert [calls[result.task_id]["state"] for result in queued] == ["queued"] * 3
    assert calls[running.task_id]["agent"] == latch.agent_id


def test_the_call_list_shows_who_waits_for_whom(client: RpcClient, latch: AgentProxy) -> None:
    node = client.create_agent(Node)
    asking = node.ask(latch, "hold")
    latch.entered()
    calls = {call["method"]: call for call in client.get_call_list()}
    assert calls["ask"]["state"] == "waiting"
    assert calls["ask"]["waits_for"] == [calls["hold"]["task_id"]]
    latch.release()
    asking.result()
    assert client.get_call_list() == []


def test_a_request_that_the_host_does_not_know_is_answered(server: RpcAgentServerLauncher) -> None:
    with RawPeer(server) as peer:
        peer.hello()
        peer.call(1, "", "make_coffee")
        head, rest = peer.receive()
        assert (head.kind, head.code) == (Kind.ERROR, Code.HOST_ERROR)
        assert "make_coffee" in codec.unpack(rest[0], max_bytes=65_536)["message"]


# ---------------------------------------------------------------- the end


def test_stop_lets_running_and_queued_calls_end_and_takes_no_new_ones() -> None:
    with host(grace_s=10) as launcher, client_of(launcher) as client, client_of(launcher, transport="tcp") as other:
        latch, desk = client.create_agent(Latch), other.get_agent(client.create_agent(Desk).agent_id)
        running = latch.hold_async("done")
        latch.entered()
        queued = latch.mark_later("queued")
        assert client.stop() is True
        with pytest.raises(HostStopping), within(1):
            desk.echo(1)
        with pytest.raises(HostStopping), within(1):
            latch.release()  # nobody can open the latch any more
        assert client.get_server_info()["state"] == "draining"
        running.cancel()
        launcher.shutdown(grace_s=0.1)
        assert isinstance(queued.exception(1), (HostStopping, CallLost))


def test_every_waiting_caller_is_answered_when_the_grace_is_over() -> None:
    with host() as launcher, client_of(launcher) as client:
        latch = client.create_agent(Latch)
        results = [latch.hold_async() for _ in range(50)]
        latch.entered()
        waiting = threading.Thread(target=_swallow, args=(latch.mark, 1))
        waiting.start()
        while len(client.get_call_list()) < 51:
            pass
        start = time.monotonic()
        client.stop(grace_s=0.2)
        outcomes = {type(result.exception(3)) for result in results}
        waiting.join(3)
        assert not waiting.is_alive()
        assert outcomes <= {HostStopping, CallLost}
        launcher.wait_until_terminate()
        assert time.monotonic() - start < 0.2 + 1.5 + LATE_S  # the method is still in its wait of 30 s


def test_a_stopped_host_leaves_no_file(runtime_dir: Path) -> None:
    before = set(runtime_dir.rglob("*"))
    with client_on_host() as client:
        client.create_agent(Desk)
        assert set(runtime_dir.rglob("*")) > before
    assert {path for path in set(runtime_dir.rglob("*")) - before if not path.is_dir()} == set()


def test_a_host_in_this_process_ends_with_all_its_threads_and_sockets() -> None:
    launcher = RpcAgentServerLauncher(custom_agent_classes=[Desk, Node], local_mode=True, grace_s=0.5)
    thread = threading.Thread(target=launcher.launch, kwargs={"in_subprocess": False})
    thread.start()
    while launcher.port is None:
        assert thread.is_alive()
    with RpcClient(launcher.host, launcher.port, timeout=10) as client:
        desk: Any = client.create_agent(Desk)
        assert desk.pid() == os.getpid()
        assert desk.soon(1).result() == 1
        assert client.create_agent(Node).ask(desk, "echo", 2).result() == 2
    launcher.shutdown()
    thread.join(5)
    assert not thread.is_alive()  # the leak detector looks for the rest


def _swallow(call: Any, *args: Any) -> None:
    with contextlib.suppress(ConnectionError):
        call(*args)
