"""The launcher's contract: every option in every launch mode, every way to start, to fail and to end."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hosts import (
    MODES,
    STUCK_S,
    Host,
    Parent,
    Worker,
    environment,
    eventually,
    freeze,
    is_gone,
    output_of,
    running,
    seconds_of,
    started,
    told,
)
from raw_peer import RawPeer
from scale import LATE_S, pick
from zmqagents import (
    AddressInUse,
    AgentBase,
    CallTimeout,
    ConfigError,
    HostStopping,
    HostUnreachable,
    LaunchError,
    LoadError,
    MissingExtra,
    ResultExpired,
    RpcAgentServerLauncher,
    RpcClient,
    UnknownClass,
    codec,
    load_custom_class_from_file,
)
from zmqagents.server import launcher
from zmqagents.wire import messages

MODEL = {"config_name": "m", "model_type": "openai_chat", "model_name": "tiny", "api_key": "EMPTY"}
PLAIN_AGENT = "from zmqagents import AgentBase\nclass {name}(AgentBase):\n    def value(self): return {value}\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agent_files(directory: Path) -> Path:
    """A directory with one agent class at its top and one below."""
    (directory / "below").mkdir(parents=True)
    (directory / "top.py").write_text(PLAIN_AGENT.format(name="OnTop", value=1))
    (directory / "below" / "deep.py").write_text(PLAIN_AGENT.format(name="Below", value=2))
    return directory


# ---------------------------------------------------------------- each option, in each launch mode


@pytest.fixture(scope="module", params=MODES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    """`narrow`: every option but the expiry away from its default. `wide`: the defaults, but results expire soon."""
    mode: str = request.param
    place = tmp_path_factory.mktemp(f"narrow-{mode}")
    models = place / "models.json"
    models.write_text(json.dumps([MODEL]))
    with running(
        mode, host="127.0.0.1", port=free_port(), capacity=4, max_pool_size=3, max_timeout_seconds=0.3,
        local_mode=True, agent_dir=str(agent_files(place / "agents")), server_id=f"narrow-{mode}",
        model_config_path=str(models),
    ) as narrow, running(mode, max_expire_time=0.4) as wide:  # fmt: skip
        yield narrow, wide


@pytest.fixture(scope="module")
def narrow(both: tuple[Host, Host]) -> Host:
    return both[0]


@pytest.fixture(scope="module")
def wide(both: tuple[Host, Host]) -> Host:
    return both[1]


def nap_together(host: Host, agents: int, seconds: float) -> float:
    """How long ``agents`` agents take that sleep at once."""
    with host.client() as client:
        workers = [client.create_agent(Worker) for _ in range(agents)]
        start = time.monotonic()
        for result in [worker.nap(seconds) for worker in workers]:
            result.result(30)
        taken = time.monotonic() - start
        client.delete_all_agent()
    return taken


def finished_results(client: RpcClient, count: int) -> list[str]:
    """The task ids of calls that have ended one after the other."""
    worker = client.create_agent(Worker)
    results = []
    for _ in range(count):
        results.append(worker.nap(0))
        results[-1].result(10)
    return [result.task_id for result in results]


def test_capacity_32_lets_32_agents_sleep_at_once(wide: Host) -> None:
    assert 0.5 <= nap_together(wide, 32, 0.5) < 1.5


def test_capacity_4_lets_32_agents_sleep_four_by_four(narrow: Host) -> None:
    assert 0.8 <= nap_together(narrow, 32, 0.1) < 1.5


def test_an_explicit_port_is_the_one_that_it_listens_on(narrow: Host) -> None:
    with narrow.client() as client:
        info = client.get_server_info()
    assert info["port"] == info["settings"]["port"] == narrow.port


def test_without_a_port_the_launcher_reports_the_one_that_was_free(wide: Host) -> None:
    with wide.client(transport="tcp") as client:
        info = client.get_server_info()
    assert info["settings"]["port"] is None
    assert info["port"] == wide.port > 0


def test_host_is_what_clients_are_told(narrow: Host, wide: Host) -> None:
    for host, name in ((narrow, "127.0.0.1"), (wide, "localhost")):
        with host.client() as client:
            assert client.get_server_info()["host"] == host.host == name


def listening_addresses(port: int) -> set[str]:
    """The local addresses on which something listens at ``port``, from the kernel's table (state 0A: LISTEN)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hexes = {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    return {socket.inet_ntoa(bytes.fromhex(text)[::-1]) for text in hexes}


