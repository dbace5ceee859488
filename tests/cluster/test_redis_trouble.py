"""Real hosts on a Redis that is away, slow, full, read-only, locked, or whose clock is set: nothing hangs or dies."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cluster_hosts import Hosts, hosts_on
from hosts import eventually, seconds_of
from redis_server import RedisServer, running_redis
from relay import Relay
from scale import LATE_S, linux_only, pick
from zmqagents import RpcClient
from zmqagents.errors import CallLost, StoreError, StoreUnavailable

pytestmark = [pytest.mark.program, pytest.mark.timeout(180), linux_only("CLOCK_BOOTTIME")]

PATIENCE_S = 2.0
ENDS_WITHIN_S = PATIENCE_S + 6  # with a loaded machine's time on top


class Plain:
    """An agent without a name on the first host, which must not notice."""

    def __init__(self, hosts: Hosts, stack: contextlib.ExitStack) -> None:
        client = stack.enter_context(RpcClient("127.0.0.1", hosts.launchers[0].port))
        self._agent: Any = client.create_agent("Forgetful", agent_id="plain")
        self._agent.call()

    def look(self) -> None:
        assert seconds_of(self._agent.call) < 0.5 + LATE_S, "an agent without a name has noticed"


def incarnations(hosts: Hosts) -> list[str]:
    return [str(caller.status()["incarnation"]) for caller in hosts.callers]


def ends_in_a_sentence(call: Callable[[], object]) -> None:
    """A call without a Redis ends in time and says why."""
    errors: list[Exception] = []

    def ask() -> None:
        try:
            call()
        except (StoreError, CallLost) as exc:
            errors.append(exc)

    assert seconds_of(ask) < ENDS_WITHIN_S
    assert errors, "there is no trouble"
    assert "Redis" in str(errors[0])


def trouble(hosts: Hosts, begin: Callable[[], object], end: Callable[[], object], stays_s: float = 0.0) -> None:
    """Calls end in time while there is trouble, plain agents do not notice it, and all is well soon after its end."""
    before = incarnations(hosts)
    with contextlib.ExitStack() as stack:
        plain = Plain(hosts, stack)
        assert hosts.callers[0].call("Account/here", "add", 1) == 1
        begin()
        gone = time.monotonic()
        ends_in_a_sentence(lambda: hosts.callers[0].call("Account/here", "add", 1))
        plain.look()
        ends_in_a_sentence(lambda: hosts.callers[0].call("Account/new", "add", 1))
        plain.look()
        while time.monotonic() < gone + stays_s:
            plain.look()
            time.sleep(0.2)
        end()
        back = time.monotonic()
        assert eventually(lambda: _answers(hosts), 20)
        assert time.monotonic() - back < 1 + 2 * LATE_S, "it takes too long until hosts serve again"
        assert hosts.callers[0].call("Account/here", "add", 1) == 3, "what was to be saved is not kept in order"
        plain.look()
    assert incarnations(hosts) == before, "somebody was declared dead"


def _answers(hosts: Hosts) -> bool:
    with contextlib.suppress(StoreUnavailable, CallLost):
        return all(caller.call("Account/new", "add", 1, timeout=5) for caller in hosts.callers)
    return False


@pytest.fixture
def kept() -> Iterator[RedisServer]:
    with running_redis(appendonly="yes") as server:
        yield server


def test_redis_is_lost_and_back(kept: RedisServer) -> None:
    with hosts_on(kept, 2, lease_s=pick(2.0, 5.0)) as hosts:
        trouble(hosts, kept.kill, kept.start, stays_s=pick(5.0, 30.0))


def test_redis_is_full_and_has_room_again(kept: RedisServer) -> None:
    def set_memory(limit: int) -> None:
        with kept.client as client:
            client.config_set("maxmemory", limit)

    with hosts_on(kept, 2, lease_s=3.0) as hosts:
        trouble(hosts, lambda: set_memory(1), lambda: set_memory(0), stays_s=4.0)


def test_redis_is_a_replica_for_a_while(kept: RedisServer) -> None:
    def follow(*whom: Any) -> None:
        with kept.client as client:
            client.execute_command("REPLICAOF", *whom)

    with hosts_on(kept, 2, lease_s=3.0) as hosts:  # of a server that is not there, so that nothing is copied
        trouble(hosts, lambda: follow("127.0.0.1", 1), lambda: follow("NO", "ONE"), stays_s=4.0)


def test_the_password_of_redis_is_another_one_for_a_while(kept: RedisServer) -> None:
    def lock(password: str, known: str) -> None:
        with redis.Redis(unix_socket_path=str(kept.socket), password=known or None) as client:
            client.config_set("requirepass", password)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with hosts_on(kept, 2, lease_s=3.0) as hosts:
        trouble(hosts, lambda: lock("hidden", ""), lambda: lock("", "hidden"), stays_s=4.0)


def test_redis_that_takes_200_ms_for_each_command_costs_time_and_nothing_else(kept: RedisServer) -> None:
    with Relay(kept.port) as relay, contextlib.ExitStack() as stack:
        hosts = stack.enter_context(hosts_on(kept, 2, lease_s=5.0, redis_url=f"redis://127.0.0.1:{relay.port}"))
        before, plain = incarnations(hosts), Plain(hosts, stack)
        for number in range(4):
            hosts.callers[0].call(f"Account/slow-{number}", "add", 1)
        relay.delay_s = 0.1
        for number in range(8):
            begun = time.monotonic()
            hosts.callers[number % 2].call(f"Account/slow-{number}", "add", 1)
            assert time.monotonic() - begun < 3 + LATE_S
            plain.look()
        time.sleep(5)  # a lease
        assert incarnations(hosts) == before, "somebody was declared dead"
        relay.delay_s = 0.0
        assert hosts.callers[0].call("Account/slow-0", "add", 1) == 3


# Gives a program the time of day plus the seconds in a file, which may change while it runs.
SHIM = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
static volatile int *step;
__attribute__((constructor)) static void begin(void) {
    int fd = open(getenv("CLOCK_STEP"), O_RDONLY);
    step = mmap(0, sizeof(int), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (step) now->tv_sec += *step;
    return failed;
}
"""


