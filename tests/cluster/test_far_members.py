"""Members that reach each other by TCP alone, as on several machines: no host finds another one's Unix socket."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import psutil
import pytest

from cluster_hosts import Hosts, result_of
from hosts import eventually
from redis_server import RedisServer
from scale import linux_only
from zmqagents.errors import CallCancelled
from zmqagents.security.keys import KeyStore
from zmqagents.wire.messages import Op

pytestmark = [pytest.mark.program, pytest.mark.timeout(120), linux_only("CLOCK_BOOTTIME")]


@pytest.fixture
def far(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Three hosts with one key store, each at an address and with a runtime directory of its own."""
    monkeypatch.setenv("ZMQAGENTS_KEYS", str(KeyStore.open().path))
    hosts, places = Hosts(redis, local_mode=False), []
    try:
        for number in (2, 3, 4):
            places.append(tempfile.mkdtemp(dir="/tmp", prefix="zafar"))
            monkeypatch.setenv("ZMQAGENTS_RUNTIME", places[-1])
            hosts.start(host=f"127.0.0.{number}")
        monkeypatch.delenv("ZMQAGENTS_RUNTIME")
        assert eventually(lambda: hosts.all_know(3), 20)
        yield hosts
    finally:
        hosts.close()
        for place in places:
            shutil.rmtree(place, ignore_errors=True)


def peers_of(hosts: Hosts, index: int) -> set[int]:
    """The ports of the other hosts to which a host has connected by TCP."""
    others = {launcher.port for launcher in hosts.launchers} - {hosts.launchers[index].port}
    found = psutil.Process(hosts.launchers[index].pid).net_connections(kind="tcp")
    return {each.raddr.port for each in found if each.raddr and each.raddr.port in others}


def test_members_on_several_machines_pass_calls_streams_moves_and_cancels_on_by_tcp(far: Hosts) -> None:
    names = [f"Account/far-{number}" for number in range(9)]
    for name in names:
        assert [caller.call(name, "add", 1) for caller in far.callers] == [1, 2, 3]
    homes = {name: far.home_of(name) for name in names}
    assert len(set(homes.values())) > 1, "placement has put all on one host"
    assert any(peers_of(far, index) for index in range(3)), "no host has a connection to another by TCP"
    for name in names[:3]:
        for caller in far.callers:
            assert caller.stream(name, "count", 100) == list(range(100))
    name = next(name for name in names if homes[name] != 0)
    waiter = far.callers[0].begin(name, "slow", 60, timeout=100)
    at_home = far.callers[homes[name]]
    assert eventually(lambda: at_home.running() == 1, 20)
    far.callers[0].cancel(waiter)
    with pytest.raises(CallCancelled):
        result_of(waiter)
    assert eventually(lambda: at_home.running() == 0, 20)
    far.callers[0].ask("", Op.MOVE, id=f"cluster:shop/{name}")
    assert [caller.call(name, "balance") for caller in far.callers] == [3, 3, 3]
    assert far.home_of(name) != homes[name]
