"""as_server shows a cluster, and moves its agents and hosts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster_hosts import Account, Hosts, hosts_on
from hosts import as_server, environment
from redis_server import RedisServer
from scale import linux_only
from zmqagents import Cluster, RpcAgentServerLauncher

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]


COLUMNS = [
    "server_id", "address", "state", "agents", "running", "lease", "claims", "fenced", "relayed", "version", "labels",
]  # fmt: skip


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    with hosts_on(lasting_redis, 2, labels={"zone": "a"}) as hosts:
        with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
            for number in range(4):
                cluster.get_agent(f"shell-{number}", cls=Account).add(number)
        yield hosts


def shell(hosts: Hosts, *words: str) -> Any:
    """What a verb has printed as JSON."""
    ended = as_server(*words, "--json", port=hosts.launchers[0].port)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_hosts_are_listed_from_any_of_them(hosts: Hosts) -> None:
    [rows] = shell(hosts, "hosts")
    assert {row["server_id"] for row in rows} == {launcher.server_id for launcher in hosts.launchers}
    table = as_server("hosts", port=hosts.launchers[1].port).stdout.splitlines()
    assert table[0].split() == COLUMNS
    assert len(table) == 3
    assert all("held" in line and "zone=a" in line for line in table[1:])


def test_without_a_port_the_members_that_run_here_are_meant(hosts: Hosts) -> None:
    with RpcAgentServerLauncher(local_mode=True):  # a host that is no member is no reason to ask which one
        command = [sys.executable, "-m", "zmqagents", "hosts", "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)) == 2


def test_a_host_that_is_no_member_is_told_so(hosts: Hosts) -> None:
    with RpcAgentServerLauncher(local_mode=True) as alone:
        ended = as_server("hosts", port=alone.port)
    assert ended.returncode == 2
    assert "is no member of a cluster" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_agent_is_found_and_moved(hosts: Hosts) -> None:
    [there] = shell(hosts, "where", "Account/shell-1")
    assert there["agent"] == "Account/shell-1"
    other = next(each for each in hosts.launchers if each.server_id != there["server_id"])
    [moved] = shell(hosts, "move", "Account/shell-1", other.server_id)
    assert moved["server_id"] == other.server_id
    assert moved["epoch"] > there["epoch"]
    hosts.callers[0].call("Account/shell-1", "balance")
    [back] = shell(hosts, "move", "Account/shell-1")
    assert back["server_id"] == there["server_id"]
    text = as_server("where", "Account/never", port=other.port).stdout
    assert "nobody has it now" in text
    assert "its first call will make it" in text
    wrong = as_server("where", "Account", port=other.port)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    nowhere = as_server("move", "Account/shell-1", "nowhere", port=other.port)
    assert nowhere.returncode != 0
    assert nowhere.stderr.count("\n") == 1


def test_agents_of_all_hosts_are_listed(hosts: Hosts) -> None:
    [rows] = shell(hosts, "agents", "--cluster")
    assert {f"Account/shell-{number}" for number in range(4)} <= {row["agent"] for row in rows}
    assert shell(hosts, "agents", "--cluster", "shop") == [rows]
    wrong = as_server("agents", "--cluster", "other", port=hosts.launchers[0].port)
    assert (wrong.returncode, "'shop'" in wrong.stderr) == (2, True)


def test_events_tell_who_has_joined(hosts: Hosts) -> None:
    rows = shell(hosts, "events")
    assert sum(row["kind"] == "joined" for row in rows) >= 2
    assert len(shell(hosts, "events", "--lines", "1")) == 1
    lines = as_server("events", port=hosts.launchers[0].port).stdout.splitlines()
    assert len(lines) == len(rows)
    assert "  joined    " in lines[0]


def test_events_are_followed_as_they_come(hosts: Hosts) -> None:
    port = str(hosts.launchers[0].port)
    command = [sys.executable, "-m", "zmqagents", "events", "--follow", "--lines", "0", "--json", "--port", port]
    rows: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as follower:
        assert follower.stdout is not None
        reader = threading.Thread(target=lambda stream: rows.extend(map(json.loads, stream)), args=(follower.stdout,))
        reader.start()
        try:
            while not rows:  # until it has begun to follow
                hosts.callers[0].call("Account/shell-2", "balance")
                shell(hosts, "move", "Account/shell-2")
        finally:
            follower.kill()
            reader.join()
    assert rows[0]["kind"] == "moved"
    assert "Account/shell-2" in rows[0]["what"]


def test_a_host_is_drained_by_its_name(redis: RedisServer) -> None:
    with hosts_on(redis, 2, grace_s=20.0) as hosts:
        with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
            for number in range(6):
                cluster.get_agent(f"drained-{number}", cls=Account).add(number)
        gone = hosts.launchers[1].server_id
        ambiguous = as_server("drain", "nobody", port=hosts.launchers[0].port)
        assert ambiguous.returncode == 2
        assert "is not one of the hosts of shop" in ambiguous.stderr
        ended = as_server("drain", gone, port=hosts.launchers[0].port)
        assert (ended.returncode, ended.stdout.startswith(f"drained {gone} at ")) == (0, True), ended.stderr
        [rows] = shell(hosts, "hosts")
        assert [row["server_id"] for row in rows] == [hosts.launchers[0].server_id]
        with Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster:
            for number in range(6):
                assert cluster.get_agent(f"drained-{number}", cls=Account).balance() == number
        last = as_server("drain", "--grace", "4", port=hosts.launchers[0].port)
        assert last.returncode == 0, "nobody tells of its end, which is seen at once all the same"


def test_a_host_that_cannot_be_emptied_in_time_is_told_by_the_exit_code(redis: RedisServer) -> None:
    with (
        hosts_on(redis, 2, grace_s=20.0) as hosts,
        Cluster(f"127.0.0.1:{hosts.launchers[0].port}") as cluster,
    ):
        agents: list[Any] = [cluster.get_agent(f"stuck-{number}", cls=Account) for number in range(8)]
        for agent in agents:
            agent.add(1)
        slow = [agent.slow.aio(15) for agent in agents]
        ended = as_server("drain", hosts.launchers[1].server_id, "--grace", "1", port=hosts.launchers[0].port)
        assert ended.returncode == 6, ended.stderr
        for result in slow:
            result.cancel()
