"""Hosts, clients and connections that die in the middle of something."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from actors import Desk, Latch, Node, client_of, host, within
from hosts import free_port
from relay import Relay
from scale import linux_only
from zmqagents import AgentProxy, CallLost, HostLost, HostUnreachable, RpcAgentServerLauncher, RpcClient, errors
from zmtp import Wire, connect_ipc

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(capacity=8, port=free_port()) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        yield client


def _kill(launcher: RpcAgentServerLauncher) -> None:
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait_until_terminate()


def _blocked_callers(latch: AgentProxy, count: int) -> tuple[list[threading.Thread], list[BaseException]]:
    """Threads that are in a blocking call; what each of them ends in."""
    outcomes: list[BaseException] = []

    def call() -> None:
        try:
            latch.hold_beside()
        except Exception as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, outcomes


# ---------------------------------------------------------------- the host


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_killed_host_is_told_to_100_callers_within_a_second(server: RpcAgentServerLauncher, transport: Any) -> None:
    with client_of(server, transport=transport) as client:
        latch: Any = client.create_agent(Latch)
        results = [latch.hold_async() for _ in range(92)]
        threads, outcomes = _blocked_callers(latch, 8)
        while client.get_server_info()["calls_open"] < 100:
            pass
        _kill(server)
        with within(1):
            outcomes += [result.exception(2) for result in results]
            for thread in threads:
                thread.join(2)
        assert len(outcomes) == 100
        assert all(isinstance(outcome, (CallLost, HostLost)) for outcome in outcomes)
        assert all(isinstance(outcome, ConnectionError) for outcome in outcomes)
        with pytest.raises(HostUnreachable), within(1):
            latch.marks  # noqa: B018  # read at each access


def test_results_that_had_come_before_the_kill_are_kept(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk)
    results = [desk.later(i) for i in range(100)]
    concurrent.futures.wait(results)
    _kill(server)
    assert [result.result() for result in results] == list(range(100))


def test_a_killed_host_leaves_its_place_to_its_successor(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    desk = client.create_agent(Desk, agent_id="heir")
    port = server.port
    _kill(server)
    with host(port=port):
        with pytest.raises(errors.UnknownAgent), within(2):
            desk.echo(1)
        client.create_agent(Desk, agent_id="heir")
        assert desk.echo(2) == 2


def test_a_host_that_stops_amid_thousands_of_calls_does_not_abort_its_clients() -> None:
    """libzmq asserts when a connection ends in the midst of a message in several parts: rc 134 is SIGABRT."""
    script = """
from actors import Desk, host, client_of
with host(Desk) as launcher, client_of(launcher) as client:
    desk = client.create_agent(Desk)
    results = [desk.later(i) for i in range(3000)]
    launcher.shutdown(grace_s=0.05)
    outcomes = {type(result.exception(5)).__name__ for result in results}
    assert outcomes <= {"NoneType", "HostStopping", "CallLost", "HostLost"}, outcomes
"""
    for _ in range(6):
        assert _run(script) == (0, "")


def test_an_agent_that_ends_its_process_ends_the_calls_of_its_clients() -> None:
    script = """
import os
from zmqagents import AgentBase
class Bomb(AgentBase):
    def reply(self):
        os._exit(9)
"""
    namespace: dict[str, Any] = {"__name__": "bombs"}
    exec(script, namespace)
    with host(namespace["Bomb"]) as launcher, client_of(launcher) as client:
        bomb = client.create_agent(namespace["Bomb"])
        with within(1):
            assert isinstance(bomb().exception(2), (CallLost, HostLost))


def test_calls_between_hosts_end_when_the_other_host_is_killed(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    with host() as other, client_of(other) as there:
        latch, node = there.create_agent(Latch), client.create_agent(Node)
        asking = node.ask(latch, "hold")
        awaiting: Any = client.create_agent(Node).ask_on_loop(latch, "hold_async")
        latch.entered()
        _kill(other)
        for result in (asking, awaiting):
            with pytest.raises(ConnectionError), within(2):
                result.result(5)
        assert node.value() == "value"


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_what_waits_for_a_result_of_a_killed_host_is_told_as_soon_as_its_caller(
    server: RpcAgentServerLauncher, client: RpcClient, transport: Any
) -> None:
    with (
        host() as other, RpcClient(other.host, other.port, transport=transport, timeout=None) as there,
        client_of(other),  # of the connection that references take
    ):  # fmt: skip
        latch, desk = there.create_agent(Latch), client.create_agent(Desk)
        assert desk.plus(there.create_agent(Desk).later(1), 1).result(8) == 2  # now the two hosts are connected
        held = latch.hold_async.with_timeout(None)()
        latch.entered()  # a question for its result, which takes another way, could be there before the call
        parked = desk.plus(held, 1)
        by_reference, same_latch = pickle.loads(pickle.dumps((held, latch)))
        same_latch.entered()  # over the connection by which the reference is followed
        _kill(other)
        for result in (held, parked, by_reference):
            # HostUnreachable: the result was asked for after the kill.
            with pytest.raises((CallLost, HostUnreachable), match="localhost:"), within(3):
                result.result(8)
        assert desk.plus(1, 1).result(8) == 2


# ---------------------------------------------------------------- clients


def _client_process(server: RpcAgentServerLauncher, agent_id: str, work: str) -> subprocess.Popen[bytes]:
    script = f"""
