"""The client core: one connection per process and host, its threads, forks, losses and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import CALL_TIMEOUT_S, Desk, Latch, Node, client_of, client_on_host, host, within
from hosts import free_port, freeze
from raw_peer import RawPeer
from zmqagents import (
    AgentProxy,
    CallLost,
    CallTimeout,
    ConfigError,
    HostLost,
    HostUnreachable,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownAgent,
)
from zmqagents.client.proxy import bind_reference
from zmqagents.codec import TaskRef
from zmqagents.connection.connection import Connection
from zmqagents.wire.messages import Flag, client_prefix, task_id_of

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def frozen() -> Iterator[tuple[RpcAgentServerLauncher, RpcClient, AgentProxy]]:
    """A host that was stopped by SIGSTOP after a client had connected."""
    with host() as launcher, client_of(launcher) as client:
        desk: Any = client.create_agent(Desk)
        with stopped(launcher):
            yield launcher, client, desk


@contextlib.contextmanager
def stopped(launcher: RpcAgentServerLauncher) -> Iterator[None]:
    freeze(launcher.pid)
    try:
        yield
    finally:
        assert launcher.pid is not None
        os.kill(launcher.pid, signal.SIGCONT)


# ---------------------------------------------------------------- one connection


def test_clients_of_one_process_share_a_connection(server: RpcAgentServerLauncher, client: RpcClient) -> None:
    with RpcClient(server.host, server.port) as one, RpcClient(server.host, server.port) as two:
        assert one.is_alive()
        assert two.is_alive()
        assert one.get_server_info()["clients"] == 1
    assert client.is_alive()


@pytest.mark.parametrize("transport", ["ipc", "tcp", None])
def test_both_transports_carry_calls(server: RpcAgentServerLauncher, transport: Any) -> None:
    with client_of(server, transport=transport) as client:
        assert client.create_agent(Desk).echo((1, b"2")) == (1, b"2")
        assert client.get_server_info()["server_id"] == server.server_id


def test_a_client_that_was_closed_opens_again_when_it_is_used(server: RpcAgentServerLauncher) -> None:
    with client_of(server, transport="tcp") as client:
        desk = client.create_agent(Desk)
        client.close()
        client.close()
        assert desk.echo(1) == 1
        assert client.is_alive()
        client.link.close()  # type: ignore[attr-defined]  # that of a connection


def test_a_dropped_client_lets_its_connection_go(server: RpcAgentServerLauncher) -> None:
    client = RpcClient(server.host, server.port, transport="tcp")
    assert client.is_alive()
    del client
    gc.collect()  # the leak detector looks whether the thread and the sockets are gone


def test_a_proxy_outlives_the_client_that_made_it(server: RpcAgentServerLauncher) -> None:
    desk = RpcClient(server.host, server.port, transport="tcp").create_agent(Desk)
    gc.collect()
    assert desk.echo(1) == 1
    assert desk.later(2).result() == 2


def by_to_dist(server: RpcAgentServerLauncher) -> Any:
    return Latch().to_dist(server.host, server.port)


def by_a_dropped_client(server: RpcAgentServerLauncher) -> Any:
    return RpcClient(server.host, server.port).create_agent(Latch)


@pytest.mark.parametrize("held", ["result", "method"])
@pytest.mark.parametrize("made", [by_to_dist, by_a_dropped_client])
def test_a_client_that_closes_ends_no_call_of_somebody_else(made: Any, held: str) -> None:
    with host() as launcher, concurrent.futures.ThreadPoolExecutor(1) as pool:
        latch = made(launcher)
        agent_id = latch.agent_id
        result = latch.hold_async("kept") if held == "result" else pool.submit(latch.hold, "kept")
        latch.entered()
        del latch
        gc.collect()
        with RpcClient(launcher.host, launcher.port) as other:
            assert other.is_alive()
        with RpcClient(launcher.host, launcher.port) as other:
            other.get_agent(agent_id).release()
            assert result.result(CALL_TIMEOUT_S) == "kept"


def test_a_client_that_closes_ends_no_stream_of_somebody_else() -> None:
    with host() as launcher:
        stream = Node().to_dist(launcher.host, launcher.port).numbers(100)
        assert next(stream) == 0
        with RpcClient(launcher.host, launcher.port) as other:
            assert other.is_alive()
        assert list(stream) == list(range(1, 100))


def test_100_connections_are_served(server: RpcAgentServerLauncher, desk: AgentProxy, client: RpcClient) -> None:
    script = f"""
