"""``as_server web --cluster``: all hosts of a cluster, its agents, and what can be done with them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster_hosts import Hosts, hosts_on
from hosts import environment, eventually, freeze
from redis_server import RedisServer
from scale import linux_only
from zmqagents import RpcClient

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]
LIMIT_S = 30.0
NAMES = [f"Account/seen-{number}" for number in range(12)]


class Web:
    """The process, and requests to it."""

    def __init__(self, told: dict[str, str], view: str) -> None:
        self.port = int(told["url"].rpartition(":")[2])
        self.admin, self.view = (link.rpartition("#token=")[2] for link in (told["web"], view))

    def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            headers = {"Authorization": f"Bearer {self.admin if token is None else token}"}
            headers |= {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if path.startswith("/api/") else text
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, told = self.ask("GET", path)
        assert status == 200, told
        return told

    def hosts(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.get("/api/cluster")["hosts"]}


@contextlib.contextmanager
def web_of(hosts: Hosts) -> Iterator[Web]:
    shell = [sys.executable, "-m", "zmqagents", "web"]
    command = [*shell, "--cluster", "shop", "--listen", "127.0.0.1:0", "--json", "--port", str(hosts.launchers[0].port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        listen = told["url"].removeprefix("http://")
        view = subprocess.run([*shell, "--url", "--role", "view", "--listen", listen], capture_output=True, text=True)
        web = Web(told, view.stdout.strip())
        try:
            assert eventually(lambda: len(web.hosts()) == len(hosts.launchers), LIMIT_S)
            yield web
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(LIMIT_S) in (0, -signal.SIGTERM)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def hosts(lasting_redis: RedisServer) -> Iterator[Hosts]:
    with hosts_on(lasting_redis, 3, lease_s=2.0) as hosts:
        for name in NAMES:
            hosts.callers[0].call(name, "add", 1)
        yield hosts


@pytest.fixture(scope="module")
def web(hosts: Hosts) -> Iterator[Web]:
    with web_of(hosts) as web:
        yield web


def test_all_hosts_are_told_with_what_each_does(hosts: Hosts, web: Web) -> None:
    found = web.hosts()
    assert set(found) == {launcher.server_id for launcher in hosts.launchers}
    assert {row["up"] for row in found.values()} == {True}
    assert sum(row["agents"] for row in found.values()) == len(NAMES)
    assert {row["state"] for row in found.values()} == {"held"}
    assert all(0.3 < row["lease_left"] <= 1 for row in found.values())
    assert web.get("/api/me")["cluster"] == "shop"


def test_one_host_is_chosen_by_its_id(hosts: Hosts, web: Web) -> None:
    for launcher in hosts.launchers:
        told = web.get(f"/api/host?host={launcher.server_id}")
        assert (told["server_id"], told["pid"]) == (launcher.server_id, launcher.pid)
        agents = web.get(f"/api/agents?host={launcher.server_id}")["agents"]
        assert all(row["agent_id"].startswith("cluster:shop/Account/") for row in agents)
    assert web.ask("GET", "/api/host?host=nobody")[0] == 404
    assert web.ask("GET", "/api/stream?host=nobody", token="wrong")[0] == 401


def test_the_first_request_of_all_is_answered(hosts: Hosts) -> None:
    with web_of(hosts) as web:
        assert len(web.get("/api/cluster/agents")["agents"]) == len(NAMES)


def test_agents_are_found_by_a_part_of_the_name_and_by_class_a_page_at_a_time(web: Web) -> None:
    seen: list[str] = []
    after = ""
    while after is not None:
        page = web.get(f"/api/cluster/agents?most=5&after={after}")
        seen += [row["agent"] for row in page["agents"]]
        assert len(page["agents"]) <= 5
        after = page["next"]
    assert sorted(seen) == sorted(NAMES)
    (row,) = web.get("/api/cluster/agents?q=SEEN-11")["agents"]
    assert (row["agent"], row["id"]) == ("Account/seen-11", "cluster:shop/Account/seen-11")
    assert web.get(f"/api/cluster/where?id={row['agent']}")["address"] == row["address"]
    assert len(web.get("/api/cluster/agents?class=Account")["agents"]) == len(NAMES)
    assert web.get("/api/cluster/agents?class=Till")["agents"] == []


def test_an_agent_is_moved_by_an_admin_alone_and_with_one_line_of_the_log(hosts: Hosts, web: Web) -> None:
    there = web.get("/api/cluster/where?id=Account/seen-1")
    other = next(row for row in web.hosts().values() if row["address"] != there["address"])
    body = {"id": "Account/seen-1", "to": other["id"]}
    assert web.ask("POST", "/api/cluster/move", body, token=web.view)[0] == 403
    assert web.ask("POST", "/api/cluster/move", {**body, "to": "nobody"})[0] == 404
    assert web.ask("POST", "/api/cluster/move", {**body, "to": 5})[0] == 400
    assert web.get("/api/cluster/where?id=Account/seen-1")["epoch"] == there["epoch"]
    status, moved = web.ask("POST", "/api/cluster/move", body)
    assert (status, moved["server_id"]) == (200, other["id"])
    assert hosts.callers[0].call("Account/seen-1", "balance") == 1
    assert web.ask("POST", "/api/cluster/move", {"id": "Account/never"})[0] == 404
    assert eventually(lambda: "moved" in {row["kind"] for row in web.get("/api/cluster/events")["events"]}, LIMIT_S)


def test_prometheus_reads_all_hosts_from_one_page(hosts: Hosts, web: Web) -> None:
    text = web.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ids = {launcher.server_id for launcher in hosts.launchers}
    for name in ("zmqagents_host_up", "zmqagents_cluster_lease_left_ratio", "zmqagents_capacity"):
        assert {sample.labels["host"] for sample in families[name].samples} == ids
    assert sum(sample.value for sample in families["zmqagents_cluster_agents"].samples) == len(NAMES)
    assert web.get("/readyz") == web.get("/livez") == "ok\n"


def ticks(web: Web, host: str = "") -> Iterator[dict[str, Any]]:
    """What a page is told, for ever."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=LIMIT_S)
    try:
        connection.request("GET", f"/api/stream?host={host}", headers={"Authorization": f"Bearer {web.view}"})
        answer = connection.getresponse()
        while line := answer.readline():
            if line.startswith(b"data: "):
                yield json.loads(line[6:])
    finally:
        connection.close()


