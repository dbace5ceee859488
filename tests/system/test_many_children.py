"""Many children: a hundred at once, and one after the other, and nothing is left of them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import client_of, host
from hosts import Worker, eventually, is_gone
from scale import MIB, pick
from zmqagents import HostBusy, RpcClient

pytestmark = pytest.mark.timeout(300)
MANY = 100
GRACE_S = 1.0
CYCLES = pick(40, 200)
GROWN_MIB = 3.0  # of the host, over all cycles: caches and what the allocator keeps


def test_a_hundred_children_start_at_once_answer_and_stop_within_the_grace() -> None:
    with (
        host(Worker, isolation="process", max_children=MANY + MANY // 7, grace_s=GRACE_S) as launcher,
        client_of(launcher, timeout=120) as client,
    ):
        with ThreadPoolExecutor(MANY) as threads:
            agents: list[Any] = list(threads.map(lambda _: client.create_agent(Worker), range(MANY)))
            pids = list(threads.map(lambda agent: agent.pid(), agents))
        assert len(set(pids)) == MANY
        with pytest.raises(HostBusy, match="max_children"):
            client.create_agent(Worker)
        assert len(client.get_child_list()) == MANY
        running = [agent.nap(60) for agent in agents[:10]]
        assert launcher.pid is not None
        everything = [process.pid for process in psutil.Process(launcher.pid).children(recursive=True)]
        begun = time.monotonic()
        launcher.shutdown()
        assert time.monotonic() - begun < GRACE_S + 2 + 3, "3 s for a machine on which a hundred processes end"
        assert eventually(lambda: all(map(is_gone, [*pids, *everything])), 1.0)
        assert all(result.exception(10.0) is not None for result in running)


def test_a_child_starts_while_somebody_looks_whether_its_lock_is_free() -> None:
    with host(Worker, isolation="process") as launcher, client_of(launcher, timeout=60) as client:
        looks = {}
        for number in range(1, 4):  # the first that is started, and the spare ones behind it
            path = os.path.join(os.environ["ZMQAGENTS_RUNTIME"], f"{launcher.server_id}.child-{number}.ipc.lock")
            looks[path] = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(looks[path], fcntl.LOCK_SH)
        with ThreadPoolExecutor(1) as threads:
            made = threads.submit(client.create_agent, Worker)
            time.sleep(1.0)  # so long the looker has no processor
            for look in looks.values():
                os.close(look)
            agent: Any = made.result(60)
        assert agent.pid() > 0
    for path in looks:  # those of children that were not needed
        Path(path).unlink(missing_ok=True)


@pytest.fixture
def cycling() -> Iterator[tuple[psutil.Process, RpcClient]]:
    with host(Worker, isolation="process", grace_s=GRACE_S) as launcher, client_of(launcher) as client:
        yield psutil.Process(launcher.pid), client


def _cycle(client: RpcClient) -> int:
    agent: Any = client.create_agent(Worker)
    pid: int = agent.pid()
    client.delete_agent(agent.agent_id)
    return pid


def _held(process: psutil.Process) -> dict[str, int]:
    """What a host has when all but its spare child have ended."""
    left = len(process.children(recursive=True))
    runtime = os.environ["ZMQAGENTS_RUNTIME"]
    return {
        "processes": left, "threads": process.num_threads(), "descriptors": process.num_fds(),
        "files": len(os.listdir(runtime)),
    }  # fmt: skip


def test_children_that_come_and_go_leave_nothing_behind(cycling: tuple[psutil.Process, RpcClient]) -> None:
    process, client = cycling
    for _ in range(5):
        _cycle(client)
    assert eventually(lambda: len(process.children()) <= 1, 10.0)
    held: list[dict[str, int]] = []
    assert eventually(lambda: _is_settled(held, process), 10.0)
    before, memory = held[-1], process.memory_info().rss
    pids = [_cycle(client) for _ in range(CYCLES)]
    assert len(set(pids)) == CYCLES
    assert eventually(lambda: all(map(is_gone, pids)), 10.0)
    assert eventually(lambda: _held(process) == before, 10.0), (before, _held(process))
    assert client.get_server_info()["children"] == {
        "processes": 0, "silent": 0, "calls": 0, "crashes": 0, "memory_mb": 0, "agents": 0,
    }  # fmt: skip
    assert (process.memory_info().rss - memory) / MIB < GROWN_MIB


def _is_settled(held: list[dict[str, int]], process: psutil.Process) -> bool:
    """Whether it was the same for five looks: the spare child is up."""
    held.append(_held(process))
    time.sleep(0.1)
    return len(held) >= 5 and held[-5:] == [held[-1]] * 5 and held[-1]["processes"] == 1