from zmqagents import client, RpcClient
from zmqagents.connection.connection import Connection, Target
connections = [Connection(Target("localhost", {server.port}, "tcp" if i % 2 else "ipc")) for i in range(100)]
clients = [RpcClient(link=connection, timeout=20) for connection in connections]
results = [client.get_agent({desk.agent_id!r}).later(i) for i, client in enumerate(clients)]
assert [result.result(20) for result in results] == list(range(100))
print(clients[0].get_server_info()["clients"])
"""
    assert int(_python(script)) >= 101
    assert client.is_alive()


def test_16_threads_share_a_connection(desk: AgentProxy) -> None:
    def many(thread: int) -> bool:
        results = [desk.later((thread, i)) for i in range(100)]
        direct = [desk.echo((thread, i)) for i in range(100)]
        return [result.result() for result in results] == direct == [(thread, i) for i in range(100)]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(many, range(16)))


def test_the_connection_may_be_opened_by_many_threads_at_once(server: RpcAgentServerLauncher) -> None:
    together = threading.Barrier(16)

    def use(_: int) -> int:
        together.wait(5)
        with client_of(server, transport="tcp") as client:
            return int(client.get_server_info()["pid"])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(use, range(16))) == {server.pid}


# ---------------------------------------------------------------- nobody there


def test_nobody_there_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening
        with RpcClient("127.0.0.1", taken.getsockname()[1]) as client:
            with within(1):
                assert not client.is_alive()
            for ask in (client.get_agent_list, lambda: client.create_agent("Desk"), client.stop):
                with pytest.raises(HostUnreachable), within(1):
                    ask()


def test_a_host_that_is_gone_is_told_at_once() -> None:
    with host() as launcher, client_of(launcher) as client:
        desk: Any = client.create_agent(Desk)
        result = desk.later(1)
        assert result.result() == 1
    for ask in (lambda: desk.echo(1), lambda: desk.later(1).result(), lambda: desk.colour):
        with pytest.raises(ConnectionError), within(1):
            ask()
    assert result.result() == 1
    assert isinstance(client.link, Connection)
    client.link.close()


def test_without_a_port_the_one_host_here_is_found_and_several_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQAGENTS_RUNTIME", str(tmp_path / "run"))
    with pytest.raises(HostUnreachable, match="no host of yours is running on this machine: `as_server start`"):
        RpcClient()
    with RpcAgentServerLauncher(server_id="one") as one, RpcClient() as client:
        assert client.address == f"localhost:{one.port}"
        with RpcAgentServerLauncher(server_id="two") as two:
            with pytest.raises(ConfigError, match=r"2 hosts are running: one at .*, two at .*; say which, as in"):
                RpcClient()
            monkeypatch.setenv("AS_SERVER_SERVER_ID", "two")
            with RpcClient() as named:
                assert named.get_server_info()["server_id"] == "two"
            monkeypatch.delenv("AS_SERVER_SERVER_ID")
            monkeypatch.setenv("AS_SERVER_PORT", str(two.port))
            with RpcClient() as pointed:
                assert pointed.get_server_info()["server_id"] == "two"
    monkeypatch.setenv("AS_SERVER_PORT", "x")
    with pytest.raises(ConfigError, match="AS_SERVER_PORT must be a whole number"):
        RpcClient()
    with pytest.raises(ConfigError, match="port must be a whole number from 1 to 65535, not 0"):
        RpcClient("localhost", 0)


def test_a_host_that_a_program_names_is_not_replaced_by_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AS_SERVER_HOST", "far.example")
    monkeypatch.setenv("AS_SERVER_PORT", "12010")
    with RpcClient("127.0.0.1") as named, RpcClient() as unnamed:
        assert (named.address, unnamed.address) == ("127.0.0.1:12010", "far.example:12010")


def test_a_host_elsewhere_needs_its_port() -> None:
    with pytest.raises(ConfigError, match=r"a host on far\.example needs its port"):
        RpcClient("far.example")


@pytest.mark.parametrize("port", [0, -1, 70000, "5000", True])
def test_a_port_that_is_none_is_refused(port: Any) -> None:
    with pytest.raises(ConfigError, match="port"):
        RpcClient("localhost", port)


@pytest.mark.parametrize("host", [None, "", "my host", "tcp://here", b"here"])
def test_a_host_that_is_none_is_refused(host: Any) -> None:
    with pytest.raises(ConfigError, match="host must be a host name"):
        RpcClient(host, 7000)


def test_a_transport_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="transport"):
        RpcClient("localhost", 5000, transport="udp")  # type: ignore[arg-type]


def test_something_that_is_no_host_is_told() -> None:
    """A listener that sends rubbish, and one that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def answer() -> None:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(200))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            port = listener.getsockname()[1]
            with RpcClient("127.0.0.1", port) as client, pytest.raises(ConnectionError), within(4):
                client.get_server_info()
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def test_a_host_that_says_nothing_is_given_up_by_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, RpcClient("127.0.0.1", silent.getsockname()[1]) as client:
        proxy = AgentProxy(
            client.link, "any", "x:Y", "", {"go": ["value", "(self)", ""], "later": ["future", "(self)", ""]}
        )
        with pytest.raises((CallTimeout, HostUnreachable)), within(1.5):
            proxy.go(timeout=0.3)
        result = proxy.later(timeout=0.3)
        with pytest.raises((CallTimeout, HostUnreachable)), within(1.5):
            result.result()