def test_local_mode_listens_on_loopback_alone(narrow: Host) -> None:
    assert listening_addresses(narrow.port) == {"127.0.0.1"}


def test_without_local_mode_it_listens_on_every_interface(wide: Host) -> None:
    assert listening_addresses(wide.port) == {"0.0.0.0"}


def test_max_pool_size_drops_the_oldest_finished_result(narrow: Host) -> None:
    with narrow.client() as client:
        oldest, *kept = finished_results(client, 4)
        assert [client.get_result(task_id, 5).result(5) for task_id in kept] == [0, 0, 0]
        with pytest.raises(ResultExpired):
            client.get_result(oldest, 5).result(5)


def test_max_expire_time_is_how_long_a_finished_result_is_kept(wide: Host, narrow: Host) -> None:
    with wide.client() as soon, narrow.client() as late:
        (soon_id,), (late_id,) = finished_results(soon, 1), finished_results(late, 1)
        assert soon.get_result(soon_id, 5).result(5) == 0
        time.sleep(0.45)
        with pytest.raises(ResultExpired):
            soon.get_result(soon_id, 5).result(5)
        assert late.get_result(late_id, 5).result(5) == 0


def test_max_timeout_seconds_is_the_longest_wait_of_one_fetch(narrow: Host) -> None:
    with narrow.client() as client, RawPeer(narrow) as peer:
        peer.hello()
        task_id = client.create_agent(Worker).nap(1.0).task_id
        assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
        asked = time.monotonic()
        peer.send(messages.header(messages.Kind.FETCH, 7, peer.token, time_ms=60_000), codec.pack(task_id))
        answer, _ = peer.receive()
    assert answer.kind == messages.Kind.PENDING
    assert 0.28 <= time.monotonic() - asked < 0.9


def test_agent_dir_gives_the_classes_of_its_files_and_of_those_below(narrow: Host) -> None:
    with narrow.client() as client:
        assert client.create_agent("OnTop").value() == 1
        assert client.create_agent("Below").value() == 2


def test_custom_agent_classes_are_what_the_host_knows_besides(wide: Host) -> None:
    with wide.client() as client:
        assert client.get_server_info()["classes"] == ["hosts:Forker", "hosts:Worker"]
        with pytest.raises(UnknownClass, match="it knows: Forker, Worker"):
            client.create_agent("OnTop")


def test_server_id_is_the_one_given_or_a_new_one(narrow: Host, wide: Host) -> None:
    assert narrow.server_id.startswith("narrow-")
    for host in (narrow, wide):
        with host.client() as client:
            assert client.get_server_info()["server_id"] == host.server_id != ""


def test_model_config_path_is_read_by_the_host(narrow: Host) -> None:
    with narrow.client() as client:
        assert client.create_agent(Worker).configured("m") == "tiny"


def test_the_host_runs_where_the_mode_says(wide: Host) -> None:
    with wide.client() as client:
        assert client.create_agent(Worker).pid() == wide.pid
    in_the_program = wide.pid == wide.program.pid
    assert in_the_program == (wide.program.args[3] == "main")  # type: ignore[index]


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match="max_clients"):
        RpcAgentServerLauncher(max_clients=3)