import sys, time
from zmqagents import RpcClient
client = RpcClient("localhost", {server.port})
latch = client.get_agent({agent_id!r})
{work}
print("ready", flush=True)
time.sleep(60)
"""
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)


def test_a_client_that_is_killed_harms_nobody_and_its_queue_is_dropped() -> None:
    with host(resume_s=0.3) as server, client_of(server) as client:
        _kill_a_client_with_a_queue(server, client)


def _kill_a_client_with_a_queue(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    latch = client.create_agent(Latch)
    work = """
import threading
threading.Thread(target=latch.hold, args=("its own",), daemon=True).start()
latch.entered()
kept = latch.mark_later("kept")
for i in range(20):
    threading.Thread(target=latch.mark, args=(i,), daemon=True).start()
while client.get_server_info()["calls_open"] < 22:
    pass
"""
    process = _client_process(server, latch.agent_id, work)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
    with within(3):  # noticed at once, then waited for
        while client.get_server_info()["calls_open"] > 1:
            pass
    latch.release()
    assert latch.mark("mine") == "mine"
    assert latch.marks == ["kept", "mine"]
    info = client.get_server_info()
    assert (info["clients"], info["calls_open"], info["running"]) == (1, 0, 0)


@linux_only("only Linux tells which process is at the other end")
def test_the_stream_of_a_killed_client_lets_its_agent_go_at_once() -> None:
    with host(resume_s=120) as server, client_of(server) as client:
        node, latch = client.create_agent(Node), client.create_agent(Latch)
        work = f"stream = client.get_agent({node.agent_id!r}).numbers(1000); next(stream)"
        process = _client_process(server, latch.agent_id, work)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            assert client.get_server_info()["calls_open"] == 1
            process.kill()
            with within(5):  # also before its parent has waited for it
                while client.get_server_info()["clients"] > 1 or client.get_server_info()["clients_lost"]:
                    pass
                assert list(node.numbers(3)) == [0, 1, 2]


def test_a_killed_client_behind_a_program_that_forwards_is_waited_for() -> None:
    """The process at the socket is another's there: it may end while the client comes back by a new one."""
    with host(resume_s=1.5) as server, client_of(server) as client:
        with Wire(connect_ipc(server)) as wire:
            wire.hello()
            assert client.get_server_info()["clients"] == 2
        begin = time.monotonic()
        with within(10):
            while not client.get_server_info()["clients_lost"]:
                pass
            while client.get_server_info()["clients_lost"]:
                pass
        assert time.monotonic() - begin > 1


def test_the_detached_results_of_a_killed_client_can_be_fetched(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    latch = client.create_agent(Latch)
    process = _client_process(
        server, latch.agent_id, "result = latch.hold_async('alive'); latch.entered(); print(result.task_id)"
    )
    with process:
        assert process.stdout is not None
        task_id = process.stdout.readline().decode().strip()
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        process.wait()
    result = client.get_result(task_id)
    latch.release()
    assert result.result(5) == "alive"


def test_clients_that_come_and_are_killed_leave_the_host_as_it_was(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    latch, desk = client.create_agent(Latch), client.create_agent(Desk)
    work = f"[client.get_agent({desk.agent_id!r}).later(bytes(100_000)) for _ in range(200)]"
    processes = [_client_process(server, latch.agent_id, work) for _ in range(4)]
    for process in processes:
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.kill()
            process.wait()
    assert desk.echo(1) == 1
    deadline = time.monotonic() + 5
    while client.get_server_info()["calls_open"] and time.monotonic() < deadline:
        pass
    info = client.get_server_info()
    assert (info["calls_open"], info["running"], info["waiting"]) == (0, 0, 0)


# ---------------------------------------------------------------- connections


@pytest.mark.parametrize("host_too", [True, False], ids=["both ends", "the host does not notice"])
def test_a_client_whose_connection_was_cut_goes_on(
    server: RpcAgentServerLauncher, client: RpcClient, host_too: bool
) -> None:
    desk = client.create_agent(Desk)
    with Relay(server.port or 0) as relay, RpcClient("127.0.0.1", relay.port, timeout=10) as remote:
        mine = remote.get_agent(desk.agent_id)
        for turn in range(5):
            relay.cut(host_too=host_too)
            with within(2):
                while True:
                    try:
                        assert mine.echo(turn) == turn
                        break
                    except (CallLost, HostLost, HostUnreachable):  # it was on its way when the connection was cut
                        continue


def test_calls_that_are_out_when_the_connection_is_cut_run_at_most_once_and_end(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    desk = client.create_agent(Desk)
    with Relay(server.port or 0) as relay, RpcClient("127.0.0.1", relay.port, timeout=10) as remote:
        mine = remote.get_agent(desk.agent_id)
        done, lost = [], 0
        stop = threading.Event()

        def cut() -> None:
            while not stop.wait(0.05):
                relay.cut(host_too=False)

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            for _ in range(200):
                try:
                    done.append(mine.bump())
                except (ConnectionError, TimeoutError):
                    lost += 1
        finally:
            stop.set()
            cutter.join()
    assert len(done) == len(set(done))
    assert len(done) <= desk.count <= len(done) + lost
    assert done


def _run(script: str) -> tuple[int, str]:
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, timeout=40, text=True)
    lines = [line for line in done.stderr.splitlines() if "cut off by the stop" not in line]  # the host's own log
    return done.returncode, "\n".join(lines)