# ---------------------------------------------------------------- a host that hangs


def test_calls_to_a_frozen_host_end_at_their_deadline(frozen: Any) -> None:
    _, _, desk = frozen
    result = desk.later(1, timeout=0.5)
    with pytest.raises(CallTimeout), within(1.6):
        desk.echo(1, timeout=0.5)
    with pytest.raises(CallTimeout), within(1):
        result.result()


@pytest.mark.parametrize("timeout", [0.001, 0.5])
def test_asking_a_frozen_host_for_a_result_ends_at_its_timeout(timeout: float) -> None:
    with host(max_timeout_seconds=0.5) as launcher, client_of(launcher) as client:
        task_id = client.create_agent(Latch).hold_async().task_id
        with stopped(launcher), pytest.raises(CallTimeout), within(2.5):
            client.get_result(task_id, timeout).result()


def test_a_new_connection_to_a_frozen_host_ends_at_its_deadline(frozen: Any) -> None:
    launcher, _, desk = frozen
    with client_of(launcher, transport="tcp", timeout=0.5) as other:
        methods = {"later": ["future", "(self, x)", ""], "echo": ["value", "(self, x)", ""]}
        same = AgentProxy(other.link, desk.agent_id, "actors:Desk", "", methods, timeout=0.5)
        result = same.later(1)
        with pytest.raises((CallTimeout, HostUnreachable)), within(1.6):
            same.echo(1)
        with pytest.raises((CallTimeout, HostUnreachable)), within(1.6):
            result.result()


def test_a_frozen_host_is_not_alive_and_has_not_refused_a_key(frozen: Any) -> None:
    launcher, _, _ = frozen
    with client_of(launcher, transport="tcp") as other, within(7):
        assert other.is_alive() is False


def test_a_host_that_was_frozen_goes_on(frozen: Any) -> None:
    launcher, _, desk = frozen
    result = desk.later("kept")
    with pytest.raises(CallTimeout):
        result.result(0.2)
    os.kill(launcher.pid, signal.SIGCONT)
    assert result.result(5) == "kept"


