"""Processes that a host runs in: how one is started, what it reports, its life line, its end.

Two ways to start one, and either runs the same code:

* `fork`, where that is safe (`why_not_fork`: Linux, one thread in the process, no running event loop, nothing
  patched by gevent; a live ZeroMQ context has threads): a few milliseconds, and every class is there as it is;
* `spawn`, a new interpreter with this one's flags and ``sys.path``. The settings and the classes are on its stdin,
  the classes as `codec.pickling` makes them.

The child reports where it listens, or why not, as one line on a pipe. A second pipe is its parent's life line: the
end of that, however the parent dies, ends the child within 2 s. Only the parent itself holds the other end; a fork
of it lets go.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from .. import codec, errors
from ..agents.factories.factory import Maker, maker_name
from ..agents.spec import annotated, spec_of
from ..codec import pickling
from ..codec.classes.carried import carried
from ..config import BrokerConfig, replaced_by_gevent
from .watching import readable

__all__ = ["MODULES_OF_A_HOST", "Child", "Interrupted", "fork", "how_it_ended", "spawn", "why_not_fork"]

KILL_WAIT_S = 5.0
MODULES_OF_A_HOST = ("os", "time", "threading", "socket", "select", "subprocess", "signal", "queue")  # gevent patches
THREAD_END_S = 0.02  # how long a thread that has been joined may still be seen in /proc


class Interrupted(Exception):
    """Something else happened while a child's report was waited for."""


def why_not_fork() -> str:
    """Why a fork would not be safe now, "" if it is."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} does not allow it"
    if replaced := replaced_by_gevent(*MODULES_OF_A_HOST):
        return f"gevent has patched {', '.join(replaced)}, and the fork would have it so too"
    asyncio = sys.modules.get("asyncio")  # if it was never imported, it watches no child
    if asyncio is not None and asyncio._get_running_loop() is not None:
        return "an event loop is running"
    end = time.monotonic() + THREAD_END_S
    while (threads := len(os.listdir("/proc/self/task"))) > 1:
        if threading.active_count() > 1 or time.monotonic() > end:
            return f"the process has {threads} threads (a live ZeroMQ context has some)"
        time.sleep(0.001)
    return ""


class Child:
    """A host process, seen from its parent: its pid, the pipe of its report and the life line. Any thread."""

    def __init__(self, pid: int, ready_r: int, life_w: int, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._ready_r = ready_r
        self._life_w = life_w
        self._popen = popen
        self._status: int | None = None
        self._lock = threading.Lock()
        self.pidfd = _pidfd(pid)  # readable once it has ended; None where the system has no such thing
        self._fds = [fd for fd in (ready_r, life_w, self.pidfd) if fd is not None]

    def wait_ready(self, timeout_s: float, interrupts: Sequence[int] = ()) -> dict[str, Any]:
        """The child's report that it listens; raises what went wrong there, or LaunchError after ``timeout_s``.

        Raises Interrupted as soon as one of the descriptors ``interrupts`` can be read.
        """
        end = time.monotonic() + timeout_s
        data = b""
        while not data.endswith(b"\n"):
            # The process, too: a fork by other code at the wrong moment may hold the pipe open.
            if not readable([self._ready_r, self.pidfd, *interrupts], end - time.monotonic()):
                raise errors.LaunchError(
                    f"the host process did not listen within {timeout_s:g} s and was ended; if its agents' files take "
                    f"so long to import, raise launch_timeout_s"
                )
            if readable(interrupts, 0):
                raise Interrupted
            chunk = os.read(self._ready_r, 65_536) if readable([self._ready_r], 0) else b""
            if not chunk:
                raise errors.LaunchError(f"the host process ended before it listened ({self._how_it_ended()})")
            data += chunk
        report: dict[str, Any] = json.loads(data)
        if "error" in report:
            raise _launch_error(report["error"])
        return report

    def _how_it_ended(self) -> str:
        status = self.wait(KILL_WAIT_S)
        if status is None:
            return "it closed its pipe and goes on"
        return how_it_ended(status)

    def forget_lock(self) -> None:
        """In a forked child: a thread that is not here may hold the lock."""
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs. Reaps the process."""
        with self._lock:
            if self._status is None:
                self._status = self._look()
            return self._status

    def _look(self) -> int | None:
        if self._popen is not None:
            return self._popen.poll()
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # other code has reaped it, or this is a fork of the launching process
            return -1
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, timeout_s: float | None) -> int | None:
        """Wait for its end; None after ``timeout_s`` seconds."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            if self.pidfd is not None:
                readable([self.pidfd], left)
            else:
                time.sleep(0.01)
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs: not to another process that has its number by now."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._status is None:
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        """End it at once with what its agents started and did not put apart: also what it has left behind.

        Not after it was reaped: its process group may be another one by then.
        """
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._status is None:
                os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, with what its agents started and did not put apart (its process group), and reap it."""
        if self.poll() is not None:
            return
        self.kill_group()
        self.signal(signal.SIGKILL)  # it may have no group of its own yet
        self.wait(KILL_WAIT_S)

    def say(self, word: bytes) -> None:
        """Write to the life line: it is asked to stop in order. A supervisor takes that for its own word."""
        with self._lock, contextlib.suppress(OSError):
            if self._life_w in _own_ends:  # else it is closed, or this is a fork of the launching process
                os.write(self._life_w, word)

    def cut_life_line(self) -> None:
        """For the child this process is dead from now on."""
        self._close([self._life_w])

    def close(self) -> None:
        """Close the pipes, and with them the life line; idempotent."""
        self._close(self._fds)

    def _close(self, ends: Sequence[int]) -> None:
        with self._lock:
            fds = [fd for fd in ends if fd in self._fds]
            self._fds = [fd for fd in self._fds if fd not in fds]
        for fd in fds:
            if fd in _own_ends:  # else this is a fork of the launching process, which has closed its copies
                _own_ends.discard(fd)
                os.close(fd)


