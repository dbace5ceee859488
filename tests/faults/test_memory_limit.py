"""A host at its memory limit: what there is no memory for is refused, and the connection goes on."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from actors import client_of, host, within
from hosts import eventually, output_of
from scale import MIB, Memory, glibc_only
from zmqagents import AgentBase, HostBusy, RpcAgentServerLauncher, codec
from zmqagents.wire import messages
from zmtp import Wire, connect_ipc

pytestmark = pytest.mark.timeout(90)


class Tight(AgentBase):
    """Sets how much more address space its host may have."""

    def leave_room(self, room: int | None) -> None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        size = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if room is None else size + room, hard))

    def give(self, size: int) -> bytes:
        return bytes(size)

    def length(self, data: Any) -> int:
        return len(data)


@pytest.fixture
def server() -> Iterator[RpcAgentServerLauncher]:
    with host(Tight, capacity=2) as launcher:
        yield launcher


def test_a_message_for_which_there_is_no_memory_is_refused_and_its_connection_goes_on(
    server: RpcAgentServerLauncher,
) -> None:
    data = bytes(200 * MIB)
    with client_of(server, transport="ipc") as client:
        tight: Any = client.create_agent(Tight)
        assert tight.length(b"1") == 1
        tight.leave_room(64 * MIB)
        start = client.get_server_info()
        for _ in range(2):
            with pytest.raises(HostBusy, match="no memory"), within(10):
                tight.length(data, timeout=9)
            with within(2):
                assert tight.length(b"12") == 2
        assert client.get_server_info()["clients"] == start["clients"]
        assert client.get_server_info()["uptime_s"] > start["uptime_s"]
        tight.leave_room(None)
        assert tight.length(data, timeout=20) == len(data)


def test_others_are_served_while_a_host_has_no_memory_for_one(server: RpcAgentServerLauncher) -> None:
    with client_of(server, transport="ipc") as client, client_of(server, transport="tcp") as other:
        tight: Any = client.create_agent(Tight)
        tight.leave_room(64 * MIB)
        refused = [tight.length.aio(bytes(100 * MIB), timeout=9) for _ in range(2)]
        end = time.monotonic() + 2
        while time.monotonic() < end:
            with within(2):
                assert other.is_alive()
        for result in refused:
            assert isinstance(result.exception(10), HostBusy)
        tight.leave_room(None)


@glibc_only
def test_replies_that_a_client_never_read_leave_no_memory_with_the_host_when_it_is_gone() -> None:
    with host(Tight, capacity=2, resume_s=0.5) as server, client_of(server) as client:
        client.create_agent(Tight, agent_id="a")
        memory = Memory(server.pid)
        for _ in range(3):  # what a later one leaves lies between that of an earlier one
            _ask_and_read_nothing(server, memory, 6_000)
        # Below 64 MiB a host gives nothing back; after looks that gave back little it looks again after 10 and 30 s.
        # Beside it lies what the allocator cannot give back, up to 81 MiB in all. Replies that were kept would be 500.
        assert eventually(lambda: memory.grown < 100, 60), f"{memory.grown:.0f} MiB stay"


def _ask_and_read_nothing(server: RpcAgentServerLauncher, memory: Memory, calls: int) -> None:
    with Wire(connect_ipc(server)) as wire:
        token = wire.hello()
        for number in range(1, calls + 1):
            body = codec.encode_call((20_000 + number * 7919 % 20_000,), {}).payload  # in no order of sizes
            head = messages.header(messages.Kind.CALL, number, token)
            wire.send(head, codec.pack(["a", "give", None, None]), body)
        assert eventually(lambda: memory.grown > 100, 20)


FLOOD = """
import json
from zmqagents.process.memory import Trimmer, resident_bytes
trimmer = Trimmer()
first = resident_bytes()
blocks = [bytes(20_000) for _ in range(10_000)]
kept = blocks[9_990:]
del blocks
before = resident_bytes()
trimmer.look()
print(json.dumps([before - first, resident_bytes() - first]))
"""


@glibc_only
def test_memory_that_is_free_again_after_a_flood_goes_back_to_the_system() -> None:
    grown, left = output_of(FLOOD)
    assert grown > 100 * MIB  # else the allocator has given it back by itself
    assert left < 20 * MIB