# ---------------------------------------------------------------- loss and return


def test_closing_a_client_fails_what_is_outstanding() -> None:
    with host() as launcher:
        client = RpcClient(launcher.host, launcher.port)
        latch = client.create_agent(Latch)
        results = [latch.hold_async() for _ in range(100)]
        latch.entered()
        with within(2):
            client.close()
        with within(1):
            assert {type(result.exception(1)) for result in results} <= {HostLost, CallLost}
        with RpcClient(launcher.host, launcher.port) as other:
            other.get_agent(latch.agent_id).release()


@pytest.mark.parametrize("odd", [ValueError, SystemExit])
def test_a_callback_that_raises_while_a_client_is_closed_keeps_nobody_waiting(odd: type[BaseException]) -> None:
    def fail(_: Any) -> None:
        raise odd

    with host() as launcher, client_of(launcher) as client:
        latch: Any = client.create_agent(Latch)
        results = [latch.hold_async() for _ in range(20)]
        timed_out = latch.hold_async(timeout=0.05)
        for result in (timed_out, *results):
            result.add_done_callback(fail)
        assert isinstance(timed_out.exception(2), CallTimeout)
        assert client.is_alive()
        client.close()
        assert {type(result.exception(1)) for result in results} <= {HostLost, CallLost}


def test_a_proxy_finds_the_host_again_that_came_back() -> None:
    with host(port=free_port()) as first, client_of(first) as client:
        port = first.port
        desk = client.create_agent(Desk, agent_id="phoenix")
        first.shutdown()
        with pytest.raises(ConnectionError):
            desk.echo(1)
        with host(port=port):
            with pytest.raises(UnknownAgent, match="phoenix"), within(2):
                desk.echo(1)
            client.create_agent(Desk, agent_id="phoenix")
            assert desk.echo(2) == 2
            assert desk.later(3).result() == 3


def test_a_result_of_a_host_that_came_back_is_unknown() -> None:
    with host(port=free_port()) as first, client_of(first) as client:
        port, result = first.port, client.create_agent(Desk).later(1)
        assert result.result() == 1
        again = pickle.dumps(result)
        first.shutdown()
        with host(port=port), pytest.raises((LookupError, ConnectionError)), within(2):
            pickle.loads(again).result(5)


# ---------------------------------------------------------------- processes


def test_a_client_that_was_used_before_a_fork_works_in_the_child_and_in_the_parent(
    server: RpcAgentServerLauncher,
) -> None:
    script = f"""
import os, warnings
warnings.simplefilter("ignore")
from zmqagents import RpcClient
client = RpcClient("localhost", {server.port}, timeout=10)
desk = client.create_agent("Desk")
assert desk.bump() == 1
outstanding = desk.later("parent's")
pid = os.fork()
if pid == 0:
    try:
        assert desk.bump() == 2
        assert client.is_alive()
        assert desk.later(3).result(5) == 3
        outstanding.exception(5)  # its value, or that it is lost: but it does not hang
        client.close()
    except BaseException as exc:
        print(repr(exc), flush=True)
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert outstanding.result(5) == "parent's"
assert desk.bump() == 3
client.close()
print("both")
"""
    assert _python(script) == "both\n"


def test_a_thread_may_hold_the_connection_busy_while_the_process_forks(server: RpcAgentServerLauncher) -> None:
    script = f"""
import os, threading, warnings
warnings.simplefilter("ignore")
from zmqagents import RpcClient
client = RpcClient("localhost", {server.port}, timeout=10)
desk = client.create_agent("Desk")
stop = threading.Event()
def busy():
    while not stop.is_set():
        [result.result() for result in [desk.later(i) for i in range(20)]]
threads = [threading.Thread(target=busy) for _ in range(3)]
[thread.start() for thread in threads]
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if desk.echo(5, timeout=5) == 5 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
[thread.join() for thread in threads]
assert desk.echo(1) == 1
print("20 forks")
"""
    assert _python(script) == "20 forks\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_proxies_go_to_worker_processes(desk: AgentProxy, method: str) -> None:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(_echo_in_worker, [desk] * 4, range(4))) == list(range(4))
    if method == "forkserver":
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it lives as long as the process


