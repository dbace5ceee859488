"""The files that a host is found by are removed, or become another's, while it lives."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import Worker, eventually
from zmqagents import AddressInUse, RpcAgentServerLauncher, RpcClient, discovery
from zmqagents.config import BrokerConfig
from zmqagents.server import serve

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[discovery.ConnectionFile]:
    """A host in this process that looks after its files all the time."""
    monkeypatch.setattr(serve, "LOOK_EVERY_S", 0.1)
    server = RpcAgentServerLauncher(custom_agent_classes=[Worker], local_mode=True, server_id="kept")
    thread = threading.Thread(target=lambda: server.launch(in_subprocess=False))
    thread.start()
    try:
        assert eventually(
            lambda: server.is_running and discovery.find_host("localhost", server.port or 0) is not None, 10
        )
        found = discovery.find_host("localhost", server.port or 0)
        assert found is not None
        yield found
    finally:
        server.shutdown(0)
        thread.join()


def _files(record: discovery.ConnectionFile) -> dict[str, Path]:
    return {"lock": Path(f"{record.ipc}.lock"), "socket": Path(record.ipc), "json": record.path}


@pytest.mark.parametrize("lost", [("lock",), ("socket",), ("json",), ("lock", "socket", "json")])
def test_a_file_that_is_removed_is_made_again_and_said(
    record: discovery.ConnectionFile, lost: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with RpcClient("localhost", record.port, transport="ipc") as before:
        agent = before.create_agent(Worker)
        for name in lost:
            _files(record)[name].unlink()
        assert eventually(lambda: all(_files(record)[name].exists() for name in lost), 5)
        assert eventually(lambda: record in discovery.list_hosts(), 5)
        with pytest.raises(AddressInUse):
            discovery.IpcLock(record.ipc).acquire()
        assert agent.echo("goes on") == "goes on"
    with RpcClient("localhost", record.port, transport="ipc") as after:
        assert after.get_agent(agent.agent_id).echo("found") == "found"
    assert eventually(lambda: all(str(_files(record)[name]) in caplog.text for name in lost), 5)


def test_the_directory_that_is_removed_with_all_that_is_in_it_is_made_again(
    record: discovery.ConnectionFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = record.path.parent
    place.rename(tmp_path / "gone")
    try:
        assert eventually(lambda: record in discovery.list_hosts(), 5)
        with RpcClient("localhost", record.port, transport="ipc") as client:
            assert client.is_alive()
    finally:
        for left in (tmp_path / "gone").iterdir():
            if not (place / left.name).exists():
                left.rename(place / left.name)


def test_the_files_stay_young(record: discovery.ConnectionFile) -> None:
    def ages() -> list[float]:
        return [path.stat().st_mtime for path in _files(record).values()]

    for path in _files(record).values():
        os.utime(path, (1000, 1000))
    assert eventually(lambda: min(ages()) > 1000, 5)


def test_a_lock_that_has_become_another_hosts_is_said_and_left_to_it(
    record: discovery.ConnectionFile, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[discovery.IpcLock] = []

    def taken() -> bool:
        """In the moment between the look of the host and the next."""
        _files(record)["lock"].unlink(missing_ok=True)
        lock = discovery.IpcLock(record.ipc, wait_s=0)
        try:
            lock.acquire()
        except AddressInUse:
            return False
        held.append(lock)
        return True

    with caplog.at_level(logging.ERROR):
        assert eventually(taken, 10)
        try:
            assert eventually(lambda: "another host has taken the lock" in caplog.text, 5)
            assert caplog.text.count("another host has taken the lock") == 1
        finally:
            held[0].release()
    assert eventually(lambda: record in discovery.list_hosts(), 5)  # and it takes its place again


def test_a_host_that_ends_leaves_alone_what_is_another_hosts_by_now() -> None:
    path = discovery.ipc_path("taken-over")
    former, now = discovery.IpcLock(path), discovery.IpcLock(path)
    former.acquire()
    Path(former.lock_path).unlink()
    with now, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        former.release()
        assert now.is_in_place
        assert Path(path).exists()


def test_a_host_that_is_ending_makes_no_file_again(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        broker = serve.build(BrokerConfig(local_mode=True, private=True), [Worker])
        path = Path(broker.bind().ipc)
        router = threading.Thread(target=broker.run)
        router.start()
        broker.request_stop(0)
        while not broker.finished.is_set():  # from another thread, which reads the inbox itself at the end
            broker.renew_files()
        router.join()
        assert list(path.parent.glob(f"{path.stem}*")) == []
    assert caplog.text == ""