@pytest.mark.parametrize(
    "given", [{"capacity": 0}, {"start_method": "spawn"}, {"launch_timeout_s": 0}, {"port": 70_000}]
)
def test_a_wrong_value_is_refused_before_anything_starts(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        RpcAgentServerLauncher(**given)


def test_generated_server_ids_are_short_and_differ() -> None:
    made = {RpcAgentServerLauncher.generate_server_id("localhost", 5000) for _ in range(100)}
    assert len(made) > 98
    assert all(len(server_id) < 40 and server_id.startswith("localhost-5000-") for server_id in made)


# ---------------------------------------------------------------- from this process: fresh interpreters


@contextlib.contextmanager
def launched(*classes: type, **options: Any) -> Iterator[tuple[RpcAgentServerLauncher, RpcClient]]:
    """A host in a fresh interpreter, with a client."""
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker, *classes], **options)
    with server, RpcClient(server.host, server.port) as client:
        yield server, client


def test_the_deadline_of_management_requests_is_what_the_host_says() -> None:
    with launched(max_timeout_seconds=0.3) as (server, client):
        client.get_agent_list()
        freeze(server.pid)
        try:
            start = time.monotonic()
            with pytest.raises(CallTimeout):
                client.get_agent_list()
            assert time.monotonic() - start < 1.5 + LATE_S
        finally:
            os.kill(server.pid or 0, signal.SIGCONT)


def test_a_host_that_runs_cannot_be_launched_again() -> None:
    with launched() as (server, client):
        with pytest.raises(LaunchError, match="running already"):
            server.launch()
        with pytest.raises(LaunchError, match="running already"):
            server.launch(in_subprocess=False)
        assert client.is_alive()


def test_after_a_shutdown_it_can_be_launched_again() -> None:
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker])
    for _ in range(2):
        server.launch()
        with RpcClient(server.host, server.port) as client:
            assert client.create_agent(Worker).echo(1) == 1
        server.shutdown()
        assert not server.is_running
        assert server.pid is None


def test_shutdown_may_be_called_before_and_as_often_as_one_likes() -> None:
    server = RpcAgentServerLauncher()
    server.shutdown()
    server.launch()
    for _ in range(3):
        server.shutdown()
    assert "not running" in repr(server)


def test_shutdown_in_another_thread_ends_the_wait_for_the_end() -> None:
    server = RpcAgentServerLauncher()
    server.launch()
    threads = [threading.Thread(target=server.shutdown) for _ in range(3)]
    waiting = threading.Thread(target=server.wait_until_terminate)
    for thread in (waiting, *threads):
        thread.start()
    for thread in (waiting, *threads):
        thread.join(10)
        assert not thread.is_alive()
    assert not server.is_running


def test_wait_until_terminate_returns_when_a_client_stops_the_host() -> None:
    with launched() as (server, client):
        client.stop()
        server.wait_until_terminate()
        assert not server.is_running
        server.wait_until_terminate()  # there is none: it returns at once


def test_an_exception_in_the_with_block_ends_the_host_and_goes_on() -> None:
    server = RpcAgentServerLauncher()

    def fail() -> None:
        assert server.is_running
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), server:
        fail()
    assert not server.is_running


def test_a_host_that_died_is_noticed_and_its_files_are_removed(runtime_dir: Path) -> None:
    server = RpcAgentServerLauncher(server_id="victim")
    server.launch()
    assert list(runtime_dir.glob("victim*"))
    os.kill(server.pid or 0, signal.SIGKILL)
    server.wait_until_terminate()
    assert not server.is_running
    assert not list(runtime_dir.glob("victim*"))


def test_a_launcher_that_nobody_refers_to_keeps_its_host() -> None:
    server = RpcAgentServerLauncher()
    server.launch()
    port, pid = server.port, server.pid or 0
    del server
    gc.collect()
    with RpcClient("localhost", port) as client:
        assert client.is_alive()
        client.stop()
    assert eventually(lambda: is_gone(pid), 5)
    with RpcAgentServerLauncher():  # the next launch clears away what has ended
        assert pid not in [child.pid for child in psutil.Process().children()]