def _echo_in_worker(desk: AgentProxy, x: int) -> Any:
    return desk.echo(x)


# ---------------------------------------------------------------- the end of the program


@pytest.mark.parametrize("left", ["nothing", "results", "waiting thread", "callback", "proxy in a global cycle"])
def test_a_program_ends_quietly_whatever_is_still_out(server: RpcAgentServerLauncher, left: str) -> None:
    script = f"""
import sys, threading, time
from zmqagents import RpcClient
client = RpcClient("localhost", {server.port}, timeout=30)
latch = client.create_agent("Latch", agent_id={"end " + left!r})
results = [latch.hold_async() for _ in range(20)]
latch.entered()
left = {left!r}
if left == "nothing":
    latch.release()
    [result.result() for result in results]
    client.close()
if left == "waiting thread":
    def wait():
        try:
            results[0].result()
        except ConnectionError:
            pass
    threading.Thread(target=wait, daemon=True).start()
if left == "callback":
    results[0].add_done_callback(lambda result: result.exception())
if left == "proxy in a global cycle":
    latch.__dict__["me"] = latch
print("end")
"""
    with within(5):
        assert _python(script) == "end\n"
    with RpcClient(server.host, server.port, timeout=5) as client:
        client.get_agent("end " + left).release()


def test_a_program_that_never_used_a_host_ends_quietly() -> None:
    assert _python("from zmqagents import *; RpcClient('localhost', 9); print('end')") == "end\n"


def test_the_package_may_be_imported_and_used_in_a_thread(server: RpcAgentServerLauncher) -> None:
    script = f"""
import threading
def use():
    from zmqagents import RpcClient
    with RpcClient("localhost", {server.port}, timeout=10) as client:
        print(client.create_agent("Desk").echo("in a thread"))
thread = threading.Thread(target=use)
thread.start()
thread.join()
"""
    assert _python(script) == "in a thread\n"


def test_importing_a_client_loads_no_broker_and_no_store() -> None:
    script = """
import sys
from zmqagents import RpcClient
print(sorted(name for name in sys.modules if name in (
    "zmqagents.broker", "zmqagents.store", "zmqagents.scheduler", "redis", "cachetools", "numpy", "asyncio", "click")))
"""
    assert _python(script) == "[]\n"


# ---------------------------------------------------------------- two hosts


def test_two_hosts_of_one_program_do_not_disturb_each_other() -> None:
    with host() as one, host() as two, client_of(one) as first, client_of(two) as second:
        latch, desk = first.create_agent(Latch), second.create_agent(Desk)
        running = latch.hold_async("first")
        latch.entered()
        assert desk.echo("second") == "second"
        two.shutdown()
        assert not running.done()
        latch.release()
        assert running.result() == "first"


def test_agents_of_two_hosts_call_each_other_on_one_slot_each() -> None:
    with host(capacity=1) as one, host(capacity=1) as two, client_of(one) as first, client_of(two) as second:
        nodes = [(first if i % 2 else second).create_agent(Node) for i in range(10)]
        assert nodes[0].down(nodes[1:]) == 10
        result = second.create_agent(Desk).later("from two")
        assert first.create_agent(Desk).echo([result]) == ["from two"]


