"""Every test, and every example of README.rst and docs/, runs apart from the user's files and leaves nothing behind.

This file is at the top because README.rst is. The session gets directories of its own, by environment
variables, so that the processes which tests start use them too. `leaks` says what counts as left behind;
the check runs after every test, and once more at the end for what wider fixtures held.

A consequence: this process always has a live ZeroMQ context and more than one thread, as a notebook has.
A test that needs a clean process (to fork, say) runs a script in a fresh interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import leaks
import scale
import stand_in

pytest_plugins = ["pytester"]  # for the tests of the leak detector itself

# No deadline: on shared cores it measures the neighbours. In CI the same examples each time: what fails there
# fails again at the desk; new ones are looked for at the desks. `make soak` looks at more.
hypothesis.settings.register_profile(
    "zmqagents", deadline=None, derandomize="CI" in os.environ, max_examples=scale.pick(40, 100)
)
hypothesis.settings.load_profile("zmqagents")

# /tmp, not $TMPDIR or pytest's own: the path of an ipc socket has room for 107 bytes.
_HOME = Path(tempfile.mkdtemp(dir="/tmp", prefix="za"))
_ENVIRONMENT = {
    "XDG_CONFIG_HOME": _HOME / "config",
    "XDG_RUNTIME_DIR": _HOME / "xdg",
    "ZMQAGENTS_KEYS": _HOME / "keys",
    "ZMQAGENTS_RUNTIME": _HOME / "run",
}


def pytest_configure(config: pytest.Config) -> None:
    """Before the first import of the package: nothing may have read the user's own settings."""
    # Started in the background of a shell, this process and its children would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("AS_SERVER_")]:
        del os.environ[name]
    for name, path in _ENVIRONMENT.items():
        os.environ[name] = str(path)
    for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "ZMQAGENTS_RUNTIME"):  # keys: the package makes its own
        _ENVIRONMENT[name].mkdir(mode=0o700)
    stand_ins = _HOME / "stand_ins"
    stand_ins.mkdir()
    for module in (pytest, hypothesis):
        (stand_ins / f"{module.__name__}.py").symlink_to(stand_in.__file__)
    sys.path.insert(0, str(stand_ins))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there for all the session is not looked through by the collections that tests ask for."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def runtime_dir() -> Path:
    """The directory in which hosts of this session put sockets and connection files."""
    return _ENVIRONMENT["ZMQAGENTS_RUNTIME"]


@pytest.fixture(scope="session", autouse=True)
def _the_session_leaves_nothing_behind(runtime_dir: Path) -> Iterator[None]:
    leaks.warm_up()
    before = leaks.snapshot(runtime_dir)
    yield
    left = leaks.leftovers(before, runtime_dir)
    for pid in leaks.own_processes(runtime_dir):  # a failed test must not occupy the machine
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left:
        pytest.fail("the session left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _a_test_leaves_nothing_behind(_the_session_leaves_nothing_behind: None, runtime_dir: Path) -> Iterator[None]:
    before = leaks.snapshot(runtime_dir)
    yield
    left = leaks.leftovers(before, runtime_dir)
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)