def test_two_hosts_of_one_process_do_not_disturb_each_other() -> None:
    with launched() as (one, client):
        worker = client.create_agent(Worker)
        result = worker.nap(0.6)
        with launched() as (two, other):
            assert one.port != two.port
            assert other.create_agent(Worker).pid() != worker.pid()
        assert not two.is_running
        assert result.result(5) == 0.6


# ---------------------------------------------------------------- how it stops


@pytest.mark.parametrize(
    ("mode", "number"), [*((mode, signal.SIGTERM) for mode in MODES), ("fork", signal.SIGINT), ("main", signal.SIGINT)]
)
def test_a_signal_drains_the_host(mode: str, number: int) -> None:
    with running(mode) as host, host.client() as client:
        worker = client.create_agent(Worker)
        result = worker.nap(0.8)
        assert eventually(lambda: client.get_server_info()["running"] == 1, 0.4)
        os.kill(host.pid, number)
        assert eventually(lambda: client.get_server_info()["state"] == "draining", 0.4)
        with pytest.raises(HostStopping):
            worker.echo("too late")
        assert result.result(5) == 0.8
        assert eventually(lambda: is_gone(host.pid), 2)


@pytest.mark.parametrize("mode", ["fork", "main"])
def test_a_second_signal_ends_it_at_once(mode: str) -> None:
    with running(mode, grace_s=60) as host, host.client() as client:
        result = client.create_agent(Worker).nap(STUCK_S)
        assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
        os.kill(host.pid, signal.SIGTERM)
        assert eventually(lambda: client.get_server_info()["state"] == "draining", 2)
        os.kill(host.pid, signal.SIGTERM)
        with pytest.raises(HostStopping, match="running"):
            result.result(5)
        assert eventually(lambda: is_gone(host.pid), 2)


def test_shutdown_is_bounded_by_its_grace_and_two_seconds_whatever_an_agent_does() -> None:
    with launched() as (server, client):
        stuck = client.create_agent(Worker).nap(STUCK_S)
        queued = client.get_agent(client.get_agent_list()[0]["agent_id"]).nap(0)
        assert 0.3 <= seconds_of(lambda: server.shutdown(grace_s=0.3)) < 2.3
        for result in (stuck, queued):
            with pytest.raises(HostStopping):
                result.result(1)
        with pytest.raises(HostUnreachable):
            client.get_agent_list()


def test_a_host_that_hears_nothing_is_killed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launcher, "CONTROL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(launcher, "TERM_WAIT_S", 0.2)
    server = RpcAgentServerLauncher(server_id="deaf")
    server.launch()
    pid = server.pid or 0
    freeze(pid)
    assert seconds_of(server.shutdown) < 2
    assert is_gone(pid)
    said = [record.getMessage() for record in caplog.records if record.name == "zmqagents.server.launcher"]
    assert [text.rpartition(" ")[2] for text in said] == ["SIGTERM", "SIGKILL"]
    assert all(text.startswith("deaf ") for text in said)


def test_what_is_not_shut_down_ends_with_the_program() -> None:
    pid = output_of(
        "from zmqagents import RpcAgentServerLauncher as L; server = L(); server.launch(); print(server.pid)"
    )
    assert is_gone(pid)


def test_a_second_ctrl_c_during_shutdown_leaves_no_host_behind() -> None:
    source = """
import json, os, signal, threading
from hosts import Worker
from zmqagents import RpcAgentServerLauncher, RpcClient
server = RpcAgentServerLauncher(custom_agent_classes=[Worker])
client = None
try:
    with server:
        client = RpcClient(server.host, server.port)
        client.create_agent(Worker).nap(1e6)
        pid = server.pid
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        raise KeyboardInterrupt
except KeyboardInterrupt:
    client.close()
    print(json.dumps([pid, server.is_running]))
"""
    pid, still_running = output_of(source)
    assert not still_running
    assert is_gone(pid)


# ---------------------------------------------------------------- in the calling process