def test_hosts_in_threads_of_one_process_call_each_other_on_one_slot_each() -> None:
    """As `in_subprocess=False` in two threads: there is no socket between them."""
    script = """
import threading
from actors import Desk, Node, client_of
from zmqagents import BlockingCallError, DeadlockError, RpcAgentServerLauncher
settings = {"capacity": 1, "custom_agent_classes": [Node, Desk], "local_mode": True, "grace_s": 0.1}
launchers = [RpcAgentServerLauncher(**settings) for _ in "ab"]
threads = [threading.Thread(target=launcher.launch, args=(False,)) for launcher in launchers]
for thread, launcher in zip(threads, launchers):
    thread.start()
    while launcher.port is None:
        assert thread.is_alive()
try:
    with client_of(launchers[0]) as first, client_of(launchers[1]) as second:
        nodes = [(first if i % 2 else second).create_agent(Node) for i in range(10)]
        print(nodes[0].down(nodes[1:]))
        try:
            nodes[0].ask(nodes[1], "ask", nodes[0], "value").result()
        except DeadlockError:
            print("deadlock")
        try:
            nodes[0].ask_on_loop(desk := first.create_agent(Desk), "bump").result()
        except BlockingCallError:
            print("refused", desk.count)
        result = second.create_agent(Desk).later("from two")
        print(first.create_agent(Desk).echo([result]))
finally:
    for thread, launcher in zip(threads, launchers):
        launcher.shutdown()
        thread.join()
"""
    assert _python(script) == "10\ndeadlock\nrefused 0\n['from two']\n"


def test_a_result_goes_to_another_host_however_fresh_it_is() -> None:
    with client_on_host() as first, client_on_host() as second:
        here, there = first.create_agent(Desk), second.create_agent(Desk)
        for i in range(10):  # its call and the question for its result go to the host by different connections
            large = there.later(bytes(50_000_000))  # and this one is in the way of the call
            assert here.echo([there.later(i)]) == [i]
            large.cancel()


def test_a_result_is_waited_for_while_its_call_is_late_on_its_way_to_the_other_host() -> None:
    with host(Desk) as one, host(Desk) as two, client_of(one) as first, client_of(two) as second, RawPeer(two) as late:
        here, there = first.create_agent(Desk), second.create_agent(Desk)
        late.hello()
        task_id = task_id_of(client_prefix(late.client_id), 1)
        waiting = here.later(bind_reference(TaskRef(task_id, second.link.server_id, second.link.address)))
        time.sleep(1.5)  # as the call would be, behind a large one on a slow network
        late.call(1, there.agent_id, "later", 7, flags=Flag.DETACHED)
        assert waiting.result(CALL_TIMEOUT_S) == 7


def test_a_blocking_call_to_another_host_in_a_coroutine_is_refused_before_it_is_made() -> None:
    from zmqagents import BlockingCallError

    with client_on_host() as first, client_on_host() as second:
        node, desk = first.create_agent("Node"), second.create_agent("Desk")
        with pytest.raises(BlockingCallError):
            node.ask_on_loop(desk, "bump").result()
        assert desk.count == 0


def test_asyncio_programs_may_use_several_loops_in_turn(desk: AgentProxy) -> None:
    async def use() -> list[Any]:
        return list(await asyncio.gather(*(desk.soon(i) for i in range(10))))

    for _ in range(3):
        assert asyncio.run(use()) == list(range(10))


def test_a_call_answers_in_time_while_others_are_out(client: RpcClient, desk: AgentProxy) -> None:
    latch: Any = client.create_agent(Latch)
    results = [latch.hold_async(timeout=CALL_TIMEOUT_S) for _ in range(5000)]
    start = time.monotonic()
    assert desk.echo(1) == 1
    assert time.monotonic() - start < 1
    latch.release()
    concurrent.futures.wait(results)
    assert not [result for result in results if result.exception()]


def _python(script: str) -> str:
    """Run ``script`` in a fresh interpreter; it must end well, and say nothing on stderr."""
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, timeout=40, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_a_host_that_has_ended_is_unreachable_and_no_refused_key() -> None:
    with host() as launcher:
        port = launcher.port
    assert port is not None
    with RpcClient("localhost", port) as late, within(3):
        with pytest.raises(HostUnreachable):
            late.get_agent_list()
        assert not late.is_alive()
