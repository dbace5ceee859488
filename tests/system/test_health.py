"""Whether a host lives and is ready, and that its answer turns within a second of what it tells of."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hosts import freeze
from redis_server import RedisServer, running_redis
from zmqagents import AgentBase, RpcAgentServerLauncher, RpcClient, async_func, errors

pytestmark = pytest.mark.timeout(120)
TURNS_WITHIN_S = 1.0  # what is promised
SPARE_S = 2.0  # for a machine that does other things


class Busy(AgentBase):
    @async_func
    def nap(self, seconds: float) -> None:
        time.sleep(seconds)

    @async_func
    def keep_the_interpreter(self, seconds: int) -> None:
        ctypes.PyDLL(None).sleep(seconds)


@contextlib.contextmanager
def host(**settings: Any) -> Iterator[tuple[RpcAgentServerLauncher, RpcClient]]:
    with (
        RpcAgentServerLauncher(custom_agent_classes=[Busy], local_mode=True, **settings) as launcher,
        RpcClient("localhost", launcher.port) as client,
    ):
        yield launcher, client


def health(port: int | None, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zmqagents", "health", "--port", str(port), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def reasons(client: RpcClient) -> list[str]:
    try:
        return list(client.get_health()["reasons"])
    except (errors.HostStopping, errors.CallTimeout) as exc:
        return [type(exc).__name__]


def turned_after(client: RpcClient, is_there: Callable[[list[str]], bool]) -> float:
    """Seconds until the reasons are as expected."""
    began = time.monotonic()
    while not is_there(found := reasons(client)):
        assert time.monotonic() < began + 20, found
        time.sleep(0.02)
    return time.monotonic() - began


def test_a_host_is_ready_however_busy_its_workers_are() -> None:
    with host(capacity=1) as (launcher, client):
        agent = client.create_agent(Busy)
        naps = [agent.nap(20.0) for _ in range(4)]
        assert client.get_health() == {"server_id": launcher.server_id, "ready": True, "reasons": []}
        done = health(launcher.port, "--ready")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{launcher.server_id} is ready\n", "")
        assert client.get_agent_list()
        for nap in naps:
            nap.cancel()
        client.stop(0.0)


def test_a_host_that_stops_lives_and_is_not_ready() -> None:
    with host() as (launcher, client):
        client.create_agent(Busy).nap(20.0)
        client.stop(10.0)
        assert turned_after(client, lambda found: found == ["HostStopping"]) < TURNS_WITHIN_S + SPARE_S
        ready, live = health(launcher.port, "--ready"), health(launcher.port)
        assert (ready.returncode, ready.stdout) == (7, "")
        assert ready.stderr == "the host is not ready: it is stopping and takes no new calls\n"
        assert (live.returncode, live.stdout) == (0, "the host lives\n")
        client.stop(0.0)


def test_a_host_that_is_not_there_has_an_exit_code_of_its_own() -> None:
    with host() as (launcher, _):
        port = launcher.port
    done = health(port)
    assert done.returncode == 4
    assert done.stderr.startswith("as_server health: ")


def test_a_host_whose_dispatch_is_stuck_lives_and_is_not_ready_until_it_goes_on() -> None:
    with host() as (launcher, client):
        client.create_agent(Busy).keep_the_interpreter(6)
        assert turned_after(client, lambda found: found == ["CallTimeout"]) < TURNS_WITHIN_S + SPARE_S
        done = health(launcher.port, "--ready", "--json")
        assert done.returncode == 7
        assert '"ready": false' in done.stdout
        assert "stuck" in done.stdout
        assert health(launcher.port).returncode == 0, "it answers within 30 s"
        assert turned_after(client, lambda found: not found) < TURNS_WITHIN_S + SPARE_S


def test_a_host_that_answers_nothing_for_the_time_given_does_not_live() -> None:
    with host() as (launcher, client):
        assert reasons(client) == []
        freeze(launcher.pid)
        try:
            done = health(launcher.port, "--timeout", "1")
            assert done.returncode == 4
        finally:
            assert launcher.pid is not None
            os.kill(launcher.pid, signal.SIGCONT)
        assert turned_after(client, lambda found: not found) < TURNS_WITHIN_S + SPARE_S


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def test_a_host_is_not_ready_while_its_redis_is_away(redis: RedisServer) -> None:
    with host(pool_type="redis", redis_url=redis.url) as (launcher, client):
        turned_after(client, lambda found: not found)
        redis.kill()
        away = turned_after(client, bool)
        assert away < TURNS_WITHIN_S + SPARE_S
        assert client.is_alive(), "it lives meanwhile"
        done = health(launcher.port, "--ready")
        assert done.returncode == 7
        assert "the store for results: " in done.stderr
        redis.start()
        assert turned_after(client, lambda found: not found) < TURNS_WITHIN_S + SPARE_S


def test_a_host_is_not_ready_while_its_redis_answers_nothing(redis: RedisServer) -> None:
    with host(pool_type="redis", redis_url=redis.url) as (_, client):
        turned_after(client, lambda found: not found)
        with redis.frozen():
            assert turned_after(client, bool) < TURNS_WITHIN_S + SPARE_S
        assert turned_after(client, lambda found: not found) < TURNS_WITHIN_S + SPARE_S


def test_many_who_ask_at_once_are_all_answered() -> None:
    with host() as (launcher, _):
        found: list[bool] = []

        def ask() -> None:
            with RpcClient("localhost", launcher.port) as client:
                found.extend(client.get_health(20.0)["ready"] for _ in range(25))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [True] * 200


def test_probes_are_no_calls_of_agents() -> None:
    with host() as (_, client):
        for _ in range(3):
            assert client.get_health()["ready"]
        figures = client.get_metrics()
    assert [row for row in figures["methods"] if "Probe" in row["class"]] == []
