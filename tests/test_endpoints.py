"""The runtime directory, the lock on a socket path, and connection files: real files, locks and processes."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqagents import discovery
from zmqagents.discovery import ConnectionFile, IpcLock
from zmqagents.errors import AddressInUse, ConfigError, LaunchError
from zmqagents.security import private

# A host without a broker: takes the lock, leaves a socket and a connection file, says so, waits for its end.
FAKE_HOST = """
import os, socket, sys, time
from zmqagents import discovery
server_id, port = sys.argv[1], int(sys.argv[2])
path = discovery.ipc_path(server_id)
with discovery.IpcLock(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    record = discovery.ConnectionFile(server_id, "localhost", port, os.getpid(), path, None, "0", time.time())
    discovery.publish(record)
    print("ready", flush=True)
    sys.stdin.read()
    listener.close()
    discovery.withdraw(record)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short runtime directory of the test's own; pytest's tmp_path may be too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="za-", dir="/tmp") as directory:
        monkeypatch.setenv("ZMQAGENTS_RUNTIME", f"{directory}/run")
        yield Path(directory, "run")


@pytest.fixture
def start_host(place: Path) -> Iterator[Callable[[str, int], subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start(server_id: str, port: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", FAKE_HOST, server_id, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def record_of(place: Path, server_id: str = "h1", **changes: object) -> ConnectionFile:
    path = str(place / f"{server_id}.ipc")
    record = ConnectionFile(server_id, "localhost", 5555, os.getpid(), path, "k" * 40, "0.1", time.time())
    return record._replace(**changes)  # type: ignore[arg-type]


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---------------------------------------------------------------- private directories and files


def test_the_runtime_directory_is_made_for_this_user_alone(place: Path) -> None:
    assert discovery.runtime_dir() == place
    assert mode_of(place) == 0o700
    assert discovery.runtime_dir() == place  # and it may be there already


def test_a_runtime_directory_that_others_can_enter_is_refused(place: Path) -> None:
    place.mkdir()
    place.chmod(0o710)
    with pytest.raises(ConfigError, match=rf"chmod 700 {place}"):
        discovery.runtime_dir()


def test_a_runtime_directory_that_is_a_link_is_refused(place: Path) -> None:
    target = place.with_name("target")
    target.mkdir(mode=0o700)
    place.symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        discovery.runtime_dir()


def test_a_runtime_directory_that_is_a_file_is_refused(place: Path) -> None:
    place.touch()
    with pytest.raises(ConfigError, match="not a directory"):
        discovery.runtime_dir()
    with pytest.raises(ConfigError, match="cannot be made"):
        private.private_dir(place / "below")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_runtime_directory_of_another_user_is_refused(place: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, 65534, 65534)
    with pytest.raises(ConfigError, match="belongs to user 65534"):
        discovery.runtime_dir()


def test_the_session_directory_is_used_only_if_it_is_ours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZMQAGENTS_RUNTIME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.parent))
    assert discovery.runtime_dir() == place.parent / "zmqagents"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place / "missing"))
    assert discovery.places() == [Path(f"/tmp/zmqagents-{os.geteuid()}")]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert discovery.places() == [Path(f"/tmp/zmqagents-{os.geteuid()}")]


def test_a_private_file_is_written_whole_and_readable_by_its_owner_only(place: Path) -> None:
    path = discovery.runtime_dir() / "secret"
    old_mask = os.umask(0)
    try:
        private.write_private(path, b"one")
        private.write_private(path, b"two")
    finally:
        os.umask(old_mask)
    assert private.read_private(path) == b"two"
    assert mode_of(path) == 0o600
    assert os.listdir(place) == ["secret"]  # no draft is left


