"""Large values on one machine, through client and host: by shared memory where both have it, and whole in any case."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hosts
from actors import client_of, host
from raw_peer import ipc_path
from zmqagents import AgentBase, AsyncResult, RpcAgentServerLauncher, RpcClient, async_func
from zmqagents.wire.segments import memory

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not memory.is_offered(), reason="there are no sealed segments on this system"),
]

KIB = 1 << 10
NAME = "/memfd:zmqagents"


class Store(AgentBase):
    """Gives and takes large values."""

    gate = threading.Event()  # of all agents of the host

    def echo(self, value: Any) -> Any:
        return value

    def grow(self, value: bytearray) -> bytearray:
        value += b"more"
        value[0] = 7
        return value

    def fill(self, value: Any) -> Any:
        value[:] = 7
        return value

    def give(self, seed: int, size: int) -> bytes:
        return pattern(seed, size)

    @async_func
    def first_and_last(self, value: bytes) -> tuple[int, bytes, bytes]:
        self.gate.wait(30)
        return len(value), value[:8], value[-8:]

    def open_gate(self) -> None:
        self.gate.set()


def pattern(seed: int, size: int) -> bytes:
    """Bytes of which each eight say what they are part of."""
    return b"".join([seed.to_bytes(8, "big")] * (size // 8))


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Store) as launcher:
        yield launcher


@pytest.fixture
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    with client_of(server) as client:
        yield client


def mappings(pid: int | str | None = "self") -> int:
    return len(re.findall(NAME, Path(f"/proc/{pid}/maps").read_text()))


def share(client: RpcClient) -> Any:
    """An agent, after calls with large values that made client and host share memory."""
    agent = client.create_agent(Store)
    for _ in range(8):
        agent.echo(bytes(100 * KIB))
    assert mappings() == 1
    return agent


def connection_to(path: str) -> socket.socket:
    """A copy of this process's end of the connection to the host at ``path``."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found = socket.socket(fileno=os.dup(int(name)))
                with contextlib.suppress(OSError):  # one that is not connected
                    if found.getpeername() == path:
                        return found
                found.close()
    raise AssertionError("there is no such connection")


KINDS: dict[str, Any] = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "array": lambda data: np.frombuffer(data, "u1").copy(),
    "constant array": lambda data: np.frombuffer(data, "u1"),
    "matrix": lambda data: np.frombuffer(data, "f4").reshape(64, -1),
    "several": lambda data: {"a": data, "b": [bytearray(data), np.frombuffer(data, "i2")], "c": "text"},
}


def same(got: Any, sent: Any) -> bool:
    if isinstance(sent, dict):
        return [*got] == [*sent] and all(same(got[name], sent[name]) for name in sent)
    if isinstance(sent, list):
        return len(got) == len(sent) and all(map(same, got, sent))
    if isinstance(sent, np.ndarray):
        is_alike = (type(got), got.dtype, got.shape) == (type(sent), sent.dtype, sent.shape)
        return is_alike and got.tobytes() == sent.tobytes() and bool(got.flags.writeable)
    return type(got) is type(sent) and bool(got == sent)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 33, 64, 256, 1024, 4096, 9000])
def test_large_values_of_any_kind_come_back_as_they_were(client: RpcClient, kind: str, size: int) -> None:
    agent = share(client)
    for _ in range(3):
        sent = KINDS[kind](os.urandom(size * KIB))
        assert same(agent.echo(sent), sent)


@pytest.mark.parametrize("size", [20, 100, 300, 5000])
def test_what_comes_to_a_method_is_its_own_to_change(client: RpcClient, size: int) -> None:
    agent = share(client)
    for _ in range(3):
        sent = bytearray(os.urandom(size * KIB))
        got = agent.grow(sent)
        assert (len(got), got[0], got[1:-4]) == (size * KIB + 4, 7, sent[1:])
        got += b"and more"  # here as well
        array = np.zeros(size * KIB, "u1")
        filled = agent.fill(array)
        assert filled.min() == 7
        assert not array.any()
        filled[0] = 1


def test_many_threads_with_values_of_many_sizes_get_their_own(client: RpcClient) -> None:
    agent = share(client)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(40):
            size = (seed * 37 + turn * 101) % 900 * KIB
            if agent.give(seed * 1000 + turn, size) != pattern(seed * 1000 + turn, size):
                wrong.append(seed)
            if agent.echo(pattern(seed, size)) != pattern(seed, size):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_calls_that_are_sent_again_after_the_connection_broke_bring_what_they_had(
    server: RpcAgentServerLauncher, client: RpcClient
) -> None:
    agent, holder = share(client), client.create_agent(Store)
    size = 400 * KIB
    results: list[AsyncResult[Any]] = [holder.first_and_last(pattern(seed, size)) for seed in range(20)]
    for number in range(20):
        if number % 5 == 0:
            with connection_to(ipc_path(server)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        results.append(holder.first_and_last(pattern(100 + number, size)))
        assert agent.give(number, size) == pattern(number, size)  # what was in the memory has others in its place
    agent.open_gate()
    seeds = [*range(20), *range(100, 120)]
    assert [result.result() for result in results] == [
        (size, seed.to_bytes(8, "big"), seed.to_bytes(8, "big")) for seed in seeds
    ]


def test_nothing_is_left_of_a_client_that_is_killed(server: RpcAgentServerLauncher) -> None:
    assert hosts.eventually(lambda: not mappings(server.pid), 10)
    files = len(os.listdir(f"/proc/{server.pid}/fd"))
    code = (
        "import sys; from zmqagents import RpcClient; "
        f"agent = RpcClient({server.host!r}, {server.port!r}).create_agent('Store')\n"
        "for number in range(10**9):\n"
        "    agent.echo(bytes(300_000))\n"
        "    if number == 50: print('goes', flush=True)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "goes\n"
            assert mappings(server.pid) == 1
            child.send_signal(signal.SIGKILL)
    assert hosts.eventually(lambda: not mappings(server.pid), 10)
    assert hosts.eventually(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) <= files, 10)


def test_nothing_is_left_of_a_host_that_is_killed() -> None:
    with host(Store) as launcher, client_of(launcher) as client:
        agent = share(client)
        assert mappings() == 1
        os.kill(launcher.pid or 0, signal.SIGKILL)
        with pytest.raises(ConnectionError):
            agent.echo(bytes(300_000))
        assert hosts.eventually(lambda: not mappings(), 10)


def test_a_forked_child_has_nothing_of_it_and_its_parent_goes_on(client: RpcClient) -> None:
    agent = share(client)
    child = os.fork()
    if not child:
        left = 77
        with contextlib.suppress(BaseException):
            left = mappings()
        os._exit(left)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sent = os.urandom(300 * KIB)
    assert agent.echo(sent) == sent
