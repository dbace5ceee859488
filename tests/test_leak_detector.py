"""The fixture that fails a test which leaves something behind: each kind of leak is really seen."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import zmq

import leaks
from hosts import eventually

ROOT = Path(__file__).parents[1]
WAIT_FOR_STDIN = [sys.executable, "-c", "import sys; sys.stdin.read()"]

Look = Callable[[], list[str]]


@pytest.fixture
def left(runtime_dir: Path) -> Look:
    """What is there that was not there before the test, without waiting for it to go away."""
    before = leaks.snapshot(runtime_dir)
    return lambda: leaks.leftovers(before, runtime_dir, settle_s=0.0)


def test_a_test_that_does_nothing_leaves_nothing(left: Look) -> None:
    assert left() == []


def test_a_thread_left_running_is_seen_even_if_it_is_a_daemon(left: Look) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="forgotten", daemon=True)
    thread.start()
    [found] = left()
    assert found.startswith("thread forgotten (Thread, ident ")
    end.set()
    thread.join()
    assert left() == []


@pytest.mark.program
def test_a_child_process_left_running_is_seen_and_so_is_the_pipe_to_it(left: Look) -> None:
    with subprocess.Popen(WAIT_FOR_STDIN, stdin=subprocess.PIPE) as child:
        process, pipe = sorted(left(), reverse=True)
        assert process.startswith(f"process {child.pid}: ")
        assert pipe.startswith("descriptor of pipe:[")
    assert left() == []


@pytest.mark.program
def test_a_dead_child_that_nobody_waited_for_is_seen(left: Look) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is dead now, and still not waited for
    [found] = left()
    assert found.startswith(f"process {child.pid} (")
    assert found.endswith("has ended and nobody waited for it")
    child.wait()
    assert left() == []


@pytest.mark.program
def test_a_process_that_is_no_child_any_more_is_seen_until_it_ends(left: Look, runtime_dir: Path) -> None:
    orphaning = (
        "import subprocess, sys\n"
        "orphan = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True,\n"
        "                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "print(orphan.pid)\n"
    )
    pid = int(subprocess.run([sys.executable, "-c", orphaning], check=True, capture_output=True).stdout)
    try:
        assert psutil.Process(pid).ppid() != os.getpid()
        # A process that has just begun its program has no environment yet, by which it is known.
        assert eventually(lambda: any(found.startswith(f"process {pid}: ") for found in left()), 10)
        assert pid in leaks.own_processes(runtime_dir)
    finally:
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def a_plain_socket(tmp_path: Path) -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)):
        yield


@contextlib.contextmanager
def a_socket_pair(tmp_path: Path) -> Iterator[None]:
    one, other = socket.socketpair()
    with one, other:
        yield


@contextlib.contextmanager
def an_open_file(tmp_path: Path) -> Iterator[None]:
    with (tmp_path / "open").open("w"):
        yield


@contextlib.contextmanager
def a_pipe(tmp_path: Path) -> Iterator[None]:
    ends = os.pipe()
    yield
    for end in ends:
        os.close(end)


@pytest.mark.parametrize(
    ("opened", "count", "kind"),
    [(a_plain_socket, 1, "socket:["), (a_socket_pair, 2, "socket:["), (an_open_file, 1, "/"), (a_pipe, 2, "pipe:[")],
)
def test_an_open_descriptor_is_seen(
    left: Look, tmp_path: Path, opened: Callable[[Path], contextlib.AbstractContextManager[None]], count: int, kind: str
) -> None:
    with opened(tmp_path):
        found = left()
        assert len(found) == count
        assert all(text.startswith(f"descriptor of {kind}") for text in found)
    assert left() == []


def test_an_open_zeromq_socket_is_seen_although_its_context_is_known(runtime_dir: Path) -> None:
    # The context starts its threads with its first socket, and closes a socket's descriptor some time after the socket.
    with zmq.Context() as context, context.socket(zmq.PAIR):
        before = leaks.snapshot(runtime_dir)
        with context.socket(zmq.DEALER):
            assert leaks.leftovers(before, runtime_dir, settle_s=0.0) == ["descriptor of anon_inode:[eventfd]"]
        assert leaks.leftovers(before, runtime_dir) == []


def test_a_zeromq_context_that_was_not_terminated_is_seen_by_its_threads(left: Look, runtime_dir: Path) -> None:
    before = leaks.snapshot(runtime_dir)
    with zmq.Context() as context:
        context.socket(zmq.PAIR).close()
        expected = {f"thread ZMQbg/{name} of a ZeroMQ context" for name in ("Reaper", "IO/0")}
        deadline = time.monotonic() + 10
        while not expected <= set(left()):  # the threads are there at once, and give themselves their names
            assert time.monotonic() < deadline
    assert leaks.leftovers(before, runtime_dir) == []


def test_sending_without_copying_is_no_leak_because_its_thread_is_there_before(left: Look, runtime_dir: Path) -> None:
    before = leaks.snapshot(runtime_dir)
    leaks.warm_up()
    assert leaks.leftovers(before, runtime_dir) == []


def test_a_file_in_the_runtime_directory_is_seen(left: Look, runtime_dir: Path) -> None:
    path = runtime_dir / "host.json"
    path.touch()
    assert left() == [f"file {path}"]
    path.unlink()


def test_what_ends_a_little_later_is_waited_for(runtime_dir: Path) -> None:
    before = leaks.snapshot(runtime_dir)
    timer = threading.Timer(0.2, lambda: None)
    timer.start()
    assert leaks.leftovers(before, runtime_dir, settle_s=0.0) != []
    assert leaks.leftovers(before, runtime_dir, settle_s=10.0) == []


@pytest.mark.program
def test_the_fixture_fails_just_the_test_that_leaks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    support = ROOT / "tests" / "support"
    for source in (ROOT / "conftest.py", support / "leaks.py", support / "scale.py", support / "stand_in.py"):
        shutil.copy(source, pytester.path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(
        """
        import socket

        kept = []

        def test_before():
            socket.socket().close()

        def test_leaking():
            kept.append(socket.socket())

        def test_after():
            kept.pop().close()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_leaking*", "the test left behind:", "  descriptor of socket:*"]
    )


def test_the_session_has_directories_of_its_own_and_short_ones(runtime_dir: Path) -> None:
    for name in ("ZMQAGENTS_KEYS", "ZMQAGENTS_RUNTIME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        assert os.environ[name].startswith("/tmp/za")
    assert len(str(runtime_dir)) <= 40  # of the 107 bytes of an ipc path, the rest is for the socket's name