def test_a_file_that_cannot_be_trusted_is_not_read(place: Path) -> None:
    path = discovery.runtime_dir() / "secret"
    private.write_private(path, b"x")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=rf"mode 0640.*chmod 600 {path}"):
        private.read_private(path)
    (place / "link").symlink_to(path)
    with pytest.raises(ConfigError, match="symbolic link"):
        private.read_private(place / "link")
    os.mkfifo(place / "fifo", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):  # and it does not wait for a writer
        private.read_private(place / "fifo")
    private.write_private(path, bytes(private.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        private.read_private(path)
    with pytest.raises(FileNotFoundError):
        private.read_private(place / "missing")


# ---------------------------------------------------------------- paths


def test_a_socket_path_that_no_socket_can_have_is_refused_with_the_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZMQAGENTS_RUNTIME", str(place.parent / ("d" * 100)))
    with pytest.raises(ConfigError, match="ZMQAGENTS_RUNTIME to a shorter directory"):
        discovery.ipc_path("h1")


def test_the_longest_path_that_is_allowed_can_be_bound(place: Path) -> None:
    room = discovery.MAX_IPC_PATH_BYTES - len(str(place)) - 1
    path = str(place / ("x" * room))
    with IpcLock(path), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert len(os.fsencode(path)) == discovery.MAX_IPC_PATH_BYTES
    with pytest.raises(ConfigError), IpcLock(path + "x"):
        pass


@given(st.text(), st.text())
def test_every_server_id_has_a_file_name_of_its_own(one: str, other: str) -> None:
    name = discovery.file_name(one)
    assert os.path.basename(name) == name
    assert not name.startswith(".")
    assert 0 < len(name) <= discovery.MAX_NAME_CHARS
    assert (name == discovery.file_name(other)) == (one == other)


# ---------------------------------------------------------------- the lock


def test_a_second_host_on_a_path_gets_address_in_use(place: Path) -> None:
    path = discovery.ipc_path("h1")
    with IpcLock(path) as first:
        with pytest.raises(AddressInUse, match=path) as caught, IpcLock(path):
            pass
        assert isinstance(caught.value, (LaunchError, OSError))
        assert first.is_held
    with IpcLock(path):  # and after its end the path is free
        pass
    assert os.listdir(place) == []


@pytest.mark.program
def test_a_second_process_on_a_path_gets_address_in_use(
    start_host: Callable[[str, int], subprocess.Popen[str]],
) -> None:
    start_host("h1", 5001)
    with pytest.raises(AddressInUse), IpcLock(discovery.ipc_path("h1")):
        pass


@pytest.mark.program
def test_the_socket_of_a_killed_host_is_removed_by_the_next_one(
    place: Path, start_host: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    process = start_host("h1", 5001)
    process.kill()
    process.wait()
    path = discovery.ipc_path("h1")
    assert os.path.exists(path)
    with IpcLock(path):
        assert not os.path.exists(path)


def test_something_that_is_no_socket_is_never_removed(place: Path) -> None:
    path = Path(discovery.ipc_path("h1"))
    path.write_text("precious")
    lock = IpcLock(path)
    with pytest.raises(AddressInUse, match="no socket"):
        lock.acquire()
    assert not lock.is_held
    assert path.read_text() == "precious"


def test_a_lock_in_a_directory_that_others_can_enter_is_refused(place: Path) -> None:
    place.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"), IpcLock(place / "h1.ipc"):
        pass


def test_a_lock_file_that_its_holder_removed_gives_no_right(place: Path) -> None:
    path = discovery.ipc_path("h1")
    old = IpcLock(path)
    old.acquire()
    fd = os.open(old.lock_path, os.O_RDWR)  # a newcomer has it open ...
    try:
        old.release()  # ... when the holder removes it and goes
        with IpcLock(path):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it gets a lock, of a file without a name
            assert not discovery.is_at(fd, old.lock_path)
    finally:
        os.close(fd)


@pytest.mark.program
def test_locks_in_turn_never_overlap(place: Path) -> None:
    """Four processes take the lock 25 times each, and each writes a file that must not be there already."""
    path = discovery.ipc_path("h1")
    script = f"""
import os
from zmqagents.discovery import IpcLock
for _ in range(25):
    with IpcLock({path!r}, wait_s=60):
        os.close(os.open({str(place / "inside")!r}, os.O_CREAT | os.O_EXCL))
        os.unlink({str(place / "inside")!r})
"""
    processes = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0]


@pytest.mark.program
def test_a_forked_child_does_not_keep_the_lock(place: Path) -> None:
    script = f"""
import os, sys
from zmqagents.discovery import IpcLock
lock = IpcLock({discovery.ipc_path("h1")!r})
lock.acquire()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    assert not lock.is_held
    lock.release()  # must not touch the files of its parent
    print("child", os.getpid(), flush=True)
    os.close(write)
    os.read(read, 1)  # lives on
    os._exit(0)
sys.stdin.read()
os._exit(0)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline().split()[1])
        with pytest.raises(AddressInUse), IpcLock(discovery.ipc_path("h1")):
            pass
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # still there
            with IpcLock(discovery.ipc_path("h1")):
                pass
        finally:
            os.kill(child, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------- connection files


@pytest.mark.program
def test_a_live_host_is_found_by_each_name_of_this_machine(
    place: Path, start_host: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    process = start_host("h1", 5001)
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]", socket.gethostname()):
        record = discovery.find_host(host, 5001)
        assert record is not None
        assert (record.server_id, record.pid, record.port) == ("h1", process.pid, 5001)
    assert discovery.find_host("localhost", 5002) is None
    assert discovery.find_host("192.0.2.1", 5001) is None  # TEST-NET-1 of RFC 5737: nobody's
    assert mode_of(place / "h1.json") == 0o600


@pytest.mark.program
def test_a_host_that_ends_withdraws_all_its_files(
    place: Path, start_host: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    process = start_host("h1", 5001)
    assert sorted(os.listdir(place)) == ["h1.ipc", "h1.ipc.lock", "h1.json"]
    process.communicate()
    assert process.returncode == 0
    assert os.listdir(place) == []


@pytest.mark.program
def test_a_killed_host_is_not_found_and_its_files_are_removed(
    place: Path, start_host: Callable[[str, int], subprocess.Popen[str]]
) -> None:
    dead, _ = start_host("dead", 5001), start_host("alive", 5002)
    dead.kill()
    dead.wait()
    assert discovery.find_host("localhost", 5001) is None
    assert [record.server_id for record in discovery.list_hosts()] == ["alive"]
    assert sorted(os.listdir(place)) == ["alive.ipc", "alive.ipc.lock", "alive.json"]


def test_a_pid_that_lives_again_does_not_make_a_dead_host_live(place: Path) -> None:
    discovery.publish(record_of(place))  # our own pid, but nobody holds the lock
    assert discovery.list_hosts() == []
    assert os.listdir(place) == []


@pytest.mark.program
def test_a_held_lock_with_a_dead_pid_is_ignored_but_left_alone(place: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record = record_of(place, pid=gone.pid)
    with IpcLock(record.ipc):
        discovery.publish(record)
        assert discovery.list_hosts() == []
        assert record.path.exists()


def test_hosts_are_listed_oldest_first_and_the_newest_answers_for_a_shared_port(place: Path) -> None:
    old, new = record_of(place, "old", started=1.0), record_of(place, "new", started=2.0)
    with IpcLock(old.ipc), IpcLock(new.ipc):
        discovery.publish(new)
        discovery.publish(old)
        assert discovery.list_hosts() == [old, new]
        assert discovery.find_host("localhost", 5555) == new


def test_a_host_is_found_by_the_name_it_was_started_with(place: Path) -> None:
    record = record_of(place, host="agents.example.org")
    with IpcLock(record.ipc):
        discovery.publish(record)
        assert discovery.find_host("agents.example.org", 5555) == record
        assert discovery.find_host("other.example.org", 5555) is None


def test_a_host_without_tcp_is_listed_but_has_no_port_to_be_found_by(place: Path) -> None:
    record = record_of(place, port=None, server_key=None)
    with IpcLock(record.ipc):
        discovery.publish(record)
        assert discovery.list_hosts() == [record]
        assert discovery.find_host("localhost", 5555) is None


def test_an_id_that_is_no_file_name_still_works(place: Path) -> None:
    server_id = "../we ird/" + "é" * 300
    path = discovery.ipc_path(server_id)
    record = record_of(place, server_id=server_id, ipc=path)
    with IpcLock(path):
        assert discovery.publish(record).parent == place
        assert discovery.list_hosts() == [record]


def test_connection_files_of_wrong_mode_or_shape_are_ignored_with_one_debug_line(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = record_of(place)
    with IpcLock(good.ipc):
        discovery.publish(good)
        fields = good._asdict()
        bad = {
            "garbage": b"\xff{",
            "deep": b"[" * 60_000,
            "list": b"[]",
            "missing": json.dumps({"server_id": "missing"}).encode(),
            "boolean": json.dumps(fields | {"server_id": "boolean", "port": True}).encode(),
            "negative": json.dumps(fields | {"server_id": "negative", "pid": -1}).encode(),
            "endless": json.dumps(fields | {"server_id": "endless", "grace_s": math.inf}).encode(),
            "elsewhere": json.dumps(fields | {"server_id": "elsewhere", "ipc": "/tmp/elsewhere.ipc"}).encode(),
            "renamed": json.dumps(fields).encode(),
        }
        for name, data in bad.items():
            private.write_private(place / f"{name}.json", data)
        private.write_private(place / "open.json", json.dumps(fields | {"server_id": "open"}).encode())
        (place / "open.json").chmod(0o644)
        (place / "link.json").symlink_to(good.path)
        with caplog.at_level(logging.DEBUG, logger="zmqagents.discovery"):
            assert discovery.list_hosts() == [good]
        assert len(caplog.records) == len(bad) + 2
        for name in bad:
            assert any(f"{name}.json" in line for line in caplog.messages)


def test_a_record_keeps_all_its_fields_through_a_file_and_ignores_those_of_later_versions(place: Path) -> None:
    record = record_of(place)
    later = json.dumps(json.loads(record.to_json()) | {"invented": [1]}).encode()
    assert ConnectionFile.from_json(later) == record


def test_a_record_of_a_host_that_does_not_tell_its_grace_is_one_all_the_same(place: Path) -> None:
    record = record_of(place, grace_s=3.5)
    fields = json.loads(record.to_json())
    assert fields.pop("grace_s") == 3.5
    assert ConnectionFile.from_json(json.dumps(fields).encode()) == record._replace(grace_s=None)


def test_a_runtime_directory_that_is_not_private_has_no_hosts(place: Path) -> None:
    record = record_of(place)
    with IpcLock(record.ipc):
        discovery.publish(record)
        place.chmod(0o755)
        assert discovery.list_hosts() == []
        place.chmod(0o700)
        assert discovery.list_hosts() == [record]


# ---------------------------------------------------------------- names of this machine


@pytest.mark.parametrize("host", ["LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "0.0.0.0", "::1"])
def test_these_names_mean_this_machine(host: str) -> None:
    assert private.is_this_machine(host)


@pytest.mark.parametrize("host", ["", " ", "example.org", "192.0.2.1", "2001:db8::1", "localhost.example.org", "127"])
def test_these_names_do_not_mean_this_machine(host: str) -> None:
    assert not private.is_this_machine(host)


def test_the_host_name_means_this_machine_long_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box.Example.org")
    assert private.is_this_machine("box")
    assert private.is_this_machine("box.example.ORG")
    assert not private.is_this_machine("example")