def test_in_the_main_thread_agents_read_the_terminal_and_everything_is_restored() -> None:
    source = """
import json, signal, sys, threading, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher, RpcClient

def mine(number, frame): pass

signal.signal(signal.SIGTERM, mine)
interval = sys.getswitchinterval()
server = RpcAgentServerLauncher(custom_agent_classes=[Worker], switch_interval_s=0.0007)
seen = {}

def other():
    while not server.is_running:
        time.sleep(0.002)
    with RpcClient(server.host, server.port) as client:
        worker = client.create_agent(Worker)
        seen["line"] = worker.read_line()
        seen["interval"] = worker.switch_interval()
    server.shutdown()

thread = threading.Thread(target=other)
thread.start()
server.launch(in_subprocess=False)
thread.join()
seen["handler restored"] = signal.getsignal(signal.SIGTERM) is mine
seen["ctrl-c restored"] = signal.getsignal(signal.SIGINT) is signal.default_int_handler
seen["interval restored"] = sys.getswitchinterval() == interval
print(json.dumps(seen))
"""
    with started(source) as program:
        assert program.stdin is not None
        program.stdin.write("typed by hand\n")
        program.stdin.flush()
        seen = told(program)
        assert program.wait(10) == 0
    assert seen.pop("line") == "typed by hand\n"
    assert seen.pop("interval") == pytest.approx(0.0007)
    assert set(seen.values()) == {True}


@contextlib.contextmanager
def launched_here(**options: Any) -> Iterator[RpcAgentServerLauncher]:
    """A host in this process, in a thread of its own."""
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker], **options)
    thread = threading.Thread(target=server.launch, kwargs={"in_subprocess": False})
    thread.start()
    try:
        assert eventually(lambda: server.is_running, 5)
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def test_in_a_thread_it_serves_until_a_third_thread_shuts_it_down() -> None:
    interval = sys.getswitchinterval()
    with launched_here() as server, RpcClient(server.host, server.port) as client:
        assert client.create_agent(Worker).pid() == server.pid == os.getpid()
        with pytest.raises(LaunchError, match="running already"):
            server.launch()
        third = threading.Thread(target=server.shutdown)
        third.start()
        server.wait_until_terminate()
        third.join(10)
        assert not server.is_running
    assert sys.getswitchinterval() == interval


def test_two_hosts_in_one_process_keep_the_shorter_switch_interval_until_both_have_ended() -> None:
    interval = sys.getswitchinterval()
    with launched_here(switch_interval_s=0.001) as one:
        with launched_here(switch_interval_s=0.0004):
            one.shutdown()
            assert sys.getswitchinterval() == pytest.approx(0.0004)
        assert sys.getswitchinterval() == interval


def test_a_shutdown_while_it_is_starting_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.4)\n" + PLAIN_AGENT.format(name="Slow", value=1))
    server = RpcAgentServerLauncher(agent_dir=tmp_path)
    thread = threading.Thread(target=server.launch, kwargs={"in_subprocess": False})
    thread.start()
    time.sleep(0.1)  # it is importing the file
    server.shutdown()
    thread.join(5)
    assert not thread.is_alive()
    assert not server.is_running