@contextlib.contextmanager
def stepped_redis(place: Path) -> Iterator[tuple[RedisServer, Callable[[int], None]]]:
    """A Redis, and what sets its clock so many seconds off."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here, to give Redis another clock")
    source, library, step = place / "shim.c", place / "shim.so", place / "step"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    step.write_bytes(struct.pack("i", 0))

    def set_off(seconds: int) -> None:
        with step.open("r+b") as file:
            file.write(struct.pack("i", seconds))

    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(library))
            patch.setenv("CLOCK_STEP", str(step))
            server = stack.enter_context(running_redis())
        yield server, set_off


@pytest.mark.parametrize("step_s", [60, -60])
def test_a_step_of_the_clock_of_redis_kills_nobody(step_s: int, tmp_path: Path) -> None:
    with stepped_redis(tmp_path) as (server, set_off), hosts_on(server, 2, lease_s=2.0) as hosts:
        before = incarnations(hosts)
        for caller in hosts.callers:
            caller.call("Account/clocked", "add", 1)
        with server.client as client:
            now = client.time()[0]
            set_off(step_s)
            assert abs(client.time()[0] - now - step_s) < 20, "the clock is not another one"
        for number in range(12):
            time.sleep(0.5)  # three leases in all
            assert hosts.callers[number % 2].call("Account/clocked", "add", 1) == 3 + number
            assert hosts.callers[number % 2].call(f"Account/stepped-{number}", "add", 1) == 1
            assert hosts.callers[0].status()["members"] == 2
        assert incarnations(hosts) == before, "somebody was declared dead"