def how_it_ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}, see its stderr"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def _pidfd(pid: int) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or an old kernel
        return None
    _own_ends.add(fd)
    return fd


def _launch_error(data: dict[str, Any]) -> Exception:
    """What the child says went wrong, as the error class that it names; LaunchError for a class of other code."""
    module, _, name = data["type"].partition(":")
    kind = getattr(errors, name, None) if module == errors.__name__ else None
    if isinstance(kind, type) and issubclass(kind, errors.ZmqAgentsError):
        return kind(data["message"])
    error = errors.LaunchError(f"the host process could not start: {name}: {data['message']}")
    error.__cause__ = _InChild(str(data.get("traceback", "")))
    return error


class _InChild(Exception):
    """The child's traceback, printed above the parent's."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# The parent's ends of the pipes of all its children, and descriptors of the processes. A fork of the parent must not
# hold them: a life line ends only when every copy of its end is closed.
_own_ends: set[int] = set()
_pipes_lock = threading.RLock()  # held by a fork, so that it finds every end in `_own_ends`


def _let_go_after_fork() -> None:
    global _pipes_lock
    _pipes_lock = threading.RLock()
    for fd in _own_ends:
        with contextlib.suppress(OSError):
            os.close(fd)
    _own_ends.clear()


os.register_at_fork(
    before=lambda: _pipes_lock.acquire(),
    after_in_parent=lambda: _pipes_lock.release(),
    after_in_child=_let_go_after_fork,
)


def _pipes() -> tuple[int, int, int, int]:
    with _pipes_lock:
        ready_r, ready_w = os.pipe()
        life_r, life_w = os.pipe()
        _own_ends.update((ready_r, life_w))
    return ready_r, ready_w, life_r, life_w


@contextlib.contextmanager
def _new_pipes() -> Iterator[tuple[int, int, int, int]]:
    """Both pipes; the child's ends are closed here afterwards, this side's too if the child could not be started."""
    ready_r, ready_w, life_r, life_w = _pipes()
    try:
        yield ready_r, ready_w, life_r, life_w
    except BaseException:
        for fd in (ready_r, life_w):
            _own_ends.discard(fd)
            os.close(fd)
        raise
    finally:
        os.close(ready_w)
        os.close(life_r)


Body = Callable[[int, int], Any]  # gets the descriptors for its report and of its life line; must not return


def fork(body: Body, *, new_session: bool = True) -> Child:
    """Run ``body`` in a fork of this process; to be called where `why_not_fork` is "". Raises LaunchError.

    ``new_session``: Ctrl-C at the terminal is for this process, which ends the child in order.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, or closed
            stream.flush()
    with _new_pipes() as (ready_r, ready_w, life_r, life_w):
        try:
            pid = os.fork()
        except OSError as exc:
            raise errors.LaunchError(f"cannot fork: {exc}") from exc
        if pid == 0:
            try:  # the parent's code, its finally blocks and exit handlers belong to the parent
                if new_session:
                    os.setsid()
                body(ready_w, life_r)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        return Child(pid, ready_r, life_w)