def until(stream: Iterator[dict[str, Any]], wanted: Any) -> float:
    """Seconds until a tick is as it is wanted."""
    began = time.monotonic()
    for tick in stream:
        if wanted({row["id"]: row for row in tick["cluster"]["hosts"]}):
            return time.monotonic() - began
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("index", [1, 0])
def test_a_host_that_dies_is_shown_and_so_is_its_return_and_the_others_meanwhile(
    redis: RedisServer, index: int
) -> None:
    """Also if it is the one by which the cluster was entered."""
    with hosts_on(redis, 3, lease_s=2.0) as hosts, web_of(hosts) as web:
        victim, pid = hosts.launchers[index].server_id, hosts.launchers[index].pid or 0
        stream = ticks(web)
        until(stream, lambda found: len(found) == 3 and all(row["up"] for row in found.values()))
        freeze(pid)
        try:
            took = until(stream, lambda found: not found[victim]["up"])
            assert took < 10, "2.5 s where nothing else runs"
            until(stream, lambda found: found[victim]["gone"])
            assert web.get("/readyz") == "ok\n", "the others take calls"
            assert f'zmqagents_host_up{{host="{victim}"}} 0.0' in web.get("/metrics")
        finally:
            os.kill(pid, signal.SIGCONT)
        until(stream, lambda found: found[victim]["up"] and not found[victim]["gone"])
        hosts.kill(index)
        until(stream, lambda found: not found[victim]["up"])
        until(stream, lambda found: found[victim]["gone"])
        hosts.start()
        newcomer = hosts.launchers[-1].server_id
        until(stream, lambda found: newcomer in found and found[newcomer]["up"])
        assert len([row for row in web.hosts().values() if row["up"]]) == 3


def test_a_host_that_is_drained_from_the_page_gives_its_agents_away_and_is_no_more(redis: RedisServer) -> None:
    with hosts_on(redis, 2) as hosts, web_of(hosts) as web:
        for name in NAMES:
            hosts.callers[1].call(name, "add", 1)
        first, second = (launcher.server_id for launcher in hosts.launchers)
        assert web.ask("POST", f"/api/drain?host={first}", {}) == (200, {"draining": True})
        assert eventually(lambda: set(web.hosts()) == {second}, LIMIT_S)
        assert [hosts.callers[1].call(name, "add", 1) for name in NAMES] == [2] * len(NAMES)
        assert {row["server_id"] for row in web.get("/api/cluster/agents")["agents"]} == {second}
        assert web.hosts()[second]["agents"] == len(NAMES)
        with RpcClient("127.0.0.1", hosts.launchers[1].port) as client:
            assert client.get_server_info()["cluster"]["members"] == 1