def test_an_error_in_the_calling_process_is_raised_there(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    server = RpcAgentServerLauncher(agent_dir=tmp_path)
    with pytest.raises(LoadError, match="nothing_of_this_name"):
        server.launch(in_subprocess=False)
    assert not server.is_running
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        busy = RpcAgentServerLauncher(port=taken.getsockname()[1])
        with pytest.raises(AddressInUse):
            busy.launch(in_subprocess=False)


# ---------------------------------------------------------------- launches that fail

FAILING = """
import json, os, socket, sys, threading, time, types
from pathlib import Path
from hosts import Worker
from zmqagents import RpcAgentServerLauncher

def held():
    return [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]

def attempt(files, **options):
    if files:
        place = Path(sys.argv[2], str(len(found)))
        place.mkdir()
        (place / "agents.py").write_text(files)
        options["agent_dir"] = place
    server = RpcAgentServerLauncher(start_method=sys.argv[1], **options)
    start = time.monotonic()
    try:
        server.launch()
    except Exception as exc:
        end = time.monotonic()
        mro = [cls.__name__ for cls in type(exc).__mro__]
        return {"types": mro, "text": str(exc), "seconds": end - start, "cause": str(exc.__cause__)}
    finally:
        server.shutdown()

found = {}
RpcAgentServerLauncher().shutdown()
before = held()
taken = socket.socket()
taken.bind(("0.0.0.0", 0))
taken.listen()
found["port"] = attempt("", port=taken.getsockname()[1])
taken.close()
found["import"] = attempt("import nothing_of_this_name")
found["killed"] = attempt("import os; os.kill(os.getpid(), 9)")
found["left"] = attempt("import os; os._exit(3)")
found["hangs"] = attempt("import time; time.sleep(1000)", launch_timeout_s=0.5)
found["stranger"] = attempt("import os, time\\nif os.fork() == 0: time.sleep(4); os._exit(0)\\nos._exit(4)")
one, two = type("Twin", (Worker,), {"__module__": "a"}), type("Twin", (Worker,), {"__module__": "b"})
sys.modules.update(a=types.ModuleType("a"), b=types.ModuleType("b"))
sys.modules["a"].Twin, sys.modules["b"].Twin = one, two
found["twins"] = attempt("", custom_agent_classes=[one, two])
found["model config"] = attempt("", model_config_path=__import__("hosts").__file__)
found["held"] = [before, held()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["fork", "fresh"])
def failures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `launch` raised in a clean process for each kind of failure of the child, and how long it took."""
    return output_of(FAILING, request.param, str(tmp_path_factory.mktemp("failing")))


@pytest.mark.parametrize(
    ("cause", "kind", "words"),
    [
        ("port", "AddressInUse", "is in use"),
        ("import", "LoadError", "nothing_of_this_name"),
        ("killed", "LaunchError", "killed by SIGKILL"),
        ("left", "LaunchError", "exit status 3"),
        ("stranger", "LaunchError", "exit status 4"),
        ("twins", "ConfigError", "two agent classes are called Twin"),
        ("model config", "ConfigError", "hosts.py"),
    ],
)
def test_a_child_that_cannot_start_is_one_typed_error_at_once(failures: Any, cause: str, kind: str, words: str) -> None:
    failure = failures[cause]
    assert kind in failure["types"]
    assert words in failure["text"]
    assert "\n" not in failure["text"]
    assert failure["seconds"] < 3


def test_a_child_that_hangs_ends_with_the_launch_timeout(failures: Any) -> None:
    failure = failures["hangs"]
    assert failure["types"][0] == "LaunchError"
    assert "launch_timeout_s" in failure["text"]
    assert 0.5 <= failure["seconds"] < 1.5


def test_failed_launches_leave_no_descriptor_and_no_thread(failures: Any) -> None:
    before, after = failures["held"]
    assert after == before


def test_one_bad_agent_file_is_told_of_and_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (agent_files(tmp_path) / "bad.py").write_text("import nothing_of_this_name\n")
    with launched(agent_dir=tmp_path) as (_, client):
        assert client.create_agent("Below").value() == 2
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "bad.py:1: ModuleNotFoundError" in record.getMessage()


def test_a_fork_is_refused_where_it_is_not_safe() -> None:
    with pytest.raises(LaunchError, match=r"start_method='fork' is not safe here: the process has \d+ threads"):
        RpcAgentServerLauncher(start_method="fork").launch()


def test_auto_forks_a_clean_process_and_no_other() -> None:
    source = """
import asyncio, json, os, threading
import zmq
from zmqagents import RpcAgentServerLauncher

def method():
    server = RpcAgentServerLauncher()
    with server:
        arguments = open(f"/proc/{server.pid}/cmdline").read().split("\\0")
    return "fresh" if server.server_id in arguments else "fork"

async def in_a_loop():
    return method()

found = {"clean": method(), "loop": asyncio.run(in_a_loop())}
release = threading.Event()
thread = threading.Thread(target=release.wait)
thread.start()
found["thread"] = method()
release.set()
thread.join()
with zmq.Context() as context, context.socket(zmq.PAIR):
    found["context"] = method()
found["clean again"] = method()
print(json.dumps(found))
"""
    assert output_of(source) == {
        "clean": "fork", "loop": "fresh", "thread": "fresh", "context": "fresh", "clean again": "fork",
    }  # fmt: skip


# ---------------------------------------------------------------- classes on their way to a fresh interpreter


class Local(AgentBase):
    """Defined in a test module; `in_a_function` gives one that no module has."""

    def value(self) -> int:
        return 7


def in_a_function(number: int) -> type:
    class Inner(AgentBase):
        def value(self) -> int:
            return number

    return Inner


def test_local_classes_and_their_closures_reach_a_fresh_interpreter() -> None:
    with launched(Local, in_a_function(8)) as (_, client):
        assert client.create_agent("Local").value() == 7
        assert client.create_agent("Inner").value() == 8


def test_classes_that_were_loaded_from_a_file_are_the_same_there(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import threading\nlock = threading.Lock()\ndef three(): return 3\n")
    (tmp_path / "agents.py").write_text(
        "from . import helper\nfrom zmqagents import AgentBase\n"
        "class Loaded(AgentBase):\n    def value(self):\n        with helper.lock: return helper.three()\n"
    )
    (loaded,) = load_custom_class_from_file(tmp_path / "agents.py")
    # Also where the host reads the directory itself: one class, not two of one name.
    with launched(loaded, agent_dir=tmp_path) as (_, client):
        assert client.create_agent(loaded).value() == 3


def test_a_module_that_only_this_process_can_find_reaches_a_fresh_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found_by_path.py").write_text(PLAIN_AGENT.format(name="ByPath", value=5))
    monkeypatch.syspath_prepend(str(tmp_path))
    import found_by_path  # type: ignore[import-not-found]

    with launched(found_by_path.ByPath) as (_, client):
        assert client.create_agent("ByPath").value() == 5
    monkeypatch.delitem(sys.modules, "found_by_path")


def test_a_module_beside_the_script_reaches_a_fresh_interpreter(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(PLAIN_AGENT.format(name="Beside", value=4))
    (tmp_path / "script.py").write_text(
        "from beside import Beside\nfrom zmqagents import RpcAgentServerLauncher, RpcClient\n"
        "with RpcAgentServerLauncher(custom_agent_classes=[Beside], start_method='fresh') as server:\n"
        "    with RpcClient(server.host, server.port) as client: print(client.create_agent(Beside).value())\n"
    )
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py")]
    assert subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60).stdout == "4\n"


def test_a_module_made_in_memory_reaches_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_in_memory")
    monkeypatch.setitem(sys.modules, "made_in_memory", module)
    exec("factor = 3\ndef times(n): return n * factor\n" + PLAIN_AGENT.format(name="InMemory", value="times(2)"),
         vars(module))  # fmt: skip
    with launched(module.InMemory) as (_, client):
        assert client.create_agent("InMemory").value() == 6
    import cloudpickle

    assert "made_in_memory" not in cloudpickle.list_registry_pickle_by_value()


def test_without_cloudpickle_importable_classes_go_and_others_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with launched() as (_, client):
        assert client.create_agent(Worker).echo(1) == 1
    with pytest.raises(MissingExtra, match=r"Inner .*pip install cloudpickle"):
        RpcAgentServerLauncher(custom_agent_classes=[in_a_function(1)]).launch()


def test_a_class_that_cannot_be_sent_is_named_with_the_remedy() -> None:
    lock = threading.Lock()

    class Holder(AgentBase):
        held = lock

    with pytest.raises(LaunchError, match=r"\(.*Holder\) cannot be sent to a new interpreter: cannot pickle"):
        RpcAgentServerLauncher(custom_agent_classes=[Holder]).launch()


def test_a_class_whose_import_fails_in_the_child_is_one_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}: raise RuntimeError('not here')\n"
        + PLAIN_AGENT.format(name="Fragile", value=1)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import fragile  # type: ignore[import-not-found]

    with pytest.raises(LaunchError, match="could not start: RuntimeError: not here") as caught:
        RpcAgentServerLauncher(custom_agent_classes=[fragile.Fragile]).launch()
    assert "fragile.py" in str(caught.value.__cause__)
    monkeypatch.delitem(sys.modules, "fragile")


# ---------------------------------------------------------------- nothing is left behind

ORPHANS = """
import json, os, sys, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher
servers = [RpcAgentServerLauncher(custom_agent_classes=[Worker], start_method=sys.argv[1]) for _ in range(2)]
for server in servers:
    server.launch()
sibling = os.fork()
if sibling == 0:
    time.sleep(60)
    os._exit(0)
print(json.dumps({"hosts": [[s.pid, s.port] for s in servers], "sibling": sibling}), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("method", ["fork", "fresh"])
def test_a_host_is_gone_two_seconds_after_its_parent_was_killed(method: str) -> None:
    with started(ORPHANS, method) as program:
        made = told(program)
        (busy, port), (idle, _) = made["hosts"]
        try:
            with RpcClient("localhost", port) as client:
                stuck = client.create_agent(Worker).nap(STUCK_S)
                assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
                program.kill()
                assert eventually(lambda: is_gone(idle), 2)
                assert eventually(lambda: is_gone(busy), 2)
                with pytest.raises(HostStopping):
                    stuck.result(1)
            assert not is_gone(made["sibling"])  # a fork of the parent lives on and holds nothing of theirs
        finally:
            os.kill(made["sibling"], signal.SIGKILL)


def test_a_host_whose_parent_is_killed_while_it_loads_its_agents_is_gone_too(tmp_path: Path) -> None:
    here = tmp_path / "pid"
    (tmp_path / "slow.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(here)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    source = "import sys; from zmqagents import RpcAgentServerLauncher as L; L(agent_dir=sys.argv[1]).launch()"
    with started(source, str(tmp_path)) as program:
        assert eventually(lambda: here.exists() and here.read_text() != "", 10)
        program.kill()
        assert eventually(lambda: is_gone(int(here.read_text())), 2)


def test_processes_that_agents_start_do_not_keep_the_port() -> None:
    with launched(Parent) as (server, client):
        child = client.create_agent(Parent).start_one()
        try:
            os.kill(server.pid or 0, signal.SIGKILL)
            server.wait_until_terminate()
            assert not is_gone(child)
            with RpcAgentServerLauncher(port=server.port):  # AddressInUse if the child held it
                pass
        finally:
            os.kill(child, signal.SIGKILL)


MANY = """
import json, os, subprocess, sys
from pathlib import Path
from hosts import Worker
from zmqagents import RpcAgentServerLauncher, RpcClient

def held():
    runtime = Path(os.environ["ZMQAGENTS_RUNTIME"])
    children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task")),
        "children": children, "files": sorted(map(str, runtime.iterdir())),
    }

method, rounds = sys.argv[1], int(sys.argv[2])
for number in range(rounds + 1):
    with RpcAgentServerLauncher(custom_agent_classes=[Worker], start_method=method) as server:
        if method == "fresh":
            with RpcClient(server.host, server.port) as client:
                assert client.create_agent(Worker).pid() == server.pid
    if number == 0:
        before = held()
print(json.dumps([before, held()]))
"""


@pytest.mark.parametrize(("method", "rounds"), [("fork", pick(40, 100)), ("fresh", pick(8, 15))])
def test_many_launches_leave_no_process_thread_socket_or_file(method: str, rounds: int) -> None:
    before, after = output_of(MANY, method, str(rounds))
    assert after == before
    assert after["children"] == []