# To load 200 modules leaves no garbage, but 80 looks for it: 10 ms.
_BOOT = """\
import gc, importlib, pickle, sys
gc.disable()
source = open(0, "rb", closefd=False)
sys.path[:] = pickle.load(source)
main = importlib.import_module(sys.argv[1]).main
gc.enable()
main(source, *sys.argv[3:])
"""


def spawn(
    module: str, config: BrokerConfig, classes: Sequence[Maker], *more: str, new_session: bool = True,
    stderr: int | None = None, env: Mapping[str, str] | None = None,
) -> Child:  # fmt: skip
    """Call ``main(source, ready_fd, life_fd, *more)`` of ``module`` in a new interpreter, all of them texts but
    ``source``, which holds the pickled config, what is registered here, and the classes.

    Raises LaunchError, MissingExtra. ``stderr``: where that of the process goes, ``env``: its variables; None: as here.

    Nothing secret is among the arguments of the process: any user of the machine may read those.
    """
    if not sys.executable:
        raise errors.LaunchError("there is no Python interpreter to start (sys.executable is empty): use 'fork'")
    from multiprocessing.spawn import get_command_line  # here: a fork needs no multiprocessing

    flags = get_command_line()[1:-3]  # between the interpreter and ``-c``, program and ``--multiprocessing-fork``
    with _payload(config, classes) as payload, _new_pipes() as (ready_r, ready_w, life_r, life_w):
        words = [module, config.server_id, str(ready_w), str(life_r), *more]
        try:
            popen = subprocess.Popen(
                [sys.executable, *flags, "-c", _BOOT, *words],
                stdin=payload, stderr=stderr, pass_fds=(ready_w, life_r), start_new_session=new_session, env=env,
            )  # fmt: skip
        except OSError as exc:
            raise errors.LaunchError(f"cannot start {sys.executable}: {exc}") from exc
        return Child(popen.pid, ready_r, life_w, popen)


def _named_by(classes: Sequence[Maker]) -> list[type]:
    """The classes in annotations of agent classes of ``__main__``.

    Such a class is sent as its code, without what only the text of an annotation names.
    """
    found: dict[type, None] = {}
    for cls in classes:
        if not isinstance(cls, type):  # a factory
            continue
        for name in (*spec_of(cls).methods, "__init__") if cls.__module__ == "__main__" else ():
            methods, _ = annotated(cls, name)
            for of_result in (False, True):
                found |= dict.fromkeys(codec.expected_by(*methods, of_result=of_result).classes())
    return list(found)


def _payload(config: BrokerConfig, classes: Sequence[Maker]) -> IO[bytes]:
    """What a fresh interpreter reads on its stdin. A file, not a pipe: writing it cannot block."""
    try:
        pickled = pickling.dumps(list(classes))
    except errors.MissingExtra:
        raise
    except Exception as exc:  # pickling runs the classes' own code
        names = ", ".join(map(maker_name, classes))
        raise errors.LaunchError(
            f"the agent classes ({names}) cannot be sent to a new interpreter: {exc}; put them into a module, or "
            f"launch before any thread is started, so that the host can be a fork"
        ) from exc
    # Our own place last: in case the package was found by an entry that is gone from the path.
    place = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = [os.path.abspath(entry) if os.path.isdir(entry or ".") else entry for entry in sys.path]
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    file.write(
        pickle.dumps([*path, place]) + pickle.dumps(config) + pickle.dumps(carried(_named_by(classes))) + pickled
    )
    file.seek(0)
    return file
