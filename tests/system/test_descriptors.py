"""The descriptors of a host: the limit, the warning, and copies in forks of it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import time
from typing import Any

import psutil
import pytest

from hosts import eventually, free_port, output_of
from scale import soak_only
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func
from zmqagents.process import descriptors

LIMITED = """
import json, os, resource, socket, sys, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher
from zmqagents.server import serve
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
serve.LOOK_EVERY_S = 0.05
server = RpcAgentServerLauncher(custom_agent_classes=[Worker], server_id="narrow", start_method="fork", local_mode=True)
server.launch()
found = [open(f"/proc/{server.pid}/limits").read()]
strangers = []
for _ in range(2):
    for _ in range(170):
        strangers.append(socket.create_connection(("127.0.0.1", server.port)))
        if len(strangers) == 40:
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))  # of this process
    time.sleep(0.3)
    for stranger in strangers:
        stranger.close()
    strangers.clear()
    time.sleep(0.3)
server.shutdown()
print(json.dumps(found))
"""


def test_the_soft_limit_is_raised_and_each_rise_over_80_percent_is_told_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    (limits,) = output_of(LIMITED)
    row = next(line for line in limits.splitlines() if line.startswith("Max open files"))
    assert row.split()[3:5] == ["200", "200"]
    warnings = [line for line in capfd.readouterr().err.splitlines() if "descriptors open" in line]
    assert len(warnings) == 2
    assert all(line.startswith("narrow has ") and " of at most 200 descriptors" in line for line in warnings)


FULL = """
import json, os, resource, socket, time
from hosts import Worker
from zmqagents import RpcAgentServerLauncher, RpcClient, discovery
server = RpcAgentServerLauncher(custom_agent_classes=[Worker], server_id="full", start_method="fork", local_mode=True)
server.launch()
with RpcClient("localhost", server.port, transport="ipc") as client:
    worker = client.create_agent(Worker)
    limit = len(os.listdir(f"/proc/{server.pid}/fd")) + 5
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
    strangers = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for stranger in strangers:
        stranger.connect(discovery.find_host("localhost", server.port).ipc)
    time.sleep(0.5)
    found = [worker.echo("served")]
    for stranger in strangers:
        stranger.close()
    with RpcClient("localhost", server.port, transport="ipc") as other:
        found.append(other.get_agent(worker.agent_id).echo("too"))
server.shutdown()
print(json.dumps(found))
"""


def test_a_host_without_a_free_descriptor_says_so_once_and_lets_clients_in_when_others_have_left(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert output_of(FULL) == ["served", "too"]
    assert capfd.readouterr().err.count("cannot accept connections") == 1


def test_a_process_without_a_free_descriptor_is_known_to_have_none() -> None:
    source = """
import json, os, resource
from zmqagents.process import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    count = descriptors.in_use()
print(json.dumps(count))
"""
    assert output_of(source) == 50


def test_what_is_counted_is_what_is_open() -> None:
    before = descriptors.in_use()
    assert before is not None
    with socket.socket(), socket.socket():
        assert descriptors.in_use() == before + 2
    assert descriptors.in_use() == before


class Forks(AgentBase):
    """Forks as one should not."""

    def fork(self) -> int:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        return pid

    def claims(self) -> list[str]:
        """What a fork of this process still takes for its own, though the host's connections are closed there."""
        r, w = os.pipe()
        if os.fork() == 0:
            try:
                files = {os.open(os.devnull, os.O_RDONLY) for _ in range(20)}  # they get the numbers that are free
                sockets = [thing for thing in gc.get_objects() if isinstance(thing, socket.socket)]
                os.write(w, json.dumps([str(thing) for thing in sockets if thing.fileno() in files]).encode())
            finally:
                os._exit(0)
        os.close(w)
        with open(r) as report:
            return list(json.load(report))

    def echo(self, value: Any) -> Any:
        return value

    @async_func
    def nap(self, seconds: float) -> None:
        time.sleep(seconds)


def places(pid: int) -> set[Any]:
    """The ports and paths at which a process has listeners or accepted connections."""
    found = [connection.laddr for connection in psutil.Process(pid).net_connections("all")]
    return {place if isinstance(place, str) else place.port for place in found if place}


@pytest.mark.parametrize("transport", ["tcp", pytest.param("ipc", marks=soak_only)])
def test_a_fork_of_a_host_keeps_neither_its_port_nor_its_connections(transport: Any) -> None:
    server = RpcAgentServerLauncher(port=free_port(), custom_agent_classes=[Forks], server_id="forked")
    server.launch()
    child = 1 << 30  # no process has this number
    try:
        with RpcClient("localhost", server.port, transport=transport) as client:
            agent = client.create_agent(Forks)
            child = agent.fork()
            assert agent.echo(1) == 1  # the host's own are as they were
            assert server.pid is not None
            assert places(server.pid) >= {server.port, server.ipc}
            # The fork closes its copies as its first act, which on a busy machine comes after the answer.
            assert eventually(lambda: not places(child) & {server.port, server.ipc}, 10)
            stuck = agent.nap(1e6)
            assert eventually(lambda: client.get_server_info()["running"] == 1, 5)
            os.kill(server.pid, signal.SIGKILL)
            start = time.monotonic()
            assert isinstance(stuck.exception(10), ConnectionError)
            assert time.monotonic() - start < 1  # with copies there would be no end of the connection to see
        with (
            RpcAgentServerLauncher(port=server.port, server_id="forked", custom_agent_classes=[Forks]) as heir,
            RpcClient("localhost", heir.port, transport=transport) as client,
        ):
            assert client.create_agent(Forks).echo(2) == 2
    finally:
        with contextlib.suppress(ProcessLookupError):  # it ends with its host, see `process.forks`
            os.kill(child, signal.SIGKILL)
        server.shutdown()


def test_a_fork_of_a_host_does_not_take_files_of_its_own_for_the_hosts_connections() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RpcAgentServerLauncher(custom_agent_classes=[Forks]))
        clients = [stack.enter_context(RpcClient("localhost", server.port, transport="ipc")) for _ in range(3)]
        agents = [client.create_agent(Forks) for client in clients]
        assert agents[0].claims() == []
        assert [agent.echo(3) for agent in agents] == [3, 3, 3]


def test_sockets_of_others_stay_open_in_a_fork() -> None:
    source = """
import json, os, socket
from zmqagents.process import descriptors
ours, others = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
pair = socket.socketpair()
file = open(os.devnull)
client = socket.create_connection(ours.getsockname())
accepted, _ = ours.accept()
with descriptors.not_for_forks(ours.getsockname()[1], None):
    r, w = os.pipe()
    if os.fork() == 0:
        still = []
        for thing in (ours, others, *pair, file, client, accepted):
            try:
                os.fstat(thing.fileno())
                still.append(True)
            except OSError:
                still.append(False)
        os.write(w, json.dumps(still).encode())
        os._exit(0)
    os.write(1, os.read(r, 1000))
os._exit(0)
"""
    ours, others, pair, pair_too, file, client, accepted = output_of(source)
    assert (ours, accepted) == (False, False)
    assert (others, pair, pair_too, file, client) == (True,) * 5
