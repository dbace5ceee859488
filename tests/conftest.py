"""The host, client and agents that tests of calls need; a module with other needs defines its own by these names."""

from __future__ import annotations

import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import redis_server
from actors import Desk, Latch, client_of, host
from registrations import forgotten
from zmqagents import AgentProxy, RpcAgentServerLauncher, RpcClient
from zmqagents.server import private_host


@pytest.fixture(scope="session", autouse=True)
def _quick_starts_no_program(pytestconfig: pytest.Config) -> None:
    """In `make quick` a test that starts one in spite of it is told how to be left out."""
    if pytestconfig.option.markexpr == "not program":
        sys.addaudithook(_refuse_programs)


def _refuse_programs(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and Path(arguments[0]).name != "uname":  # openai asks it for the processor
        raise RuntimeError("this test starts a program: mark it `program`, or move it to tests/system")


@pytest.fixture(scope="module")
def server() -> Iterator[RpcAgentServerLauncher]:
    """A host for the tests of one module."""
    with host(capacity=8) as launcher:
        yield launcher


@pytest.fixture(scope="module")
def client(server: RpcAgentServerLauncher) -> Iterator[RpcClient]:
    """A client of `server`, connected."""
    with client_of(server) as client:
        client.is_alive()
        yield client


@pytest.fixture
def registry() -> Iterator[None]:
    """What the test registers with the codec is forgotten after it."""
    with forgotten():
        yield


@pytest.fixture
def private() -> Iterator[None]:
    """The private host that the test starts ends with it."""
    yield
    private_host.stop_private_host()


@pytest.fixture
def desk(client: RpcClient) -> AgentProxy:
    """A new agent on `server`."""
    proxy: Any = client.create_agent(Desk)
    return proxy


@pytest.fixture
def latch(client: RpcClient) -> Iterator[AgentProxy]:
    """An agent that holds calls until it is released, at the latest at the end of the test."""
    latch: Any = client.create_agent(Latch)
    yield latch
    latch.release()


@pytest.fixture
def path() -> Iterator[str]:
    """Where a Unix socket may be: its path may have 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="za") as directory:
        yield f"{directory}/s"


@pytest.fixture
def listener(path: str) -> Iterator[socket.socket]:
    """A bare socket at `path`, in the place of a host."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        yield listener


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[redis_server.RedisServer | None]:
    """One Redis for all tests that do it no harm; None if there is none to be had."""
    if not redis_server.binaries():
        yield None
        return
    with redis_server.running_redis() as server:
        yield server
